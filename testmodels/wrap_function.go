package testmodels

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Functions turns the layers of a model into calls of one function of the model, and the attention in it into a call of
// another, as torch exports modules as functions. layer and attention are the scopes of both, with %d for the layer;
// weights are arguments, and the axis of the softmax is an attribute that the calls hand through. Layers must be alike.
func Functions(m *onnxpb.ModelProto, layer, attention string) (*onnxpb.ModelProto, error) {
	m = proto.Clone(m).(*onnxpb.ModelProto)
	var shared *onnxpb.FunctionProto
	for i := 0; ; i++ {
		prefix := fmt.Sprintf(layer, i)
		inside := func(n *onnxpb.NodeProto) bool { return strings.HasPrefix(n.GetName(), prefix+"/") }
		if !slices.ContainsFunc(m.Graph.Node, inside) {
			break
		}
		var outputs []string
		for _, o := range m.Graph.Output {
			outputs = append(outputs, o.GetName())
		}
		nodes, call, f := outline(m.Graph.Node, inside, outputs, "Layer", prefix)
		f.OpsetImport = m.OpsetImport
		if m.Graph.Node = nodes; shared == nil {
			shared = f
		}
		if len(f.Node) != len(shared.Node) || len(call.Input) != len(shared.Input) || len(call.Output) != len(shared.Output) {
			return nil, fmt.Errorf("layer %d has %d nodes, layer 0 %d", i, len(f.Node), len(shared.Node))
		}
		for k, n := range f.Node {
			same := proto.Equal(&onnxpb.NodeProto{OpType: n.OpType, Attribute: n.Attribute}, &onnxpb.NodeProto{OpType: shared.Node[k].OpType, Attribute: shared.Node[k].Attribute})
			if !same {
				return nil, fmt.Errorf("layer %d: node %d is another than that of layer 0", i, k)
			}
		}
		call.Attribute = []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}
	}
	if shared == nil {
		return nil, fmt.Errorf("no node is in %q", fmt.Sprintf(layer, 0))
	}
	inner := fmt.Sprintf(attention, 0)
	nodes, call, f := outline(shared.Node, func(n *onnxpb.NodeProto) bool { return strings.HasPrefix(n.GetName(), inner+"/") }, shared.Output, "Attention", inner)
	f.OpsetImport = m.OpsetImport
	reference := func(name string) *onnxpb.AttributeProto {
		return &onnxpb.AttributeProto{Name: proto.String(name), RefAttrName: proto.String("axis"), Type: onnxpb.AttributeProto_INT.Enum()}
	}
	call.Attribute = []*onnxpb.AttributeProto{reference("axis")}
	for _, n := range f.Node {
		if n.GetOpType() == "Softmax" {
			n.Attribute = []*onnxpb.AttributeProto{reference("axis")}
		}
	}
	f.Attribute, shared.Attribute = []string{"axis"}, []string{"axis"}
	shared.Node = nodes
	local := int64(1)
	own := &onnxpb.OperatorSetIdProto{Domain: proto.String(functionDomain), Version: &local}
	m.OpsetImport = append(slices.Clone(m.OpsetImport), own)
	shared.OpsetImport = append(slices.Clone(shared.OpsetImport), own)
	m.Functions = []*onnxpb.FunctionProto{shared, f}
	m.IrVersion = proto.Int64(max(m.GetIrVersion(), 8))
	m.Graph.ValueInfo = nil
	return m, nil
}

// functionDomain is where the functions of a model are.
const functionDomain = "model.functions"

// outline moves the nodes that are inside into a function and calls it where the last of them was. Its inputs are what they
// read from outside, in the order in which they read it; its outputs what others read, or what is listed in outputs.
func outline(nodes []*onnxpb.NodeProto, inside func(*onnxpb.NodeProto) bool, outputs []string, name, as string) (rest []*onnxpb.NodeProto, call *onnxpb.NodeProto, f *onnxpb.FunctionProto) {
	f = &onnxpb.FunctionProto{Name: &name, Domain: proto.String(functionDomain)}
	made, read := map[string]bool{}, map[string]bool{}
	for _, n := range nodes {
		for _, o := range n.Output {
			made[o] = made[o] || inside(n)
		}
		for _, x := range n.Input {
			read[x] = read[x] || !inside(n)
		}
	}
	last := 0
	for i, n := range nodes {
		if !inside(n) {
			continue
		}
		last = i
		f.Node = append(f.Node, n)
		for _, x := range n.Input {
			if x != "" && !made[x] && !slices.Contains(f.Input, x) {
				f.Input = append(f.Input, x)
			}
		}
		for _, o := range n.Output {
			if read[o] || slices.Contains(outputs, o) {
				f.Output = append(f.Output, o)
			}
		}
	}
	call = &onnxpb.NodeProto{OpType: &name, Domain: proto.String(functionDomain), Name: &as, Input: slices.Clone(f.Input), Output: slices.Clone(f.Output)}
	for i, n := range nodes {
		if !inside(n) {
			rest = append(rest, n)
		}
		if i == last {
			rest = append(rest, call)
		}
	}
	return rest, call, f
}
