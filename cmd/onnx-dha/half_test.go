package main

import (
	"path/filepath"
	"testing"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// TestHalfPrecision goes through the commands with a float16 model: the cache has two bytes per channel.
func TestHalfPrecision(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "gpt-neox", testmodels.Options{Cache: true, DType: onnxpb.TensorProto_FLOAT16}, "")
	if got := at(t, decode(t, must(t, "inspect", model, "--json")), "kv_bytes_per_token"); got != 2.*2*4*8*2 { // layers, K and V, heads, channels, bytes
		t.Errorf("%v bytes per token", got)
	}
	must(t, "init", model, "--key", "2", "--value", "1", "--quiet")
	must(t, "rewrite", model, "-c", filepath.Join(dir, "dha.yaml"), "--quiet")
	d := decode(t, must(t, "verify", model, filepath.Join(dir, "model.dha.onnx"), "--kl", "1e9", "--top1", "0", "--steps", "2", "--json"))
	if at(t, d, "report", "rewrite_passed") != true {
		t.Error("the rewrite of a float16 model is not exact")
	}
}
