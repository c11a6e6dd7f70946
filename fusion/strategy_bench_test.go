package fusion

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
)

// randomBlock has heads of d channels for a model of n = heads·d, with weights and moments drawn at random.
func randomBlock(heads, d int) *Problem {
	rng := rand.New(rand.NewPCG(1, 1))
	n := heads * d
	draw := func(r, c int) *mat.Dense {
		x := make([]float64, r*c)
		for i := range x {
			x[i] = rng.NormFloat64()
		}
		return mat.NewDense(r, c, x)
	}
	w := &Weights{
		Heads: heads, KVHeads: heads, ValueHeads: heads, HeadDim: d, ValueDim: d, Rotary: halfSplit(d),
		Query: draw(n, n), Key: draw(n, n), Value: draw(n, n), Output: draw(n, n),
	}
	for h := range heads {
		w.KeyOf, w.ValueOf = append(w.KeyOf, h), append(w.ValueOf, h)
	}
	const tokens = 1024
	s := headMoments(w, draw(tokens, n), draw(tokens, n), draw(tokens, n))
	// as what is seen after attention: positive definite, its spectrum falling, and no entry zero, which gonum's product
	// leaves out
	seen := mat.NewSymDense(n, nil)
	for i := range n {
		for j := i; j < n; j++ {
			seen.SetSym(i, j, math.Pow(0.99, float64(j-i)))
		}
	}
	s.Attended = []*mat.SymDense{seen}
	return &Problem{W: w, S: s}
}

// BenchmarkSolve is one layer from its statistics to new weights: moments, partitions, fused heads, folded weights.
func BenchmarkSolve(b *testing.B) {
	st, err := FindStrategy("optimal")
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct{ heads, d int }{{8, 64}, {16, 64}, {32, 128}} {
		b.Run(fmt.Sprintf("%dx%d", c.heads, c.d), func(b *testing.B) {
			p := randomBlock(c.heads, c.d)
			for b.Loop() {
				fresh := &Problem{W: p.W, S: p.S}
				if _, err := st.Solve(fresh, c.heads/2, c.heads/4, SolveOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkStrategies is the same for every strategy.
func BenchmarkStrategies(b *testing.B) {
	p := randomBlock(32, 128)
	for _, st := range Strategies {
		b.Run(st.Name, func(b *testing.B) {
			for b.Loop() {
				fresh := &Problem{W: p.W, S: p.S}
				if _, err := st.Solve(fresh, 16, 8, SolveOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSubsetCosts is the cost of all 2^16 sets of key heads, of which the exact partition is made.
func BenchmarkSubsetCosts(b *testing.B) {
	p := randomBlock(16, 64)
	st, err := FindStrategy("optimal")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		fresh := &Problem{W: p.W, S: p.S}
		if _, err := st.partition(fresh, keyKind, single(16), 8, SolveOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
