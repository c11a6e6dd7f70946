package fusion

import (
	"math"
	"math/cmplx"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph/attention"
)

func halfSplit(d int) attention.Rotary { return attention.Rotary{Kind: attention.HalfSplit, Dims: d} }

// What a folded query scores against the fused key is what the query scores against the key that it stands for, turned by
// whatever positions, to machine precision.
func TestFoldedQueriesScoreTheApproximatedKeys(t *testing.T) {
	for _, rotary := range []attention.Rotary{halfSplit(6), {Kind: attention.Interleaved, Dims: 6}, {Kind: attention.HalfSplit, Dims: 4}} {
		const d = 6
		s := newSample(rand.New(rand.NewPCG(7, 7)), 4, 2, d, rotary, true)
		st, _ := FindStrategy("optimal")
		sol, err := st.Solve(s.p, 2, 4, SolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.p.moments(keyKind)
		if err != nil {
			t.Fatal(err)
		}
		pairs, _, err := Channels(rotary, d)
		if err != nil {
			t.Fatal(err)
		}
		turn := func(x []float64, position int) []float64 {
			y := append([]float64(nil), x...)
			for f, p := range pairs {
				sin, cos := math.Sincos(float64(position) * math.Pow(10, -float64(f)))
				y[p[0]], y[p[1]] = x[p[0]]*cos-x[p[1]]*sin, x[p[0]]*sin+x[p[1]]*cos
			}
			return y
		}
		w, l := s.p.W, sol.Learned
		q, folded := project(s.x, w.Query, w.QueryBias), project(s.x, l.Query, l.QueryBias)
		fused := project(s.x, l.Key, l.KeyBias)
		for g, group := range sol.Key.Groups {
			mix, err := m.best(group)
			if err != nil {
				t.Fatal(err)
			}
			for j, h := range group {
				for r, head := range readers(w.KeyOf, w.KVHeads)[h] {
					var approximated mat.Dense
					approximated.Mul(cols(fused, g, d), mix.readOf(j, r, d))
					for at := range 20 {
						a, b := turn(q.RawRowView(at + 9)[head*d:(head+1)*d], at+9), turn(approximated.RawRowView(at), at)
						c, e := turn(folded.RawRowView(at + 9)[head*d:(head+1)*d], at+9), turn(fused.RawRowView(at)[g*d:(g+1)*d], at)
						near(t, "score", dot(c, e), dot(a, b), 1e-12)
					}
				}
			}
		}
	}
}

func dot(a, b []float64) (sum float64) {
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

// The closed form beats every other choice of one complex factor per head and frequency: random ones, the mean, and the
// phases alone, which lie in between.
func TestClosedFormOfKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	const heads, d = 4, 8
	var mean, phases, closed float64
	for range 20 {
		s := newSample(rng, heads, 1, d, halfSplit(d), false)
		m, err := s.p.moments(keyKind)
		if err != nil {
			t.Fatal(err)
		}
		k, all := m.(*keys), []int{0, 1, 2, 3}
		energy := 0.0
		for h := range heads {
			energy += k.inner(h, h, h)
		}
		part := func(mix *mixture, err error) float64 {
			if err != nil {
				t.Fatal(err)
			}
			e, err := k.residual(all, mix)
			if err != nil {
				t.Fatal(err)
			}
			return e / energy
		}
		best := part(k.best(all))
		mean += part(meanOf(k, all))
		// the mean of the turned heads, without the gain that keeps its norm
		turned, err := k.aligned(all)
		if err != nil {
			t.Fatal(err)
		}
		from, to := k.factors(turned, 0, 0)
		gain := cmplx.Abs(from*to) * heads
		for _, x := range turned.mix {
			x.Scale(1/gain, x)
		}
		phases += part(turned, nil)
		closed += best
		bound, err := k.bestError(all)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "error from the eigenvalues", bound/energy, best, 1e-6)
		for range 50 {
			near := k.empty(all)
			fit, _ := k.best(all)
			for f := range k.planes {
				for i := range all {
					a, b := k.factors(fit, f, i)
					z := func() complex128 { return complex(1+0.1*rng.NormFloat64(), 0.1*rng.NormFloat64()) }
					k.put(near, f, i, a*z(), b*z())
				}
			}
			if e := part(near, nil); e < best*(1-1e-9) {
				t.Fatalf("factors nearby have an error of %g, less than %g", e, best)
			}
		}
	}
	if !(closed < phases && phases < mean) {
		t.Errorf("errors: mean %.3f, phases %.3f, closed form %.3f; want them to fall", mean/20, phases/20, closed/20)
	}
}

// The fit to the scores never ends above where it starts, its error is that of the definition, and with statistics that
// know no cross terms it is the closed form.
func TestFitToScores(t *testing.T) {
	const heads, d = 3, 4
	rng := rand.New(rand.NewPCG(10, 10))
	s := newSample(rng, heads, 2, d, halfSplit(d), false)
	random := func() (list []*mat.SymDense) {
		for range heads * 2 {
			x := mat.NewDense(40, heads*d, nil)
			for i := range 40 {
				for j := range heads * d {
					x.Set(i, j, rng.NormFloat64()*float64(1+j%3))
				}
			}
			list = append(list, moment(x))
		}
		return list
	}
	s.p.S.Scores, s.p.S.Outputs = random(), random()
	m, err := s.p.moments(keyKind)
	if err != nil {
		t.Fatal(err)
	}
	k, all := m.(*keys), []int{0, 1, 2}
	start, err := k.closed(all)
	if err != nil {
		t.Fatal(err)
	}
	before, err := k.residual(all, start)
	if err != nil {
		t.Fatal(err)
	}
	fitted, err := k.best(all)
	if err != nil {
		t.Fatal(err)
	}
	after, err := k.residual(all, fitted)
	if err != nil {
		t.Fatal(err)
	}
	if !(after < before) {
		t.Errorf("error %g after the fit, %g before", after, before)
	}
	// the definition: c is the head itself less what its reader takes of the fused key
	want := 0.0
	for i := range all {
		c := make([]float64, heads*d)
		for f, p := range k.planes {
			_, to := k.factors(fitted, f, i)
			for j := range all {
				from, _ := k.factors(fitted, f, j)
				z := -from * to
				if i == j {
					z++
				}
				c[j*d+p[0]], c[j*d+p[1]] = real(z), imag(z)
			}
		}
		v := mat.NewVecDense(len(c), c)
		want += mat.Inner(v, k.metric.phi[i], v)
	}
	near(t, "error", after, want, 1e-9)
	for range 100 {
		other := k.empty(all)
		for f := range k.planes {
			for i := range all {
				a, b := k.factors(fitted, f, i)
				z := func() complex128 { return complex(1+0.03*rng.NormFloat64(), 0.03*rng.NormFloat64()) }
				k.put(other, f, i, a*z(), b*z())
			}
		}
		if e, _ := k.residual(all, other); e < after*(1-1e-3) {
			t.Errorf("factors nearby have an error of %g, less than %g", e, after)
		}
	}
}
