package fusion

// costs are those of groups of one kind.
type costs struct {
	cost, rough func(group []int) (float64, error)
	work        func(g int) float64
}

// costs keeps what has been computed; rough is nil for costs that are cheap.
func (s Strategy) costs(p *Problem, k kind, m moments) costs {
	r, name := s.rule(k), s.Name+" "+k.String()
	c := costs{work: func(int) float64 { return 0 }, cost: func(group []int) (float64, error) {
		return p.memo(name, group, func() (float64, error) { return r.cost(p, k, m, group) })
	}}
	if r.pair == nil {
		return c
	}
	c.work = m.work
	pair := func(pair []int) (float64, error) {
		return p.memo(name+" pair", pair, func() (float64, error) { return r.pair(m, pair) })
	}
	c.rough = func(group []int) (float64, error) {
		return p.memo(name+" rough", group, func() (float64, error) { return fromPairs(group, pair) })
	}
	return c
}

// dear reports whether a search would take too long with costs that are all exact.
func (c costs) dear(t *partitionTask) bool {
	heads := 0
	for _, i := range t.items {
		heads += len(i)
	}
	return c.rough != nil && searchWork(c.work, len(t.items), heads, t.n) > exactWork
}
