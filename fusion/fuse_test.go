package fusion

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestApplyIsLinearInHeads compares Apply with products written out by hand, on random heads and groups.
func TestApplyIsLinearInHeads(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		heads, size := 1+rng.IntN(9), 1+rng.IntN(17)
		w := make([][]float64, heads)
		for h := range w {
			for range size {
				w[h] = append(w[h], rng.NormFloat64())
			}
		}
		f := randomFusion(rng, heads)
		got := f.Apply(w)
		if len(got) != f.Heads() {
			t.Fatalf("%d fused heads, want %d", len(got), f.Heads())
		}
		for i := range size {
			// Position i of fused head g only sees position i of the heads that Map sends to g.
			want := make([]float64, f.Heads())
			for h, g := range f.Map() {
				for j, member := range f.Groups[g] {
					if member == h {
						want[g] += f.Weights[g][j] * w[h][i]
					}
				}
			}
			for g := range want {
				if math.Abs(got[g][i]-want[g]) > 1e-12 {
					t.Fatalf("head %d, element %d: %g, want %g", g, i, got[g][i], want[g])
				}
			}
		}
	}
}

func TestHelpers(t *testing.T) {
	heads := [][]float64{{1, 10}, {3, 30}, {5, 50}, {8, 80}}
	for _, tc := range []struct {
		name string
		f    Fusion
		want [][]float64
	}{
		{"identity", Identity(4), heads},
		{"adjacent pairs", Adjacent(4, 2), [][]float64{{2, 20}, {6.5, 65}}},
		{"all in one", Adjacent(4, 1), [][]float64{{4.25, 42.5}}},
		{"unequal mean", Mean([][]int{{3}, {0, 2, 1}}), [][]float64{{8, 80}, {3, 30}}},
		{"weighted", Fusion{Groups: [][]int{{1, 0}, {2, 3}}, Weights: [][]float64{{2, -1}, {0, 0.5}}}, [][]float64{{5, 50}, {4, 40}}},
	} {
		for g, row := range tc.f.Apply(heads) {
			for i, x := range row {
				if math.Abs(x-tc.want[g][i]) > 1e-12 {
					t.Errorf("%s: head %d is %v, want %v", tc.name, g, row, tc.want[g])
				}
			}
		}
	}
	if !Identity(3).IsIdentity() || Adjacent(4, 2).IsIdentity() || Mean([][]int{{1}, {0}}).IsIdentity() {
		t.Error("IsIdentity mistakes a fusion for another")
	}
}

// randomFusion partitions n heads at random and weighs them at random.
func randomFusion(rng *rand.Rand, n int) Fusion {
	perm := rng.Perm(n)
	var f Fusion
	for len(perm) > 0 {
		k := 1 + rng.IntN(len(perm))
		f.Groups = append(f.Groups, perm[:k])
		row := make([]float64, k)
		for i := range row {
			row[i] = rng.NormFloat64()
		}
		f.Weights = append(f.Weights, row)
		perm = perm[k:]
	}
	return f
}
