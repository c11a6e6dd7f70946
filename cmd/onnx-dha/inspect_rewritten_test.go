package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"onnx-dha/testmodels"
)

// A model that was rewritten says so wherever its attention cannot be rewritten again, whatever form it has taken: products
// in the branches of an If, one operator, stacked queries, copied heads.
func TestInspectRewritten(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	even := uniform(t, model, "2", "2")
	data, err := os.ReadFile(even)
	if err != nil {
		t.Fatal(err)
	}
	uneven := filepath.Join(dir, "uneven.yaml")
	groups := regexp.MustCompile(`groups: \[\[.*?\]\]`).ReplaceAll(data, []byte("groups: [[0, 2, 3], [1]]"))
	if err := os.WriteFile(uneven, groups, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, config, lowering, why string }{
		{"products in branches", uneven, "grouped", "lies in the branches of If"},
		{"copied heads", uneven, "expand", "in no regular order"},
		{"one operator", even, "gqa", `GroupQueryAttention "`},
		{"stacked queries", even, "grouped", "stacked on the rows of a product already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			small := filepath.Join(t.TempDir(), "small.onnx")
			must(t, "rewrite", model, "--config", c.config, "--lowering", c.lowering, "-o", small)
			_, out, errs := invoke("inspect", small)
			for _, want := range []string{c.why, "the model was rewritten by onnx-dha", "start from the original"} {
				if !strings.Contains(out, want) {
					t.Errorf("inspect does not say %q:\n%s", want, out)
				}
			}
			if strings.Contains(errs, "has no attention block:") {
				t.Errorf("its attention is taken for none: %s", errs)
			}
		})
	}
	if _, out, _ := invoke("inspect", model); strings.Contains(out, "start from the original") {
		t.Errorf("the original is said to be rewritten:\n%s", out)
	}
}
