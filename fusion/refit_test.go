package fusion

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// The refitted projection is the one of least squares over the tokens, the ridge as further tokens √λ·e_i for which the
// present projection is right.
func TestRefitOutputIsLeastSquares(t *testing.T) {
	const tokens, m, out, lambda = 40, 5, 3, 0.3
	rng := rand.New(rand.NewPCG(6, 6))
	draw := func(r, c int) *mat.Dense {
		x := mat.NewDense(r, c, nil)
		for i := range r {
			for j := range c {
				x.Set(i, j, rng.NormFloat64())
			}
		}
		return x
	}
	g, y, o := draw(tokens, m), draw(tokens, out), draw(m, out)
	gram, cross := moment(g), mat.NewDense(m, out, nil)
	cross.Mul(g.T(), y)
	cross.Scale(1.0/tokens, cross)
	got, err := RefitOutput(gram, cross, o, lambda)
	if err != nil {
		t.Fatal(err)
	}
	a, b := mat.NewDense(tokens+m, m, nil), mat.NewDense(tokens+m, out, nil)
	a.Slice(0, tokens, 0, m).(*mat.Dense).Scale(1/math.Sqrt(tokens), g)
	b.Slice(0, tokens, 0, out).(*mat.Dense).Scale(1/math.Sqrt(tokens), y)
	for i := range m {
		a.Set(tokens+i, i, math.Sqrt(lambda))
		for j := range out {
			b.Set(tokens+i, j, math.Sqrt(lambda)*o.At(i, j))
		}
	}
	var want mat.Dense
	if err := want.Solve(a, b); err != nil {
		t.Fatal(err)
	}
	if !mat.EqualApprox(got, &want, 1e-10) {
		t.Errorf("refitted projection\n%v\nwant\n%v", mat.Formatted(got), mat.Formatted(&want))
	}
}

func TestRefitOutputRefuses(t *testing.T) {
	gram, cross, o := mat.NewSymDense(2, []float64{1, 0, 0, 1}), mat.NewDense(2, 3, nil), mat.NewDense(2, 3, nil)
	for _, c := range []struct {
		gram   *mat.SymDense
		cross  *mat.Dense
		lambda float64
		want   string
	}{
		{gram, mat.NewDense(3, 3, nil), 1, "do not fit"},
		{gram, cross, -1, "ridge -1"},
		{mat.NewSymDense(2, nil), cross, 0, "singular with a ridge of 0"},
		{mat.NewSymDense(2, []float64{1, 0, 0, math.NaN()}), cross, 1, "entry [1, 1] is NaN"},
	} {
		if _, err := RefitOutput(c.gram, c.cross, o, c.lambda); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}
