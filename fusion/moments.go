package fusion

import (
	"fmt"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph/attention"
)

// moments are the heads of one kind (keys or values) of one block, as far as strategies need to know them: second
// moments. A head that is made of others is a mixture of their channels, so that every error is a form in these moments
// and the projections themselves are touched once, at the end.
type moments interface {
	// heads returns how many there are.
	heads() int
	// best returns the fusion of a group with the least residual that can be folded into queries or output, as far as
	// it is known in closed form.
	best(group []int) (*mixture, error)
	// bestError is the residual of best, cheaply.
	bestError(group []int) (float64, error)
	// pairError is bestError of two heads, or near it and cheaper.
	pairError(pair []int) (float64, error)
	// work is about how long bestError of a group of g heads takes, in nanoseconds of one core.
	work(g int) float64
	// principal is the best reconstruction of the heads themselves, whatever reads them (no metric).
	principal(group []int) (*mixture, error)
	// principalError is how far the reconstruction is off, whatever reads the heads.
	principalError(group []int) (float64, error)
	// aligned turns heads onto each other, as far as that folds, and takes their mean, its norm kept.
	aligned(group []int) (*mixture, error)
	// residual is the energy of the error that the mixture makes where the heads of the group are read.
	residual(group []int, m *mixture) (float64, error)
	// inner returns the product of heads i and j in the metric of head h's readers: residual of a mixture with scalar
	// weights is a quadratic form in it.
	inner(h, i, j int) float64
	// similarity is that of the activations of heads i and j, after turning them onto each other where aligned is set.
	similarity(i, j int, aligned bool) (float64, error)
	// energy is E of the squared norm of head i.
	energy(i int) float64
}

// mixture is a fused head in terms of its group's: fused = Σ_j head_j · mix[j], and reader r (a query head) of the j-th
// head of the group sees fused · read[j][r] in the place of that head. Matrices are [d, d]. A scalar mixture has only
// weights: mix[j] = weights[j]·I, read = I.
type mixture struct {
	weights []float64 // shares for people when the mixture is not scalar; they add up to 1
	mix     []*mat.Dense
	read    [][]*mat.Dense
}

func scalarMixture(weights []float64) *mixture { return &mixture{weights: weights} }

func (m *mixture) scalar() bool { return m.mix == nil }

// mixOf and readOf give the matrices whatever the kind of mixture.
func (m *mixture) mixOf(j, d int) *mat.Dense {
	if !m.scalar() {
		return m.mix[j]
	}
	return scaledIdentity(d, m.weights[j])
}

func (m *mixture) readOf(j, r, d int) *mat.Dense {
	if !m.scalar() {
		return m.read[j][r]
	}
	return scaledIdentity(d, 1)
}

func scaledIdentity(d int, x float64) *mat.Dense {
	m := mat.NewDense(d, d, nil)
	for i := range d {
		m.Set(i, i, x)
	}
	return m
}

// shares divides by the sum; equal shares when there is nothing to divide.
func shares(x []float64) []float64 {
	total := 0.0
	for _, v := range x {
		total += v
	}
	out := make([]float64, len(x))
	for i, v := range x {
		if total > 0 {
			out[i] = v / total
		} else {
			out[i] = 1 / float64(len(x))
		}
	}
	return out
}

// readers lists the query heads of each of n heads.
func readers(of []int, n int) [][]int {
	out := make([][]int, n)
	for q, h := range of {
		out[h] = append(out[h], q)
	}
	return out
}

// centred returns C less the mean of μᵀμ over the given means: what is left of moments where a constant is free.
func centred(c *mat.SymDense, means [][]float64) *mat.SymDense {
	out := mat.NewSymDense(c.SymmetricDim(), nil)
	out.CopySym(c)
	for _, m := range means {
		out.SymRankOne(out, -1/float64(len(means)), mat.NewVecDense(len(m), m))
	}
	return out
}

// block returns the [d, d] block of the channels of heads i and j.
func block(g *mat.SymDense, i, j, d int) *mat.Dense {
	out := mat.NewDense(d, d, nil)
	for a := range d {
		for b := range d {
			out.Set(a, b, g.At(i*d+a, j*d+b))
		}
	}
	return out
}

// Channels splits those of a head of d into the pairs that the rotary embedding turns, in the order of their frequency,
// and the rest.
func Channels(r attention.Rotary, d int) (pairs [][2]int, rest []int, err error) {
	turned := r.Dims
	switch {
	case r.Kind == attention.NoRotary || r.Kind == "":
		turned = 0
	case turned == 0:
		turned = d
	}
	if turned < 0 || turned > d || turned%2 != 0 {
		return nil, nil, fmt.Errorf("the rotary embedding turns %d of %d channels; want an even number of them", turned, d)
	}
	for i := range turned / 2 {
		switch r.Kind {
		case attention.HalfSplit:
			pairs = append(pairs, [2]int{i, i + turned/2})
		case attention.Interleaved:
			pairs = append(pairs, [2]int{2 * i, 2*i + 1})
		default:
			return nil, nil, fmt.Errorf("rotary embedding of kind %q; want %q or %q", r.Kind, attention.HalfSplit, attention.Interleaved)
		}
	}
	for c := turned; c < d; c++ {
		rest = append(rest, c)
	}
	return pairs, rest, nil
}
