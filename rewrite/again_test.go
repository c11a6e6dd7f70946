package rewrite_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/shapes"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// groupSizes counts the query heads of each head that they read, ascending: of is the head of each.
func groupSizes(of []int) []int {
	count := map[int]int{}
	for _, h := range of {
		count[h]++
	}
	var out []int
	for _, n := range count {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// fused is the group of each query head whose key or value head is of[h] of those that f fuses.
func fused(of []int, f fusion.Fusion) []int {
	out := make([]int, len(of))
	for h, head := range of {
		out[h] = slices.IndexFunc(f.Groups, func(g []int) bool { return slices.Contains(g, head) })
	}
	return out
}

// A block that was rewritten is found again under its name and described as what the configuration made of it, also where
// its products lie in the branches of an If in a form for each, and in a branch of a branch.
func TestFoundAgain(t *testing.T) {
	inside := 0
	for _, f := range testmodels.Families() {
		path := built(t, f.Name, testmodels.Options{})
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.StaticCache, fusion.GQA, fusion.OpAttention} {
			operator := low == fusion.GQA || low == fusion.OpAttention
			for _, g := range groupings {
				if g.name == "identity" || operator != (g.name == "scattered") || low == fusion.StaticCache && !f.Decoder {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", f.Name, low, g.name), func(t *testing.T) {
					m, err := graph.Load(path)
					if err != nil {
						t.Fatal(err)
					}
					defer m.Close()
					plan, ok := planFor(m, low, g.key, g.val)
					if !ok {
						t.Skip("no such grouping")
					}
					want := map[string]string{}
					for _, bp := range plan.Blocks {
						b := bp.Block
						want[b.Name] = outline(b, bp.Key.Heads(), bp.Value.Heads(), fused(b.KeyOf, bp.Key), fused(b.ValueOf, bp.Value))
					}
					if _, err := rewrite.Apply(m, plan); err != nil {
						t.Fatal(err)
					}
					// As the command saves them: without what shape arithmetic the rewrite made needless.
					if _, err := shapes.Reduce(m.Graph); err != nil {
						t.Fatal(err)
					}
					again := reloaded(t, m)
					again.Graph.All(func(n *graph.Node) bool {
						if n.Is("If") && strings.HasSuffix(n.Name, "/by_length") {
							inside++
						}
						return true
					})
					expansions, _, err := unfuse.Expand(again, nil)
					if err != nil {
						t.Fatal(err)
					}
					if err := again.Check(); err != nil {
						t.Fatal(err)
					}
					r := attention.Find(again)
					for _, u := range r.Unsupported {
						if u.Attention {
							t.Errorf("%v: at %v: %s", u.Node, u.At, u.Why)
						}
					}
					for _, b := range r.Blocks {
						got := outline(b, b.KVHeads, b.ValueHeads, b.KeyOf, b.ValueOf)
						if w, ok := want[b.Name]; ok && got != w {
							t.Errorf("%s: %s\nwant %s", b.Name, got, w)
						}
						delete(want, b.Name)
						for _, c := range []struct {
							*attention.Cache
							heads int
						}{{b.KeyCache, b.KVHeads}, {b.ValCache, b.ValueHeads}} {
							if c.Cache != nil && c.Heads != c.heads {
								t.Errorf("%s: %d heads in a cache of %d", b.Name, c.Heads, c.heads)
							}
						}
						if strings.Contains(g.name, "unequal") && b.Fixed == "" && unfuse.Fixed(expansions, b.QK, b.PV) == "" {
							t.Errorf("%s is in a form that is not rewritten again, and nothing says so", b.Name)
						}
					}
					for name := range want {
						t.Errorf("block %q is not found", name)
					}
				})
			}
		}
	}
	if inside == 0 {
		t.Error("no product lay in the branches of an If")
	}
}

// reloaded saves a model and reads it.
func reloaded(t *testing.T, m *graph.Model) *graph.Model {
	t.Helper()
	path := filepath.Join(t.TempDir(), "saved.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	again, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	return again
}

// outline describes a block that has so many heads and whose query heads read those of the given numbers.
func outline(b *attention.Block, keys, values int, keyOf, valueOf []int) string {
	ends := func(c *attention.Cache) string {
		if c == nil {
			return "none"
		}
		return fmt.Sprint(c.Past, " to ", c.Present)
	}
	return fmt.Sprintf("%s, causal %v; %d heads, %d and %d of keys and values, read by %v and %v; %d and %d channels, rotary %v; caches %s and %s",
		b.Kind, b.Causal, b.Heads, keys, values, groupSizes(keyOf), groupSizes(valueOf), b.HeadDim, b.ValueDim, b.Rotary, ends(b.KeyCache), ends(b.ValCache))
}
