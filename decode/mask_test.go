package decode

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// queryMasked is a Llama whose mask [batch, positions] is the last row of another one, of the given type and shape.
func queryMasked(t *testing.T, dtype onnxpb.TensorProto_DataType, dims ...any) (plain, masked string) {
	t.Helper()
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Cache: true, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plain, masked = filepath.Join(t.TempDir(), "plain.onnx"), filepath.Join(t.TempDir(), "masked.onnx")
	if err := m.Save(plain, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	g := m.Graph
	old := g.Value("attention_mask")
	in := g.AddInput("query_mask", graph.TensorType(dtype, dims...))
	ints := func(name string, x ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor("query_mask/"+name, []int64{int64(len(x))}, x))
	}
	node := func(op string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		return g.AddNode(op, "", "query_mask/"+op, in, []string{"query_mask/" + op}, attrs...).Out[0]
	}
	v := node("Cast", []*graph.Value{in}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT64)))
	axis := int64(len(dims) - 2)
	v = node("Slice", []*graph.Value{v, ints("start", -1), ints("end", 1<<62), ints("axis", axis)})
	v = node("Reshape", []*graph.Value{v, ints("shape", 0, -1)})
	for _, u := range slices.Clone(old.Users()) {
		if u.Node.Name != "query_mask/Cast" {
			u.Node.SetInput(u.Index, v)
		}
	}
	g.Inputs = slices.DeleteFunc(g.Inputs, func(x *graph.Value) bool { return x == old })
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(masked, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return plain, masked
}

// A mask with a row for each new token hides what comes later and the padding, and gives what a mask of positions gives.
func TestQueryMask(t *testing.T) {
	for name, c := range map[string]struct {
		dtype onnxpb.TensorProto_DataType
		dims  []any
	}{
		"3-D": {onnxpb.TensorProto_BOOL, []any{"batch_size", "sequence_length", "total_sequence_length"}},
		"4-D": {onnxpb.TensorProto_INT64, []any{"batch_size", 1, "sequence_length", "total_sequence_length"}},
	} {
		t.Run(name, func(t *testing.T) {
			plain, masked := queryMasked(t, c.dtype, c.dims...)
			prompts := [][]int64{{3, 1, 4, 1}, {5, 9}}
			a, b := start(t, load(t, plain), Options{Batch: 2}), start(t, load(t, masked), Options{Batch: 2})
			for range 3 {
				for _, l := range []*Loop{a, b} {
					if err := l.Feed(t.Context(), prompts); err != nil {
						t.Fatal(err)
					}
				}
				for s := range prompts {
					want, err := a.Scores(s)
					if err != nil {
						t.Fatal(err)
					}
					got, err := b.Scores(s)
					if err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(got, want) {
						t.Fatalf("sequence %d: scores %v, want %v", s, got[:4], want[:4])
					}
				}
				prompts = [][]int64{{2}, {6}}
			}
		})
	}
}

// The rows of such a mask, for two tokens after one; the second sequence begins with two places of padding.
func TestQueryMaskRows(t *testing.T) {
	_, masked := queryMasked(t, onnxpb.TensorProto_BOOL, "batch_size", 1, "sequence_length", "total_sequence_length")
	l := start(t, load(t, masked), Options{Batch: 2})
	l.padding, l.filled = []int{0, 2}, 1
	for _, s := range l.inputs {
		if s.name != "query_mask" {
			continue
		}
		mask, err := s.make(l, nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		if want := "[1 1 0 1 1 1 0 1 0 0 0 1]"; fmt.Sprint(mask.Shape) != "[2 1 2 3]" || fmt.Sprint(mask.Raw) != want {
			t.Errorf("shape %v, mask %v; want %s", mask.Shape, mask.Raw, want)
		}
		return
	}
	t.Error("the model has no mask")
}

// What a floating-point mask of this form does to the scores is not known.
func TestQueryMaskOfFloats(t *testing.T) {
	_, masked := queryMasked(t, onnxpb.TensorProto_FLOAT, "batch_size", 1, "sequence_length", "total_sequence_length")
	if _, err := load(t, masked).Start(Options{}); err == nil || !strings.Contains(err.Error(), `nothing tells what input "query_mask"`) {
		t.Errorf("error %v", err)
	}
}
