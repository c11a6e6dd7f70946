package rewrite_test

import (
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// Fused operators in the body of a Loop are expanded there; the reference keeps them, its constants carried back into the
// body. Padding in front of a sequence leaves its first queries nothing to see, one step after the other.
func TestExactFusedInLoop(t *testing.T) {
	runtime(t)
	for _, c := range []struct {
		name   string
		opset  int64
		layer  func(d *decoder, i int, x *graph.Value) *graph.Value
		lowers []fusion.Lowering
	}{
		{"GroupQueryAttention", 17, func(d *decoder, i int, x *graph.Value) *graph.Value {
			return d.groupQuery(i, x, true, graph.IntAttr("do_rotary", 1))
		}, []fusion.Lowering{fusion.Grouped, fusion.Expand}},
		{"Attention 23", 23, func(d *decoder, i int, x *graph.Value) *graph.Value {
			in := []*graph.Value{d.linear(i, "q_proj", x, hidden, hidden), d.linear(i, "k_proj", x, hidden, hidden), d.linear(i, "v_proj", x, hidden, hidden), d.visible(), d.past(i, "key"), d.past(i, "value")}
			return d.fused("Attention", "", i, in, graph.IntAttr("q_num_heads", 4), graph.IntAttr("kv_num_heads", 4), graph.IntAttr("is_causal", 1))
		}, []fusion.Lowering{fusion.OpAttention, fusion.Grouped, fusion.Expand}},
	} {
		data, err := os.ReadFile(fusedDecoder(t, c.opset, 4, c.layer))
		if err != nil {
			t.Fatal(err)
		}
		var m onnxpb.ModelProto
		if err := proto.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		path := wrapped(t, testmodels.Loop(&m))
		for _, low := range c.lowers {
			t.Run(c.name+"/"+string(low)+"/adjacent", func(t *testing.T) { exactFused(t, path, low, adjacent, adjacent, 3) })
			t.Run(c.name+"/"+string(low)+"/decoupled", func(t *testing.T) { exactFused(t, path, low, strided, all, 3) })
		}
	}
}
