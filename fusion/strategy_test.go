package fusion

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph/attention"
)

// sample is a block with random weights and the tokens that its statistics are of.
type sample struct {
	p    *Problem
	x    *mat.Dense   // [tokens, n]
	seen []*mat.Dense // A_h x
}

// newSample draws a block of kv heads of d channels with reads query heads each. biased appends the constant input.
func newSample(rng *rand.Rand, kv, reads, d int, rotary attention.Rotary, biased bool) *sample {
	const tokens, model = 300, 14
	normal := func(r, c int) *mat.Dense {
		m := mat.NewDense(r, c, nil)
		for i := range r {
			for j := range c {
				m.Set(i, j, rng.NormFloat64())
			}
		}
		return m
	}
	w := &Weights{
		Heads: kv * reads, KVHeads: kv, ValueHeads: kv, HeadDim: d, ValueDim: d, Rotary: rotary,
		Query: normal(model, kv*reads*d), Key: normal(model, kv*d), Value: normal(model, kv*d), Output: normal(kv*reads*d, model),
	}
	for h := range w.Heads {
		w.KeyOf = append(w.KeyOf, h/reads)
		w.ValueOf = append(w.ValueOf, h/reads)
	}
	// heads of one cluster are much alike, so that partitions differ
	for h := range kv {
		for i := range model {
			for c := range d {
				from := h % 2
				w.Key.Set(i, h*d+c, 0.5*w.Key.At(i, h*d+c)+w.Key.At(i, from*d+c))
				w.Value.Set(i, h*d+c, 0.5*w.Value.At(i, h*d+c)+w.Value.At(i, from*d+c))
			}
		}
	}
	n := model
	if biased {
		n++
		w.QueryBias, w.KeyBias = normal(1, kv*reads*d).RawRowView(0), normal(1, kv*d).RawRowView(0)
		w.ValueBias, w.OutputBias = normal(1, kv*d).RawRowView(0), normal(1, model).RawRowView(0)
	}
	x := mat.NewDense(tokens, n, nil)
	x.Mul(normal(tokens, n), normal(n, n))
	for t := range tokens {
		for i := range n {
			x.Set(t, i, x.At(t, i)+float64(i)/3)
		}
		if biased {
			x.Set(t, n-1, 1)
		}
	}
	s := &sample{x: x, p: &Problem{W: w, S: &Stats{Tokens: tokens, Input: moment(x)}}}
	q := s.queries(w.Query, w.QueryBias)
	for h := range w.Heads {
		s.p.S.Query = append(s.p.S.Query, moment(q.Slice(0, tokens, h*d, (h+1)*d)))
		seen := mat.NewDense(tokens, n, nil) // a mean over a few earlier tokens, another for each head
		for t := range tokens {
			for back := range h + 2 {
				from := max(t-back*(h+1), 0)
				for i := range n {
					seen.Set(t, i, seen.At(t, i)+x.At(from, i)/float64(h+2))
				}
			}
		}
		s.seen = append(s.seen, seen)
		s.p.S.Attended = append(s.p.S.Attended, moment(seen))
	}
	return s
}

// moment returns E[xᵀx].
func moment(x mat.Matrix) *mat.SymDense {
	t, n := x.Dims()
	s := mat.NewSymDense(n, nil)
	s.SymOuterK(1/float64(t), x.T())
	return s
}

// project returns x·w + bias.
func project(x *mat.Dense, w *mat.Dense, bias []float64) *mat.Dense {
	t, _ := x.Dims()
	rows, cols := w.Dims()
	out := mat.NewDense(t, cols, nil)
	out.Mul(x.Slice(0, t, 0, rows), w)
	for i := range t {
		for j := range bias {
			out.Set(i, j, out.At(i, j)+bias[j])
		}
	}
	return out
}

func (s *sample) queries(w *mat.Dense, bias []float64) *mat.Dense { return project(s.x, w, bias) }

// outputError is E|Σ over nothing: the energy of every head's output error, added over heads, which is what ValueError
// says; it is computed from the tokens.
func (s *sample) outputError(sol *Solution) float64 {
	w, l := s.p.W, sol.Learned
	d, of := w.ValueDim, sol.Value.Map()
	total := 0.0
	for h := range w.Heads {
		was, is := project(s.seen[h], w.Value, w.ValueBias), project(s.seen[h], l.Value, l.ValueBias)
		t, out := was.RawMatrix().Rows, w.Output.RawMatrix().Cols
		var a, b mat.Dense
		j := w.ValueOf[h]
		a.Mul(was.Slice(0, t, j*d, (j+1)*d), w.Output.Slice(h*d, (h+1)*d, 0, out))
		b.Mul(is.Slice(0, t, of[j]*d, (of[j]+1)*d), l.Output.Slice(h*d, (h+1)*d, 0, out))
		a.Sub(&a, &b)
		if w.OutputBias != nil { // the constant part goes to the bias
			for c := range out {
				mean := 0.0
				for i := range t {
					mean += a.At(i, c) / float64(t)
				}
				for i := range t {
					a.Set(i, c, a.At(i, c)-mean)
				}
			}
		}
		total += mat.Norm(&a, 2) * mat.Norm(&a, 2) / float64(t)
	}
	return total
}

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if math.Abs(got-want) > tol*max(1, math.Abs(want)) {
		t.Errorf("%s: %g, want %g", what, got, want)
	}
}

func TestErrorsAreThoseOfTheTokens(t *testing.T) {
	for _, biased := range []bool{false, true} {
		rng := rand.New(rand.NewPCG(1, 1))
		s := newSample(rng, 4, 2, 4, attention.Rotary{Kind: attention.HalfSplit, Dims: 4}, biased)
		st, err := FindStrategy("optimal")
		if err != nil {
			t.Fatal(err)
		}
		sol, err := st.Solve(s.p, 2, 2, SolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "value error", sol.ValueError, s.outputError(sol), 1e-9)
		es, err := st.ValueErrors(s.p, SolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "table", es[1], sol.ValueError, 1e-12)
		near(t, "all heads", es[3], 0, 1e-12)
	}
}
