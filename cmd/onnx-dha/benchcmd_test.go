package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/testmodels"
)

func TestBench(t *testing.T) {
	dir := t.TempDir()
	original := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	config, small := filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
	must(t, "init", original, "--kv", "50%", "-o", config)
	must(t, "rewrite", original, "--config", config, "-o", small)
	quick := []string{"--lengths", "16,32", "--batches", "1,2", "--prompt", "4", "--rounds", "1", "--steps", "1", "--warmup", "1", "--threads", "1"}
	with := func(args ...string) []string {
		return append(append([]string{"bench", original, small}, quick...), args...)
	}

	drawing := filepath.Join(dir, "bench.svg")
	text := must(t, with("--plot", drawing)...)
	for _, want := range []string{"Prefill", "Decode", "model.onnx", "small.onnx", "bytes allow", "1 round"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if svg, err := os.ReadFile(drawing); err != nil || !strings.Contains(string(svg), "small.onnx, batch 2") {
		t.Errorf("drawing: %v\n%s", err, svg)
	}
	v := decode(t, must(t, with("--json")...))
	if got := at(t, v, "models", 1, "kv_bytes_per_position").(float64); got != at(t, v, "models", 0, "kv_bytes_per_position").(float64)/2 {
		t.Errorf("the rewritten model caches %v bytes a position", got)
	}
	step := at(t, v, "cases", 2, "results", 1)
	speedup, allowed := at(t, step, "against_original", "speedup").(float64), at(t, step, "against_original", "allowed").(float64)
	if share := at(t, step, "against_original", "share_of_allowed").(float64); speedup <= 0 || allowed <= 1 || share <= 0 {
		t.Errorf("speed × %v of × %v allowed is a share of %v", speedup, allowed, share)
	}

	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"bench", original}, exitUsage, "REWRITTEN is missing"},
		{with("--lengths", "8,x"), exitUsage, "--lengths 8,x"},
		{with("--fill", "0"), exitUsage, "--fill 0"},
		{with("--rounds", "0"), exitUsage, "--rounds 0"},
		{with("--plot", filepath.Join(dir, "a.png")), exitUsage, ".svg"},
		{with("--plot", original), exitUsage, ".svg"},
		{[]string{"bench", original, filepath.Join(dir, "none.onnx")}, exitUsage, "none.onnx"},
		{[]string{"bench", save(t, filepath.Join(dir, "bert.onnx"), "bert", testmodels.Options{}, ""), original}, exitModel, "no decoder"},
	} {
		if code, _, errs := invoke(c.args...); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit code %d, %q; want %d, %q", c.args, code, errs, c.code, c.want)
		}
	}
}
