package attention_test

import (
	"fmt"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// What is worked out on one layer serves the others that are alike, and only those: beside any other layer a layer is
// described as it is alone.
func TestLayersDoNotTakeEachOthersDescription(t *testing.T) {
	split := func(b *builder, v *graph.Value, heads, channels int64) *graph.Value {
		return b.op("Transpose", perm(0, 2, 1, 3), b.op("Reshape", nil, v, b.ints(0, 0, heads, channels)))
	}
	project := func(b *builder) *graph.Value { return b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)) }
	scaled := func(b *builder, v *graph.Value, by float32) *graph.Value {
		b.n++
		return b.op("Mul", nil, v, b.AddInit(graph.NewTensor(fmt.Sprintf("s_%d", b.n), nil, []float32{by})))
	}
	// cut takes eight columns of a projection that has sixteen.
	cut := func(b *builder, from int64) *graph.Value {
		wide := b.op("MatMul", nil, b.Value("x"), b.weight(8, 16))
		return b.op("Slice", nil, wide, b.ints(from), b.ints(from+8), b.ints(2), b.ints(1))
	}
	layers := []func(b *builder) (q, k, v *graph.Value){
		func(b *builder) (q, k, v *graph.Value) {
			return split(b, project(b), 2, 4), split(b, project(b), 2, 4), split(b, project(b), 2, 4)
		},
		func(b *builder) (q, k, v *graph.Value) {
			return split(b, project(b), 4, 2), split(b, project(b), 4, 2), split(b, project(b), 4, 2)
		},
		func(b *builder) (q, k, v *graph.Value) {
			return scaled(b, split(b, project(b), 2, 4), 0.5), split(b, project(b), 2, 4), split(b, project(b), 2, 4)
		},
		func(b *builder) (q, k, v *graph.Value) {
			return scaled(b, split(b, project(b), 2, 4), 0.25), split(b, project(b), 2, 4), split(b, project(b), 2, 4)
		},
		func(b *builder) (q, k, v *graph.Value) {
			return split(b, project(b), 2, 4), split(b, cut(b, 4), 2, 4), split(b, project(b), 2, 4)
		},
		func(b *builder) (q, k, v *graph.Value) {
			return split(b, project(b), 2, 4), split(b, cut(b, 8), 2, 4), split(b, project(b), 2, 4)
		},
	}
	describe := func(which ...int) []string {
		b := newBuilder()
		for _, i := range which {
			b.finish(layers[i](&b))
		}
		r := attention.Find(b.Model)
		var out []string
		for _, x := range r.Blocks {
			out = append(out, fmt.Sprint(x.Heads, x.KVHeads, x.HeadDim, x.Scale, x.KeyOf, x.ValueOf, x.Query.Columns, x.Key.Columns, x.Value.Columns, x.Rotary, x.Output.Rows))
		}
		if len(out) != len(which) {
			t.Fatalf("layers %v: %d blocks, %+v", which, len(out), r.Unsupported)
		}
		return out
	}
	alone := map[string]int{}
	for i := range layers {
		for j := range layers {
			got := describe(i, j, i)
			for at, layer := range []int{i, j, i} {
				if want := describe(layer)[0]; got[at] != want {
					t.Errorf("layers %d, %d, %d: number %d is %s, alone it is %s", i, j, i, at, got[at], want)
				}
			}
		}
		alone[describe(i)[0]]++
	}
	if len(alone) != len(layers) {
		t.Errorf("%d layers have %d descriptions: the test compares what is equal", len(layers), len(alone))
	}
}
