package quant

import (
	"slices"

	"onnx-dha/graph"
)

// Plain turns a quantised model into the float model that it stands for: weights become the numbers that their codes
// stand for, and activations are not rounded any more. only says which nodes are looked at, nil: all.
//
// Whether a model computes the same as another can be seen on their plain forms only where activations are quantised:
// sums in another order differ in the last bit, which can make a code another and so a whole step of the result.
func Plain(m *graph.Model, only func(*graph.Node) bool) error {
	f := graph.Infer(m.Graph)
	p := graph.NewPatch(m.Graph)
	constant := func(t *graph.Tensor, like *graph.Value) *graph.Value {
		elem := f.Elem(like)
		if rounders[elem] == nil || elem == t.DType() {
			return p.Init(t)
		}
		size := int64(graph.ElementBits(elem)/8) * t.Len()
		return p.Init(graph.Computed(t.Name(), elem, t.Dims(), size, func() ([]byte, error) {
			x, err := t.Float64s()
			if err != nil {
				return nil, err
			}
			c, err := graph.FromFloat64s(t.Name(), elem, t.Dims(), x)
			if err != nil {
				return nil, err
			}
			return c.Bytes()
		}))
	}
	for _, n := range slices.Clone(m.Graph.Nodes) {
		if only != nil && !only(n) || len(n.Out) == 0 || n.Out[0] == nil {
			continue
		}
		product, err := ProductOf(f, n)
		if err != nil {
			continue // it stays what it is
		}
		switch {
		case product != nil:
			w := constant(product.Decode(product.Stored[codes].Value().Name+"_plain"), product.Output)
			y := p.Op("MatMul", n.Name+"_plain", []*graph.Value{product.Input, w})
			if product.Bias != nil {
				y = p.Op("Add", n.Name+"_plain_bias", []*graph.Value{y, product.Bias})
			}
			p.Replace(product.Output, y)
		case n.OpType == "DequantizeLinear" && !n.Out[0].IsOutput():
			if t := Numbers(f, n.Out[0]); t != nil {
				p.Replace(n.Out[0], constant(t, n.Out[0]))
			} else if q := n.In[0].Producer; q != nil && q.OpType == "QuantizeLinear" && f.Elem(q.In[0]) == f.Elem(n.Out[0]) {
				p.Replace(n.Out[0], q.In[0])
			}
		}
	}
	keep := m.Graph.Dead()
	if _, err := p.Apply(); err != nil {
		return err
	}
	m.Graph.RemoveDead(keep)
	return nil
}
