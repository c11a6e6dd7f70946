package rewrite_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/quant"
	"onnx-dha/graph/unfuse"
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
	if _, _, err := unfuse.Expand(m, nil); err != nil {
		t.Fatal(err)
	}
	r := attention.Find(m)
	for _, u := range r.Unsupported {
		t.Errorf("%v: at %v: %s", u.Node, u.At, u.Why)
	}
	if len(r.Blocks) == 0 {
		t.Fatal("no block was found")
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
				if slices.Contains([]string{"qoperator", "qoperator-products", "dynamic-products"}, s.Name) {
					exactFused(t, path, fusion.Grouped, key, val, -1)
					return
				}
				res, _ := exact(t, path, fusion.Grouped, key, val, -1)
				costs(t, res)
			})
		}
	}
}

// Every family, in two of the schemes that differ most in how a graph holds them.
func TestExactQuantisedFamilies(t *testing.T) {
	runtime(t)
	for i, f := range testmodels.Families() {
		for _, s := range testmodels.Schemes() {
			if s.Name != "nbits-4" && (s.Name != []string{"dynamic", "qdq-products"}[i%2] || testing.Short()) {
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

// com.microsoft.QAttention holds a packed weight of 8 bits inside. Rewritten it is an integer product of that type.
func TestExactQAttention(t *testing.T) {
	runtime(t)
	const model, heads = 16, 4
	for _, columns := range []int64{1, 3 * model} {
		t.Run(fmt.Sprint(columns, " scales"), func(t *testing.T) {
			m := graph.New(8, 17)
			domain, one := "com.microsoft", int64(1)
			m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
			g, rng := m.Graph, rand.New(rand.NewPCG(7, 8))
			codes := make([]int8, model*3*model)
			for i := range codes {
				codes[i] = int8(rng.IntN(255) - 127)
			}
			floats := func(name string, n int64, scale float64, dims ...int64) *graph.Value {
				x := make([]float32, n)
				for i := range x {
					x[i] = float32(scale * (0.5 + rng.Float64()))
				}
				return g.AddInit(graph.NewTensor(name, dims, x))
			}
			shape := []int64{columns}
			x := g.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", model))
			q := g.AddNode("DynamicQuantizeLinear", "", "quantise", []*graph.Value{x}, []string{"x_q", "x_scale", "x_zero"}).Out
			w := g.AddInit(graph.NewTensor("qkv.weight", []int64{model, 3 * model}, codes))
			context := g.AddNode("QAttention", domain, "Attention_0", []*graph.Value{
				q[0], w, floats("qkv.bias", 3*model, 0.1, 3*model), q[1], floats("qkv.scale", columns, 0.005, shape...), nil, q[2],
				g.AddInit(graph.NewTensor("qkv.zero", shape, make([]int8, columns))),
			}, []string{"context"}, graph.IntAttr("num_heads", heads)).Out[0]
			y := g.AddNode("MatMul", "", "out", []*graph.Value{context, floats("out.weight", model*model, 0.1, model, model)}, []string{"y"}).Out[0]
			g.AddOutput(y, graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", model))
			path := filepath.Join(t.TempDir(), "model.onnx")
			if err := m.Save(path, graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"equal", "scattered", "decoupled-unequal"} {
				key, val := grouping(name)
				t.Run(name, func(t *testing.T) { exactFused(t, path, fusion.Grouped, key, val, -1) })
			}
		})
	}
}
