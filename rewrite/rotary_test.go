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
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// ownPositions lets a model count positions behind its past, as exports without position_ids do: [1, step].
func ownPositions(t testing.TB, family string, o testmodels.Options) string {
	t.Helper()
	m, err := graph.Load(built(t, family, o))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g := m.Graph
	ids := g.Value("position_ids")
	var past *graph.Value
	for _, v := range g.Inputs {
		if strings.HasPrefix(v.Name, "past_key_values.0.") {
			past = v
		}
	}
	if ids == nil || past == nil {
		t.Fatal("the model has no positions or no past")
	}
	constant := func(name string, dims []int64, x int64) *graph.Value {
		return g.AddInit(graph.NewTensor(name, dims, []int64{x}))
	}
	op := func(op, name string, in ...*graph.Value) *graph.Value {
		return g.AddNode(op, "", name, in, []string{name + "_output_0"}).Out[0]
	}
	size := func(v *graph.Value, axis int64) *graph.Value {
		name := "/positions/" + v.Name
		return op("Gather", name+"/Gather", op("Shape", name+"/Shape", v), constant(name+"/axis", nil, axis))
	}
	before := size(past, 2)
	end := op("Add", "/positions/Add", before, size(g.Value("input_ids"), 1))
	rows := op("Range", "/positions/Range", before, end, constant("/positions/one", nil, 1))
	row := op("Unsqueeze", "/positions/Unsqueeze", rows, constant("/positions/axes", []int64{1}, 0))
	for _, u := range slices.Clone(ids.Users()) {
		u.Node.SetInput(u.Index, row)
	}
	g.Inputs = slices.DeleteFunc(g.Inputs, func(v *graph.Value) bool { return v == ids })
	ids.IsInput = false
	if strings.HasPrefix(family, "gpt-neox") {
		unmerged(m)
	}
	out := filepath.Join(t.TempDir(), "own.onnx")
	if err := m.Save(out, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return out
}

// unmerged lets GPT-NeoX multiply [batch, heads, ..] as newer versions do, not heads merged with the batch.
func unmerged(m *graph.Model) {
	for _, b := range attention.Find(m).Blocks {
		q, k := b.QK.In[0].Producer.In[0], b.QK.In[1].Producer.In[0].Producer.In[0]
		b.QK.SetInput(0, q)
		t := m.Graph.AddNode("Transpose", "", b.QK.Name+"/keys", []*graph.Value{k}, []string{b.QK.Name + "/keys"}, graph.IntsAttr("perm", 0, 1, 3, 2))
		b.QK.SetInput(1, t.Out[0])
		for n := b.QK; ; n = n.Out[0].Users()[0].Node {
			if n.Is("Reshape") {
				for _, u := range slices.Clone(n.Out[0].Users()) {
					u.Node.SetInput(u.Index, n.In[0])
				}
				break
			}
		}
	}
	m.Graph.RemoveDead(nil)
}

// The operator turns queries and keys where all sequences of a batch have the same positions, whatever the pairs, the
// tables and the layout are: contexts and caches are those of the tied reference.
func TestExactFoldedRotary(t *testing.T) {
	runtime(t)
	for _, c := range []struct {
		family string
		o      testmodels.Options
	}{
		{"llama", testmodels.Options{HeadDim: 16}},
		{"llama-gqa", testmodels.Options{HeadDim: 32}},
		{"llama-interleaved", testmodels.Options{HeadDim: 16}},
		{"llama-dynamo", testmodels.Options{HeadDim: 16}},
		{"qwen3", testmodels.Options{HeadDim: 16}},
		{"gpt-neox", testmodels.Options{HeadDim: 32}},
		{"gpt-neox-split", testmodels.Options{HeadDim: 32}},
		{"gptj", testmodels.Options{HeadDim: 32}},
	} {
		path := ownPositions(t, c.family, c.o)
		for _, g := range groupings {
			if g.name != "scattered" && g.name != "equal" {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", c.family, g.name), func(t *testing.T) {
				res, r := exact(t, path, fusion.GQA, g.key, g.val, 2)
				if len(r.Exact.Lines) == 0 {
					t.Error("nothing was compared")
				}
				for _, b := range res.Blocks {
					if b.Lowering != fusion.GQA || !strings.HasSuffix(b.Why, "; rotary folded") {
						t.Errorf("%s: %s (%s)", b.Block, b.Lowering, b.Why)
					}
				}
				m := rewritten(t, path, g.key, g.val)
				for _, n := range m.Graph.Nodes {
					if n.Is("Neg") {
						t.Errorf("%v still turns something", n)
					}
					if n.OpType == "GroupQueryAttention" && n.Int("do_rotary", 0) != 1 {
						t.Errorf("%v does not turn anything", n)
					}
				}
			})
		}
	}
}

func rewritten(t testing.TB, path string, key, val func(int) [][]int) *graph.Model {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	plan, ok := planFor(m, fusion.GQA, key, val)
	if !ok {
		t.Skip("no such grouping")
	}
	if _, err := rewrite.Apply(m, plan); err != nil {
		t.Fatal(err)
	}
	return m
}

// What the operator would do otherwise stays in the graph, with the reason; models of fixed sizes are folded by theirs.
func TestRotaryReasons(t *testing.T) {
	runtime(t)
	for _, c := range []struct {
		name, family, why string
		o                 testmodels.Options
	}{
		{"positions of each sequence", "llama", "rotary not folded: positions may differ from sequence to sequence", testmodels.Options{HeadDim: 16}},
		{"one sequence", "llama", "rotary folded", testmodels.Options{HeadDim: 16, Static: true, Batch: 1}},
		{"one sequence, interleaved", "gptj", "rotary folded", testmodels.Options{HeadDim: 32, Static: true, Batch: 1}},
		{"small heads", "llama", "rotary not folded: the operator turns heads of a multiple of 16 channels, not 8", testmodels.Options{Static: true, Batch: 1}},
		{"few pairs", "gptj", "rotary not folded: the operator turns a multiple of 16 channels, not 8", testmodels.Options{HeadDim: 16, Static: true, Batch: 1}},
		{"no rotary", "gpt2", "asked for", testmodels.Options{HeadDim: 16}},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, _ := exact(t, built(t, c.family, c.o), fusion.GQA, single, single, 1)
			if why := res.Blocks[0].Why; !strings.Contains(why, c.why) || c.name == "no rotary" && why != c.why {
				t.Errorf("%q, want %q", why, c.why)
			}
		})
	}
}

// A table whose halves differ turns a pair's channels by two angles, which the operator cannot.
func TestTwoAnglesAreNotFolded(t *testing.T) {
	path := ownPositions(t, "gpt-neox", testmodels.Options{HeadDim: 32})
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	changed := 0
	for _, v := range m.Graph.Inits {
		if !strings.Contains(v.Name, "cos_cached") {
			continue
		}
		x, err := v.Init.Float32s()
		if err != nil {
			t.Fatal(err)
		}
		x = slices.Clone(x)
		x[len(x)-1] += 0.5
		v.Init = graph.NewTensor(v.Name, v.Init.Dims(), x)
		changed++
	}
	plan, _ := planFor(m, fusion.GQA, adjacent, adjacent)
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		t.Fatal(err)
	}
	if why := res.Blocks[0].Why; changed != 1 || !strings.Contains(why, "is not known to be a rotary embedding") {
		t.Errorf("%d tables changed, %q", changed, why)
	}
}
