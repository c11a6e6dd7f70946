package rewrite

import (
	"slices"

	"onnx-dha/graph"
)

// product is one of the two products of a core, of queries and keys or of probabilities and values.
type product struct {
	c       *core
	n       *graph.Node
	first   bool    // queries and keys
	members [][]int // query heads of each group
	of      []int   // group of each query head
	place   []int   // place of each query head on the left operand
	want    []int   // head at each place of the result
	left    axisView
	right   operand
	pieces  *pieces // of padded groups, nil where they are multiplied by rows alone
}

// newProduct describes the product n with the heads of kv. of is the group of each query head. After the first product the
// heads come out in the order in which they went in (c.order), after the second in their natural order.
func (c *core) newProduct(n *graph.Node, kv change, of []int, first bool) *product {
	b := c.b
	p := &product{c: c, n: n, first: first, members: make([][]int, kv.Heads()), of: of, want: natural(b.Heads), place: make([]int, b.Heads)}
	q := b.Scores[n.In[0]]
	if first {
		q, p.want = b.Query.Wires[n.In[0]], c.order
	}
	for i, h := range c.order {
		p.members[of[h]] = append(p.members[of[h]], h)
		p.place[h] = i
	}
	p.left = axisView{e: c.e, v: n.In[0], axis: q.Axis, heads: b.Heads, merged: q.Outer > 1, pair: q.Pair}
	l := kv.path.Wires[kv.path.Operand]
	p.right = c.operand(n, kv.path, axisView{e: c.e, v: n.In[1], axis: l.Axis, heads: kv.Heads(), merged: l.Outer > 1, single: q.Pair > 0})
	return p
}

func (p *product) name() string {
	if p.n.Name == "" {
		return p.n.Out[0].Name
	}
	return p.n.Name
}

// largest is the number of query heads of the largest group.
func (p *product) largest() int {
	n := 0
	for _, m := range p.members {
		n = max(n, len(m))
	}
	return n
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
	return e.p.Op("MatMul", p.name()+"/product", []*graph.Value{x, p.right.turned(e, right, p.name())})
}

// rowsOf stacks the queries of each group: [.., groups·rep, S, x] → [.., groups, rep·S, x]; apart undoes it.
func (p *product) rowsOf(x *graph.Value, groups int) *graph.Value {
	return p.c.e.p.Op("Reshape", p.name()+"/rows", []*graph.Value{x, p.c.e.p.Ints(p.name()+"/rows_shape", p.left.target(p.left.headAxis(), groups)...)})
}

func (p *product) apart(x *graph.Value, heads int) *graph.Value {
	return p.c.e.p.Op("Reshape", p.name()+"/heads", []*graph.Value{x, p.c.e.p.Ints(p.name()+"/heads_shape", p.left.target(p.left.headAxis(), heads)...)})
}
