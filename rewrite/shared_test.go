package rewrite_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// albert gives all layers of BERT the weights of the first, as ALBERT has them.
func albert(m *onnxpb.ModelProto) *onnxpb.ModelProto {
	m = proto.Clone(m).(*onnxpb.ModelProto)
	weights := map[string]bool{}
	for _, t := range m.Graph.Initializer {
		weights[t.GetName()] = true
	}
	first := map[string][]string{} // of layer 0, by the rest of the node's name
	used := map[string]bool{}
	for _, n := range m.Graph.Node {
		layer, rest, ok := strings.Cut(strings.TrimPrefix(n.GetName(), "/encoder/layer."), "/")
		if !ok || !strings.HasPrefix(n.GetName(), "/encoder/layer.") {
			continue
		}
		if layer == "0" {
			first[rest] = n.Input
		} else {
			for i, x := range n.Input {
				if weights[x] {
					n.Input[i] = first[rest][i]
				}
			}
		}
	}
	for _, n := range m.Graph.Node {
		for _, x := range n.Input {
			used[x] = true
		}
	}
	var kept []*onnxpb.TensorProto
	for _, t := range m.Graph.Initializer {
		if used[t.GetName()] {
			kept = append(kept, t)
		}
	}
	m.Graph.Initializer = kept
	return m
}

// Layers that share weights share them after a rewrite by equal plans, and have their own after one by different plans.
func TestExactSharedLayers(t *testing.T) {
	runtime(t)
	path := wrapped(t, albert(message(t, "bert", testmodels.Options{Layers: 3})))
	matrices := func(m *graph.Model) int {
		n := 0
		for _, v := range m.Graph.Inits {
			if len(v.Init.Dims()) == 2 && strings.HasPrefix(v.Name, "onnx::MatMul") {
				n++
			}
		}
		return n
	}
	for _, c := range []struct {
		name string
		key  func(layer, n int) [][]int
		more int // weights after the rewrite than before
	}{
		{"alike", func(_, n int) [][]int { return strided(n) }, 0},
		// Layer 2 keeps the original; the others have keys of their own.
		{"different", func(l, n int) [][]int { return [][][]int{adjacent(n), all(n), single(n)}[l] }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			before := 0
			for _, out := range []string{"rewritten.onnx", "tied.onnx"} {
				m, err := graph.Load(path)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				before = matrices(m)
				plan := &fusion.Plan{Lowering: fusion.Grouped}
				blocks := attention.Find(m).Blocks
				if len(blocks) != 3 {
					t.Fatalf("%d blocks, want 3", len(blocks))
				}
				for i, b := range blocks {
					plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: weigh(c.key(i, b.KVHeads)), Value: weigh(single(b.ValueHeads))})
				}
				if out == "tied.onnx" {
					err = rewrite.Tie(m, plan)
				} else {
					_, err = rewrite.Apply(m, plan)
					if got := matrices(m) - before; got > c.more || c.more == 0 && got != 0 {
						t.Errorf("%d weights more than before, want %d", got, c.more)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Save(filepath.Join(dir, out), graph.SaveOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := verify.Run(context.Background(), verify.Request{Original: path, Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"), Steps: -1, Seed: 7})
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range r.Exact.Lines {
				if !l.Passed() {
					t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
				}
			}
		})
	}
}

// A merged decoder has its weights once before a rewrite and once after.
func TestMergedWeightsStayShared(t *testing.T) {
	path := wrapped(t, merged(t, "llama-gqa", testmodels.Options{}))
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	before := len(m.Graph.Inits)
	plan, _ := planFor(m, fusion.Grouped, adjacent, all)
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Graph.Inits) != before || res.ParamsAfter >= res.ParamsBefore {
		t.Errorf("%d outer weights, before %d; %d parameters, before %d", len(m.Graph.Inits), before, res.ParamsAfter, res.ParamsBefore)
	}
	m.Graph.All(func(n *graph.Node) bool {
		for attr, bodies := range n.Subgraphs {
			for _, v := range bodies[0].Inits {
				if v.Init.Len() > 64 {
					t.Errorf("%s of %v holds the weight %q", attr, n, v.Name)
				}
			}
		}
		return true
	})
}
