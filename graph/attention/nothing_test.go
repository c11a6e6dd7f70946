package attention_test

import (
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// What has a softmax, and often products around it, and is no attention: no block, and nothing that is said to be
// attention. Every softmax is listed with a place and a reason.
func TestNoAttention(t *testing.T) {
	last := []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}
	for name, build := range map[string]func(b *builder) *graph.Value{
		"classifier": func(b *builder) *graph.Value {
			return b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.weight(8, 5)))
		},
		"classifier after attention without a norm": func(b *builder) *graph.Value {
			s := b.op("Relu", nil, b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)))
			return b.op("Softmax", last, b.op("MatMul", nil, s, b.weight(8, 8)))
		},
		"temperature and top classes": func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("Div", nil, b.op("MatMul", nil, b.Value("x"), b.weight(8, 5)), b.weight(1)))
			return b.op("ArgMax", last, p)
		},
		"contrastive logits": func(b *builder) *graph.Value {
			other := b.AddInput("texts", graph.TensorType(onnxpb.TensorProto_FLOAT, "texts", 8))
			image := b.op("MatMul", nil, b.op("ReduceMean", []*onnxpb.AttributeProto{graph.IntsAttr("axes", 1), graph.IntAttr("keepdims", 0)}, b.Value("x")), b.weight(8, 8))
			text := b.op("MatMul", nil, other, b.weight(8, 8))
			scores := b.op("Mul", nil, b.op("MatMul", nil, image, b.op("Transpose", perm(1, 0), text)), b.weight(1))
			return b.op("ArgMax", last, b.op("Softmax", last, scores))
		},
		"contrastive logits of sequences": func(b *builder) *graph.Value {
			a, c := b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)), b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))
			return b.op("Softmax", last, b.op("MatMul", nil, a, b.op("Transpose", perm(0, 2, 1), c)))
		},
		"pooling with a learned query": func(b *builder) *graph.Value {
			scores := b.op("MatMul", nil, b.op("Tanh", nil, b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))), b.weight(8, 1))
			p := b.op("Softmax", last, b.op("Transpose", perm(0, 2, 1), scores))
			return b.op("MatMul", nil, p, b.Value("x"))
		},
		"gate": func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)))
			return b.op("Mul", nil, p, b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)))
		},
		"router of experts": func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.weight(8, 4)))
			top := b.AddNode("TopK", "", "top", []*graph.Value{p, b.ints(2)}, []string{"best", "which"})
			experts := b.op("Gather", nil, b.weight(4, 8, 8), top.Out[1])
			return b.op("MatMul", nil, b.op("Unsqueeze", nil, top.Out[0], b.ints(2)), b.op("ReduceMean", []*onnxpb.AttributeProto{graph.IntsAttr("axes", 4)}, experts))
		},
		"mixture of experts by a product": func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.weight(8, 4)))
			experts := b.op("Reshape", nil, b.op("MatMul", nil, b.Value("x"), b.weight(8, 32)), b.ints(0, 0, 4, 8))
			return b.op("MatMul", nil, b.op("Unsqueeze", nil, p, b.ints(2)), experts)
		},
		"squeeze and excite": func(b *builder) *graph.Value {
			mean := b.op("ReduceMean", []*onnxpb.AttributeProto{graph.IntsAttr("axes", 1)}, b.Value("x"))
			s := b.op("MatMul", nil, b.op("Relu", nil, b.op("MatMul", nil, mean, b.weight(8, 2))), b.weight(2, 8))
			return b.op("Mul", nil, b.Value("x"), b.op("Softmax", last, s))
		},
		"softmax over channels": func(b *builder) *graph.Value {
			return b.op("Mul", nil, b.op("Softmax", []*onnxpb.AttributeProto{graph.IntAttr("axis", 1)}, b.Value("x")), b.Value("x"))
		},
		"chain of labels": func(b *builder) *graph.Value {
			emissions := b.op("MatMul", nil, b.Value("x"), b.weight(8, 5))
			p := b.op("Softmax", last, emissions)
			return b.op("Softmax", last, b.op("Add", nil, b.op("MatMul", nil, p, b.weight(5, 5)), emissions))
		},
		"linear attention": func(b *builder) *graph.Value {
			q, k, v := b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))), b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))), b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)))
			state := b.op("MatMul", nil, b.op("Transpose", perm(0, 1, 3, 2), b.op("Softmax", []*onnxpb.AttributeProto{graph.IntAttr("axis", 2)}, k)), v)
			return b.op("MatMul", nil, b.op("Softmax", last, q), state)
		},
		"products without heads or weights": func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.op("Transpose", perm(0, 2, 1), b.Value("x"))))
			return b.op("MatMul", nil, p, b.Value("x"))
		},
		"expectation over places": func(b *builder) *graph.Value {
			return b.op("MatMul", nil, b.op("Softmax", last, b.op("MatMul", nil, b.Value("x"), b.weight(8, 5))), b.weight(5, 2))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			b.AddOutput(build(&b), graph.TensorType(onnxpb.TensorProto_FLOAT))
			r := attention.Find(b.Model)
			for _, block := range r.Blocks {
				t.Errorf("block %s of %d heads", block.Name, block.Heads)
			}
			softmaxes := 0
			for _, n := range b.Nodes {
				if n.Is("Softmax") {
					softmaxes++
				}
			}
			if len(r.Unsupported) != softmaxes {
				t.Errorf("%d softmaxes, %d reasons", softmaxes, len(r.Unsupported))
			}
			for _, u := range r.Unsupported {
				if u.Attention || u.Node == nil || u.At == nil || u.Wire == "" || u.Why == "" {
					t.Errorf("%v at %v, %q, attention %v: %q", u.Node, u.At, u.Wire, u.Attention, u.Why)
				}
			}
		})
	}
}

// What is like attention and cannot be described is said to be attention, with the node at which the walk ended.
func TestLikeAttention(t *testing.T) {
	last := []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}
	project := func(b *builder) *graph.Value { return b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))) }
	for name, c := range map[string]struct {
		build func(b *builder) *graph.Value
		at    string
	}{
		"talking heads": {func(b *builder) *graph.Value {
			s := b.op("MatMul", nil, project(b), b.op("Transpose", perm(0, 1, 3, 2), project(b)))
			s = b.op("MatMul", nil, b.op("Transpose", perm(0, 2, 3, 1), s), b.weight(2, 2))
			p := b.op("Softmax", last, b.op("Transpose", perm(0, 3, 1, 2), s))
			return b.op("MatMul", nil, p, project(b))
		}, "MatMul"},
		"probabilities changed by an unknown operator": {func(b *builder) *graph.Value {
			p := b.op("Softmax", last, b.op("MatMul", nil, project(b), b.op("Transpose", perm(0, 1, 3, 2), project(b))))
			return b.op("MatMul", nil, b.op("CumSum", nil, p, b.ints(3)), project(b))
		}, "CumSum"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			b.AddOutput(c.build(&b), graph.TensorType(onnxpb.TensorProto_FLOAT))
			r := attention.Find(b.Model)
			if len(r.Blocks) != 0 || len(r.Unsupported) != 1 {
				t.Fatalf("%d blocks, %d reasons, want none and one", len(r.Blocks), len(r.Unsupported))
			}
			if u := r.Unsupported[0]; !u.Attention || u.At == nil || u.At.OpType != c.at || u.Wire == "" {
				t.Errorf("%v at %v, %q, attention %v: %q; want attention that ends at %s", u.Node, u.At, u.Wire, u.Attention, u.Why, c.at)
			}
		})
	}
}
