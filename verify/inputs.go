package verify

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"onnx-dha/ort"
)

// Case is one set of sizes to run a model at.
type Case struct {
	Name    string
	Batch   int
	Seq     int // tokens per sequence that are new
	Past    int // cached positions
	Encoder int // positions of the other side of a cross attention; 0 stands for 7
	// Padding hides the first positions of every sequence but the first, as batches of unequal length do: b positions
	// of sequence b.
	Padding bool
	// Sizes overrides dimensions by the name of their symbol, or by "input[axis]" where they have no name.
	Sizes map[string]int
	// Feeds supplies values of inputs; the others are generated.
	Feeds map[string]*ort.Tensor
	// Tokens are the new tokens, [Batch][Seq]; nil for random ones.
	Tokens [][]int64
	// Expected are outputs that the case's source says the original gives; nil when it says nothing.
	Expected map[string]*ort.Tensor
}

// defaultEncoder is odd and differs from every default length, so that mistaking one axis for another shows.
const defaultEncoder = 7

// defaultOther is the size of an open dimension of unknown meaning.
const defaultOther = 4

// DefaultCases lists sizes for a model: several batches and lengths; without and with a cache; with padding when the
// model has a mask. Sizes that the model fixes take the place of those asked for, and doubles are left out.
func DefaultCases(s *Signature) []Case {
	cases := []Case{
		{Batch: 1, Seq: 1},
		{Batch: 1, Seq: 5},
		{Batch: 2, Seq: 8},
		{Batch: 3, Seq: 16, Padding: true},
	}
	if s.grows() {
		cases = append(cases,
			Case{Batch: 1, Seq: 1, Past: 3},
			Case{Batch: 1, Seq: 5, Past: 3},
			Case{Batch: 2, Seq: 4, Past: 6},
			Case{Batch: 3, Seq: 1, Past: 9, Padding: true},
		)
	}
	limit := s.positions()
	var out []Case
	seen := map[string]bool{}
	for _, c := range cases {
		if limit > 0 {
			c.Seq = min(c.Seq, limit)
			c.Past = min(c.Past, limit-c.Seq)
		}
		c = s.settle(c)
		if key := s.sizes(c); !seen[key] {
			seen[key] = true
			out = append(out, c)
		}
	}
	return out
}

// MaxPositions returns how many positions the model knows, 0 when nothing bounds them.
func (s *Signature) MaxPositions() int { return s.positions() }

// positions returns the number of rows of the model's smallest table of positions, 0 when it looks none up.
func (s *Signature) positions() int {
	rows := 0
	for _, in := range s.Inputs {
		if in.Role == Positions && in.Rows > 0 && (rows == 0 || int(in.Rows) < rows) {
			rows = int(in.Rows)
		}
	}
	return rows
}

// sizes tells cases apart by what they make of a model.
func (s *Signature) sizes(c Case) string {
	var b strings.Builder
	env, _ := s.env(c)
	for _, in := range s.Inputs {
		shape, _ := s.shape(in, c, env)
		fmt.Fprint(&b, shape)
	}
	fmt.Fprint(&b, c.Padding)
	return b.String()
}

// settle brings a case into agreement with what the model fixes, and names it.
func (s *Signature) settle(c Case) Case {
	set := func(q Quantity, n *int) {
		if v, ok := s.fixed[q]; ok {
			*n = v
		}
	}
	set(Batch, &c.Batch)
	set(Seq, &c.Seq)
	set(Past, &c.Past)
	set(Encoder, &c.Encoder)
	if c.Encoder == 0 {
		c.Encoder = defaultEncoder
	}
	if !s.grows() {
		c.Past = 0
	}
	if !s.pads() || c.Batch < 2 {
		c.Padding = false
	}
	if c.Name == "" {
		c.Name = fmt.Sprintf("B%d S%d", c.Batch, c.Seq)
		if s.grows() {
			c.Name += fmt.Sprintf(" T%d", c.Past)
		}
		if c.Padding {
			c.Name += " padded"
		}
	}
	return c
}

// batch is the content of one call: which tokens, after which past, which of them are padding.
type batch struct {
	Case
	seed   uint64
	tokens [][]int64 // [batch][seq]; nil: random
	real   [][]bool  // [batch][past+seq]; false marks padding; nil: all real
}

// padding marks the first b positions of sequence b, but never the last position.
func padding(n, length int) [][]bool {
	rows := make([][]bool, n)
	for b := range rows {
		rows[b] = make([]bool, length)
		for i := range rows[b] {
			rows[b][i] = i >= b || i == length-1
		}
	}
	return rows
}

// feed makes the inputs of one call. Values are a function of the seed, the case's name and the input's name alone, so
// that models with the same inputs get the same values. given overrides whole inputs.
func (s *Signature) feed(b batch, given map[string]*ort.Tensor) (map[string]*ort.Tensor, error) {
	env, err := s.env(b.Case)
	if err != nil {
		return nil, err
	}
	out := map[string]*ort.Tensor{}
	for _, in := range s.Inputs {
		t := given[in.Name]
		if t == nil {
			t = b.Feeds[in.Name]
		}
		if t == nil {
			if t, err = s.make(in, b, env); err != nil {
				return nil, fmt.Errorf("input %q: %w", in.Name, err)
			}
		}
		out[in.Name] = t
	}
	return out, nil
}

// env gives every symbol its size.
func (s *Signature) env(c Case) (map[string]int64, error) {
	size := map[Quantity]int{
		Batch: c.Batch, Seq: c.Seq, Past: c.Past, Total: c.Past + c.Seq, Encoder: c.Encoder, Other: defaultOther,
	}
	env := map[string]int64{}
	known := map[string]bool{}
	for _, in := range s.Inputs {
		for axis, d := range in.Dims {
			known[axisName(in.Name, axis)] = true
			for _, sym := range d.Symbols() {
				known[sym] = true
				q, ok := s.quantity[sym]
				if !ok {
					q = Other
				}
				env[sym] = int64(size[q]) * max(s.multiple[sym], 1)
			}
		}
	}
	for sym, n := range c.Sizes {
		if !known[sym] {
			return nil, fmt.Errorf("size %q is given, but no input has such a dimension; there are %s",
				sym, strings.Join(slices.Sorted(maps.Keys(env)), ", "))
		}
		env[sym] = int64(n)
	}
	return env, nil
}

// shape evaluates an input's dimensions.
func (s *Signature) shape(in Input, c Case, env map[string]int64) ([]int64, error) {
	shape := make([]int64, len(in.Dims))
	for axis, d := range in.Dims {
		n, ok := d.Eval(env)
		if v, set := c.Sizes[axisName(in.Name, axis)]; set {
			n, ok = int64(v), true
		} else if _, sole := soleSymbol(d); sole && !overridden(d.Symbols(), c.Sizes) {
			// Exporters sometimes name these axes like the tokens'; the places say more than the names.
			switch q := s.axisQuantity(in, axis); {
			case q == Total && (in.Role == MaskOnes || in.Role == MaskHides):
				n, ok = int64(c.Past+c.Seq), true
			case q == Past:
				n, ok = int64(c.Past), true
			}
		}
		if !ok || n < 0 {
			return nil, fmt.Errorf("dimension %d, %q, comes to no size for case %s; give one by the name of the symbol", axis, d, c.Name)
		}
		shape[axis] = n
	}
	return shape, nil
}

func overridden(symbols []string, sizes map[string]int) bool {
	return slices.ContainsFunc(symbols, func(s string) bool { _, ok := sizes[s]; return ok })
}

// maker returns the elements of one input, row-major.
type maker func(s *Signature, in Input, b batch, shape []int64, r *rand.Rand) ([]float64, error)

// makers has one row per role.
var makers = map[Role]maker{
	TokenIDs:  makeTokens,
	MaskOnes:  makeMask,
	MaskHides: makeMask,
	Positions: makePositions,
	Places:    makePlaces,
	Numbers:   makeNormal,
	PastCache: makeNormal,
	Segments:  all(func(batch, []int64) int { return 0 }),
	Kept:      all(func(batch, []int64) int { return 0 }),
	Flags:     all(func(batch, []int64) int { return 1 }),
	Integers:  all(func(_ batch, shape []int64) int { return min(len(shape)/2, 1) }),
	HasPast:   all(func(b batch, _ []int64) int { return min(b.Past, 1) }),
	PastLen:   all(func(b batch, _ []int64) int { return b.Past }),
	TotalLen:  all(func(b batch, _ []int64) int { return b.Past + b.Seq }),
	LastPos:   all(func(b batch, _ []int64) int { return b.Past + b.Seq - 1 }),
}

// all makes every element the same.
func all(value func(b batch, shape []int64) int) maker {
	return func(_ *Signature, _ Input, b batch, shape []int64, _ *rand.Rand) ([]float64, error) {
		return fill(shape, float64(value(b, shape))), nil
	}
}

func (s *Signature) make(in Input, b batch, env map[string]int64) (*ort.Tensor, error) {
	shape, err := s.shape(in, b.Case, env)
	if err != nil {
		return nil, err
	}
	t, err := ort.New(in.DType, shape...)
	if err != nil {
		return nil, err
	}
	if t.Len() == 0 {
		return t, nil
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s", b.Name, in.Name)
	values, err := makers[in.Role](s, in, b, shape, rand.New(rand.NewPCG(b.seed, h.Sum64())))
	if err != nil {
		return nil, err
	}
	return ort.FromFloat64s(in.DType, values, shape...)
}

func fill(shape []int64, x float64) []float64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	out := make([]float64, n)
	for i := range out {
		out[i] = x
	}
	return out
}

func makeNormal(s *Signature, in Input, b batch, shape []int64, r *rand.Rand) ([]float64, error) {
	out := fill(shape, 0)
	for i := range out {
		out[i] = r.NormFloat64()
	}
	return out, nil
}

// defaultVocabulary bounds token ids that are not looked up in a table of the model.
const defaultVocabulary = 32

func makeTokens(s *Signature, in Input, b batch, shape []int64, r *rand.Rand) ([]float64, error) {
	rows := in.Rows
	if rows == 0 {
		rows = defaultVocabulary
	}
	out := fill(shape, 0)
	for i := range out {
		out[i] = float64(r.Int64N(rows))
	}
	if b.tokens == nil || in.Name != s.Tokens {
		return out, nil
	}
	flat := slices.Concat(b.tokens...)
	if len(flat) != len(out) {
		return nil, fmt.Errorf("%d tokens for shape %v", len(flat), shape)
	}
	for i, t := range flat {
		if t < 0 || in.Rows > 0 && t >= in.Rows {
			return nil, fmt.Errorf("token %d is not in the model's vocabulary of %d", t, in.Rows)
		}
		out[i] = float64(t)
	}
	return out, nil
}

// makePlaces counts the positions of a buffer that a step writes.
func makePlaces(_ *Signature, _ Input, b batch, shape []int64, _ *rand.Rand) ([]float64, error) {
	out := fill(shape, 0)
	for i := range out {
		out[i] = float64(b.Past + i)
	}
	return out, nil
}

// makePositions counts the real positions of each sequence from 0; the padding before them is at 0 too.
func makePositions(s *Signature, in Input, b batch, shape []int64, r *rand.Rand) ([]float64, error) {
	width := int(shape[len(shape)-1])
	out := fill(shape, 0)
	for i := range out {
		row, col := i/width, i%width
		p := b.Past + col
		if b.real != nil && row < len(b.real) {
			p = -1
			for _, ok := range b.real[row][:min(b.Past+col+1, len(b.real[row]))] {
				if ok {
					p++
				}
			}
			p = max(p, 0)
		}
		if in.Rows > 0 && int64(p) >= in.Rows {
			return nil, fmt.Errorf("position %d is beyond the model's table of %d; use fewer tokens", p, in.Rows)
		}
		out[i] = float64(p)
	}
	return out, nil
}
