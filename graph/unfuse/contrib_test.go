package unfuse_test

import (
	"fmt"
	"slices"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

type attrs = []*onnxpb.AttributeProto

// The packed operator: every kind of mask, cache, size and scale that the CPU runs.
func TestPackedAttention(t *testing.T) {
	cases := map[string]func(s *sketch, in *[]*graph.Value) (attrs, int){
		"plain": func(s *sketch, in *[]*graph.Value) (attrs, int) { return nil, 1 },
		"unidirectional": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			return attrs{graph.IntAttr("unidirectional", 1)}, 1
		},
		"present without past": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			return attrs{graph.IntAttr("unidirectional", 1)}, 2
		},
		"scale": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			return attrs{graph.FloatAttr("scale", 0.7)}, 1
		},
		"lengths": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{5, 3}, "B=2")
			return nil, 1
		},
		"ends and starts": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{5, 4, 2, 1}, "2*B=4")
			return nil, 1
		},
		"mask of keys": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{1, 1, 1, 1, 0, 1, 1, 0, 1, 1}, "B=2", "S=5")
			return attrs{graph.FloatAttr("mask_filter_value", -500)}, 1
		},
		"mask of pairs": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.given("mask", i32, func(i int) float64 { return float64(min(i%4+i%3, 1)) }, "B=2", "S=5", "S=5")
			return nil, 1
		},
		"mask of keys, unidirectional": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{1, 1, 1, 1, 0, 1, 1, 0, 1, 1}, "B=2", "S=5")
			return attrs{graph.IntAttr("unidirectional", 1)}, 1
		},
		"past": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1}, "B=2", "T=8")
			(*in)[4] = s.in("past", 2, "B=2", 2, "P=3", 4)
			return attrs{graph.IntAttr("unidirectional", 1)}, 2
		},
		"empty past": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[4] = s.in("past", 2, "B=2", 2, "P=0", 4)
			return attrs{graph.IntAttr("unidirectional", 1)}, 2
		},
		"bias of the scores": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[5] = s.in("bias_qk", "B=2", 2, "S=5", "S=5")
			return nil, 1
		},
		"bias of the scores for all, mask": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.list("mask", i32, []float64{1, 1, 1, 1, 0, 1, 1, 0, 1, 1}, "B=2", "S=5")
			(*in)[5] = s.in("bias_qk", 1, 1, "S=5", "S=5")
			return nil, 1
		},
	}
	for name, prepare := range cases {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				in := []*graph.Value{s.in("x", "B=2", "S=5", 6), s.constant("w", 6, 24), s.constant("b", 24), nil, nil, nil}
				a, outs := prepare(s, &in)
				s.node("Attention", "com.microsoft", outs, in, append(a, graph.IntAttr("num_heads", 2))...)
				s.exact(1e-5)
			})
		})
	}
	// The kernel for the CPU stops the process when there is no bias, so this one is held against a bias of zeros.
	t.Run("no bias", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			x, weight := s.in("x", "B=2", "S=5", 6), s.constant("w", 6, 24)
			zeros := s.m.Graph.AddInit(graph.NewTensor("zeros", []int64{24}, make([]float32, 24)))
			s.node("Attention", "com.microsoft", 1, []*graph.Value{x, weight, zeros}, graph.IntAttr("num_heads", 2))
			want, err := s.run(s.m, "fused")
			if err != nil {
				t.Fatal(err)
			}
			s.m.Graph.Nodes[0].SetInput(2, nil)
			got, err := s.run(s.expanded(), "expanded")
			if err != nil {
				t.Fatal(err)
			}
			near(t, want, got, 1e-5)
		})
	})
	t.Run("sizes of their own", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			in := []*graph.Value{s.in("x", "B=2", "S=5", 6), s.constant("w", 6, 22), s.constant("b", 22)}
			s.node("Attention", "com.microsoft", 1, in, graph.IntAttr("num_heads", 2), graph.IntsAttr("qkv_hidden_sizes", 8, 8, 6))
			s.exact(1e-5)
		})
	})
}

func TestMultiHeadAttention(t *testing.T) {
	cases := map[string]func(s *sketch, in *[]*graph.Value) (attrs, int){
		"plain":          func(s *sketch, in *[]*graph.Value) (attrs, int) { return nil, 1 },
		"presents":       func(s *sketch, in *[]*graph.Value) (attrs, int) { return nil, 3 },
		"unidirectional": func(s *sketch, in *[]*graph.Value) (attrs, int) { return attrs{graph.IntAttr("unidirectional", 1)}, 1 },
		"scale":          func(s *sketch, in *[]*graph.Value) (attrs, int) { return attrs{graph.FloatAttr("scale", 0.25)}, 1 },
		"bias": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.constant("bias", 24)
			return nil, 1
		},
		"computed bias": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.in("bias", 24)
			return nil, 1
		},
		"values of their own size": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[2] = s.in("value6", "B=2", "S=5", 6)
			(*in)[3] = s.constant("bias", 22)
			return nil, 1
		},
		"lengths": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[4] = s.list("mask", i32, []float64{5, 3}, "B=2")
			return nil, 1
		},
		"mask of keys": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[4] = s.list("mask", i32, []float64{1, 1, 1, 1, 0, 1, 1, 0, 1, 1}, "B=2", "S=5")
			return nil, 1
		},
		"mask of pairs": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[4] = s.given("mask", i32, func(i int) float64 { return float64(min(i%4+i%3, 1)) }, "B=2", "S=5", "S=5")
			return nil, 1
		},
		"bias of the scores": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[5] = s.in("bias_qk", "B=2", 2, "S=5", "S=5")
			return nil, 1
		},
		"past": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[3] = s.constant("bias", 24)
			(*in)[6], (*in)[7] = s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4)
			return attrs{graph.IntAttr("unidirectional", 1)}, 3
		},
		"past, bias of the scores": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[5] = s.in("bias_qk", 1, 1, "S=5", "T=8")
			(*in)[6], (*in)[7] = s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4)
			return nil, 3
		},
		"past, mask of keys": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[4] = s.list("mask", i32, []float64{1, 0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1}, "B=2", "T=8")
			(*in)[6], (*in)[7] = s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4)
			return attrs{graph.IntAttr("unidirectional", 1)}, 3
		},
		"cross": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[1], (*in)[2] = s.in("k7", "B=2", "L=7", 8), s.in("v7", "B=2", "L=7", 8)
			(*in)[3] = s.constant("bias", 24)
			return nil, 3
		},
		"cross, cached": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[1], (*in)[2] = s.in("k7", "B=2", 2, "L=7", 4), s.in("v7", "B=2", 2, "L=7", 4)
			return nil, 1
		},
		"cross, cached, bias": func(s *sketch, in *[]*graph.Value) (attrs, int) {
			(*in)[1], (*in)[2] = s.in("k7", "B=2", 2, "L=7", 4), s.in("v7", "B=2", 2, "L=7", 4)
			(*in)[3] = s.constant("bias", 24)
			return nil, 1
		},
	}
	for name, prepare := range cases {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				in := []*graph.Value{s.in("query", "B=2", "S=5", 8), s.in("key", "B=2", "S=5", 8), s.in("value", "B=2", "S=5", 8), nil, nil, nil, nil, nil}
				a, outs := prepare(s, &in)
				s.node("MultiHeadAttention", "com.microsoft", outs, in, append(a, graph.IntAttr("num_heads", 2))...)
				s.exact(1e-5)
			})
		})
	}
}

// The operator with 8-bit operands: the projection becomes a product of integers.
func TestQuantizedAttention(t *testing.T) {
	for name, columns := range map[string]int64{"one scale": 1, "a scale for each column": 24} {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				byte8 := func(int) float64 { return float64(s.rand.IntN(256)) }
				u8 := onnxpb.TensorProto_UINT8
				weight := make([]uint8, 6*24)
				for i := range weight {
					weight[i] = uint8(s.rand.IntN(256))
				}
				scales, zeros := make([]float32, columns), make([]uint8, columns)
				for i := range scales {
					scales[i], zeros[i] = 0.01+0.0005*float32(i), uint8(120+i)
				}
				dims := []int64{columns}
				if columns == 1 {
					dims = nil
				}
				g := s.m.Graph
				in := []*graph.Value{
					s.given("x", u8, byte8, "B=2", "S=5", 6), g.AddInit(graph.NewTensor("w", []int64{6, 24}, weight)), s.constant("b", 24),
					g.AddInit(graph.NewTensor("x_scale", nil, []float32{0.02})), g.AddInit(graph.NewTensor("w_scale", dims, scales)),
					s.list("mask", i32, []float64{1, 1, 1, 1, 0, 1, 1, 0, 1, 1}, "B=2", "S=5"),
					g.AddInit(graph.NewTensor("x_zero", nil, []uint8{100})), g.AddInit(graph.NewTensor("w_zero", dims, zeros)),
				}
				s.node("QAttention", "com.microsoft", 1, in, graph.IntAttr("num_heads", 2))
				s.exact(1e-5)
			})
		})
	}
}

// Forms that no kernel for the CPU runs are held against the same attention in a form that one does.
func TestMultiHeadAttentionForms(t *testing.T) {
	const n, h = 2, 4
	// Queries, keys and values [2, 5, 8] of one random packed tensor [2, 5, 2, 3, 4].
	packed := func(s *sketch) (all []float64, apart func(i int) []float64) {
		for range 2 * 5 * n * 3 * h {
			all = append(all, s.normal(0))
		}
		return all, func(i int) []float64 {
			var out []float64
			for row := range 2 * 5 * n {
				out = append(out, all[(row*3+i)*h:(row*3+i+1)*h]...)
			}
			return out
		}
	}
	reference := func(s *sketch, q, k, v []float64) map[string]*ort.Tensor {
		in := []*graph.Value{
			s.list("query", f32, q, "B=2", "S=5", n*h), s.list("key", f32, k, "B=2", "S=5", n*h), s.list("value", f32, v, "B=2", "S=5", n*h), s.constant("bias", 3*n*h),
		}
		s.node("MultiHeadAttention", "com.microsoft", 1, in, graph.IntAttr("num_heads", n))
		want, err := s.run(s.m, "fused")
		if err != nil {
			t.Fatal(err)
		}
		return want
	}
	t.Run("all packed", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			all, apart := packed(s)
			other := newSketch(t, 17, f32)
			want := reference(other, apart(0), apart(1), apart(2))
			s.rand = newSketch(t, 17, f32).rand // the same bias
			s.node("MultiHeadAttention", "com.microsoft", 1, []*graph.Value{s.list("qkv", f32, all, "B=2", "S=5", n, 3, h), nil, nil, s.constant("bias", 3*n*h)}, graph.IntAttr("num_heads", n))
			got, err := s.run(s.expanded(), "expanded")
			if err != nil {
				t.Fatal(err)
			}
			near(t, want, got, 1e-5)
		})
	})
	t.Run("keys and values packed", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			all, apart := packed(s)
			other := newSketch(t, 17, f32)
			want := reference(other, apart(0), apart(1), apart(2))
			var kv []float64
			for row := range 2 * 5 * n {
				kv = append(kv, all[(row*3+1)*h:(row*3+3)*h]...)
			}
			s.rand = newSketch(t, 17, f32).rand
			in := []*graph.Value{s.list("query", f32, apart(0), "B=2", "S=5", n*h), s.list("kv", f32, kv, "B=2", "S=5", n, 2, h), nil, s.constant("bias", 3*n*h)}
			s.node("MultiHeadAttention", "com.microsoft", 1, in, graph.IntAttr("num_heads", n))
			got, err := s.run(s.expanded(), "expanded")
			if err != nil {
				t.Fatal(err)
			}
			near(t, want, got, 1e-5)
		})
	})
	t.Run("one step of decoding", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			q, k, v := s.in("query", "B=2", 1, 8), s.in("key", "B=2", 1, 8), s.in("value", "B=2", 1, 8)
			mask := s.list("mask", i32, []float64{1, 0, 1, 1, 1, 1, 1, 1}, "B=2", "T=4")
			pastKey, pastValue, bias := s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4), s.constant("bias", 24)
			s.node("MultiHeadAttention", "com.microsoft", 3, []*graph.Value{q, k, v, bias, mask, nil, pastKey, pastValue}, graph.IntAttr("num_heads", 2))
			want, err := s.run(s.m, "fused")
			if err != nil {
				t.Fatal(err)
			}
			m := s.m.Graph.Nodes[0]
			m.OpType = "DecoderMaskedMultiHeadAttention"
			for i, v := range []*graph.Value{q, k, v, mask, nil, pastKey, pastValue, nil, nil, nil, bias} {
				m.SetInput(i, v)
			}
			got, err := s.run(s.expanded(), "expanded")
			if err != nil {
				t.Fatal(err)
			}
			near(t, want, got, 1e-5)
		})
	})
}

func TestGroupQueryAttention(t *testing.T) {
	const n, g, h = 4, 2, 16
	build := func(s *sketch, seq, past int, packed, rotary bool) []*graph.Value {
		q := []any{"B=1", "S=" + string(rune('0'+seq))}
		in := make([]*graph.Value, 11)
		if packed {
			in[0] = s.in("qkv", append(q, (n+2*g)*h)...)
		} else {
			in[0], in[1], in[2] = s.in("query", append(q, n*h)...), s.in("key", append(q, g*h)...), s.in("value", append(q, g*h)...)
		}
		if past > 0 {
			p := "P=" + string(rune('0'+past))
			in[3], in[4] = s.in("past_key", "B=1", g, p, h), s.in("past_value", "B=1", g, p, h)
		}
		in[5] = s.list("seqlens_k", i32, []float64{float64(seq + past - 1)}, "B=1")
		in[6] = s.list("total", i32, []float64{float64(seq + past)})
		if rotary {
			in[7], in[8] = s.constant("cos", 16, h/2), s.constant("sin", 16, h/2)
		}
		return in
	}
	heads := attrs{graph.IntAttr("num_heads", n), graph.IntAttr("kv_num_heads", g)}
	for name, c := range map[string]struct {
		seq, past      int
		packed, rotary bool
		attrs          attrs
	}{
		"prompt":             {seq: 5},
		"prompt, packed":     {seq: 5, packed: true},
		"step":               {seq: 1, past: 4},
		"step, packed":       {seq: 1, past: 4, packed: true},
		"chunk":              {seq: 3, past: 4},
		"scale":              {seq: 5, attrs: attrs{graph.FloatAttr("scale", 0.9)}},
		"softcap":            {seq: 5, attrs: attrs{graph.FloatAttr("softcap", 1.5)}},
		"window":             {seq: 6, attrs: attrs{graph.IntAttr("local_window_size", 3)}},
		"window, step":       {seq: 1, past: 6, attrs: attrs{graph.IntAttr("local_window_size", 3)}},
		"window, chunk":      {seq: 4, past: 5, attrs: attrs{graph.IntAttr("local_window_size", 3)}},
		"rotary":             {seq: 5, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"rotary, step":       {seq: 1, past: 6, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"rotary, chunk":      {seq: 2, past: 6, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"rotary, packed":     {seq: 5, packed: true, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"rotary interleaved": {seq: 5, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1), graph.IntAttr("rotary_interleaved", 1)}},
		"smooth softmax":     {seq: 3, past: 4, attrs: attrs{graph.IntAttr("smooth_softmax", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				s.node("GroupQueryAttention", "com.microsoft", 3, build(s, c.seq, c.past, c.packed, c.rotary), append(c.attrs, heads...)...)
				s.exact(1e-5)
			})
		})
	}
	t.Run("bias of the scores", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			in := build(s, 3, 4, false, false)
			in[10] = s.in("bias_qk", 1, n, "S=3", "T=7")
			s.node("GroupQueryAttention", "com.microsoft", 3, in, heads...)
			s.exact(1e-5)
		})
	})
	t.Run("sinks", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			in := append(build(s, 3, 4, false, false), s.constant("head_sink", n))
			s.node("GroupQueryAttention", "com.microsoft", 3, in, append(heads, graph.IntAttr("local_window_size", 3))...)
			s.exact(1e-5)
		})
	})
	t.Run("positions", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			in := build(s, 3, 0, false, true)
			in[9] = s.list("position_ids", i64, []float64{3, 4, 5}, "B=1", "S=3")
			s.node("GroupQueryAttention", "com.microsoft", 3, in, append(heads, graph.IntAttr("do_rotary", 1))...)
			s.exact(1e-5)
		})
	})
	// Caches in buffers of 8 positions: what lies behind the filled ones is nobody's business.
	for name, c := range map[string]struct {
		batch, seq, past int
		rotary           bool
		attrs            attrs
	}{
		"buffer, prompt":         {batch: 1, seq: 5},
		"buffer, step":           {batch: 1, seq: 1, past: 4},
		"buffer, batch":          {batch: 3, seq: 1, past: 6},
		"buffer, rotary":         {batch: 2, seq: 1, past: 4, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"buffer, rotary, prompt": {batch: 2, seq: 3, rotary: true, attrs: attrs{graph.IntAttr("do_rotary", 1)}},
		"buffer, window":         {batch: 1, seq: 1, past: 6, attrs: attrs{graph.IntAttr("local_window_size", 3)}},
		"buffer, full":           {batch: 1, seq: 2, past: 6},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				rows := fmt.Sprint("B=", c.batch)
				q := []any{rows, fmt.Sprint("S=", c.seq)}
				in := make([]*graph.Value, 11)
				in[0], in[1], in[2] = s.in("query", append(q, n*h)...), s.in("key", append(q, g*h)...), s.in("value", append(q, g*h)...)
				in[3], in[4] = s.in("past_key", rows, g, "M=8", h), s.in("past_value", rows, g, "M=8", h)
				last := make([]float64, c.batch)
				for i := range last {
					last[i] = float64(c.past + c.seq - 1)
				}
				in[5], in[6] = s.list("seqlens_k", i32, last, rows), s.list("total", i32, []float64{float64(c.past + c.seq)})
				if c.rotary {
					in[7], in[8] = s.constant("cos", 16, h/2), s.constant("sin", 16, h/2)
				}
				s.node("GroupQueryAttention", "com.microsoft", 3, in, append(c.attrs, heads...)...)
				for _, o := range s.m.Graph.Outputs[1:] {
					o.Info.Type = graph.TensorType(f32, "B", g, "M", h)
				}
				want, err := s.run(s.m, "fused")
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.run(s.expanded(), "expanded")
				if err != nil {
					t.Fatal(err)
				}
				for _, present := range []string{"out1", "out2"} {
					for _, out := range []map[string]*ort.Tensor{want, got} {
						out[present] = s.filled(out[present], c.past+c.seq)
					}
				}
				near(t, want, got, 1e-5)
			})
		})
	}
	t.Run("prompts of two lengths", func(t *testing.T) {
		each(t, contribOpsets, func(s *sketch) {
			q := []any{"B=2", "S=4"}
			in := make([]*graph.Value, 7)
			in[0], in[1], in[2] = s.in("query", append(q, n*h)...), s.in("key", append(q, g*h)...), s.in("value", append(q, g*h)...)
			in[5], in[6] = s.list("seqlens_k", i32, []float64{3, 3}, "B=2"), s.list("total", i32, []float64{4})
			s.node("GroupQueryAttention", "com.microsoft", 3, in, heads...)
			s.exact(1e-5)
		})
	})
}

// filled takes the first positions of a cache [B, G, C, H].
func (s *sketch) filled(cache *ort.Tensor, positions int) *ort.Tensor {
	x, err := cache.Float64s()
	if err != nil {
		s.t.Fatal(err)
	}
	shape := slices.Clone(cache.Shape)
	shape[2] = int64(positions)
	length, width := int(cache.Shape[2]), int(cache.Shape[3])
	return s.values(cache.DType, shape, func(i int) float64 {
		return x[i/(positions*width)*length*width+i%(positions*width)]
	})
}

func TestRotaryEmbedding(t *testing.T) {
	tables := func(s *sketch, half int64) (*graph.Value, *graph.Value) {
		return s.constant("cos", 16, half), s.constant("sin", 16, half)
	}
	for name, build := range map[string]func(s *sketch){
		"merged": func(s *sketch) {
			cos, sin := tables(s, 4)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3"), cos, sin})
		},
		"by heads": func(s *sketch) {
			cos, sin := tables(s, 4)
			x := s.in("x", "B=2", 2, "S=3", 8)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3"), cos, sin})
		},
		"first position": func(s *sketch) {
			cos, sin := tables(s, 4)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{4}, 1), cos, sin})
		},
		"interleaved": func(s *sketch) {
			cos, sin := tables(s, 4)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3"), cos, sin}, graph.IntAttr("interleaved", 1))
		},
		"partial": func(s *sketch) {
			cos, sin := tables(s, 2)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3"), cos, sin},
				graph.IntAttr("num_heads", 2), graph.IntAttr("rotary_embedding_dim", 4))
		},
		"partial, interleaved": func(s *sketch) {
			cos, sin := tables(s, 2)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "com.microsoft", 1, []*graph.Value{x, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3"), cos, sin},
				graph.IntAttr("num_heads", 2), graph.IntAttr("rotary_embedding_dim", 4), graph.IntAttr("interleaved", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, contribOpsets, func(s *sketch) {
				build(s)
				s.exact(1e-6)
			})
		})
	}
	for name, build := range map[string]func(s *sketch){
		"standard": func(s *sketch) {
			cos, sin := tables(s, 4)
			x := s.in("x", "B=2", 2, "S=3", 8)
			s.node("RotaryEmbedding", "", 1, []*graph.Value{x, cos, sin, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3")})
		},
		"standard, merged, partial": func(s *sketch) {
			cos, sin := tables(s, 2)
			x := s.in("x", "B=2", "S=3", 16)
			s.node("RotaryEmbedding", "", 1, []*graph.Value{x, cos, sin, s.list("p", i64, []float64{0, 1, 2, 5, 6, 7}, "B=2", "S=3")},
				graph.IntAttr("num_heads", 2), graph.IntAttr("rotary_embedding_dim", 4))
		},
		"standard, rows given": func(s *sketch) {
			x := s.in("x", "B=2", 2, "S=3", 8)
			s.node("RotaryEmbedding", "", 1, []*graph.Value{x, s.in("c", "B=2", "S=3", 4), s.in("s", "B=2", "S=3", 4)}, graph.IntAttr("interleaved", 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, []int64{23}, func(s *sketch) {
				build(s)
				s.exact(1e-6)
			})
		})
	}
}
