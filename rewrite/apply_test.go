package rewrite_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

func build(t *testing.T, family string, o testmodels.Options) *graph.Model {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// bytesOf saves a model and returns the file.
func bytesOf(t *testing.T, m *graph.Model) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func apply(t *testing.T, m *graph.Model, low fusion.Lowering, key, val func(int) [][]int) *rewrite.Result {
	t.Helper()
	plan, ok := planFor(m, low, key, val)
	if !ok {
		t.Fatal("no such grouping")
	}
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// The packed weight of GPT-2 is packed again: one Gemm, a Split with other sizes, one smaller bias.
func TestPackedWeightIsPackedAgain(t *testing.T) {
	m := build(t, "gpt2", testmodels.Options{Cache: true})
	b := attention.Find(m).Blocks[0]
	weight, node := b.Key.Projection.Weight, b.Key.Projection.Node
	apply(t, m, fusion.Grouped, adjacent, all)
	if w := m.Graph.Value(weight.Name); w == nil || !slices.Equal(w.Init.Dims(), []int64{32, 32 + 16 + 8}) {
		t.Errorf("c_attn's weight is %v, want [32 56] under its own name", w)
	}
	if bias := node.In[2].Const(); !slices.Equal(bias.Dims(), []int64{56}) {
		t.Errorf("c_attn's bias is %v, want [56]", bias.Dims())
	}
	found := false
	for _, n := range m.Graph.Nodes {
		if n.Is("Split") && strings.HasPrefix(n.Name, b.Name) {
			sizes, err := n.In[1].Const().Int64s()
			found = err == nil && slices.Equal(sizes, []int64{32, 16, 8})
		}
	}
	if !found {
		t.Error("the Split of c_attn does not have the sizes 32, 16, 8")
	}
}

// What callers see: caches are declared with the fused heads, everything else as before.
func TestSignatureIsTruthful(t *testing.T) {
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		m := build(t, "llama", testmodels.Options{Cache: true})
		before := declared(m)
		apply(t, m, low, adjacent, all)
		for name, dims := range declared(m) {
			want := before[name]
			switch {
			case strings.HasSuffix(name, ".key"):
				want = strings.Replace(want, " 4 ", " 2 ", 1)
			case strings.HasSuffix(name, ".value"):
				want = strings.Replace(want, " 4 ", " 1 ", 1)
			}
			if dims != want {
				t.Errorf("%s: %s is declared %s, want %s", low, name, dims, want)
			}
		}
	}
}

// declared writes down the declared dims of inputs and outputs.
func declared(m *graph.Model) map[string]string {
	out := map[string]string{}
	for _, v := range slices.Concat(m.Graph.Inputs, m.Graph.Outputs) {
		var dims []string
		for _, d := range v.Info.GetType().GetTensorType().GetShape().GetDim() {
			if p := d.GetDimParam(); p != "" {
				dims = append(dims, p)
			} else {
				dims = append(dims, fmt.Sprint(d.GetDimValue()))
			}
		}
		out[v.Name] = "[" + strings.Join(dims, " , ") + "]"
	}
	return out
}

// Declared types inside the graph agree with what inference finds after the rewrite.
func TestValueInfoIsTruthful(t *testing.T) {
	for _, family := range []string{"gpt2", "llama-gqa", "gpt-neox", "opt", "bloom", "mha"} {
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			m := build(t, family, testmodels.Options{Static: true})
			facts := graph.Infer(m.Graph)
			for _, n := range m.Graph.Nodes { // declare everything, as shape inference of an exporter does
				for _, v := range n.Out {
					if shape, ok := facts.Shape(v); ok && v.Info == nil {
						var dims []any
						for _, d := range shape {
							if c, ok := d.Const(); ok {
								dims = append(dims, c)
							} else {
								dims = append(dims, d.String())
							}
						}
						v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: graph.TensorType(facts.Elem(v), dims...)}
					}
				}
			}
			apply(t, m, low, adjacent, adjacent)
			after := graph.Infer(m.Graph)
			for _, n := range m.Graph.Nodes {
				for _, v := range n.Out {
					shape, ok := after.Shape(v)
					dims := v.Info.GetType().GetTensorType().GetShape().GetDim()
					if !ok || dims == nil {
						continue
					}
					if len(dims) != len(shape) {
						t.Errorf("%s %s: %s is declared with %d axes and has %d", family, low, v.Name, len(dims), len(shape))
						continue
					}
					for i, d := range dims {
						if c, ok := shape[i].Const(); ok && d.GetDimParam() == "" && d.GetDimValue() != c {
							t.Errorf("%s %s: axis %d of %s is declared %d and is %d", family, low, i, v.Name, d.GetDimValue(), c)
						}
					}
				}
			}
		}
	}
}

// Node names, metadata and producer survive, dead nodes and weights do not, and what was dead before stays.
func TestWhatSurvives(t *testing.T) {
	m := build(t, "llama-gqa", testmodels.Options{Cache: true})
	producer := "somebody"
	m.Proto.ProducerName = &producer
	m.SetMetadata("kept", "yes")
	m.Graph.AddInit(graph.NewTensor("already.dead", []int64{1}, []float32{1}))
	b := attention.Find(m).Blocks[0]
	names := map[string]bool{}
	for _, n := range m.Graph.Nodes {
		names[n.Name] = true
	}
	res := apply(t, m, fusion.Grouped, all, all)
	if v, _ := m.Metadata("kept"); v != "yes" || m.Proto.GetProducerName() != producer {
		t.Error("metadata or producer are lost")
	}
	if m.Graph.Value("already.dead") == nil {
		t.Error("a weight that was dead before the rewrite is removed")
	}
	for _, n := range []*graph.Node{b.QK, b.Softmax, b.PV, b.Key.Projection.Node, b.Output.Node} {
		if m.Graph.NodeNamed(n.Name) == nil {
			t.Errorf("%v is gone", n)
		}
	}
	for _, n := range m.Graph.Nodes {
		for _, o := range n.Out {
			if o != nil && len(o.Users()) == 0 && names[n.Name] {
				t.Errorf("%v is dead", n)
			}
		}
		if n.Is("Expand") && strings.Contains(n.Name, "self_attn") {
			t.Errorf("%v still repeats heads", n)
		}
	}
	if res.ParamsAfter != res.ParamsBefore-2*2*32*8 { // 2 layers, K and V, 32 rows of one head of 8
		t.Errorf("%d parameters become %d", res.ParamsBefore, res.ParamsAfter)
	}
}

// A weight that two blocks share is copied before it is changed, so that each gets its own fusion.
func TestSharedWeightsAreCopied(t *testing.T) {
	m := build(t, "bert", testmodels.Options{})
	blocks := attention.Find(m).Blocks
	for _, p := range []func(b *attention.Block) *attention.Path{
		func(b *attention.Block) *attention.Path { return b.Key },
		func(b *attention.Block) *attention.Path { return b.Value },
	} {
		first, second := p(blocks[0]).Projection, p(blocks[1]).Projection
		second.Reader.SetInput(second.Operand, first.Weight)
	}
	m.Graph.RemoveDead(nil)
	path := filepath.Join(t.TempDir(), "shared.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	runtime(t)
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		exact(t, path, low, strided, unequal, 0)
	}
	// Only the first block: the second must go on reading the old weight.
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plan, _ := planFor(m, fusion.Grouped, strided, unequal)
	plan.Blocks = plan.Blocks[:1]
	second := attention.Find(m).Blocks[1].Key.Projection.Weight
	old, err := second.Init.Float64s()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rewrite.Apply(m, plan); err != nil {
		t.Fatal(err)
	}
	now, err := m.Graph.Value(second.Name).Init.Float64s()
	if err != nil || !slices.Equal(old, now) {
		t.Error("the weight of a block that the plan does not name is changed")
	}
}

// A plan that cannot be carried out leaves the model byte for byte as it was.
func TestApplyIsWholeOrNotAtAll(t *testing.T) {
	for name, spoil := range map[string]func(g *graph.Graph, b *attention.Block){
		"a computed bias": func(g *graph.Graph, b *attention.Block) {
			n := b.Key.Projection.Node
			n.SetInput(2, g.AddNode("Abs", "", "computed", []*graph.Value{n.In[2]}, []string{"computed_bias"}).Out[0])
		},
		"a cache read by another node": func(g *graph.Graph, b *attention.Block) {
			g.AddOutput(g.AddNode("Abs", "", "spy", []*graph.Value{b.KeyCache.Past}, []string{"spied"}).Out[0], graph.TensorType(onnxpb.TensorProto_FLOAT))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := build(t, "gpt2", testmodels.Options{Cache: true})
			last := attention.Find(m).Blocks[1]
			spoil(m.Graph, last)
			if err := m.Graph.Sort(); err != nil {
				t.Fatal(err)
			}
			plan := &fusion.Plan{Lowering: fusion.Grouped} // of all blocks, those too that are known not to be fusible
			for _, b := range attention.Find(m).Blocks {
				plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: weigh(adjacent(b.KVHeads)), Value: weigh(all(b.ValueHeads))})
			}
			before := bytesOf(t, m)
			if _, err := rewrite.Apply(m, plan); err == nil || !strings.Contains(err.Error(), last.Name) {
				t.Fatalf("the error is %v, want one that names %q", err, last.Name)
			}
			if !bytes.Equal(before, bytesOf(t, m)) {
				t.Error("the model is changed")
			}
		})
	}
}

// The same input gives the same bytes.
func TestRewriteIsDeterministic(t *testing.T) {
	var first []byte
	for range 3 {
		m := build(t, "opt", testmodels.Options{Cache: true})
		apply(t, m, fusion.Grouped, unequal, strided)
		b := bytesOf(t, m)
		if first == nil {
			first = b
		}
		if !bytes.Equal(first, b) {
			t.Fatal("two rewrites of one model differ")
		}
	}
}

// Half-precision weights stay half precision; the rewrite is exact to their rounding.
func TestExactHalf(t *testing.T) {
	runtime(t)
	for _, family := range []string{"llama-gqa", "gpt2", "gpt-neox"} {
		m := build(t, family, testmodels.Options{Cache: true, DType: onnxpb.TensorProto_FLOAT16})
		path := filepath.Join(t.TempDir(), "half.onnx")
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			t.Run(family+"/"+string(low), func(t *testing.T) { exact(t, path, low, adjacent, all, 5) })
		}
	}
}
