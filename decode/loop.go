package decode

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"onnx-dha/ort"
)

// Chunk is the number of positions by which buffers grow. A step computes over the whole of a static cache, filled or not, so
// that it should not be much longer than it has to be; graphs with static caches may have a faster form for buffers whose length
// is a multiple of 256, which every multiple of Chunk is.
const Chunk = 256

// Options of a loop. The zero value is one sequence.
type Options struct {
	Batch int // sequences that are decoded side by side; 0 means 1
	Chunk int // positions by which buffers grow, best a multiple of 256; 0 means Chunk
	// Inputs holds what stays the same in every step and cannot be told from the tokens, such as an encoder's states.
	Inputs map[string]*ort.Tensor
}

// Loop decodes a batch of sequences step by step. It belongs to one goroutine and has to be closed before its model.
type Loop struct {
	m        *Model
	bind     *ort.Binding
	batch    int
	chunk    int
	caches   []*cache
	cross    []*cross
	capacity int   // of static caches
	filled   int   // positions so far, padding counted
	padding  []int // positions in front of each sequence that hold no token
	inputs   []source
	tokens   [][]int64      // all so far; only of a model without a cache
	last     int            // tokens of the last step
	written  map[*byte]bool // beginnings of memory that Fill has filled
	scores   [][]float32
}

// Start begins a batch of sequences.
func (m *Model) Start(o Options) (*Loop, error) {
	l := &Loop{m: m, batch: max(o.Batch, 1), chunk: o.Chunk, written: map[*byte]bool{}}
	if l.chunk <= 0 {
		l.chunk = Chunk
	}
	l.padding = make([]int, l.batch)
	var err error
	if l.bind, err = m.session.Bind(); err != nil {
		return nil, err
	}
	if err := l.prepare(o.Inputs); err != nil {
		l.bind.Close()
		return nil, err
	}
	return l, nil
}

func (l *Loop) prepare(fixed map[string]*ort.Tensor) (err error) {
	for _, c := range l.m.Caches {
		if c.Grows {
			l.caches = append(l.caches, &cache{CachePair: c})
		} else if fixed[c.Past] == nil {
			l.cross = append(l.cross, &cross{CachePair: c})
		}
	}
	if l.inputs, err = l.sources(fixed); err != nil {
		return err
	}
	return l.Rewind(0)
}

// Close frees the loop's memory.
func (l *Loop) Close() { l.bind.Close() }

// Len returns the number of positions so far, padding in front of shorter sequences counted.
func (l *Loop) Len() int { return l.filled }

// Capacity returns the number of positions that static caches have room for now, 0 for a model without.
func (l *Loop) Capacity() int { return l.capacity }

// Reserve makes room in static caches for n positions; without, they grow when they are full.
func (l *Loop) Reserve(n int) error {
	if !l.m.Static {
		return nil
	}
	return l.reserve(n, l.filled)
}

// Rewind goes back to the first n positions; what follows goes on from there.
func (l *Loop) Rewind(n int) error {
	if n > l.filled || n < 0 {
		return fmt.Errorf("model %q: going back to %d positions of %d", l.m.Path, n, l.filled)
	}
	if n > 0 && !l.m.Static {
		return fmt.Errorf("model %q: a cache that the model joins itself cannot go back to %d positions, only to none", l.m.Path, n)
	}
	l.filled = n
	if n == 0 {
		clear(l.padding)
		l.tokens = nil
		for _, c := range l.cross {
			c.kept = nil
		}
	}
	if l.m.Static {
		return nil
	}
	for _, c := range l.caches {
		if err := l.viewPast(c, 0); err != nil {
			return err
		}
	}
	return nil
}

// Fill sets all caches to n positions of random numbers, as if a prompt of n tokens had been fed. What a step costs does
// not depend on the numbers, and this takes no time and no memory that grows with the square of n.
func (l *Loop) Fill(n int, seed uint64) error {
	if len(l.caches) == 0 {
		return fmt.Errorf("model %q has no cache to fill", l.m.Path)
	}
	if !l.m.host {
		return fmt.Errorf("model %q: caches in the memory of a device cannot be filled", l.m.Path)
	}
	if l.m.Static {
		if err := l.reserve(n, 0); err != nil {
			return err
		}
	}
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	for _, c := range l.caches {
		if !l.m.Static {
			if err := l.viewPast(c, n); err != nil {
				return err
			}
		}
		// Memory that numbers were written to has some still, whatever shape it is given now.
		if len(c.past.Raw) == 0 || l.written[&c.past.Raw[0]] {
			continue
		}
		if err := fillRandom(c.past, r); err != nil {
			return fmt.Errorf("model %q: cache %q: %w", l.m.Path, c.Past, err)
		}
		l.written[&c.past.Raw[0]] = true
	}
	clear(l.padding)
	l.filled = n
	return nil
}

// fillRandom repeats some random numbers over a tensor.
func fillRandom(t *ort.Tensor, r *rand.Rand) error {
	if t.Len() == 0 {
		return nil
	}
	values := make([]float64, min(t.Len(), 1<<14))
	for i := range values {
		values[i] = r.NormFloat64()
	}
	pattern, err := ort.FromFloat64s(t.DType, values, int64(len(values)))
	if err != nil {
		return err
	}
	for at := 0; at < len(t.Raw); {
		at += copy(t.Raw[at:], pattern.Raw)
	}
	return nil
}

// Feed takes the next tokens of every sequence, [batch][n], and computes the scores of what follows. Prompts of unequal
// length, which only a loop's first tokens may be, are padded in front; the model needs a mask for that. After an error
// the loop has to go back to the beginning ([Loop.Rewind]).
func (l *Loop) Feed(ctx context.Context, tokens [][]int64) error {
	if len(tokens) != l.batch {
		return fmt.Errorf("model %q: tokens of %d sequences for a batch of %d", l.m.Path, len(tokens), l.batch)
	}
	n := 0
	for _, row := range tokens {
		n = max(n, len(row))
	}
	step, err := l.align(tokens, n)
	if err != nil {
		return err
	}
	if len(l.caches) == 0 {
		for b := range step {
			if len(l.tokens) <= b {
				l.tokens = append(l.tokens, nil)
			}
			l.tokens[b] = append(l.tokens[b], step[b]...)
		}
		step, n, l.filled = l.tokens, n+l.filled, 0
	}
	if err := l.run(ctx, step, n); err != nil {
		return err
	}
	l.filled += n
	l.last = n
	l.scores = nil
	return nil
}

// align pads prompts in front to n tokens.
func (l *Loop) align(tokens [][]int64, n int) ([][]int64, error) {
	out := slices.Clone(tokens)
	for b, row := range tokens {
		missing := n - len(row)
		switch {
		case len(row) == 0:
			return nil, fmt.Errorf("model %q: sequence %d has no token", l.m.Path, b)
		case missing == 0:
			continue
		case l.filled > 0:
			return nil, fmt.Errorf("model %q: sequence %d has %d tokens and another %d; only the first may differ in length", l.m.Path, b, len(row), n)
		case l.m.CountsTokens():
			return nil, fmt.Errorf("model %q counts the tokens of its mask and takes them for the first positions (GroupQueryAttention), so prompts have to be equally long: sequence %d has %d tokens, another %d", l.m.Path, b, len(row), n)
		case !l.masks():
			return nil, fmt.Errorf("model %q has no mask in which padding could be marked, so prompts have to be equally long: sequence %d has %d tokens, another %d", l.m.Path, b, len(row), n)
		}
		l.padding[b] = missing
		out[b] = append(make([]int64, missing), row...)
	}
	return out, nil
}

func (l *Loop) run(ctx context.Context, tokens [][]int64, n int) error {
	grow := func() error { return l.joined(n) }
	if l.m.Static {
		grow = func() error { return l.reserve(l.filled+n, l.filled) }
	}
	if err := grow(); err != nil {
		return err
	}
	for _, s := range l.inputs {
		t, err := s.make(l, tokens, n)
		if err != nil {
			return fmt.Errorf("model %q: input %q: %w", l.m.Path, s.name, err)
		}
		if err := l.bind.Input(s.name, t); err != nil {
			return err
		}
	}
	if err := errors.Join(l.bind.PlaceHost(l.m.Logits), l.placeCross()); err != nil {
		return err
	}
	if err := l.bind.Run(ctx); err != nil {
		return err
	}
	if err := l.keepCross(); err != nil {
		return err
	}
	if l.m.host || l.m.Static {
		return nil
	}
	var pairs [][2]string
	for _, c := range l.caches {
		pairs = append(pairs, [2]string{c.Present, c.Past})
	}
	return l.bind.Pass(pairs)
}

// Scores returns the scores of the token that follows sequence b: one per token of the vocabulary. The slice is valid
// until the next step.
func (l *Loop) Scores(b int) ([]float32, error) {
	if l.scores == nil {
		if l.last == 0 {
			return nil, fmt.Errorf("model %q: no token was fed", l.m.Path)
		}
		t, err := l.bind.Fetch(l.m.Logits)
		if err != nil {
			return nil, err
		}
		if len(t.Shape) < 2 || t.Shape[0] != int64(l.batch) || t.Len() == 0 {
			return nil, fmt.Errorf("model %q: logits are %v; want [%d, sequence, vocabulary]", l.m.Path, t, l.batch)
		}
		all, err := t.Float32s()
		if err != nil {
			return nil, err
		}
		v, per := int(t.Shape[len(t.Shape)-1]), len(all)/l.batch
		for i := range l.batch {
			l.scores = append(l.scores, all[(i+1)*per-v:(i+1)*per])
		}
	}
	return l.scores[b], nil
}
