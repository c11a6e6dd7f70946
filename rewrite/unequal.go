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

// unequal lowers a product with groups of different sizes.
func (p *product) unequal() error {
	e, b, n := p.c.e, p.c.b, p.n
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

// What a head costs in the products of a step of decoding on a CPU: processor cycles for 16 float32 of it, fitted to
// BenchmarkForms (docs/benchmarks.md) on two cores of 2.6 GHz.
const (
	keysCost   = 23.0 // streaming keys from memory and packing them for a product of several rows
	valuesCost = 26.0 // and values
	rowCost    = 0.8  // each row
	copyCost   = 8.5  // copying the head before
	pieceCost  = 16.5 // streaming the head for products of one row with pieces of it
	queryCost  = 2.4  // each of these, which finds its piece in the processor's own memory
)

// rowsCost and piecesCost are the costs of a head with the given number of query rows.
func (p *product) rowsCost(rows int) float64 {
	if p.first {
		return keysCost + rowCost*float64(rows)
	}
	return valuesCost + rowCost*float64(rows)
}

func (p *product) piecesCost(rows int) float64 {
	return pieceCost + queryCost*float64(rows)
}

// forFewRows chooses the form for a step of decoding by its cost, and says up to how many rows it is taken.
func (p *product) forFewRows(b *attention.Block) (form func(*graph.Value) *graph.Value, rows int64) {
	largest, groups, heads := p.largest(), float64(len(p.members)), float64(b.Heads)
	padded := groups * p.rowsCost(largest)
	buckets := groups*(copyCost+p.rowsCost(0)) + rowCost*heads
	if buckets < padded {
		return p.buckets, 1 << 30 // nothing is multiplied in vain
	}
	// Rows at which the padding costs as much as copying a head for every query head.
	wasted := rowCost * (groups*float64(largest) - heads)
	copied := heads*(copyCost+p.rowsCost(0)) - groups*p.rowsCost(0)
	p.pieces = p.inPieces(largest)
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
	rep := p.largest()
	var order []int
	for _, m := range p.members {
		for r := range rep {
			order = append(order, m[min(r, len(m)-1)])
		}
	}
	x = p.rowsOf(p.gather(x, p.left.headAxis(), "some", p.heads(order)), len(p.members))
	if p.pieces != nil {
		return p.back(p.pieces.multiply(x), order)
	}
	return p.back(p.apart(p.multiply(x, p.right.v), len(order)), order)
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
		y := p.multiply(q, p.gather(p.right.v, p.right.axis, "some", groups))
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
	return p.back(p.multiply(x, p.gather(p.right.v, p.right.axis, "some", index)), p.c.order)
}
