package rewrite_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/quant"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// quantisedModel writes a model of a family with the weights of a scheme.
func quantisedModel(t *testing.T, f testmodels.Family, s testmodels.Scheme, o testmodels.Options) string {
	t.Helper()
	o.Seed, o.Cache = 3, f.Decoder
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

// grouping returns the row of groupings of that name.
func grouping(name string) (key, val func(n int) [][]int) {
	i := slices.IndexFunc(groupings, func(g struct {
		name     string
		key, val func(n int) [][]int
	}) bool {
		return g.name == name
	})
	return groupings[i].key, groupings[i].val
}

// Every scheme: separate projections whose heads are re-ordered, and a packed one. What is compared is what the runtime
// computes of the codes, and where activations are quantised too and one was rounded otherwise, the plain forms.
func TestExactQuantised(t *testing.T) {
	runtime(t)
	for _, s := range testmodels.Schemes() {
		for _, c := range [][2]string{{"llama", "scattered"}, {"gpt2-matmul", "decoupled-unequal"}, {"gpt2", "equal"}} {
			if s.Name != "gemm" && c[0] == "gpt2" {
				continue // the family with Gemm
			}
			t.Run(fmt.Sprintf("%s/%s", s.Name, c[0]), func(t *testing.T) {
				f, err := testmodels.Get(c[0])
				if err != nil {
					t.Fatal(err)
				}
				key, val := grouping(c[1])
				path := quantisedModel(t, f, s, testmodels.Options{})
				if s.Name == "qoperator" {
					exactFused(t, path, fusion.Grouped, key, val, -1)
					return
				}
				res, _ := exact(t, path, fusion.Grouped, key, val, -1)
				costs(t, res)
			})
		}
	}
}

// Every family, in the schemes that differ most in how a graph holds them.
func TestExactQuantisedFamilies(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Families() {
		for _, s := range testmodels.Schemes() {
			if !slices.Contains([]string{"nbits-4", "dynamic", "qdq"}, s.Name) || s.Name != "nbits-4" && testing.Short() {
				continue
			}
			t.Run(f.Name+"/"+s.Name, func(t *testing.T) {
				key, val := grouping("equal")
				exact(t, quantisedModel(t, f, s, testmodels.Options{}), fusion.Grouped, key, val, -1)
			})
		}
	}
}

// costs checks that a rewrite reports what quantising again cost, and that the cost is what the bits of the codes
// make plausible.
func costs(t *testing.T, res *rewrite.Result) {
	t.Helper()
	if len(res.Requantised) == 0 {
		t.Fatal("no weight was quantised again")
	}
	var total quant.Rounding
	for _, r := range res.Requantised {
		cost, err := r.Rounding()
		if err != nil {
			t.Fatal(err)
		}
		total.Add(cost)
	}
	if x := total.Relative(); !(x > 0 && x < 0.5) {
		t.Errorf("the added rounding is %v of the weights", x)
	}
}
