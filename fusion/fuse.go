package fusion

import (
	"fmt"
	"slices"
)

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
