package main

import (
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// quantisedModel writes a small decoder whose weights are quantised in a scheme of testmodels.
func quantisedModel(t *testing.T, path, scheme string) string {
	t.Helper()
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Cache: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range testmodels.Schemes() {
		if s.Name == scheme {
			if err := s.Quantise(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// operators counts the nodes of a model by operator.
func operators(t *testing.T, path string) map[string]int {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	out := map[string]int{}
	for _, n := range m.Graph.Nodes {
		out[n.OpType]++
	}
	return out
}

// A quantised model goes the whole way: its scheme is named, a rewrite keeps it and says what it cost, and verify finds the
// rewrite exact.
func TestQuantisedModels(t *testing.T) {
	for _, c := range []struct {
		scheme, text, op string
	}{
		{"nbits-4", "MatMulNBits, 4 bits in blocks of 16", "MatMulNBits"},
		{"dynamic", "MatMulInteger, uint8 per tensor, zero points", "MatMulInteger"},
		{"int8-column", "DequantizeLinear, int8 per column", "DequantizeLinear"},
		{"qoperator", "DequantizeLinear, int8 per tensor", ""},
	} {
		t.Run(c.scheme, func(t *testing.T) {
			dir := t.TempDir()
			model, config, small := quantisedModel(t, filepath.Join(dir, "model.onnx"), c.scheme), filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
			if out := must(t, "inspect", model); !strings.Contains(out, "quantised: "+c.text) {
				t.Errorf("inspect does not say %q:\n%s", c.text, out)
			}
			if got, _ := at(t, decode(t, must(t, "inspect", model, "--json")), "blocks", 0, "key_weight", "scheme").(string); !strings.HasPrefix(got, c.text) {
				t.Errorf("the scheme of the keys is %q, want %q", got, c.text)
			}
			must(t, "init", model, "--key", "2", "--value", "1", "-o", config)
			d := decode(t, must(t, "rewrite", model, "--config", config, "-o", small, "--json"))
			for i := range d["requantised"].([]any) {
				if x := at(t, d, "requantised", i, "added_rounding").(float64); !(x > 0 && x < 0.3) {
					t.Errorf("the added rounding is %v", x)
				}
			}
			if text := must(t, "rewrite", model, "--config", config, "-o", small); !strings.Contains(text, "quantised again     "+c.text) || !strings.Contains(text, "added rounding") {
				t.Errorf("rewrite does not say what quantising cost:\n%s", text)
			}
			if was, is := operators(t, model)[c.op], operators(t, small)[c.op]; was != is {
				t.Errorf("%d nodes are %s, %d were", is, c.op, was)
			}
			// Keys and values of two layers lose half and three quarters of their 32 × 32 numbers.
			if was, is := at(t, d, "before", "parameters").(float64), at(t, d, "after", "parameters").(float64); was-is != 2*(512+768) {
				t.Errorf("%v parameters became %v, want 2,560 fewer", was, is)
			}
			needRuntime(t)
			_, out, errs := invoke("verify", model, small, "--json")
			if v := decode(t, out); at(t, v, "report", "rewrite_passed") != true || at(t, v, "report", "rewrite_error") == nil {
				t.Errorf("the rewrite is not exact: %s", errs)
			}
		})
	}
}

// Learning reads the weights that codes stand for, and what it finds fits the quantised model.
func TestLearnQuantised(t *testing.T) {
	needRuntime(t)
	for _, scheme := range []string{"nbits-4", "dynamic"} {
		t.Run(scheme, func(t *testing.T) {
			dir := t.TempDir()
			model, config, small := quantisedModel(t, filepath.Join(dir, "model.onnx"), scheme), filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
			must(t, "learn", model, "--kv", "50%", "--data", tokenLines(t, 12, 12), "--trials", "0", "--threads", "1", "-o", config)
			must(t, "rewrite", model, "--config", config, "-o", small)
			_, out, errs := invoke("verify", model, small, "--config", config, "--json")
			if v := decode(t, out); at(t, v, "report", "rewrite_passed") != true || at(t, v, "report", "rewrite_error") == nil {
				t.Errorf("the rewrite by what was learned is not exact: %s", errs)
			}
		})
	}
}
