package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// grouped makes the queries of one group the rows of one product, so that nothing is expanded:
//
//	Q [B, H, S, d] → [B, G, r·S, d] × Kᵀ [B, G, d, T] → [B, G, r·S, T] → [B, H, S, T]
//
// and likewise for values. Heads whose groups are not contiguous are re-ordered in the query and output projections, or by
// a Gather where the projections cannot be touched. Groups of different sizes are lowered by unequalProduct.
func (c *core) grouped() error {
	if err := c.groupedProduct(c.b.QK, c.k, readers(c.b.KeyOf, c.k), true); err != nil {
		return err
	}
	return c.groupedProduct(c.b.PV, c.v, readers(c.b.ValueOf, c.v), false)
}

// misfitGrouped says why the operands of both products do not have the form [.., H, rows, cols] that grouping needs: the
// heads next to the rows, on the same axis on both sides.
func (c *core) misfitGrouped() string {
	for _, s := range []struct {
		n    *graph.Node
		q    attention.Layout
		path *attention.Path
	}{{c.b.QK, c.b.Query.Wires[c.b.QK.In[0]], c.b.Key}, {c.b.PV, c.b.Scores[c.b.PV.In[0]], c.b.Value}} {
		l := s.path.Wires[s.path.Operand]
		left, ok1 := c.e.facts.Shape(s.n.In[0])
		right, ok2 := c.e.facts.Shape(s.n.In[1])
		fits := ok1 && ok2 && s.q.Inner == 1
		switch {
		case !fits:
		case s.q.Pair > 0: // [.., KV, queries of one, rows, cols] and [.., KV, 1, rows, cols]
			one, ok := right[min(l.Axis+1, len(right)-1)].Const()
			fits = len(left) == len(right) && s.q.Axis == len(left)-4 && l.Axis == s.q.Axis && l.Inner == 1 && ok && one == 1
		case s.q.Spread || s.q.Axis != len(left)-3:
			fits = false
		default:
			fits = len(left) == len(right) && l.Axis == s.q.Axis && l.Inner == 1 && l.Outer == s.q.Outer
			if l.Axis < 0 { // one head, which the product repeats: nothing before it may
				fits = len(right) < 3 || right[len(right)-3].Equal(graph.Int(1))
			}
		}
		if !fits {
			return fmt.Sprintf("the heads of %v do not lie next to its rows on both sides", s.n)
		}
	}
	return ""
}

// groupedProduct lowers one product. of is the group of each query head.
func (c *core) groupedProduct(n *graph.Node, kv change, of []int, first bool) error {
	e, b := c.e, c.b
	pair := b.Scores[n.In[0]].Pair
	if first {
		pair = b.Query.Wires[n.In[0]].Pair
	}
	if kv.Heads() == b.Heads && identity(of) && identity(c.order) || !kv.touched && pair > 0 {
		return nil // as many heads as queries, or broadcast already
	}
	p := c.newProduct(n, kv, of, first)
	rep := p.largest()
	if rep*kv.Heads() != b.Heads {
		return p.unequal()
	}
	// The heads on the rows of the product, group by group.
	rowsOf := slices.Concat(p.members...)
	slot := make([]int, b.Heads)
	for i, h := range rowsOf {
		slot[h] = i
	}

	// In: [.., H, S, x] → [.., G, r·S, x].
	x := p.gather(p.left.split(), p.left.headAxis(), "group", p.heads(rowsOf))
	if rep > 1 {
		x = p.rowsOf(x, kv.Heads())
	}

	// Out: the original node stays the product, unless it is left to the branches of an If; what it gives is regrouped for
	// its readers.
	out := n.Out[0]
	z := out
	if f := p.inPieces(rep); f != nil {
		z = f.multiply(x)
	} else {
		e.p.SetInput(n, 0, x)
		if p.right.moved {
			e.p.SetInput(n, 1, p.right.turned(e, p.right.v, p.name()))
		}
	}
	var reader []*graph.Node
	step := func(v *graph.Value) {
		if z == out {
			reader = append(reader, v.Producer)
		}
		z = v
	}
	if rep > 1 && z == out {
		step(p.apart(z, b.Heads))
	}
	if !slices.Equal(rowsOf, p.want) && (first || !c.reorderOutput(rowsOf)) {
		idx := make([]int, len(p.want))
		for i, h := range p.want {
			idx[i] = slot[h]
		}
		step(p.gather(z, p.left.headAxis(), "ungroup", idx))
	}
	p.left.mergeSteps(z, p.name(), step)
	if z != out {
		e.p.Replace(out, z, reader...)
	}
	if shape, ok := e.facts.Shape(out); ok {
		if first && c.buffered {
			shape = slices.Clone(shape)
			shape[len(shape)-1] = graph.Sym("?buffer")
		}
		e.p.Expect(z, shape)
	}
	return nil
}
