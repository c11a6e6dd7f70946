package rewrite_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/rewrite"
)

// halves writes two layers of a model of 16 channels. In each, two attentions of two heads take halves of the columns of
// the same projections and give halves of the rows of the same output projection. residual adds the values of the first
// layer to those of the second.
func halves(t *testing.T, residual bool) string {
	t.Helper()
	m := graph.New(8, 17)
	count := 0
	fresh := func(what string) string { count++; return fmt.Sprint(what, count) }
	ints := func(x ...int64) *graph.Value {
		return m.Graph.AddInit(graph.NewTensor(fresh("ints"), []int64{int64(len(x))}, x))
	}
	op := func(op string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		name := fresh(op)
		return m.Graph.AddNode(op, "", name, in, []string{name + "_out"}, attrs...).Out[0]
	}
	linear := func(x *graph.Value) *graph.Value {
		w := make([]float32, 16*16)
		for i := range w {
			w[i] = float32((i*7919+count*104729)%199)/199 - 0.5
		}
		return op("MatMul", []*graph.Value{x, m.Graph.AddInit(graph.NewTensor(fresh("weight"), []int64{16, 16}, w))})
	}
	x := m.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", 16))
	var first []*graph.Value
	for layer := range 2 {
		q, k, v := linear(x), linear(x), linear(x)
		var out []*graph.Value
		for half := range 2 {
			heads := func(x *graph.Value, perm ...int64) *graph.Value {
				part := op("Slice", []*graph.Value{x, ints(int64(8 * half)), ints(int64(8*half + 8)), ints(2)})
				return op("Transpose", []*graph.Value{op("Reshape", []*graph.Value{part, ints(0, 0, 2, 4)})}, graph.IntsAttr("perm", perm...))
			}
			values := heads(v, 0, 2, 1, 3)
			if layer == 0 {
				first = append(first, values)
			} else if residual {
				values = op("Add", []*graph.Value{values, first[half]})
			}
			scores := op("MatMul", []*graph.Value{heads(q, 0, 2, 1, 3), heads(k, 0, 2, 3, 1)})
			scores = op("Div", []*graph.Value{scores, m.Graph.AddInit(graph.NewTensor(fresh("scale"), nil, []float32{2}))})
			context := op("MatMul", []*graph.Value{op("Softmax", []*graph.Value{scores}, graph.IntAttr("axis", -1)), values})
			context = op("Transpose", []*graph.Value{context}, graph.IntsAttr("perm", 0, 2, 1, 3))
			out = append(out, op("Reshape", []*graph.Value{context, ints(0, 0, 8)}))
		}
		x = op("Add", []*graph.Value{x, linear(op("Concat", out, graph.IntAttr("axis", -1)))})
	}
	m.Graph.AddOutput(x, graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", 16))
	path := filepath.Join(t.TempDir(), "halves.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// Weights that several blocks share are changed for one of them, or for none: here the scale of each would go into the
// columns of its own.
func TestBlocksOfOneProjection(t *testing.T) {
	runtime(t)
	path := halves(t, false)
	exact(t, path, fusion.Grouped, single, single, 0)
	firstHalf := func() func(int) [][]int {
		half := 0
		return func(n int) [][]int {
			half = 1 - half
			return every(1 + half)(n)
		}
	}
	exact(t, path, fusion.Grouped, firstHalf(), firstHalf(), 0)
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if n := len(attention.Find(m).Blocks); n != 4 {
		t.Fatalf("%d blocks, want 4", n)
	}
	plan, _ := planFor(m, fusion.Grouped, every(2), every(2))
	if _, err := rewrite.Apply(m, plan); err == nil || !strings.Contains(err.Error(), "projects heads of block") {
		t.Errorf("both halves of a layer: %v", err)
	}
}

// Values that are added to those of a later layer are no adapter of them.
func TestValueResiduals(t *testing.T) {
	runtime(t)
	m, err := graph.Load(halves(t, true))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i, b := range attention.Find(m).Blocks {
		if later := i >= 2; later != strings.Contains(b.Fixed, "are added to its own") {
			t.Errorf("block %s: fixed %q", b.Name, b.Fixed)
		}
	}
}
