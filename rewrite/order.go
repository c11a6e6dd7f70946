package rewrite

import (
	"cmp"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// reorderOutput notes that context heads come out in another order, which the output projection can take up; false when
// it cannot.
func (c *core) reorderOutput(order []int) bool {
	if !rowsMove(c.b) || c.b.Output != nil && !c.owns(c.b.Output.Projection) {
		return false
	}
	c.context = order
	return true
}

// neighbours is the order of query heads in which the members of a group are neighbours, group by group of the keys and
// within these of the values.
func (c *core) neighbours() []int {
	k, v := readers(c.b.KeyOf, c.k), readers(c.b.ValueOf, c.v)
	order := natural(c.b.Heads)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(k[a], k[b]), cmp.Compare(v[a], v[b])) })
	return order
}

// canReorder reports whether query heads can be brought into another order offline, in the weights of their projection.
func (c *core) canReorder() bool {
	q := c.b.Query
	return c.owns(q.Projection) && len(q.PerHead) == 0 && !spread(q) && !readElsewhere(c.b) && !slices.ContainsFunc(c.b.PerHead, func(s attention.Side) bool {
		l := c.b.Scores[s.Node.Out[0]]
		return l.Spread || l.Outer != 1 || l.Inner != 1
	})
}

// owns reports whether no other block of the plan takes heads from a projection, or gives it any: a weight is changed for one
// block alone.
func (c *core) owns(p *attention.Projection) bool { return len(c.e.projected[p.Node]) <= 1 }

// reorderQueries brings query heads into an order in which the members of a group are neighbours, where that can be done
// offline. Equal groups only: padding re-orders anyway.
func (c *core) reorderQueries() error {
	order := c.neighbours()
	if !equal(sizes(readers(c.b.KeyOf, c.k), c.k.Heads())) || identity(order) || !c.canReorder() {
		return nil
	}
	// Inputs between the products that differ from head to head are put in the same order.
	for _, s := range c.b.PerHead {
		now := c.e.input(s.Node, s.Input)
		x := c.e.p.Op("Gather", s.Value.Name+"/reordered", []*graph.Value{now, c.e.p.Ints(s.Value.Name+"/order", ints(order)...)}, graph.IntAttr("axis", int64(s.Axis)))
		c.e.setInput(s.Node, s.Input, x)
	}
	c.order = order
	return nil
}

// sizes counts the query heads of each group.
func sizes(of []int, groups int) []int {
	n := make([]int, groups)
	for _, g := range of {
		n[g]++
	}
	return n
}

func equal(s []int) bool {
	return !slices.ContainsFunc(s, func(n int) bool { return n != s[0] })
}

// spread reports whether query heads lie on two axes of some wire.
func spread(p *attention.Path) bool {
	for _, l := range p.Wires {
		if l.Spread {
			return true
		}
	}
	return false
}

// readElsewhere reports whether a wire with query heads, scores or probabilities has a reader outside the block, which
// would see another order.
func readElsewhere(b *attention.Block) bool {
	own := map[*graph.Node]bool{b.QK: true, b.PV: true, b.Softmax: true}
	for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
		for _, n := range slices.Concat(p.Nodes, p.Tails) {
			own[n] = true
		}
	}
	outside := func(v *graph.Value, inside func(*graph.Node) bool) bool {
		return slices.ContainsFunc(v.Users(), func(u graph.Use) bool {
			return u.Node == nil || !u.Node.Is("Shape") && !u.Node.Is("Size") && !own[u.Node] && !inside(u.Node)
		})
	}
	never := func(*graph.Node) bool { return false }
	for w, l := range b.Query.Wires {
		if l.Pure && outside(w, never) {
			return true
		}
	}
	for w := range b.Scores {
		if outside(w, func(n *graph.Node) bool {
			_, ok := b.Scores[n.Out[0]]
			return ok
		}) {
			return true
		}
	}
	return false
}

func natural(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// inverse undoes a permutation.
func inverse(s []int) []int {
	out := make([]int, len(s))
	for i, x := range s {
		out[x] = i
	}
	return out
}

func identity(s []int) bool { return slices.Equal(s, natural(len(s))) }

func ints(s []int) []int64 {
	out := make([]int64, len(s))
	for i, x := range s {
		out[i] = int64(x)
	}
	return out
}
