package fusion

import (
	"fmt"
	"math"
	"math/cmplx"
	"math/rand/v2"

	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/mat"
)

// denseEigen is the order up to which all eigenvalues of a symmetric matrix are computed; above, a leading few are found
// by subspace iteration, whose cost grows with the square of the order only.
const denseEigen = 400

// leading returns the r largest eigenvalues of a, descending, and their eigenvectors as the columns of a [n, r] matrix
// of which the sign is fixed (the largest entry of a column is positive), so that equal inputs give equal bytes.
//
// Above denseEigen, when r is a small part of n, it is a subspace iteration from a fixed start with a Rayleigh-Ritz step
// (Halko, Martinsson, Tropp 2011, §4.5): the sum of the values is then a lower bound of the true one, which makes an
// error computed from it an upper bound, as is the error of the approximation made with those vectors.
func leading(a *mat.SymDense, r int) ([]float64, *mat.Dense, error) {
	n := a.SymmetricDim()
	r = min(r, n)
	if n > denseEigen && 4*r <= n {
		return subspace(a, r)
	}
	var e mat.EigenSym
	if !e.Factorize(a, true) {
		return nil, nil, outOfRange(n)
	}
	all := e.Values(nil)
	var vectors mat.Dense
	e.VectorsTo(&vectors)
	values, out := make([]float64, r), mat.NewDense(n, r, nil)
	for j := range r {
		values[j] = all[n-1-j]
		for i := range n {
			out.Set(i, j, vectors.At(i, n-1-j))
		}
	}
	fixSigns(out)
	return values, out, nil
}

// rest returns what the r leading directions leave of a positive semi-definite matrix: the sum of its other eigenvalues.
// Without eigenvectors it takes a tenth of the time.
func rest(a *mat.SymDense, r int) (float64, error) {
	n := a.SymmetricDim()
	sum := 0.0
	switch {
	case r >= n:
		return 0, nil
	case n > denseEigen && 4*r <= n:
		values, _, err := subspace(a, r)
		if err != nil {
			return 0, err
		}
		for _, v := range values {
			sum += v
		}
		return max(mat.Trace(a)-sum, 0), nil
	}
	var e mat.EigenSym
	if !e.Factorize(a, false) {
		return 0, outOfRange(n)
	}
	for _, v := range e.Values(nil)[:n-r] {
		sum += v
	}
	return max(sum, 0), nil
}

func outOfRange(n int) error {
	return fmt.Errorf("eigenvalues of a [%d, %d] matrix of statistics were not found; its entries are out of range", n, n)
}

// subspace is leading by subspace iteration.
func subspace(a *mat.SymDense, r int) ([]float64, *mat.Dense, error) {
	const oversample, iterations = 8, 5
	n := a.SymmetricDim()
	k := min(r+oversample, n)
	rng := rand.New(rand.NewPCG(1, 2))
	y := mat.NewDense(n, k, nil)
	for i := range n {
		for j := range k {
			y.Set(i, j, rng.NormFloat64())
		}
	}
	dense := mat.DenseCopyOf(a) // a general product is blocked and parallel in gonum, a symmetric one is neither
	for range iterations {
		var next mat.Dense
		next.Mul(dense, y)
		y = orthonormal(&next)
	}
	var next mat.Dense
	next.Mul(dense, y)
	var small mat.Dense
	small.Mul(y.T(), &next)
	values, v, err := leading(symmetric(&small), r)
	if err != nil {
		return nil, nil, err
	}
	out := mat.NewDense(n, r, nil)
	out.Mul(y, v)
	fixSigns(out)
	return values, out, nil
}

// orthonormal returns an orthonormal basis of the columns of y, [n, k] with k ≤ n; y is used up. The basis is made in the
// place of y: gonum's mat.QR gives the whole [n, n] factor only.
func orthonormal(y *mat.Dense) *mat.Dense {
	a := y.RawMatrix()
	tau, size := make([]float64, a.Cols), make([]float64, 1)
	lapack64.Geqrf(a, tau, size, -1)
	work := make([]float64, int(size[0]))
	lapack64.Geqrf(a, tau, work, len(work))
	lapack64.Orgqr(a, tau, size, -1)
	work = make([]float64, int(size[0]))
	lapack64.Orgqr(a, tau, work, len(work))
	return y
}

// fixSigns makes the entry of the largest magnitude of every column positive.
func fixSigns(m *mat.Dense) {
	rows, cols := m.Dims()
	for j := range cols {
		top := 0.0
		for i := range rows {
			if x := m.At(i, j); math.Abs(x) > math.Abs(top)*(1+1e-9) {
				top = x
			}
		}
		if top < 0 {
			for i := range rows {
				m.Set(i, j, -m.At(i, j))
			}
		}
	}
}

// symmetric returns (m + mᵀ)/2.
func symmetric(m mat.Matrix) *mat.SymDense {
	n, _ := m.Dims()
	s := mat.NewSymDense(n, nil)
	for i := range n {
		for j := i; j < n; j++ {
			s.SetSym(i, j, (m.At(i, j)+m.At(j, i))/2)
		}
	}
	return s
}

// roots returns the symmetric square root of a positive semi-definite matrix and its pseudo-inverse. Directions of less
// than 1e-9 of the largest eigenvalue count as empty: what never occurs needs no inverse.
func roots(a *mat.SymDense) (root, inverse *mat.Dense, err error) {
	n := a.SymmetricDim()
	values, v, err := leading(a, n)
	if err != nil {
		return nil, nil, err
	}
	scaled := func(f func(x float64) float64) *mat.Dense {
		t := mat.DenseCopyOf(v)
		for j, x := range values {
			s := 0.0
			if x > 1e-9*values[0] && x > 0 {
				s = f(math.Sqrt(x))
			}
			for i := range n {
				t.Set(i, j, t.At(i, j)*s)
			}
		}
		out := mat.NewDense(n, n, nil)
		out.Mul(t, v.T())
		return out
	}
	return scaled(func(x float64) float64 { return x }), scaled(func(x float64) float64 { return 1 / x }), nil
}

// hermitian is a Hermitian matrix in full, rows first.
type hermitian struct {
	n int
	x []complex128
}

func newHermitian(n int) hermitian { return hermitian{n, make([]complex128, n*n)} }

func (a hermitian) at(i, j int) complex128     { return a.x[i*a.n+j] }
func (a hermitian) set(i, j int, v complex128) { a.x[i*a.n+j] = v }

// trace returns the sum of the eigenvalues.
func (a hermitian) trace() (t float64) {
	for i := range a.n {
		t += real(a.at(i, i))
	}
	return t
}

// top returns the largest eigenvalue and its unit eigenvector, of which the largest entry is real and positive. A
// Hermitian A = R + iS of order n has the eigenvalues of the symmetric [[R, −S], [S, R]], each twice; (x; y) there is
// x + iy here.
func (a hermitian) top() (float64, []complex128, error) {
	n := a.n
	s := mat.NewSymDense(2*n, nil)
	for i := range n {
		for j := range n {
			v := (a.at(i, j) + cmplx.Conj(a.at(j, i))) / 2
			if i <= j {
				s.SetSym(i, j, real(v))
				s.SetSym(n+i, n+j, real(v))
			}
			s.SetSym(i, n+j, -imag(v))
		}
	}
	values, v, err := leading(s, 1)
	if err != nil {
		return 0, nil, err
	}
	u := make([]complex128, n)
	big := 0
	for i := range u {
		u[i] = complex(v.At(i, 0), v.At(n+i, 0))
		if cmplx.Abs(u[i]) > cmplx.Abs(u[big])*(1+1e-9) {
			big = i
		}
	}
	if m := cmplx.Abs(u[big]); m > 0 {
		turn := cmplx.Conj(u[big]) / complex(m, 0)
		for i := range u {
			u[i] *= turn
		}
	}
	return values[0], u, nil
}

// topValue is the largest eigenvalue alone: it is taken for every subset of heads and every frequency. Squaring the matrix
// a few times leaves little but the leading eigenvector in its columns; power iteration from there stops when the Rayleigh
// quotient, a lower bound of the eigenvalue, stands still to 1e-7 of itself. work has room for 2n² entries.
func (a hermitian) topValue(work []complex128) float64 {
	n := a.n
	switch n {
	case 1:
		return real(a.x[0])
	case 2:
		p, q := real(a.x[0]), real(a.x[3])
		return (p+q)/2 + math.Hypot((p-q)/2, cmplx.Abs(a.x[1]))
	}
	const squarings = 5
	from, to := hermitian{n, work[:n*n]}, hermitian{n, work[n*n : 2*n*n]}
	copy(from.x, a.x)
	for range squarings {
		t := from.trace()
		if !(t > 0) {
			return 0
		}
		scale := 1 / (t * t)
		for i := range n {
			row := from.x[i*n : (i+1)*n]
			for j := range i + 1 {
				re, im := 0.0, 0.0
				for k, y := range from.x[j*n : (j+1)*n] { // row i times column j, which is row j conjugated
					x := row[k]
					re += real(x)*real(y) + imag(x)*imag(y)
					im += imag(x)*real(y) - real(x)*imag(y)
				}
				to.set(i, j, complex(re*scale, im*scale))
				to.set(j, i, complex(re*scale, -im*scale))
			}
		}
		from, to = to, from
	}
	big := 0
	for i := range n {
		if real(from.at(i, i)) > real(from.at(big, big)) {
			big = i
		}
	}
	v, next := to.x[:n], to.x[n:2*n]
	for i := range n {
		v[i] = from.at(i, big)
	}
	last := 0.0
	for range 100 {
		norm := 0.0
		for _, x := range v {
			norm += real(x)*real(x) + imag(x)*imag(x)
		}
		if norm == 0 {
			return 0
		}
		value := 0.0
		for i := range n {
			re, im := 0.0, 0.0
			for j, x := range a.x[i*n : (i+1)*n] {
				y := v[j]
				re += real(x)*real(y) - imag(x)*imag(y)
				im += real(x)*imag(y) + imag(x)*real(y)
			}
			next[i] = complex(re, im)
			value += real(v[i])*re + imag(v[i])*im
		}
		if value /= norm; value-last <= 1e-7*value {
			return value
		}
		last = value
		scale := 1 / math.Sqrt(norm)
		for i, x := range next {
			v[i] = complex(real(x)*scale, imag(x)*scale)
		}
	}
	return last
}
