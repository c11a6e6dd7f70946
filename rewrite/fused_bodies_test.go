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
// body.
func TestExactFusedInLoop(t *testing.T) {
	runtime(t)
	path := fusedDecoder(t, 17, 4, func(d *decoder, i int, x *graph.Value) *graph.Value {
		return d.groupQuery(i, x, true, graph.IntAttr("do_rotary", 1))
	})
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m onnxpb.ModelProto
	if err := proto.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	path = wrapped(t, testmodels.Loop(&m))
	t.Run("adjacent", func(t *testing.T) { exactFused(t, path, fusion.Grouped, adjacent, adjacent, 3) })
	t.Run("decoupled", func(t *testing.T) { exactFused(t, path, fusion.Expand, strided, all, 3) })
}
