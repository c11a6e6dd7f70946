package rewrite_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

func functions(t *testing.T, m *onnxpb.ModelProto, layer, inner string) *onnxpb.ModelProto {
	t.Helper()
	m, err := testmodels.Functions(m, layer, inner)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Layers that call one function, which calls another for its attention and hands an attribute through, are rewritten by
// plans of their own; the reference still calls the functions, with other weights. Calls in the branches of an If count
// as well.
func TestExactSharedFunctions(t *testing.T) {
	runtime(t)
	const layer, inner = "/model/layers.%d", "/model/layers.%d/self_attn"
	llama := func(o testmodels.Options) *onnxpb.ModelProto {
		return functions(t, message(t, "llama-gqa", o), layer, inner)
	}
	for name, m := range map[string]*onnxpb.ModelProto{
		"llama-gqa": llama(testmodels.Options{Cache: true}),
		"bert":      functions(t, message(t, "bert", testmodels.Options{}), "/encoder/layer.%d", "/encoder/layer.%d/attention/self"),
	} {
		path := wrapped(t, m)
		t.Run(name+"/grouped", func(t *testing.T) { exactFused(t, path, fusion.Grouped, adjacent, all, 3) })
		t.Run(name+"/expand", func(t *testing.T) { exactFused(t, path, fusion.Expand, all, adjacent, 3) })
	}
	first, next := llama(testmodels.Options{Stage: testmodels.First}), llama(testmodels.Options{Stage: testmodels.Next})
	both := testmodels.Merge(first, next)
	both.OpsetImport = first.OpsetImport
	both.IrVersion = first.IrVersion
	for i, m := range []*onnxpb.ModelProto{first, next} { // the branches differ in how a layer is made
		for _, f := range m.Functions {
			name := fmt.Sprintf("%s%d", f.GetName(), i)
			for _, g := range m.Functions {
				for _, n := range g.Node {
					if n.GetOpType() == f.GetName() && n.GetDomain() == f.GetDomain() {
						n.OpType = &name
					}
				}
			}
			for _, n := range both.Graph.Node[0].Attribute[1-i].G.Node {
				if n.GetOpType() == f.GetName() && n.GetDomain() == f.GetDomain() {
					n.OpType = &name
				}
			}
			f.Name = &name
		}
		both.Functions = append(both.Functions, m.Functions...)
	}
	path := wrapped(t, both)
	t.Run("in the branches of an If", func(t *testing.T) { exactFused(t, path, fusion.Grouped, adjacent, all, 3) })
}

// A function that a layer still calls stays, one that nothing calls any more goes.
func TestFunctionsThatAreStillCalledStay(t *testing.T) {
	path := wrapped(t, functions(t, message(t, "llama-gqa", testmodels.Options{Cache: true}), "/model/layers.%d", "/model/layers.%d/self_attn"))
	for layers, want := range map[int]int{1: 2, 2: 0} {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		done, _, err := unfuse.Expand(m, nil)
		if err != nil {
			t.Fatal(err)
		}
		nodes := map[*graph.Node]bool{}
		blocks := attention.Find(m).Blocks
		if len(blocks) != 2 {
			t.Fatalf("%d blocks, want 2", len(blocks))
		}
		for _, b := range blocks[:layers] {
			for n := range b.Nodes() {
				nodes[n] = true
			}
		}
		again, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if _, _, err := unfuse.Expand(again, unfuse.Owners(done, nodes)); err != nil {
			t.Fatal(err)
		}
		plan := &fusion.Plan{Lowering: fusion.Grouped}
		for _, b := range attention.Find(again).Blocks {
			plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: weigh(all(b.KVHeads)), Value: weigh(all(b.ValueHeads))})
		}
		if len(plan.Blocks) != layers {
			t.Fatalf("%d blocks are planned, want %d", len(plan.Blocks), layers)
		}
		if _, err := rewrite.Apply(again, plan); err != nil {
			t.Fatal(err)
		}
		if got := len(again.Proto.Functions); got != want {
			t.Errorf("%d layers rewritten: %d functions are left, want %d", layers, got, want)
		}
		if err := again.Save(filepath.Join(t.TempDir(), "out.onnx"), graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}
