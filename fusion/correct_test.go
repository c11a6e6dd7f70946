package fusion

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// Corrected estimates against all costs exact, for every number of groups: partitions are nearly as good, all of their
// groups were fitted, and far from all groups were.
func TestCorrectedEstimates(t *testing.T) {
	const heads = 9
	st, _ := FindStrategy("optimal")
	for seed := range uint64(3) {
		s := newSample(rand.New(rand.NewPCG(seed, 5)), heads, 1, 4, halfSplit(4), false)
		for _, k := range []kind{keyKind, valueKind} {
			m, err := s.p.moments(k)
			if err != nil {
				t.Fatal(err)
			}
			c := st.costs(s.p, k, m)
			exact := &partitionTask{items: single(heads), n: heads, cost: c.cost}
			want, err := exact.exactPartitions(heads)
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			fits := map[string]bool{}
			task := &partitionTask{items: single(heads), n: 4, rough: c.rough, work: c.work, cost: func(g []int) (float64, error) {
				mu.Lock()
				fits[headKey(g)] = true
				mu.Unlock()
				return c.cost(g)
			}}
			found, err := task.search()
			if err != nil {
				t.Fatal(err)
			}
			if len(fits) > 1<<heads/3 {
				t.Errorf("%s: %d of %d groups fitted", k, len(fits), 1<<heads-1)
			}
			for n := range heads {
				if len(found[n]) != n+1 || !slices.Equal(flattened(found[n]), flattened(want[n])) {
					t.Fatalf("%v is no partition into %d groups", found[n], n+1)
				}
				if got, best := total(exact, found[n]), total(exact, want[n]); got > best*1.02 {
					t.Errorf("%s: %d groups cost %g, the best %g", k, n+1, got, best)
				}
			}
		}
	}
}
