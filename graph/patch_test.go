package graph

import (
	"bytes"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// patched returns a graph x → Relu → a → Abs → y.
func patched(t *testing.T) *Graph {
	t.Helper()
	m := New(9, 17)
	g := m.Graph
	x := g.AddInput("x", TensorType(onnxpb.TensorProto_FLOAT, "batch", 4))
	a := g.AddNode("Relu", "", "relu", []*Value{x}, []string{"a"}).Out[0]
	y := g.AddNode("Abs", "", "abs", []*Value{a}, []string{"y"}).Out[0]
	g.AddOutput(y, TensorType(onnxpb.TensorProto_FLOAT, "batch", 4))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return g
}

func serialised(t *testing.T, g *Graph) []byte {
	t.Helper()
	b, err := canonical.Marshal(g.Model.assemble())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPatchApplies(t *testing.T) {
	g := patched(t)
	p := NewPatch(g)
	a, y := g.Value("a"), g.Value("y")
	neg := p.Op("Neg", "abs", []*Value{a}) // a name that is taken
	p.Replace(a, neg, neg.Producer)
	sum := p.Op("Add", "sum", []*Value{y, p.Init(NewTensor("a", []int64{4}, []float32{1, 2, 3, 4}))})
	p.Replace(y, sum, sum.Producer)
	p.Expect(sum, []Dim{Sym("batch"), Int(4)})
	if _, err := p.Apply(); err != nil {
		t.Fatal(err)
	}
	if err := g.Model.Check(); err != nil {
		t.Fatal(err)
	}
	var ops []string
	for _, n := range g.Nodes {
		ops = append(ops, n.OpType)
	}
	if got := strings.Join(ops, " "); got != "Relu Neg Abs Add" {
		t.Errorf("the nodes are %s, want Relu Neg Abs Add", got)
	}
	if neg.Producer.Name == "abs" || g.Outputs[0] != sum || sum.Name != "y" || sum.Info == nil {
		t.Errorf("node %q, output %q: names must be fresh, and outputs keep theirs", neg.Producer.Name, g.Outputs[0].Name)
	}
}

// Whatever goes wrong, the graph is as it was.
func TestPatchIsTakenBack(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(g *Graph, p *Patch)
		why     string
	}{
		"a seam of another size": {func(g *Graph, p *Patch) {
			s := p.Op("Slice", "cut", []*Value{g.Value("a"), p.Ints("from", 0), p.Ints("to", 3), p.Ints("axes", 1)})
			p.Replace(g.Value("a"), s, s.Producer)
			p.Expect(s, []Dim{Sym("batch"), Int(4)})
		}, "axis 1"},
		"a seam of another rank": {func(g *Graph, p *Patch) {
			s := p.Op("ReduceMean", "mean", []*Value{g.Value("a")}, IntsAttr("axes", 1), IntAttr("keepdims", 0))
			p.Replace(g.Value("a"), s, s.Producer)
			p.Expect(s, []Dim{Sym("batch"), Int(4)})
		}, "1 axes, expected 2"},
		"a cycle": {func(g *Graph, p *Patch) {
			s := p.Op("Neg", "neg", []*Value{g.Value("y")})
			p.SetInput(g.NodeNamed("relu"), 0, s)
		}, "cycle"},
		"a domain without an import": {func(g *Graph, p *Patch) {
			s := p.Node("Thing", "some.where", "thing", 1, []*Value{g.Value("a")})[0]
			p.SetAttr(g.NodeNamed("abs"), IntAttr("extra", 1))
			p.SetType(g.Value("a"), TensorType(onnxpb.TensorProto_FLOAT, 1, 2))
			p.Replace(g.Value("a"), s, s.Producer)
		}, "some.where"},
	} {
		t.Run(name, func(t *testing.T) {
			g := patched(t)
			before := serialised(t, g)
			p := NewPatch(g)
			c.prepare(g, p)
			if _, err := p.Apply(); err == nil || !strings.Contains(err.Error(), c.why) {
				t.Fatalf("the error is %v, want one with %q", err, c.why)
			}
			if !bytes.Equal(before, serialised(t, g)) {
				t.Error("the graph is changed")
			}
			if err := g.Model.Check(); err != nil {
				t.Errorf("users and producers disagree afterwards: %v", err)
			}
		})
	}
}
