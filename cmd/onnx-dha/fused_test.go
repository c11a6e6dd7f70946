package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// fusedModel writes an encoder of two layers: the first is com.microsoft.Attention, the second MultiHeadAttention. Their
// names share no scope with their projections, so one block has a number for a name.
func fusedModel(t *testing.T, path string) {
	t.Helper()
	m := graph.New(8, 17)
	domain, one := "com.microsoft", int64(1)
	m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	g := m.Graph
	seed := uint32(1)
	weight := func(name string, dims ...int64) *graph.Value {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			seed = seed*1664525 + 1013904223
			data[i] = float32(seed>>16)/65536 - 0.5
		}
		return g.AddInit(graph.NewTensor(name, dims, data))
	}
	linear := func(name string, x *graph.Value, w *graph.Value) *graph.Value {
		return g.AddNode("MatMul", "", name, []*graph.Value{x, w}, []string{name + "_out"}).Out[0]
	}
	x := g.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", 16))
	bias := weight("shared.bias", 48)
	first := g.AddNode("Attention", "com.microsoft", "Attention_0", []*graph.Value{x, weight("qkv.weight", 16, 48), bias}, []string{"context_0"}, graph.IntAttr("num_heads", 4)).Out[0]
	x = linear("out_0", first, weight("out_0.weight", 16, 16))
	in := []*graph.Value{linear("q", x, weight("q.weight", 16, 16)), linear("k", x, weight("k.weight", 16, 16)), linear("v", x, weight("v.weight", 16, 16)), bias}
	second := g.AddNode("MultiHeadAttention", "com.microsoft", "Attention_1", in, []string{"context_1"}, graph.IntAttr("num_heads", 4)).Out[0]
	g.AddOutput(linear("out_1", second, weight("out_1.weight", 16, 16)), graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", 16))
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Blocks inside fused operators are listed, configured, rewritten and verified. What the configuration does not name
// stays fused.
func TestFusedOperators(t *testing.T) {
	dir := t.TempDir()
	model, config, small := filepath.Join(dir, "model.onnx"), filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
	fusedModel(t, model)

	d := decode(t, must(t, "inspect", model, "--json"))
	for i, want := range []string{"com.microsoft.Attention", "com.microsoft.MultiHeadAttention"} {
		if got := at(t, d, "blocks", i, "fused", 0, "op"); got != want {
			t.Errorf("block %d is in %v, want %v", i, got, want)
		}
	}
	if got := at(t, d, "nodes"); got != 7.0 {
		t.Errorf("the model has %v nodes, want the 7 of the file", got)
	}
	if text := must(t, "inspect", model); !strings.Contains(text, "fused: com.microsoft.Attention: Attention_0") {
		t.Errorf("inspect says %q", text)
	}
	must(t, "init", model, "--key", "2", "--value", "1", "-o", config)
	all, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	second := at(t, d, "blocks", 1, "name").(string)
	for _, c := range []struct {
		name, config string
		fused        []string // operators that are left
	}{
		{"both", string(all), nil},
		{"the first", "version: 1\nlayers:\n  - {block: Attention_0, key: 2, value: 1}\n", []string{"MultiHeadAttention"}},
		{"the second", fmt.Sprintf("version: 1\nlayers:\n  - {block: %s, key: 1, value: 2}\n", second), []string{"Attention"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(t, dir, "part.yaml", c.config)
			must(t, "rewrite", model, "--config", filepath.Join(dir, "part.yaml"), "-o", small)
			m, err := graph.Load(small)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			var left []string
			for _, n := range m.Graph.Nodes {
				if n.Domain == "com.microsoft" {
					left = append(left, n.OpType)
				}
			}
			if fmt.Sprint(left) != fmt.Sprint(c.fused) {
				t.Errorf("%v are still fused, want %v", left, c.fused)
			}
			if _, err := ort.Find(""); err != nil {
				t.Skip(err)
			}
			// Random weights drift; the rewrite error must not.
			code, out, errs := invoke("verify", model, small, "--json")
			if code > 1 {
				t.Fatalf("exit code %d, %s", code, errs)
			}
			v := decode(t, out)
			if notes, ok := v["report"].(map[string]any)["notes"].([]any); ok {
				for _, n := range notes {
					if strings.Contains(fmt.Sprint(n), "fused operators were not compared") {
						t.Error(n)
					}
				}
			}
			if !strings.Contains(out, `"rewrite_passed": true`) {
				t.Errorf("the rewrite is not exact: %s", out)
			}
		})
	}
}
