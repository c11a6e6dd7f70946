package rewrite

import (
	"cmp"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// A core is one attention block on its way to a lowered form. After the fusion of heads the key and value operands of
// the two products carry fewer heads than the queries; a lowering makes the products fit.
type core struct {
	e    *editor
	b    *attention.Block
	k, v change
	// order is the query head at each place between the products, the natural order unless queries were re-ordered, and
	// context the one at each place of the output projection's input.
	order, context []int
	buffered       bool    // the products cover a buffer, filled or not
	factor         float64 // on the query projection; 0 stands for 1
}

// lowering is one form of an attention core.
type lowering struct {
	// fits reports whether the form can hold the block; expand holds every block.
	fits func(*core) bool
	// single says that repeated key/value heads are bypassed even where no head is fused.
	single bool
	// reorder lets query heads be re-ordered offline so that the members of a group are neighbours.
	reorder bool
	apply   func(*core) error
}

// lowerings is the table of forms. A new lowering is a row.
var lowerings = map[fusion.Lowering]lowering{
	fusion.Grouped:     {(*core).fitsGrouped, true, true, (*core).grouped},
	fusion.Expand:      {func(*core) bool { return true }, false, false, (*core).expand},
	fusion.StaticCache: {func(*core) bool { return true }, true, true, (*core).inPlace},
}

// readers returns, for each query head, the fused head it reads.
func readers(of []int, c change) []int {
	m := c.Map()
	out := make([]int, len(of))
	for h, kv := range of {
		out[h] = m[kv]
	}
	return out
}

// expand gives every query head its own copy of the fused head it reads, by a Gather in front of each product.
func (c *core) expand() error {
	for _, s := range []struct {
		n      *graph.Node
		change change
		q      attention.Layout
		of     []int
		what   string
	}{
		{c.b.QK, c.k, c.b.Query.Wires[c.b.QK.In[0]], readers(c.b.KeyOf, c.k), "keys"},
		{c.b.PV, c.v, c.b.Scores[c.b.PV.In[0]], readers(c.b.ValueOf, c.v), "values"},
	} {
		l := s.change.path.Wires[s.change.path.Operand]
		if !s.change.touched || s.change.Heads() == c.b.Heads && identity(s.of) || l.Axis < 0 {
			continue
		}
		pair := s.q.Pair
		w := axisView{e: c.e, v: s.n.In[1], axis: l.Axis, heads: s.change.Heads(), merged: l.Outer > 1, single: pair > 0}
		name := s.n.Name + "/" + s.what
		x := c.e.p.Op("Gather", name+"_expand", []*graph.Value{w.split(), c.e.p.Ints(name+"_index", ints(s.of)...)}, graph.IntAttr("axis", int64(w.headAxis())))
		// The copies take the form of the queries.
		w.single, w.pair, w.heads = false, pair, c.b.Heads
		c.e.p.SetInput(s.n, 1, w.merge(x, name))
	}
	return nil
}

// grouped makes the queries of one group the rows of one product, so that nothing is expanded:
//
//	Q [B, H, S, d] → [B, G, r·S, d] × Kᵀ [B, G, d, T] → [B, G, r·S, T] → [B, H, S, T]
//
// and likewise for values. Groups of different sizes are padded to the largest by a Gather and compacted after the
// product; heads whose groups are not contiguous are re-ordered in the query and output projections, or by the same
// Gather where the projections cannot be touched.
func (c *core) grouped() error {
	if err := c.groupedProduct(c.b.QK, c.k, readers(c.b.KeyOf, c.k), true); err != nil {
		return err
	}
	return c.groupedProduct(c.b.PV, c.v, readers(c.b.ValueOf, c.v), false)
}

// fitsGrouped reports whether the operands of both products have the form [.., H, rows, cols] that grouping needs: the
// heads next to the rows, on the same axis on both sides.
func (c *core) fitsGrouped() bool {
	fits := func(n *graph.Node, q attention.Layout, p *attention.Path) bool {
		l := p.Wires[p.Operand]
		left, ok1 := c.e.facts.Shape(n.In[0])
		right, ok2 := c.e.facts.Shape(n.In[1])
		if !ok1 || !ok2 || q.Inner != 1 {
			return false
		}
		if q.Pair > 0 { // [.., KV, queries of one, rows, cols] and [.., KV, 1, rows, cols]
			one, ok := right[min(l.Axis+1, len(right)-1)].Const()
			return len(left) == len(right) && q.Axis == len(left)-4 && l.Axis == q.Axis && l.Inner == 1 && ok && one == 1
		}
		if q.Spread || q.Axis != len(left)-3 {
			return false
		}
		return l.Axis < 0 || len(left) == len(right) && l.Axis == q.Axis && l.Inner == 1 && l.Outer == q.Outer
	}
	return fits(c.b.QK, c.b.Query.Wires[c.b.QK.In[0]], c.b.Key) && fits(c.b.PV, c.b.Scores[c.b.PV.In[0]], c.b.Value)
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
	padded := rep*groups != b.Heads
	// The heads on the rows of the product, group by group, the last member repeated in short groups.
	var rowsOf []int
	slot := make([]int, b.Heads)
	for g, m := range members {
		for r := range rep {
			h := m[min(r, len(m)-1)]
			if r < len(m) {
				slot[h] = g*rep + r
			}
			rowsOf = append(rowsOf, h)
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
	e.p.SetInput(n, 0, x)
	e.p.SetInput(n, 1, axisView{e: e, v: n.In[1], axis: kl.Axis, heads: groups, merged: kl.Outer > 1, single: q.Pair > 0}.split())

	// Out: the original node stays the product; what it gives is regrouped for its readers.
	out := n.Out[0]
	var z *graph.Value = out
	var reader []*graph.Node
	step := func(v *graph.Value) {
		if z == out {
			reader = append(reader, v.Producer)
		}
		z = v
	}
	if rep > 1 {
		step(e.p.Op("Reshape", name+"/heads", []*graph.Value{z, e.p.Ints(name+"/heads_shape", in.target(axis, groups*rep)...)}))
	}
	if padded || !slices.Equal(rowsOf, want) && (first || !c.reorderOutput(rowsOf)) {
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

// reorderOutput notes that context heads come out in another order, which the output projection can take up; false when
// it cannot.
func (c *core) reorderOutput(order []int) bool {
	if c.b.Output == nil {
		return false
	}
	c.context = order
	return true
}

// reorderQueries decides the order of query heads between the products so that the members of a group are neighbours,
// and re-orders the query projection for it where that can be done offline. Equal groups only: padding re-orders anyway.
func (c *core) reorderQueries() error {
	c.order = natural(c.b.Heads)
	k, v := readers(c.b.KeyOf, c.k), readers(c.b.ValueOf, c.v)
	order := natural(c.b.Heads)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Or(cmp.Compare(k[a], k[b]), cmp.Compare(v[a], v[b])) })
	size := make([]int, c.k.Heads())
	for _, g := range k {
		size[g]++
	}
	equal := !slices.ContainsFunc(size, func(n int) bool { return n != size[0] })
	q := c.b.Query
	if !equal || c.k.Heads() == c.b.Heads || slices.Equal(order, c.order) || len(q.PerHead) > 0 || spread(q) || readElsewhere(c.b) {
		return nil
	}
	// Inputs between the products that differ from head to head are put in the same order.
	for _, s := range c.b.PerHead {
		l := c.b.Scores[s.Node.Out[0]]
		if l.Spread || l.Outer != 1 || l.Inner != 1 {
			return nil
		}
	}
	for _, s := range c.b.PerHead {
		now := c.e.input(s.Node, s.Input)
		x := c.e.p.Op("Gather", s.Value.Name+"/reordered", []*graph.Value{now, c.e.p.Ints(s.Value.Name+"/order", ints(order)...)}, graph.IntAttr("axis", int64(s.Axis)))
		c.e.setInput(s.Node, s.Input, x)
	}
	c.order = order
	return nil
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

// axisView looks at a wire as [.., heads, rows, cols]. Heads that are merged with the batch ([.., batch·heads, rows, cols])
// or lie on a pair of axes ([.., key/value head, query head within it, rows, cols]) are brought onto an axis of their own
// and back; a single axis of size 1 behind the heads, which a pair is broadcast against, is dropped. All other wires are
// left alone.
type axisView struct {
	e      *editor
	v      *graph.Value
	axis   int
	heads  int
	merged bool
	pair   int // size of the second axis of a pair, 0 without one
	single bool
}

func (w axisView) headAxis() int {
	if w.merged {
		return w.axis + 1
	}
	return w.axis
}

// reshape makes axis and axis+1 the given sizes. The two axes behind are copied by position (0), which is why there must
// be two before as well: split and merge insert or drop one of size 1 for it.
func (w axisView) reshape(x *graph.Value, name string, first, second int) *graph.Value {
	target := make([]int64, w.axis+4)
	target[w.axis], target[w.axis+1] = int64(first), int64(second)
	return w.e.p.Op("Reshape", name, []*graph.Value{x, w.e.p.Ints(name+"_shape", target...)})
}

// split gives the heads an axis of their own.
func (w axisView) split() *graph.Value {
	name := w.v.Name
	switch {
	case w.single:
		return w.e.squeeze(w.v, name+"/split", w.axis+1)
	case w.pair > 0:
		return w.e.squeeze(w.reshape(w.v, name+"/split_heads", 1, w.heads), name+"/split", w.axis)
	case w.merged:
		return w.reshape(w.e.unsqueeze(w.v, name+"/split", w.axis), name+"/split_heads", -1, w.heads)
	}
	return w.v
}

// mergeSteps undoes split, telling step each new value.
func (w axisView) mergeSteps(x *graph.Value, name string, step func(*graph.Value)) {
	switch {
	case w.pair > 0:
		x = w.e.unsqueeze(x, name+"/merge", w.axis)
		step(x)
		step(w.reshape(x, name+"/merge_heads", w.heads/w.pair, w.pair))
	case w.merged:
		x = w.reshape(x, name+"/merge_heads", -1, 1)
		step(x)
		step(w.e.squeeze(x, name+"/merge", w.axis+1))
	}
}

// merge undoes split.
func (w axisView) merge(x *graph.Value, name string) *graph.Value {
	w.mergeSteps(x, name, func(v *graph.Value) { x = v })
	return x
}

// target is a Reshape target that copies all axes but the heads and the rows behind them.
func (w axisView) target(axis, heads int) []int64 {
	t := make([]int64, axis+3)
	t[axis], t[axis+1] = int64(heads), -1
	return t
}

// unsqueeze and squeeze take their axes in the form of the model's opset.
func (e *editor) unsqueeze(v *graph.Value, name string, axis int) *graph.Value {
	return e.withAxes("Unsqueeze", v, name, axis)
}

func (e *editor) squeeze(v *graph.Value, name string, axis int) *graph.Value {
	return e.withAxes("Squeeze", v, name, axis)
}

func (e *editor) withAxes(op string, v *graph.Value, name string, axis int) *graph.Value {
	if e.opset < 13 {
		return e.p.Op(op, name, []*graph.Value{v}, graph.IntsAttr("axes", int64(axis)))
	}
	return e.p.Op(op, name, []*graph.Value{v, e.p.Ints(name+"_axes", int64(axis))})
}

func natural(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

func identity(s []int) bool { return slices.Equal(s, natural(len(s))) }

func ints(s []int) []int64 {
	out := make([]int64, len(s))
	for i, x := range s {
		out[i] = int64(x)
	}
	return out
}
