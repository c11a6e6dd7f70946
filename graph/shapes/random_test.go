package shapes_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/shapes"
	"onnx-dha/ort"
)

// Random graphs of the kind that exporters write, whose inputs have any sizes, whatever was declared: where the graph as it
// was accepts them, the reduced one gives the same bits.
func TestSameOnRandomGraphs(t *testing.T) {
	runtime(t)
	dir := t.TempDir()
	ran, lied, removed := 0, 0, 0
	for seed := range uint64(100) {
		w := newWriter(seed)
		for range 30 {
			w.step()
		}
		w.finish()
		before, after := filepath.Join(dir, "before.onnx"), filepath.Join(dir, "after.onnx")
		if err := w.m.Save(before, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		res, err := shapes.Reduce(w.m.Graph)
		if err != nil {
			t.Fatal(err)
		}
		removed += res.Removed()
		if err := w.m.Save(after, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		a, b := session(t, before), session(t, after)
		for range 12 {
			feeds, liar := w.feeds()
			want, err := a.Run(context.Background(), feeds)
			if err != nil || slices.ContainsFunc(w.agree, func(v *graph.Value) bool { return bytes.Contains(want[v.Name].Raw, []byte{0}) }) {
				continue // the graph does not accept them
			}
			ran++
			if liar {
				lied++
			}
			got, err := b.Run(context.Background(), feeds)
			if err != nil {
				t.Errorf("seed %d, %v: %v", seed, feeds, err)
				continue
			}
			for name, x := range want {
				if y := got[name]; x.DType != y.DType || !slices.Equal(x.Shape, y.Shape) || !bytes.Equal(x.Raw, y.Raw) {
					t.Errorf("seed %d, %v: %s is %v, want %v", seed, feeds, name, y, x)
				}
			}
		}
	}
	t.Logf("%d runs, %d of them with sizes that differ where names do not; %d nodes removed", ran, lied, removed)
	if ran < 200 || lied < 50 || removed < 2000 {
		t.Error("too little was tried")
	}
}

func session(t *testing.T, path string) *ort.Session {
	t.Helper()
	s, err := ort.NewSession(path, ort.Options{DisableOptimization: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// writer writes a graph of tensors whose dimensions it believes to be a batch, a sequence, a past, or numbers.
type writer struct {
	r       *rand.Rand
	m       *graph.Model
	g       *graph.Graph
	n       int
	tensors []tensor
	agree   []*graph.Value // whether what is joined agrees but for the axis: the runtime does not look where it is empty
}

type tensor struct {
	v    *graph.Value
	dims []any // names and numbers
}

func newWriter(seed uint64) *writer {
	m := graph.New(10, 18)
	w := &writer{r: rand.New(rand.NewPCG(seed, 1)), m: m, g: m.Graph}
	for _, in := range []struct {
		name string
		dims []any
	}{{"x", []any{"batch", "sequence", 4}}, {"y", []any{"batch", "sequence", 4}}, {"past", []any{"batch", "past", 4}}, {"row", []any{"sequence", 4}}} {
		w.tensors = append(w.tensors, tensor{w.g.AddInput(in.name, undeclared(in.dims)), in.dims})
	}
	return w
}

// undeclared is the type of a tensor of floats whose named dimensions are open. With the names the runtime would share memory
// between tensors of one name and refuse other sizes, in some graphs and not in others.
func undeclared(dims []any) *onnxpb.TypeProto {
	open := slices.Clone(dims)
	for i, d := range open {
		if _, named := d.(string); named {
			open[i] = nil
		}
	}
	return graph.TensorType(onnxpb.TensorProto_FLOAT, open...)
}

// feeds gives every input sizes, consistent ones or any.
func (w *writer) feeds() (feeds map[string]*ort.Tensor, liar bool) {
	liar = w.r.IntN(2) == 0
	names := []any{"batch", "sequence", "past"}
	least := map[any]int64{}
	for _, d := range names {
		least[d] = 1
	}
	least[names[w.r.IntN(3)]] = 0 // what is empty is so in one way
	draw := func(d any) int64 { return least[d] + w.r.Int64N(4-least[d]) }
	size := map[any]int64{}
	for _, d := range names {
		size[d] = draw(d)
	}
	feeds = map[string]*ort.Tensor{}
	for _, in := range w.tensors[:len(w.g.Inputs)] {
		var shape []int64
		n := int64(1)
		for _, d := range in.dims {
			s, named := size[d]
			if !named {
				s = int64(d.(int))
			} else if liar && w.r.IntN(3) == 0 {
				s = draw(d)
			}
			shape = append(shape, s)
			n *= s
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = float32(w.r.NormFloat64())
		}
		feeds[in.v.Name] = ort.FromFloat32(data, shape...)
	}
	return feeds, liar
}

func (w *writer) op(op string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	w.n++
	name := fmt.Sprintf("%s_%d", op, w.n)
	return w.g.AddNode(op, "", name, in, []string{name + "_out"}, attrs...).Out[0]
}

func (w *writer) ints(x ...int64) *graph.Value {
	w.n++
	return w.g.AddInit(graph.NewTensor(fmt.Sprintf("c_%d", w.n), []int64{int64(len(x))}, x))
}

func (w *writer) scalar(x int64) *graph.Value {
	w.n++
	return w.g.AddInit(graph.NewTensor(fmt.Sprintf("c_%d", w.n), nil, []int64{x}))
}

func (w *writer) any() tensor { return w.tensors[w.r.IntN(len(w.tensors))] }

func (w *writer) put(v *graph.Value, dims ...any) {
	if len(dims) <= 5 {
		w.tensors = append(w.tensors, tensor{v, dims})
	}
}

// dim computes what d is, as a vector of one, from some tensor that is believed to have it.
func (w *writer) dim(d any) *graph.Value {
	if n, ok := d.(int); ok && w.r.IntN(3) > 0 {
		return w.ints(int64(n))
	}
	for {
		x := w.any()
		i := slices.Index(x.dims, d)
		if i < 0 {
			if n, ok := d.(int); ok {
				return w.ints(int64(n))
			}
			continue
		}
		switch w.r.IntN(4) {
		case 0:
			return w.op("Slice", []*graph.Value{w.op("Shape", []*graph.Value{x.v}), w.ints(int64(i)), w.ints(int64(i + 1)), w.ints(0)})
		case 1:
			return w.op("Shape", []*graph.Value{x.v}, graph.IntAttr("start", int64(i)), graph.IntAttr("end", int64(i+1)))
		case 2:
			s := w.op("Gather", []*graph.Value{w.op("Shape", []*graph.Value{x.v}), w.scalar(int64(i - len(x.dims)))})
			s = w.op([]string{"Add", "Sub"}[w.r.IntN(2)], []*graph.Value{s, w.scalar(0)})
			return w.op("Unsqueeze", []*graph.Value{s, w.ints(0)})
		}
		s := w.op("Gather", []*graph.Value{w.op("Shape", []*graph.Value{x.v}), w.scalar(int64(i))}, graph.IntAttr("axis", 0))
		return w.op("Unsqueeze", []*graph.Value{s, w.ints(0)})
	}
}

func (w *writer) shape(dims ...any) *graph.Value {
	in := make([]*graph.Value, len(dims))
	for i, d := range dims {
		in[i] = w.dim(d)
	}
	return w.op("Concat", in, graph.IntAttr("axis", 0))
}

// reshape views x as dims, one of which may be left open.
func (w *writer) reshape(x tensor, dims ...any) {
	target := slices.Clone(dims)
	in := make([]*graph.Value, len(dims))
	open := w.r.IntN(2*len(dims) + 1)
	for i, d := range target {
		if i == open {
			in[i] = w.ints(-1)
			continue
		}
		in[i] = w.dim(d)
	}
	var attrs []*onnxpb.AttributeProto
	if w.r.IntN(3) == 0 && open >= len(dims) {
		attrs = append(attrs, graph.IntAttr("allowzero", 1))
	}
	w.put(w.op("Reshape", []*graph.Value{x.v, w.op("Concat", in, graph.IntAttr("axis", 0))}, attrs...), dims...)
}

// step writes what an exporter might.
func (w *writer) step() {
	x := w.any()
	n := len(x.dims)
	last := x.dims[n-1]
	switch w.r.IntN(11) {
	case 0:
		w.put(w.op("Relu", []*graph.Value{x.v}), x.dims...)
	case 1: // of the same shape, or so it is believed
		for range 4 {
			if y := w.any(); slices.Equal(y.dims, x.dims) || len(y.dims) < n && slices.Equal(y.dims, x.dims[n-len(y.dims):]) {
				w.put(w.op("Add", []*graph.Value{x.v, y.v}), x.dims...)
				return
			}
		}
	case 2, 3: // split or merge
		switch {
		case last == 4:
			w.reshape(x, append(slices.Clone(x.dims[:n-1]), 2, 2)...)
		case n > 2 && last == 2 && x.dims[n-2] == 2:
			w.reshape(x, append(slices.Clone(x.dims[:n-2]), 4)...)
		}
	case 4: // a matrix and back
		if n == 3 && last == 4 && x.dims[0] == "batch" {
			flat := w.op("Reshape", []*graph.Value{x.v, w.ints(-1, 4)})
			w.reshape(tensor{flat, nil}, x.dims...)
		}
	case 5:
		if n > 2 {
			perm := []int64{0, 2, 1, 3, 4}[:n]
			dims := slices.Clone(x.dims)
			dims[1], dims[2] = dims[2], dims[1]
			typ := onnxpb.AttributeProto_INTS
			name := "perm"
			w.put(w.op("Transpose", []*graph.Value{x.v}, &onnxpb.AttributeProto{Name: &name, Type: &typ, Ints: perm}), dims...)
		}
	case 6:
		for range 4 {
			if y := w.any(); slices.Equal(y.dims, x.dims) && x.dims[0] == "batch" {
				for _, part := range [][2]int64{{0, 1}, {2, int64(n)}} {
					sizes := func(v *graph.Value) *graph.Value {
						return w.op("Shape", []*graph.Value{v}, graph.IntAttr("start", part[0]), graph.IntAttr("end", part[1]))
					}
					w.agree = append(w.agree, w.op("Equal", []*graph.Value{sizes(x.v), sizes(y.v)}))
				}
				both := w.op("Concat", []*graph.Value{y.v, x.v}, graph.IntAttr("axis", 1))
				w.put(w.op("Slice", []*graph.Value{both, w.ints(0), w.dim(x.dims[1]), w.ints(1)}), x.dims...)
				return
			}
		}
	case 7: // ones of a shape, or a row for each
		w.put(w.op("Expand", []*graph.Value{w.op("ReduceSum", []*graph.Value{x.v, w.ints(0)}), w.shape(x.dims...)}), x.dims...)
	case 8:
		w.put(w.op("ConstantOfShape", []*graph.Value{w.shape(x.dims...)}), x.dims...)
	case 9: // a selection by the place
		if d := x.dims[0]; d == "batch" || d == "sequence" {
			i := w.op("Range", []*graph.Value{w.scalar(0), w.op("Squeeze", []*graph.Value{w.dim(d)}), w.scalar(1)})
			w.put(w.op("Gather", []*graph.Value{x.v, i}), x.dims...)
		}
	case 10: // a length that is one of two
		a, b := w.dim(x.dims[0]), w.dim(x.dims[0])
		longer := w.op("Where", []*graph.Value{w.op("Less", []*graph.Value{a, b}), b, a})
		if w.r.IntN(2) == 0 {
			longer = w.op("Max", []*graph.Value{a, b})
		}
		w.put(w.op("Slice", []*graph.Value{x.v, w.ints(0), w.op("Sub", []*graph.Value{longer, w.ints(int64(w.r.IntN(2)))}), w.ints(0)}), x.dims...)
	}
}

// finish gives out everything that nobody reads, and the shape of it.
func (w *writer) finish() {
	for _, v := range w.agree {
		w.g.AddOutput(v, graph.TensorType(onnxpb.TensorProto_BOOL, "any"))
	}
	for _, x := range w.tensors {
		if x.v.Producer == nil || len(x.v.Users()) > 0 && w.r.IntN(4) > 0 {
			continue
		}
		w.g.AddOutput(x.v, graph.TensorType(onnxpb.TensorProto_FLOAT, make([]any, len(x.dims))...))
		w.g.AddOutput(w.op("Shape", []*graph.Value{x.v}), graph.TensorType(onnxpb.TensorProto_INT64, len(x.dims)))
	}
}
