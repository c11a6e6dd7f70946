package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/testmodels"
)

// t5Files writes T5 as Optimum exports it: an encoder, the first step of the decoder, and the next ones.
func t5Files(t *testing.T) (dir string, paths []string) {
	t.Helper()
	dir = t.TempDir()
	for _, f := range []struct {
		name, family string
		stage        testmodels.Stage
	}{
		{"decoder_model.onnx", "t5-decoder", testmodels.First},
		{"decoder_with_past_model.onnx", "t5-decoder", testmodels.Next},
		{"encoder_model.onnx", "t5-encoder", ""},
	} {
		paths = append(paths, save(t, filepath.Join(dir, f.name), f.family, testmodels.Options{Stage: f.stage, Seed: 3}, ""))
	}
	return dir, paths
}

// Models that pass caches to one another have one configuration, in whatever order they are given; each half of the result is
// exact.
func TestSetOfModels(t *testing.T) {
	dir, paths := t5Files(t)
	config, out := filepath.Join(dir, "dha.yaml"), filepath.Join(t.TempDir(), "small")
	must(t, "init", dir, "--key", "2", "--value", "1")
	backwards := []string{paths[2], paths[0], paths[1]}
	text := must(t, append([]string{"rewrite", "--config", config, "-o", out}, backwards...)...)
	for _, p := range paths {
		if !strings.Contains(text, filepath.Join(out, filepath.Base(p))) {
			t.Errorf("%s is not written:\n%s", p, text)
		}
	}
	var seen []map[string]any
	if err := json.Unmarshal([]byte(must(t, "inspect", "--json", out)), &seen); err != nil || len(seen) != 3 {
		t.Fatalf("%v: %d models are shown, want 3", err, len(seen))
	}
	cross := 0
	for _, m := range seen {
		for _, b := range m["blocks"].([]any) {
			if at(t, b, "kind") == "cross" {
				cross++
				if at(t, b, "key_heads") != 2.0 || at(t, b, "value_heads") != 1.0 {
					t.Errorf("%v has %v key and %v value heads, want 2 and 1", at(t, b, "name"), at(t, b, "key_heads"), at(t, b, "value_heads"))
				}
			}
		}
	}
	if cross != 4 {
		t.Errorf("%d cross attentions, want 2 in each half of the decoder", cross)
	}
	for i, p := range paths[:2] {
		v := must(t, "verify", p, filepath.Join(out, filepath.Base(p)), "--with", paths[1-i], "--with", paths[2], "--kl", "99", "--top1", "0")
		if !strings.Contains(v, "Rewrite error") || strings.Contains(v, "FAIL") {
			t.Errorf("%s:\n%s", p, v)
		}
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"one half alone":  {[]string{"rewrite", paths[1], "-c", config, "--force", "-o", filepath.Join(dir, "x.onnx")}, exitUsage, "which another model fills: give that model too"},
		"no folder":       {append([]string{"rewrite", "-c", config}, paths...), exitUsage, "3 models are rewritten together; -o names the folder"},
		"a file":          {append([]string{"rewrite", "-c", config, "-o", config}, paths...), exitUsage, "is a file; 3 models are rewritten together and want a folder"},
		"their folder":    {append([]string{"rewrite", "-c", config, "-o", dir}, paths...), exitUsage, "decoder_model.onnx"},
		"twice one name":  {[]string{"inspect", paths[0], filepath.Join(out, "decoder_model.onnx")}, exitUsage, "have the same file name"},
		"an empty folder": {[]string{"inspect", t.TempDir()}, exitUsage, "holds no .onnx file"},
	} {
		code, _, errs := invoke(c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit code %d, %q; want %d, %q", name, code, errs, c.code, c.want)
		}
	}
}

// The layers of a merged decoder are shown once, with their bodies, and everything works on it as on any model.
func TestMergedDecoder(t *testing.T) {
	f, err := testmodels.Get("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	first, err := f.Message(testmodels.Options{Stage: testmodels.First})
	if err != nil {
		t.Fatal(err)
	}
	next, err := f.Message(testmodels.Options{Stage: testmodels.Next})
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(testmodels.Merge(first, next))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	model, small, config := filepath.Join(dir, "merged.onnx"), filepath.Join(dir, "small.onnx"), filepath.Join(dir, "dha.yaml")
	if err := os.WriteFile(model, data, 0o644); err != nil {
		t.Fatal(err)
	}
	v := decode(t, must(t, "inspect", model, "--json"))
	if blocks := at(t, v, "blocks").([]any); len(blocks) != 2 {
		t.Errorf("%d blocks, want 2", len(blocks))
	}
	if bodies := at(t, v, "blocks", 0, "bodies").([]any); len(bodies) != 2 || bodies[0] != `then_branch of If "optimum::if"` {
		t.Errorf("bodies %v", bodies)
	}
	if text := must(t, "inspect", model); !strings.Contains(text, `: then_branch of If "optimum::if" and else_branch of If "optimum::if"`) {
		t.Errorf("the bodies are not shown:\n%s", text)
	}
	must(t, "init", model, "--key", "2", "--value", "2")
	text := must(t, "rewrite", model, "-c", config, "-o", small)
	if n := strings.Count(text, "/transformer/h.0/attn"); n != 1 {
		t.Errorf("a layer is shown %d times:\n%s", n, text)
	}
	must(t, "verify", model, small, "--kl", "99", "--top1", "0")
	code, _, errs := invoke("rewrite", model, "-c", config, "-o", small, "--lowering", "static-cache")
	if code != exitModel || !strings.Contains(errs, "where its cache cannot be written in place; --lowering grouped keeps a cache that grows") {
		t.Errorf("static-cache: exit code %d, %q", code, errs)
	}
}
