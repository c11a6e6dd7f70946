package main

import (
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/internal/trial"
	"onnx-dha/testmodels"
)

// A model without caches is not said to have one, by no command.
func TestModelsWithoutCaches(t *testing.T) {
	for _, tc := range []struct {
		family string
		cache  bool
		want   string
	}{
		{"bert", false, "none; its keys and values take 512 bytes → 256 bytes (-50.0 %)"},
		{"gpt2", false, "none; its keys and values take 512 bytes → 256 bytes (-50.0 %)"},
		{"gpt2", true, "512 bytes → 256 bytes (-50.0 %)"},
	} {
		path := trial.Model(t, tc.family, testmodels.Options{Cache: tc.cache})
		dir := filepath.Dir(path)
		config, small, summary := filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx"), filepath.Join(dir, "report.md")
		for _, c := range []struct {
			args  []string
			label string
		}{
			{[]string{"init", path, "--kv", "50%", "-o", config}, "KV cache per token: "},
			{[]string{"rewrite", path, "--config", config, "-o", small}, "KV cache per token  "},
		} {
			code, out, errs := invoke(c.args...)
			if code != 0 || !strings.Contains(out, c.label+tc.want+"\n") {
				t.Errorf("%s of %s: exit code %d, want %q in\n%s%s", c.args[0], tc.family, code, c.label+tc.want, out, errs)
			}
		}
		invoke("verify", path, small, "--steps", "1", "--markdown", summary, "-q")
		if got := strings.Contains(contents(t, dir)[summary], "KV cache per token"); got != tc.cache {
			t.Errorf("verify of %s: the report speaks of a cache: %v, want %v", tc.family, got, tc.cache)
		}
	}
}
