package rewrite_test

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// generate runs a generation operator on a prompt and returns all outputs.
func generate(t *testing.T, path string) map[string][]float64 {
	t.Helper()
	s, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.Run(context.Background(), inputs(s, map[string]*ort.Tensor{
		"input_ids": ort.From([]int32{5, 9, 33, 17, 21, 60, 3, 44}, 2, 4), "max_length": ort.From([]int32{10}, 1), "min_length": ort.From([]int32{1}, 1),
		"num_beams": ort.From([]int32{3}, 1), "num_return_sequences": ort.From([]int32{2}, 1), "seed": ort.From([]int32{5}, 1),
		"length_penalty": ort.FromFloat32([]float32{1}, 1), "repetition_penalty": ort.FromFloat32([]float32{1}, 1),
	}))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]float64{}
	for name, x := range out {
		if all[name], err = x.Float64s(); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// exactSearch compares what the rewritten and the tied model generate: sequences token by token, scores by number.
func exactSearch(t *testing.T, path string, low fusion.Lowering, key, val func(int) [][]int) {
	t.Helper()
	got := map[string]map[string][]float64{}
	for _, kind := range []string{"rewritten", "tied"} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		plan, ok := planFor(m, low, key, val)
		if !ok {
			t.Fatal("no such grouping")
		}
		if kind == "tied" {
			err = rewrite.Tie(m, plan)
		} else {
			_, err = rewrite.Apply(m, plan)
		}
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), kind+".onnx")
		if err := m.Save(out, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		got[kind] = generate(t, out)
	}
	if len(got["tied"]) == 0 {
		t.Fatal("nothing was generated")
	}
	for name, want := range got["tied"] {
		have := got["rewritten"][name]
		if len(have) != len(want) {
			t.Fatalf("%s has %d elements, want %d", name, len(have), len(want))
		}
		tolerance := 1e-3
		if name == "sequences" {
			tolerance = 0
		}
		for i, x := range want {
			if d := math.Abs(have[i] - x); d > tolerance && !(math.IsInf(x, -1) && math.IsInf(have[i], -1)) && x > -1e30 {
				t.Fatalf("%s[%d] is %v, want %v", name, i, have[i], x)
			}
		}
	}
}

// searches are generation operators with a decoder in their bodies.
func searches(t *testing.T) map[string]string {
	cached := message(t, "gpt2", testmodels.Options{Cache: true})
	paths := map[string]string{}
	for _, op := range []string{"GreedySearch", "BeamSearch", "Sampling"} {
		paths[op] = wrapped(t, testmodels.Search(op, cached))
	}
	paths["BeamSearch of a pair"] = wrapped(t, searchPair(t, false))
	paths["BeamSearch of a pair that starts together"] = wrapped(t, searchPair(t, true))
	return paths
}

// searchPair is T5 in BeamSearch: the encoder gives the caches of cross attention, or all caches of a first step.
func searchPair(t *testing.T, start bool) *onnxpb.ModelProto {
	encoder := message(t, "t5-encoder", testmodels.Options{})
	first, next := message(t, "t5-decoder", testmodels.Options{Stage: testmodels.First}), message(t, "t5-decoder", testmodels.Options{Stage: testmodels.Next})
	name := func(present string) string { // present.0.encoder.key → present_key_cross_0
		p := strings.Split(present, ".")
		return "present_" + p[3] + "_" + map[string]string{"encoder": "cross", "decoder": "self"}[p[2]] + "_" + p[1]
	}
	if start {
		return testmodels.SearchPair(testmodels.Start(encoder, first, name), next)
	}
	return testmodels.SearchPair(testmodels.Fill(encoder, first, name), next)
}

func TestExactSearch(t *testing.T) {
	runtime(t)
	for name, path := range searches(t) {
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			t.Run(name+"/"+string(low)+"/adjacent", func(t *testing.T) { exactSearch(t, path, low, adjacent, adjacent) })
			t.Run(name+"/"+string(low)+"/unequal", func(t *testing.T) { exactSearch(t, path, low, unequal, unequal) })
			if strings.Contains(name, "together") { // the operator makes no caches: they may be as they like
				t.Run(name+"/"+string(low)+"/decoupled", func(t *testing.T) { exactSearch(t, path, low, adjacent, all) })
			}
		}
	}
}

// A generation operator that makes the first caches itself makes them alike; what it cannot hold is refused.
func TestSearchRefusesUnlikeCaches(t *testing.T) {
	paths := searches(t)
	for _, c := range []struct {
		model    string
		key, val func(layer, n int) [][]int
		want     string
	}{
		{"GreedySearch", func(_, n int) [][]int { return adjacent(n) }, func(_, n int) [][]int { return all(n) }, `keys and values share the cache tensor "past_0", so they need the same number of heads, not 2 and 1`},
		{"BeamSearch", func(l, n int) [][]int { return [][][]int{adjacent(n), all(n)}[l] }, func(l, n int) [][]int { return [][][]int{adjacent(n), all(n)}[l] },
			`BeamSearch "/generate/BeamSearch" makes the first caches of all layers alike: "past_0" would have 2 heads and "past_1" 1; give keys and values of all layers the same number of heads`},
		{"BeamSearch of a pair", func(_, n int) [][]int { return adjacent(n) }, func(_, n int) [][]int { return all(n) },
			`"past_key_self_0" would have 2 heads and "past_value_self_0" 1`},
	} {
		m, err := graph.Load(paths[c.model])
		if err != nil {
			t.Fatal(err)
		}
		plan := &fusion.Plan{Lowering: fusion.Grouped}
		for i, b := range attention.Layers(attention.Find(m).Blocks) {
			if b.Fixed == "" {
				plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: weigh(c.key(i%2, b.KVHeads)), Value: weigh(c.val(i%2, b.ValueHeads))})
			}
		}
		if _, err := rewrite.Apply(m, plan); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.model, err, c.want)
		}
		if err := m.Check(); err != nil {
			t.Errorf("%s: after the refusal: %v", c.model, err)
		}
		m.Close()
	}
}
