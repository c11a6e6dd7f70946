package unfuse

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

const (
	float32Type  = onnxpb.TensorProto_FLOAT
	float16Type  = onnxpb.TensorProto_FLOAT16
	bfloat16Type = onnxpb.TensorProto_BFLOAT16
	doubleType   = onnxpb.TensorProto_DOUBLE
	int64Type    = onnxpb.TensorProto_INT64
	boolType     = onnxpb.TensorProto_BOOL
)

type elemType = onnxpb.TensorProto_DataType

// session is what the expansions of one model share.
type session struct {
	m      *graph.Model
	p      *graph.Patch
	facts  *graph.Facts
	opset  int64
	shared map[string]*graph.Value // masks and rotary tables by what they are made of
	// compared are pairs of bodies, by what they compute, and why the one cannot take the place of the other (nil: it can).
	compared map[string]error
	work     int64 // that comparisons may still do
}

// writer prepares the expansion of one node: each method adds a primitive in the form that the model's opset wants.
type writer struct {
	*session
	n       *graph.Node
	base    string
	exp     *Expansion
	lists   map[string]*graph.Value
	derived map[*graph.Value]weight // new constants that are parts of the node's
	places  map[place]int           // which input a node reads where values alone do not tell
	results []shunt
}

// shunt hands the readers of one value to another.
type shunt struct{ old, new *graph.Value }

// in returns input i of the node, nil when it is omitted.
func (w *writer) in(i int) *graph.Value {
	if i < 0 {
		return nil // an input that the operator does not have
	}
	return w.n.Input(i)
}

// wants reports whether somebody reads output i.
func (w *writer) wants(i int) bool {
	return i < len(w.n.Out) && w.n.Out[i] != nil && len(w.n.Out[i].Users()) > 0
}

// result makes v output i of the node. An output of the graph cannot be a value that was there before.
func (w *writer) result(i int, v *graph.Value) {
	if w.wants(i) {
		w.results = append(w.results, shunt{w.n.Out[i], v})
	}
}

// reads notes that an operand of a node is input of of the fused one, which may read the same value elsewhere too.
func (w *writer) reads(n *graph.Node, operand, of int) {
	if w.places == nil {
		w.places = map[place]int{}
	}
	w.places[place{n, operand}] = of
}

// commit hands the readers of the node's outputs to the results.
func (w *writer) commit() {
	taken := map[*graph.Value]bool{}
	w.exp.results = make([]*graph.Value, len(w.n.Out))
	for _, r := range w.results {
		old, v := r.old, r.new
		if old.IsOutput() && (taken[v] || v.Producer == nil || !slices.Contains(w.exp.Nodes, v.Producer)) {
			v = w.op("Identity", v)
		}
		taken[v] = true
		w.exp.results[old.Index] = v
		w.p.Replace(old, v)
	}
	for _, n := range w.exp.Nodes {
		for i, v := range n.In {
			if of, ok := w.places[place{n, i}]; ok {
				w.exp.weights = append(w.exp.weights, weight{reader: n, operand: i, of: of})
			} else if d, ok := w.derived[v]; ok {
				d.reader, d.operand = n, i
				w.exp.weights = append(w.exp.weights, d)
			} else if of := slices.Index(w.exp.inputs, v); v != nil && of >= 0 {
				w.exp.weights = append(w.exp.weights, weight{reader: n, operand: i, of: of})
			}
		}
	}
}

// nodes adds a node with outs outputs.
func (w *writer) nodes(op string, outs int, in []*graph.Value, attrs ...*onnxpb.AttributeProto) []*graph.Value {
	out := w.p.Node(op, "", w.base+"/"+op, outs, in, attrs...)
	w.exp.Nodes = append(w.exp.Nodes, out[0].Producer)
	return out
}

// op adds a node without attributes.
func (w *writer) op(op string, in ...*graph.Value) *graph.Value { return w.nodes(op, 1, in)[0] }

// ints is a constant list of integers.
func (w *writer) ints(x ...int64) *graph.Value { return w.integers([]int64{int64(len(x))}, x) }

// int is a constant scalar integer.
func (w *writer) int(x int64) *graph.Value { return w.integers(nil, []int64{x}) }

func (w *writer) integers(dims, x []int64) *graph.Value {
	if w.lists == nil {
		w.lists = map[string]*graph.Value{}
	}
	id := fmt.Sprint(dims, x)
	if w.lists[id] == nil {
		w.lists[id] = w.p.Init(graph.NewTensor(w.base+"/ints", dims, x))
	}
	return w.lists[id]
}

// number is a constant scalar of a floating-point type.
func (w *writer) number(elem elemType, x float64) (*graph.Value, error) {
	t, err := graph.FromFloat64s(w.base+"/number", elem, nil, []float64{x})
	if err != nil {
		return nil, err
	}
	return w.p.Init(t), nil
}

// axes adds an operator whose axes are an attribute before opset 13 and an input from there on.
func (w *writer) axes(op string, v *graph.Value, axes ...int64) *graph.Value {
	if w.opset < 13 {
		return w.nodes(op, 1, []*graph.Value{v}, graph.IntsAttr("axes", axes...))[0]
	}
	return w.op(op, v, w.ints(axes...))
}

func (w *writer) unsqueeze(v *graph.Value, axes ...int64) *graph.Value {
	return w.axes("Unsqueeze", v, axes...)
}

func (w *writer) squeeze(v *graph.Value, axes ...int64) *graph.Value {
	return w.axes("Squeeze", v, axes...)
}

// reshape takes 0 for a dimension that stays and -1 for the one that is left.
func (w *writer) reshape(v *graph.Value, dims ...int64) *graph.Value {
	return w.op("Reshape", v, w.ints(dims...))
}

func (w *writer) transpose(v *graph.Value, perm ...int64) *graph.Value {
	return w.nodes("Transpose", 1, []*graph.Value{v}, graph.IntsAttr("perm", perm...))[0]
}

func (w *writer) concat(axis int64, v ...*graph.Value) *graph.Value {
	return w.nodes("Concat", 1, v, graph.IntAttr("axis", axis))[0]
}

// split cuts an axis into parts of the given sizes.
func (w *writer) split(v *graph.Value, axis int64, sizes ...int64) []*graph.Value {
	if w.opset < 13 {
		return w.nodes("Split", len(sizes), []*graph.Value{v}, graph.IntAttr("axis", axis), graph.IntsAttr("split", sizes...))
	}
	return w.nodes("Split", len(sizes), []*graph.Value{v, w.ints(sizes...)}, graph.IntAttr("axis", axis))
}

// pick takes index i of an axis, which goes away.
func (w *writer) pick(v *graph.Value, axis, i int64) *graph.Value {
	return w.nodes("Gather", 1, []*graph.Value{v, w.int(i)}, graph.IntAttr("axis", axis))[0]
}

// slice takes every step-th element of an axis from from to to.
func (w *writer) slice(v *graph.Value, axis, from, to, step int64) *graph.Value {
	return w.op("Slice", v, w.ints(from), w.ints(to), w.ints(axis), w.ints(step))
}

// length is the size of an axis, as a scalar.
func (w *writer) length(v *graph.Value, axis int64) *graph.Value {
	return w.pick(w.op("Shape", v), 0, axis)
}

// count is 0, 1, …, n-1.
func (w *writer) count(n *graph.Value) *graph.Value { return w.op("Range", w.int(0), n, w.int(1)) }

func (w *writer) cast(v *graph.Value, to elemType) *graph.Value {
	return w.nodes("Cast", 1, []*graph.Value{v}, graph.IntAttr("to", int64(to)))[0]
}

// as casts v where its type is another.
func (w *writer) as(v *graph.Value, from, to elemType) *graph.Value {
	if from == to {
		return v
	}
	return w.cast(v, to)
}

// errMissing is the error of an operator that lacks an input which it cannot do without.
var errMissing = errors.New("an input that it needs is missing")

// rank returns the number of axes of a value of the graph.
func (w *writer) rank(v *graph.Value) (int, error) {
	if v == nil {
		return 0, errMissing
	}
	shape, ok := w.facts.Shape(v)
	if !ok {
		return 0, fmt.Errorf("the rank of %q is not known", v.Name)
	}
	return len(shape), nil
}

// dim returns a dimension of a value of the graph; it must be a known number.
func (w *writer) dim(v *graph.Value, axis int) (int64, error) {
	if v == nil {
		return 0, errMissing
	}
	shape, ok := w.facts.Shape(v)
	if !ok || axis < 0 || axis >= len(shape) {
		return 0, fmt.Errorf("the shape of %q is not known", v.Name)
	}
	n, ok := shape[axis].Const()
	if !ok || n < 1 {
		return 0, fmt.Errorf("dimension %d of %q is %v; heads can be told apart only where it is a number", axis, v.Name, shape[axis])
	}
	return n, nil
}

// elem returns the element type of a value of the graph, which must be a floating-point type.
func (w *writer) elem(v *graph.Value) (elemType, error) {
	if v == nil {
		return onnxpb.TensorProto_UNDEFINED, errMissing
	}
	switch e := w.facts.Elem(v); e {
	case float32Type, float16Type, bfloat16Type, doubleType:
		return e, nil
	case onnxpb.TensorProto_UNDEFINED:
		return e, fmt.Errorf("the element type of %q is not known", v.Name)
	default:
		return e, fmt.Errorf("the elements of %q are %v, want a floating-point type", v.Name, e)
	}
}

// heads returns the channels of each of n heads.
func heads(what string, hidden, n int64) (int64, error) {
	if n < 1 || hidden%n != 0 {
		return 0, fmt.Errorf("%s has %d channels, which are not %d equal heads", what, hidden, n)
	}
	return hidden / n, nil
}

// toHeads brings [B, S, N·H] into [B, N, S, H].
func (w *writer) toHeads(v *graph.Value, n, h int64) *graph.Value {
	return w.transpose(w.reshape(v, 0, 0, n, h), 0, 2, 1, 3)
}

// fromHeads brings [B, N, S, H] into [B, S, N·H].
func (w *writer) fromHeads(v *graph.Value, n, h int64) *graph.Value {
	return w.reshape(w.transpose(v, 0, 2, 1, 3), 0, 0, n*h)
}

// shape describes a value of the graph in the key of what is shared.
func (s *session) describe(v *graph.Value, axis int) string {
	if shape, ok := s.facts.Shape(v); ok && axis < len(shape) {
		return shape[axis].String()
	}
	return "?" + v.Name
}
