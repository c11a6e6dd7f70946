package ort

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

func open(t testing.TB) {
	t.Helper()
	if err := OpenDefault(); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func value(name string, elem onnxpb.TensorProto_DataType, dims ...any) *onnxpb.ValueInfoProto {
	shape := &onnxpb.TensorShapeProto{}
	for _, d := range dims {
		dim := &onnxpb.TensorShapeProto_Dimension{}
		switch d := d.(type) {
		case int:
			dim.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: int64(d)}
		case string:
			dim.Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: d}
		}
		shape.Dim = append(shape.Dim, dim)
	}
	tt := &onnxpb.TypeProto_Tensor{ElemType: ptr(int32(elem)), Shape: shape}
	return &onnxpb.ValueInfoProto{Name: &name, Type: &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: tt}}}
}

func node(op string, in, out []string, attrs ...*onnxpb.AttributeProto) *onnxpb.NodeProto {
	return &onnxpb.NodeProto{OpType: &op, Input: in, Output: out, Attribute: attrs}
}

func intAttr(name string, v int64) *onnxpb.AttributeProto {
	return &onnxpb.AttributeProto{Name: &name, Type: onnxpb.AttributeProto_INT.Enum(), I: &v}
}

// write saves a model of these parts and returns its path.
func write(t testing.TB, g *onnxpb.GraphProto) string {
	t.Helper()
	g.Name = ptr("g")
	m := &onnxpb.ModelProto{
		IrVersion:   ptr(int64(10)),
		OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: ptr(""), Version: ptr(int64(21))}},
		Graph:       g,
	}
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func session(t testing.TB, g *onnxpb.GraphProto) *Session {
	t.Helper()
	open(t)
	s, err := NewSession(write(t, g), Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Every element type goes in and comes out bit for bit, empty, scalar and with dynamic dimensions.
func TestEveryElementTypePassesThrough(t *testing.T) {
	for dtype, row := range dtypes {
		if row.bits < 8 {
			continue // packed types have too few operators in the runtime to say anything general
		}
		t.Run(typeName(dtype), func(t *testing.T) {
			for _, shape := range [][]int64{{2, 3}, {0, 3}, {}, {1, 1, 5}} {
				dims := make([]any, len(shape))
				for i := range dims {
					dims[i] = "d" + string(rune('0'+i))
				}
				s := session(t, &onnxpb.GraphProto{
					Input:  []*onnxpb.ValueInfoProto{value("x", dtype, dims...)},
					Output: []*onnxpb.ValueInfoProto{value("y", dtype, dims...)},
					Node:   []*onnxpb.NodeProto{node("Identity", []string{"x"}, []string{"y"})},
				})
				x, err := New(dtype, shape...)
				if err != nil {
					t.Fatal(err)
				}
				for i := range x.Raw {
					x.Raw[i] = byte(37*i + 1)
					if dtype == onnxpb.TensorProto_BOOL {
						x.Raw[i] = byte(i % 2)
					}
				}
				out, err := s.Run(context.Background(), map[string]*Tensor{"x": x})
				if err != nil {
					t.Fatal(err)
				}
				y := out["y"]
				if y.DType != dtype || !slices.Equal(y.Shape, shape) || !slices.Equal(y.Raw, x.Raw) {
					t.Errorf("in %v % x, out %v % x", x, x.Raw, y, y.Raw)
				}
			}
		})
	}
}

func TestDescribesInputsAndOutputs(t *testing.T) {
	s := session(t, &onnxpb.GraphProto{
		Input: []*onnxpb.ValueInfoProto{
			value("x", onnxpb.TensorProto_FLOAT16, "batch", 4, nil),
			value("n", onnxpb.TensorProto_INT64),
		},
		Output: []*onnxpb.ValueInfoProto{value("y", onnxpb.TensorProto_FLOAT16, "batch", 4, "past + seq"), value("m", onnxpb.TensorProto_INT64)},
		Node: []*onnxpb.NodeProto{
			node("Identity", []string{"x"}, []string{"y"}),
			node("Identity", []string{"n"}, []string{"m"}),
		},
	})
	for _, c := range []struct {
		got  IO
		want string
	}{
		{s.Inputs()[0], "float16[batch,4,?]"},
		{s.Inputs()[1], "int64[]"},
		{s.Outputs()[0], "float16[batch,4,past + seq]"},
	} {
		if c.got.String() != c.want {
			t.Errorf("%s: got %s, want %s", c.got.Name, c.got, c.want)
		}
	}
	if x := s.Inputs()[0]; !slices.Equal(x.Shape, []int64{-1, 4, -1}) {
		t.Errorf("x: shape %v", x.Shape)
	}
}

// scatter writes u into row i of x: y is x with one row replaced.
func scatter(t testing.TB) *Session {
	return session(t, &onnxpb.GraphProto{
		Input: []*onnxpb.ValueInfoProto{
			value("x", onnxpb.TensorProto_FLOAT, "T", 2),
			value("i", onnxpb.TensorProto_INT64, "n", 1),
			value("u", onnxpb.TensorProto_FLOAT, "n", 2),
		},
		Output: []*onnxpb.ValueInfoProto{value("y", onnxpb.TensorProto_FLOAT, "T", 2)},
		Node:   []*onnxpb.NodeProto{node("ScatterND", []string{"x", "i", "u"}, []string{"y"})},
	})
}

func TestOneTensorAsInputAndOutputIsUpdatedInPlace(t *testing.T) {
	s := scatter(t)
	cache := FromFloat32([]float32{1, 2, 3, 4, 5, 6}, 3, 2)
	where := &cache.Raw[0]
	out := map[string]*Tensor{"y": cache}
	for step, want := range [][]float32{{1, 2, 10, 20, 5, 6}, {1, 2, 10, 20, 30, 40}} {
		row := int64(step + 1)
		in := map[string]*Tensor{
			"x": cache, "i": FromInt64([]int64{row}, 1, 1), "u": FromFloat32([]float32{float32(step*20 + 10), float32(step*20 + 20)}, 1, 2),
		}
		if err := s.RunInto(context.Background(), in, out); err != nil {
			t.Fatal(err)
		}
		got, _ := cache.Float32s()
		if !slices.Equal(got, want) || out["y"] != cache || &cache.Raw[0] != where {
			t.Errorf("step %d: got %v, want %v in the same memory", step, got, want)
		}
	}
}

func TestPreallocatedOutputIsFilled(t *testing.T) {
	s := scatter(t)
	x := FromFloat32([]float32{1, 2, 3, 4}, 2, 2)
	y, _ := New(onnxpb.TensorProto_FLOAT, 2, 2)
	in := map[string]*Tensor{"x": x, "i": FromInt64([]int64{0}, 1, 1), "u": FromFloat32([]float32{8, 9}, 1, 2)}
	if err := s.RunInto(context.Background(), in, map[string]*Tensor{"y": y}); err != nil {
		t.Fatal(err)
	}
	got, _ := y.Float32s()
	if want := []float32{8, 9, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if xs, _ := x.Float32s(); xs[0] != 1 {
		t.Errorf("the input was changed: %v", xs)
	}
	short, _ := New(onnxpb.TensorProto_FLOAT, 1, 2)
	err := s.RunInto(context.Background(), in, map[string]*Tensor{"y": short})
	if err == nil || !strings.Contains(err.Error(), s.Path) {
		t.Errorf("an output of the wrong shape: got %v, want an error that names the model", err)
	}
}

// A model with an output of rank 0 and an optional subset of outputs.
func TestScalarOutputAndSubset(t *testing.T) {
	s := session(t, &onnxpb.GraphProto{
		Input:  []*onnxpb.ValueInfoProto{value("x", onnxpb.TensorProto_FLOAT, "n")},
		Output: []*onnxpb.ValueInfoProto{value("sum", onnxpb.TensorProto_FLOAT), value("neg", onnxpb.TensorProto_FLOAT, "n")},
		Node: []*onnxpb.NodeProto{
			node("ReduceSum", []string{"x"}, []string{"sum"}, intAttr("keepdims", 0)),
			node("Neg", []string{"x"}, []string{"neg"}),
		},
	})
	out, err := s.RunOutputs(context.Background(), map[string]*Tensor{"x": FromFloat32([]float32{1, 2, 4}, 3)}, "sum")
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 1 {
		t.Errorf("got outputs %v, want sum alone", out)
	}
	if got, _ := out["sum"].Float64s(); len(out["sum"].Shape) != 0 || got[0] != 7 {
		t.Errorf("sum: %v %v, want 7", out["sum"], got)
	}
}

func TestRunErrorsNameModelInputAndWhatWasExpected(t *testing.T) {
	s := scatter(t)
	good := func() map[string]*Tensor {
		return map[string]*Tensor{
			"x": FromFloat32([]float32{1, 2}, 1, 2), "i": FromInt64([]int64{0}, 1, 1), "u": FromFloat32([]float32{8, 9}, 1, 2),
		}
	}
	for name, c := range map[string]struct {
		change func(in map[string]*Tensor)
		out    map[string]*Tensor
		want   []string
	}{
		"missing":        {func(in map[string]*Tensor) { delete(in, "u") }, nil, []string{`input "u"`, "float[n,2]", "not given"}},
		"unknown":        {func(in map[string]*Tensor) { in["z"] = in["x"] }, nil, []string{`no input "z"`, "x, i, u"}},
		"nil":            {func(in map[string]*Tensor) { in["x"] = nil }, nil, []string{`input "x"`}},
		"type":           {func(in map[string]*Tensor) { in["i"] = From([]int32{0}, 1, 1) }, nil, []string{`input "i"`, "wants int64", "int32[1,1]"}},
		"size":           {func(in map[string]*Tensor) { in["x"].Raw = in["x"].Raw[:4] }, nil, []string{`input "x"`, "4 bytes, want 8"}},
		"negative":       {func(in map[string]*Tensor) { in["x"].Shape = []int64{-1, 2} }, nil, []string{`input "x"`, "negative"}},
		"rank":           {func(in map[string]*Tensor) { in["x"].Shape = []int64{2} }, nil, []string{"x float[2]", "i int64[1,1]"}},
		"value":          {func(in map[string]*Tensor) { in["i"] = FromInt64([]int64{7}, 1, 1) }, nil, []string{"ONNX Runtime failed"}},
		"unknown output": {func(map[string]*Tensor) {}, map[string]*Tensor{"w": nil}, []string{`no output "w"`, "y"}},
		"output type":    {func(map[string]*Tensor) {}, map[string]*Tensor{"y": FromInt64([]int64{1, 2}, 1, 2)}, []string{`output "y"`, "gives float", "int64[1,2]"}},
		"no output":      {func(map[string]*Tensor) {}, map[string]*Tensor{}, []string{"no output"}},
	} {
		t.Run(name, func(t *testing.T) {
			in := good()
			c.change(in)
			out := c.out
			if out == nil {
				out = map[string]*Tensor{"y": nil}
			}
			err := s.RunInto(context.Background(), in, out)
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range append(c.want, s.Path) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	open(t)
	dir := t.TempDir()
	text := filepath.Join(dir, "text.onnx")
	if err := os.WriteFile(text, []byte("this is no model"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		o    Options
		want string
	}{
		"text":     {text, Options{}, "cannot load"},
		"missing":  {filepath.Join(dir, "none.onnx"), Options{}, "cannot load"},
		"folder":   {dir, Options{}, "cannot load"},
		"provider": {text, Options{Provider: "abacus"}, `"abacus" is not known; want one of cpu, cuda`},
	} {
		s, err := NewSession(c.path, c.o)
		if err == nil {
			s.Close()
			t.Errorf("%s: no error", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %q does not say %q and the path", name, err, c.want)
		}
	}
}

// endless loops two thousand million times; ms of work is nothing beside it.
func endless(t testing.TB) *Session {
	body := &onnxpb.GraphProto{
		Name: ptr("body"),
		Input: []*onnxpb.ValueInfoProto{
			value("i", onnxpb.TensorProto_INT64), value("go", onnxpb.TensorProto_BOOL), value("acc", onnxpb.TensorProto_FLOAT, 1),
		},
		Output: []*onnxpb.ValueInfoProto{value("go2", onnxpb.TensorProto_BOOL), value("acc2", onnxpb.TensorProto_FLOAT, 1)},
		Node: []*onnxpb.NodeProto{
			node("Identity", []string{"go"}, []string{"go2"}),
			node("Neg", []string{"acc"}, []string{"acc2"}),
		},
	}
	return session(t, &onnxpb.GraphProto{
		Input: []*onnxpb.ValueInfoProto{
			value("n", onnxpb.TensorProto_INT64), value("yes", onnxpb.TensorProto_BOOL), value("x", onnxpb.TensorProto_FLOAT, 1),
		},
		Output: []*onnxpb.ValueInfoProto{value("y", onnxpb.TensorProto_FLOAT, 1)},
		Node: []*onnxpb.NodeProto{node("Loop", []string{"n", "yes", "x"}, []string{"y"},
			&onnxpb.AttributeProto{Name: ptr("body"), Type: onnxpb.AttributeProto_GRAPH.Enum(), G: body})},
	})
}

func TestCancel(t *testing.T) {
	s := endless(t)
	in := map[string]*Tensor{"n": FromInt64([]int64{2e9}), "yes": From([]bool{true}), "x": FromFloat32([]float32{1}, 1)}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Run(ctx, in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("during the run: got %v, want the context's error", err)
	}
	if _, err := s.Run(ctx, in); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before the run: got %v, want the context's error", err)
	}
	in["n"] = FromInt64([]int64{3})
	if out, err := s.Run(context.Background(), in); err != nil {
		t.Errorf("the session is spent after a cancelled run: %v", err)
	} else if y, _ := out["y"].Float32s(); y[0] != -1 {
		t.Errorf("got %v, want -1", y)
	}
}

func TestClose(t *testing.T) {
	s := scatter(t)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := s.Run(context.Background(), nil); err == nil || !strings.Contains(err.Error(), "closed") {
		t.Errorf("run after Close: %v", err)
	}
}

func TestRunsInParallel(t *testing.T) {
	s := scatter(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := range 50 {
				x := FromFloat32(make([]float32, 2*(n+1)), int64(n+1), 2)
				v := float32(w*100 + n)
				out, err := s.Run(context.Background(), map[string]*Tensor{
					"x": x, "i": FromInt64([]int64{int64(n)}, 1, 1), "u": FromFloat32([]float32{v, v}, 1, 2),
				})
				if err != nil {
					t.Error(err)
					return
				}
				if y, _ := out["y"].Float32s(); y[2*n] != v {
					t.Errorf("worker %d, run %d: got %v at row %d", w, n, y[2*n], n)
				}
			}
		})
	}
	wg.Wait()
}

func TestConversions(t *testing.T) {
	values := []float64{0, 1, -1, 0.5, 100, -7}
	for _, dtype := range []onnxpb.TensorProto_DataType{
		onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_DOUBLE, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_BFLOAT16,
	} {
		x, err := FromFloat64s(dtype, values, 2, 3)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x.Float64s(); err != nil || !slices.Equal(got, values) {
			t.Errorf("%v: got %v (%v), want %v", x, got, err, values)
		}
		if _, err := x.Int64s(); err == nil {
			t.Errorf("%v read as integers", x)
		}
	}
	whole := []float64{0, 1, 100, 7}
	for _, dtype := range []onnxpb.TensorProto_DataType{
		onnxpb.TensorProto_INT8, onnxpb.TensorProto_UINT8, onnxpb.TensorProto_INT16, onnxpb.TensorProto_UINT16,
		onnxpb.TensorProto_INT32, onnxpb.TensorProto_UINT32, onnxpb.TensorProto_INT64, onnxpb.TensorProto_UINT64,
	} {
		x, err := FromFloat64s(dtype, whole, 4)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := x.Int64s(); err != nil || !slices.Equal(got, []int64{0, 1, 100, 7}) {
			t.Errorf("%v: got %v (%v)", x, got, err)
		}
	}
	if _, err := FromFloat64s(onnxpb.TensorProto_FLOAT, values, 4); err == nil {
		t.Error("six values in a shape of four")
	}
	if _, err := New(onnxpb.TensorProto_FLOAT, math.MaxInt64, 3); err == nil {
		t.Error("a tensor of more bytes than there are")
	}
}

// The reference for rounding to bfloat16 is a search over neighbours in float64.
func TestBfloat16RoundsToNearestEven(t *testing.T) {
	back := func(b uint16) float64 { return float64(math.Float32frombits(uint32(b) << 16)) }
	for _, x := range []float32{1, 1.00390625, 1.01171875, 3.14159, -2.7e-30, 65504, 1e-40, 0.1} {
		got := bfloat16(x)
		low := uint16(math.Float32bits(x) >> 16)
		best, dist := low, math.Abs(back(low)-float64(x))
		if d := math.Abs(back(low+1) - float64(x)); d < dist || d == dist && (low+1)%2 == 0 {
			best = low + 1
		}
		if got != best {
			t.Errorf("%v: got %#x (%v), want %#x (%v)", x, got, back(got), best, back(best))
		}
	}
	if n := bfloat16(float32(math.NaN())); !math.IsNaN(back(n)) {
		t.Errorf("NaN became %v", back(n))
	}
	if n := bfloat16(math.Float32frombits(0x7f800001)); !math.IsNaN(back(n)) {
		t.Errorf("a NaN with low bits only became %v", back(n))
	}
}

func TestViewOfUnalignedBytesIsRight(t *testing.T) {
	buf := make([]byte, 17)
	x := &Tensor{DType: onnxpb.TensorProto_INT64, Shape: []int64{2}, Raw: buf[1:]}
	order.PutUint64(x.Raw, 3)
	order.PutUint64(x.Raw[8:], 1<<40)
	if got, err := x.Int64s(); err != nil || !slices.Equal(got, []int64{3, 1 << 40}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := View[float32](x); err == nil {
		t.Error("int64 viewed as float")
	}
}
