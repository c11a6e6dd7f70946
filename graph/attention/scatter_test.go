package attention_test

import (
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// A buffer of heads that are merged with the batch declares their product by a name of its own, which is no number that
// what is written could be held against.
func TestBufferOfMergedHeads(t *testing.T) {
	const float, whole = onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_INT64
	m := graph.New(8, 17)
	g := m.Graph
	op := func(op, name string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		return g.AddNode(op, "", name, in, []string{name}, attrs...).Out[0]
	}
	ints := func(name string, x ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor(name, []int64{int64(len(x))}, x))
	}
	x := g.AddInput("x", graph.TensorType(float, "batch", 3, 8))
	places := g.AddInput("places", graph.TensorType(whole, "batch_heads", 3, 2))
	heads := func(side string) *graph.Value { // [2·batch, 3, 4]
		w := g.AddInit(graph.NewTensor(side+".weight", []int64{8, 8}, make([]float32, 64)))
		y := op("Reshape", side+"/apart", []*graph.Value{op("MatMul", side+"/MatMul", []*graph.Value{x, w}), ints(side+"/apart_shape", 0, 3, 2, 4)})
		y = op("Transpose", side+"/Transpose", []*graph.Value{y}, graph.IntsAttr("perm", 0, 2, 1, 3))
		return op("Reshape", side+"/merged", []*graph.Value{y, ints(side+"/merged_shape", -1, 3, 4)})
	}
	buffer := func(side string) *graph.Value {
		past := g.AddInput("past."+side, graph.TensorType(float, "batch_heads", "length", 4))
		present := op("ScatterND", "present."+side, []*graph.Value{past, places, heads(side)})
		g.AddOutput(present, graph.TensorType(float, "batch_heads", "length", 4))
		return present
	}
	k := op("Transpose", "keys", []*graph.Value{buffer("key")}, graph.IntsAttr("perm", 0, 2, 1))
	scores := op("MatMul", "scores", []*graph.Value{heads("query"), k})
	p := op("Softmax", "probabilities", []*graph.Value{scores}, graph.IntAttr("axis", -1))
	g.AddOutput(op("MatMul", "context", []*graph.Value{p, buffer("value")}), graph.TensorType(float, "batch_heads", 3, 4))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	r := attention.Find(m)
	for _, u := range r.Unsupported {
		t.Fatalf("%v: at %v: %s", u.Node, u.At, u.Why)
	}
	b := r.Blocks[0]
	if b.Heads != 2 || b.KVHeads != 2 || b.ValueHeads != 2 || !strings.Contains(b.Fixed, "written in place") {
		t.Errorf("%d heads, %d and %d of keys and values, fixed: %q", b.Heads, b.KVHeads, b.ValueHeads, b.Fixed)
	}
	for _, c := range []*attention.Cache{b.KeyCache, b.ValCache} {
		if c == nil || c.Past == nil || c.Present == nil || c.Heads != 2 || c.PastAxis != 0 || c.PastSeq != 1 {
			t.Errorf("cache %+v", c)
		}
	}
}
