package rewrite_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// Architectures in other dresses, and those whose attention no dress writes, with groups of unequal size.
func TestExactDressed(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Dressed() {
		for _, static := range []bool{false, true} {
			m, err := f.Build(testmodels.Options{Cache: f.Decoder, Static: static, Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "model.onnx")
			if err := m.Save(path, graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, g := range groupings {
				if g.name != "decoupled-unequal" && (g.name != "crossed" || static || testing.Short()) {
					continue
				}
				t.Run(fmt.Sprintf("%s/static=%v/%s", f.Name, static, g.name), func(t *testing.T) { exact(t, path, fusion.Grouped, g.key, g.val, 3) })
			}
		}
	}
}
