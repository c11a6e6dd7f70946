package fusion

import (
	"runtime"
	"sync"
)

// corrected searches by estimated costs and fits what the search finds: exact costs of its groups take the place of the
// estimates, and the search is made again, until all groups that it finds are fitted already or correctionWork is spent. What it
// returns are the cheapest partitions of those that were fitted as a whole.
//
// With estimates that are never too large that is the best partition, as in every search by lower bounds. Estimates are
// therefore scaled down to the lowest ratio of exact to estimated cost that groups of as many heads have shown, and a bit
// below.
func (t *partitionTask) corrected() ([][][]int, error) {
	c := &correction{t: t, exact: map[string]float64{}, ratio: make([]float64, t.size()+1)}
	by := *t
	by.cost, by.rough = c.cost, nil
	h := len(t.items)
	best, least := make([][][]int, h), make([]float64, h)
	for left := correctionWork; ; left -= tableWork(h) {
		found, err := by.cheapest(best[t.n-1])
		if err != nil {
			return nil, err
		}
		var fresh [][]int
		for n, items := range found {
			if n == 0 || n == h-1 {
				best[n] = items // nothing to choose
				continue
			}
			for _, g := range items {
				if heads := t.heads(g); !c.known(heads) {
					fresh = append(fresh, heads)
				}
			}
		}
		for _, g := range fresh {
			left -= t.work(len(g))
		}
		if err := c.fit(fresh); err != nil {
			return nil, err
		}
		for n, items := range found {
			total := 0.0
			for _, g := range items {
				total += c.exact[headKey(t.heads(g))]
			}
			if n > 0 && n < h-1 && items != nil && (best[n] == nil || total < least[n]) {
				best[n], least[n] = clone(items), total
			}
		}
		if len(fresh) == 0 || left <= 0 {
			return best, nil
		}
	}
}

// size is the number of all heads.
func (t *partitionTask) size() (n int) {
	for _, i := range t.items {
		n += len(i)
	}
	return n
}

// correction are costs of which some are exact.
type correction struct {
	t     *partitionTask
	exact map[string]float64
	ratio []float64 // lowest of exact to estimated cost, by the number of heads; 0 where none was fitted
}

// belowLowest scales what the lowest ratio gives.
const belowLowest = 0.8

func headKey(heads []int) string {
	b := make([]byte, 0, 2*len(heads))
	for _, h := range heads {
		b = append(b, byte(h), byte(h>>8))
	}
	return string(b)
}

func (c *correction) known(heads []int) bool {
	_, ok := c.exact[headKey(heads)]
	return ok
}

// cost is the exact cost of a group that has been fitted, else its estimate, scaled as groups of as many heads need, or of
// the next number below of which one has been fitted.
func (c *correction) cost(heads []int) (float64, error) {
	if x, ok := c.exact[headKey(heads)]; ok {
		return x, nil
	}
	x, err := c.t.rough(heads)
	for g := len(heads); g > 1; g-- {
		if c.ratio[g] > 0 {
			return x * c.ratio[g] * belowLowest, err
		}
	}
	return x, err
}

// fit takes the exact costs of groups, on all cores.
func (c *correction) fit(groups [][]int) error {
	type result struct {
		exact, rough float64
		err          error
	}
	results := make([]result, len(groups))
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, g := range groups {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			r := &results[i]
			if r.exact, r.err = c.t.cost(g); r.err == nil {
				r.rough, r.err = c.t.rough(g)
			}
		}()
	}
	wg.Wait()
	for i, r := range results {
		if r.err != nil {
			return r.err
		}
		c.exact[headKey(groups[i])] = r.exact
		if x := &c.ratio[len(groups[i])]; r.rough > 0 && (*x == 0 || r.exact/r.rough < *x) {
			*x = r.exact / r.rough
		}
	}
	return nil
}
