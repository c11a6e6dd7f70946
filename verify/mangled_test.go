package verify_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// mangle does some damage to a model: what a broken exporter or a tool that edits graphs might leave.
func mangle(m *onnxpb.ModelProto, r *rand.Rand) (what string) {
	g := m.Graph
	at := func() *onnxpb.NodeProto { return g.Node[r.IntN(len(g.Node))] }
	pick := func(list []string) (int, bool) {
		if len(list) == 0 {
			return 0, false
		}
		return r.IntN(len(list)), true
	}
	// value is one that is there, of a node, an input or a weight.
	value := func() string {
		switch n := at(); {
		case r.IntN(4) == 0 && len(g.Initializer) > 0:
			return g.Initializer[r.IntN(len(g.Initializer))].GetName()
		case r.IntN(8) == 0 && len(g.Input) > 0:
			return g.Input[r.IntN(len(g.Input))].GetName()
		case len(n.Output) > 0:
			return n.Output[0]
		}
		return ""
	}
	bypass := func(n *onnxpb.NodeProto) {
		i, ok := pick(n.Input)
		if !ok || len(n.Output) == 0 {
			return
		}
		from, to := n.Output[0], n.Input[i]
		for _, u := range g.Node {
			for j, x := range u.Input {
				if x == from {
					u.Input[j] = to
				}
			}
		}
	}
	harm := []struct {
		name string
		do   func()
	}{
		{"a node is gone", func() {
			n := at()
			bypass(n)
			g.Node = slices.DeleteFunc(g.Node, func(o *onnxpb.NodeProto) bool { return o == n })
		}},
		{"a node is there twice", func() {
			i := r.IntN(len(g.Node))
			n := proto.Clone(g.Node[i]).(*onnxpb.NodeProto)
			for j, o := range n.Output {
				n.Output[j] = o + "/again"
				if u := at(); len(u.Input) > 0 {
					u.Input[r.IntN(len(u.Input))] = n.Output[j]
				}
			}
			g.Node = slices.Insert(g.Node, i+1, n)
		}},
		{"an input comes from elsewhere", func() {
			if n := at(); len(n.Input) > 0 {
				n.Input[r.IntN(len(n.Input))] = value()
			}
		}},
		{"two inputs are exchanged", func() {
			if n := at(); len(n.Input) > 1 {
				n.Input[0], n.Input[1] = n.Input[1], n.Input[0]
			}
		}},
		{"an input is gone", func() {
			n := at()
			if i, ok := pick(n.Input); ok {
				n.Input = slices.Delete(n.Input, i, i+1)
			}
		}},
		{"an input is empty", func() {
			n := at()
			if i, ok := pick(n.Input); ok {
				n.Input[i] = ""
			}
		}},
		{"a node has no outputs", func() { at().Output = nil }},
		{"an operator is another", func() {
			n := at()
			n.OpType = proto.String(at().GetOpType())
		}},
		{"an attribute is another number", func() {
			n := at()
			for _, a := range n.Attribute {
				switch a.GetType() {
				case onnxpb.AttributeProto_INT:
					a.I = proto.Int64([]int64{-9, -1, 0, 1, 2, 7, 1 << 40}[r.IntN(7)])
				case onnxpb.AttributeProto_INTS:
					if len(a.Ints) > 0 {
						a.Ints[r.IntN(len(a.Ints))] = int64(r.IntN(9) - 4)
					}
				}
			}
		}},
		{"attributes are gone", func() { at().Attribute = nil }},
		{"a constant has another shape", func() {
			if len(g.Initializer) == 0 {
				return
			}
			t := g.Initializer[r.IntN(len(g.Initializer))]
			if r.IntN(2) == 0 {
				t.Dims = append([]int64{1}, t.Dims...)
			} else {
				slices.Reverse(t.Dims)
			}
		}},
		{"an input is declared otherwise", func() {
			if len(g.Input) == 0 {
				return
			}
			d := g.Input[r.IntN(len(g.Input))].GetType().GetTensorType()
			if d.GetShape() != nil && r.IntN(2) == 0 {
				d.Shape = nil
			} else if dims := d.GetShape().GetDim(); len(dims) > 0 {
				dims[r.IntN(len(dims))].Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: int64(r.IntN(6) - 1)}
			}
		}},
		{"an output comes from elsewhere", func() {
			if len(g.Output) > 0 {
				g.Output[r.IntN(len(g.Output))].Name = proto.String(value())
			}
		}},
	}
	for range 1 + r.IntN(3) {
		if len(g.Node) < 2 {
			break
		}
		h := harm[r.IntN(len(harm))]
		h.do()
		what += h.name + "; "
	}
	return what
}

// lowered are the forms that mangled models are rewritten to, in turn.
var lowered = []fusion.Lowering{fusion.Auto, fusion.Grouped, fusion.Expand, fusion.StaticCache, fusion.GQA, fusion.OpAttention}

// Whatever a graph looks like, nothing panics, every softmax is in a block or has a reason, and a rewrite that is not
// refused leaves a graph that can be read again.
func TestMangledGraphs(t *testing.T) {
	const variants = 200
	families := []string{"gpt2", "gpt2-dynamo", "llama-gqa", "llama-dynamo", "gpt-neox", "falcon", "opt", "t5-decoder", "mha", "mistral/genai", "gemma/mobius"}
	found, rewritten, refused := 0, 0, 0
	for i := range variants {
		family := families[i%len(families)]
		r := rand.New(rand.NewPCG(uint64(i), 11))
		f, err := testmodels.Get(family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Message(testmodels.Options{Layers: 1, Cache: f.Decoder && i%3 > 0, Seed: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%s, variant %d: %s", family, i, mangle(m, r))
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if x := recover(); x != nil {
					t.Errorf("%s\npanic: %v\n%s", what, x, debug.Stack())
				}
			}()
			blocks, done := handle(t, what, data, lowered[i%len(lowered)], i)
			found += blocks
			if done {
				rewritten++
			} else {
				refused++
			}
		}()
	}
	t.Logf("%d variants: %d blocks were found, %d models rewritten, %d not", variants, found, rewritten, refused)
	if rewritten < variants/10 || refused < variants/10 {
		t.Errorf("%d models were rewritten and %d were not: the damage is too great or too small to show anything", rewritten, refused)
	}
}

// A product that lacks an operand is no product, and the softmax before it says so.
func TestProductWithoutItsOperand(t *testing.T) {
	for name, harm := range map[string]func(n *onnxpb.NodeProto){
		"gone":  func(n *onnxpb.NodeProto) { n.Input = n.Input[:1] },
		"empty": func(n *onnxpb.NodeProto) { n.Input[1] = "" },
	} {
		f, err := testmodels.Get("gpt2")
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Message(testmodels.Options{Layers: 1})
		if err != nil {
			t.Fatal(err)
		}
		after := ""
		for _, n := range m.Graph.Node {
			if n.GetOpType() == "Softmax" {
				after = n.Output[0]
			}
			if n.GetOpType() == "MatMul" && after != "" && n.Input[0] == after {
				harm(n)
			}
		}
		data, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		read, err := graph.Read(name, data)
		if err != nil {
			t.Fatal(err)
		}
		if r := attention.Find(read); len(r.Blocks) > 0 || len(r.Unsupported) != 1 || !strings.Contains(r.Unsupported[0].Why, "MatMul") {
			t.Errorf("%s: %d blocks, %v", name, len(r.Blocks), r.Unsupported)
		}
	}
}

// divided makes of heads groups of one size.
func divided(heads, seed int) fusion.Fusion {
	n := 1 + seed%heads
	for heads%n > 0 {
		n--
	}
	return fusion.Adjacent(heads, n)
}

// handle does to a model what inspect, rewrite and verify do before they run it.
func handle(t *testing.T, what string, data []byte, low fusion.Lowering, seed int) (blocks int, rewritten bool) {
	open := func() (*graph.Model, *attention.Report) {
		m, err := graph.Read("mangled.onnx", slices.Clone(data))
		if err != nil {
			return nil, nil
		}
		if m.CheckOpset() != nil || m.Check() != nil {
			return nil, nil
		}
		expansions, _, err := unfuse.Expand(m, nil)
		if err != nil {
			return nil, nil
		}
		r := attention.Find(m)
		rewrite.NoteOrigins(r.Blocks, expansions)
		return m, r
	}
	m, report := open()
	if m == nil {
		return 0, false
	}
	m.Graph.All(func(n *graph.Node) bool {
		if !n.Is("Softmax") {
			return true
		}
		block := slices.ContainsFunc(report.Blocks, func(b *attention.Block) bool { return b.Softmax == n })
		reason := slices.ContainsFunc(report.Unsupported, func(u attention.Unsupported) bool { return u.Node == n && u.Why != "" })
		if block == reason {
			t.Errorf("%s\n%v is in a block: %v, and has a reason not to be: %v", what, n, block, reason)
		}
		return true
	})
	verify.Describe(m)
	verify.Taps(report.Blocks)
	plan := func(report *attention.Report) *fusion.Plan {
		p := &fusion.Plan{Lowering: low}
		for _, b := range report.Blocks {
			if b.Fixed == "" {
				p.Blocks = append(p.Blocks, fusion.BlockPlan{Block: b, Key: divided(b.KVHeads, seed), Value: divided(b.ValueHeads, seed/2)})
			}
		}
		return p
	}
	if len(report.Blocks) > 0 {
		if _, err := fusion.Fingerprint(report.Blocks); err != nil {
			t.Logf("%s\nfingerprint: %v", what, err)
		}
	}
	if _, err := rewrite.Apply(m, plan(report)); err != nil || len(plan(report).Blocks) == 0 {
		return len(report.Blocks), false
	}
	path := filepath.Join(t.TempDir(), "small.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Errorf("%s\nthe rewritten model: %v", what, err)
	} else if small, err := graph.Load(path); err != nil {
		t.Errorf("%s\nthe rewritten model cannot be read again: %v", what, err)
	} else {
		defer small.Close()
		verify.Describe(small)
		attention.Find(small)
	}
	if tied, report := open(); tied != nil {
		if err := rewrite.Tie(tied, plan(report)); err != nil {
			t.Errorf("%s\nit was rewritten, and cannot be tied: %v", what, err)
		}
	}
	return len(report.Blocks), true
}
