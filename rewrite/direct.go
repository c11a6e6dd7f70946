package rewrite

import (
	"fmt"

	"onnx-dha/graph"
)

// direct brings the columns of a projection of one path's own, group by group, into the form of the path's entry: the
// axes of the projection's input but the last, then heads and channels. Biases that were added before the entry are added
// here, in the same order of columns.
func (e *editor) direct(c change, v *graph.Value, biases rows) (*graph.Value, error) {
	p := c.path
	for _, b := range p.Biases {
		if _, after := p.Wires[b.Node.Out[0]]; after {
			continue
		}
		t := b.Tensor
		if t.Len() != int64(p.Projection.Columns) || t.Dims()[b.Axis] != t.Len() || b.Node.Is("Sub") {
			return nil, fmt.Errorf("the bias %q does not have one entry per column", b.Value.Name)
		}
		m, err := mix(t, b.Axis, biases)
		if err != nil {
			return nil, err
		}
		v = e.p.Op("Add", b.Node.Name, []*graph.Value{v, e.p.Init(named(m, b.Value.Name))})
	}
	l := c.resized(p.Wires[p.Entry])
	shape, ok := e.facts.Shape(p.Entry)
	if !ok {
		return nil, fmt.Errorf("the shape of %q is not known", p.Entry.Name)
	}
	target := make([]int64, len(shape)) // 0: as it is
	target[l.Axis] = int64(l.Len())
	if l.Axis == len(shape)-2 {
		target[l.Axis+1] = int64(len(p.Columns[0]))
	}
	name := p.Entry.Name + "/own"
	return e.p.Op("Reshape", name, []*graph.Value{v, e.p.Ints(name+"_shape", target...)}), nil
}
