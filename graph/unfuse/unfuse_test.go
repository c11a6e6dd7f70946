package unfuse_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
	"onnx-dha/ort"
)

const (
	f32 = onnxpb.TensorProto_FLOAT
	f16 = onnxpb.TensorProto_FLOAT16
	i32 = onnxpb.TensorProto_INT32
	i64 = onnxpb.TensorProto_INT64
	bit = onnxpb.TensorProto_BOOL
)

// runtime skips a test where ONNX Runtime is not installed.
func runtime(t *testing.T) {
	t.Helper()
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		t.Skip(err)
	}
}

// sketch is a small model under construction with the inputs that it is run on. Symbolic dimensions are written
// "name=size".
type sketch struct {
	t    *testing.T
	m    *graph.Model
	elem onnxpb.TensorProto_DataType
	feed map[string]*ort.Tensor
	rand *rand.Rand
}

func newSketch(t *testing.T, opset int64, elem onnxpb.TensorProto_DataType) *sketch {
	m := graph.New(8, opset)
	domain, one := "com.microsoft", int64(1)
	m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	return &sketch{t: t, m: m, elem: elem, feed: map[string]*ort.Tensor{}, rand: rand.New(rand.NewPCG(1, 2))}
}

// sizes splits dims into what the model declares and the sizes of this run.
func sizes(dims []any) (declared []any, shape []int64) {
	for _, d := range dims {
		switch d := d.(type) {
		case int:
			declared, shape = append(declared, d), append(shape, int64(d))
		case string:
			name, size, _ := strings.Cut(d, "=")
			var n int64
			fmt.Sscan(size, &n)
			declared, shape = append(declared, name), append(shape, n)
		}
	}
	return declared, shape
}

func (s *sketch) values(dtype onnxpb.TensorProto_DataType, shape []int64, value func(i int) float64) *ort.Tensor {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	data := make([]float64, n)
	for i := range data {
		data[i] = value(i)
	}
	t, err := ort.FromFloat64s(dtype, data, shape...)
	if err != nil {
		s.t.Fatal(err)
	}
	return t
}

func (s *sketch) normal(int) float64 { return s.rand.NormFloat64() }

// in declares an input of the model's type with random numbers.
func (s *sketch) in(name string, dims ...any) *graph.Value {
	return s.given(name, s.elem, s.normal, dims...)
}

// given declares an input of any type.
func (s *sketch) given(name string, dtype onnxpb.TensorProto_DataType, value func(i int) float64, dims ...any) *graph.Value {
	declared, shape := sizes(dims)
	s.feed[name] = s.values(dtype, shape, value)
	return s.m.Graph.AddInput(name, graph.TensorType(dtype, declared...))
}

// list gives an input the listed values.
func (s *sketch) list(name string, dtype onnxpb.TensorProto_DataType, values []float64, dims ...any) *graph.Value {
	return s.given(name, dtype, func(i int) float64 { return values[i] }, dims...)
}

// constant adds an initializer of the model's type with random numbers.
func (s *sketch) constant(name string, dims ...int64) *graph.Value {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	data := make([]float64, n)
	for i := range data {
		data[i] = 0.3 * s.rand.NormFloat64()
	}
	t, err := graph.FromFloat64s(name, s.elem, dims, data)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.m.Graph.AddInit(t)
}

// node adds a node called "block/<op>" whose outputs, out0, out1, …, are the model's.
func (s *sketch) node(op, domain string, outs int, in []*graph.Value, attrs ...*onnxpb.AttributeProto) {
	var names []string
	for i := range outs {
		names = append(names, fmt.Sprint("out", i))
	}
	n := s.m.Graph.AddNode(op, domain, "block/"+op, in, names, attrs...)
	for _, o := range n.Out {
		s.m.Graph.AddOutput(o, graph.TensorType(s.elem))
		o.Info.Type.GetTensorType().Shape = nil
	}
}

// run saves a model and runs it.
func (s *sketch) run(m *graph.Model, name string) (map[string]*ort.Tensor, error) {
	path := filepath.Join(s.t.TempDir(), name+".onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		s.t.Fatal(err)
	}
	session, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	defer session.Close()
	return session.Run(context.Background(), s.feed)
}

// reload reads the model again, as a file.
func (s *sketch) reload() *graph.Model {
	path := filepath.Join(s.t.TempDir(), "copy.onnx")
	if err := s.m.Save(path, graph.SaveOptions{}); err != nil {
		s.t.Fatal(err)
	}
	m, err := graph.Load(path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { m.Close() })
	return m
}

// expanded expands everything in a copy of the model.
func (s *sketch) expanded() *graph.Model {
	m := s.reload()
	done, refused, err := unfuse.Expand(m, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range refused {
		s.t.Fatalf("%v: %s", r.Node, r.Why)
	}
	if len(done) == 0 {
		s.t.Fatal("nothing was expanded")
	}
	if err := m.Check(); err != nil {
		s.t.Fatal(err)
	}
	m.Graph.All(func(n *graph.Node) bool {
		if n.Domain == "com.microsoft" || n.OpType == "Attention" || n.OpType == "Einsum" || n.OpType == "RotaryEmbedding" {
			s.t.Errorf("%v is still there", n)
		}
		return true
	})
	return m
}

// exact runs the model and its expansion on the same inputs.
func (s *sketch) exact(tolerance float64) {
	s.t.Helper()
	want, err := s.run(s.m, "fused")
	if err != nil {
		s.t.Fatalf("the fused model: %v", err)
	}
	got, err := s.run(s.expanded(), "expanded")
	if err != nil {
		s.t.Fatalf("the expanded model: %v", err)
	}
	near(s.t, want, got, tolerance)
}

func near(t *testing.T, want, got map[string]*ort.Tensor, tolerance float64) {
	t.Helper()
	for name, w := range want {
		g := got[name]
		if g == nil || !slices.Equal(w.Shape, g.Shape) {
			t.Errorf("%s: %v, want %v", name, g, w)
			continue
		}
		a, err := w.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		b, err := g.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		scale, worst, at := 1.0, 0.0, 0
		for i := range a {
			scale = max(scale, math.Abs(a[i]))
			if d := math.Abs(a[i] - b[i]); d > worst || math.IsNaN(d) {
				worst, at = d, i
			}
		}
		if !(worst <= tolerance*scale) {
			t.Errorf("%s: element %d is %v, want %v", name, at, b[at], a[at])
		}
	}
}

// each runs a sketch in opsets whose primitives differ in form.
func each(t *testing.T, opsets []int64, f func(s *sketch)) {
	runtime(t)
	for _, o := range opsets {
		t.Run(fmt.Sprint("opset", o), func(t *testing.T) { f(newSketch(t, o, f32)) })
	}
}

var contribOpsets = []int64{11, 13, 17, 21}
