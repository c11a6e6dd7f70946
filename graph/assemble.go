package graph

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph/onnxpb"
)

// assemble returns the whole message. Messages that the model does not change are shared with it.
func (m *Model) assemble() *onnxpb.ModelProto {
	pb := shallow(m.Proto, nil)
	pb.Graph = m.Graph.assemble()
	return pb
}

// Message returns a copy of the whole model as one message, for models that were built in memory and are small. Weights
// that are still in a file, or that are made while they are saved, are an error.
func (m *Model) Message() (*onnxpb.ModelProto, error) {
	for _, t := range m.lazy {
		if len(t.parts) > 0 || t.ext != nil || t.computed != nil {
			return nil, fmt.Errorf("%s is not in memory: save the model and read the file", t.describe())
		}
	}
	return proto.Clone(m.assemble()).(*onnxpb.ModelProto), nil
}

func (g *Graph) assemble() *onnxpb.GraphProto {
	pb := shallow(g.Proto, func(fd protoreflect.FieldDescriptor) bool {
		return slices.Contains([]protoreflect.Name{"node", "initializer", "input", "output", "value_info"}, fd.Name())
	})
	if g.Name != pb.GetName() {
		pb.Name = proto.String(g.Name)
	}
	pb.Node = make([]*onnxpb.NodeProto, 0, len(g.Nodes))
	for _, n := range g.Nodes {
		pb.Node = append(pb.Node, n.assemble())
	}
	for _, v := range g.Inits {
		t := v.Init.Proto
		if t.GetName() != v.Name {
			t.Name = proto.String(v.Name)
		}
		pb.Initializer = append(pb.Initializer, t)
	}
	listed := map[*Value]bool{}
	for _, v := range g.Inputs {
		pb.Input = append(pb.Input, g.declaration(v, false))
		listed[v] = true
	}
	for _, v := range g.Outputs {
		pb.Output = append(pb.Output, g.declaration(v, true))
		listed[v] = true
	}
	var places []declaration
	if g.declared != nil {
		places = g.declared.infos
	}
	loose := map[*onnxpb.ValueInfoProto]bool{}
	for _, vi := range g.Proto.ValueInfo {
		loose[vi] = true
	}
	for _, d := range places {
		v := d.value
		if v == nil {
			if loose[d.proto] && g.values[d.proto.GetName()] == nil {
				pb.ValueInfo = append(pb.ValueInfo, d.proto)
			}
			delete(loose, d.proto)
			continue
		}
		if g.values[v.Name] != v {
			continue
		}
		if vi := d.info(); vi != nil {
			pb.ValueInfo = append(pb.ValueInfo, named(vi, v.Name))
		}
		listed[v] = true
	}
	add := func(v *Value) {
		if v != nil && v.Info != nil && !listed[v] {
			pb.ValueInfo = append(pb.ValueInfo, named(v.Info, v.Name))
		}
	}
	for _, v := range g.Inits {
		add(v)
	}
	for _, n := range g.Nodes {
		for _, v := range n.Out {
			add(v)
		}
	}
	for _, vi := range g.Proto.ValueInfo {
		if loose[vi] && g.values[vi.GetName()] == nil {
			pb.ValueInfo = append(pb.ValueInfo, vi)
		}
	}
	return pb
}

// declaration returns the entry for an input or output of the graph.
func (g *Graph) declaration(v *Value, output bool) *onnxpb.ValueInfoProto {
	vi := v.Info
	if g.declared != nil {
		places := g.declared.inputs
		if output {
			places = g.declared.outputs
		}
		if d, ok := places[v]; ok {
			vi = d.info()
		}
	}
	if vi == nil {
		return &onnxpb.ValueInfoProto{Name: proto.String(v.Name)}
	}
	return named(vi, v.Name)
}

// named returns vi, or a copy of it that has the name.
func named(vi *onnxpb.ValueInfoProto, name string) *onnxpb.ValueInfoProto {
	if vi.GetName() == name {
		return vi
	}
	vi = shallow(vi, nil)
	vi.Name = proto.String(name)
	return vi
}

func (n *Node) assemble() *onnxpb.NodeProto {
	pb := shallow(n.Proto, nil)
	pb.Input, pb.Output = names(n.In), names(n.Out)
	setString(&pb.Name, n.Name)
	setString(&pb.OpType, n.OpType)
	setString(&pb.Domain, n.Domain)
	if len(n.Subgraphs) == 0 {
		return pb
	}
	pb.Attribute = slices.Clone(pb.Attribute)
	for i, a := range pb.Attribute {
		bodies := n.Subgraphs[a.GetName()]
		if len(bodies) == 0 {
			continue
		}
		a = shallow(a, nil)
		a.Graphs = nil
		for j, b := range bodies {
			if j == 0 && (a.G != nil || a.GetType() != onnxpb.AttributeProto_GRAPHS) {
				a.G = b.assemble()
			} else {
				a.Graphs = append(a.Graphs, b.assemble())
			}
		}
		pb.Attribute[i] = a
	}
	return pb
}

func names(vs []*Value) []string {
	out := make([]string, len(vs))
	for i, v := range vs {
		if v != nil {
			out[i] = v.Name
		}
	}
	return out
}

// setString sets a field, and leaves one that has the value already as it is: absent and empty are different.
func setString(field **string, s string) {
	if *field == nil && s == "" || *field != nil && **field == s {
		return
	}
	*field = proto.String(s)
}
