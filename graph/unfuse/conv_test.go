package unfuse_test

import (
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/unfuse"
)

// Convolutions of one element that stand at a product are projections of channels, in one and in two dimensions.
func TestPointwiseConv(t *testing.T) {
	product := func(s *sketch, channels ...any) {
		g := s.m.Graph
		x := s.in("x", append([]any{"B=2"}, channels...)...)
		kernel := []int64{6, 4}
		for range len(channels) - 1 {
			kernel = append(kernel, 1)
		}
		conv := func(name string, in ...*graph.Value) *graph.Value {
			y := g.AddNode("Conv", "", name, in, []string{name + "_out"}).Out[0]
			shape := g.AddInit(graph.NewTensor(name+"_shape", []int64{4}, []int64{0, 2, 3, -1}))
			return g.AddNode("Reshape", "", name+"/heads", []*graph.Value{y, shape}, []string{name + "_heads"}).Out[0]
		}
		q := conv("q", x, s.constant("wq", kernel...), s.constant("bq", 6))
		k := conv("k", x, s.constant("wk", kernel...))
		kt := g.AddNode("Transpose", "", "kt", []*graph.Value{k}, []string{"kt_out"}, graph.IntsAttr("perm", 0, 1, 3, 2)).Out[0]
		s.node("MatMul", "", 1, []*graph.Value{kt, q})
		s.exact(1e-5)
	}
	t.Run("sequence", func(t *testing.T) { each(t, contribOpsets, func(s *sketch) { product(s, 4, "S=5") }) })
	t.Run("image", func(t *testing.T) { each(t, contribOpsets, func(s *sketch) { product(s, 4, "H=2", "W=3") }) })

	t.Run("elsewhere", func(t *testing.T) {
		s := newSketch(t, 17, f32)
		s.node("Conv", "", 1, []*graph.Value{s.in("x", "B=2", 4, "S=5"), s.constant("w", 6, 4, 1)})
		done, refused, err := unfuse.Expand(s.reload(), nil)
		if err != nil || len(done)+len(refused) > 0 {
			t.Errorf("%d expanded, %d refused, %v; a convolution away from products is left alone", len(done), len(refused), err)
		}
	})
}
