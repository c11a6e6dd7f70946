package shapes_test

import (
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/shapes"
)

const (
	float32Type = onnxpb.TensorProto_FLOAT
	int64Type   = onnxpb.TensorProto_INT64
)

// small builds a graph around the inputs x [batch, sequence, 8], y [batch, sequence, 8] and ids [batch, sequence].
type small struct {
	*graph.Graph
	x, y, ids *graph.Value
}

func newSmall() small {
	m := graph.New(8, 17)
	g := m.Graph
	return small{
		g, g.AddInput("x", graph.TensorType(float32Type, "batch", "sequence", 8)), g.AddInput("y", graph.TensorType(float32Type, "batch", "sequence", 8)),
		g.AddInput("ids", graph.TensorType(int64Type, "batch", "sequence")),
	}
}

func (s small) op(op, name string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	return s.AddNode(op, "", name, in, []string{name}, attrs...).Out[0]
}

func (s small) ints(name string, x ...int64) *graph.Value {
	return s.AddInit(graph.NewTensor(name, []int64{int64(len(x))}, x))
}

// dim is a dimension of v, as a vector of one.
func (s small) dim(name string, v *graph.Value, axis int64) *graph.Value {
	return s.op("Gather", name, []*graph.Value{s.op("Shape", name+"_shape", []*graph.Value{v}), s.ints(name+"_at", axis)})
}

// heads views a value as heads, by dimensions of others.
func (s small) heads(name string, v, batch, sequence *graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	target := s.op("Concat", name+"_target", []*graph.Value{s.dim(name+"_b", batch, 0), s.dim(name+"_s", sequence, 1), s.ints(name+"_h", 2), s.ints(name+"_d", 4)}, graph.IntAttr("axis", 0))
	return s.op("Reshape", name, []*graph.Value{v, target}, attrs...)
}

func (s small) out(v *graph.Value) { s.AddOutput(v, graph.TensorType(float32Type)) }

// Each rule, on the smallest graph that shows it: what a graph enforces counts, and what its file declares does not.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		name  string
		build func(s small)
		after map[string]int // how many nodes of an operator are left, of those that are named
	}{
		{"a target from the input itself is a constant", func(s small) {
			s.out(s.heads("q", s.x, s.x, s.x))
		}, map[string]int{"Shape": 0, "Gather": 0, "Concat": 0, "Reshape": 1}},
		{"also where 0 would be an empty dimension", func(s small) {
			s.out(s.heads("q", s.x, s.x, s.x, graph.IntAttr("allowzero", 1)))
		}, map[string]int{"Shape": 0, "Concat": 0}},
		{"two layers share what they compute", func(s small) {
			s.out(s.heads("q", s.op("Relu", "a", []*graph.Value{s.x}), s.y, s.y))
			s.out(s.heads("k", s.op("Relu", "b", []*graph.Value{s.x}), s.y, s.y))
		}, map[string]int{"Shape": 1, "Gather": 2, "Concat": 1, "Reshape": 2}},
		{"dimensions of one name are not one", func(s small) {
			s.out(s.heads("q", s.x, s.ids, s.ids))
			s.out(s.heads("k", s.y, s.x, s.x))
		}, map[string]int{"Shape": 2, "Concat": 2}},
		{"nor are those that broadcast", func(s small) {
			sum := s.op("Add", "sum", []*graph.Value{s.x, s.y})
			s.out(s.heads("q", s.x, sum, sum))
			s.out(s.heads("k", sum, s.x, s.x))
		}, map[string]int{"Shape": 2, "Concat": 2}},
		{"what broadcasts alike is", func(s small) {
			s.out(s.heads("q", s.op("Add", "sum", []*graph.Value{s.x, s.y}), s.op("Mul", "product", []*graph.Value{s.y, s.x}), s.op("Sub", "rest", []*graph.Value{s.x, s.y})))
		}, map[string]int{"Shape": 0, "Concat": 0}},
		{"a declared size of something computed says nothing", func(s small) {
			c := s.op("Compress", "some", []*graph.Value{s.x, s.op("Cast", "which", []*graph.Value{s.ids}, graph.IntAttr("to", int64(onnxpb.TensorProto_BOOL)))}, graph.IntAttr("axis", 1))
			name := "some"
			c.Info = &onnxpb.ValueInfoProto{Name: &name, Type: graph.TensorType(float32Type, "batch", 3, 8)}
			s.out(s.heads("q", s.x, s.x, c))
		}, map[string]int{"Shape": 2, "Concat": 1}},
		{"numbers are constants", func(s small) {
			s.out(s.op("Expand", "row", []*graph.Value{s.ints("one", 1), s.dim("width", s.x, 2)}))
		}, map[string]int{"Shape": 0, "Gather": 0, "Expand": 1}},
		{"an empty product cannot be told from what is left over", func(s small) {
			rows := s.op("Reshape", "rows", []*graph.Value{s.x, s.ints("rows_target", -1, 8)})
			s.out(s.heads("q", rows, s.x, s.x))
		}, map[string]int{"Shape": 1, "Concat": 1}},
		{"one dimension is what is left of numbers", func(s small) {
			target := s.op("Concat", "target", []*graph.Value{s.op("Mul", "tokens", []*graph.Value{s.dim("b", s.x, 0), s.dim("s", s.x, 1)}), s.dim("d", s.x, 2)}, graph.IntAttr("axis", 0))
			s.out(s.op("Reshape", "rows", []*graph.Value{s.x, target}))
		}, map[string]int{"Shape": 0, "Mul": 0}},
		{"what is given out stays", func(s small) {
			s.AddOutput(s.dim("first", s.x, 0), graph.TensorType(int64Type, 1))
			s.AddOutput(s.dim("again", s.x, 0), graph.TensorType(int64Type, 1))
		}, map[string]int{"Gather": 2}},
		{"chance is not repeated", func(s small) {
			for _, name := range []string{"a", "b"} {
				n := s.op("RandomUniformLike", name+"_noise", []*graph.Value{s.x})
				s.out(s.op("Cast", name, []*graph.Value{n}, graph.IntAttr("to", int64(int64Type))))
			}
		}, map[string]int{"RandomUniformLike": 2, "Cast": 2}},
		{"activations that are computed twice stay", func(s small) {
			for _, name := range []string{"a", "b"} {
				s.out(s.op("Mul", name, []*graph.Value{s.x, s.x}))
			}
		}, map[string]int{"Mul": 2}},
		{"masks are made once", func(s small) {
			for _, name := range []string{"a", "b"} {
				float := s.op("Cast", name+"_float", []*graph.Value{s.ids}, graph.IntAttr("to", int64(float32Type)))
				far := s.AddInit(graph.NewTensor(name+"_far", nil, []float32{-1e9}))
				mask := s.op("Unsqueeze", name+"_mask", []*graph.Value{s.op("Mul", name+"_far_mask", []*graph.Value{float, far}), s.ints(name+"_axis", 2)})
				s.out(s.op("Add", name, []*graph.Value{s.x, mask}))
			}
		}, map[string]int{"Cast": 1, "Mul": 1, "Unsqueeze": 1, "Add": 2}},
		{"a number that may not fit is not the number", func(s small) {
			narrow := s.op("Cast", "narrow", []*graph.Value{s.ids}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT32)))
			first := s.op("ReduceMax", "first", []*graph.Value{narrow}, graph.IntsAttr("axes", 0, 1), graph.IntAttr("keepdims", 0))
			wide := s.op("Cast", "wide", []*graph.Value{first}, graph.IntAttr("to", int64(int64Type)))
			direct := s.op("ReduceMax", "direct", []*graph.Value{s.ids}, graph.IntsAttr("axes", 0, 1), graph.IntAttr("keepdims", 0))
			s.AddOutput(s.op("Neg", "a", []*graph.Value{wide}), graph.TensorType(int64Type))
			s.AddOutput(s.op("Neg", "b", []*graph.Value{direct}), graph.TensorType(int64Type))
		}, map[string]int{"Neg": 2, "ReduceMax": 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSmall()
			c.build(s)
			if _, err := shapes.Reduce(s.Graph); err != nil {
				t.Fatal(err)
			}
			if err := s.Model.Check(); err != nil {
				t.Fatal(err)
			}
			for op, want := range c.after {
				if got := operators(s.Graph, op); got != want {
					t.Errorf("%d nodes %s are left, want %d", got, op, want)
				}
			}
		})
	}
}

func operators(g *graph.Graph, op string) int {
	n := 0
	g.All(func(nd *graph.Node) bool {
		if nd.Is(op) {
			n++
		}
		return true
	})
	return n
}

// A constant that a caller may override is none, unless the format says that nobody can.
func TestOverridable(t *testing.T) {
	for version, saved := range map[int64]int{3: 1, 8: 0} {
		for what, build := range map[string]func(s small) (op string, constants []*graph.Value){ // op: what a constant saves one of
			"an index": func(s small) (string, []*graph.Value) {
				at := s.ints("at", 2)
				width := s.op("Gather", "width", []*graph.Value{s.op("Shape", "shape", []*graph.Value{s.x}), at})
				s.out(s.op("Expand", "row", []*graph.Value{s.x, width}))
				return "Gather", []*graph.Value{at}
			},
			"one of two factors": func(s small) (string, []*graph.Value) {
				var factors []*graph.Value
				float := s.op("Cast", "float", []*graph.Value{s.ids}, graph.IntAttr("to", int64(float32Type)))
				for _, name := range []string{"a", "b"} {
					factor := s.AddInit(graph.NewTensor(name+"_factor", nil, []float32{2}))
					s.out(s.op("Neg", name, []*graph.Value{s.op("Mul", name+"_scaled", []*graph.Value{float, factor})}))
					factors = append(factors, factor)
				}
				return "Mul", factors
			},
		} {
			s := newSmall()
			s.Model.Proto.IrVersion = &version
			op, constants := build(s)
			for _, v := range constants {
				v.IsInput = true
				v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: graph.TensorType(v.Init.DType(), dims(v.Init)...)}
				s.Inputs = append(s.Inputs, v)
			}
			before := operators(s.Graph, op)
			if _, err := shapes.Reduce(s.Graph); err != nil {
				t.Fatal(err)
			}
			if got := operators(s.Graph, op); got != before-saved {
				t.Errorf("IR version %d: %s: %d nodes %s are left, want %d", version, what, got, op, before-saved)
			}
		}
	}
}

func dims(t *graph.Tensor) []any {
	var out []any
	for _, d := range t.Dims() {
		out = append(out, d)
	}
	return out
}
