package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// Groups of different sizes have no product of one form that suits all lengths. With few rows (a step of decoding) what
// counts is that keys and values are read once and copied never: groups are padded to the largest, or where that wastes too
// much, the groups of each size have a product of their own. With many rows (prefill) padding multiplies the work, and a copy
// of the heads for every query head costs little beside the product.

// product is one of the two products of a core with groups of different sizes.
type product struct {
	c       *core
	n       *graph.Node
	members [][]int // query heads of each group
	of      []int   // group of each query head
	place   []int   // place of each query head on the left operand
	want    []int   // head at each place of the result
	left    axisView
	right   *graph.Value // heads on axis, before the transposes
	axis    int
	after   []*graph.Node // transposes between right and the product
}

// unequalProduct lowers a product with groups of different sizes.
func (c *core) unequalProduct(n *graph.Node, kv change, of []int, members [][]int, first bool) error {
	e, b := c.e, c.b
	q, path := b.Scores[n.In[0]], kv.path
	want := natural(b.Heads)
	if first {
		q, want = b.Query.Wires[n.In[0]], c.order
	}
	p := product{c: c, n: n, members: members, of: of, want: want, place: make([]int, b.Heads)}
	for i, h := range c.order {
		p.place[h] = i
	}
	p.left = axisView{e: e, v: n.In[0], axis: q.Axis, heads: b.Heads, merged: q.Outer > 1, pair: q.Pair}
	l := path.Wires[path.Operand]
	right := axisView{e: e, v: n.In[1], axis: l.Axis, heads: kv.Heads(), merged: l.Outer > 1, single: q.Pair > 0}
	p.right, p.axis = n.In[1], l.Axis
	if right.merged || right.single {
		p.right, p.axis = right.split(), right.headAxis()
	} else {
		for p.right.Producer.Is("Transpose") && p.right.Graph == n.Graph && len(p.right.Producer.In[0].Users()) > 0 {
			t := p.right.Producer
			before, ok := path.Wires[t.In[0]]
			if !ok || before.Outer != 1 || before.Inner != 1 || before.Axis < 0 || t.In[0] == path.Projection.Output {
				break
			}
			p.after, p.right, p.axis = append([]*graph.Node{t}, p.after...), t.In[0], before.Axis
		}
	}
	x := p.left.split()
	few, limit := p.forFewRows(b)
	var out *graph.Value
	shape, _ := e.facts.Shape(n.In[0])
	rows, fixed := shape[len(shape)-2].Const()
	switch {
	case fixed && rows <= limit:
		out = few(x)
	case fixed, b.KeyCache == nil && b.Kind == attention.Self: // as many rows as there are positions
		out = p.expanded(x)
	default:
		out = e.p.If(p.name()+"/by_length", e.facts.Elem(n.In[0]), e.fewRows(n.In[0], len(shape), limit),
			func() *graph.Value { return few(x) }, func() *graph.Value { return p.expanded(x) })
	}
	out = p.left.merge(out, p.name())
	e.p.Replace(n.Out[0], out)
	return nil
}

func (p *product) name() string {
	if p.n.Name == "" {
		return p.n.Out[0].Name
	}
	return p.n.Name
}

// Estimates of what one position and channel of a head cost on a CPU, in units of the last: reading it from a cache that is
// larger than the processor's own memory, copying it (the read and the write; the product reads the copy again), and
// multiplying it with one row of queries. They are orders of magnitude that choose between forms of the same product, not measurements.
const (
	readCost = 10.0
	copyCost = 25.0
	rowCost  = 1.0
)

// forFewRows chooses the form for a step of decoding by its cost, and says up to how many rows it is taken.
func (p *product) forFewRows(b *attention.Block) (form func(*graph.Value) *graph.Value, rows int64) {
	largest, groups := 0, float64(len(p.members))
	for _, m := range p.members {
		largest = max(largest, len(m))
	}
	padded := groups * (readCost + rowCost*float64(largest))
	buckets := groups*(copyCost+readCost) + rowCost*float64(b.Heads)
	if buckets < padded {
		return p.buckets, 1 << 30 // nothing is multiplied in vain
	}
	// Rows at which the padding costs as much as copying a head for every query head.
	wasted := rowCost * (groups*float64(largest) - float64(b.Heads))
	copied := float64(b.Heads)*(copyCost+readCost) - groups*readCost
	return p.padded, max(int64(copied/wasted), 1)
}

// fewRows is whether the left operand of a product has at most limit rows.
func (e *editor) fewRows(v *graph.Value, rank int, limit int64) *graph.Value {
	shape, _ := e.facts.Shape(v)
	key := fmt.Sprintf("%v %d", shape[rank-2], limit)
	if shape[rank-2].Unknown() {
		key = fmt.Sprintf("%p %d", v, limit)
	}
	key = fmt.Sprintf("%p %s", e.of.QK.Graph, key) // bodies hide theirs from one another
	if c := e.short[key]; c != nil {
		return c
	}
	size := e.p.Op("Shape", "/attention/rows", []*graph.Value{v})
	rows := e.p.Op("Gather", "/attention/row_count", []*graph.Value{size, e.scalar("/attention/row_axis", int64(rank-2))}, graph.IntAttr("axis", 0))
	more := e.p.Op("Greater", "/attention/many_rows", []*graph.Value{rows, e.scalar("/attention/row_limit", limit)})
	e.short[key] = e.p.Op("Not", "/attention/few_rows", []*graph.Value{more})
	return e.short[key]
}

// gather takes heads.
func (p *product) gather(x *graph.Value, axis int, what string, index []int) *graph.Value {
	if slices.Equal(index, natural(len(index))) && what != "some" {
		return x
	}
	name := p.name() + "/" + what
	return p.c.e.p.Op("Gather", name, []*graph.Value{x, p.c.e.p.Ints(name+"_index", ints(index)...)}, graph.IntAttr("axis", int64(axis)))
}

// heads are the places of query heads on the left operand.
func (p *product) heads(of []int) []int {
	out := make([]int, len(of))
	for i, h := range of {
		out[i] = p.place[h]
	}
	return out
}

// multiply is the product itself, after the transposes of its right operand.
func (p *product) multiply(x, right *graph.Value) *graph.Value {
	e := p.c.e
	for _, t := range p.after {
		right = e.p.Op("Transpose", t.Name, []*graph.Value{right}, t.Proto.Attribute...)
	}
	return e.p.Op("MatMul", p.name()+"/product", []*graph.Value{x, right})
}

// rowsOf stacks the queries of each group: [.., groups·rep, S, x] → [.., groups, rep·S, x]; apart undoes it.
func (p *product) rowsOf(x *graph.Value, groups int) *graph.Value {
	return p.c.e.p.Op("Reshape", p.name()+"/rows", []*graph.Value{x, p.c.e.p.Ints(p.name()+"/rows_shape", p.left.target(p.left.headAxis(), groups)...)})
}

func (p *product) apart(x *graph.Value, heads int) *graph.Value {
	return p.c.e.p.Op("Reshape", p.name()+"/heads", []*graph.Value{x, p.c.e.p.Ints(p.name()+"/heads_shape", p.left.target(p.left.headAxis(), heads)...)})
}

// back brings heads, which lie in the given order, into the order that is wanted.
func (p *product) back(x *graph.Value, order []int) *graph.Value {
	at := make([]int, len(p.of))
	for i := len(order) - 1; i >= 0; i-- {
		at[order[i]] = i
	}
	index := make([]int, len(p.want))
	for i, h := range p.want {
		index[i] = at[h]
	}
	if len(order) == len(index) {
		return p.gather(x, p.left.headAxis(), "ungroup", index)
	}
	return p.gather(x, p.left.headAxis(), "some", index)
}

// padded makes all groups as large as the largest, short ones by the last member again.
func (p *product) padded(x *graph.Value) *graph.Value {
	rep := 0
	for _, m := range p.members {
		rep = max(rep, len(m))
	}
	var order []int
	for _, m := range p.members {
		for r := range rep {
			order = append(order, m[min(r, len(m)-1)])
		}
	}
	x = p.rowsOf(p.gather(x, p.left.headAxis(), "some", p.heads(order)), len(p.members))
	return p.back(p.apart(p.multiply(x, p.right), len(order)), order)
}

// buckets has a product for the groups of each size.
func (p *product) buckets(x *graph.Value) *graph.Value {
	bySize := map[int][]int{}
	var all []int
	for g, m := range p.members {
		if bySize[len(m)] == nil {
			all = append(all, len(m))
		}
		bySize[len(m)] = append(bySize[len(m)], g)
	}
	slices.Sort(all)
	var parts []*graph.Value
	var order []int
	for _, size := range all {
		groups := bySize[size]
		var heads []int
		for _, g := range groups {
			heads = append(heads, p.members[g]...)
		}
		q := p.gather(x, p.left.headAxis(), "some", p.heads(heads))
		if size > 1 {
			q = p.rowsOf(q, len(groups))
		}
		y := p.multiply(q, p.gather(p.right, p.axis, "some", groups))
		if size > 1 {
			y = p.apart(y, len(heads))
		}
		parts, order = append(parts, y), append(order, heads...)
	}
	y := parts[0]
	if len(parts) > 1 {
		y = p.c.e.p.Op("Concat", p.name()+"/sizes", parts, graph.IntAttr("axis", int64(p.left.headAxis())))
	}
	return p.back(y, order)
}

// expanded copies the head of its group for every query head.
func (p *product) expanded(x *graph.Value) *graph.Value {
	index := make([]int, len(p.of))
	for h, g := range p.of {
		index[p.place[h]] = g
	}
	return p.back(p.multiply(x, p.gather(p.right, p.axis, "some", index)), p.c.order)
}
