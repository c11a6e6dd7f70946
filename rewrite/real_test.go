package rewrite_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
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

// Identity groups change nothing that can be seen: every greedy run of the original is reproduced.
func TestIdentityReproducesGolden(t *testing.T) {
	runtime(t)
	path := shared(t, "models", "capp-gpt", "model.onnx")
	raw, err := os.ReadFile(shared(t, "models", "capp-gpt", "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct{ Prompt, Greedy []int64 }
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	if len(golden.Cases) < 100 {
		t.Fatalf("%d golden runs, want 100", len(golden.Cases))
	}
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		apply(t, m, low, single, single)
		out := filepath.Join(t.TempDir(), "identity.onnx")
		if err := m.Save(out, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		v, err := verify.Open(out, ort.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		const eos = 51
		for i, c := range golden.Cases {
			got, err := verify.Generate(context.Background(), v, c.Prompt, len(c.Greedy)+5, eos)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, c.Greedy) {
				t.Errorf("%s: run %d gives %v, want %v", low, i, got, c.Greedy)
			}
		}
	}
}

// Loading and saving without a change gives a model that the runtime cannot tell from the original.
func TestRoundTripRunsTheSame(t *testing.T) {
	runtime(t)
	var files []string
	for _, dir := range []string{"corpus", "models"} {
		root := shared(t, dir)
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if filepath.Ext(path) == ".onnx" {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	ran := 0
	for _, path := range files {
		t.Run(filepath.ToSlash(path), func(t *testing.T) {
			m, err := graph.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			out := filepath.Join(t.TempDir(), "again.onnx")
			if err := m.Save(out, graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			same := verify.Identical()
			r, err := verify.Run(context.Background(), verify.Request{Original: path, Rewritten: out, Drift: &same, Steps: 2})
			if err != nil {
				t.Skipf("the runtime cannot run the original: %v", err)
			}
			for _, l := range r.Drift.Lines {
				if !l.Passed() && !nan(path) {
					t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
				}
			}
			ran++
		})
	}
	if ran < 20 {
		t.Errorf("only %d of %d models could be run", ran, len(files))
	}
}

// nan names the one corpus model whose outputs are NaN for a single token after a past, whoever runs it.
func nan(path string) bool { return filepath.Base(path) == "gpt2_attention_opt_skiplayernorm.onnx" }
