package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// unevenGroups replaces the groups of a configuration: those of keys and those of values, in every block.
func unevenGroups(t *testing.T, config, keys, values string) string {
	t.Helper()
	data, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for side, groups := range map[string]string{"key": keys, "value": values} {
		data = regexp.MustCompile(side+`:( *)\{groups: \[\[.*?\]\]`).ReplaceAll(data, []byte(side+":${1}{groups: "+groups))
	}
	path := filepath.Join(t.TempDir(), "uneven.yaml")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A model that was rewritten is described as what it became, and says that it was rewritten wherever its attention cannot
// be rewritten again, whatever form it has taken: products in the branches of an If, stacked queries, copied heads.
func TestInspectRewritten(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	even := uniform(t, model, "2", "2")
	uneven := unevenGroups(t, even, "[[0, 2, 3], [1]]", "[[0, 3], [1], [2]]")
	for _, c := range []struct {
		name, config, lowering, why string
		keys, values                int
	}{
		{"products in branches", uneven, "grouped", "an If chooses between two forms of one of its products", 2, 3},
		{"products in branches, caches in place", uneven, "static-cache", "an If chooses between two forms of one of its products", 2, 3},
		{"copied heads", uneven, "expand", "in no regular order", 2, 3},
		{"stacked queries", even, "grouped", "stacked on the rows of a product already", 2, 2},
		{"one operator", even, "gqa", "its caches are buffers that GroupQueryAttention writes where they lie", 2, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			small := filepath.Join(t.TempDir(), "small.onnx")
			must(t, "rewrite", model, "--config", c.config, "--lowering", c.lowering, "-o", small)
			out := must(t, "inspect", small)
			for _, want := range []string{c.why, "the model was rewritten by onnx-dha", "start from the original"} {
				if !strings.Contains(out, want) {
					t.Errorf("inspect does not say %q:\n%s", want, out)
				}
			}
			if strings.Contains(out, "not supported") || strings.Contains(out, "fused: com.microsoft.GroupQueryAttention: /model/layers.0/self_attn, /model/layers.1/self_attn\n") != (c.lowering == "gqa") {
				t.Errorf("inspect says something else of operators:\n%s", out)
			}
			if n := strings.Count(out, "cannot be rewritten: /model/layers.0/self_attn, /model/layers.1/self_attn: "); n != 1 {
				t.Errorf("the reason is said of both blocks %d times, want once:\n%s", n, out)
			}
			before, after := inspected(t, model), inspected(t, small)
			if len(after.Blocks) != len(before.Blocks) {
				t.Fatalf("%d blocks, want %d", len(after.Blocks), len(before.Blocks))
			}
			for i, b := range after.Blocks {
				was := before.Blocks[i]
				got := fmt.Sprint(b.Name, b.Kind, b.Causal, b.Heads, b.HeadDim, b.Rotary, b.KeyHeads, b.ValueHeads, b.KeyCache, b.ValueCache, b.KVBytes)
				was.KeyHeads, was.ValueHeads, was.KVBytes = c.keys, c.values, int64(4*was.HeadDim*(c.keys+c.values))
				was.KeyCache.Heads, was.ValueCache.Heads = c.keys, c.values
				if want := fmt.Sprint(was.Name, was.Kind, was.Causal, was.Heads, was.HeadDim, was.Rotary, was.KeyHeads, was.ValueHeads, was.KeyCache, was.ValueCache, was.KVBytes); got != want {
					t.Errorf("block %s, want %s", got, want)
				}
			}
			for _, again := range [][]string{
				{"init", small, "--key", "1", "-o", filepath.Join(dir, "again.yaml")},
				{"rewrite", small, "--config", c.config, "-o", filepath.Join(dir, "again.onnx")},
			} {
				code, _, errs := invoke(again...)
				if code != exitModel || !strings.Contains(errs, "the model was rewritten by onnx-dha") || !strings.Contains(errs, "start from the original") {
					t.Errorf("%s: exit code %d: %s", again[0], code, errs)
				}
			}
		})
	}
	folder := filepath.Join(dir, "folder")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, folder, "config.json", `{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}`)
	must(t, "rewrite", model, "--config", uneven, "-o", filepath.Join(folder, "model.onnx"))
	for _, force := range [][]string{nil, {"--force"}} {
		args := append([]string{"rewrite", folder, "--config", uneven, "-o", filepath.Join(dir, "folder again")}, force...)
		if code, _, errs := invoke(args...); code == 0 || !strings.Contains(errs, "start from the original") {
			t.Errorf("a folder that was rewritten, %v: exit code %d: %s", force, code, errs)
		}
	}
	if out := must(t, "inspect", model); strings.Contains(out, "start from the original") {
		t.Errorf("the original is said to be rewritten:\n%s", out)
	}
}

// inspected reads what inspect says of a model.
func inspected(t *testing.T, model string) *inspection {
	t.Helper()
	var d inspection
	if err := json.Unmarshal([]byte(must(t, "inspect", model, "--json")), &d); err != nil {
		t.Fatal(err)
	}
	for i := range d.Blocks { // compared by what they say
		for _, c := range []**cacheNames{&d.Blocks[i].KeyCache, &d.Blocks[i].ValueCache} {
			if *c == nil {
				*c = &cacheNames{}
			}
		}
	}
	return &d
}

// A block that was left alone can be rewritten later; what was rewritten before stays as it is in the file.
func TestRewriteTheOtherBlock(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	all := unevenGroups(t, uniform(t, model, "2", "2"), "[[0, 2, 3], [1]]", "[[0, 3], [1], [2]]")
	data, err := os.ReadFile(all)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.SplitAfter(string(data), "  - block: ")
	if len(blocks) != 3 {
		t.Fatalf("%d blocks in\n%s", len(blocks)-1, data)
	}
	one := filepath.Join(dir, "one.yaml")
	if err := os.WriteFile(one, []byte(blocks[0]+strings.TrimSuffix(blocks[1], "  - block: ")), 0o644); err != nil {
		t.Fatal(err)
	}
	half, whole := filepath.Join(dir, "half.onnx"), filepath.Join(dir, "whole.onnx")
	must(t, "rewrite", model, "--config", one, "--lowering", "grouped", "-o", half)
	other := filepath.Join(dir, "other.yaml")
	if out := must(t, "init", half, "--key", "2", "--value", "1", "-o", other); !strings.Contains(out, "1 more block cannot be rewritten") {
		t.Errorf("init: %s", out)
	}
	must(t, "rewrite", half, "--config", other, "--lowering", "grouped", "-o", whole)
	before, after := inBranches(t, half), inBranches(t, whole)
	if len(before) == 0 || !slices.Equal(before, after) {
		t.Errorf("the products of the block that was left alone are chosen in %v, were in %v", after, before)
	}
	want := [][2]int{{2, 3}, {2, 1}}
	for i, b := range inspected(t, whole).Blocks {
		if got := [2]int{b.KeyHeads, b.ValueHeads}; got != want[i] {
			t.Errorf("block %s has %v key and value heads, want %v", b.Name, got, want[i])
		}
	}
	code, _, errs := invoke("rewrite", half, "--config", all, "--force", "-o", whole)
	if code == 0 || !strings.Contains(errs, "cannot be rewritten") || !strings.Contains(errs, "start from the original") {
		t.Errorf("a configuration of the original: exit code %d: %s", code, errs)
	}
	if code, _, errs = invoke("rewrite", half, "--config", all, "-o", whole); code == 0 || !strings.Contains(errs, "start from the original") {
		t.Errorf("a configuration of the original: exit code %d: %s", code, errs)
	}
}

// inBranches lists the If nodes of a model, each with the nodes in its branches.
func inBranches(t *testing.T, path string) []string {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var out []string
	m.Graph.All(func(n *graph.Node) bool {
		if n.Is("If") || n.Graph.Outer != nil {
			out = append(out, n.String())
		}
		return true
	})
	return out
}
