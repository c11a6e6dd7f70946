package fusion

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// eachPartition calls f with every partition of n items.
func eachPartition(n int, f func(groups [][]int)) {
	var rec func(i int, groups [][]int)
	rec = func(i int, groups [][]int) {
		if i == n {
			f(groups)
			return
		}
		for g := range groups {
			groups[g] = append(groups[g], i)
			rec(i+1, groups)
			groups[g] = groups[g][:len(groups[g])-1]
		}
		rec(i+1, append(groups, []int{i}))
	}
	rec(0, nil)
}

// randomTask has a random cost for every subset, so that nothing but looking at all partitions finds the best.
func randomTask(rng *rand.Rand, h, n int, equal bool) *partitionTask {
	costs := make([]float64, 1<<h)
	for i := range costs {
		costs[i] = rng.Float64()
	}
	return &partitionTask{items: single(h), n: n, equal: equal, cost: func(heads []int) (float64, error) {
		m := 0
		for _, x := range heads {
			m |= 1 << x
		}
		return costs[m], nil
	}}
}

func total(t *partitionTask, groups [][]int) (sum float64) {
	for _, g := range groups {
		c, _ := t.cost(g)
		sum += c
	}
	return sum
}

func TestExactPartitionsAreTheBest(t *testing.T) {
	const h = 6
	for seed := range uint64(5) {
		for _, equal := range []bool{false, true} {
			task := randomTask(rand.New(rand.NewPCG(seed, 1)), h, h, equal)
			best := slices.Repeat([]float64{math.Inf(1)}, h)
			eachPartition(h, func(groups [][]int) {
				for _, g := range groups {
					if equal && len(g) != len(groups[0]) {
						return
					}
				}
				best[len(groups)-1] = min(best[len(groups)-1], total(task, groups))
			})
			got, err := task.exactPartitions(h)
			if err != nil {
				t.Fatal(err)
			}
			for n, groups := range got {
				if groups == nil {
					if !math.IsInf(best[n], 1) {
						t.Errorf("equal %v: no partition into %d groups", equal, n+1)
					}
					continue
				}
				if len(groups) != n+1 || !slices.Equal(flattened(groups), []int{0, 1, 2, 3, 4, 5}) {
					t.Fatalf("%v is no partition into %d groups", groups, n+1)
				}
				near(t, "cost", total(task, groups), best[n], 1e-12)
			}
		}
	}
}

func flattened(groups [][]int) []int {
	all := slices.Concat(groups...)
	slices.Sort(all)
	return all
}

// On costs with structure (distances within clusters) the searches that are not exact find the best partition, and keep
// equal groups equal.
func TestSearchesFindClusters(t *testing.T) {
	const h, n = 9, 3
	rng := rand.New(rand.NewPCG(4, 4))
	at := make([]float64, h)
	for i := range at {
		at[i] = float64(i*2%n)*10 + rng.Float64()
	}
	for _, equal := range []bool{false, true} {
		task := &partitionTask{items: single(h), n: n, equal: equal, seed: 1, cost: func(heads []int) (sum float64, _ error) {
			for _, a := range heads {
				for _, b := range heads {
					sum += (at[a] - at[b]) * (at[a] - at[b]) / float64(len(heads))
				}
			}
			return sum, nil
		}}
		exact, err := task.exactPartitions(n)
		if err != nil {
			t.Fatal(err)
		}
		for name, search := range map[string]func() ([][]int, error){"descend": task.descend, "anneal": task.anneal, "evolve": task.evolve} {
			got, err := search()
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != n || len(flattened(got)) != h {
				t.Fatalf("%s: %v is no partition", name, got)
			}
			near(t, name, total(task, got), total(task, exact[n-1]), 1e-12)
			again, _ := search()
			if !slices.EqualFunc(got, again, slices.Equal) {
				t.Errorf("%s gives %v, then %v", name, got, again)
			}
		}
	}
}

func TestNestedGroups(t *testing.T) {
	s := newSample(rand.New(rand.NewPCG(9, 9)), 6, 1, 4, halfSplit(4), false)
	st, _ := FindStrategy("optimal")
	sol, err := st.Solve(s.p, 4, 2, SolveOptions{Nested: true})
	if err != nil {
		t.Fatal(err)
	}
	value := sol.Value.Map()
	for _, g := range sol.Key.Groups {
		for _, h := range g {
			if value[h] != value[g[0]] {
				t.Errorf("key group %v lies in several of the value groups %v", g, sol.Value.Groups)
			}
		}
	}
	if sol, err = st.Solve(s.p, 3, 3, SolveOptions{Nested: true}); err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(sol.Key.Groups, sol.Value.Groups, slices.Equal) {
		t.Errorf("groups %v and %v of one number are not nested", sol.Key.Groups, sol.Value.Groups)
	}
	if sol, err = st.Solve(s.p, 3, 3, SolveOptions{Coupled: true, Groups: EqualGroups}); err != nil {
		t.Fatal(err)
	}
	for i, g := range sol.Key.Groups {
		if len(g) != 2 || !slices.Equal(g, sol.Value.Groups[i]) {
			t.Errorf("groups %v and %v, want the same pairs", sol.Key.Groups, sol.Value.Groups)
		}
	}
}
