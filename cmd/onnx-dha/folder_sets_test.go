package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// t5Folder makes a model folder of T5 as Optimum exports it, in single and in half precision.
func t5Folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "t5")
	writeJSON(t, dir, "config.json", object{"model_type": "t5", "is_encoder_decoder": true, "num_heads": 4, "d_model": 32, "d_kv": 8, "num_layers": 2})
	if err := os.Mkdir(filepath.Join(dir, "onnx"), 0o777); err != nil {
		t.Fatal(err)
	}
	for suffix, dtype := range map[string]onnxpb.TensorProto_DataType{"": onnxpb.TensorProto_FLOAT, "_fp16": onnxpb.TensorProto_FLOAT16} {
		for name, stage := range map[string]testmodels.Stage{"encoder_model": "", "decoder_model": testmodels.First, "decoder_with_past_model": testmodels.Next} {
			family, _, _ := strings.Cut(name, "_")
			save(t, filepath.Join(dir, "onnx", name+suffix+".onnx"), "t5-"+family, testmodels.Options{Stage: stage, Seed: 3, DType: dtype}, "")
		}
	}
	return dir
}

// cacheHeads lists the heads of the inputs and outputs of a model that hold caches.
func cacheHeads(t *testing.T, path string) map[string]int64 {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out := map[string]int64{}
	for _, v := range slices.Concat(m.Graph.Inputs, m.Graph.Outputs) {
		if d := v.Info.GetType().GetTensorType().GetShape().GetDim(); len(d) == 4 && strings.Contains(v.Name, "key_values") || strings.HasPrefix(v.Name, "present") {
			out[v.Name] = d[1].GetDimValue()
		}
	}
	return out
}

// What one model of a folder passes to another has as many heads in both; each precision is a set of its own.
func TestRewriteFolderOfASet(t *testing.T) {
	dir := t5Folder(t)
	in := func(name string) string { return filepath.Join(dir, "onnx", name) }
	three := []string{in("encoder_model.onnx"), in("decoder_model.onnx"), in("decoder_with_past_model.onnx")}
	for name, models := range map[string][]string{"of all": three, "of the folder": {filepath.Join(dir, "onnx")}, "of the decoder": three[1:]} {
		t.Run(name, func(t *testing.T) {
			config, out := filepath.Join(t.TempDir(), "dha.yaml"), filepath.Join(t.TempDir(), "small")
			must(t, append([]string{"init", "--key", "2", "--value", "1", "-o", config}, models...)...)
			text := must(t, "rewrite", dir, "-c", config, "-o", out)
			if strings.Contains(text, "left out") {
				t.Errorf("something is left out:\n%s", text)
			}
			if want := "transformers.js 4  cannot: beside an encoder it loads decoder_model_merged.onnx"; !strings.Contains(text, want) {
				t.Errorf("%q is not in\n%s", want, text)
			}
			if copied := strings.Contains(text, "copied onnx/encoder_model.onnx"); copied != (name == "of the decoder") {
				t.Errorf("the encoder is copied: %v\n%s", copied, text)
			}
			small := func(name string) string { return filepath.Join(out, "onnx", name) }
			for _, suffix := range []string{"", "_fp16"} {
				first, next := cacheHeads(t, small("decoder_model"+suffix+".onnx")), cacheHeads(t, small("decoder_with_past_model"+suffix+".onnx"))
				for l := range 2 {
					for _, side := range []string{"decoder", "encoder"} {
						for what, want := range map[string]int64{"key": 2, "value": 1} {
							cache := fmt.Sprintf("%d.%s.%s", l, side, what)
							if first["present."+cache] != want || next["past_key_values."+cache] != want {
								t.Errorf("%s%s: the first step gives %d heads, the next ones take %d; want %d", cache, suffix, first["present."+cache], next["past_key_values."+cache], want)
							}
						}
					}
				}
				if suffix == "" {
					args := []string{"verify", three[2], small("decoder_with_past_model.onnx"), "--with", three[1], "--kl", "99", "--top1", "0"}
					if name != "of the decoder" {
						args = append(args, "--with", three[0])
					}
					must(t, args...)
				}
			}
		})
	}
}

// A merged decoder beside its halves is one more model of the set.
func TestRewriteFolderWithMergedDecoder(t *testing.T) {
	dir := t5Folder(t)
	f, err := testmodels.Get("t5-decoder")
	if err != nil {
		t.Fatal(err)
	}
	var halves []*onnxpb.ModelProto
	for _, stage := range []testmodels.Stage{testmodels.First, testmodels.Next} {
		m, err := f.Message(testmodels.Options{Stage: stage, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		halves = append(halves, m)
	}
	data, err := proto.Marshal(testmodels.Merge(halves[0], halves[1]))
	if err != nil {
		t.Fatal(err)
	}
	merged := filepath.Join(dir, "onnx", "decoder_model_merged.onnx")
	if err := os.WriteFile(merged, data, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]string{"of the folder": filepath.Dir(merged), "of the merged one": merged} {
		config, out := filepath.Join(t.TempDir(), "dha.yaml"), filepath.Join(t.TempDir(), "small")
		must(t, "init", "--key", "2", "--value", "1", "-o", config, of)
		text := must(t, "rewrite", dir, "-c", config, "-o", out)
		if strings.Contains(text, "left out") {
			t.Errorf("%s: something is left out:\n%s", name, text)
		}
		heads := cacheHeads(t, filepath.Join(out, "onnx", "decoder_model_merged.onnx"))
		for cache, n := range heads {
			if want := map[bool]int64{true: 2, false: 1}[strings.HasSuffix(cache, "key")]; n != want {
				t.Errorf("%s: %s has %d heads, want %d", name, cache, n, want)
			}
		}
		if len(heads) != 16 {
			t.Errorf("%s: the merged decoder has %d caches, want 16", name, len(heads))
		}
		// Where one cannot be rewritten those that belong to it are left out too, in its precision.
		text = must(t, "rewrite", dir, "-c", config, "-o", out+".static", "--lowering", "static-cache")
		for _, want := range []string{
			"left out onnx/decoder_model_merged.onnx: ", "left out onnx/decoder_with_past_model.onnx: onnx/decoder_model_merged.onnx, which belongs to it, cannot be rewritten",
			"wrote " + out + ".static",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, text)
			}
		}
		left, err := filepath.Glob(filepath.Join(out+".static", "onnx", "decoder*"))
		if err != nil || len(left) != 2 || !strings.HasSuffix(left[0], "_fp16.onnx") {
			t.Errorf("%s: decoders %v (%v), want the two in half precision", name, left, err)
		}
	}
}

// Models of one directory and one precision may belong together.
func TestFolderVariants(t *testing.T) {
	got := variants([]string{"model.onnx", "model_fp16.onnx", "onnx/decoder_model_merged_q4f16.onnx", "onnx/encoder_model_q4f16.onnx", "onnx/encoder_model.onnx", "onnx/model-int8.onnx"})
	want := "[[model.onnx] [model_fp16.onnx] [onnx/decoder_model_merged_q4f16.onnx onnx/encoder_model_q4f16.onnx] [onnx/encoder_model.onnx] [onnx/model-int8.onnx]]"
	if fmt.Sprint(got) != want {
		t.Errorf("variants %v, want %s", got, want)
	}
}
