package rewrite_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// built writes a family's model and returns its path.
func built(t testing.TB, family string, o testmodels.Options) string {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	o.Seed, o.Cache = 3, f.Decoder
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// The other lowerings agree with the tied reference wherever they fit: batches, left padding, prefill, decoding, and
// buffers with room behind what is filled.
func TestExactLowerings(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Families() {
		path := built(t, f.Name, testmodels.Options{})
		for _, c := range []struct {
			low       fusion.Lowering
			groupings []string
		}{
			{fusion.StaticCache, []string{"scattered", "decoupled-unequal"}},
			{fusion.GQA, []string{"scattered"}},
			{fusion.OpAttention, []string{"equal"}},
		} {
			for _, g := range groupings {
				if !strings.Contains(strings.Join(c.groupings, " "), g.name) || testing.Short() && g.name == "decoupled-unequal" || c.low == fusion.StaticCache && !f.Decoder {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", f.Name, c.low, g.name), func(t *testing.T) {
					res, _ := exact(t, path, c.low, g.key, g.val, 1)
					if b := res.Blocks[0]; b.Lowering != c.low && !strings.HasPrefix(b.Why, "not "+string(c.low)+": ") {
						t.Errorf("lowered to %s (%s)", b.Lowering, b.Why)
					}
				})
			}
		}
	}
}

// Many small groups beside a large one: padding would cost more than a product for each size.
func TestExactBuckets(t *testing.T) {
	runtime(t)
	path := built(t, "llama", testmodels.Options{Heads: 72, HeadDim: 4})
	groups := func(n int) [][]int {
		g := [][]int{span(0, n/2)}
		for h := n / 2; h < n; h++ {
			g = append(g, []int{h})
		}
		return g
	}
	exact(t, path, fusion.Grouped, groups, groups, 2)
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plan, _ := planFor(m, fusion.Grouped, groups, groups)
	if _, err := rewrite.Apply(m, plan); err != nil {
		t.Fatal(err)
	}
	products := 0
	m.Graph.All(func(n *graph.Node) bool {
		if strings.HasPrefix(n.Name, plan.Blocks[0].Block.QK.Name+"/product") {
			products++
		}
		return true
	})
	if products != 3 { // one for each of two sizes, and one for many rows
		t.Errorf("%d products of queries and keys, want 3", products)
	}
}

// mergedMask replaces the mask that a model makes by an input [batch, 1, sequence, total] that is added to the scores.
func mergedMask(t *testing.T, path string) string {
	t.Helper()
	m, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	mask := m.Graph.AddInput("merged_mask", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", 1, "sequence", "past_sequence_length + sequence"))
	for _, b := range attention.Find(m).Blocks {
		add := b.Softmax.In[0].Producer
		if add.Is("Cast") {
			add = add.In[0].Producer
		}
		if !add.Is("Add") {
			t.Fatalf("%v is no mask", add)
		}
		side := 1
		if _, ok := b.Scores[add.In[1]]; ok {
			side = 0
		}
		add.SetInput(side, mask)
	}
	m.Graph.RemoveDead(nil)
	merged := filepath.Join(t.TempDir(), "merged.onnx")
	if err := m.Save(merged, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return merged
}

// A mask that callers merge from what is causal and what is padding, for sequences of different lengths, hides the same in
// every lowering.
func TestMergedMask(t *testing.T) {
	runtime(t)
	path := mergedMask(t, built(t, "llama", testmodels.Options{}))
	const batch, past, seq = 3, 4, 5
	r := rand.New(rand.NewPCG(1, 2))
	values := make([]float32, 0, batch*seq*(past+seq))
	for b := range batch {
		for s := range seq {
			for p := range past + seq {
				x := float32(r.NormFloat64())
				if p > past+s || p < b { // later, or padding in front of sequence b
					x = -1e9
				}
				values = append(values, x)
			}
		}
	}
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.StaticCache, fusion.GQA, fusion.OpAttention, fusion.Expand} {
		t.Run(string(low), func(t *testing.T) {
			dir := t.TempDir()
			var res *rewrite.Result
			for _, out := range []string{"rewritten.onnx", "tied.onnx"} {
				m, err := graph.Load(path)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				plan, _ := planFor(m, low, strided, strided)
				for i := range plan.Blocks {
					plan.Blocks[i].Block.Causal = true // as the caller knows
				}
				if out == "tied.onnx" {
					err = rewrite.Tie(m, plan)
				} else {
					res, err = rewrite.Apply(m, plan)
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := m.Save(filepath.Join(dir, out), graph.SaveOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := res.Blocks[0]; got.Lowering != low {
				t.Errorf("lowered to %s (%s)", got.Lowering, got.Why)
			}
			batches := batch
			if low == fusion.GQA {
				batches = 1 // with a past it takes one sequence
			}
			mask := ort.FromFloat32(values[:batches*seq*(past+seq)], int64(batches), 1, seq, past+seq)
			rep, err := verify.Run(context.Background(), verify.Request{
				Original: path, Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"),
				Caches: res.Caches, Steps: -1, Seed: 7,
				Cases: []verify.Case{{Batch: batches, Seq: seq, Past: past, Feeds: map[string]*ort.Tensor{"merged_mask": mask}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(rep.Exact.Lines) == 0 {
				t.Error("nothing was compared")
			}
			for _, l := range rep.Exact.Lines {
				if !l.Passed() {
					t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
				}
			}
		})
	}
}

// The scale is part of the query projection afterwards, unless something that is not linear lies in between; nothing
// multiplies keys or scores.
func TestScaleIsFolded(t *testing.T) {
	for _, f := range testmodels.Families() {
		m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		plan, _ := planFor(m, fusion.Grouped, single, single)
		before := plan.Blocks[0].Block.Scale
		if _, err := rewrite.Apply(m, plan); err != nil {
			t.Fatal(err)
		}
		b := attention.Find(m).Blocks[0]
		want := 1.0
		if f.Name == "qwen3" { // norms of query heads
			want = before
		}
		if b.Scale != want {
			t.Errorf("%s: the scale was %v and is %v, want %v", f.Name, before, b.Scale, want)
		}
		for w := range b.Scores {
			if n := w.Producer; n.Is("Mul") || n.Is("Div") {
				t.Errorf("%s: %v still multiplies scores", f.Name, n)
			}
		}
	}
}

// What auto chooses, by target, and what it says.
func TestChoice(t *testing.T) {
	for _, c := range []struct {
		family   string
		opset    int64
		asked    fusion.Lowering
		target   fusion.Runtime
		key, val func(int) [][]int
		form     fusion.Lowering
		why      string
	}{
		{"llama", 0, "", "", adjacent, adjacent, fusion.Grouped, "ort-cpu: "},
		{"llama", 0, fusion.Auto, fusion.TargetGenAI, adjacent, adjacent, fusion.GQA, "genai: "},
		{"llama", 0, fusion.Auto, fusion.TargetGenAI, adjacent, all, fusion.Grouped, "not gqa: keys and values have different groups"},
		{"llama", 0, fusion.Auto, fusion.TargetCUDA, unequal, unequal, fusion.Grouped, "not gqa: groups are of different sizes"},
		{"llama", 0, fusion.Auto, fusion.TargetTransformersJS, adjacent, adjacent, fusion.Grouped, "transformersjs: "},
		{"llama", 0, fusion.Auto, fusion.TargetPortable, adjacent, adjacent, fusion.Grouped, "not attention: the model imports opset 14"},
		{"bert", 0, fusion.GQA, "", adjacent, adjacent, fusion.Grouped, "not gqa: queries may see later positions"},
		{"bert", 0, fusion.OpAttention, "", adjacent, adjacent, fusion.OpAttention, "asked for"},
		{"llama-dynamo", 23, fusion.Auto, fusion.TargetPortable, adjacent, adjacent, fusion.OpAttention, "portable: "},
	} {
		f, err := testmodels.Get(c.family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 3, Opset: c.opset})
		if err != nil {
			t.Fatal(err)
		}
		plan, _ := planFor(m, c.asked, c.key, c.val)
		plan.Target = c.target
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		if b := res.Blocks[0]; b.Lowering != c.form || !strings.Contains(b.Why, c.why) {
			t.Errorf("%s for %q, asked for %q: %s (%s), want %s (…%s…)", c.family, c.target, c.asked, b.Lowering, b.Why, c.form, c.why)
		}
	}
}

// An opset is upgraded only where every node allows it.
func TestUpgradeIsRefused(t *testing.T) {
	m, err := graph.Load(built(t, "bert", testmodels.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	x := m.Graph.Outputs[0]
	m.Graph.AddNode("GridSample", "", "sampler", []*graph.Value{x, x}, []string{"sampled"})
	plan, _ := planFor(m, fusion.OpAttention, adjacent, adjacent)
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		t.Fatal(err)
	}
	if b := res.Blocks[0]; b.Lowering != fusion.Grouped || !strings.Contains(b.Why, `GridSample "sampler" means something else from opset 20 on`) {
		t.Errorf("%s (%s)", b.Lowering, b.Why)
	}
	if m.Opset("") != 14 {
		t.Errorf("the model imports opset %d", m.Opset(""))
	}
}

// A cache that cannot be written in place is refused with the reason and the way out.
func TestStaticCacheIsRefused(t *testing.T) {
	f, _ := testmodels.Get("llama")
	m, err := f.Build(testmodels.Options{Cache: true, Static: true, Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	plan, _ := planFor(m, fusion.StaticCache, adjacent, adjacent)
	_, err = rewrite.Apply(m, plan)
	if err == nil || !strings.Contains(err.Error(), "holds 3 positions by its declaration, want an open length; --lowering grouped keeps a cache that grows") {
		t.Error(err)
	}
}

// A block without a cache that grows has nothing to be written in place: an encoder, a decoder without caches, cross attention.
func TestStaticCacheNeedsACache(t *testing.T) {
	for _, c := range []struct {
		family string
		cache  bool
		want   []fusion.Lowering
	}{
		{"bert", false, []fusion.Lowering{fusion.Grouped, fusion.Grouped}},
		{"llama", false, []fusion.Lowering{fusion.Grouped, fusion.Grouped}},
		{"t5-decoder", true, []fusion.Lowering{fusion.StaticCache, fusion.Grouped, fusion.StaticCache, fusion.Grouped}},
	} {
		f, err := testmodels.Get(c.family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Build(testmodels.Options{Cache: c.cache, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		plan, _ := planFor(m, fusion.StaticCache, adjacent, adjacent)
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		var got []fusion.Lowering
		for _, b := range res.Blocks {
			got = append(got, b.Lowering)
			if b.Lowering == fusion.Grouped && b.Why != "not static-cache: it takes no cache that grows" {
				t.Errorf("%s %s: %s", c.family, b.Block, b.Why)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: lowered to %v, want %v", c.family, got, c.want)
		}
	}
}

// A model with fused operators keeps them where they can say how many key/value heads they have.
func TestFusedOperatorsStay(t *testing.T) {
	for op, layer := range map[string]func(d *decoder, i int, x *graph.Value) *graph.Value{
		"GroupQueryAttention": func(d *decoder, i int, x *graph.Value) *graph.Value {
			return d.groupQuery(i, x, true, graph.IntAttr("do_rotary", 1))
		},
	} {
		m, err := graph.Load(fusedDecoder(t, 21, 4, layer))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		plan, origins := expandedPlan(t, m, fusion.Auto, strided, strided)
		rewrite.NoteOrigins(origins.blocks, origins.expansions)
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range res.Blocks {
			if want := "the model's " + op + " is kept"; b.Why != want {
				t.Errorf("%s: %s (%s), want %s", b.Block, b.Lowering, b.Why, want)
			}
		}
		kept := 0
		for _, n := range m.Graph.Nodes {
			if n.OpType == op && n.Int("kv_num_heads", 0) == 2 && n.Int("do_rotary", 0) == 1 {
				kept++
			}
			if n.Is("Softmax") {
				t.Errorf("%v is left of the expansion", n)
			}
		}
		if kept != 2 {
			t.Errorf("%d operators %s with 2 key/value heads, want 2", kept, op)
		}
	}
}

// Buffers are multiplied in pieces where that is faster: on CPU, with few queries to a head.
func TestPieces(t *testing.T) {
	path := built(t, "llama", testmodels.Options{Layers: 1, Heads: 16, HeadDim: 8})
	for _, c := range []struct {
		target  fusion.Runtime
		low     fusion.Lowering
		queries int
		want    int // products of two forms
	}{
		{"", fusion.StaticCache, 1, 0},
		{"", fusion.StaticCache, 2, 2},
		{fusion.TargetCPU, fusion.StaticCache, 4, 2},
		{fusion.TargetCPU, fusion.StaticCache, 8, 0},
		{fusion.TargetCUDA, fusion.StaticCache, 4, 0},
		{fusion.TargetCPU, fusion.Grouped, 4, 0}, // any length
	} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		plan, _ := planFor(m, c.low, every(c.queries), every(c.queries))
		plan.Target = c.target
		if _, err := rewrite.Apply(m, plan); err != nil {
			t.Fatal(err)
		}
		ifs := 0
		for _, n := range m.Graph.Nodes {
			if n.Is("If") {
				ifs++
			}
		}
		if ifs != c.want {
			t.Errorf("%v: %d products of two forms", c, ifs)
		}
		m.Close()
	}
}

// GPT-J and GPT-Neo cast the keys that they cache to the type that they have.
func TestExactCastPresents(t *testing.T) {
	runtime(t)
	m, err := graph.Load(built(t, "gpt2", testmodels.Options{}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i, v := range m.Graph.Outputs {
		if v.Producer.OpType != "Concat" {
			continue
		}
		cast := m.Graph.AddNode("Cast", "", v.Name+"/cast", []*graph.Value{v}, []string{v.Name + ".cast"}, graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT))).Out[0]
		for _, u := range slices.Clone(v.Users()) {
			if u.Node != nil && u.Node != cast.Producer {
				u.Node.SetInput(u.Index, cast)
			}
		}
		m.Graph.AddOutput(cast, v.Info.Type)
		m.Graph.Outputs[i] = m.Graph.Outputs[len(m.Graph.Outputs)-1]
		m.Graph.Outputs = m.Graph.Outputs[:len(m.Graph.Outputs)-1]
	}
	if err := m.Graph.Sort(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cast.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if res, _ := exact(t, path, fusion.StaticCache, adjacent, unequal, 2); res.Blocks[0].Lowering != fusion.StaticCache {
		t.Errorf("lowered to %s", res.Blocks[0].Lowering)
	}
}
