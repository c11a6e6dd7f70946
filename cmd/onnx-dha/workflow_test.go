package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// TestWorkflow goes the way of the README: inspect, init, rewrite, verify.
func TestWorkflow(t *testing.T) {
	dir := t.TempDir()
	// 3 layers, 8 query heads on 8 KV heads of 4 channels, float32: one token takes 3·(8+8)·4·4 = 768 bytes.
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Layers: 3, Heads: 8, HeadDim: 4, Cache: true}, "")
	before, err := os.ReadFile(model)
	if err != nil {
		t.Fatal(err)
	}

	d := decode(t, must(t, "inspect", model, "--json"))
	if got := at(t, d, "kv_bytes_per_token"); got != 768. {
		t.Errorf("inspect: %v bytes per token, want 768", got)
	}
	for i := range 3 {
		b := at(t, d, "blocks", i)
		if at(t, b, "heads") != 8. || at(t, b, "key_heads") != 8. || at(t, b, "head_dim") != 4. || at(t, b, "rotary") != "half-split" || at(t, b, "key_cache", "past") == "" {
			t.Errorf("inspect: block %d is %v", i, b)
		}
	}
	text := must(t, "inspect", model)
	for _, want := range []string{at(t, d, "blocks", 2, "name").(string), "half-split", "in, out", "256", "768"} {
		if !strings.Contains(text, want) {
			t.Errorf("inspect: no %q in\n%s", want, text)
		}
	}

	must(t, "init", "--value", "1", model, "--key", "4")
	config := filepath.Join(dir, "dha.yaml")
	cfg, err := fusion.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Layers) != 3 || len(cfg.Layers[0].Key.Groups) != 4 || len(cfg.Layers[0].Value.Groups) != 1 {
		t.Errorf("init wrote %+v", cfg.Layers)
	}

	d = decode(t, must(t, "rewrite", model, "--config", config, "--json"))
	small := filepath.Join(dir, "model.dha.onnx")
	if got := at(t, d, "output"); got != small {
		t.Errorf("rewrite: output %v, want %v", got, small)
	}
	// 3·(4+1)·4·4 = 240 bytes.
	if b, a := at(t, d, "before", "kv_bytes_per_token"), at(t, d, "after", "kv_bytes_per_token"); b != 768. || a != 240. {
		t.Errorf("rewrite: %v → %v bytes per token, want 768 → 240", b, a)
	}
	// Each layer loses 4 key heads and 7 value heads of 4 columns over a model width of 32.
	if lost := at(t, d, "before", "parameters").(float64) - at(t, d, "after", "parameters").(float64); lost != 3*11*4*32 {
		t.Errorf("rewrite: %v parameters fewer, want %d", lost, 3*11*4*32)
	}
	checkRecord(t, small, cfg)
	d = decode(t, must(t, "inspect", small, "--json"))
	if at(t, d, "blocks", 0, "key_heads") != 4. || at(t, d, "blocks", 0, "value_heads") != 1. || at(t, d, "kv_bytes_per_token") != 240. || at(t, d, "rewritten_by") == "" {
		t.Errorf("inspect after rewrite: %v", d)
	}
	checkCaches(t, small, map[string]int64{"past_key_values.0.key": 4, "present.2.key": 4, "past_key_values.1.value": 1, "present.0.value": 1})

	// The configuration is found in the rewritten model; with the file it is the same.
	for _, with := range [][]string{nil, {"--config", config}} {
		args := append([]string{"verify", model, "--kl", "1e9", small, "--top1=0", "--json", "--steps", "4"}, with...)
		d = decode(t, must(t, args...))
		if at(t, d, "report", "rewrite_passed") != true || at(t, d, "report", "rewrite_error", "reference") != "tied reference" {
			t.Errorf("verify %v: %v", with, at(t, d, "report", "rewrite_passed"))
		}
	}
	code, out, errs := invoke("verify", model, small, "--steps", "2")
	if code != exitDrift || !strings.Contains(errs, "onnx-dha: ") || !strings.Contains(out, "FAIL") {
		t.Errorf("verify with the default tolerance of a quarter of the cache: exit code %d, %s\n%s", code, errs, out)
	}
	if after, err := os.ReadFile(model); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the original changed (%v)", err)
	}
}

// checkRecord verifies what a rewritten model says about itself.
func checkRecord(t *testing.T, path string, cfg *fusion.Config) {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	recorded, _ := m.Metadata(rewrite.MetadataConfig)
	c, err := fusion.Parse("recorded", []byte(recorded))
	if err != nil {
		t.Fatal(err)
	}
	hash, _ := m.Metadata(rewrite.MetadataHash)
	if version, _ := m.Metadata(rewrite.MetadataVersion); c.Hash() != cfg.Hash() || hash != cfg.Hash() || version == "" {
		t.Errorf("recorded: version %q, hash %s, configuration of hash %s; want %s", version, hash, c.Hash(), cfg.Hash())
	}
}

// checkCaches verifies the number of heads that graph inputs and outputs declare, on axis 1.
func checkCaches(t *testing.T, path string, heads map[string]int64) {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for name, want := range heads {
		v := m.Graph.Value(name)
		if v == nil {
			t.Errorf("no %q in the rewritten model", name)
			continue
		}
		if got := v.Info.GetType().GetTensorType().GetShape().GetDim()[1].GetDimValue(); got != want {
			t.Errorf("%s declares %d heads, want %d", name, got, want)
		}
	}
}

// TestIdentityDoesNotDrift rewrites with one group per head: nothing may change but rounding, in every form.
func TestIdentityDoesNotDrift(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "gpt2", testmodels.Options{Cache: true}, "")
	config, small := filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
	must(t, "init", model, "--kv", "100%", "--quiet")
	for _, lowering := range []string{"grouped", "expand"} {
		must(t, "rewrite", model, "-c", config, "-o", small, "--lowering", lowering, "--quiet")
		d := decode(t, must(t, "verify", model, small, "--json", "--steps", "3", "--cross-check"))
		if at(t, d, "report", "passed") != true {
			t.Errorf("%s: %v", lowering, d)
		}
		if c := at(t, d, "cross_check").(map[string]any); c["limit"] == nil && at(t, c, "nodes").(float64) < 10 {
			t.Errorf("cross-check: %v", c)
		}
	}
}

func TestWeightPlacement(t *testing.T) {
	dir := t.TempDir()
	o := testmodels.Options{Heads: 8, HeadDim: 16, Cache: true}
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", o, "file")
	must(t, "init", model, "--key", "2", "--value", "2", "--quiet")
	config := filepath.Join(dir, "dha.yaml")
	size := func(name string) int64 {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		return info.Size()
	}
	rest := size("model.onnx.data")
	for _, tc := range []struct {
		weights  string
		min, max int64 // bytes of the data file beside the output
	}{
		{"keep", rest / 2, rest - 1},
		{"file", rest / 2, rest - 1},
		{"inline", 0, 0},
		{"share", 1, rest / 2},
	} {
		name := tc.weights + ".onnx"
		must(t, "rewrite", model, "--weights", tc.weights, "--config", config, "-o", filepath.Join(dir, name), "--quiet")
		if got := size(name + ".data"); got < tc.min || got > tc.max {
			t.Errorf("--weights %s: a data file of %d bytes, want %d to %d (the original's has %d)", tc.weights, got, tc.min, tc.max, rest)
		}
		must(t, "verify", model, filepath.Join(dir, name), "--kl", "1e9", "--top1", "0", "--steps", "1", "--quiet")
	}
}

func TestVerifyText(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Vocab: 3, Cache: true}, "")
	vocab := write(t, dir, "vocab.json", `{"a": 0, "b": 1, "\n": 2}`)
	text := write(t, dir, "text.txt", strings.Repeat("abba\nbaab\n", 8))
	must(t, "init", model, "--key", "2", "--quiet")
	must(t, "rewrite", model, "--config", filepath.Join(dir, "dha.yaml"), "--quiet")
	small := filepath.Join(dir, "model.dha.onnx")
	d := decode(t, must(t, "verify", model, small, "--kl", "1e9", "--top1", "0", "--steps", "1", "--json",
		"--text", text, "--vocab", vocab, "--window", "20", "--prompt", "ab", "--generate", "5"))
	pair := at(t, d, "report", "text")
	// Four windows of 20, the first character of each is given.
	if got := at(t, pair, "original", "tokens"); got != 76. {
		t.Errorf("%v tokens were predicted, want 76", got)
	}
	// A model that was never trained cannot beat chance by much on 3 tokens.
	if p := at(t, pair, "original", "perplexity").(float64); p < 1.5 || p > 30 {
		t.Errorf("perplexity %v", p)
	}
	if at(t, pair, "prompt") != "ab" || len(at(t, pair, "generations", 0).(string)) != 5 {
		t.Errorf("text: %v", pair)
	}
	for _, tc := range []struct{ args, want string }{
		{"--vocab " + vocab, "--vocab goes with --text FILE"},
		{"--text " + text, "--text needs --vocab FILE"},
		{"--text " + text + " --vocab " + text, "it is of no kind known here; want a Hugging Face tokenizer.json"},
		{"--text " + vocab + " --vocab " + vocab + " --window 4", "byte 0 of the text is in no token"},
		{"--text " + text + " --vocab " + vocab, "has 80 tokens; a window takes 256 (--window)"},
		{"--text " + text + " --vocab " + vocab + " --window 1", "--window is 2 or more"},
		{"--text " + text + " --vocab " + vocab + " --window 20 --prompt xyz", "--prompt: byte 0 of the text is in no token"},
		{"--text none.txt --vocab " + vocab, "none.txt: no such file or directory"},
	} {
		code, _, errs := invoke(append([]string{"verify", model, small}, strings.Fields(tc.args)...)...)
		if code != exitUsage || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: exit code %d, %s", tc.args, code, errs)
		}
	}
}

// TestTolerances checks where verify takes its limits from: the command line, the configuration, its own.
func TestTolerances(t *testing.T) {
	for _, m := range fusion.Metrics {
		limits := verify.Tolerance{Limits: []verify.Limit{{Metric: m.Name, Bound: 1}}}
		if err := limits.Check(); err != nil {
			t.Error(err) // dha.yaml would offer a metric that verify does not measure
		}
	}
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	small := filepath.Join(dir, "model.dha.onnx")
	must(t, "init", model, "--key", "1", "--value", "1", "--quiet")
	base, err := os.ReadFile(filepath.Join(dir, "dha.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		yaml string
		args []string
		code int
		want string
	}{
		{"", nil, exitDrift, verify.DefaultDrift().String()},
		{"verify: {}\n", nil, 0, "no limits"},
		{"verify: {kl: 1e9}\n", nil, 0, "KL nats ≤ 1e+09"},
		{"verify: {kl: 1e9}\n", []string{"--kl", "1e-9"}, exitDrift, "KL nats ≤ 1e-09"},
		{"verify: {kl: 1e-9}\n", []string{"--kl", "1e9"}, 0, "KL nats ≤ 1e+09"},
		{"verify: {kl: 1e9}\n", []string{"--top1", "1"}, exitDrift, "KL nats ≤ 1e+09, top-1 ≥ 1"},
	} {
		write(t, dir, "dha.yaml", string(base)+tc.yaml)
		must(t, "rewrite", model, "-c", filepath.Join(dir, "dha.yaml"), "--quiet")
		code, out, errs := invoke(append([]string{"verify", model, small, "--steps", "1"}, tc.args...)...)
		if code != tc.code || !strings.Contains(out, tc.want) || (errs == "") != (code == 0) {
			t.Errorf("%q %v: exit code %d, want %d with %q\n%s%s", tc.yaml, tc.args, code, tc.code, tc.want, out, errs)
		}
	}
}

func TestInitShare(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Heads: 8, HeadDim: 4, Cache: true}, "")
	for _, share := range []string{"50%", "0.5", " 50 % "} {
		d := decode(t, must(t, "init", model, "--kv", share, "--force", "--json"))
		if b, a := at(t, d, "kv_bytes_per_token_before").(float64), at(t, d, "kv_bytes_per_token_after").(float64); a > b/2 || a < b/4 {
			t.Errorf("--kv %s: %v → %v", share, b, a)
		}
	}
	stdout := must(t, "init", model, "--value", "2", "-o", "-")
	c, err := fusion.Parse("stdout", []byte(stdout))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Layers[0].Key.Groups) != 8 || len(c.Layers[0].Value.Groups) != 2 || !strings.HasPrefix(stdout, "# ") {
		t.Errorf("init -o - wrote\n%s", stdout)
	}
}

// TestCancelled checks that an interrupted command leaves nothing behind.
func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	must(t, "init", model, "--key", "1", "--quiet")
	config := filepath.Join(dir, "dha.yaml")
	must(t, "rewrite", model, "-c", config, "-o", filepath.Join(dir, "small.onnx"), "--quiet")
	t.Setenv("TMPDIR", filepath.Join(dir, "tmp"))
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, args := range [][]string{
		{"rewrite", model, "-c", config},
		{"verify", model, filepath.Join(dir, "small.onnx"), "-o", filepath.Join(dir, "report.txt")},
	} {
		var out, errs bytes.Buffer
		if code := run(ctx, args, &out, &errs); code != exitInterrupted || errs.String() != "onnx-dha: interrupted\n" {
			t.Errorf("%v: exit code %d, %q", args, code, errs.String())
		}
	}
	if after := contents(t, dir); len(after) != len(before) {
		t.Errorf("%d files became %d", len(before), len(after))
	}
}
