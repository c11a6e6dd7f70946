package unfuse_test

import (
	"fmt"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
)

// large is a decoder of 80 layers of grouped-query attention with 64 heads of 128 channels, whose weights are nowhere.
func large() *graph.Model {
	m := graph.New(8, 17)
	domain, one := "com.microsoft", int64(1)
	m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	g := m.Graph
	weight := func(name string, dims ...int64) *graph.Value {
		return g.AddInit(graph.Computed(name, f16, dims, 2*dims[0]*dims[1], func() ([]byte, error) { return nil, fmt.Errorf("%s was read", name) }))
	}
	x := g.AddInput("x", graph.TensorType(f16, "batch", "sequence", 8192))
	seqlens, total := g.AddInput("seqlens_k", graph.TensorType(i32, "batch")), g.AddInput("total", graph.TensorType(i32))
	cos, sin := weight("cos", 4096, 64), weight("sin", 4096, 64)
	for i := range 80 {
		name := fmt.Sprintf("/layers.%d/attn/", i)
		node := func(op, domain string, outs int, in []*graph.Value, attrs ...*onnxpb.AttributeProto) []*graph.Value {
			var out []string
			for o := range outs {
				out = append(out, fmt.Sprintf("%s%s_%d", name, op, o))
			}
			return g.AddNode(op, domain, name+op, in, out, attrs...).Out
		}
		qkv := node("MatMul", "", 1, []*graph.Value{x, weight(name+"qkv", 8192, 8192+2*8*128)})[0]
		past := func(what string) *graph.Value {
			return g.AddInput(fmt.Sprintf("past.%d.%s", i, what), graph.TensorType(f16, "batch", 8, "past", 128))
		}
		out := node("GroupQueryAttention", "com.microsoft", 3, []*graph.Value{qkv, nil, nil, past("key"), past("value"), seqlens, total, cos, sin},
			graph.IntAttr("num_heads", 64), graph.IntAttr("kv_num_heads", 8), graph.IntAttr("do_rotary", 1))
		g.AddOutput(out[1], graph.TensorType(f16, "batch", 8, "total", 128))
		g.AddOutput(out[2], graph.TensorType(f16, "batch", 8, "total", 128))
		y := g.AddNode("MatMul", "", name+"o", []*graph.Value{out[0], weight(name+"o.weight", 8192, 8192)}, []string{name + "o"}).Out[0]
		x = g.AddNode("Add", "", name+"add", []*graph.Value{x, y}, []string{name + "sum"}).Out[0]
	}
	g.AddOutput(x, graph.TensorType(f16, "batch", "sequence", 8192))
	return m
}

func BenchmarkExpand(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		m := large()
		b.StartTimer()
		done, refused, err := unfuse.Expand(m, nil)
		if err != nil || len(done) != 80 || len(refused) > 0 {
			b.Fatal(len(done), refused, err)
		}
	}
}

func BenchmarkExpandAndFind(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		m := large()
		b.StartTimer()
		if _, _, err := unfuse.Expand(m, nil); err != nil {
			b.Fatal(err)
		}
		if r := attention.Find(m); len(r.Blocks) != 80 {
			b.Fatal(len(r.Blocks), r.Unsupported)
		}
	}
}
