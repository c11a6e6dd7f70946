package fusion

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// TestImportance: the error of a head that counts for more than all others together nearly goes away, at the cost of the
// others, and heads that all count alike are shared as without importance.
func TestImportance(t *testing.T) {
	const heads = 6
	s := newSample(rand.New(rand.NewPCG(11, 3)), heads, 1, 4, halfSplit(4), false)
	solve := func(importance []float64) *Solution {
		st, _ := FindStrategy("optimal")
		sol, err := st.Solve(&Problem{W: s.p.W, S: s.p.S, Importance: importance}, 2, 2, SolveOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return sol
	}
	alike := func(except int, weight float64) []float64 {
		out := slices.Repeat([]float64{1}, heads)
		if except >= 0 {
			out[except] = weight
		}
		return out
	}
	plain := solve(nil)
	if three := solve(slices.Repeat([]float64{3}, heads)); !mat.EqualApprox(plain.Learned.Key, three.Learned.Key, 1e-9) || !mat.EqualApprox(plain.Learned.Value, three.Learned.Value, 1e-9) {
		t.Error("equal importance changes the fused heads")
	}
	// What a head loses is the slope of the weighted error over its weight: the weighted error is least for its weights.
	for h := range heads {
		const large, step = 1e4, 1.01
		one, more := solve(alike(h, large)), solve(alike(h, large*step))
		for what, e := range map[string][3]float64{
			"key": {one.KeyError, more.KeyError, plain.KeyError}, "value": {one.ValueError, more.ValueError, plain.ValueError},
		} {
			if own := (e[1] - e[0]) / (large * (step - 1)); !(own < e[2]/heads/50) {
				t.Errorf("head %d counts most and loses %g of its %s, all heads %g when they count alike", h, own, what, e[2])
			}
		}
	}
	for want, importance := range map[string][]float64{
		"importance of 2 query heads; want 6":        {1, 1},
		"the importance of query head 1 is 0; want":  {1, 0, 1, 1, 1, 1},
		"the importance of query head 5 is NaN; wan": {1, 1, 1, 1, 1, math.NaN()},
	} {
		st, _ := FindStrategy("optimal")
		if _, err := st.Solve(&Problem{W: s.p.W, S: s.p.S, Importance: importance}, 2, 2, SolveOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}
