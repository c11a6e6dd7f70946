// Package bench measures what a rewrite is worth: how long prefill and decode take, for the original and for models made
// from it, at several context lengths and batch sizes, and how near that comes to what the bytes that have to be moved
// allow.
//
// Models are measured in turn, round after round, so that what disturbs the machine disturbs all alike. Ratios are taken
// within a round.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"onnx-dha/decode"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

// Request says what to measure. The zero value of a field stands for the number behind it.
type Request struct {
	Models  []string  // paths; the first is the original that the others are held against
	Lengths []int     // positions that are cached before the measured steps; nil: no decode
	Batches []int     // {1}
	Prompt  int       // tokens of a prefill without a past; 0: none
	Fills   []float64 // {1}: shares of static caches that are filled; other caches have no capacity, and are measured once
	Rounds  int       // 5
	Steps   int       // 8: tokens that are decoded and timed in a round
	Warmup  int       // 2: tokens before them that are not
	Session ort.Options
	Seed    uint64
	// Progress, when not nil, is told what is done.
	Progress func(done, total int, what string)
}

func (q *Request) defaults() {
	for _, d := range []struct {
		n   *int
		def int
	}{{&q.Rounds, 5}, {&q.Steps, 8}, {&q.Warmup, 2}} {
		if *d.n <= 0 {
			*d.n = d.def
		}
	}
	if len(q.Batches) == 0 {
		q.Batches = []int{1}
	}
	if len(q.Fills) == 0 {
		q.Fills = []float64{1}
	}
	if q.Progress == nil {
		q.Progress = func(int, int, string) {}
	}
}

// Model is one of the models.
type Model struct {
	Path string
	// Static is whether its caches are written in place.
	Static bool
	// Cached is whether it has caches at all; without, it is measured by its prefill alone.
	Cached bool
	// Position is what one position of one sequence takes in the caches, in bytes.
	Position int64
	// Weights is what a step reads of the weights, in bytes: all but tables that rows are picked from.
	Weights int64
	// Peak is the highest memory held while the model, alone, does the largest of the cases, beyond what the process held
	// before, in bytes; 0 where the system does not tell.
	Peak int64

	m *decode.Model
}

// Case is one thing that all models do.
type Case struct {
	Batch   int
	Length  int     // positions cached before the step; 0 for a prefill
	Prompt  int     // tokens of a prefill; 0 for a step of one token
	Fill    float64 // share of a static cache that is filled by Length
	Results []Result
}

// Prefill reports whether the case is a prefill.
func (c *Case) Prefill() bool { return c.Prompt > 0 }

// Result is what one model took for a case.
type Result struct {
	Seconds []float64 // of each round: of a prefill, or of one step of all sequences (the median over the steps)
	// Bytes is what a step moves at least: weights, and caches as the graph goes over them (see [Model.Moves]).
	Bytes   int64
	Skipped string // why the model was not measured; the other fields are empty then
}

// Report is what was measured.
type Report struct {
	Models []Model
	Cases  []Case
}

// ModelError is a model that cannot be measured.
type ModelError struct {
	Path string
	Err  error
}

func (e *ModelError) Error() string { return e.Err.Error() }
func (e *ModelError) Unwrap() error { return e.Err }

// Run measures. Cases that do not fit a model or the memory of the machine are skipped, with the reason in their results.
func Run(ctx context.Context, q Request) (_ *Report, err error) {
	q.defaults()
	if len(q.Models) == 0 {
		return nil, errors.New("no model to measure")
	}
	r := &Report{}
	// Each session has memory of its own, so that it is given back with the session and a model is charged for its own only.
	q.Session.Config = merged(q.Session.Config, "session.use_env_allocators", "0")
	defer func() {
		for _, m := range r.Models {
			if m.m != nil {
				err = errors.Join(err, m.m.Close())
			}
		}
	}()
	total := len(q.Models) + q.count()*q.Rounds
	for i, path := range q.Models {
		q.Progress(i, total, "memory")
		m, err := open(path, q)
		if err != nil {
			return nil, err
		}
		if err := m.measurePeak(ctx, q); err != nil {
			return nil, err
		}
		r.Models = append(r.Models, *m)
	}
	for i := range r.Models {
		if r.Models[i].m, err = decode.Open(r.Models[i].Path, q.Session); err != nil {
			return nil, err
		}
	}
	done := len(q.Models)
	for _, c := range q.cases() {
		if err := r.measure(ctx, &c, q, func(what string) { q.Progress(done, total, what); done++ }); err != nil {
			return nil, err
		}
		r.Cases = append(r.Cases, c)
	}
	return r, nil
}

func merged(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// cases lists what is measured: prefill and decode by batch.
func (q *Request) cases() (out []Case) {
	for _, b := range q.Batches {
		if q.Prompt > 0 {
			out = append(out, Case{Batch: b, Prompt: q.Prompt, Fill: 1})
		}
	}
	for _, b := range q.Batches {
		for _, n := range q.Lengths {
			for _, f := range q.Fills {
				out = append(out, Case{Batch: b, Length: n, Fill: f})
			}
		}
	}
	return out
}

func (q *Request) count() int { return len(q.cases()) }

// open loads a model and describes it.
func open(path string, q Request) (*Model, error) {
	weights, err := readPerStep(path)
	if err != nil {
		return nil, err
	}
	m := &Model{Path: path, Weights: weights}
	if m.m, err = decode.Open(path, q.Session); err != nil {
		return nil, &ModelError{path, err}
	}
	m.Static = m.m.Static
	if m.Position, err = m.m.CacheBytes(1, 1); err != nil {
		m.m.Close()
		return nil, err
	}
	m.Cached = m.Position > 0
	return m, nil
}

// Moves is the least that a step of a batch moves, in bytes, when length positions are cached in buffers of capacity
// positions: the weights, and of each cache either the whole buffer, which the products run over, or, where the model
// makes a longer copy, the past that is read, the present that is written, and the present that the products read.
func (m *Model) Moves(batch, length, capacity int) int64 {
	cache := m.Position * int64(batch)
	if m.Static {
		return m.Weights + cache*int64(capacity)
	}
	return m.Weights + 3*cache*int64(length)
}

// capacity is the room that static caches are given in a case.
func (c *Case) capacity(q Request) int {
	return max(int(float64(c.Length)/c.Fill), c.Length+q.Warmup+q.Steps)
}

// runner is a model at work on one case.
type runner struct {
	loop   *decode.Loop
	tokens [][]int64
	q      Request
	c      *Case
}

// start prepares a model for a case; why says why it cannot take it.
func (m *Model) start(c *Case, q Request) (r *runner, why string, err error) {
	if !m.Cached && !c.Prefill() {
		return nil, "it has no cache", nil
	}
	if limit := m.positions(); limit > 0 && c.Length+c.Prompt+q.Warmup+q.Steps > limit {
		return nil, fmt.Sprintf("it has a table of %d positions", limit), nil
	}
	// Whole pieces, as loops that grow their buffers in chunks have them.
	chunk := (max(c.capacity(q), c.Prompt) + rewrite.PieceLength - 1) / rewrite.PieceLength * rewrite.PieceLength
	fixed, err := m.fixed(c, q)
	if err != nil {
		return nil, "", err
	}
	loop, err := m.m.Start(decode.Options{Batch: c.Batch, Chunk: chunk, Inputs: fixed})
	if err != nil {
		return nil, "", &ModelError{m.Path, err}
	}
	r = &runner{loop: loop, q: q, c: c}
	vocabulary := m.vocabulary()
	random := rand.New(rand.NewPCG(q.Seed, 1))
	r.tokens = make([][]int64, c.Batch)
	for b := range r.tokens {
		r.tokens[b] = make([]int64, max(c.Prompt, 1))
		for i := range r.tokens[b] {
			r.tokens[b][i] = random.Int64N(vocabulary)
		}
	}
	return r, "", nil
}

// round measures once.
func (r *runner) round(ctx context.Context) (float64, error) {
	if r.c.Prefill() {
		if err := r.loop.Rewind(0); err != nil {
			return 0, err
		}
		return r.step(ctx)
	}
	if err := r.loop.Fill(r.c.Length, r.q.Seed); err != nil {
		return 0, err
	}
	var steps []float64
	for i := range r.q.Warmup + r.q.Steps {
		s, err := r.step(ctx)
		if err != nil {
			return 0, err
		}
		if i >= r.q.Warmup {
			steps = append(steps, s)
		}
	}
	return Median(steps), nil
}

// step feeds the tokens and waits for the scores.
func (r *runner) step(ctx context.Context) (float64, error) {
	begin := time.Now()
	if err := r.loop.Feed(ctx, r.tokens); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}

// measure runs all models on a case, in turn.
func (r *Report) measure(ctx context.Context, c *Case, q Request, progress func(string)) error {
	c.Results = make([]Result, len(r.Models))
	runners := make([]*runner, len(r.Models))
	defer func() {
		for _, x := range runners {
			if x != nil {
				x.loop.Close()
			}
		}
		release()
	}()
	lack := r.shortage(c, q)
	for i := range r.Models {
		why, err := lack, error(nil)
		if why == "" {
			runners[i], why, err = r.Models[i].start(c, q)
		}
		if err != nil {
			return err
		}
		c.Results[i].Skipped = why
		if why != "" {
			continue
		}
		capacity := c.Length
		if c.Fill < 1 {
			capacity = c.capacity(q)
		}
		c.Results[i].Bytes = r.Models[i].Moves(c.Batch, c.Length, capacity)
		// The first run of a shape plans its memory.
		if _, err := runners[i].round(ctx); err != nil {
			return err
		}
	}
	for n := range q.Rounds {
		progress(c.String())
		for k := range runners {
			// Whoever goes first has the caches of the processor to itself: it is another in every round.
			i := (k + n) % len(runners)
			if runners[i] == nil {
				continue
			}
			s, err := runners[i].round(ctx)
			if err != nil {
				return err
			}
			c.Results[i].Seconds = append(c.Results[i].Seconds, s)
		}
	}
	return nil
}

// String names a case.
func (c *Case) String() string {
	if c.Prefill() {
		return fmt.Sprintf("prefill of %d tokens, batch %d", c.Prompt, c.Batch)
	}
	s := fmt.Sprintf("%d positions, batch %d", c.Length, c.Batch)
	if c.Fill < 1 {
		s += fmt.Sprintf(", buffers filled to %g %%", 100*c.Fill)
	}
	return s
}

// vocabulary is the number of tokens that the model knows.
func (m *Model) vocabulary() int64 {
	for _, in := range m.m.Inputs {
		if in.Name == m.m.Tokens && in.Rows > 0 {
			return in.Rows
		}
	}
	return 2
}

// positions is the number of rows of the model's smallest table of positions, 0 when it looks none up.
func (m *Model) positions() int {
	rows := 0
	for _, in := range m.m.Inputs {
		if in.Role == verify.Positions && in.Rows > 0 && (rows == 0 || int(in.Rows) < rows) {
			rows = int(in.Rows)
		}
	}
	return rows
}

// fixed makes the inputs that do not follow from tokens, such as an encoder's states: random numbers, the same throughout.
func (m *Model) fixed(c *Case, q Request) (map[string]*ort.Tensor, error) {
	out := map[string]*ort.Tensor{}
	for _, in := range m.m.Inputs {
		cross := in.Role == verify.PastCache && slices.ContainsFunc(m.m.Caches, func(p verify.CachePair) bool { return p.Past == in.Name && !p.Grows })
		if in.Role != verify.Numbers && !cross {
			continue
		}
		shape, err := m.m.Shape(in, verify.Case{Name: "bench", Batch: c.Batch, Seq: 1, Encoder: 64})
		if err != nil {
			return nil, fmt.Errorf("model %q: input %q: %w", m.Path, in.Name, err)
		}
		values := make([]float64, max(1, product(shape)))
		r := rand.New(rand.NewPCG(q.Seed, 2))
		for i := range values {
			values[i] = r.NormFloat64()
		}
		if out[in.Name], err = ort.FromFloat64s(in.DType, values[:product(shape)], shape...); err != nil {
			return nil, fmt.Errorf("model %q: input %q: %w", m.Path, in.Name, err)
		}
	}
	return out, nil
}

func product(shape []int64) int {
	n := 1
	for _, d := range shape {
		n *= int(d)
	}
	return n
}
