package learn

import (
	"fmt"
	"slices"
)

// leastImportance is the least weight of a query head, as a share of the mean: what was measured as useless is so on the
// samples only.
const leastImportance = 0.1

// HeadWeights returns the importance of query heads for Request.Importance, by one of Criteria, after checking that it was
// measured on the lab's model. Heads of a block that was not measured weigh 1.
func (l *Lab) HeadWeights(imp *Importance, by string) ([][]float64, error) {
	if len(imp.Blocks) != len(l.Blocks) {
		return nil, fmt.Errorf("importance of %d attention blocks; %s has %d", len(imp.Blocks), l.Path, len(l.Blocks))
	}
	for i, b := range l.Blocks {
		if got := imp.Blocks[i]; got.Block != b.Name || len(got.Queries) != b.Heads {
			return nil, fmt.Errorf("importance of block %q with %d query heads; block %d of %s is %q with %d", got.Block, len(got.Queries), i, l.Path, b.Name, b.Heads)
		}
	}
	weights, err := imp.Weights(by)
	if err != nil {
		return nil, err
	}
	for i, b := range l.Blocks {
		if weights[i] == nil {
			weights[i] = slices.Repeat([]float64{1}, b.Heads)
		}
		if len(weights[i]) != b.Heads {
			return nil, fmt.Errorf("block %q: %d of %d query heads have their %s measured; want all", b.Name, len(weights[i]), b.Heads, by)
		}
		for h, w := range weights[i] {
			weights[i][h] = max(w, leastImportance)
		}
	}
	return weights, nil
}
