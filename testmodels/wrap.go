package testmodels

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// This file and its neighbours put a model into the bodies of operators and functions that tools wrap around an exported
// graph. They work on messages, so that any family can be wrapped.

// Message builds a model as a message.
func (f Family) Message(o Options) (*onnxpb.ModelProto, error) {
	m, err := f.Build(o)
	if err != nil {
		return nil, err
	}
	return m.Message()
}

// node makes the message of a node.
func node(op, name string, in, out []string, attrs ...*onnxpb.AttributeProto) *onnxpb.NodeProto {
	return &onnxpb.NodeProto{OpType: &op, Name: &name, Input: in, Output: out, Attribute: attrs}
}

func tensorAttr[T graph.Element](name string, dims []int64, data ...T) *onnxpb.AttributeProto {
	return graph.TensorAttr(name, graph.NewTensor("", dims, data))
}

// bodyAttr makes an attribute that holds a body.
func bodyAttr(name string, g *onnxpb.GraphProto) *onnxpb.AttributeProto {
	return &onnxpb.AttributeProto{Name: &name, Type: onnxpb.AttributeProto_GRAPH.Enum(), G: g}
}

func valueInfo(name string, typ *onnxpb.TypeProto) *onnxpb.ValueInfoProto {
	return &onnxpb.ValueInfoProto{Name: &name, Type: typ}
}

// rename renames values of a graph without bodies, those that names gives a new name.
func rename(g *onnxpb.GraphProto, names map[string]string) {
	each := func(list []string) {
		for i, name := range list {
			if to, ok := names[name]; ok {
				list[i] = to
			}
		}
	}
	for _, n := range g.Node {
		each(n.Input)
		each(n.Output)
	}
	for _, list := range [][]*onnxpb.ValueInfoProto{g.Input, g.Output, g.ValueInfo} {
		for _, v := range list {
			if to, ok := names[v.GetName()]; ok {
				v.Name = &to
			}
		}
	}
	for _, t := range g.Initializer {
		if to, ok := names[t.GetName()]; ok {
			t.Name = &to
		}
	}
}

// wrapper makes a model of the IR version and opsets of m around a graph.
func wrapper(m *onnxpb.ModelProto, g *onnxpb.GraphProto) *onnxpb.ModelProto {
	name := "wrapped"
	g.Name = &name
	return &onnxpb.ModelProto{IrVersion: m.IrVersion, ProducerName: m.ProducerName, OpsetImport: m.OpsetImport, Graph: g}
}

// shape reads a declared shape, -1 for a dimension without a number.
func shape(v *onnxpb.ValueInfoProto) []int64 {
	var out []int64
	for _, d := range v.GetType().GetTensorType().GetShape().GetDim() {
		if x, ok := d.Value.(*onnxpb.TensorShapeProto_Dimension_DimValue); ok {
			out = append(out, x.DimValue)
		} else {
			out = append(out, -1)
		}
	}
	return out
}

// Merge puts the first step of a decoder and the next ones into the branches of an If on the input use_cache_branch, as
// Optimum merges decoder_model and decoder_with_past_model: weights of equal contents move to the outer graph, both
// branches read the outer graph's inputs and keep the names of their nodes and outputs, and what the second model does
// not give is an empty constant in its branch.
func Merge(first, next *onnxpb.ModelProto) *onnxpb.ModelProto {
	first, next = proto.Clone(first).(*onnxpb.ModelProto), proto.Clone(next).(*onnxpb.ModelProto)
	outer := &onnxpb.GraphProto{}
	// Weights with the same contents get one name.
	shared := map[string]string{}
	for _, m := range []*onnxpb.ModelProto{first, next} {
		names := map[string]string{}
		m.Graph.Initializer = slices.DeleteFunc(m.Graph.Initializer, func(t *onnxpb.TensorProto) bool {
			if len(t.Dims) < 2 && t.GetDataType() != int32(onnxpb.TensorProto_FLOAT) && t.GetDataType() != int32(onnxpb.TensorProto_FLOAT16) {
				return false
			}
			key := fmt.Sprint(t.GetDataType(), t.Dims, "\x00") + string(t.RawData)
			if _, ok := shared[key]; !ok {
				shared[key] = t.GetName() + "_merged_0"
				u := proto.Clone(t).(*onnxpb.TensorProto)
				u.Name = proto.String(shared[key])
				outer.Initializer = append(outer.Initializer, u)
			}
			names[t.GetName()] = shared[key]
			return true
		})
		rename(m.Graph, names)
		for _, v := range m.Graph.Input {
			if !slices.ContainsFunc(outer.Input, func(o *onnxpb.ValueInfoProto) bool { return o.GetName() == v.GetName() }) {
				outer.Input = append(outer.Input, v)
			}
		}
		m.Graph.Input = nil
	}
	branch := "use_cache_branch"
	outer.Input = append(outer.Input, valueInfo(branch, graph.TensorType(onnxpb.TensorProto_BOOL, 1)))
	var outputs []*onnxpb.ValueInfoProto
	for _, v := range first.Graph.Output {
		i := slices.IndexFunc(next.Graph.Output, func(o *onnxpb.ValueInfoProto) bool { return o.GetName() == v.GetName() })
		if i >= 0 {
			outputs = append(outputs, next.Graph.Output[i])
			continue
		}
		var dims []int64
		for _, d := range shape(v) {
			dims = append(dims, max(d, 0))
		}
		next.Graph.Node = append(next.Graph.Node, node("Constant", "", nil, []string{v.GetName()}, tensorAttr[float32]("value", dims)))
		outputs = append(outputs, v)
	}
	next.Graph.Output = outputs
	var names []string
	for _, v := range first.Graph.Output {
		names = append(names, v.GetName())
	}
	first.Graph.Name, next.Graph.Name = proto.String("no_past"), proto.String("with_past")
	outer.Node = []*onnxpb.NodeProto{node("If", "optimum::if", []string{branch}, names, bodyAttr("then_branch", next.Graph), bodyAttr("else_branch", first.Graph))}
	for _, v := range next.Graph.Output { // the lengths of both branches
		outer.Output = append(outer.Output, proto.Clone(v).(*onnxpb.ValueInfoProto))
	}
	return wrapper(first, outer)
}

// Loop puts a decoder with a cache into a Loop that feeds it one token of each sequence after the other. The Loop carries
// the caches and collects the logits, so that the model as a whole takes and gives what the decoder does.
func Loop(decoder *onnxpb.ModelProto) *onnxpb.ModelProto {
	decoder = proto.Clone(decoder).(*onnxpb.ModelProto)
	g := decoder.Graph
	outer := &onnxpb.GraphProto{Input: g.Input, Initializer: g.Initializer}
	body := &onnxpb.GraphProto{Name: proto.String("step"), ValueInfo: g.ValueInfo, Input: []*onnxpb.ValueInfoProto{
		valueInfo("iteration", intType()), valueInfo("condition", graph.TensorType(onnxpb.TensorProto_BOOL)),
	}}
	constant := func(name string, dims []int64, x ...int64) string {
		outer.Initializer = append(outer.Initializer, graph.NewTensor("loop/"+name, dims, x).Proto)
		return "loop/" + name
	}
	zero, one, last := constant("zero", nil, 0), constant("one", nil, 1), constant("axis", []int64{1}, 1)
	from := constant("from", []int64{1}, 0)
	steps := "loop/steps"
	outer.Node = append(outer.Node,
		node("Shape", "/loop/Shape", []string{"input_ids"}, []string{"loop/ids_shape"}),
		node("Gather", "/loop/Gather", []string{"loop/ids_shape", one}, []string{steps}, graph.IntAttr("axis", 0)),
	)
	in, out := []string{steps, ""}, []string{}
	names := map[string]string{} // of the decoder's inputs, in the body
	carried := map[string]string{}
	var first []*onnxpb.NodeProto
	for _, v := range g.Input {
		name := v.GetName()
		step := "step/" + name
		switch {
		case strings.HasPrefix(name, "past_key_values"):
			names[name], carried[name] = step, step
			in = append(in, name)
			body.Input = append(body.Input, valueInfo(step, v.Type))
		case name == "attention_mask": // of the tokens up to this one: all but those that follow
			names[name] = step
			first = append(first,
				node("Shape", "/step/mask/Shape", []string{name}, []string{"step/mask_shape"}),
				node("Gather", "/step/mask/Gather", []string{"step/mask_shape", one}, []string{"step/mask_total"}, graph.IntAttr("axis", 0)),
				node("Sub", "/step/mask/Sub", []string{"step/mask_total", steps}, []string{"step/mask_past"}),
				node("Add", "/step/mask/Add", []string{"step/mask_past", "iteration"}, []string{"step/mask_before"}),
				node("Add", "/step/mask/Add_1", []string{"step/mask_before", last}, []string{"step/mask_end"}),
				node("Slice", "/step/mask/Slice", []string{name, from, "step/mask_end", last}, []string{step}),
			)
		case v.GetType().GetTensorType().GetElemType() == int32(onnxpb.TensorProto_INT64) && !strings.HasPrefix(name, "encoder"):
			names[name] = step
			first = append(first,
				node("Gather", "/step/"+name+"/Gather", []string{name, "iteration"}, []string{step + "/column"}, graph.IntAttr("axis", 1)),
				node("Unsqueeze", "/step/"+name+"/Unsqueeze", []string{step + "/column", last}, []string{step}),
			)
		}
	}
	results := map[string]string{}
	for _, v := range g.Output {
		results[v.GetName()] = "step/" + v.GetName()
	}
	body.Node = append(body.Node, g.Node...)
	inner := &onnxpb.GraphProto{Node: body.Node, ValueInfo: body.ValueInfo}
	rename(inner, names)
	rename(inner, results)
	body.Node = append(first, inner.Node...)
	body.Node = append(body.Node, node("Identity", "/step/Identity", []string{"condition"}, []string{"step/condition"}))
	body.Output = []*onnxpb.ValueInfoProto{valueInfo("step/condition", graph.TensorType(onnxpb.TensorProto_BOOL))}
	var logits *onnxpb.ValueInfoProto
	for _, v := range g.Output {
		if v.GetName() == "logits" {
			logits = v
			continue
		}
		body.Output = append(body.Output, valueInfo("step/"+v.GetName(), v.Type))
		out = append(out, v.GetName())
	}
	body.Output = append(body.Output, valueInfo("step/logits", logits.Type))
	out = append(out, "loop/logits") // [steps, batch, 1, vocabulary]
	outer.Node = append(outer.Node,
		node("Loop", "/loop/Loop", in, out, bodyAttr("body", body)),
		node("Gather", "/loop/Gather_1", []string{"loop/logits", zero}, []string{"loop/rows"}, graph.IntAttr("axis", 2)),
		node("Transpose", "/loop/Transpose", []string{"loop/rows"}, []string{"logits"}, graph.IntsAttr("perm", 1, 0, 2)),
	)
	outer.Output = g.Output
	return wrapper(decoder, outer)
}

// FromEmpty lets a decoder in a Loop start from an empty cache that it makes itself, one for keys and values of all
// layers, [batch, heads, 0, channels].
func FromEmpty(loop *onnxpb.ModelProto) *onnxpb.ModelProto {
	loop = proto.Clone(loop).(*onnxpb.ModelProto)
	g := loop.Graph
	var dims []int64
	for _, v := range g.Input {
		if strings.HasPrefix(v.GetName(), "past_key_values") {
			dims = shape(v)
		}
	}
	g.Input = slices.DeleteFunc(g.Input, func(v *onnxpb.ValueInfoProto) bool { return strings.HasPrefix(v.GetName(), "past_key_values") })
	g.Initializer = append(g.Initializer,
		graph.NewTensor("empty/batch", []int64{1}, []int64{0}).Proto, graph.NewTensor("empty/rest", []int64{3}, []int64{dims[1], 0, dims[3]}).Proto)
	before := []*onnxpb.NodeProto{
		node("Shape", "/empty/Shape", []string{"input_ids"}, []string{"empty/shape"}),
		node("Gather", "/empty/Gather", []string{"empty/shape", "empty/batch"}, []string{"empty/sequences"}, graph.IntAttr("axis", 0)),
		node("Concat", "/empty/Concat", []string{"empty/sequences", "empty/rest"}, []string{"empty/target"}, graph.IntAttr("axis", 0)),
		node("ConstantOfShape", "/empty/ConstantOfShape", []string{"empty/target"}, []string{"empty/cache"}, tensorAttr("value", []int64{1}, float32(0))),
	}
	for _, n := range g.Node {
		for i, x := range n.Input {
			if n.GetOpType() == "Loop" && strings.HasPrefix(x, "past_key_values") {
				n.Input[i] = "empty/cache"
			}
		}
	}
	g.Node = append(before, g.Node...)
	return loop
}

// Scan puts an encoder into a Scan over several batches: the model takes and gives what the encoder does with an axis in
// front, the number of batches.
func Scan(encoder *onnxpb.ModelProto) *onnxpb.ModelProto {
	encoder = proto.Clone(encoder).(*onnxpb.ModelProto)
	g := encoder.Graph
	outer := &onnxpb.GraphProto{Initializer: g.Initializer}
	body := &onnxpb.GraphProto{Name: proto.String("batch"), Node: g.Node, ValueInfo: g.ValueInfo}
	var in, out []string
	add := func(list []*onnxpb.ValueInfoProto, to, inner *[]*onnxpb.ValueInfoProto, wires *[]string) {
		for _, v := range list {
			many := proto.Clone(v).(*onnxpb.ValueInfoProto)
			d := many.Type.GetTensorType().Shape
			d.Dim = append([]*onnxpb.TensorShapeProto_Dimension{{Value: &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: "batches"}}}, d.Dim...)
			name := v.GetName()
			*to = append(*to, many)
			*wires = append(*wires, name)
			*inner = append(*inner, valueInfo("one/"+name, v.Type))
			rename(body, map[string]string{name: "one/" + name})
		}
	}
	add(g.Input, &outer.Input, &body.Input, &in)
	add(g.Output, &outer.Output, &body.Output, &out)
	outer.Node = []*onnxpb.NodeProto{node("Scan", "/scan/Scan", in, out, bodyAttr("body", body), graph.IntAttr("num_scan_inputs", int64(len(in))))}
	return wrapper(encoder, outer)
}
