package rewrite

import (
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

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
