package fusion

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// evolve searches by NSGA-II (Deb et al. 2002) as QCQA does (arXiv 2406.10247, stage 1): a chromosome gives every item a
// group, the two objectives are the number of groups and the cost; population 100, crossover with probability 0.9. The
// cheapest partition into n groups that was ever seen is returned. With equal groups (its variant EC) chromosomes are
// repaired to them.
func (t *partitionTask) evolve() ([][]int, error) {
	const population, generations, crossover = 100, 40, 0.9
	h := len(t.items)
	if t.n == 1 || t.n == h {
		return t.neighbours(), nil
	}
	e := &evolution{t: t, rng: rand.New(rand.NewPCG(t.seed, 0xe0)), least: math.Inf(1)}
	// The first generation is of all numbers of groups, and of the one that is asked for.
	parents := make([]individual, population)
	for i := range parents {
		groups := t.n
		if i%2 == 1 && !t.equal {
			groups = 1 + i/2%h
		}
		labels := make([]int, h)
		for j := range labels {
			labels[j] = e.rng.IntN(groups)
		}
		if i == 0 {
			for g, run := range t.neighbours() {
				for _, x := range run {
					labels[x] = g
				}
			}
		}
		var err error
		if parents[i], err = e.measure(labels); err != nil {
			return nil, err
		}
	}
	rank(parents)
	for range generations {
		children := make([]individual, 0, population)
		for len(children) < population {
			a, b := e.tournament(parents), e.tournament(parents)
			labels := slices.Clone(a.labels)
			if e.rng.Float64() < crossover {
				for i := range labels {
					if e.rng.IntN(2) == 0 {
						labels[i] = b.labels[i]
					}
				}
			}
			for i := range labels {
				if e.rng.IntN(h) == 0 {
					labels[i] = e.rng.IntN(max(t.n, a.groups))
				}
			}
			c, err := e.measure(labels)
			if err != nil {
				return nil, err
			}
			children = append(children, c)
		}
		parents = append(parents, children...)
		rank(parents)
		slices.SortStableFunc(parents, better)
		parents = parents[:population]
	}
	if e.best == nil {
		return t.descend()
	}
	return e.best, nil
}

// individual is a chromosome with its objectives and its place among the others.
type individual struct {
	labels   []int
	groups   int
	cost     float64
	front    int
	crowding float64
}

type evolution struct {
	t     *partitionTask
	rng   *rand.Rand
	best  [][]int
	least float64
}

// measure numbers the groups by their first item, repairs them where they are to be equal, and takes the cost.
func (e *evolution) measure(labels []int) (individual, error) {
	if e.t.equal {
		e.repair(labels)
	}
	number := map[int]int{}
	var groups [][]int
	for i, l := range labels {
		g, ok := number[l]
		if !ok {
			g = len(groups)
			number[l] = g
			groups = append(groups, nil)
		}
		labels[i] = g
		groups[g] = append(groups[g], i)
	}
	x := individual{labels: labels, groups: len(groups)}
	for _, g := range groups {
		c, err := e.t.groupCost(g)
		if err != nil {
			return x, err
		}
		x.cost += c
	}
	if len(groups) == e.t.n && x.cost < e.least {
		e.best, e.least = groups, x.cost
	}
	return x, nil
}

// repair moves items from groups that are too large, the last first, to groups that are too small.
func (e *evolution) repair(labels []int) {
	size := len(labels) / e.t.n
	count := make([]int, e.t.n)
	for i, l := range labels {
		labels[i] = l % e.t.n
		count[labels[i]]++
	}
	to := 0
	for i := len(labels) - 1; i >= 0; i-- {
		if count[labels[i]] <= size {
			continue
		}
		for count[to] >= size {
			to++
		}
		count[labels[i]]--
		labels[i] = to
		count[to]++
	}
}

// tournament returns the better of two.
func (e *evolution) tournament(p []individual) individual {
	a, b := p[e.rng.IntN(len(p))], p[e.rng.IntN(len(p))]
	if better(b, a) < 0 {
		return b
	}
	return a
}

// better orders by front, then by how alone an individual is on it.
func better(a, b individual) int {
	return cmp.Or(cmp.Compare(a.front, b.front), cmp.Compare(b.crowding, a.crowding))
}

// rank sets fronts and crowding distances: front f is what nothing dominates when fronts below f are taken away.
func rank(p []individual) {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(p[a].groups, p[b].groups), cmp.Compare(p[a].cost, p[b].cost))
	})
	// In this order only an earlier individual can dominate; with two objectives the least cost on a front decides.
	var lowest []float64
	fronts := [][]int{}
	for _, i := range order {
		f := 0
		for f < len(lowest) && lowest[f] <= p[i].cost {
			f++
		}
		if f == len(lowest) {
			lowest, fronts = append(lowest, p[i].cost), append(fronts, nil)
		}
		lowest[f] = p[i].cost
		p[i].front = f
		fronts[f] = append(fronts[f], i)
	}
	for _, front := range fronts {
		first, last := p[front[0]], p[front[len(front)-1]]
		wide, high := float64(last.groups-first.groups), first.cost-last.cost
		for k, i := range front {
			p[i].crowding = math.Inf(1)
			if k > 0 && k < len(front)-1 && wide > 0 && high > 0 {
				a, b := p[front[k-1]], p[front[k+1]]
				p[i].crowding = float64(b.groups-a.groups)/wide + (a.cost-b.cost)/high
			}
		}
	}
}
