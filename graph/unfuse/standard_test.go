package unfuse_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

var standardOpsets = []int64{23, 24}

func TestStandardAttention(t *testing.T) {
	// Queries have 4 heads of 8 channels, keys and values 2.
	four := func(s *sketch) []*graph.Value {
		return []*graph.Value{s.in("q", "B=2", 4, "S=3", 8), s.in("k", "B=2", 2, "L=5", 8), s.in("v", "B=2", 2, "L=5", 6), nil, nil, nil}
	}
	three := func(s *sketch) []*graph.Value {
		return []*graph.Value{s.in("q", "B=2", "S=3", 32), s.in("k", "B=2", "L=5", 16), s.in("v", "B=2", "L=5", 12), nil, nil, nil}
	}
	past := func(s *sketch, in []*graph.Value) {
		in[4], in[5] = s.in("past_key", "B=2", 2, "P=4", 8), s.in("past_value", "B=2", 2, "P=4", 6)
	}
	merged := attrs{graph.IntAttr("q_num_heads", 4), graph.IntAttr("kv_num_heads", 2)}
	hide := []func(low float64) float64{func(low float64) float64 { return low }, func(float64) float64 { return 0 }}
	for name, build := range map[string]func(s *sketch) ([]*graph.Value, attrs, int){
		"by heads": func(s *sketch) ([]*graph.Value, attrs, int) { return four(s), nil, 1 },
		"merged":   func(s *sketch) ([]*graph.Value, attrs, int) { return three(s), merged, 1 },
		"presents": func(s *sketch) ([]*graph.Value, attrs, int) { return three(s), merged, 3 },
		"scale":    func(s *sketch) ([]*graph.Value, attrs, int) { return four(s), attrs{graph.FloatAttr("scale", 0.3)}, 1 },
		"softcap": func(s *sketch) ([]*graph.Value, attrs, int) {
			return four(s), attrs{graph.FloatAttr("softcap", 0.8)}, 1
		},
		"is_causal": func(s *sketch) ([]*graph.Value, attrs, int) { return four(s), attrs{graph.IntAttr("is_causal", 1)}, 1 },
		"mask of numbers": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.in("mask", "S=3", "L=5")
			return in, nil, 1
		},
		"mask of numbers for each head, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := three(s)
			in[3] = s.in("mask", "B=2", 4, "S=3", "L=5")
			return in, append(attrs{graph.IntAttr("is_causal", 1)}, merged...), 1
		},
		"mask of bits": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i%3, 1)) }, "B=2", 1, "S=3", "L=5")
			return in, nil, 1
		},
		"mask of bits that hides all from a query": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i/5%3, 1)) }, "B=2", 1, "S=3", "L=5")
			return in, nil, 1
		},
		"mask of bits that hides all from a query, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i%5, 1)) }, "B=2", 1, "S=3", "L=5")
			return in, attrs{graph.IntAttr("is_causal", 1)}, 1
		},
		"mask of infinities that hides all from a query": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", f32, func(i int) float64 { return hide[min(i/5%3, 1)](math.Inf(-1)) }, "B=2", 1, "S=3", "L=5")
			return in, nil, 1
		},
		"mask of infinities that hides all from a query, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", f32, func(i int) float64 { return hide[min(i%5, 1)](math.Inf(-1)) }, "B=2", 1, "S=3", "L=5")
			return in, attrs{graph.IntAttr("is_causal", 1)}, 1
		},
		"mask of low numbers that hides all from a query": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", f32, func(i int) float64 { return hide[min(i/5%3, 1)](-math.MaxFloat32) }, "B=2", 1, "S=3", "L=5")
			return in, nil, 1
		},
		"mask of low numbers that hides all from a query, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", f32, func(i int) float64 { return hide[min(i%5, 1)](-math.MaxFloat32) }, "B=2", 1, "S=3", "L=5")
			return in, attrs{graph.IntAttr("is_causal", 1)}, 1
		},
		"mask of -10000 that hides all from a query, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			in[3] = s.given("mask", f32, func(i int) float64 { return hide[min(i%5, 1)](-10000) }, "B=2", 1, "S=3", "L=5")
			return in, attrs{graph.IntAttr("is_causal", 1)}, 1
		},
		"past, mask that hides all from a query, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := three(s)
			past(s, in)
			in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i%9/6, 1)) }, "B=2", 1, "S=3", "T=9")
			return in, append(attrs{graph.IntAttr("is_causal", 1)}, merged...), 3
		},
		"past": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := four(s)
			past(s, in)
			return in, nil, 3
		},
		"past, causal": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := three(s)
			past(s, in)
			return in, append(attrs{graph.IntAttr("is_causal", 1)}, merged...), 3
		},
		"past, mask": func(s *sketch) ([]*graph.Value, attrs, int) {
			in := three(s)
			past(s, in)
			in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i%4, 1)) }, "S=3", "T=9")
			return in, merged, 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, standardOpsets, func(s *sketch) {
				in, a, outs := build(s)
				s.node("Attention", "", outs, in, a...)
				s.exact(1e-5)
			})
		})
	}
	for mode := range int64(4) {
		for name, a := range map[string]attrs{"": nil, ", softcap": {graph.FloatAttr("softcap", 1.1)}} {
			t.Run(fmt.Sprint("scores ", mode, name), func(t *testing.T) {
				each(t, standardOpsets, func(s *sketch) {
					in := four(s)
					past(s, in)
					in[3] = s.in("mask", "S=3", "T=9")
					s.node("Attention", "", 4, in, append(a, graph.IntAttr("qk_matmul_output_mode", mode))...)
					s.exact(1e-5)
				})
			})
		}
	}
	for name, a := range map[string]attrs{"filled": nil, "filled, causal": {graph.IntAttr("is_causal", 1)}} {
		t.Run(name, func(t *testing.T) {
			each(t, []int64{24}, func(s *sketch) {
				in := append(four(s), s.list("filled", i64, []float64{5, 4}, "B=2"))
				s.node("Attention", "", 1, in, a...)
				s.exact(1e-5)
			})
		})
		t.Run(name+", hardly", func(t *testing.T) {
			each(t, []int64{24}, func(s *sketch) {
				in := append(four(s), s.list("filled", i64, []float64{2, 0}, "B=2"))
				s.node("Attention", "", 1, in, a...)
				s.exact(1e-5)
			})
		})
		t.Run(name+", masked", func(t *testing.T) {
			each(t, []int64{24}, func(s *sketch) {
				in := append(four(s), s.list("filled", i64, []float64{2, 4}, "B=2"))
				in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i%5/3, 1)) }, "B=2", 1, "S=3", "L=5")
				s.node("Attention", "", 1, in, a...)
				s.exact(1e-5)
			})
		})
	}
	for mode := range int64(4) {
		t.Run(fmt.Sprint("scores of a query that sees nothing ", mode), func(t *testing.T) {
			each(t, standardOpsets, func(s *sketch) {
				in := four(s)
				in[3] = s.given("mask", bit, func(i int) float64 { return float64(min(i/5%3, 1)) }, "B=2", 1, "S=3", "L=5")
				s.node("Attention", "", 4, in, graph.IntAttr("qk_matmul_output_mode", mode))
				s.exact(1e-5)
			})
		})
	}
}

// The project that defines the operator publishes cases with their results.
func TestPublishedCases(t *testing.T) {
	runtime(t)
	for _, name := range []string{
		"test_attention_3d_gqa_causal", "test_attention_4d", "test_attention_4d_gqa_with_past_and_present", "test_attention_4d_gqa_causal_nonpad_decode",
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join("..", "..", "..", "shared", "corpus", "onnx-backend", name)
			if _, err := os.Stat(dir); err != nil {
				t.Skip("the shared models are not here")
			}
			m, err := graph.Load(filepath.Join(dir, "model.onnx"))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			s := &sketch{t: t, m: m, feed: map[string]*ort.Tensor{}}
			read := func(kind string, i int) *ort.Tensor {
				raw, err := os.ReadFile(filepath.Join(dir, "test_data_set_0", fmt.Sprintf("%s_%d.pb", kind, i)))
				if err != nil {
					t.Fatal(err)
				}
				var pb onnxpb.TensorProto
				if err := proto.Unmarshal(raw, &pb); err != nil {
					t.Fatal(err)
				}
				return &ort.Tensor{DType: onnxpb.TensorProto_DataType(pb.GetDataType()), Shape: pb.Dims, Raw: pb.RawData}
			}
			for i, v := range m.Graph.Inputs {
				s.feed[v.Name] = read("input", i)
			}
			want := map[string]*ort.Tensor{}
			for i, v := range m.Graph.Outputs {
				want[v.Name] = read("output", i)
			}
			got, err := s.run(s.expanded(), "expanded")
			if err != nil {
				t.Fatal(err)
			}
			near(t, want, got, 1e-5)
			for _, x := range want {
				f, err := x.Float64s()
				if err != nil {
					t.Fatal(err)
				}
				for _, y := range f {
					if math.IsNaN(y) {
						t.Fatal("the case expects NaN, which equals nothing")
					}
				}
			}
		})
	}
}
