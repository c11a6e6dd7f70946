package verify

import (
	"context"
	"fmt"
	"slices"
	"time"

	"onnx-dha/graph"
	"onnx-dha/ort"
)

// Model is a model that is ready to run, with what its inputs and outputs mean.
type Model struct {
	*Signature
	Path    string
	session *ort.Session
	spent   time.Duration // in runs
}

// Open loads a model for running. The ONNX Runtime library must have been opened.
func Open(path string, o ort.Options) (*Model, error) {
	g, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	sig, err := Describe(g)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", path, err)
	}
	s, err := ort.NewSession(path, o)
	if err != nil {
		return nil, err
	}
	return &Model{Signature: sig, Path: path, session: s}, nil
}

// Close frees the session.
func (m *Model) Close() error { return m.session.Close() }

// Decoder feeds a model step by step: with a cache each step's presents are the next one's pasts, without one every
// step repeats all tokens so far.
type Decoder struct {
	model  *Model
	fixed  map[string]*ort.Tensor // the same in every step
	sizes  map[string]int
	seed   uint64
	name   string
	caches map[string]*ort.Tensor // by the past's name
	past   int
	tokens [][]int64 // all so far
	real   [][]bool  // all so far
}

// NewDecoder starts n sequences. fixed supplies inputs that stay the same in every step, such as an encoder's states;
// what a step needs beyond tokens, masks, positions and caches is generated from seed.
func (m *Model) NewDecoder(n int, seed uint64, fixed map[string]*ort.Tensor) (*Decoder, error) {
	if !m.IsDecoder() {
		return nil, fmt.Errorf("model %q is no decoder: want an input of token ids with an open length and an output of logits; its inputs are %s",
			m.Path, m.inputNames())
	}
	if b, ok := m.Signature.fixed[Batch]; ok && b != n {
		return nil, fmt.Errorf("model %q runs batches of %d only, want %d", m.Path, b, n)
	}
	if t, ok := m.Signature.fixed[Past]; ok && t != 0 {
		return nil, fmt.Errorf("model %q has a cache of fixed length %d; a decode needs one that starts empty and grows", m.Path, t)
	}
	return &Decoder{
		model: m, fixed: fixed, seed: seed, name: "decode", caches: map[string]*ort.Tensor{},
		tokens: make([][]int64, n), real: make([][]bool, n),
	}, nil
}

// Step feeds the next tokens, [batch][n] with the same n for all, and returns all outputs. real marks with false the
// tokens that are padding; nil means none. Logits of a model without a cache are cut to the new tokens.
func (d *Decoder) Step(ctx context.Context, tokens [][]int64, real [][]bool) (map[string]*ort.Tensor, error) {
	n := len(tokens[0])
	for b := range tokens {
		d.tokens[b] = append(d.tokens[b], tokens[b]...)
		if real != nil {
			d.real[b] = append(d.real[b], real[b]...)
		} else {
			d.real[b] = append(d.real[b], slices.Repeat([]bool{true}, n)...)
		}
	}
	call := batch{
		Case:   Case{Name: d.name, Batch: len(tokens), Seq: n, Past: d.past, Encoder: defaultEncoder, Sizes: d.sizes},
		seed:   d.seed,
		tokens: tokens,
		real:   d.real,
	}
	cached := d.model.grows()
	if !cached {
		call.tokens, call.Seq, call.Past = d.tokens, len(d.tokens[0]), 0
	}
	if !d.model.pads() {
		if slices.ContainsFunc(d.real, func(row []bool) bool { return slices.Contains(row, false) }) {
			return nil, fmt.Errorf("model %q has no mask, so a batch cannot be padded", d.model.Path)
		}
		call.real = nil
	}
	given := map[string]*ort.Tensor{}
	for name, t := range d.fixed {
		given[name] = t
	}
	for name, t := range d.caches {
		given[name] = t
	}
	in, err := d.model.feed(call, given)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", d.model.Path, err)
	}
	out, err := d.model.run(ctx, in)
	if err != nil {
		return nil, &refusal{err}
	}
	if err := d.keep(in, out, n); err != nil {
		return nil, fmt.Errorf("model %q: %w", d.model.Path, err)
	}
	if l := out[d.model.Logits]; !cached && len(l.Shape) == 3 && int(l.Shape[1]) == len(d.tokens[0]) {
		if out[d.model.Logits], err = tail(l, n); err != nil {
			return nil, err
		}
	}
	d.past += n
	return out, nil
}

// adopt takes over where another model's decoder is, which has fed the same tokens: its caches with the heads of this
// model.
func (d *Decoder) adopt(o *Decoder, maps headMaps) error {
	caches := map[string]*ort.Tensor{}
	for name, t := range o.caches {
		expanded, err := maps.expand(name, t)
		if err != nil {
			return err
		}
		caches[name] = expanded
	}
	d.caches, d.past = caches, o.past
	for b := range o.tokens {
		d.tokens[b], d.real[b] = slices.Clone(o.tokens[b]), slices.Clone(o.real[b])
	}
	return nil
}

// refusal is the runtime's error on inputs that could be made: the model does not do what was asked of it.
type refusal struct{ error }

func (r *refusal) Unwrap() error { return r.error }

// keep makes the presents of this step the pasts of the next.
func (d *Decoder) keep(in, out map[string]*ort.Tensor, n int) error {
	for _, c := range d.model.Caches {
		t := out[c.Present]
		if !c.Grows {
			if t.Len() > 0 {
				d.caches[c.Past] = t
			}
			continue
		}
		if c.SeqAxis >= len(t.Shape) {
			return fmt.Errorf("output %q is %v; its axis %d should count positions", c.Present, t, c.SeqAxis)
		}
		if have := int(t.Shape[c.SeqAxis]); have == n && d.past > 0 {
			// The output holds the new positions alone and the caller is to append them.
			joined, err := appendAlong(c.SeqAxis, in[c.Past], t)
			if err != nil {
				return fmt.Errorf("cache %q: %w", c.Present, err)
			}
			t = joined
		} else if have != d.past+n {
			return fmt.Errorf("output %q is %v after %d positions; want %d on axis %d", c.Present, t, d.past+n, d.past+n, c.SeqAxis)
		}
		d.caches[c.Past] = t
	}
	return nil
}

// tail returns the last n of axis 1 of a tensor of three axes.
func tail(t *ort.Tensor, n int) (*ort.Tensor, error) {
	b, s := int(t.Shape[0]), int(t.Shape[1])
	out, err := ort.New(t.DType, t.Shape[0], int64(n), t.Shape[2])
	if err != nil {
		return nil, err
	}
	if b == 0 || s == 0 {
		return out, nil
	}
	row := len(t.Raw) / b / s
	for i := range b {
		copy(out.Raw[i*n*row:(i+1)*n*row], t.Raw[((i+1)*s-n)*row:])
	}
	return out, nil
}

// next returns the most likely token after each sequence's last position.
func next(logits *ort.Tensor) ([]int64, error) {
	rows, err := lastRows(logits)
	if err != nil {
		return nil, err
	}
	out := make([]int64, len(rows))
	for b, row := range rows {
		out[b] = int64(largest(row, 1)[0])
	}
	return out, nil
}

// lastRows returns the scores of the last position of [batch, sequence, vocabulary] or of [batch, vocabulary].
func lastRows(logits *ort.Tensor) ([][]float64, error) {
	if len(logits.Shape) < 2 || logits.Len() == 0 {
		return nil, fmt.Errorf("logits are %v, want [batch, sequence, vocabulary]", logits)
	}
	all, err := numbersOf(logits)
	if err != nil {
		return nil, err
	}
	n, v := int(logits.Shape[0]), int(logits.Shape[len(logits.Shape)-1])
	per := int(logits.Len()) / n
	rows := make([][]float64, n)
	for b := range rows {
		rows[b] = all.at((b+1)*per-v, v, make([]float64, v))
	}
	return rows, nil
}

func (s *Signature) inputNames() []string {
	names := make([]string, len(s.Inputs))
	for i, in := range s.Inputs {
		names[i] = in.Name
	}
	return names
}
