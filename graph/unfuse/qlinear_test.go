package unfuse_test

import (
	"slices"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// codes declares an input of random bytes.
func (s *sketch) codes(name string, dims ...any) *graph.Value {
	return s.given(name, onnxpb.TensorProto_UINT8, func(int) float64 { return float64(s.rand.IntN(256)) }, dims...)
}

// affine are constants for a scale and a zero point of uint8.
func (s *sketch) affine(name string, scale float32, zero uint8) (*graph.Value, *graph.Value) {
	return s.m.Graph.AddInit(graph.NewTensor(name+"_scale", nil, []float32{scale})), s.m.Graph.AddInit(graph.NewTensor(name+"_zero_point", nil, []uint8{zero}))
}

// bytes is a constant of random int8.
func (s *sketch) bytes(name string, dims ...int64) *graph.Value {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	data := make([]int8, n)
	for i := range data {
		data[i] = int8(s.rand.IntN(256) - 128)
	}
	return s.m.Graph.AddInit(graph.NewTensor(name, dims, data))
}

// quantised adds an operator that gives codes of uint8.
func (s *sketch) quantised(op, domain string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) {
	s.node(op, domain, 1, in, attrs...)
	s.m.Graph.Outputs[0].Info.Type = graph.TensorType(onnxpb.TensorProto_UINT8)
	s.m.Graph.Outputs[0].Info.Type.GetTensorType().Shape = nil
}

// step is one code in 255: integer arithmetic and floats may round a sum that lies halfway to different ones.
const step = 1.01 / 255

// Operators on codes compute what floats between DequantizeLinear and QuantizeLinear do.
func TestQuantisedOperators(t *testing.T) {
	for name, build := range map[string]func(s *sketch){
		"QLinearMatMul": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			ys, yz := s.affine("y", 0.5, 100)
			w := s.bytes("w", 6, 4)
			ws := s.m.Graph.AddInit(graph.NewTensor("w_scale", nil, []float32{0.01}))
			wz := s.m.Graph.AddInit(graph.NewTensor("w_zero_point", nil, []int8{3}))
			s.quantised("QLinearMatMul", "", []*graph.Value{s.codes("a", "b=2", "s=5", 6), as, az, w, ws, wz, ys, yz})
		},
		"QLinearMatMul of activations": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			ys, yz := s.affine("y", 0.04, 128)
			s.quantised("QLinearMatMul", "", []*graph.Value{s.codes("a", "b=2", "s=5", 6), as, az, s.codes("c", "b=2", 6, "s=5"), as, az, ys, yz})
		},
		"QLinearAdd": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			bs, bz := s.affine("b", 0.03, 10)
			ys, yz := s.affine("y", 0.06, 60)
			s.quantised("QLinearAdd", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 8), as, az, s.codes("b", 8), bs, bz, ys, yz})
		},
		"QLinearMul": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			ys, yz := s.affine("y", 0.06, 60)
			s.quantised("QLinearMul", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 8), as, az, s.codes("b", "n=3", 8), as, az, ys, yz})
		},
		"QLinearSigmoid": func(s *sketch) {
			as, az := s.affine("a", 0.04, 120)
			ys, yz := s.affine("y", 1./255, 0)
			s.quantised("QLinearSigmoid", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 8), as, az, ys, yz})
		},
		"QLinearLeakyRelu": func(s *sketch) {
			as, az := s.affine("a", 0.04, 120)
			s.quantised("QLinearLeakyRelu", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 8), as, az, as, az}, graph.FloatAttr("alpha", 0.2))
		},
		"QLinearSoftmax": func(s *sketch) {
			as, az := s.affine("a", 0.03, 120)
			ys, yz := s.affine("y", 1./255, 0)
			s.quantised("QLinearSoftmax", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 8), as, az, ys, yz}, graph.IntAttr("axis", -1), graph.IntAttr("opset", s.m.Opset("")))
		},
		"QLinearWhere": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			bs, bz := s.affine("b", 0.03, 10)
			ys, yz := s.affine("y", 0.04, 60)
			where := s.given("where", bit, func(i int) float64 { return float64(i % 2) }, "n=3", 8)
			s.quantised("QLinearWhere", "com.microsoft", []*graph.Value{where, s.codes("a", "n=3", 8), as, az, s.codes("b", "n=3", 8), bs, bz, ys, yz})
		},
		"QLinearConcat": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			bs, bz := s.affine("b", 0.03, 10)
			ys, yz := s.affine("y", 0.04, 60)
			s.quantised("QLinearConcat", "com.microsoft", []*graph.Value{ys, yz, s.codes("a", "n=3", 8), as, az, s.codes("b", "n=3", 4), bs, bz}, graph.IntAttr("axis", 1))
		},
		"QGemm": func(s *sketch) {
			as, az := s.affine("a", 0.02, 120)
			ys, yz := s.affine("y", 0.4, 100)
			ws := s.m.Graph.AddInit(graph.NewTensor("w_scale", nil, []float32{0.01}))
			wz := s.m.Graph.AddInit(graph.NewTensor("w_zero_point", nil, []int8{0}))
			c := s.m.Graph.AddInit(graph.NewTensor("c", []int64{4}, []int32{5000, -4000, 300, 20000}))
			s.quantised("QGemm", "com.microsoft", []*graph.Value{s.codes("a", "n=3", 6), as, az, s.bytes("w", 4, 6), ws, wz, c, ys, yz}, graph.IntAttr("transB", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, []int64{13, 21}, func(s *sketch) {
				build(s)
				s.exact(step)
			})
		})
	}
}

// A scale for each column of a weight is the axis of DequantizeLinear.
func TestQuantisedColumns(t *testing.T) {
	each(t, []int64{13, 21}, func(s *sketch) {
		as, az := s.affine("a", 0.02, 120)
		ys, yz := s.affine("y", 0.5, 100)
		ws := s.m.Graph.AddInit(graph.NewTensor("w_scale", []int64{4}, []float32{0.01, 0.02, 0.005, 0.04}))
		wz := s.m.Graph.AddInit(graph.NewTensor("w_zero_point", []int64{4}, []int8{0, 0, 0, 0}))
		s.quantised("QLinearMatMul", "", []*graph.Value{s.codes("a", "s=5", 6), as, az, s.bytes("w", 6, 4), ws, wz, ys, yz})
		s.exact(step)
	})
}

// Dynamic quantisation of a product of activations becomes the product of what the codes stand for.
func TestDynamicProduct(t *testing.T) {
	each(t, []int64{13, 21}, func(s *sketch) {
		g := s.m.Graph
		q := func(name string, x *graph.Value) []*graph.Value {
			return g.AddNode("DynamicQuantizeLinear", "", name, []*graph.Value{x}, []string{name + "_q", name + "_s", name + "_z"}).Out
		}
		a, b := q("qa", s.in("a", "b=2", "s=3", 8)), q("qb", s.in("b", "b=2", 8, "t=4"))
		y := g.AddNode("MatMulInteger", "", "product", []*graph.Value{a[0], b[0], a[2], b[2]}, []string{"sums"}).Out[0]
		y = g.AddNode("Cast", "", "cast", []*graph.Value{y}, []string{"floats"}, graph.IntAttr("to", 1)).Out[0]
		scales := g.AddNode("Mul", "", "scales", []*graph.Value{a[1], b[1]}, []string{"scale"}).Out[0]
		s.node("Mul", "", 1, []*graph.Value{y, scales})
		s.exact(1e-5)
		m := s.expanded()
		if slices.ContainsFunc(m.Graph.Nodes, func(n *graph.Node) bool { return n.Is("MatMulInteger") }) {
			t.Error("the product of integers is still there")
		}
	})
}
