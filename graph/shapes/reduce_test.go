package shapes_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/shapes"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// runtime skips a test where ONNX Runtime is not installed.
func runtime(t *testing.T) {
	t.Helper()
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		t.Skip(err)
	}
}

// same reduces a model and runs it beside what it was: whatever the batch and the lengths, empty caches and steps of
// decoding included, every number is the same. The runtime runs the graphs as they are written: what it fuses where it
// sees through more shapes is rounded in other places.
func same(t *testing.T, m *graph.Model) shapes.Result {
	t.Helper()
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before.onnx"), filepath.Join(dir, "after.onnx")
	if err := m.Save(before, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	res, err := shapes.Reduce(m.Graph)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(after, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	r, err := verify.Run(context.Background(), verify.Request{Original: before, Rewritten: after, Seed: 5, Steps: 3, Session: ort.Options{DisableOptimization: true}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Drift.Lines) == 0 {
		t.Error("nothing was compared")
	}
	for _, l := range r.Drift.Lines {
		if l.Output == "" || l.Metrics.MaxAbs != 0 {
			t.Errorf("%s %s: differs by %v %v", l.Case, l.Output, l.Metrics.MaxAbs, l.Broken)
		}
	}
	return res
}

// A family's graphs, as exporters leave them and with half of the heads in every form, compute the same with less.
func TestSame(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Families() {
		for _, low := range []fusion.Lowering{"", fusion.Grouped, fusion.StaticCache, fusion.GQA} {
			if low == fusion.StaticCache && !f.Decoder {
				continue
			}
			t.Run(f.Name+"/"+string(low), func(t *testing.T) {
				m, err := f.Build(testmodels.Options{Layers: 3, Cache: f.Decoder, Seed: 3})
				if err != nil {
					t.Fatal(err)
				}
				if low != "" {
					halve(t, m, low)
				}
				if res := same(t, m); res.Removed() == 0 {
					t.Errorf("nothing was removed: %+v", res)
				}
			})
		}
	}
}

// Bodies see what is around them; what a loop carries may have another size each time.
func TestSameInBodies(t *testing.T) {
	runtime(t)
	decoder := func(stage testmodels.Stage) *onnxpb.ModelProto {
		return message(t, "llama-gqa", testmodels.Options{Cache: stage == "", Stage: stage, Seed: 3})
	}
	for name, wrapped := range map[string]*onnxpb.ModelProto{
		"merged":     testmodels.Merge(decoder(testmodels.First), decoder(testmodels.Next)),
		"loop":       testmodels.Loop(decoder("")),
		"from empty": testmodels.FromEmpty(testmodels.Loop(decoder(""))),
		"scan":       testmodels.Scan(message(t, "bert", testmodels.Options{Seed: 3})),
		"search":     testmodels.Search("GreedySearch", decoder("")),
	} {
		t.Run(name, func(t *testing.T) {
			data, err := proto.Marshal(wrapped)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "model.onnx")
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			m, err := graph.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			if res := same(t, m); res.Removed() == 0 {
				t.Errorf("nothing was removed: %+v", res)
			}
		})
	}
}

func message(t *testing.T, family string, o testmodels.Options) *onnxpb.ModelProto {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// halve rewrites a model with half of its key heads and half of its value heads.
func halve(t testing.TB, m *graph.Model, low fusion.Lowering) {
	t.Helper()
	blocks := attention.Find(m).Blocks
	cfg, err := fusion.Draft(blocks, func(b *attention.Block) (int, int, error) { return (b.KVHeads + 1) / 2, (b.ValueHeads + 1) / 2, nil })
	if err != nil {
		t.Fatal(err)
	}
	cfg.Lowering = low
	plan, err := cfg.Resolve(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rewrite.Apply(m, plan); err != nil {
		t.Skip(err)
	}
}
