package unfuse_test

import (
	"math"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/unfuse"
	"onnx-dha/ort"
)

// equal reports whether two results are the same to rounding.
func equal(t *testing.T, a, b *ort.Tensor) bool {
	t.Helper()
	x, err := a.Float64s()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Float64s()
	if err != nil {
		t.Fatal(err)
	}
	for i := range x {
		if math.Abs(x[i]-y[i]) > 1e-5 {
			return false
		}
	}
	return true
}

// What cannot be expanded stays as it is, with a reason that names the cause.
func TestRefused(t *testing.T) {
	gqa := func(s *sketch, in map[int]*graph.Value) []*graph.Value {
		out := []*graph.Value{s.in("query", "B=1", "S=3", 32), s.in("key", "B=1", "S=3", 16), s.in("value", "B=1", "S=3", 16), nil, nil,
			s.list("seqlens_k", i32, []float64{2}, "B=1"), s.list("total", i32, []float64{3}), nil, nil, nil, nil, nil}
		for i, v := range in {
			out[i] = v
		}
		return out
	}
	sizes := attrs{graph.IntAttr("num_heads", 4), graph.IntAttr("kv_num_heads", 2)}
	for name, c := range map[string]struct {
		opset int64
		build func(s *sketch)
		want  string
	}{
		"scales of a quantised cache": {17, func(s *sketch) {
			in := append(gqa(s, nil), s.in("k_scale", 1))
			s.node("GroupQueryAttention", "com.microsoft", 3, in, sizes...)
		}, `input 12 ("k_scale") of com.microsoft.GroupQueryAttention is not one that is expanded`},
		"only for CUDA": {17, func(s *sketch) {
			s.node("PackedAttention", "com.microsoft", 1, []*graph.Value{s.in("x", "N", 8), s.constant("w", 8, 24), s.constant("b", 24)}, graph.IntAttr("num_heads", 2))
		}, "only CUDA has a kernel for it"},
		"blocks of keys": {17, func(s *sketch) {
			s.node("SparseAttention", "com.microsoft", 1, []*graph.Value{s.in("x", "B", "S", 8)}, graph.IntAttr("num_heads", 2))
		}, "the blocks of keys that its layout names"},
		"quantised cache": {17, func(s *sketch) {
			s.node("GroupQueryAttention", "com.microsoft", 3, gqa(s, nil), append(sizes, graph.StringAttr("k_quant_type", "PER_TENSOR"))...)
		}, "attribute k_quant_type (PER_TENSOR) is not expanded"},
		"a buffer without a length": {17, func(s *sketch) {
			s.node("GroupQueryAttention", "com.microsoft", 3, gqa(s, map[int]*graph.Value{6: nil, 3: s.in("past_key", "B=1", 2, "M=8", 8), 4: s.in("past_value", "B=1", 2, "M=8", 8)}), sizes...)
			s.m.Graph.Outputs[1].Info.Type = graph.TensorType(f32, "B", 2, "M", 8)
		}, "nothing says how many positions are filled (total_sequence_length)"},
		"rotary without tables": {17, func(s *sketch) {
			s.node("GroupQueryAttention", "com.microsoft", 3, gqa(s, nil), append(sizes, graph.IntAttr("do_rotary", 1))...)
		}, "without tables of cos and sin"},
		"uneven groups": {17, func(s *sketch) {
			s.node("GroupQueryAttention", "com.microsoft", 3, gqa(s, nil), graph.IntAttr("num_heads", 4), graph.IntAttr("kv_num_heads", 3))
		}, "4 query heads do not share 3 key/value heads evenly"},
		"rotary in Attention": {17, func(s *sketch) {
			s.node("Attention", "com.microsoft", 1, []*graph.Value{s.in("x", "B=2", "S=3", 8), s.constant("w", 8, 24), s.constant("b", 24)}, graph.IntAttr("num_heads", 2), graph.IntAttr("do_rotary", 1))
		}, "attribute do_rotary is not expanded"},
		"mask of 4 axes": {17, func(s *sketch) {
			s.node("Attention", "com.microsoft", 1, []*graph.Value{s.in("x", "B=2", "S=3", 8), s.constant("w", 8, 24), s.constant("b", 24), s.given("mask", i32, s.normal, "B=2", 1, 8, 8)}, graph.IntAttr("num_heads", 2))
		}, `the mask "mask" has 4 axes`},
		"sizes that do not fit": {17, func(s *sketch) {
			s.node("Attention", "com.microsoft", 1, []*graph.Value{s.in("x", "B=2", "S=3", 8), s.constant("w", 8, 24), s.constant("b", 24)}, graph.IntAttr("num_heads", 2), graph.IntsAttr("qkv_hidden_sizes", 8, 8, 6))
		}, "qkv_hidden_sizes [8 8 6] do not fit a weight of 24 columns"},
		"an attribute of tomorrow": {17, func(s *sketch) {
			x := s.in("x", "B=2", "S=3", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x}, graph.IntAttr("num_heads", 2), graph.IntAttr("colour", 1))
		}, "attribute colour of com.microsoft.MultiHeadAttention is not one that is expanded"},
		"heads that do not divide": {17, func(s *sketch) {
			x := s.in("x", "B=2", "S=3", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x}, graph.IntAttr("num_heads", 3))
		}, "8 channels, which are not 3 equal heads"},
		"symbolic channels": {17, func(s *sketch) {
			x := s.in("x", "B=2", "S=3", "D=8")
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x}, graph.IntAttr("num_heads", 2))
		}, `dimension 2 of "x" is D`},
		"one direction across": {17, func(s *sketch) {
			k := s.in("k", "B=2", "L=5", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{s.in("x", "B=2", "S=3", 8), k, k}, graph.IntAttr("num_heads", 2), graph.IntAttr("unidirectional", 1))
		}, "attribute unidirectional is not expanded for L keys and S queries"},
		"packed variable-length mask": {17, func(s *sketch) {
			x := s.in("x", "B=2", "S=3", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x, nil, s.given("mask", i32, s.normal, "3*B+2=8")}, graph.IntAttr("num_heads", 2))
		}, "lengths [B] and ends with starts [2·B] are expanded"},
		"an opset of old": {9, func(s *sketch) {
			x := s.in("x", "B=2", "S=3", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x}, graph.IntAttr("num_heads", 2))
		}, "the model imports opset 9 of ai.onnx"},
		"batches transposed": {17, func(s *sketch) {
			s.node("FusedMatMul", "com.microsoft", 1, []*graph.Value{s.in("a", 2, 3, 3), s.in("b", 2, 3, 3)}, graph.IntAttr("transBatchA", 1))
		}, "attribute transBatchA is not expanded"},
		"a sum over one operand": {17, func(s *sketch) {
			s.node("Einsum", "", 1, []*graph.Value{s.in("a", 2, 3), s.in("b", 3, 4)}, graph.StringAttr("equation", "ab,bc->c"))
		}, `sums over 'a' of one operand`},
		"a diagonal": {17, func(s *sketch) {
			s.node("Einsum", "", 1, []*graph.Value{s.in("a", 3, 3), s.in("b", 3, 4)}, graph.StringAttr("equation", "aa,ab->ab"))
		}, `repeats 'a' within an operand`},
		"an ellipsis": {17, func(s *sketch) {
			s.node("Einsum", "", 1, []*graph.Value{s.in("a", 3, 3), s.in("b", 3, 4)}, graph.StringAttr("equation", "...a,ab->...b"))
		}, `is not one of two operands with a named result`},
		"integers": {17, func(s *sketch) {
			x := s.given("x", i64, s.normal, "B=2", "S=3", 8)
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{x, x, x}, graph.IntAttr("num_heads", 2))
		}, "want a floating-point type"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSketch(t, c.opset, f32)
			c.build(s)
			before := len(s.m.Graph.Inits)
			done, refused, err := unfuse.Expand(s.m, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(done) > 0 || len(refused) != 1 || refused[0].Node != s.m.Graph.Nodes[0] || !strings.Contains(refused[0].Why, c.want) {
				t.Errorf("expanded %d, refused %v; want %q", len(done), refused, c.want)
			}
			if len(s.m.Graph.Nodes) != 1 || len(s.m.Graph.Inits) != before {
				t.Errorf("a refusal left %d nodes and %d constants behind", len(s.m.Graph.Nodes), len(s.m.Graph.Inits))
			}
		})
	}
}

// A refusal beside an expansion leaves nothing behind either.
func TestRefusedBesideExpanded(t *testing.T) {
	s := newSketch(t, 17, f32)
	x := s.in("x", "B=2", "S=3", 8)
	first := s.m.Graph.AddNode("MultiHeadAttention", "com.microsoft", "good", []*graph.Value{x, x, x}, []string{"y"}, graph.IntAttr("num_heads", 2))
	s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{first.Out[0], x, x, nil, s.given("mask", i32, s.normal, 7)}, graph.IntAttr("num_heads", 2))
	_, refused, err := unfuse.Expand(s.m, nil)
	if err != nil || len(refused) != 1 {
		t.Fatalf("%v, %v", refused, err)
	}
	for _, n := range s.m.Graph.Nodes {
		if n != refused[0].Node && !strings.HasPrefix(n.Name, "good/") {
			t.Errorf("%v was left behind", n)
		}
	}
}

// A predicate chooses what is expanded; the nodes of an expansion lead back to what must be.
func TestOnly(t *testing.T) {
	build := func() (*sketch, *graph.Node) {
		s := newSketch(t, 17, f32)
		x := s.in("x", "B=2", "S=3", 8)
		a := s.m.Graph.AddNode("MultiHeadAttention", "com.microsoft", "a", []*graph.Value{x, x, x}, []string{"y"}, graph.IntAttr("num_heads", 2))
		s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{a.Out[0], x, x}, graph.IntAttr("num_heads", 2))
		return s, a
	}
	s, a := build()
	done, _, err := unfuse.Expand(s.m, nil)
	if err != nil || len(done) != 2 || done[0].Key != "y" || done[0].Node != `MultiHeadAttention "a"` {
		t.Fatalf("%+v, %v", done, err)
	}
	softmax := s.m.Graph.NodeNamed("a/Softmax")
	if softmax == nil || unfuse.Fused(done, softmax) != a {
		t.Errorf("a/Softmax is %v of %v", softmax, unfuse.Fused(done, softmax))
	}
	only := unfuse.Owners(done, map[*graph.Node]bool{softmax: true})
	s, _ = build()
	done, _, err = unfuse.Expand(s.m, only)
	if err != nil || len(done) != 1 || done[0].Key != "y" {
		t.Errorf("%+v, %v", done, err)
	}
}

// 16-bit models: the runtime runs both forms in the precision that it has for them.
func TestHalf(t *testing.T) {
	runtime(t)
	for name, build := range map[string]func(s *sketch){
		"MultiHeadAttention": func(s *sketch) {
			in := []*graph.Value{s.in("query", "B=2", "S=5", 8), s.in("key", "B=2", "S=5", 8), s.in("value", "B=2", "S=5", 8), s.constant("bias", 24),
				s.list("mask", i32, []float64{1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, "B=2", "T=8"), nil,
				s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4)}
			s.node("MultiHeadAttention", "com.microsoft", 3, in, graph.IntAttr("num_heads", 2), graph.IntAttr("unidirectional", 1), graph.FloatAttr("scale", 0.3))
		},
		"GroupQueryAttention": func(s *sketch) {
			s.node("GroupQueryAttention", "com.microsoft", 3, []*graph.Value{
				s.in("query", "B=1", "S=3", 64), s.in("key", "B=1", "S=3", 32), s.in("value", "B=1", "S=3", 32), s.in("past_key", "B=1", 2, "P=4", 16), s.in("past_value", "B=1", 2, "P=4", 16),
				s.list("seqlens_k", i32, []float64{6}, "B=1"), s.list("total", i32, []float64{7}), s.constant("cos", 16, 8), s.constant("sin", 16, 8),
			}, graph.IntAttr("num_heads", 4), graph.IntAttr("kv_num_heads", 2), graph.IntAttr("do_rotary", 1))
		},
		"RotaryEmbedding": func(s *sketch) {
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{s.in("x", "B=1", "S=3", 16), s.list("p", i64, []float64{4}, 1), s.constant("cos", 16, 4), s.constant("sin", 16, 4)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSketch(t, 17, f16)
			build(s)
			s.exact(2e-3)
			for _, v := range s.expanded().Graph.Outputs {
				if e := graph.Infer(v.Graph).Elem(v); e != f16 {
					t.Errorf("%s became %v", v.Name, e)
				}
			}
		})
	}
	t.Run("Attention", func(t *testing.T) {
		s := newSketch(t, 23, f16)
		s.node("Attention", "", 3, []*graph.Value{s.in("q", "B=2", 4, "S=3", 8), s.in("k", "B=2", 2, "S=3", 8), s.in("v", "B=2", 2, "S=3", 8), nil,
			s.in("past_key", "B=2", 2, "P=4", 8), s.in("past_value", "B=2", 2, "P=4", 8)}, graph.IntAttr("is_causal", 1))
		s.exact(4e-3)
	})
}
