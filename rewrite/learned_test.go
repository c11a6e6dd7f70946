package rewrite_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// random perturbs what the block has, so that learned weights are of its size but nowhere the same.
func random(t *testing.T, bp fusion.BlockPlan, seed uint64) *fusion.Learned {
	t.Helper()
	w, err := fusion.ReadWeights(bp.Block)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(seed, 5))
	like := func(m *mat.Dense, cols int) *mat.Dense {
		r, c := m.Dims()
		out := mat.NewDense(r, cols, nil)
		out.Apply(func(i, j int, _ float64) float64 { return m.At(i, j%c) + 0.1*rng.NormFloat64() }, out)
		return out
	}
	vector := func(b []float64, n int) []float64 {
		if b == nil {
			return nil
		}
		out := make([]float64, n)
		for i := range out {
			out[i] = b[i%len(b)] + 0.1*rng.NormFloat64()
		}
		return out
	}
	k, v := bp.Key.Heads()*w.HeadDim, bp.Value.Heads()*w.ValueDim
	l := &fusion.Learned{
		Query: like(w.Query, w.Heads*w.HeadDim), Key: like(w.Key, k), Value: like(w.Value, v),
		QueryBias: vector(w.QueryBias, w.Heads*w.HeadDim), KeyBias: vector(w.KeyBias, k), ValueBias: vector(w.ValueBias, v),
	}
	if w.Output != nil {
		_, out := w.Output.Dims()
		l.Output, l.OutputBias = like(w.Output, out), vector(w.OutputBias, out)
	}
	return l
}

// run writes the tied reference and the rewritten model of a plan and compares them, and the rewritten with the original.
func run(t *testing.T, path string, plan func(m *graph.Model) *fusion.Plan) *verify.Report {
	t.Helper()
	dir := t.TempDir()
	var res *rewrite.Result
	for _, out := range []string{"rewritten.onnx", "tied.onnx"} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if out == "tied.onnx" {
			err = rewrite.Tie(m, plan(m))
		} else {
			res, err = rewrite.Apply(m, plan(m))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Save(filepath.Join(dir, out), graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := verify.Run(context.Background(), verify.Request{
		Original: path, Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"), Caches: res.Caches, Steps: 3, Seed: 11,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range r.Exact.Lines {
		if !l.Passed() {
			t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
		}
	}
	return r
}

// Learned weights take their places in every packing: the rewritten model agrees with the tied reference.
func TestExactLearned(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	runtime(t)
	for _, f := range testmodels.Families() {
		m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 9, Bias: true})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "model.onnx")
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			for _, g := range groupings {
				if g.name != "scattered" && g.name != "decoupled-unequal" && g.name != "identity" {
					continue
				}
				t.Run(f.Name+"/"+string(low)+"/"+g.name, func(t *testing.T) {
					if _, ok := planFor(m, low, g.key, g.val); !ok {
						t.Skip("no such grouping")
					}
					run(t, path, func(m *graph.Model) *fusion.Plan {
						plan, _ := planFor(m, low, g.key, g.val)
						for i := range plan.Blocks {
							plan.Blocks[i].Learned = random(t, plan.Blocks[i], uint64(i))
						}
						return plan
					})
				})
			}
		}
	}
}

// A block's own weights, read and given back as learned ones, are the original model: the order of columns and rows is
// the same on both ways.
func TestOwnWeightsAsLearned(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Families() {
		t.Run(f.Name, func(t *testing.T) {
			m, err := f.Build(testmodels.Options{Seed: 4, Bias: true})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "model.onnx")
			if err := m.Save(path, graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			r := run(t, path, func(m *graph.Model) *fusion.Plan {
				plan, _ := planFor(m, fusion.Grouped, single, single)
				for i, bp := range plan.Blocks {
					w, err := fusion.ReadWeights(bp.Block)
					if err != nil {
						t.Fatal(err)
					}
					plan.Blocks[i].Learned = &fusion.Learned{
						Query: w.Query, Key: w.Key, Value: w.Value, Output: w.Output,
						QueryBias: w.QueryBias, KeyBias: w.KeyBias, ValueBias: w.ValueBias, OutputBias: w.OutputBias,
					}
				}
				return plan
			})
			for _, l := range r.Drift.Lines {
				if l.Metrics.MaxRel > 1e-5 {
					t.Errorf("%s %s: drift %v", l.Case, l.Output, l.Metrics.MaxRel)
				}
			}
		})
	}
}

func TestLearnedFile(t *testing.T) {
	m := build(t, "gpt2", testmodels.Options{})
	plan, _ := planFor(m, fusion.Grouped, adjacent, all)
	want := map[string]*fusion.Learned{}
	for i, bp := range plan.Blocks {
		want[bp.Block.Name] = random(t, bp, uint64(i))
	}
	path := filepath.Join(t.TempDir(), "dha.safetensors")
	if _, err := fusion.WriteLearned(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := fusion.ReadLearned(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, w := range want {
		g := got[name]
		if g == nil || !mat.Equal(g.Query, w.Query) || !mat.Equal(g.Key, w.Key) || !mat.Equal(g.Value, w.Value) || !mat.Equal(g.Output, w.Output) || len(g.KeyBias) != len(w.KeyBias) {
			t.Errorf("block %q comes back different", name)
		}
	}
}
