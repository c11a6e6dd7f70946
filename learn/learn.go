package learn

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"onnx-dha/data"
	"onnx-dha/fusion"
)

// Request says what to learn. One of KV, MaxKL, and Key or Value is given.
type Request struct {
	Strategy fusion.Strategy
	Layout   fusion.Layout     // FreeLayout when empty
	Groups   fusion.GroupSizes // AnyGroups when empty
	// Nested makes each group of the kind with more groups lie within one of the other kind's, so that a rewritten block
	// needs one order of query heads only.
	Nested bool
	// Importance is how much errors count in what each query head gives, [block][head], as Importance.Weights has it; nil
	// counts all alike.
	Importance [][]float64

	KV         float64 // share of the cache's bytes that may stay, 0 < KV ≤ 1
	Key, Value int     // numbers of heads of every layer; 0 keeps those of the kind
	MaxKL      float64 // the smallest cache whose divergence from the original is at most this, in nats a position

	Train, HeldOut []data.Sample
	// Trials bounds how many allocations beside the first are tried out on the whole model.
	Trials int
	// NoRefit leaves values and output projections as the strategy makes them. Only the optimal strategy refits them:
	// the others are what their papers say.
	NoRefit bool
	Seed    uint64
	// State is the file that a stopped run is resumed from and that keeps what is finished; empty keeps nothing.
	State  string
	Resume bool

	// Progress, when not nil, is called with the runs of the model that are done, an estimate of all, and what is being
	// done.
	Progress func(done, total int, what string)
}

// RequestError says that what was asked for cannot be had of this model and these data, before anything failed.
type RequestError struct{ err error }

func (e *RequestError) Error() string { return e.err.Error() }
func (e *RequestError) Unwrap() error { return e.err }

func unfit(format string, args ...any) error { return &RequestError{fmt.Errorf(format, args...)} }

// Result is what was learned.
type Result struct {
	Layers   []*Layer // in the order of Lab.Open
	Choices  []fusion.Choice
	Before   Quality // of the original on the held-out samples
	After    Quality // of the compressed model on them
	Searched float64 // KL of the compressed model on the samples that it was learned from
	// Bytes of cache at one position, of all blocks.
	BytesBefore, BytesAfter int64
	Resumed                 bool
	Elapsed                 time.Duration
}

// Tokens that the search calibrates on, and the part of them that it measures on; the final run calibrates on all.
const (
	searchTokens = 16 << 10
	judgeTokens  = 6 << 10
)

// Learn finds a configuration for the model of the lab.
func (l *Lab) Learn(ctx context.Context, q Request) (*Result, error) {
	start := time.Now()
	if q.Layout == "" {
		q.Layout = fusion.FreeLayout
	}
	if len(l.Open()) == 0 {
		return nil, unfit("%s has no attention block that can be rewritten", l.Path)
	}
	train, err := l.Batches(q.Train, q.Seed)
	if err != nil {
		return nil, &RequestError{err}
	}
	held, err := l.Batches(q.HeldOut, q.Seed)
	if err != nil {
		return nil, unfit("held-out samples: %w", err)
	}
	r := &run{lab: l, q: q}
	if err := r.open(train); err != nil {
		return nil, err
	}
	defer r.close()
	r.rest = r.sequenceRuns(train, true) + len(held)
	r.total = r.rest
	res := &Result{Resumed: r.resumed}
	choices, kl, err := r.choose(ctx)
	if err != nil {
		return nil, err
	}
	res.Choices, res.Searched = choices, kl
	if res.Layers, err = r.finish(ctx, choices, train); err != nil {
		return nil, err
	}
	r.note("held-out samples")
	judge, err := l.Judge(ctx, held)
	if err != nil {
		return nil, err
	}
	defer judge.Close()
	if res.Before, res.After, err = judge.Measure(ctx, r.seq.all(r.seq.byBlock(res.Layers)), r.step); err != nil {
		return nil, err
	}
	res.BytesBefore, res.BytesAfter = l.cache().whole, l.bytesWith(choices)
	res.Elapsed = time.Since(start)
	return res, nil
}

// refits reports whether values and output projections are fitted after a strategy.
func (q Request) refits(s fusion.Strategy) bool { return !q.NoRefit && s.Name == "optimal" }

// run is one call of Learn.
type run struct {
	lab     *Lab
	q       Request
	seq     *Sequence
	judge   *Judge
	search  *search
	few     []Batch // that the search uses
	state   *state
	resumed bool
	rows    bool // what is kept in the state are rows of a comparison, not layers

	done, total int
	rest        int // runs after the search: the final weights and the report
	what        string
}

func (r *run) step() {
	r.done++
	r.total = max(r.total, r.done)
	if r.q.Progress != nil {
		r.q.Progress(r.done, r.total, r.what)
	}
}

func (r *run) note(what string) { r.what = what }

// bounded takes batches of at most so many tokens, one at least, evenly over all.
func bounded(batches []Batch, tokens int) []Batch {
	whole := 0
	for _, b := range batches {
		whole += b.Tokens
	}
	var out []Batch
	taken, passed := 0, 0
	for _, b := range batches {
		passed += b.Tokens
		// The share of the tokens passed that is taken never runs ahead of the share wanted.
		if whole > tokens && len(out) > 0 && float64(taken+b.Tokens)*float64(whole) > float64(tokens)*float64(passed) {
			continue
		}
		taken += b.Tokens
		out = append(out, b)
	}
	return out
}

func (r *run) open(train []Batch) error {
	r.few = bounded(train, searchTokens)
	refits := r.q.refits(r.q.Strategy)
	r.seq = &Sequence{
		Lab: r.lab, Strategy: r.q.Strategy, Batches: r.few, Refit: refits, Joint: refits, Seed: r.q.Seed, Step: r.step,
		Options:    fusion.SolveOptions{Groups: r.q.Groups, Nested: r.q.Nested, Coupled: r.q.Layout == fusion.CoupledLayout || r.q.Layout == fusion.UniformLayout},
		Importance: r.q.Importance,
	}
	if !r.rows {
		if err := r.restore(); err != nil {
			return err
		}
	}
	return r.seq.Start()
}

// restore takes over the state that the request wants to go on from, or starts one.
func (r *run) restore(parts ...any) (err error) {
	q := r.q
	r.state = newState("")
	if q.State == "" {
		return nil
	}
	fingerprint, err := r.lab.fingerprint()
	if err != nil {
		return err
	}
	r.state.Request = digest(append(parts, fingerprint, q.Strategy.Name, q.Layout, q.Groups, q.Nested, q.KV, q.Key, q.Value, q.MaxKL,
		q.Trials, q.NoRefit, q.Seed, q.Importance, digestSamples(q.Train))...)
	if q.Resume {
		r.state, r.resumed, err = loadState(q.State, r.state.Request)
	}
	return err
}

func digestSamples(samples []data.Sample) string {
	var parts []any
	for _, s := range samples {
		parts = append(parts, s.Tokens)
		var names []string
		for name := range s.Tensors {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			parts = append(parts, name, s.Tensors[name].Shape, digest(s.Tensors[name].Raw))
		}
	}
	return digest(parts...)
}

func (r *run) close() {
	r.seq.Close()
	if r.judge != nil {
		r.judge.Close()
	}
}

func (r *run) save() error {
	if r.q.State == "" {
		return nil
	}
	return r.state.save(r.q.State)
}

// choose finds the numbers of heads of every layer, and the divergence that they were chosen by, NaN when they were given.
func (r *run) choose(ctx context.Context) ([]fusion.Choice, float64, error) {
	if r.q.Key > 0 || r.q.Value > 0 {
		out, err := r.given()
		return out, math.NaN(), err
	}
	if r.q.KV > 0 {
		if err := r.reaches(r.q.KV); err != nil {
			return nil, 0, err
		}
		if out := r.only(r.q.KV); out != nil {
			return out, math.NaN(), nil
		}
	}
	steps := r.q.Trials
	if r.q.MaxKL > 0 {
		steps = bits.Len(uint(r.levels())) // of the bisection
	}
	r.total = r.tableRuns() + r.searchRuns(steps) + r.rest
	var err error
	if r.judge, err = r.lab.Judge(ctx, r.judged()); err != nil {
		return nil, 0, err
	}
	r.search = r.newSearch()
	if err := r.search.measure(ctx); err != nil {
		return nil, 0, err
	}
	r.total = r.done + r.searchRuns(steps) + r.rest
	if r.q.KV > 0 {
		return r.search.allocate(ctx, r.lab.cache().budget(r.q.KV), r.q.Trials)
	}
	return r.smallest(ctx)
}

func (r *run) newSearch() *search {
	return &search{seq: r.seq, judge: r.judge, layout: r.q.Layout, table: r.table, memo: r.state.Measured, saved: r.save, note: r.note}
}

// levels is about how many sizes a cache can have.
func (r *run) levels() (n int) {
	for _, i := range r.lab.Open() {
		n += r.lab.Blocks[i].KVHeads + r.lab.Blocks[i].ValueHeads
	}
	return n
}

// smallest finds the smallest cache that holds MaxKL, by bisection over budgets, the model of each allocation being
// compressed and measured.
func (r *run) smallest(ctx context.Context) ([]fusion.Choice, float64, error) {
	step := int64(math.MaxInt64) // budgets between two sums of heads change nothing
	for _, t := range r.search.tables {
		step = min(step, t.KeyBytes, t.ValueBytes)
	}
	all := r.lab.original()
	least, most := r.lab.cache().least, r.search.bytes(all)-step
	var best []fusion.Choice
	kl := math.NaN()
	for low, high := least, most; low <= high; {
		budget := low + (high-low)/2
		if _, err := fusion.Allocate(r.search.tables, budget, r.q.Layout); err != nil { // the layout has nothing as small
			low = budget + step
			continue
		}
		choices, got, err := r.search.allocate(ctx, budget, 0)
		if err != nil {
			return nil, 0, err
		}
		if got <= r.q.MaxKL {
			best, kl = choices, got
			high = r.search.bytes(choices) - step
		} else {
			low = budget + step
		}
	}
	if best == nil {
		return nil, 0, unfit("no smaller cache keeps the divergence at %g nats or less; want more, or another layout", r.q.MaxKL)
	}
	return best, kl, nil
}

// finish compresses the model to the choices on all samples, and keeps every layer that is done.
func (r *run) finish(ctx context.Context, choices []fusion.Choice, train []Batch) ([]*Layer, error) {
	r.what = "final weights"
	open := r.lab.Open()
	var keep []*Layer
	if slices.Equal(r.state.Choices, choices) {
		for n, saved := range r.state.Layers {
			l, err := r.seq.layer(open[n], choices[n], saved)
			if err != nil {
				return nil, err
			}
			keep = append(keep, l)
		}
	}
	r.seq.Batches, r.seq.Fine = train, true
	if !r.rows {
		r.total = r.done + r.rest
	}
	if !slices.Equal(r.state.Choices, choices) {
		r.state.Choices, r.state.Layers = choices, nil
	}
	return r.seq.Run(ctx, choices, keep, func(n int, l *Layer) error {
		if r.rows {
			return nil
		}
		r.state.Layers = append(r.state.Layers[:n], saveLayer(l))
		return r.save()
	})
}

// Config writes what was learned as a configuration, with the weights to go beside it. weights is the name of their file.
func (l *Lab) Config(res *Result, strategy fusion.Strategy, weights string, about ...string) (*fusion.Config, map[string]*fusion.Learned, error) {
	fingerprint, err := l.fingerprint()
	if err != nil {
		return nil, nil, err
	}
	c := &fusion.Config{
		Version: fusion.Version, Fingerprint: fingerprint, Method: strategy.Name, Lowering: fusion.Auto,
		Comment: strings.Join(append(about, res.lines()...), "\n"),
	}
	learned := map[string]*fusion.Learned{}
	for n, i := range l.Open() {
		layer := res.Layers[n]
		b := l.Blocks[i]
		keys, values := fusion.CachedHeads(b)
		if layer.Solution == nil && layer.Plan.Learned == nil && keys == b.KVHeads && values == b.ValueHeads {
			continue
		}
		entry := fusion.Layer{Block: b.Name, Comment: layer.comment(b.KVHeads, b.ValueHeads)}
		entry.Key, entry.Value = heads(layer.Plan.Key, layer.Plan.Learned), heads(layer.Plan.Value, layer.Plan.Learned)
		c.Layers = append(c.Layers, entry)
		if layer.Plan.Learned != nil {
			learned[b.Name] = layer.Plan.Learned
		}
	}
	if len(learned) > 0 {
		c.Weights = weights
	}
	return c, learned, nil
}

// heads writes a fusion; beside learned weights its own only tell people what went in, and four digits do.
func heads(f fusion.Fusion, learned *fusion.Learned) *fusion.Heads {
	h := &fusion.Heads{Groups: f.Groups, Weights: f.Weights}
	if learned == nil {
		return h
	}
	h.Weights = make([][]float64, len(f.Weights))
	for g, row := range f.Weights {
		for _, x := range row {
			h.Weights[g] = append(h.Weights[g], math.Round(1e4*x)/1e4)
		}
	}
	return h
}

// lines say what was measured.
func (r *Result) lines() []string {
	out := []string{fmt.Sprintf("KV cache: %d of %d bytes a token (%.3g %%).", r.BytesAfter, r.BytesBefore, 100*float64(r.BytesAfter)/float64(r.BytesBefore))}
	q := fmt.Sprintf("Held-out data, %d positions: KL %.4g, same most likely token %.4g", r.After.Positions, r.After.KL, r.After.Top1)
	if !math.IsNaN(r.After.Loss) {
		q += fmt.Sprintf(", loss %.4f (original %.4f), perplexity × %.4f", r.After.Loss, r.Before.Loss, r.After.Perplexity/r.Before.Perplexity)
	}
	return append(out, q+".")
}

func (l *Layer) comment(keys, values int) string {
	s := fmt.Sprintf("%d of %d key heads, %d of %d value heads", l.Choice.Key, keys, l.Choice.Value, values)
	if l.Solution == nil {
		s += "; only the output projection is refitted"
	} else if l.Solution.Note != "" {
		s += "\n" + l.Solution.Note
	}
	return s
}
