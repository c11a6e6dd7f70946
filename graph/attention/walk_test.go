package attention_test

import (
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// passes lists what exporters put between a projection and the product, by operator: each row takes heads [B, 2, S, 4]
// and gives them back in that form. The walk has to find both heads behind it. A new row of movers has a row here.
var passes = map[string]func(b *builder, v *graph.Value) *graph.Value{
	"Identity": func(b *builder, v *graph.Value) *graph.Value { return b.op("Identity", nil, v) },
	"Cast": func(b *builder, v *graph.Value) *graph.Value {
		wide := b.op("Cast", []*onnxpb.AttributeProto{graph.IntAttr("to", int64(onnxpb.TensorProto_DOUBLE))}, v)
		return b.op("Cast", []*onnxpb.AttributeProto{graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT))}, wide)
	},
	"CastLike": func(b *builder, v *graph.Value) *graph.Value { return b.op("CastLike", nil, v, b.Value("x")) },
	"Mul":      func(b *builder, v *graph.Value) *graph.Value { return b.op("Mul", nil, v, b.weight(4)) },
	"Clip":     func(b *builder, v *graph.Value) *graph.Value { return b.op("Clip", nil, v, b.weight(), b.weight()) },
	"Tanh":     func(b *builder, v *graph.Value) *graph.Value { return b.op("Tanh", nil, v) },
	"Dropout":  func(b *builder, v *graph.Value) *graph.Value { return b.op("Dropout", nil, v) },
	"Transpose": func(b *builder, v *graph.Value) *graph.Value {
		return b.op("Transpose", perm(0, 2, 1, 3), b.op("Transpose", perm(0, 2, 1, 3), v))
	},
	"Unsqueeze": func(b *builder, v *graph.Value) *graph.Value {
		return b.op("Squeeze", nil, b.op("Unsqueeze", nil, v, b.ints(2)), b.ints(2))
	},
	"Slice": func(b *builder, v *graph.Value) *graph.Value {
		half := func(from, to int64) *graph.Value { return b.op("Slice", nil, v, b.ints(from), b.ints(to), b.ints(3)) }
		return b.op("Concat", []*onnxpb.AttributeProto{graph.IntAttr("axis", 3)}, b.op("Neg", nil, half(2, 4)), half(0, 2))
	},
	"Expand": func(b *builder, v *graph.Value) *graph.Value { return b.op("Expand", nil, v, b.ints(1, 1, 1, 4)) },
	"LayerNormalization": func(b *builder, v *graph.Value) *graph.Value {
		return b.op("LayerNormalization", []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}, v, b.weight(4))
	},
	"ReduceMean": func(b *builder, v *graph.Value) *graph.Value {
		square := b.op("ReduceMean", []*onnxpb.AttributeProto{graph.IntsAttr("axes", -1)}, b.op("Mul", nil, v, v))
		return b.op("Div", nil, v, b.op("Sqrt", nil, square))
	},
}

func TestHeadsAreFollowedThrough(t *testing.T) {
	for op, pass := range passes {
		t.Run(op, func(t *testing.T) {
			b := newBuilder()
			project := func() *graph.Value { return b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))) }
			b.finish(project(), pass(&b, project()), project())
			r := attention.Find(b.Model)
			if len(r.Blocks) != 1 {
				t.Fatalf("no block: %+v", r.Unsupported)
			}
			if block := r.Blocks[0]; block.KVHeads != 2 || block.HeadDim != 4 || block.Fixed != "" {
				t.Errorf("%d key heads of %d, fixed %q", block.KVHeads, block.HeadDim, block.Fixed)
			}
		})
	}
}

// Nothing that is left of the heads themselves is no cache; nothing that is made with so many heads would stay that large.
func TestEmptyPartsAreNoCaches(t *testing.T) {
	for name, c := range map[string]struct {
		part  func(b *builder, v *graph.Value) *graph.Value
		fixed bool
	}{
		"rest of a rotation": {func(b *builder, v *graph.Value) *graph.Value {
			return b.op("Slice", nil, v, b.ints(4), b.ints(1<<62), b.ints(3))
		}, false},
		"made": {func(b *builder, v *graph.Value) *graph.Value {
			return b.op("Expand", nil, b.weight(1, 1, 1, 1), b.ints(1, 2, 3, 1))
		}, true},
		"made empty": {func(b *builder, v *graph.Value) *graph.Value {
			return b.op("ConstantOfShape", nil, b.ints(1, 2, 3, 0))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			project := func() *graph.Value { return b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))) }
			k := project()
			b.finish(project(), b.op("Concat", []*onnxpb.AttributeProto{graph.IntAttr("axis", 3)}, k, c.part(&b, k)), project())
			r := attention.Find(b.Model)
			fixed := len(r.Blocks) != 1 || r.Blocks[0].Fixed != ""
			if fixed != c.fixed {
				t.Errorf("cannot be rewritten: %v, want %v: %+v %+v", fixed, c.fixed, r.Blocks, r.Unsupported)
			}
		})
	}
}
