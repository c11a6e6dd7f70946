package learn

import (
	"context"
	"fmt"
	"math"
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
	for i, b := range l.Blocks {
		keys, values := fusion.CachedHeads(b)
		res.BytesBefore += l.headBytes(i, keys, values)
		if b.Fixed != "" {
			res.BytesAfter += l.headBytes(i, keys, values)
		}
	}
	for n, i := range l.Open() {
		res.BytesAfter += l.headBytes(i, choices[n].Key, choices[n].Value)
	}
	res.Elapsed = time.Since(start)
	return res, nil
}

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

	done, total int
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
	refits := !r.q.NoRefit && r.q.Strategy.Name == "optimal"
	r.seq = &Sequence{
		Lab: r.lab, Strategy: r.q.Strategy, Batches: r.few, Refit: refits, Joint: refits, Seed: r.q.Seed, Step: r.step,
		Options: fusion.SolveOptions{Groups: r.q.Groups, Coupled: r.q.Layout == fusion.CoupledLayout || r.q.Layout == fusion.UniformLayout},
	}
	request := ""
	if r.q.State != "" {
		fingerprint, err := fusion.Fingerprint(r.lab.Blocks)
		if err != nil {
			return err
		}
		request = digest(fingerprint, r.q.Strategy.Name, r.q.Layout, r.q.Groups, r.q.KV, r.q.Key, r.q.Value, r.q.MaxKL, r.q.NoRefit, r.q.Seed, digestSamples(r.q.Train))
	}
	r.state = &state{Version: stateVersion, Request: request, Measured: map[string]float64{}}
	if r.q.State != "" && r.q.Resume {
		var err error
		if r.state, r.resumed, err = loadState(r.q.State, request); err != nil {
			return err
		}
	}
	return r.seq.Start()
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

// budget is what a share of the cache leaves to the blocks that can be rewritten, in bytes a position.
func (r *run) budget(share float64) int64 {
	var whole, fixed int64
	for i, b := range r.lab.Blocks {
		keys, values := fusion.CachedHeads(b)
		n := r.lab.headBytes(i, keys, values)
		whole += n
		if b.Fixed != "" {
			fixed += n
		}
	}
	return int64(math.Floor(share*float64(whole)+1e-9)) - fixed
}

// least is the fewest bytes that the layers can have, and most what they have.
func (r *run) bounds() (least, most int64) {
	for _, i := range r.lab.Open() {
		b := r.lab.Blocks[i]
		least += r.lab.headBytes(i, 1, 1)
		most += r.lab.headBytes(i, b.KVHeads, b.ValueHeads)
	}
	return least, most
}

// choose finds the numbers of heads of every layer, and the divergence that they were chosen by, NaN when they were given.
func (r *run) choose(ctx context.Context) ([]fusion.Choice, float64, error) {
	open := r.lab.Open()
	if r.q.Key > 0 || r.q.Value > 0 {
		out := make([]fusion.Choice, len(open))
		for n, i := range open {
			b := r.lab.Blocks[i]
			out[n] = fusion.Choice{Key: b.KVHeads, Value: b.ValueHeads}
			if r.q.Key > 0 {
				out[n].Key = min(r.q.Key, b.KVHeads)
			}
			if r.q.Value > 0 {
				out[n].Value = min(r.q.Value, b.ValueHeads)
			}
		}
		return out, math.NaN(), nil
	}
	least, most := r.bounds()
	if r.q.KV > 0 {
		if have := r.budget(r.q.KV); have < least {
			share := float64(least+r.budget(1)-most) / float64(r.budget(1))
			return nil, 0, unfit("%.3g %% of the cache is less than one key head and one value head in every layer; want %.3g %% and more",
				100*r.q.KV, math.Ceil(1000*share)/10)
		}
	}
	if out := r.only(r.budget(r.q.KV), least); r.q.KV > 0 && out != nil {
		return out, math.NaN(), nil
	}
	runs := len(r.few) * len(open)
	r.total = runs * (2 + 8*2) // a rough count: the tables, then passes over prefixes
	var err error
	if r.judge, err = r.lab.Judge(ctx, bounded(r.few, judgeTokens)); err != nil {
		return nil, 0, err
	}
	r.search = &search{seq: r.seq, judge: r.judge, layout: r.q.Layout, memo: r.state.Measured, saved: r.save, note: r.note}
	if err := r.search.measure(ctx); err != nil {
		return nil, 0, err
	}
	if r.q.KV > 0 {
		r.total = r.done + (r.q.Trials+1)*(runs+len(r.few))
		return r.search.allocate(ctx, r.budget(r.q.KV), r.q.Trials)
	}
	return r.smallest(ctx, least, most)
}

// only returns one head of each kind for every layer when the budget leaves nothing to choose, else nil.
func (r *run) only(budget, least int64) []fusion.Choice {
	var out []fusion.Choice
	for _, i := range r.lab.Open() {
		if budget-least >= min(r.lab.headBytes(i, 1, 0), r.lab.headBytes(i, 0, 1)) {
			return nil
		}
		out = append(out, fusion.Choice{Key: 1, Value: 1})
	}
	return out
}

// smallest finds the smallest cache that holds MaxKL, by bisection over budgets, the model of each allocation being
// compressed and measured.
func (r *run) smallest(ctx context.Context, least, most int64) ([]fusion.Choice, float64, error) {
	step := int64(math.MaxInt64) // budgets between two sums of heads change nothing
	for _, t := range r.search.tables {
		step = min(step, t.KeyBytes, t.ValueBytes)
	}
	var best []fusion.Choice
	kl := math.NaN()
	for low, high := least, most; low <= high; {
		budget := low + (high-low)/2
		r.total = max(r.total, r.done+len(r.few)*len(r.lab.Open()))
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
	r.total = max(r.total, r.done+len(train)*len(open)*2)
	if !slices.Equal(r.state.Choices, choices) {
		r.state.Choices, r.state.Layers = choices, nil
	}
	return r.seq.Run(ctx, choices, keep, func(n int, l *Layer) error {
		r.state.Layers = append(r.state.Layers[:n], saveLayer(l))
		return r.save()
	})
}

// Config writes what was learned as a configuration, with the weights to go beside it. weights is the name of their file.
func (l *Lab) Config(res *Result, strategy fusion.Strategy, weights string, about ...string) (*fusion.Config, map[string]*fusion.Learned, error) {
	fingerprint, err := fusion.Fingerprint(l.Blocks)
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
		if layer.Solution == nil && layer.Plan.Learned == nil {
			continue
		}
		b := l.Blocks[i]
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
