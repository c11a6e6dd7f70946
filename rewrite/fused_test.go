package rewrite_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

// exactFused rewrites a model with fused operators through their expansion and runs it against the fused model with tied
// constants, so that what the expansion computes is compared too.
func exactFused(t *testing.T, path string, low fusion.Lowering, key, val func(int) [][]int, steps int) *verify.Report {
	t.Helper()
	dir := t.TempDir()
	load := func() *graph.Model {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	var res *rewrite.Result
	for _, out := range []string{"rewritten.onnx", "tied.onnx"} {
		m := load()
		done, _, err := unfuse.Expand(m, nil)
		if err != nil {
			t.Fatal(err)
		}
		plan, ok := planFor(m, low, key, val)
		if !ok {
			t.Skip("no such grouping")
		}
		if out == "tied.onnx" {
			before := unfuse.Remember(m, done)
			if err := rewrite.Tie(m, plan); err != nil {
				t.Fatal(err)
			}
			m = load()
			err = before.Carry(m)
		} else {
			res, err = rewrite.Apply(m, plan)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		if err := m.Save(filepath.Join(dir, out), graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	described(t, filepath.Join(dir, "rewritten.onnx"), res)
	r, err := verify.Run(context.Background(), verify.Request{
		Original: path, Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"),
		Caches: res.Caches, Steps: steps, Seed: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Exact.Lines {
		if !l.Passed() {
			t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
		}
	}
	return r
}

func TestExactFusedCorpus(t *testing.T) {
	runtime(t)
	for _, name := range []string{
		"onnxruntime/attention_mha", "onnxruntime/gpt2_attention_opt_skiplayernorm", "onnxruntime/hf_fp32_decoder_attention_no_past",
		"onnxruntime/hf_fp16_decoder_attention_with_past", "ort-genai/tiny-random-gpt2-fp32/past",
		"ort-genai/tiny-random-LlamaForCausalLM-fp16/model", "ort-generated/tf2onnx_bert_3d_attention.rnd",
	} {
		path := shared(t, "corpus", filepath.FromSlash(name+".onnx"))
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			t.Run(name+"/"+string(low)+"/one each", func(t *testing.T) { exactFused(t, path, low, single, single, 3) })
			t.Run(name+"/"+string(low)+"/adjacent", func(t *testing.T) { exactFused(t, path, low, adjacent, adjacent, 3) })
			t.Run(name+"/"+string(low)+"/scattered", func(t *testing.T) { exactFused(t, path, low, strided, strided, 3) })
		}
	}
}
