package main

import (
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// repeatedCaches makes a Mistral of four heads one of two key/value heads that are repeated before they are cached, as
// older exports of Falcon-40B do: the caches hold a head for every query head.
func repeatedCaches(t *testing.T, path string) string {
	t.Helper()
	f, err := testmodels.Get("mistral/simplified")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Cache: true, Heads: 4, KVHeads: 4, HeadDim: 8, ModelDim: 32})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g := m.Graph
	ints := func(name string, x ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor(g.FreshName(name), []int64{int64(len(x))}, x))
	}
	node := func(op string, in ...*graph.Value) *graph.Value {
		name := g.FreshName(op)
		return g.AddNode(op, "", name, in, []string{name}).Out[0]
	}
	changed := 0
	for _, n := range append([]*graph.Node{}, g.Nodes...) {
		switch {
		case n.Is("MatMul") && (strings.Contains(n.Name, "k_proj") || strings.Contains(n.Name, "v_proj")):
			w, err := n.In[1].Const().Float64s()
			if err != nil {
				t.Fatal(err)
			}
			var narrow []float64
			for row := range 32 {
				narrow = append(narrow, w[row*32:row*32+16]...)
			}
			c, err := graph.FromFloat64s(g.FreshName("narrow"), n.In[1].Const().DType(), []int64{32, 16}, narrow)
			if err != nil {
				t.Fatal(err)
			}
			n.SetInput(1, g.AddInit(c))
			n.Out[0].Users()[0].Node.SetInput(1, ints("split", 0, 0, 2, 8))
			changed++
		case n.Is("Concat") && n.In[0].IsInput && strings.HasPrefix(n.In[0].Name, "past"):
			x := node("Expand", node("Unsqueeze", n.In[1], ints("axis", 2)), ints("twice", 1, 1, 2, 1, 1))
			n.SetInput(1, node("Reshape", x, ints("merged", 0, 4, -1, 8)))
			changed++
		}
	}
	if changed != 8 {
		t.Fatalf("%d nodes were changed, want a projection and a cache for the keys and values of 2 layers", changed)
	}
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// Which heads leave the caches depends on the lowering, and verify knows which it was: with expand keys that are not fused
// stay repeated in their cache, with grouped they do not.
func TestVerifyKnowsTheLowering(t *testing.T) {
	dir := t.TempDir()
	model := repeatedCaches(t, filepath.Join(dir, "model.onnx"))
	config, small := filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
	must(t, "init", model, "--key", "2", "--value", "1")
	for _, c := range []struct {
		args     []string
		lowering string
		heads    int64 // of the keys in their cache
	}{
		{nil, "grouped", 2},
		{[]string{"--lowering", "expand"}, "expand", 4},
		{[]string{"--lowering", "grouped"}, "grouped", 2},
		{[]string{"--lowering", "static-cache"}, "static-cache", 2},
		{[]string{"--target", "portable"}, "grouped", 2},
		{[]string{"--target", "ort-cuda"}, "grouped", 2},
	} {
		name := strings.Join(c.args, " ")
		must(t, append([]string{"rewrite", model, "-c", config, "-o", small}, c.args...)...)
		m, err := graph.Load(small)
		if err != nil {
			t.Fatal(err)
		}
		dims := m.Graph.Value("past_key_values.0.key").Info.GetType().GetTensorType().Shape.Dim
		m.Close()
		if dims[1].GetDimValue() != c.heads {
			t.Errorf("%s: the cache of the keys has %d heads, want %d", name, dims[1].GetDimValue(), c.heads)
		}
		v := decode(t, must(t, "verify", model, small, "--layers", "--kl", "99", "--top1", "0", "--json"))
		if got := at(t, v, "report", "blocks", 0, "lowering"); got != c.lowering {
			t.Errorf("%s: verify names the lowering %v, want %s", name, got, c.lowering)
		}
		// What is tried with layers left alone has the form of the whole.
		code, out, errs := invoke("verify", model, small, "--bisect", "--kl", "0", "--top1", "1")
		if code != exitDrift || !strings.Contains(out, "Bisection:") {
			t.Errorf("%s: bisection: exit code %d\n%s%s", name, code, out, errs)
		}
	}
}
