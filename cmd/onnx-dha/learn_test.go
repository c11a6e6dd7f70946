package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/testmodels"
)

// TestLearnCommand goes the whole way: learn, rewrite by what was written, and verify that the rewrite is exact.
func TestLearnCommand(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "llama", testmodels.Options{Cache: true}, "")
	cfg := filepath.Join(dir, "out", "dha.yaml")
	if err := os.Mkdir(filepath.Dir(cfg), 0o755); err != nil {
		t.Fatal(err)
	}
	line := []string{"learn", model, "--kv", "50%", "--data", tokenLines(t, 12, 12), "--trials", "1", "--threads", "1", "-o", cfg}
	d := decode(t, must(t, append(line, "--json")...))
	bytes := at(t, d, "kv_bytes_per_token").([]any)
	if bytes[1].(float64) > bytes[0].(float64)/2 || at(t, d, "config") != cfg || len(at(t, d, "blocks").([]any)) != 2 {
		t.Errorf("learned %v", d)
	}
	var have []string
	entries, err := os.ReadDir(filepath.Dir(cfg))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if strings.Join(have, " ") != "dha.safetensors dha.yaml" { // and no state
		t.Errorf("the folder holds %v", have)
	}
	text, err := os.ReadFile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"method: optimal", "weights: dha.safetensors", "# Held-out data, ", "fingerprint: sha256:"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
	if code, _, stderr := invoke(line...); code != exitUsage || !strings.Contains(stderr, "exists; --force replaces it") {
		t.Errorf("a configuration that is there: %d, %s", code, stderr)
	}
	small := filepath.Join(dir, "small.onnx")
	must(t, "rewrite", model, "--config", cfg, "-o", small)
	_, stdout, _ := invoke("verify", model, small, "--config", cfg, "--json") // random weights drift; that is not what is asked here
	if v := decode(t, stdout); at(t, v, "report", "rewrite_passed") != true || at(t, v, "report", "rewrite_error") == nil {
		t.Errorf("the rewrite by what was learned is not exact")
	}
}

func TestLearnErrors(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "llama", testmodels.Options{Cache: true}, "")
	lines := tokenLines(t, 12, 12)
	before := contents(t, dir)
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{}, "nothing to aim for"},
		{[]string{"--kv", "50%", "--max-kl", "0.1"}, "--kv and --max-kl are different aims"},
		{[]string{"--kv", "150%"}, "want a share such as 50% or 0.5"},
		{[]string{"--kv", "20%"}, "20 % of the cache is less than one key head and one value head in every layer; want 25 % and more"},
		{[]string{"--key", "0"}, "--key 0; want at least 1 head"},
		{[]string{"--max-kl", "0"}, "--max-kl 0; want more than 0"},
		{[]string{"--kv", "50%", "--held-out", "0"}, "--held-out 0; want more than 0"},
		{[]string{"--kv", "50%", "--strategy", "optimum"}, `--strategy "optimum"`},
		{[]string{"--kv", "50%", "--layout", "free-ish"}, "want one of free, coupled, uniform"},
		{[]string{"--kv", "50%", "--data", write(t, t.TempDir(), "wrong.jsonl", "[1, 2, 3]\n[4, 64, 5]\n")}, "token 1 is 64, but the model's vocabulary has 64 tokens"},
		{[]string{"--kv", "50%", "--data", write(t, t.TempDir(), "empty.jsonl", "")}, "empty"},
		{[]string{"--kv", "50%", "-o", model}, "is the input"},
	} {
		args := append([]string{"learn", model, "--data", lines, "--threads", "1"}, tc.args...)
		code, stdout, stderr := invoke(args...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: exit code %d, stderr %q; want %q", tc.args, code, stderr, tc.want)
		}
	}
	if after := contents(t, dir); len(after) != len(before) {
		t.Errorf("%d files after errors, %d before", len(after), len(before))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"learn", model, "--data", lines, "--kv", "50%", "--threads", "1"}, &out, &errs); code != exitInterrupted {
		t.Errorf("interrupted: exit code %d, %s", code, errs.String())
	}
	if after := contents(t, dir); len(after) != len(before) {
		t.Errorf("an interrupted run leaves %d files, %d were there", len(after), len(before))
	}
}
