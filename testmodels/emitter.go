package testmodels

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// wire is a value of the graph under construction.
type wire = *graph.Value

// emitter appends nodes to a graph under the naming habits of one exporter. Its methods are the operators in the form
// that the opset wants (axes as attributes before opset 13) and the idioms that TorchScript writes around them.
type emitter struct {
	g      *graph.Graph
	o      Options
	a      *arch
	w      bank
	habits habits
	scope  string // of the module being emitted, "/model/layers.0/self_attn"
	rename string // name of the next node's output; empty leaves it to the habits
}

// habits names nodes and values, and says where constants live.
type habits interface {
	// node names the next node of type op in a scope.
	node(scope, op string) string
	// value names output i of the node called node.
	value(node, op string, i int) string
	// constant makes a constant. user is the operator that will read it.
	constant(e *emitter, user string, t *graph.Tensor) wire
	// vector makes a scalar size a one-element vector.
	vector(e *emitter, s wire) wire
	// weight names the initializer of a parameter that op reads transposed or otherwise folded, as torch does not keep
	// the parameter's own name then.
	weight(op string) string
}

func newEmitter(g *graph.Graph, o Options, a *arch, w bank) *emitter {
	return &emitter{g: g, o: o, a: a, w: w, habits: &torchscript{used: map[string]int{}, serial: 40}}
}

// in emits body in the sub-module called name.
func (e *emitter) in(name string, body func()) {
	outer := e.scope
	e.scope += "/" + name
	body()
	e.scope = outer
}

// block is in for member i of a list of modules.
func (e *emitter) block(list string, i int, body func() wire) wire {
	return e.module(fmt.Sprintf("%s.%d", list, i), body)
}

// module is in for a sub-module that has one result.
func (e *emitter) module(name string, body func() wire) (out wire) {
	e.in(name, func() { out = body() })
	return out
}

// param is the dotted path of a parameter of the current module.
func (e *emitter) param(name string) string {
	return strings.TrimPrefix(strings.ReplaceAll(e.scope, "/", ".")+"."+name, ".")
}

// to names the output of the next node, as exporters do for graph outputs.
func (e *emitter) to(name string) *emitter {
	e.rename = name
	return e
}

// nodes emits a node with n outputs.
func (e *emitter) nodes(op string, n int, in []wire, attrs ...*onnxpb.AttributeProto) []wire {
	name := e.habits.node(e.scope, op)
	out := make([]string, n)
	for i := range out {
		out[i] = e.habits.value(name, op, i)
	}
	if e.rename != "" {
		out[0], e.rename = e.rename, ""
	}
	return e.g.AddNode(op, "", name, in, out, attrs...).Out
}

// node emits a node with one output.
func (e *emitter) node(op string, in []wire, attrs ...*onnxpb.AttributeProto) wire {
	return e.nodes(op, 1, in, attrs...)[0]
}

// op emits a node without attributes.
func (e *emitter) op(op string, in ...wire) wire { return e.node(op, in) }

// Constants. A TorchScript constant is a node named after its place; the reader's name matters for a few of them.

func (e *emitter) i(n int) wire {
	return e.habits.constant(e, "", graph.NewTensor("", nil, []int64{int64(n)}))
}

func (e *emitter) is(n ...int) wire {
	return e.habits.constant(e, "", graph.NewTensor("", []int64{int64(len(n))}, int64s(n)))
}

// f is a scalar of the model's float type.
func (e *emitter) f(x float64) wire {
	return e.habits.constant(e, "", e.floats("", nil, []float32{float32(x)}))
}

// fs is a constant of the model's float type with the given dims.
func (e *emitter) fs(data []float32, dims ...int) wire {
	return e.habits.constant(e, "", e.floats("", dims, data))
}

// lowest is the most negative finite number of the model's float type.
func (e *emitter) lowest() wire { return e.f(e.lowestValue()) }

func (e *emitter) lowestValue() float64 {
	if e.o.DType == onnxpb.TensorProto_FLOAT16 {
		return -65504
	}
	return -math.MaxFloat32
}

// init adds an initializer of the model's float type.
func (e *emitter) init(name string, data []float32, dims ...int) wire {
	if v := e.g.Value(name); v != nil {
		return v
	}
	return e.g.AddInit(e.floats(name, dims, data))
}

// weights adds a weight by its architectural name under the name that the exporter gives it.
func (e *emitter) weights(as, name string, dims ...int) wire { return e.init(as, e.w[name], dims...) }

// floats makes a tensor of the model's float type.
func (e *emitter) floats(name string, dims []int, data []float32) *graph.Tensor {
	if e.o.DType != onnxpb.TensorProto_FLOAT16 {
		return graph.NewTensor(name, int64s(dims), data)
	}
	raw := make([]byte, 0, 2*len(data))
	for _, x := range data {
		raw = binary.LittleEndian.AppendUint16(raw, half(x))
	}
	t := int32(onnxpb.TensorProto_FLOAT16)
	pb := &onnxpb.TensorProto{Dims: int64s(dims), DataType: &t, RawData: raw}
	if name != "" {
		pb.Name = &name
	}
	return &graph.Tensor{Proto: pb}
}

// half rounds to the nearest float16, ties to even.
func half(x float32) uint16 {
	sign := uint16(math.Float32bits(x) >> 16 & 0x8000)
	m := math.Abs(float64(x))
	switch {
	case m >= 65520:
		return sign | 0x7c00
	case m < 0x1p-14: // subnormal: units of 2^-24
		return sign | uint16(math.RoundToEven(m*0x1p24))
	}
	frac, exp := math.Frexp(m) // m = frac·2^exp, frac in [½, 1)
	bits := uint16(exp+14)<<10 + uint16(math.RoundToEven(frac*0x1p11)) - 0x400
	return sign | bits
}

// Operators whose form depends on the opset.

func (e *emitter) axes(op string, x wire, axes []int, since int64) wire {
	if e.o.Opset < since {
		return e.node(op, []wire{x}, graph.IntsAttr("axes", int64s(axes)...))
	}
	return e.op(op, x, e.habits.constant(e, op, graph.NewTensor("", []int64{int64(len(axes))}, int64s(axes))))
}

func (e *emitter) unsqueeze(x wire, axes ...int) wire { return e.axes("Unsqueeze", x, axes, 13) }
func (e *emitter) squeeze(x wire, axes ...int) wire   { return e.axes("Squeeze", x, axes, 13) }

// mean averages over the last axis and keeps it.
func (e *emitter) mean(x wire) wire {
	if e.o.Opset < 18 {
		return e.node("ReduceMean", []wire{x}, graph.IntsAttr("axes", -1), graph.IntAttr("keepdims", 1))
	}
	return e.node("ReduceMean", []wire{x, e.is(-1)}, graph.IntAttr("keepdims", 1))
}

func (e *emitter) split(x wire, axis int, sizes ...int) []wire {
	if e.o.Opset < 13 {
		return e.nodes("Split", len(sizes), []wire{x}, graph.IntAttr("axis", int64(axis)), graph.IntsAttr("split", int64s(sizes)...))
	}
	return e.nodes("Split", len(sizes), []wire{x, e.is(sizes...)}, graph.IntAttr("axis", int64(axis)))
}

func (e *emitter) reshape(x, shape wire) wire {
	if e.o.Opset < 14 {
		return e.op("Reshape", x, shape)
	}
	return e.node("Reshape", []wire{x, shape}, graph.IntAttr("allowzero", 0))
}

func (e *emitter) transpose(x wire, perm ...int) wire {
	return e.node("Transpose", []wire{x}, graph.IntsAttr("perm", int64s(perm)...))
}

func (e *emitter) concat(axis int, x ...wire) wire {
	return e.node("Concat", x, graph.IntAttr("axis", int64(axis)))
}

func (e *emitter) gather(x, index wire, axis int) wire {
	return e.node("Gather", []wire{x, index}, graph.IntAttr("axis", int64(axis)))
}

func (e *emitter) cast(x wire, to onnxpb.TensorProto_DataType) wire {
	return e.node("Cast", []wire{x}, graph.IntAttr("to", int64(to)))
}

func (e *emitter) castInt(x wire) wire   { return e.cast(x, onnxpb.TensorProto_INT64) }
func (e *emitter) castFloat(x wire) wire { return e.cast(x, e.o.DType) }
func (e *emitter) castBool(x wire) wire  { return e.cast(x, onnxpb.TensorProto_BOOL) }

func (e *emitter) softmax(x wire, axis int) wire {
	return e.node("Softmax", []wire{x}, graph.IntAttr("axis", int64(axis)))
}

// lessOrEqual compares integers; before opset 12 it is the negation of Greater.
func (e *emitter) lessOrEqual(x, y wire) wire {
	if e.o.Opset < 12 {
		return e.op("Not", e.op("Greater", x, y))
	}
	return e.op("LessOrEqual", x, y)
}

func int64s(n []int) []int64 {
	out := make([]int64, len(n))
	for i, v := range n {
		out[i] = int64(v)
	}
	return out
}

// size is one dimension while a shape is put together: a number the exporter knows, or a scalar wire.
type size struct {
	n    int
	wire wire
}

func num(n int) size { return size{n: n} }

// dim is the size of an axis as TorchScript traces x.size(axis): a number in a static trace, Shape→Gather otherwise.
func (e *emitter) dim(x wire, axis, static int) size {
	if e.o.Static {
		return num(static)
	}
	return size{wire: e.gather(e.op("Shape", x), e.i(axis), 0)}
}

// scalar is a size as a wire.
func (e *emitter) scalar(s size) wire {
	if s.wire == nil {
		return e.i(s.n)
	}
	return s.wire
}

// vector is a size as a one-element wire.
func (e *emitter) vector(s size) wire {
	if s.wire == nil {
		return e.is(s.n)
	}
	return e.habits.vector(e, s.wire)
}

// plus and times compute with sizes, in the graph where one is a wire.
func (e *emitter) plus(x, y size) size {
	if x.wire == nil && y.wire == nil {
		return num(x.n + y.n)
	}
	return size{wire: e.op("Add", e.scalar(x), e.scalar(y))}
}

func (e *emitter) times(x, y size) size {
	if x.wire == nil && y.wire == nil {
		return num(x.n * y.n)
	}
	return size{wire: e.op("Mul", e.scalar(x), e.scalar(y))}
}

// shape is a list of sizes as an int64 vector: one constant when all are numbers, Unsqueeze→Concat otherwise.
func (e *emitter) shape(sizes ...size) wire {
	if !slices.ContainsFunc(sizes, func(s size) bool { return s.wire != nil }) {
		return e.is(each(sizes, func(s size) int { return s.n })...)
	}
	return e.concat(0, each(sizes, e.vector)...)
}

// view reshapes.
func (e *emitter) view(x wire, sizes ...size) wire { return e.reshape(x, e.shape(sizes...)) }

// slice takes [start, end) of an axis.
func (e *emitter) slice(x wire, axis int, start, end size) wire {
	return e.op("Slice", x, e.vector(start), e.vector(end), e.is(axis), e.is(1))
}

// end is the open end of a Slice.
var end = num(math.MaxInt64)

// every takes every second element of an axis from start on.
func (e *emitter) every(x wire, axis, start int) wire {
	return e.op("Slice", x, e.is(start), e.is(math.MaxInt64), e.is(axis), e.is(2))
}

// filled is a tensor of the model's float type with one value everywhere.
func (e *emitter) filled(shape wire, value float64) wire {
	v := e.floats("", []int{1}, []float32{float32(value)})
	return e.node("ConstantOfShape", []wire{shape}, graph.TensorAttr("value", v))
}

// arange is 0, 1, …, n-1 shifted by start.
func (e *emitter) arange(start, stop size) wire {
	return e.op("Range", e.scalar(start), e.scalar(stop), e.i(1))
}

// expand broadcasts to sizes, -1 keeping the input's, with the guard that TorchScript puts around such a shape unless
// everything in it is known.
func (e *emitter) expand(x wire, sizes ...size) wire {
	known := !slices.ContainsFunc(sizes, func(s size) bool { return s.wire != nil || s.n < 0 && !e.o.Static })
	if known {
		keep := each(sizes, func(s size) int { return max(s.n, 1) }) // Expand by 1 keeps a dimension
		return e.op("Expand", x, e.is(keep...))
	}
	shape := e.reshape(e.shape(sizes...), e.is(-1))
	one := graph.NewTensor("", []int64{1}, []int64{1})
	ones := e.node("ConstantOfShape", []wire{e.op("Shape", shape)}, graph.TensorAttr("value", one))
	open := e.op("Equal", shape, e.op("Mul", ones, e.i(-1)))
	return e.op("Expand", x, e.op("Where", open, ones, shape))
}
