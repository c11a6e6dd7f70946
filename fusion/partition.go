package fusion

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// exactHeads is the number of heads up to which the best partition is found exactly, from the costs of all 2^H subsets.
const exactHeads = 16

// partitionTask is a search for the cheapest partition of items into n groups. An item is a set of heads that stay
// together: a single head, or a group of the other kind where groups are to be nested.
type partitionTask struct {
	items [][]int
	n     int
	equal bool // every group has as many items
	cost  func(heads []int) (float64, error)
	seed  uint64
	// rough estimates cost where taking it of all groups would be too long; nil where it is not. work is the time that
	// cost takes of g heads, in nanoseconds.
	rough func(heads []int) (float64, error)
	work  func(g int) float64
}

// heads returns the heads of a set of items, ascending.
func (t *partitionTask) heads(items []int) []int {
	var out []int
	for _, i := range items {
		out = append(out, t.items[i]...)
	}
	slices.Sort(out)
	return out
}

// groups translates groups of items to groups of heads, ordered by their first head.
func (t *partitionTask) groups(items [][]int) [][]int {
	out := make([][]int, 0, len(items))
	for _, g := range items {
		out = append(out, t.heads(g))
	}
	slices.SortFunc(out, func(a, b []int) int { return a[0] - b[0] })
	return out
}

// neighbours cuts the items into n runs whose lengths differ by one at most, the longer ones first.
func (t *partitionTask) neighbours() [][]int {
	var out [][]int
	at := 0
	for g := range t.n {
		size := (len(t.items) - at + t.n - g - 1) / (t.n - g)
		var run []int
		for i := range size {
			run = append(run, at+i)
		}
		at += size
		out = append(out, run)
	}
	return out
}

// subsetCosts is the cost of every set of items, by bit mask; sets that the task cannot use are left out (+Inf).
func (t *partitionTask) subsetCosts(use func(size int) bool) ([]float64, error) {
	h := len(t.items)
	out := make([]float64, 1<<h)
	var next atomic.Int64
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			items := make([]int, 0, h)
			for {
				m := int(next.Add(1))
				if m >= len(out) {
					return
				}
				if !use(bits.OnesCount(uint(m))) {
					out[m] = math.Inf(1)
					continue
				}
				items = items[:0]
				for b := uint(m); b != 0; b &= b - 1 {
					items = append(items, bits.TrailingZeros(b))
				}
				var err error
				if out[m], err = t.cost(t.heads(items)); err != nil {
					once.Do(func() { first = err })
					next.Store(int64(len(out)))
					return
				}
			}
		}()
	}
	wg.Wait()
	return out, first
}

// exactPartitions returns the cheapest partitions of the items into 1 … n groups (index n−1; nil where equal groups are
// asked for and do not come out) by dynamic programming over subsets: the cheapest way to cut a set into k groups is, over
// the groups that hold its lowest item, that group's cost and the cheapest way to cut the rest into k−1.
func (t *partitionTask) exactPartitions(n int) ([][][]int, error) {
	h := len(t.items)
	costs, err := t.subsetCosts(func(size int) bool { return !t.equal || h%size == 0 && h/size <= n })
	if err != nil {
		return nil, err
	}
	full := 1<<h - 1
	best := slices.Clone(costs)
	choice := make([][]int32, n+1)
	out := make([][][]int, n)
	read := func(k int) [][]int {
		var groups [][]int
		for m := full; m != 0; k-- {
			sub := m
			if k > 1 {
				sub = int(choice[k][m])
			}
			var g []int
			for b := uint(sub); b != 0; b &= b - 1 {
				g = append(g, bits.TrailingZeros(b))
			}
			groups = append(groups, g)
			m &^= sub
		}
		return groups
	}
	out[0] = read(1)
	for k := 2; k <= n; k++ {
		next := make([]float64, len(best))
		choice[k] = make([]int32, len(best))
		inChunks(len(next), func(m int) {
			next[m] = math.Inf(1)
			size := bits.OnesCount(uint(m))
			if size < k || k == n && m != full { // the last step needs the whole only
				return
			}
			low := m & -m
			rest := m &^ low
			for s := rest; ; s = (s - 1) & rest {
				sub := s | low
				if sub != m && (!t.equal || bits.OnesCount(uint(sub))*k == size) {
					if c := costs[sub] + best[m&^sub]; c < next[m] {
						next[m], choice[k][m] = c, int32(sub)
					}
				}
				if s == 0 {
					break
				}
			}
		})
		best = next
		if !math.IsInf(best[full], 1) {
			out[k-1] = read(k)
		}
	}
	return out, nil
}

// inChunks calls f for 0 … n−1 on all cores.
func inChunks(n int, f func(i int)) {
	const chunk = 256
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				from := int(next.Add(chunk)) - chunk
				if from >= n {
					return
				}
				for i := from; i < min(n, from+chunk); i++ {
					f(i)
				}
			}
		})
	}
	wg.Wait()
}

// search returns the cheapest partitions found, by their number of groups less one; of t.n groups at least, unless equal
// groups do not come out.
func (t *partitionTask) search() ([][][]int, error) {
	if t.n == len(t.items) || t.n == 1 {
		out := make([][][]int, t.n)
		out[t.n-1] = t.neighbours()
		return out, nil
	}
	if t.rough != nil {
		return t.corrected()
	}
	return t.cheapest(nil)
}

// cheapest is the search by costs as they are: exact for up to exactHeads items, then for all numbers of groups at once,
// else by descent, from a partition that is known if there is one.
func (t *partitionTask) cheapest(from [][]int) ([][][]int, error) {
	if h := len(t.items); h <= exactHeads {
		return t.exactPartitions(h)
	}
	out := make([][][]int, t.n)
	var err error
	if from == nil {
		out[t.n-1], err = t.descend()
		return out, err
	}
	out[t.n-1] = clone(from)
	_, err = t.improve(out[t.n-1])
	return out, err
}

// descend is a local search: from neighbouring items, from merging the two groups that cost least until n are left, and
// from random partitions; it takes the best of all moves of one item to another group and all exchanges of two items
// until none gains. The best end of all starts is returned.
func (t *partitionTask) descend() ([][]int, error) {
	const randomStarts = 4
	starts := [][][]int{t.neighbours()}
	if !t.equal {
		merged, err := t.agglomerate()
		if err != nil {
			return nil, err
		}
		starts = append(starts, merged)
	}
	rng := rand.New(rand.NewPCG(t.seed, 0x9e3779b97f4a7c15))
	for range randomStarts {
		perm := rng.Perm(len(t.items))
		p := t.neighbours()
		for _, g := range p {
			for i := range g {
				g[i] = perm[g[i]]
			}
			slices.Sort(g)
		}
		starts = append(starts, p)
	}
	var best [][]int
	least := math.Inf(1)
	for _, p := range starts {
		total, err := t.improve(p)
		if err != nil {
			return nil, err
		}
		if total < least*(1-1e-12) {
			best, least = p, total
		}
	}
	return best, nil
}

// groupCost is the cost of a set of items.
func (t *partitionTask) groupCost(items []int) (float64, error) {
	return t.cost(t.heads(items))
}

// agglomerate merges, from single items on, the pair of groups that raises the cost least.
func (t *partitionTask) agglomerate() ([][]int, error) {
	var groups [][]int
	for i := range t.items {
		groups = append(groups, []int{i})
	}
	costs := make([]float64, len(groups))
	for i, g := range groups {
		c, err := t.groupCost(g)
		if err != nil {
			return nil, err
		}
		costs[i] = c
	}
	for len(groups) > t.n {
		least, at, with, cost := math.Inf(1), 0, 1, 0.0
		for i := range groups {
			for j := i + 1; j < len(groups); j++ {
				c, err := t.groupCost(joined(groups[i], groups[j]))
				if err != nil {
					return nil, err
				}
				if rise := c - costs[i] - costs[j]; rise < least {
					least, at, with, cost = rise, i, j, c
				}
			}
		}
		groups[at], costs[at] = joined(groups[at], groups[with]), cost
		groups, costs = slices.Delete(groups, with, with+1), slices.Delete(costs, with, with+1)
	}
	return groups, nil
}

// joined is the union of two disjoint ascending sets.
func joined(a, b []int) []int {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return out
}

// without leaves x out.
func without(a []int, x int) []int {
	return slices.DeleteFunc(slices.Clone(a), func(y int) bool { return y == x })
}

// improve descends from p in place and returns its cost.
func (t *partitionTask) improve(p [][]int) (float64, error) {
	costs, total := make([]float64, len(p)), 0.0
	for i, g := range p {
		c, err := t.groupCost(g)
		if err != nil {
			return 0, err
		}
		costs[i] = c
		total += c
	}
	for {
		gain := 1e-12 * total
		var a, b int
		var groupA, groupB []int
		var costA, costB float64
		try := func(i, j int, gi, gj []int) error {
			ci, err := t.groupCost(gi)
			if err != nil {
				return err
			}
			cj, err := t.groupCost(gj)
			if err != nil {
				return err
			}
			if g := costs[i] + costs[j] - ci - cj; g > gain {
				gain, a, b, groupA, groupB, costA, costB = g, i, j, gi, gj, ci, cj
			}
			return nil
		}
		for i := range p {
			for j := range p {
				if i == j {
					continue
				}
				for _, x := range p[i] {
					if !t.equal && len(p[i]) > 1 {
						if err := try(i, j, without(p[i], x), joined(p[j], []int{x})); err != nil {
							return 0, err
						}
					}
					if i > j {
						continue
					}
					for _, y := range p[j] {
						if err := try(i, j, joined(without(p[i], x), []int{y}), joined(without(p[j], y), []int{x})); err != nil {
							return 0, err
						}
					}
				}
			}
		}
		if groupA == nil {
			return total, nil
		}
		total -= gain
		p[a], p[b], costs[a], costs[b] = groupA, groupB, costA, costB
	}
}
