package rewrite_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/testmodels"
)

// Low-rank adapters beside the projections are fused along, on separate and on packed projections, as floats and
// quantised.
func TestExactAdapters(t *testing.T) {
	runtime(t)
	for _, name := range []string{"llama", "llama-gqa", "gpt2-matmul", "bert"} {
		for _, scheme := range []string{"", "int8-column", "nbits-4"} {
			for _, g := range []string{"scattered", "unequal", "keys-only"} {
				if scheme != "" && g != "scattered" {
					continue
				}
				t.Run(fmt.Sprint(name, "/", scheme, "/", g), func(t *testing.T) {
					f, err := testmodels.Get(name)
					if err != nil {
						t.Fatal(err)
					}
					m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 3, Heads: 8, KVHeads: map[string]int{"llama-gqa": 4}[name]})
					if err != nil {
						t.Fatal(err)
					}
					if err := testmodels.Adapt(m, 4, 5); err != nil {
						t.Fatal(err)
					}
					for _, s := range testmodels.Schemes() {
						if s.Name == scheme {
							if err := s.Quantise(m); err != nil {
								t.Fatal(err)
							}
						}
					}
					path := filepath.Join(t.TempDir(), "model.onnx")
					if err := m.Save(path, graph.SaveOptions{}); err != nil {
						t.Fatal(err)
					}
					for _, b := range attention.Find(m).Blocks {
						if len(b.Key.Adapters) != 1 || len(b.Value.Adapters) != 1 || len(b.Query.Adapters) != 1 {
							t.Errorf("%s: %d, %d and %d adapters, want one each", b.Name, len(b.Query.Adapters), len(b.Key.Adapters), len(b.Value.Adapters))
						}
					}
					key, val := grouping(g)
					exact(t, path, fusion.Grouped, key, val, -1)
				})
			}
		}
	}
}
