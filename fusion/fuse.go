package fusion

import (
	"fmt"
	"slices"
)

// Apply fuses heads: entry j holds the weights or the bias of original head j, flat, all of one length. The result has
// one slice of that length per group, Σ_j Weights[g][j] · heads[Groups[g][j]] (the linear heads fusion operator, DHA
// arXiv 2406.06567 §3.1), summed in float64 in the order of the group so that equal inputs give equal bytes. The
// groups must name heads that exist and the slices must be of one length, as a resolved Plan guarantees; Apply panics
// otherwise.
func (f Fusion) Apply(heads [][]float64) [][]float64 {
	out := make([][]float64, len(f.Groups))
	for g, group := range f.Groups {
		fused := make([]float64, len(heads[group[0]]))
		for j, h := range group {
			if len(heads[h]) != len(fused) {
				panic(fmt.Sprintf("fusion: head %d has %d elements, head %d has %d", h, len(heads[h]), group[0], len(fused)))
			}
			w := f.Weights[g][j]
			for i, x := range heads[h] {
				fused[i] += w * x
			}
		}
		out[g] = fused
	}
	return out
}

// Mean fuses each group into the mean of its heads, the initialisation of GQA (arXiv 2305.13245 §2.1).
func Mean(groups [][]int) Fusion {
	f := Fusion{Groups: make([][]int, len(groups)), Weights: make([][]float64, len(groups))}
	for g, group := range groups {
		f.Groups[g] = slices.Clone(group)
		f.Weights[g] = slices.Repeat([]float64{1 / float64(len(group))}, len(group))
	}
	return f
}

// Adjacent fuses heads into n groups of heads/n neighbours each, by the mean. It panics unless n divides heads.
func Adjacent(heads, n int) Fusion {
	if n < 1 || heads%n != 0 {
		panic(fmt.Sprintf("fusion: %d heads do not make %d equal groups", heads, n))
	}
	groups := make([][]int, n)
	for h := range heads {
		g := h / (heads / n)
		groups[g] = append(groups[g], h)
	}
	return Mean(groups)
}

// Identity keeps n heads as they are.
func Identity(n int) Fusion { return Adjacent(n, n) }

// IsIdentity reports whether f keeps every head in its place, unscaled.
func (f Fusion) IsIdentity() bool {
	for g, group := range f.Groups {
		if len(group) != 1 || group[0] != g || f.Weights[g][0] != 1 {
			return false
		}
	}
	return true
}
