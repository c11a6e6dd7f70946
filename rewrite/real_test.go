package rewrite_test

import (
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// shared returns a file of the models that lie beside the repository on the developers' machines, and skips where they
// do not.
func shared(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "shared"}, parts...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skip("the shared models are not here")
	}
	return path
}

// groups returns a grouping whatever the number of heads.
func groups(g ...[]int) func(int) [][]int { return func(int) [][]int { return g } }

// A real exporter's graph with caches (Optimum, GPT-2): prefill and 20 decode steps against the tied reference.
func TestExactCappGPT(t *testing.T) {
	runtime(t)
	path := shared(t, "models", "capp-gpt", "model.onnx")
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		t.Run(string(low), func(t *testing.T) {
			exact(t, path, low, groups([]int{0, 1}, []int{2, 3}), groups([]int{0, 1, 2, 3}), 20)
		})
		t.Run(string(low)+"/scattered", func(t *testing.T) {
			exact(t, path, low, groups([]int{0, 2}, []int{1, 3}), groups([]int{1, 2, 3}, []int{0}), 20)
		})
	}
}

// The model of the demonstration: eight heads, half-split rotary, trained.
func TestExactCharLlama(t *testing.T) {
	runtime(t)
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "model.onnx")
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		t.Run(string(low), func(t *testing.T) {
			exact(t, path, low, groups([]int{0, 1}, []int{2, 3}, []int{4, 5}, []int{6, 7}), all, 20)
		})
		t.Run(string(low)+"/scattered", func(t *testing.T) {
			exact(t, path, low, groups([]int{0, 3}, []int{1, 2, 5}, []int{4, 6, 7}), strided, 20)
		})
	}
}

// A trained grouped-query model with interleaved rotary, converted from a llama2.c checkpoint.
func TestExactStories(t *testing.T) {
	runtime(t)
	m, err := testmodels.FromLlama2C(shared(t, "models", "stories260K", "stories260K.bin"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "stories.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		for _, g := range []struct {
			name string
			key  [][]int
			val  [][]int
		}{
			{"4 to 2", [][]int{{0, 1}, {2, 3}}, [][]int{{0, 1}, {2, 3}}},
			{"4 to 1", [][]int{{0, 1, 2, 3}}, [][]int{{0, 1, 2, 3}}},
			{"unequal", [][]int{{0, 1, 2}, {3}}, [][]int{{0, 1, 2}, {3}}},
			{"decoupled", [][]int{{0, 2}, {1, 3}}, [][]int{{0, 1, 2, 3}}},
		} {
			t.Run(string(low)+"/"+g.name, func(t *testing.T) {
				exact(t, path, low, groups(g.key...), groups(g.val...), 20)
			})
		}
	}
}

// Every model of the corpus whose attention is described is rewritten exactly, where the runtime can run it.
func TestExactCorpus(t *testing.T) {
	runtime(t)
	for _, name := range []string{
		"onnxruntime/attention_symbolic_batch", "onnxruntime/bert_toy_optimized",
		"onnxruntime/gpt2_past", "onnxruntime/gpt2_past_one_layer", "onnxruntime/attention_past_unidir",
		"ort-generated/bert_attention.rnd", "ort-generated/gpt2_attention.rnd", "vespa/dummy_transformer",
	} {
		path := shared(t, append([]string{"corpus"}, filepath.SplitList(filepath.FromSlash(name+".onnx"))...)...)
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			t.Run(name+"/"+string(low), func(t *testing.T) { exact(t, path, low, adjacent, adjacent, 5) })
			t.Run(name+"/"+string(low)+"/scattered", func(t *testing.T) { exact(t, path, low, strided, strided, 5) })
		}
	}
}
