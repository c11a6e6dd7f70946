package rewrite

import (
	"cmp"

	"onnx-dha/graph"
)

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
	rank   int // axes of v; 0 stands for axis+3, rows and columns behind merged heads
}

func (w axisView) headAxis() int {
	if w.merged {
		return w.axis + 1
	}
	return w.axis
}

// reshape makes axis and axis+1 the given sizes. The axes behind are copied by position (0), which is why there must be as
// many before: split and merge insert or drop one of size 1 for it.
func (w axisView) reshape(x *graph.Value, name string, first, second int) *graph.Value {
	target := make([]int64, cmp.Or(w.rank, w.axis+3)+1)
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
