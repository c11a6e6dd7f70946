// Package graph holds an ONNX model as a mutable graph: values know their producer and their users, weights stay in
// their files until somebody asks for them, and everything the package does not model survives a round trip.
//
// # Invariants
//
// Check verifies them; every exported function keeps them:
//
//   - a value is produced once in its scope: by a node output, as a graph input, or as an initializer (an initializer
//     may repeat a graph input's name, the form of IR versions before 4);
//   - Value.Producer and Node.Out agree, as do Value.Users and Node.In / Graph.Outputs;
//   - names are unique per scope; a subgraph sees the values of the graphs around it;
//   - Graph.Nodes is in topological order.
package graph

import (
	"fmt"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// Model is one ONNX file. Proto carries what the graph does not model (producer, opset imports, metadata, functions,
// training info, unknown fields); its Graph field is nil while the model is open.
type Model struct {
	Path  string // the file it was loaded from; empty for a model built in memory
	Proto *onnxpb.ModelProto
	Graph *Graph

	files []*mapped                       // memory maps that lazy tensors point into
	lazy  map[*onnxpb.TensorProto]*Tensor // tensors whose bytes are still in a file, wherever the message hangs
}

// Opset returns the imported version of a domain ("" is ai.onnx), 0 when the model does not import it.
func (m *Model) Opset(domain string) int64 {
	for _, o := range m.Proto.OpsetImport {
		if canonicalDomain(o.GetDomain()) == canonicalDomain(domain) {
			return o.GetVersion()
		}
	}
	return 0
}

func canonicalDomain(d string) string {
	if d == "ai.onnx" {
		return ""
	}
	return d
}

// Metadata returns the model's metadata_props entry for key.
func (m *Model) Metadata(key string) (string, bool) {
	for _, p := range m.Proto.MetadataProps {
		if p.GetKey() == key {
			return p.GetValue(), true
		}
	}
	return "", false
}

// SetMetadata sets the model's metadata_props entry for key.
func (m *Model) SetMetadata(key, value string) {
	for _, p := range m.Proto.MetadataProps {
		if p.GetKey() == key {
			p.Value = &value
			return
		}
	}
	m.Proto.MetadataProps = append(m.Proto.MetadataProps, &onnxpb.StringStringEntryProto{Key: &key, Value: &value})
}

// New returns an empty model of the given IR version and ai.onnx opset.
func New(irVersion, opset int64) *Model {
	domain := ""
	m := &Model{
		Proto: &onnxpb.ModelProto{
			IrVersion:   &irVersion,
			OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: &domain, Version: &opset}},
		},
		lazy: map[*onnxpb.TensorProto]*Tensor{},
	}
	m.Graph = newGraph(m, nil)
	return m
}

// Graph is a main graph or the body of an If, Loop or Scan. Proto carries what is not modelled here (doc string,
// quantisation annotations, sparse initializers, metadata, unknown fields, value_info of names that do not occur); its
// node, initializer, input, output and value_info fields are filled on save only.
type Graph struct {
	Name    string
	Proto   *onnxpb.GraphProto
	Model   *Model
	Outer   *Graph // the graph around a body; nil for the main graph
	Owner   *Node  // the node whose attribute holds this body; nil for the main graph
	Nodes   []*Node
	Inputs  []*Value
	Outputs []*Value
	Inits   []*Value // initializers, in file order

	values   map[string]*Value
	declared *declarations // how the file listed types; nil for a graph built in memory
}

func newGraph(m *Model, outer *Graph) *Graph {
	return &Graph{Model: m, Outer: outer, Proto: &onnxpb.GraphProto{}, values: map[string]*Value{}}
}

// Value is one edge of the graph: a graph input, an initializer or the output of a node.
type Value struct {
	Name     string
	Graph    *Graph
	Producer *Node                  // nil for graph inputs and initializers
	Index    int                    // which output of Producer
	Info     *onnxpb.ValueInfoProto // declared type; nil when the file has none
	Init     *Tensor                // non-nil for initializers
	IsInput  bool

	users []Use
}

// Use is one consumer of a value: input Index of Node, or output Index of Graph when Node is nil.
type Use struct {
	Node  *Node
	Graph *Graph
	Index int
}

// Users returns the consumers of v, those inside subgraphs included. The slice must not be changed.
func (v *Value) Users() []Use { return v.users }

// IsOutput reports whether v is an output of its own graph.
func (v *Value) IsOutput() bool {
	return slices.ContainsFunc(v.users, func(u Use) bool { return u.Node == nil && u.Graph == v.Graph })
}

// String returns the name, or a mark for an omitted optional input.
func (v *Value) String() string {
	if v == nil {
		return "(none)"
	}
	return v.Name
}

// Node is one operator call. Proto carries attributes, doc string, overload, metadata, device configurations and
// unknown fields; its input, output, name, op_type and domain fields are filled on save only.
type Node struct {
	Name, OpType, Domain string

	Proto     *onnxpb.NodeProto
	Graph     *Graph
	In        []*Value            // nil entries are omitted optional inputs
	Out       []*Value            // nil entries are omitted optional outputs
	Subgraphs map[string][]*Graph // bodies by attribute name
}

// String identifies the node in messages: its name, or its operator and first output when it has none.
func (n *Node) String() string {
	if n.Name != "" {
		return fmt.Sprintf("%s %q", n.OpType, n.Name)
	}
	for _, o := range n.Out {
		if o != nil {
			return fmt.Sprintf("%s → %q", n.OpType, o.Name)
		}
	}
	return n.OpType
}

// Is reports whether n is the ai.onnx operator op.
func (n *Node) Is(op string) bool {
	return n != nil && n.OpType == op && canonicalDomain(n.Domain) == ""
}

// Input returns input i, nil when it is omitted.
func (n *Node) Input(i int) *Value {
	if i < len(n.In) {
		return n.In[i]
	}
	return nil
}

// Attr returns the attribute called name, nil when the node has none.
func (n *Node) Attr(name string) *onnxpb.AttributeProto {
	for _, a := range n.Proto.Attribute {
		if a.GetName() == name {
			return a
		}
	}
	return nil
}

// Int returns an integer attribute or its default.
func (n *Node) Int(name string, def int64) int64 {
	if a := n.Attr(name); a != nil && a.I != nil {
		return a.GetI()
	}
	return def
}

// Ints returns a list attribute and whether it is present.
func (n *Node) Ints(name string) ([]int64, bool) {
	if a := n.Attr(name); a != nil {
		return a.Ints, true
	}
	return nil, false
}

// Float returns a float attribute or its default.
func (n *Node) Float(name string, def float32) float32 {
	if a := n.Attr(name); a != nil && a.F != nil {
		return a.GetF()
	}
	return def
}

// Str returns a string attribute or its default.
func (n *Node) Str(name, def string) string {
	if a := n.Attr(name); a != nil && a.S != nil {
		return string(a.GetS())
	}
	return def
}

// TensorAttr returns a tensor attribute, nil when absent.
func (n *Node) TensorAttr(name string) *Tensor {
	a := n.Attr(name)
	if a == nil || a.T == nil {
		return nil
	}
	return n.Graph.Model.tensor(a.T)
}

// ConstantTensor returns the value of a Constant node in any of its attribute forms, nil for sparse and string values.
func (n *Node) ConstantTensor() *Tensor {
	if t := n.TensorAttr("value"); t != nil {
		return t
	}
	for _, a := range n.Proto.Attribute {
		switch a.GetName() {
		case "value_int":
			return NewTensor("", nil, []int64{a.GetI()})
		case "value_ints":
			return NewTensor("", []int64{int64(len(a.Ints))}, a.Ints)
		case "value_float":
			return NewTensor("", nil, []float32{a.GetF()})
		case "value_floats":
			return NewTensor("", []int64{int64(len(a.Floats))}, a.Floats)
		}
	}
	return nil
}

// tensor returns the lazy tensor behind a message of this model.
func (m *Model) tensor(pb *onnxpb.TensorProto) *Tensor {
	if t, ok := m.lazy[pb]; ok {
		return t
	}
	t := &Tensor{Proto: pb, model: m}
	m.lazy[pb] = t
	return t
}

// Value returns the value called name that is visible in g: its own or one of the graphs around it.
func (g *Graph) Value(name string) *Value {
	for s := g; s != nil; s = s.Outer {
		if v, ok := s.values[name]; ok {
			return v
		}
	}
	return nil
}

// NodeNamed returns the first node called name in g, nil when there is none.
func (g *Graph) NodeNamed(name string) *Node {
	for _, n := range g.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// All calls f for every node of g and of the bodies inside it, in order, until f returns false.
func (g *Graph) All(f func(*Node) bool) bool {
	for _, n := range g.Nodes {
		if !f(n) {
			return false
		}
		for _, a := range n.Proto.Attribute {
			for _, s := range n.Subgraphs[a.GetName()] {
				if !s.All(f) {
					return false
				}
			}
		}
	}
	return true
}
