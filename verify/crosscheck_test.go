package verify

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// twoReadings returns our reading of a model and the bytes of its file.
func twoReadings(t *testing.T, m *graph.Model) (*graph.Graph, []byte) {
	t.Helper()
	path := save(t, m)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := graph.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close() })
	return ours.Graph, data
}

// sample has what has tripped readers: an operand used twice, omitted inputs and outputs, a constant, attributes of
// every plain kind, an input that an initializer is the default of.
func sample() *graph.Model {
	m := graph.New(8, 17)
	g := m.Graph
	x := g.AddInput("x", graph.TensorType(fl, "b", 4))
	w := g.AddInit(graph.NewTensor("w", []int64{4, 4}, make([]float32, 16)))
	square := g.AddNode("Mul", "", "square", []*graph.Value{x, x}, []string{"xx"}).Out[0]
	c := g.AddNode("Constant", "", "", nil, []string{"limit"}, graph.TensorAttr("value", graph.NewTensor("", nil, []float32{2.5}))).Out[0]
	clipped := g.AddNode("Clip", "", "clip", []*graph.Value{square, nil, c}, []string{"clipped"}).Out[0]
	y := g.AddNode("Gemm", "", "gemm", []*graph.Value{clipped, w}, []string{"y"}, graph.FloatAttr("alpha", 0.5), graph.IntAttr("transB", 1)).Out[0]
	parts := g.AddNode("Split", "", "split", []*graph.Value{y}, []string{"left", "", "right"}, graph.IntAttr("axis", 1))
	odd := &onnxpb.AttributeProto{Name: new(string), Type: onnxpb.AttributeProto_STRINGS.Enum(), Strings: [][]byte{[]byte("p"), []byte("q")}}
	*odd.Name = "names"
	z := g.AddNode("Odd", "example", "odd", []*graph.Value{parts.Out[0], parts.Out[2]}, []string{"z"},
		graph.IntsAttr("list", 3, -1), graph.StringAttr("mode", "linear"), odd).Out[0]
	g.AddOutput(z, graph.TensorType(fl, "b", 2))
	return m
}

func TestSecondReaderAgrees(t *testing.T) {
	ours, data := twoReadings(t, sample())
	c := crossCheck(ours, data)
	if !c.Agreed() || c.Nodes != 6 || c.Edges != 2+3+2+2+2 || c.Attributes != 7 {
		t.Errorf("%v: %+v", c, c)
	}
	if !strings.Contains(c.String(), "6 nodes, 11 edges and 7 attributes") {
		t.Error(c.String())
	}
}

// Whatever differs between the file and our reading is found.
func TestSecondReaderFindsEveryDifference(t *testing.T) {
	for name, c := range map[string]struct {
		corrupt func(g *graph.Graph)
		want    string
	}{
		"an edge dropped":         {func(g *graph.Graph) { n := g.NodeNamed("gemm"); n.SetInput(1, nil); n.In = n.In[:1] }, `an edge from "y" to an input 1, "w"`},
		"one of two equal edges":  {func(g *graph.Graph) { n := g.NodeNamed("square"); n.SetInput(1, nil); n.In = n.In[:1] }, `to an input 1, "x"`},
		"an edge added":           {func(g *graph.Graph) { g.NodeNamed("gemm").SetInput(2, g.Value("w")) }, "input 2"},
		"an edge moved":           {func(g *graph.Graph) { g.NodeNamed("gemm").SetInput(0, g.Value("xx")) }, `input 0 is "clipped", want "xx"`},
		"operands swapped":        {func(g *graph.Graph) { n := g.NodeNamed("odd"); n.In[0], n.In[1] = n.In[1], n.In[0] }, "input 0"},
		"an omitted input":        {func(g *graph.Graph) { g.NodeNamed("clip").SetInput(1, g.Value("limit")) }, `input 1 is "", want "limit"`},
		"another operator":        {func(g *graph.Graph) { g.NodeNamed("gemm").OpType = "MatMul" }, "is a Gemm"},
		"a node dropped":          {func(g *graph.Graph) { g.Nodes = slices.Delete(g.Nodes, 0, 1) }, "there is a node more: the Mul"},
		"a node added":            {func(g *graph.Graph) { g.AddNode("Neg", "", "neg", []*graph.Value{g.Value("x")}, []string{"nx"}) }, "is missing"},
		"outputs swapped":         {func(g *graph.Graph) { n := g.NodeNamed("split"); n.Out[0], n.Out[2] = n.Out[2], n.Out[0] }, "split"},
		"an attribute's value":    {func(g *graph.Graph) { g.NodeNamed("gemm").SetAttr(graph.FloatAttr("alpha", 0.25)) }, "attribute alpha is 0.5"},
		"an attribute's presence": {func(g *graph.Graph) { g.NodeNamed("gemm").RemoveAttr("transB") }, "attributes"},
		"a list":                  {func(g *graph.Graph) { g.NodeNamed("odd").SetAttr(graph.IntsAttr("list", 3, 1)) }, "attribute list"},
		"a string":                {func(g *graph.Graph) { g.NodeNamed("odd").SetAttr(graph.StringAttr("mode", "cubic")) }, "attribute mode is linear"},
		"a constant": {func(g *graph.Graph) {
			g.Value("limit").Producer.SetAttr(graph.TensorAttr("value", graph.NewTensor("", nil, []float32{2.75})))
		}, "attribute value is a tensor"},
		"an input":       {func(g *graph.Graph) { g.Inputs[0].Name = "x2" }, `inputs ["x"], want ["x2"]`},
		"an output":      {func(g *graph.Graph) { g.Outputs = nil }, "outputs"},
		"an initializer": {func(g *graph.Graph) { g.AddInit(graph.NewTensor("w2", nil, []float32{1})) }, `initializer "w2" is missing`},
	} {
		ours, data := twoReadings(t, sample())
		c.corrupt(ours)
		got := crossCheck(ours, data)
		if got.Agreed() || got.Limit != "" || !strings.Contains(got.String(), c.want) {
			t.Errorf("%s: %v; want %q", name, got, c.want)
		}
	}
}

func TestSecondReaderOnEveryFamily(t *testing.T) {
	compared := 0
	eachFamily(t, testmodels.Options{Cache: true, Layers: 1}, func(t *testing.T, family testmodels.Family, path string) {
		c, err := CrossCheckFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Differences) > 0 {
			t.Errorf("%v", c)
		}
		if c.Agreed() {
			compared++
		}
	})
	if compared < 10 {
		t.Errorf("only %d families could be compared", compared)
	}
}

// A limit that is known beforehand is named with its place, and the decoder does fail there: the list is no guess.
func TestLimitsAreNamedAndReal(t *testing.T) {
	body := &onnxpb.GraphProto{}
	tensor := func(data *graph.Tensor) *onnxpb.AttributeProto { return graph.TensorAttr("value", data) }
	attr := func(kind onnxpb.AttributeProto_AttributeType, set func(*onnxpb.AttributeProto)) *onnxpb.AttributeProto {
		name := "value"
		a := &onnxpb.AttributeProto{Name: &name, Type: kind.Enum()}
		set(a)
		return a
	}
	half, err := graph.FromFloat64s("", hf, []int64{1}, []float64{1})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		a    *onnxpb.AttributeProto
		want string
	}{
		"subgraph":     {attr(onnxpb.AttributeProto_GRAPHS, func(a *onnxpb.AttributeProto) { a.Graphs = []*onnxpb.GraphProto{body} }), "subgraph"},
		"tensors":      {attr(onnxpb.AttributeProto_TENSORS, func(a *onnxpb.AttributeProto) {}), "TENSORS"},
		"types":        {attr(onnxpb.AttributeProto_TYPE_PROTO, func(a *onnxpb.AttributeProto) {}), "TYPE_PROTO"},
		"empty tensor": {tensor(graph.NewTensor("", []int64{0}, []int64{})), "empty tensor"},
		"bool":         {tensor(graph.NewTensor("", []int64{3}, []bool{true, false, true})), "bool tensor"},
		"float16":      {tensor(half), "tensor of float16"},
		"int8":         {tensor(graph.NewTensor("", []int64{1}, []int8{1})), "tensor of int8"},
	} {
		m := graph.New(8, 17)
		y := m.Graph.AddNode("Odd", "example", "culprit", nil, []string{"y"}, c.a).Out[0]
		m.Graph.AddOutput(y, graph.TensorType(fl, 1))
		ours, data := twoReadings(t, m)
		limit := limitOf(ours)
		if !strings.Contains(limit, c.want) || !strings.Contains(limit, `Odd "culprit"`) {
			t.Errorf("%s: limit %q does not say %q and where", name, limit, c.want)
		}
		if got := crossCheck(ours, data); got.Limit == "" {
			t.Errorf("%s: onnx-go decodes it after all: %v", name, got)
		}
	}
}

func TestCrossCheckOfWhatIsNoModel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "text.onnx")
	if err := os.WriteFile(path, []byte("no model"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := CrossCheckFile(path); err == nil {
		t.Error("a text file was read")
	}
	for _, data := range [][]byte{nil, []byte("no model"), {0x3a, 0x7f}} {
		if _, err := decodeSecond(data); err == nil {
			t.Errorf("% x was decoded", data)
		}
	}
}

// Bytes that a file could hold must not bring the second reader's panics to us.
func FuzzSecondReader(f *testing.F) {
	path := filepath.Join(f.TempDir(), "m.onnx")
	if err := sample().Save(path, graph.SaveOptions{}); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		decodeSecond(data)
	})
}
