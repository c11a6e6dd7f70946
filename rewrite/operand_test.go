package rewrite_test

import (
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// What exporters put between a cache and the product of queries and keys (a factor √s of SDPA, a Transpose between Reshapes that
// merge the heads with the batch, or of a cache in which they are merged) keeps no cache from being read where it lies.
func TestCachesAreReadWhereTheyLie(t *testing.T) {
	sizes := map[string]func(int) [][]int{
		"equal": every(2),
		"unequal": func(n int) [][]int {
			return [][]int{span(0, 2), span(2, n-1), {n - 1}}
		},
	}
	for _, family := range []string{"gpt2", "llama-gqa", "gpt-neox", "llama-dynamo", "opt", "whisper-decoder/torch"} {
		path := built(t, family, testmodels.Options{Layers: 1, Heads: 6, KVHeads: 6})
		for name, groups := range sizes {
			m, err := graph.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			plan, _ := planFor(m, fusion.StaticCache, groups, groups)
			if _, err := rewrite.Apply(m, plan); err != nil {
				t.Fatal(err)
			}
			products := 0
			for _, n := range m.Graph.Nodes {
				if n.Is("If") {
					products++
				}
				if !n.Is("ScatterND") {
					continue
				}
				for queue := n.Out; len(queue) > 0; queue = queue[1:] {
					for _, u := range queue[0].Users() {
						switch {
						case u.Node == nil || u.Node.Graph != m.Graph || u.Node.Is("Shape"):
						case u.Node.Is("Unsqueeze") || u.Node.Is("Reshape"): // looks at it as it lies
							queue = append(queue, u.Node.Out...)
						default:
							t.Errorf("%s, %s groups: %v reads the cache", family, name, u.Node)
						}
					}
				}
			}
			if products < 2 {
				t.Errorf("%s, %s groups: %d products of two forms, want both", family, name, products)
			}
			m.Close()
		}
	}
}

// Heads that are put in another order and not fused, and one key/value head that is repeated, in every lowering.
func TestExactOtherOrder(t *testing.T) {
	runtime(t)
	turned := func(n int) [][]int {
		var g [][]int
		for h := range n {
			g = append(g, []int{(h + 1) % n})
		}
		return g
	}
	for _, c := range []struct {
		family string
		kv     int
		groups func(int) [][]int
	}{{"llama", 4, turned}, {"mpt/simplified", 4, turned}, {"deberta", 4, turned}, {"llama", 1, single}, {"llama-gqa", 1, single}} {
		path := built(t, c.family, testmodels.Options{Layers: 1, KVHeads: c.kv})
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.StaticCache, fusion.GQA, fusion.OpAttention, fusion.Expand} {
			exact(t, path, low, c.groups, c.groups, 2)
		}
	}
}

// A projection that falls apart into one for queries, keys and values each is not computed for those who look at its shape.
func TestPackedProjectionsGo(t *testing.T) {
	for _, family := range []string{"bloom", "gpt-neox", "falcon"} {
		m, err := graph.Load(built(t, family, testmodels.Options{KVHeads: 4}))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		plan, _ := planFor(m, fusion.Grouped, strided, strided)
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		if res.ParamsAfter >= res.ParamsBefore {
			t.Errorf("%s: %d parameters, before %d", family, res.ParamsAfter, res.ParamsBefore)
		}
	}
}
