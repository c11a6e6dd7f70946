package testmodels

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

const contrib = "com.microsoft"

// Search puts a decoder with a cache into one of ONNX Runtime's generation operators (GreedySearch, BeamSearch, Sampling)
// as onnxruntime.transformers.convert_generation does for GPT-2: the decoder is a body that takes 32-bit ids, keys and
// values of a layer come in one tensor past_i [2, batch, heads, length, channels], and weights move to the outer graph.
// The model takes input_ids [batch, sequence] and the operator's numbers, among them max_length, and gives sequences [batch, max_length], or
// [batch, returned, max_length] with sequences_scores and scores from BeamSearch.
func Search(op string, decoder *onnxpb.ModelProto) *onnxpb.ModelProto {
	decoder = proto.Clone(decoder).(*onnxpb.ModelProto)
	body := gptBody(decoder.Graph)
	outer := &onnxpb.GraphProto{Input: []*onnxpb.ValueInfoProto{valueInfo("input_ids", graph.TensorType(onnxpb.TensorProto_INT32, "batch_size", "sequence_length"))}}
	// Small constants stay.
	body.Initializer = slices.DeleteFunc(body.Initializer, func(t *onnxpb.TensorProto) bool {
		if len(t.Dims) < 2 {
			return false
		}
		outer.Initializer = append(outer.Initializer, t)
		return true
	})
	input := func(name string, elem onnxpb.TensorProto_DataType) string {
		outer.Input = append(outer.Input, valueInfo(name, graph.TensorType(elem, 1)))
		return name
	}
	ints := func(name string) string { return input(name, onnxpb.TensorProto_INT32) }
	floats := func(name string) string { return input(name, onnxpb.TensorProto_FLOAT) }
	in := []string{"input_ids", ints("max_length"), ints("min_length")}
	outputs := []string{"sequences"}
	attrs := []*onnxpb.AttributeProto{bodyAttr("decoder", body), graph.IntAttr("eos_token_id", 1), graph.IntAttr("pad_token_id", 0), graph.IntAttr("model_type", 0), graph.IntAttr("no_repeat_ngram_size", 0)}
	switch op {
	case "BeamSearch":
		in = append(in, ints("num_beams"), ints("num_return_sequences"), floats("length_penalty"), floats("repetition_penalty"))
		outputs = append(outputs, "sequences_scores", "scores")
	case "Sampling":
		in = append(in, floats("repetition_penalty"), "", "", "", "", ints("seed"))
		attrs = append(attrs, graph.FloatAttr("temperature", 1), graph.FloatAttr("top_p", 0.9))
	default:
		in = append(in, floats("repetition_penalty"))
	}
	n := node(op, "/generate/"+op, in, outputs, attrs...)
	n.Domain = proto.String(contrib)
	outer.Node = []*onnxpb.NodeProto{n}
	types := map[string]*onnxpb.TypeProto{
		"sequences":        graph.TensorType(onnxpb.TensorProto_INT32, "batch_size", "max_length"),
		"sequences_scores": graph.TensorType(onnxpb.TensorProto_FLOAT, "batch_size", "num_return_sequences"),
		"scores":           graph.TensorType(onnxpb.TensorProto_FLOAT, "steps", "batch_size", "num_beams", "vocabulary"),
	}
	if op == "BeamSearch" {
		types["sequences"] = graph.TensorType(onnxpb.TensorProto_INT32, "batch_size", "num_return_sequences", "max_length")
	}
	for _, name := range outputs {
		outer.Output = append(outer.Output, valueInfo(name, types[name]))
	}
	m := wrapper(decoder, outer)
	one := int64(1)
	m.OpsetImport = append(slices.Clone(m.OpsetImport), &onnxpb.OperatorSetIdProto{Domain: proto.String(contrib), Version: &one})
	return m
}

// gptBody gives a decoder the interface of the operators' decoder for GPT-2.
func gptBody(g *onnxpb.GraphProto) *onnxpb.GraphProto {
	body := &onnxpb.GraphProto{Name: proto.String("gpt2 decoder"), Initializer: g.Initializer, ValueInfo: g.ValueInfo}
	constant := func(name string, dims []int64, x int64) string {
		body.Initializer = append(body.Initializer, graph.NewTensor(name, dims, []int64{x}).Proto)
		return name
	}
	zero, one, first := constant("pick/zero", nil, 0), constant("pick/one", nil, 1), constant("pick/axis", []int64{1}, 0)
	inner := &onnxpb.GraphProto{Node: g.Node}
	types := map[string]*onnxpb.ValueInfoProto{}
	for _, v := range slices.Concat(g.Input, g.Output) {
		types[v.GetName()] = v
	}
	var before, after []*onnxpb.NodeProto
	for _, name := range []string{"input_ids", "position_ids", "attention_mask"} {
		v := types[name]
		rename(inner, map[string]string{name: name + "/64"})
		before = append(before, node("Cast", "/"+name+"/Cast", []string{name}, []string{name + "/64"}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT64))))
		narrow := proto.Clone(v.Type).(*onnxpb.TypeProto)
		narrow.GetTensorType().ElemType = proto.Int32(int32(onnxpb.TensorProto_INT32))
		body.Input = append(body.Input, valueInfo(name, narrow))
	}
	body.Output = []*onnxpb.ValueInfoProto{types["logits"]}
	for i := 0; ; i++ {
		key := types[fmt.Sprintf("past_key_values.%d.key", i)]
		if key == nil {
			break
		}
		past, present := fmt.Sprintf("past_%d", i), fmt.Sprintf("present_%d", i)
		stacked := func(v *onnxpb.ValueInfoProto) *onnxpb.TypeProto {
			t := proto.Clone(v.Type).(*onnxpb.TypeProto)
			s := t.GetTensorType().Shape
			s.Dim = append([]*onnxpb.TensorShapeProto_Dimension{{Value: &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: 2}}}, s.Dim...)
			return t
		}
		body.Input = append(body.Input, valueInfo(past, stacked(key)))
		var parts []string
		for n, kv := range []string{"key", "value"} {
			before = append(before, node("Gather", fmt.Sprintf("/past/%d/%s/Gather", i, kv), []string{past, []string{zero, one}[n]},
				[]string{fmt.Sprintf("past_key_values.%d.%s", i, kv)}, graph.IntAttr("axis", 0)))
			name := fmt.Sprintf("present.%d.%s", i, kv)
			after = append(after, node("Unsqueeze", fmt.Sprintf("/present/%d/%s/Unsqueeze", i, kv), []string{name, first}, []string{name + "/stacked"}))
			parts = append(parts, name+"/stacked")
		}
		after = append(after, node("Concat", fmt.Sprintf("/present/%d/Concat", i), parts, []string{present}, graph.IntAttr("axis", 0)))
		body.Output = append(body.Output, valueInfo(present, stacked(types[fmt.Sprintf("present.%d.key", i)])))
	}
	body.Node = slices.Concat(before, inner.Node, after)
	body.ValueInfo = slices.DeleteFunc(body.ValueInfo, func(v *onnxpb.ValueInfoProto) bool { return strings.Contains(v.GetName(), "_ids") })
	return body
}
