package fusion

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"
)

// scoreMetric weighs what an error of keys does to the attention of a block, where rotary embeddings turn all channels.
//
// The error of head h's key, made of keys z of the same block, is Σ_m c_mf z_mf at each frequency f, with complex
// coefficients c. Between query i and key j it changes the score by φ_ij·c, c as real numbers [heads·d] (real and
// imaginary part in the two channels of a pair), φ_ij = (Re w, Im w), w = q̃_if z̃*_mjf of the turned query and keys. Any
// expectation of a square of something linear in the scores is therefore a form cᵀΦc, cross terms between frequencies
// included, which the energy by frequency leaves out.
type scoreMetric struct {
	n, d  int
	pairs [][2]int
	phi   []*mat.SymDense // of key head h, its readers added up: [heads·d, heads·d]
}

// scoresShare is the part of the metric's trace that comes from the change of the attention weights (Stats.Scores) beside
// that of the output (Stats.Outputs). The output alone is blind to a head whose values are small where calibration looked,
// and of first order only.
const scoresShare = 0.25

// newScoreMetric blends the statistics; nil without any.
func newScoreMetric(k *keys, s *Stats) (*scoreMetric, error) {
	lists := [][]*mat.SymDense{s.Scores, s.Outputs}
	shares := []float64{scoresShare, 1 - scoresShare}
	m := &scoreMetric{n: k.n, d: k.d, pairs: k.planes}
	for l, list := range lists {
		total := 0.0
		for _, a := range list {
			total += mat.Trace(a)
		}
		if !(total > 0) {
			continue
		}
		if m.phi == nil {
			for range k.n {
				m.phi = append(m.phi, mat.NewSymDense(k.n*k.d, nil))
			}
		}
		for h, reads := range k.reads {
			for _, r := range reads {
				var part mat.SymDense
				part.ScaleSym(shares[l]/total, list[r])
				m.phi[h].AddSym(m.phi[h], &part)
			}
		}
	}
	if m.phi == nil {
		return nil, nil
	}
	// in the unit of the output's energy where it is known
	for _, list := range [][]*mat.SymDense{s.Outputs, s.Scores} {
		total := 0.0
		for _, a := range list {
			total += mat.Trace(a)
		}
		if total > 0 {
			for _, p := range m.phi {
				p.ScaleSym(total, p)
			}
			break
		}
	}
	return m, nil
}

// fit is the state of an alternating fit for one group: factors β_jf of head j in the fused key and α_if with which the
// readers of head i take it.
type fit struct {
	m           *scoreMetric
	g, d        int
	phi         [][]float64 // of member i: [g·d, g·d] rows first
	alpha, beta []complex128
}

func (m *scoreMetric) fit(group []int) *fit {
	g, d := len(group), m.d
	f := &fit{m: m, g: g, d: d, alpha: make([]complex128, g*len(m.pairs)), beta: make([]complex128, g*len(m.pairs))}
	n := g * d
	for _, h := range group {
		x := make([]float64, n*n)
		raw := m.phi[h].RawSymmetric()
		for i, a := range group {
			for j, b := range group {
				for p := range d {
					for q := range d {
						r, c := a*d+p, b*d+q
						if r > c {
							r, c = c, r
						}
						x[(i*d+p)*n+j*d+q] = raw.Data[r*raw.Stride+c]
					}
				}
			}
		}
		f.phi = append(f.phi, x)
	}
	return f
}

// error returns Σ_i cᵀΦ_i c for the coefficients c = (head i itself) − α_i·β.
func (f *fit) error() float64 {
	n, F := f.g*f.d, len(f.m.pairs)
	c := make([]float64, n)
	total := 0.0
	for i := range f.g {
		for j := range f.g {
			for k, p := range f.m.pairs {
				z := -f.alpha[i*F+k] * f.beta[j*F+k]
				if i == j {
					z++
				}
				c[j*f.d+p[0]], c[j*f.d+p[1]] = real(z), imag(z)
			}
		}
		phi := f.phi[i]
		for r, x := range c {
			if x == 0 {
				continue
			}
			sum := 0.0
			for s, v := range phi[r*n : (r+1)*n] {
				sum += v * c[s]
			}
			total += x * sum
		}
	}
	return max(total, 0)
}

// readers solves for α given β, one head at a time: least squares over the d real numbers of a head.
func (f *fit) readers() error {
	n, d, F := f.g*f.d, f.d, len(f.m.pairs)
	pb := make([]float64, n*d) // Φ·B, B = ∂c/∂α
	for i := range f.g {
		phi := f.phi[i]
		clear(pb)
		for r := range n {
			from, to := phi[r*n:(r+1)*n], pb[r*d:(r+1)*d]
			for j := range f.g {
				for k, p := range f.m.pairs {
					re, im := real(f.beta[j*F+k]), imag(f.beta[j*F+k])
					x, y := from[j*d+p[0]], from[j*d+p[1]]
					to[p[0]] += x*re + y*im
					to[p[1]] += y*re - x*im
				}
			}
		}
		gram, rhs := mat.NewSymDense(d, nil), mat.NewVecDense(d, nil)
		for k, p := range f.m.pairs {
			for c := range d {
				a, b := 0.0, 0.0
				for j := range f.g {
					re, im := real(f.beta[j*F+k]), imag(f.beta[j*F+k])
					x, y := pb[(j*d+p[0])*d+c], pb[(j*d+p[1])*d+c]
					a += re*x + im*y
					b += re*y - im*x
				}
				if p[0] <= c {
					gram.SetSym(p[0], c, a)
				}
				if p[1] <= c {
					gram.SetSym(p[1], c, b)
				}
			}
		}
		for _, p := range f.m.pairs {
			for c := range d {
				rhs.SetVec(c, rhs.AtVec(c)+pb[(i*d+p[0])*d+c])
			}
		}
		x, err := ridgeSolve(gram, rhs)
		if err != nil {
			return err
		}
		for k, p := range f.m.pairs {
			f.alpha[i*F+k] = complex(x.AtVec(p[0]), x.AtVec(p[1]))
		}
	}
	return nil
}

// shared solves for β given α: least squares over the g·d real numbers of the fused key.
func (f *fit) shared() error {
	n, d, F := f.g*f.d, f.d, len(f.m.pairs)
	gram, rhs := mat.NewSymDense(n, nil), mat.NewVecDense(n, nil)
	raw := gram.RawSymmetric()
	for i := range f.g {
		phi, alpha := f.phi[i], f.alpha[i*F:(i+1)*F]
		for j := range f.g {
			for k, p := range f.m.pairs {
				ra, rb := j*d+p[0], j*d+p[1]
				re, im := real(alpha[k]), imag(alpha[k])
				// rows of AᵀΦ for the two unknowns
				rowA, rowB := phi[ra*n:(ra+1)*n], phi[rb*n:(rb+1)*n]
				for j2 := j; j2 < f.g; j2++ {
					for k2, p2 := range f.m.pairs {
						ca, cb := j2*d+p2[0], j2*d+p2[1]
						re2, im2 := real(alpha[k2]), imag(alpha[k2])
						aa, ab := re*rowA[ca]+im*rowB[ca], re*rowA[cb]+im*rowB[cb]
						ba, bb := re*rowB[ca]-im*rowA[ca], re*rowB[cb]-im*rowA[cb]
						add := func(r, c int, x float64) {
							if r <= c {
								raw.Data[r*raw.Stride+c] += x
							}
						}
						add(ra, ca, aa*re2+ab*im2)
						add(ra, cb, ab*re2-aa*im2)
						add(rb, ca, ba*re2+bb*im2)
						add(rb, cb, bb*re2-ba*im2)
					}
				}
				a, b := 0.0, 0.0
				for _, p2 := range f.m.pairs {
					a += rowA[i*d+p2[0]]
					b += rowB[i*d+p2[0]]
				}
				rhs.SetVec(ra, rhs.AtVec(ra)+re*a+im*b)
				rhs.SetVec(rb, rhs.AtVec(rb)+re*b-im*a)
			}
		}
	}
	x, err := ridgeSolve(gram, rhs)
	if err != nil {
		return err
	}
	for j := range f.g {
		for k, p := range f.m.pairs {
			f.beta[j*F+k] = complex(x.AtVec(j*d+p[0]), x.AtVec(j*d+p[1]))
		}
	}
	return nil
}

// ridgeSolve solves a·x = b for a positive semi-definite a with 1e-7 of its mean diagonal added.
func ridgeSolve(a *mat.SymDense, b *mat.VecDense) (*mat.VecDense, error) {
	n := a.SymmetricDim()
	ridge := 1e-7 * mat.Trace(a) / float64(n)
	if ridge == 0 {
		return mat.NewVecDense(n, nil), nil
	}
	for i := range n {
		a.SetSym(i, i, a.At(i, i)+ridge)
	}
	var c mat.Cholesky
	if !c.Factorize(a) {
		return nil, fmt.Errorf("the statistics of the scores are not positive semi-definite in %d unknowns", n)
	}
	var x mat.VecDense
	if err := c.SolveVecTo(&x, b); err != nil {
		if _, ok := err.(mat.Condition); !ok {
			return nil, err
		}
	}
	return &x, nil
}

// improve alternates the two least-squares problems from the mixture m (each step cannot raise the error) until a round
// gains less than the given part of the error, in at most so many rounds, and returns the error. It changes m.
func (m *scoreMetric) improve(k *keys, group []int, mix *mixture, gain float64, rounds int) (float64, error) {
	f, F := m.fit(group), len(m.pairs)
	for i := range group {
		for q := range m.pairs {
			f.beta[i*F+q], f.alpha[i*F+q] = k.factors(mix, q, i)
		}
	}
	last := math.Inf(1)
	e := f.error()
	for round := 0; round < rounds && last-e > gain*e; round++ {
		last = e
		if err := f.readers(); err != nil {
			return 0, err
		}
		if err := f.shared(); err != nil {
			return 0, err
		}
		e = f.error()
	}
	// the fused key keeps the mean energy of its heads at every frequency
	for q := range m.pairs {
		want, have := 0.0, 0.0
		for i, a := range group {
			want += real(k.turned[q].at(a, a)) / float64(len(group))
			for j, b := range group {
				z := f.beta[i*F+q] * k.turned[q].at(a, b) * complex(real(f.beta[j*F+q]), -imag(f.beta[j*F+q]))
				have += real(z)
			}
		}
		s := 1.0
		if have > 0 && want > 0 {
			s = math.Sqrt(want / have)
		}
		for i := range group {
			k.put(mix, q, i, f.beta[i*F+q]*complex(s, 0), f.alpha[i*F+q]/complex(s, 0))
		}
	}
	return e, nil
}

// residual is the error of a mixture.
func (m *scoreMetric) residual(k *keys, group []int, mix *mixture) float64 {
	f, F := m.fit(group), len(m.pairs)
	for i := range group {
		for q := range m.pairs {
			f.beta[i*F+q], f.alpha[i*F+q] = k.factors(mix, q, i)
		}
	}
	return f.error()
}

// inner is the product of heads i and j in the metric of head h.
func (m *scoreMetric) inner(h, i, j int) (x float64) {
	for _, p := range m.pairs {
		for _, q := range m.pairs {
			x += m.phi[h].At(i*m.d+p[0], j*m.d+q[0])
		}
	}
	return x
}
