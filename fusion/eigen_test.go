package fusion

import (
	"math/cmplx"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// randomHermitian is Z·Zᴴ for a random Z of the given rank.
func randomHermitian(rng *rand.Rand, n, rank int) hermitian {
	z := make([]complex128, n*rank)
	for i := range z {
		z[i] = complex(rng.NormFloat64(), rng.NormFloat64())
	}
	a := newHermitian(n)
	for i := range n {
		for j := range n {
			sum := complex128(0)
			for k := range rank {
				sum += z[i*rank+k] * cmplx.Conj(z[j*rank+k])
			}
			a.set(i, j, sum)
		}
	}
	return a
}

func TestHermitianTop(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 11))
	for n := 1; n <= 9; n++ {
		for _, rank := range []int{1, 2, n + 2} {
			a := randomHermitian(rng, n, rank)
			value, u, err := a.top()
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				sum := complex128(0)
				for j := range n {
					sum += a.at(i, j) * u[j]
				}
				if d := cmplx.Abs(sum - complex(value, 0)*u[i]); d > 1e-9*value {
					t.Errorf("order %d rank %d: A·u is off λ·u by %g", n, rank, d)
				}
			}
			for range 20 { // no other vector has a larger quotient
				v := mat.NewVecDense(2*n, nil)
				q, norm := 0.0, 0.0
				for i := range 2 * n {
					v.SetVec(i, rng.NormFloat64())
				}
				for i := range n {
					x := complex(v.AtVec(i), v.AtVec(n+i))
					norm += real(x * cmplx.Conj(x))
					for j := range n {
						q += real(cmplx.Conj(x) * a.at(i, j) * complex(v.AtVec(j), v.AtVec(n+j)))
					}
				}
				if q > value*norm*(1+1e-12) {
					t.Errorf("order %d: quotient %g above the largest eigenvalue %g", n, q/norm, value)
				}
			}
			near(t, "value alone", a.topValue(make([]complex128, 2*n*n)), value, 1e-5)
		}
	}
	if x := newHermitian(3).topValue(make([]complex128, 18)); x != 0 {
		t.Errorf("largest eigenvalue of zeros: %g", x)
	}
}

// Subspace iteration gives what the full decomposition gives, where the spectrum falls as those of heads do.
func TestSubspaceIteration(t *testing.T) {
	const n, r = 60, 6
	rng := rand.New(rand.NewPCG(13, 13))
	x := mat.NewDense(3*n, n, nil)
	for i := range 3 * n {
		for j := range n {
			x.Set(i, j, rng.NormFloat64()/float64(1+j))
		}
	}
	a := moment(x)
	want, _, err := leading(a, r)
	if err != nil {
		t.Fatal(err)
	}
	got, v, err := subspace(a, r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r {
		near(t, "eigenvalue", got[i], want[i], 1e-6)
		var av mat.VecDense
		av.MulVec(a, v.ColView(i))
		av.AddScaledVec(&av, -got[i], v.ColView(i))
		if d := mat.Norm(&av, 2); d > 1e-3*got[i] {
			t.Errorf("vector %d is off by %g of %g", i, d, got[i])
		}
	}
}
