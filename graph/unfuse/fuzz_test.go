package unfuse_test

import (
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
)

// Nothing that a file can hold may stop the program, and what comes out is a consistent graph.
func FuzzExpand(f *testing.F) {
	seed := func(build func(s *sketch)) {
		t := &testing.T{}
		s := newSketch(t, 23, f32)
		build(s)
		path := filepath.Join(f.TempDir(), "seed.onnx")
		if err := s.m.Save(path, graph.SaveOptions{}); err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	seed(func(s *sketch) {
		in := []*graph.Value{s.in("x", "B=2", "S=5", 6), s.constant("w", 6, 24), s.constant("b", 24), s.list("mask", i32, make([]float64, 4), "2*B=4"), s.in("past", 2, "B=2", 2, "P=3", 4)}
		s.node("Attention", "com.microsoft", 2, in, graph.IntAttr("num_heads", 2), graph.IntAttr("unidirectional", 1))
	})
	seed(func(s *sketch) {
		x := s.in("x", "B=2", "S=5", 8)
		s.node("MultiHeadAttention", "com.microsoft", 3, []*graph.Value{x, x, x, s.constant("b", 24), nil, nil, s.in("past_key", "B=2", 2, "P=3", 4), s.in("past_value", "B=2", 2, "P=3", 4)}, graph.IntAttr("num_heads", 2))
	})
	seed(func(s *sketch) {
		s.node("GroupQueryAttention", "com.microsoft", 3, []*graph.Value{s.in("qkv", "B=1", "S=3", 64), nil, nil, nil, nil, nil, nil, s.constant("cos", 16, 4), s.constant("sin", 16, 4)},
			graph.IntAttr("num_heads", 4), graph.IntAttr("kv_num_heads", 2), graph.IntAttr("do_rotary", 1), graph.IntAttr("rotary_interleaved", 1), graph.IntAttr("local_window_size", 3))
	})
	seed(func(s *sketch) {
		s.node("Attention", "", 4, []*graph.Value{s.in("q", "B=2", 4, "S=3", 8), s.in("k", "B=2", 2, "L=5", 8), s.in("v", "B=2", 2, "L=5", 6)}, graph.IntAttr("is_causal", 1), graph.FloatAttr("softcap", 2))
	})
	seed(func(s *sketch) {
		s.node("Einsum", "", 1, []*graph.Value{s.in("x", "B=2", "S=3", 4), s.constant("w", 5, 4, 6)}, graph.StringAttr("equation", "abc,dce->abde"))
	})
	seed(func(s *sketch) {
		s.choose(1, nil, padded, copied, s.in("q", "B=2", 3, "S=2", 4), s.in("k", "B=2", 2, 4, "T=5"))
	})
	seed(func(s *sketch) {
		s.choose(1, whole, inPieces, product, s.in("p", "B=2", 2, "S=1", "C=6"), s.in("v", "B=2", 2, "C=6", 4))
	})
	seed(func(s *sketch) {
		withFunctions(s, 23)
		s.node("twice", "test", 2, []*graph.Value{s.in("x", "N=3", 4), s.in("y", 4)}, graph.FloatAttr("first", 0.5))
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := graph.Read("fuzz.onnx", data)
		if err != nil {
			return
		}
		defer m.Close()
		if m.Check() != nil {
			return
		}
		done, _, err := unfuse.Expand(m, nil)
		if err != nil {
			return
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		attention.Find(m)
		unfuse.Remember(m, done)
	})
}
