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

// groupedProduct lowers one product. of is the group of each query head. After the first product the heads come out in
// the order in which they went in (c.order), after the second in their natural order.
func (c *core) groupedProduct(n *graph.Node, kv change, of []int, first bool) error {
	e, b := c.e, c.b
	groups := kv.Heads()
	want := natural(b.Heads)
	q := b.Scores[n.In[0]]
	if first {
		want = c.order
		q = b.Query.Wires[n.In[0]]
	}
	if groups == b.Heads && identity(of) && identity(c.order) || !kv.touched && q.Pair > 0 {
		return nil // as many heads as queries, or broadcast already
	}
	members := make([][]int, groups)
	for _, h := range c.order {
		members[of[h]] = append(members[of[h]], h)
	}
	rep := 0
	for _, m := range members {
		rep = max(rep, len(m))
	}
	if rep*groups != b.Heads {
		return c.unequalProduct(n, kv, of, members, first)
	}
	// The heads on the rows of the product, group by group.
	var rowsOf []int
	slot := make([]int, b.Heads)
	for g, m := range members {
		for r := range rep {
			slot[m[r]] = g*rep + r
			rowsOf = append(rowsOf, m[r])
		}
	}
	name := n.Name
	if name == "" {
		name = n.Out[0].Name
	}
	kl := kv.path.Wires[kv.path.Operand]
	in := axisView{e: e, v: n.In[0], axis: q.Axis, heads: b.Heads, merged: q.Outer > 1, pair: q.Pair}
	axis := in.headAxis()
	gather := func(x *graph.Value, what string, idx []int) *graph.Value {
		return e.p.Op("Gather", name+"/"+what, []*graph.Value{x, e.p.Ints(name+"/"+what+"_index", ints(idx)...)}, graph.IntAttr("axis", int64(axis)))
	}

	// In: [.., H, S, x] → [.., G, r·S, x].
	x := in.split()
	if !slices.Equal(rowsOf, c.order) {
		place := make([]int, b.Heads)
		for i, h := range c.order {
			place[h] = i
		}
		take := make([]int, len(rowsOf))
		for i, h := range rowsOf {
			take[i] = place[h]
		}
		x = gather(x, "group", take)
	}
	if rep > 1 {
		x = e.p.Op("Reshape", name+"/rows", []*graph.Value{x, e.p.Ints(name+"/rows_shape", in.target(axis, groups)...)})
	}
	right := axisView{e: e, v: n.In[1], axis: kl.Axis, heads: groups, merged: kl.Outer > 1, single: q.Pair > 0}

	// Out: the original node stays the product, unless it is left to the branches of an If; what it gives is regrouped for
	// its readers.
	out := n.Out[0]
	z := out
	operand := c.operand(n, kv.path, right)
	if f := (&product{c: c, n: n, first: first, right: operand}).inPieces(rep); f != nil {
		z = f.multiply(x)
	} else {
		e.p.SetInput(n, 0, x)
		if operand.moved {
			e.p.SetInput(n, 1, operand.turned(e, operand.v, name))
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
		step(e.p.Op("Reshape", name+"/heads", []*graph.Value{z, e.p.Ints(name+"/heads_shape", in.target(axis, groups*rep)...)}))
	}
	if !slices.Equal(rowsOf, want) && (first || !c.reorderOutput(rowsOf)) {
		idx := make([]int, len(want))
		for i, h := range want {
			idx[i] = slot[h]
		}
		step(gather(z, "ungroup", idx))
	}
	in.mergeSteps(z, name, step)
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
