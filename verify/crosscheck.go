package verify

import (
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	onnx "github.com/owulveryck/onnx-go"
	gonum "gonum.org/v1/gonum/graph"
	"gonum.org/v1/gonum/graph/multi"
	"gonum.org/v1/gonum/graph/topo"
	"gorgonia.org/tensor"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// CrossCheck is what a second reader, github.com/owulveryck/onnx-go, makes of a file that our graph package has read
// too. It shares no code with ours down to the protobuf library, so that an agreement of the two says something about
// the file. It reads the main graph's topology: weights, types, names of nodes and function bodies are not compared.
type CrossCheck struct {
	// Limit says why the second reader could not be asked; empty when it was.
	Limit string `json:"limit,omitempty"`
	// Nodes, Edges and Attributes are how many were compared.
	Nodes      int `json:"nodes"`
	Edges      int `json:"edges"`
	Attributes int `json:"attributes"`
	// Differences are where the two disagree, at most maxDifferences of them.
	Differences []string `json:"differences,omitempty"`
}

// Agreed reports whether the second reader read the file as we do. When a limit was met it has not.
func (c *CrossCheck) Agreed() bool { return c.Limit == "" && len(c.Differences) == 0 }

// String sums the check up in a line, and one more for each difference.
func (c *CrossCheck) String() string {
	switch {
	case c.Limit != "":
		return "cross-check: not possible: " + c.Limit
	case len(c.Differences) > 0:
		return fmt.Sprintf("cross-check: onnx-go reads the file differently:\n  %s", strings.Join(c.Differences, "\n  "))
	}
	return fmt.Sprintf("cross-check: onnx-go reads the same %d nodes, %d edges and %d attributes", c.Nodes, c.Edges, c.Attributes)
}

const (
	// maxCrossCheck bounds the files that are given to the second reader, which holds them in memory twice.
	maxCrossCheck  = 1 << 30
	maxDifferences = 20
)

// CrossCheckFile reads the model at path with both readers and compares. An error means that the file could not be
// read by ours.
func CrossCheckFile(path string) (*CrossCheck, error) {
	m, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxCrossCheck {
		return &CrossCheck{Limit: fmt.Sprintf("the file has %d MiB and onnx-go reads it whole; at most %d MiB are given to it",
			info.Size()>>20, maxCrossCheck>>20)}, nil
	}
	if limit := limitOf(m.Graph); limit != "" {
		return &CrossCheck{Limit: limit}, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return crossCheck(m.Graph, data), nil
}

// crossCheck compares our reading g with the second reader's of data.
func crossCheck(g *graph.Graph, data []byte) *CrossCheck {
	second, err := decodeSecond(data)
	if err != nil {
		return &CrossCheck{Limit: "onnx-go cannot decode the file: " + err.Error()}
	}
	c := &CrossCheck{}
	differ := func(format string, args ...any) {
		if len(c.Differences) < maxDifferences {
			c.Differences = append(c.Differences, fmt.Sprintf(format, args...))
		}
	}
	compareEnds(g, second, differ)
	// The two need not keep the same order: ours sorts, and drops a node that the file holds twice.
	ops := map[string]operation{}
	for _, op := range second.ops {
		if first, ok := ops[op.key()]; ok && (first.name != op.name || !slices.Equal(first.edges, op.edges)) {
			differ("two nodes make %q: a %s and a %s", op.key(), first.name, op.name)
		}
		ops[op.key()] = op
	}
	for _, n := range g.Nodes {
		outs := names(n.Out)
		key := operation{outs: outs}.key()
		op, ok := ops[key]
		delete(ops, key)
		c.Nodes++
		switch {
		case !ok:
			differ("node %v is missing", n)
		case op.name != n.OpType:
			differ("node %v is a %s", n, op.name)
		case !slices.Equal(op.outs, outs):
			differ("node %v: outputs %q, want %q", n, op.outs, outs)
		default:
			c.Edges += compareEdges(n, op, differ)
			c.Attributes += compareAttributes(n, op, differ)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(ops)) {
		differ("there is a node more: the %s that makes %q", ops[key].name, ops[key].outs)
	}
	if _, err := topo.Sort(second); err != nil {
		differ("the edges have a cycle: %v", err)
	}
	return c
}

func names(values []*graph.Value) []string {
	out := make([]string, len(values))
	for i, v := range values {
		if v != nil {
			out[i] = v.Name
		}
	}
	return out
}

// compareEnds compares graph inputs, outputs and initializers.
func compareEnds(g *graph.Graph, second *reading, differ func(string, ...any)) {
	var ins []string
	for _, v := range g.Inputs {
		if v.Init == nil {
			ins = append(ins, v.Name)
		}
	}
	if !slices.Equal(ins, second.inputs) {
		differ("inputs %q, want %q", second.inputs, ins)
	}
	if outs := names(g.Outputs); !slices.Equal(outs, second.outputs) {
		differ("outputs %q, want %q", second.outputs, outs)
	}
	for _, v := range g.Inits {
		if _, ok := second.byName[v.Name]; !ok {
			differ("initializer %q is missing", v.Name)
		}
	}
}

// compareEdges compares the edges from each of a node's outputs to its inputs and returns their number.
func compareEdges(n *graph.Node, op operation, differ func(string, ...any)) int {
	count := 0
	want := names(n.In)
	for _, out := range op.outs {
		if out == "" {
			continue // omitted
		}
		var got []operand
		for _, e := range op.edges {
			if e.output == out {
				got = append(got, e)
			}
		}
		if len(want) == 0 && len(got) == 1 {
			continue // onnx-go invents an input for nodes that have none
		}
		count += len(want)
		for i := range max(len(want), len(got)) {
			switch {
			case i >= len(got) || got[i].index != i:
				differ("node %v: the edge from %q to input %d, %q, is missing",
					n, out, i, slices.Concat(want, []string{"?"})[min(i, len(want))])
				return count
			case i >= len(want):
				differ("node %v: has an edge from %q to an input %d, %q", n, out, i, got[i].input)
			case got[i].input != want[i]:
				differ("node %v: input %d is %q, want %q", n, i, got[i].input, want[i])
			}
		}
	}
	return count
}

// compareAttributes compares names of all attributes and the values of those that onnx-go hands out as they are, and
// returns how many there were.
func compareAttributes(n *graph.Node, op operation, differ func(string, ...any)) int {
	want := map[string]*onnxpb.AttributeProto{}
	for _, a := range n.Proto.Attribute {
		want[a.GetName()] = a
	}
	a, b := slices.Sorted(maps.Keys(op.attributes)), slices.Sorted(maps.Keys(want))
	if !slices.Equal(a, b) {
		differ("node %v: attributes %q, want %q", n, a, b)
		return 0
	}
	for name, w := range want {
		if got, same := sameAttribute(n, w, op.attributes[name]); !same {
			differ("node %v: attribute %s is %s, which is not what we read", n, name, got)
		}
	}
	return len(want)
}

func sameAttribute(n *graph.Node, want *onnxpb.AttributeProto, got any) (shown string, same bool) {
	switch g := got.(type) {
	case int64:
		same = g == want.GetI()
	case float32:
		same = math.Float32bits(g) == math.Float32bits(want.GetF())
	case string:
		same = g == string(want.GetS())
	case []int64:
		same = slices.Equal(g, want.Ints)
	case []float32:
		same = slices.EqualFunc(g, want.Floats, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) })
	case []string:
		same = slices.EqualFunc(g, want.Strings, func(a string, b []byte) bool { return a == string(b) })
	case tensor.Tensor:
		ours, err := n.TensorAttr(want.GetName()).Float64s()
		same = err == nil && slices.EqualFunc(floats(g.Data()), ours, func(a, b float64) bool {
			return math.Float64bits(a) == math.Float64bits(b)
		})
		return fmt.Sprintf("a tensor of %v", g.Shape()), same
	default:
		same = true // of a type that onnx-go does not look into
	}
	return fmt.Sprint(got), same
}

// floats widens what onnx-go's tensors hold: a slice, or one number for a scalar.
func floats(data any) []float64 {
	switch d := data.(type) {
	case []float32:
		return widen(d)
	case []float64:
		return d
	case []int64:
		return widen(d)
	case []int32:
		return widen(d)
	case []bool:
		out := make([]float64, len(d))
		for i, b := range d {
			if b {
				out[i] = 1
			}
		}
		return out
	case float32:
		return []float64{float64(d)}
	case float64:
		return []float64{d}
	case int64:
		return []float64{float64(d)}
	case int32:
		return []float64{float64(d)}
	case bool:
		return floats([]bool{d})
	}
	return nil
}

func widen[T float32 | int64 | int32](d []T) []float64 {
	out := make([]float64, len(d))
	for i, x := range d {
		out[i] = float64(x)
	}
	return out
}

// limitOf says which known limit of onnx-go's decoder a graph meets, "" for none. It decodes attributes whatever the
// backend asks for, and knows few of their kinds.
func limitOf(g *graph.Graph) string {
	if len(g.Nodes) == 0 {
		return "the graph has no nodes, and onnx-go takes that for an error"
	}
	for _, n := range g.Nodes {
		for _, a := range n.Proto.Attribute {
			if why := attributeLimit(n, a); why != "" {
				return fmt.Sprintf("node %v: attribute %s %s, which onnx-go does not decode", n, a.GetName(), why)
			}
		}
	}
	return ""
}

func attributeLimit(n *graph.Node, a *onnxpb.AttributeProto) string {
	switch a.GetType() {
	case onnxpb.AttributeProto_GRAPH, onnxpb.AttributeProto_GRAPHS:
		return "is a subgraph"
	case onnxpb.AttributeProto_TENSORS, onnxpb.AttributeProto_SPARSE_TENSOR, onnxpb.AttributeProto_SPARSE_TENSORS,
		onnxpb.AttributeProto_TYPE_PROTO, onnxpb.AttributeProto_TYPE_PROTOS:
		return "is of kind " + a.GetType().String()
	case onnxpb.AttributeProto_TENSOR:
	default:
		return ""
	}
	t := n.TensorAttr(a.GetName())
	switch {
	case t == nil:
		return "holds no tensor"
	case t.Len() == 0:
		return "is an empty tensor"
	case a.T.GetDataLocation() == onnxpb.TensorProto_EXTERNAL:
		return "is a tensor in an external file"
	case t.DType() == onnxpb.TensorProto_BOOL && len(a.T.Int32Data) == 0:
		return "is a bool tensor with raw data"
	}
	switch t.DType() {
	case onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_DOUBLE, onnxpb.TensorProto_INT64, onnxpb.TensorProto_INT32,
		onnxpb.TensorProto_BOOL:
		return ""
	}
	return fmt.Sprintf("is a tensor of %s", strings.ToLower(t.DType().String()))
}

// reading is the backend that onnx-go decodes into: a graph whose nodes are values and whose edges run from an output
// to the inputs it is computed from, weighted with the input's number. It keeps parallel edges, because Mul(x, x) has
// two. Its nodes carry no data, so that onnx-go leaves weights alone.
type reading struct {
	*multi.WeightedDirectedGraph
	byName          map[string]*valueNode
	ops             []operation
	pending         []operand // edges of the node that onnx-go is at; it sets them before it applies the operation
	inputs, outputs []string
}

type operation struct {
	name       string
	outs       []string
	edges      []operand
	attributes map[string]any
}

// operand is an edge from an output to input number index.
type operand struct {
	output, input string
	index         int
}

// key identifies a node: what it makes.
func (o operation) key() string { return strings.Join(o.outs, "\x00") }

// valueNode is a node of reading. It implements onnx-go's Namer.
type valueNode struct {
	id    int64
	name  string
	graph *reading
}

func (n *valueNode) ID() int64       { return n.id }
func (n *valueNode) GetName() string { return n.name }
func (n *valueNode) SetName(name string) {
	n.name = name
	n.graph.byName[name] = n
}

func (r *reading) NewNode() gonum.Node {
	return &valueNode{id: r.WeightedDirectedGraph.NewNode().ID(), graph: r}
}

// edge makes a line of the multigraph look like the plain edge that onnx-go sets.
type edge struct {
	from, to gonum.Node
	weight   float64
}

func (e edge) From() gonum.Node         { return e.from }
func (e edge) To() gonum.Node           { return e.to }
func (e edge) Weight() float64          { return e.weight }
func (e edge) ReversedEdge() gonum.Edge { return edge{e.to, e.from, e.weight} }

func (r *reading) NewWeightedEdge(from, to gonum.Node, weight float64) gonum.WeightedEdge {
	return edge{from, to, weight}
}

func (r *reading) SetWeightedEdge(e gonum.WeightedEdge) {
	from, to := e.From().(*valueNode), e.To().(*valueNode)
	r.pending = append(r.pending, operand{from.name, to.name, int(e.Weight())})
	// All omitted inputs and outputs are one node to onnx-go, which would close cycles.
	if from.name != "" && to.name != "" {
		r.SetWeightedLine(r.NewWeightedLine(from, to, e.Weight()))
	}
}

func (r *reading) ApplyOperation(op onnx.Operation, outs ...gonum.Node) error {
	o := operation{name: op.Name, attributes: op.Attributes, edges: r.pending}
	r.pending = nil
	for _, n := range outs {
		o.outs = append(o.outs, n.(*valueNode).name)
	}
	r.ops = append(r.ops, o)
	return nil
}

// decodeSecond has onnx-go decode a file. Its panics become errors.
func decodeSecond(data []byte) (r *reading, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panics: %v", p)
		}
	}()
	r = &reading{WeightedDirectedGraph: multi.NewWeightedDirectedGraph(), byName: map[string]*valueNode{}}
	m := onnx.NewModel(r)
	if err := m.UnmarshalBinary(data); err != nil {
		return nil, err
	}
	for _, id := range m.Input {
		r.inputs = append(r.inputs, r.Node(id).(*valueNode).name)
	}
	for _, id := range m.Output {
		r.outputs = append(r.outputs, r.Node(id).(*valueNode).name)
	}
	return r, nil
}
