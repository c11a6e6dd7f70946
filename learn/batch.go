package learn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"onnx-dha/data"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// Batch is one run of the model: its inputs, with empty caches.
type Batch struct {
	Feeds  map[string]*ort.Tensor
	Length int // positions of one sequence
	Tokens int // positions of all
	// Next is the token that follows each position, int64 [batch, length], nil for a model that does not predict it.
	// Weight, float [batch, length], says which positions count: 0 where nothing follows or the token is padding. nil
	// for a model without tokens.
	Next, Weight *ort.Tensor
}

// tokensPerRun bounds the tokens of one run; a longer sample is a run of its own.
const tokensPerRun = 2048

func isEncoder(name string) bool { return strings.Contains(strings.ToLower(name), "encoder") }

// causal reports whether the model predicts the next token: some block hides later positions.
func (l *Lab) causal() bool {
	for _, b := range l.Blocks {
		if b.Causal {
			return true
		}
	}
	return false
}

// count fills in Next and Weight for the tokens of a batch; real is false for padding, nil when there is none.
func (l *Lab) count(b *Batch, tokens [][]int64, real [][]bool) {
	next, weight := make([]int64, b.Tokens), make([]float32, b.Tokens)
	causal := l.causal()
	shown := func(r, i int) bool { return real == nil || real[r][i] }
	for r := range tokens {
		for i := range b.Length {
			at := r*b.Length + i
			switch {
			case !causal && shown(r, i):
				weight[at] = 1
			case causal && i+1 < b.Length && shown(r, i) && shown(r, i+1):
				weight[at], next[at] = 1, max(0, tokens[r][i+1])
			}
		}
	}
	b.Weight = ort.FromFloat32(weight, int64(len(tokens)), int64(b.Length))
	if causal {
		b.Next = ort.FromInt64(next, int64(len(tokens)), int64(b.Length))
	}
}

// Batches makes runs of samples; sequences of one length share a run. The result depends on nothing but the arguments.
func (l *Lab) Batches(samples []data.Sample, seed uint64) ([]Batch, error) {
	var out []Batch
	byLength := map[int][]data.Sample{}
	var lengths []int
	for _, s := range samples {
		if s.Tokens == nil {
			b, err := l.tensorBatch(s, seed)
			if err != nil {
				return nil, err
			}
			out = append(out, b)
			continue
		}
		n := len(s.Tokens)
		if fixed, ok := l.Signature.Fixed(verify.Seq); ok && fixed != n {
			return nil, fmt.Errorf("%s has %d tokens, but the model runs sequences of %d only", s.Source, n, fixed)
		}
		if byLength[n] == nil {
			lengths = append(lengths, n)
		}
		byLength[n] = append(byLength[n], s)
	}
	slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	for _, n := range lengths {
		group := byLength[n]
		size := max(1, tokensPerRun/n)
		fixed, isFixed := l.Signature.Fixed(verify.Batch)
		if isFixed {
			size = fixed
		}
		for len(group) > 0 {
			part := group[:min(size, len(group))]
			if isFixed && len(part) < size {
				break // the rest does not fill a batch of the only size that the model runs
			}
			group = group[len(part):]
			b, err := l.tokenBatch(part, seed)
			if err != nil {
				return nil, err
			}
			out = append(out, b)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%d samples do not fill a batch of the size that the model runs; want more data", len(samples))
	}
	return out, nil
}

func (l *Lab) tokenBatch(samples []data.Sample, seed uint64) (Batch, error) {
	if l.Signature.Tokens == "" {
		return Batch{}, fmt.Errorf("%s holds token ids, but the model has no input of them; want tensors by input name", samples[0].Source)
	}
	n := len(samples[0].Tokens)
	b := Batch{Length: n, Tokens: n * len(samples)}
	var tokens [][]int64
	for _, s := range samples {
		tokens = append(tokens, s.Tokens)
	}
	var err error
	if b.Feeds, err = l.Signature.Prefill(tokens, nil, nil, seed); err != nil {
		return Batch{}, fmt.Errorf("%s: %w", samples[0].Source, err)
	}
	l.count(&b, tokens, nil)
	return b, nil
}

// tensorBatch takes a sample of tensors as it is; masks, positions and caches that it lacks are made for its tokens.
func (l *Lab) tensorBatch(s data.Sample, seed uint64) (Batch, error) {
	ids := s.Tensors[l.Signature.Tokens]
	if l.Signature.Tokens == "" || ids == nil || len(ids.Shape) != 2 {
		b := Batch{Feeds: s.Tensors, Length: 1, Tokens: 1}
		for _, t := range s.Tensors {
			if len(t.Shape) >= 2 {
				b.Length = max(b.Length, int(t.Shape[1]))
				b.Tokens = max(b.Tokens, int(t.Shape[0]*t.Shape[1]))
			}
		}
		for _, in := range l.Signature.Inputs {
			if s.Tensors[in.Name] == nil {
				return Batch{}, fmt.Errorf("%s has no tensor for input %q", s.Source, in.Name)
			}
		}
		return b, nil
	}
	x, err := ids.Int64s()
	if err != nil {
		return Batch{}, fmt.Errorf("%s: input %q: %w", s.Source, l.Signature.Tokens, err)
	}
	rows, n := int(ids.Shape[0]), int(ids.Shape[1])
	b := Batch{Length: n, Tokens: rows * n}
	shown := slices.Repeat([]bool{true}, rows*n)
	for _, in := range l.Signature.Inputs {
		t := s.Tensors[in.Name]
		if in.Role != verify.MaskOnes || isEncoder(in.Name) || t == nil || int(t.Len()) != rows*n {
			continue
		}
		m, err := t.Float64s()
		if err != nil {
			return Batch{}, fmt.Errorf("%s: input %q: %w", s.Source, in.Name, err)
		}
		for i := range m {
			shown[i] = m[i] != 0
		}
	}
	tokens, real := make([][]int64, rows), make([][]bool, rows)
	for r := range rows {
		tokens[r], real[r] = x[r*n:(r+1)*n], shown[r*n:(r+1)*n]
	}
	if b.Feeds, err = l.Signature.Prefill(tokens, real, s.Tensors, seed); err != nil {
		return Batch{}, fmt.Errorf("%s: %w", s.Source, err)
	}
	l.count(&b, tokens, real)
	return b, nil
}
