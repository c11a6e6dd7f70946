package shapes_test

import (
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/shapes"
)

// Whatever a file holds: a graph that is consistent stays so, and one that is not is refused.
func FuzzReduce(f *testing.F) {
	for _, build := range []func(s small){
		func(s small) { s.out(s.heads("q", s.x, s.x, s.x, graph.IntAttr("allowzero", 1))) },
		func(s small) {
			s.out(s.heads("q", s.op("Add", "a", []*graph.Value{s.x, s.y}), s.ids, s.y))
			s.out(s.heads("k", s.op("Relu", "b", []*graph.Value{s.x}), s.ids, s.y))
		},
	} {
		s := newSmall()
		build(s)
		path := filepath.Join(f.TempDir(), "model.onnx")
		if err := s.Model.Save(path, graph.SaveOptions{}); err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := graph.Read("fuzzed", data)
		if err != nil {
			return
		}
		defer m.Close()
		before := m.Check()
		if _, err := shapes.Reduce(m.Graph); err != nil && before == nil {
			t.Fatal(err)
		}
		if after := m.Check(); (before == nil) != (after == nil) {
			t.Fatalf("check before: %v; after: %v", before, after)
		}
	})
}
