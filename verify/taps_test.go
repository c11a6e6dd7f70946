package verify_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// Every point of every layer is there, and drift starts at the layer whose heads were fused, not before.
func TestDriftStartsWhereHeadsAreFused(t *testing.T) {
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	s := prepare(t, f)
	path := filepath.Join(s.dir, "second.onnx")
	var caches []rewrite.CacheChange
	s.open(t, func(m *graph.Model, plan *fusion.Plan) {
		plan.Blocks = plan.Blocks[1:]
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		caches = res.Caches
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	r, err := verify.Run(context.Background(), verify.Request{
		Original: s.original, Rewritten: path, Caches: caches, Taps: s.taps, Steps: 3, Session: ort.Options{Threads: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := r.Layers
	if l.Drift == nil || l.Drift.Layer != 1 || l.Drift.Point != verify.KeyCachePoint || l.Error != nil {
		t.Errorf("drift starts at %+v, errors at %+v", l.Drift, l.Error)
	}
	want := []verify.Point{verify.KeyCachePoint, verify.ValueCachePoint, verify.AttentionPoint, verify.ResidualPoint}
	for _, layer := range l.Layers {
		if len(layer.Points) != len(want) {
			t.Fatalf("layer %d has the points %v", layer.Layer, layer.Points)
		}
		for i, p := range layer.Points {
			if p.Point != want[i] || p.Drift == nil || len(p.Drift.PerStep) < 4 || p.Drift.Metrics.Elements == 0 {
				t.Errorf("layer %d: %s %s: %+v", layer.Layer, p.Point, p.Value, p.Drift)
			}
			if moved := p.Drift.Metrics.MaxRel > 1e-4; moved != (layer.Layer == 1) {
				t.Errorf("layer %d: %s drifts by %v", layer.Layer, p.Point, p.Drift.Metrics.MaxRel)
			}
		}
	}
}

// A copy of a model with external weights lies beside it, leaves them where they are, and goes without a trace.
func TestCopiesLeaveWeightsWhereTheyAre(t *testing.T) {
	f, err := testmodels.Get("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "model.onnx")
	if err := m.Save(path, graph.SaveOptions{External: "file"}); err != nil {
		t.Fatal(err)
	}
	loaded, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	c, err := verify.Beside(loaded)
	if err != nil {
		t.Fatal(err)
	}
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	if filepath.Dir(c.Path) != dir || size(c.Path) == 0 || size(c.Path+".data") > size(path+".data")/10 {
		t.Errorf("the copy %s has %d and %d bytes", c.Path, size(c.Path), size(c.Path+".data"))
	}
	again, err := graph.Load(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
	// A small model, and one that is nowhere, goes to the folder for temporary files.
	c, err = verify.Beside(m)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(c.Path) == dir || size(c.Path) == 0 {
		t.Errorf("the copy is %s", c.Path)
	}
	if err := c.Remove(); err != nil || size(c.Path) != 0 {
		t.Errorf("it stays: %v", err)
	}
}
