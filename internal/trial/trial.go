// Package trial makes the models that tests of several packages try.
package trial

import (
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// Model saves a test model of a family and returns its path.
func Model(t testing.TB, family string, o testmodels.Options) string {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	return save(t, m, "model.onnx")
}

// Heads says how many key and value heads a block keeps.
type Heads func(*attention.Block) (keys, values int)

// Rewrite writes the model at path with as many key and value heads in each block as heads says, and returns the path of
// the result.
func Rewrite(t testing.TB, path string, lowering fusion.Lowering, heads Heads) string {
	t.Helper()
	return change(t, path, "rewritten.onnx", lowering, heads, func(m *graph.Model, plan *fusion.Plan) error {
		_, err := rewrite.Apply(m, plan)
		return err
	})
}

// Tie writes the tied reference of that.
func Tie(t testing.TB, path string, heads Heads) string {
	t.Helper()
	return change(t, path, "tied.onnx", fusion.Auto, heads, rewrite.Tie)
}

func change(t testing.TB, path, name string, lowering fusion.Lowering, heads Heads, apply func(*graph.Model, *fusion.Plan) error) string {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	blocks := attention.Find(m).Blocks
	cfg, err := fusion.Draft(blocks, func(b *attention.Block) (int, int, error) {
		k, v := heads(b)
		return k, v, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Lowering = lowering
	plan, err := cfg.Resolve(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if err := apply(m, plan); err != nil {
		t.Fatal(err)
	}
	return save(t, m, name)
}

func save(t testing.TB, m *graph.Model, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}
