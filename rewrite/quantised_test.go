package rewrite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/quant"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// quantisedModel writes a model of a family with the weights of a scheme.
func quantisedModel(t *testing.T, family string, s testmodels.Scheme, o testmodels.Options) string {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	o.Seed = 3
	if m, err := f.Build(testmodels.Options{}); err != nil || m.Opset("") < s.Opset {
		o.Opset = s.Opset
	}
	m, err := f.Build(o)
	if err != nil {
		t.Skip(err)
	}
	if err := s.Quantise(m); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// exactQuantised rewrites a quantised model and runs it against its tied reference, both in their plain forms: where
// activations are quantised too, a sum that is rounded otherwise can make another code.
func exactQuantised(t *testing.T, path string, low fusion.Lowering, key, val func(int) [][]int, steps int) *rewrite.Result {
	t.Helper()
	dir := t.TempDir()
	var res *rewrite.Result
	for _, out := range []string{"original.onnx", "rewritten.onnx", "tied.onnx"} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if _, _, err := unfuse.Expand(m, nil); err != nil {
			t.Fatal(err)
		}
		plan, ok := planFor(m, low, key, val)
		if !ok {
			t.Skip("no such grouping")
		}
		switch out {
		case "tied.onnx":
			err = rewrite.Tie(m, plan)
		case "rewritten.onnx":
			res, err = rewrite.Apply(m, plan)
		}
		if err == nil {
			err = quant.Plain(m, nil)
		}
		if err == nil {
			err = m.Check()
		}
		if err == nil {
			err = m.Save(filepath.Join(dir, out), graph.SaveOptions{})
		}
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	r, err := verify.Run(context.Background(), verify.Request{
		Original: filepath.Join(dir, "original.onnx"), Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"),
		Caches: res.Caches, Steps: steps, Seed: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Exact.Lines {
		if !l.Passed() {
			t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
		}
	}
	return res
}

// Every scheme, heads next to one another and heads that are re-ordered, separate and packed projections.
func TestExactQuantised(t *testing.T) {
	runtime(t)
	for _, s := range testmodels.Schemes() {
		for family, g := range map[string]string{"llama": "scattered", "gpt2-matmul": "decoupled-unequal"} {
			for _, grouping := range groupings {
				if grouping.name != g {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", s.Name, family, g), func(t *testing.T) {
					path := quantisedModel(t, family, s, testmodels.Options{Cache: true})
					res := exactQuantised(t, path, fusion.Grouped, grouping.key, grouping.val, 1)
					if len(res.Requantised) == 0 {
						t.Error("no weight was quantised again")
					}
				})
			}
		}
	}
}
