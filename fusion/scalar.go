package fusion

import (
	"sync"

	"gonum.org/v1/gonum/mat"
)

// meanOf is the mean of the heads.
func meanOf(_ moments, group []int) (*mixture, error) {
	return scalarMixture(shares(make([]float64, len(group)))), nil
}

// leastSquares gives one weight to each head of a group (the linear heads fusion operator, DHA arXiv 2406.06567 §3.1),
// the same for all of its readers as after the fusion stage: the weights that minimise the energy of the error where the
// heads are read, Σ_h E|h − Σ_j ω_j h_j|² in the metric of h's readers, a quadratic form in ω.
func leastSquares(m moments, group []int) (*mixture, error) {
	g := len(group)
	if g == 1 {
		return scalarMixture([]float64{1}), nil
	}
	quadratic, linear := mat.NewSymDense(g, nil), mat.NewVecDense(g, nil)
	for i, a := range group {
		for j := i; j < g; j++ {
			x := 0.0
			for _, h := range group {
				x += m.inner(h, a, group[j])
			}
			quadratic.SetSym(i, j, x)
		}
		x := 0.0
		for _, h := range group {
			x += (m.inner(h, a, h) + m.inner(h, h, a)) / 2
		}
		linear.SetVec(i, x)
	}
	ridge := 1e-9 * mat.Trace(quadratic) / float64(g)
	for i := range g {
		quadratic.SetSym(i, i, quadratic.At(i, i)+ridge)
	}
	var chol mat.Cholesky
	if !(ridge > 0) || !chol.Factorize(quadratic) {
		return meanOf(m, group) // heads that nobody reads, or that are all zero
	}
	var w mat.VecDense
	if err := chol.SolveVecTo(&w, linear); err != nil {
		if _, ok := err.(mat.Condition); !ok {
			return nil, err
		}
	}
	return scalarMixture(append([]float64(nil), w.RawVector().Data...)), nil
}

// scalarResidual is the residual of a mixture of scalar weights, by products of heads: Σ_h |h|² − 2⟨h, f⟩ + |f|² with
// f = Σ_j ω_j h_j, each in the metric of h's readers.
func scalarResidual(m moments, group []int, weights []float64) float64 {
	e := 0.0
	for _, h := range group {
		e += m.inner(h, h, h)
		for i, a := range group {
			e -= weights[i] * (m.inner(h, a, h) + m.inner(h, h, a))
			for j, b := range group {
				e += weights[i] * weights[j] * m.inner(h, a, b)
			}
		}
	}
	return max(e, 0)
}

// innerTable keeps the products of all heads in the metric of each.
type innerTable struct {
	once sync.Once
	x    []float64
}

func (t *innerTable) at(n, h, i, j int, f func(h, i, j int) float64) float64 {
	t.once.Do(func() {
		t.x = make([]float64, n*n*n)
		for at := range t.x {
			t.x[at] = f(at/(n*n), at/n%n, at%n)
		}
	})
	return t.x[(h*n+i)*n+j]
}

// rigid are heads after which nothing can be folded: keys that a norm of each head follows, values that no output
// projection follows. What is left is one weight per head.
type rigid struct{ moments }

func (r rigid) best(group []int) (*mixture, error)      { return leastSquares(r.moments, group) }
func (r rigid) principal(group []int) (*mixture, error) { return leastSquares(r.moments, group) }
func (r rigid) aligned(group []int) (*mixture, error)   { return meanOf(r.moments, group) }

func (r rigid) bestError(group []int) (float64, error) {
	m, err := leastSquares(r.moments, group)
	if err != nil {
		return 0, err
	}
	return scalarResidual(r.moments, group, m.weights), nil
}

func (r rigid) principalError(group []int) (float64, error) { return r.bestError(group) }

func (r rigid) similarity(i, j int, _ bool) (float64, error) {
	return r.moments.similarity(i, j, false)
}
