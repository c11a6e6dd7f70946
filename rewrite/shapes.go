package rewrite

import (
	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Several parts of a rewrite change the same shape: one the number of heads, another that of positions. Each starts from
// what the one before has left.

// correct hands the readers of a shape to what f makes of the shape as they see it now. f returns the nodes that read what
// it was given, too.
func (e *editor) correct(shape *graph.Value, f func(now *graph.Value) (*graph.Value, []*graph.Node)) {
	now := shape
	if v := e.corrected[shape]; v != nil {
		now = v
	}
	v, reads := f(now)
	e.p.Replace(now, v, reads...)
	e.corrected[shape] = v
}

// setTarget gives a Reshape or Expand another target.
func (e *editor) setTarget(n *graph.Node, v *graph.Value) {
	e.targets[n] = v
	e.p.SetInput(n, 1, v)
}

// target is the target of a Reshape or Expand as it is by now.
func (e *editor) target(n *graph.Node) *graph.Value {
	if v := e.targets[n]; v != nil {
		return v
	}
	return n.Input(1)
}

// typeOf is a copy of the declared type of a value as it is by now.
func (e *editor) typeOf(v *graph.Value) *onnxpb.TypeProto {
	t := e.types[v]
	if t == nil {
		t = v.Info.GetType()
	}
	return proto.Clone(t).(*onnxpb.TypeProto)
}

func (e *editor) setType(v *graph.Value, t *onnxpb.TypeProto) {
	e.types[v] = t
	e.p.SetType(v, t)
}

// replaceEntry returns a shape of the given size with value (one element) in place of entry at, and the nodes that read
// the old shape.
func (e *editor) replaceEntry(shape *graph.Value, size, at int, value *graph.Value, name string) (*graph.Value, []*graph.Node) {
	var parts []*graph.Value
	var reads []*graph.Node
	piece := func(from, to int) {
		if from >= to {
			return
		}
		var idx []int64
		for i := from; i < to; i++ {
			idx = append(idx, int64(i))
		}
		v := e.p.Op("Gather", name+"/part", []*graph.Value{shape, e.p.Ints(name+"/entries", idx...)}, graph.IntAttr("axis", 0))
		parts, reads = append(parts, v), append(reads, v.Producer)
	}
	piece(0, at)
	parts = append(parts, value)
	piece(at+1, size)
	return e.p.Op("Concat", name, parts, graph.IntAttr("axis", 0)), reads
}

// setInput gives a node another input, and input is what the node has by now.
func (e *editor) setInput(n *graph.Node, i int, v *graph.Value) {
	e.inputs[graph.Use{Node: n, Index: i}] = v
	e.p.SetInput(n, i, v)
}

func (e *editor) input(n *graph.Node, i int) *graph.Value {
	if v := e.inputs[graph.Use{Node: n, Index: i}]; v != nil {
		return v
	}
	return n.Input(i)
}
