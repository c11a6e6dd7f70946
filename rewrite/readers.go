package rewrite

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// readers lets those who read heads outside the block see as many as before, each the fused head of its group: keys that
// a product with positions reads too, or those of another layer that shares them. bypassed are the nodes that repeat
// heads, which nothing reads any more.
func (e *editor) readers(c change, bypassed map[*graph.Node]bool) error {
	for _, r := range c.path.Readers {
		from := r.Value
		switch {
		case from == c.path.Repeat && c.single:
			from = e.singleHeads(c.path)
		case bypassed[from.Producer]:
			return fmt.Errorf("%v reads %q, where heads are half repeated", r.Node, from.Name)
		}
		back := e.p.In(r.Node.Graph)
		x, err := e.allHeads(c, r, from)
		if err != nil {
			back()
			return err
		}
		e.p.SetInput(r.Node, r.Input, x)
		back()
	}
	return nil
}

// allHeads is what reader r reads of a wire as many heads as before. Where they are merged with a batch of any size on their
// axis, they are taken on an axis of their own.
func (e *editor) allHeads(c change, r attention.Side, from *graph.Value) (*graph.Value, error) {
	l := c.path.Wires[r.Value]
	shape, ok := e.facts.Shape(r.Value)
	if !ok {
		return nil, fmt.Errorf("%v reads %q, whose shape is not known", r.Node, r.Value.Name)
	}
	name := from.Name + "/all_heads"
	take := func(x *graph.Value, axis int, l attention.Layout) *graph.Value {
		return e.p.Op("Gather", name, []*graph.Value{x, e.p.Ints(name+"_index", c.original(l)...)}, graph.IntAttr("axis", int64(axis)))
	}
	if n, fixed := shape[r.Axis].Const(); l.Outer == 1 || fixed && n == int64(l.Len()) {
		return take(from, r.Axis, l), nil
	}
	l.Outer = 1 // the number of batches that was sampled
	w := axisView{e: e, v: from, axis: r.Axis, heads: c.resized(l).Len(), merged: true, rank: len(shape)}
	return w.merge(take(w.split(), w.headAxis(), l), name), nil
}

// original lists, for every index of an axis that had layout l, where it is found after the change.
func (c change) original(l attention.Layout) []int64 {
	next, m := c.resized(l), c.Map()
	var index []int64
	for o := range l.Outer {
		for h := range l.Heads {
			for rep := range l.Repeat {
				for i := range l.Inner {
					index = append(index, int64(((o*next.Heads+m[h])*next.Repeat+min(rep, next.Repeat-1))*l.Inner+i))
				}
			}
		}
	}
	return index
}

// singleHeads is the wire on which each head occurs once, in the form that repeated heads have.
func (e *editor) singleHeads(p *attention.Path) *graph.Value {
	if p.Squeeze == 0 {
		return p.Single
	}
	return e.squeeze(p.Single, p.Single.Name+"/single", p.Squeeze)
}
