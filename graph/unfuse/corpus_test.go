package unfuse_test

import (
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
)

// shared opens a model that lies beside the repository on the developers' machines, and skips where it does not.
func shared(t *testing.T, name string) *graph.Model {
	t.Helper()
	path := filepath.Join("..", "..", "..", "shared", "corpus", filepath.FromSlash(name)+".onnx")
	if _, err := os.Stat(path); err != nil {
		t.Skip("the shared models are not here")
	}
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Heads of the corpus models that hold fused operators, by block: query, key/value, channels.
func TestFindAfterExpand(t *testing.T) {
	for name, want := range map[string][][3]int{
		"onnxruntime/attention_mha":                         {{2, 2, 8}},
		"onnxruntime/gpt2_attention_opt_skiplayernorm":      {{4, 4, 16}},
		"onnxruntime/hf_fp16_decoder_attention_with_past":   {{2, 2, 5}, {2, 2, 5}},
		"onnxruntime/hf_fp32_decoder_attention_no_past":     {{2, 2, 5}, {2, 2, 5}},
		"ort-genai/tiny-random-LlamaForCausalLM-fp16/model": {{1, 1, 16}, {1, 1, 16}},
		"ort-genai/tiny-random-gpt2-fp32/past":              {{4, 4, 8}, {4, 4, 8}, {4, 4, 8}, {4, 4, 8}, {4, 4, 8}},
		"ort-generated/tf2onnx_bert_3d_attention.rnd":       {{4, 4, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			m := shared(t, name)
			_, refused, err := unfuse.Expand(m, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range refused {
				t.Errorf("%v: %s", r.Node, r.Why)
			}
			r := attention.Find(m)
			for _, u := range r.Unsupported {
				t.Errorf("%v: at %v, %s: %s", u.Node, u.At, u.Wire, u.Why)
			}
			if len(r.Blocks) != len(want) {
				t.Fatalf("%d blocks, want %d", len(r.Blocks), len(want))
			}
			for i, b := range r.Blocks {
				t.Logf("%s %s causal=%v rotary=%v scale=%v mask=%v fixed=%q cache=%v", b.Name, b.Kind, b.Causal, b.Rotary, b.Scale, b.Mask, b.Fixed, b.KeyCache != nil)
				if got := [3]int{b.Heads, b.KVHeads, b.HeadDim}; got != want[i] {
					t.Errorf("block %d has heads %v, want %v", i, got, want[i])
				}
			}
		})
	}
}
