package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph/attention"
	"onnx-dha/internal/trial"
	"onnx-dha/testmodels"
)

// all leaves every head.
func all(b *attention.Block) (keys, values int) { return b.KVHeads, b.ValueHeads }

// The original continues a text as it is known to; rewritten with static caches but with all of its heads it says the
// same, out of a buffer that has grown.
func TestGenerate(t *testing.T) {
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Skip(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct{ Greedy struct{ Text string } }
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	prompt := golden.Greedy.Text[:64]
	original := filepath.Join(dir, "model.onnx")
	for model, cache := range map[string]string{original: "growing cache of 191 positions", trial.Rewrite(t, original, fusion.StaticCache, all): "static cache of 256 positions"} {
		var out, log strings.Builder
		args := []string{"-model", model, "-tokenizer", filepath.Join(dir, "vocab.json"), "-n", "128", "-threads", "1", prompt}
		if err := run(t.Context(), args, &out, &log); err != nil {
			t.Fatal(err)
		}
		if got, want := strings.TrimSpace(out.String()), strings.TrimSpace(golden.Greedy.Text); got != want {
			t.Errorf("%s says\n%s\nwant\n%s", filepath.Base(model), got, want)
		}
		if !strings.Contains(log.String(), "128 tokens") || !strings.Contains(log.String(), cache) {
			t.Errorf("log %q, want 128 tokens and a %s", log.String(), cache)
		}
	}
}

// A text ends at any of the tokens that end one, and where the model knows no further positions.
func TestEnds(t *testing.T) {
	vocabulary := filepath.Join(t.TempDir(), "vocab.json")
	words := map[string]int{}
	for i := range 64 {
		words[string(rune('0'+i))] = i
	}
	data, err := json.Marshal(words)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vocabulary, data, 0o666); err != nil {
		t.Fatal(err)
	}
	model := trial.Model(t, "gpt2", testmodels.Options{Cache: true, MaxSeq: 8})
	say := func(args ...string) (said []rune, log string) {
		var out, errs strings.Builder
		if err := run(t.Context(), append([]string{"-model", model, "-tokenizer", vocabulary, "-threads", "1"}, args...), &out, &errs); err != nil {
			t.Fatal(err)
		}
		return []rune(strings.TrimSuffix(out.String(), "\n")), errs.String()
	}
	said, log := say("012")
	if !strings.Contains(log, "6 tokens") {
		t.Errorf("after 3 tokens of 8 positions: %s", log)
	}
	third := said[5]
	first := slices.Index(said[3:], third) // where that token is said first
	if _, log := say("-stop", "63", "-stop", strconv.Itoa(int(third-'0')), "012"); !strings.Contains(log, strconv.Itoa(first)+" tokens") {
		t.Errorf("until %q: %s, want %d tokens", third, log, first)
	}
}

func TestErrors(t *testing.T) {
	var log strings.Builder
	if err := run(t.Context(), []string{"-n", "3"}, &log, &log); err == nil || !strings.Contains(err.Error(), "usage") {
		t.Errorf("no model: %v", err)
	}
}
