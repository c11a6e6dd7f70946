package testmodels

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Fill moves the projection of the cross attention's keys and values from the first step of a decoder into the encoder, as
// exports for ONNX Runtime's generation operators and Whisper exports do: the encoder gives the caches out, under the
// names that name makes of those of the first step, in its order.
func Fill(encoder, first *onnxpb.ModelProto, name func(present string) string) *onnxpb.ModelProto {
	encoder, first = proto.Clone(encoder).(*onnxpb.ModelProto), proto.Clone(first).(*onnxpb.ModelProto)
	g := first.Graph
	made := map[string]*onnxpb.NodeProto{}
	for _, n := range g.Node {
		for _, o := range n.Output {
			made[o] = n
		}
	}
	needed := map[*onnxpb.NodeProto]bool{}
	wanted := map[string]bool{}
	var need func(v string)
	need = func(v string) {
		wanted[v] = true
		n := made[v]
		if n == nil || needed[n] {
			return
		}
		needed[n] = true
		for _, x := range n.Input {
			need(x)
		}
	}
	var outputs []*onnxpb.ValueInfoProto
	for _, v := range g.Output {
		if strings.Contains(v.GetName(), ".encoder.") {
			need(v.GetName())
			outputs = append(outputs, v)
		}
	}
	part := &onnxpb.GraphProto{Output: outputs}
	names := map[string]string{"encoder_hidden_states": "last_hidden_state"}
	for _, v := range outputs {
		names[v.GetName()] = name(v.GetName())
	}
	private := func(v string) {
		if _, ok := names[v]; !ok {
			names[v] = "cross/" + v
		}
	}
	for _, t := range g.Initializer {
		if wanted[t.GetName()] {
			part.Initializer = append(part.Initializer, t)
			private(t.GetName())
		}
	}
	for _, n := range g.Node {
		if needed[n] {
			part.Node = append(part.Node, n)
			for _, o := range n.Output {
				private(o)
			}
		}
	}
	rename(part, names)
	to := encoder.Graph
	to.Node = append(to.Node, part.Node...)
	to.Initializer = append(to.Initializer, part.Initializer...)
	to.Output = append(to.Output, part.Output...)
	return encoder
}

// Start joins an encoder and the first step of a decoder into one model, the older form of what BeamSearch calls an encoder:
// it takes decoder_input_ids as well, and gives logits, encoder_hidden_states and all caches.
func Start(encoder, first *onnxpb.ModelProto, name func(present string) string) *onnxpb.ModelProto {
	encoder, first = proto.Clone(encoder).(*onnxpb.ModelProto), proto.Clone(first).(*onnxpb.ModelProto)
	names := map[string]string{"encoder_hidden_states": "encoder_hidden_states", "encoder_attention_mask": "attention_mask", "input_ids": "decoder_input_ids", "logits": "logits"}
	for _, v := range first.Graph.Output {
		if v.GetName() != "logits" {
			names[v.GetName()] = name(v.GetName())
		}
	}
	private := func(v string) {
		if _, ok := names[v]; !ok && v != "" {
			names[v] = "first/" + v
		}
	}
	for _, t := range first.Graph.Initializer {
		private(t.GetName())
	}
	for _, n := range first.Graph.Node {
		for _, o := range n.Output {
			private(o)
		}
	}
	rename(first.Graph, names)
	for _, v := range slices.Concat(first.Graph.Input, first.Graph.Output) { // unlike the encoder's
		for _, d := range v.GetType().GetTensorType().GetShape().GetDim() {
			if d.GetDimParam() == "sequence_length" {
				d.Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: "decoder_sequence_length"}
			}
		}
	}
	first.Graph.ValueInfo = nil
	to := encoder.Graph
	rename(to, map[string]string{"last_hidden_state": "encoder_hidden_states"})
	for _, v := range first.Graph.Input {
		if v.GetName() == "decoder_input_ids" {
			to.Input = append(to.Input, v)
		}
	}
	to.Node = append(to.Node, first.Graph.Node...)
	to.Initializer = append(to.Initializer, first.Graph.Initializer...)
	to.Output = append(to.Output, first.Graph.Output...)
	return encoder
}

// SearchPair puts an encoder that fills the caches of cross attention and the next steps of a decoder into BeamSearch, as
// onnxruntime.transformers.convert_generation does for T5; encoder may be of the older form that Start makes. The model takes input_ids [batch, sequence] and the operator's
// numbers, and gives sequences, sequences_scores and scores.
func SearchPair(encoder, next *onnxpb.ModelProto) *onnxpb.ModelProto {
	encoder, next = proto.Clone(encoder).(*onnxpb.ModelProto), proto.Clone(next).(*onnxpb.ModelProto)
	outer := &onnxpb.GraphProto{Input: []*onnxpb.ValueInfoProto{valueInfo("input_ids", graph.TensorType(onnxpb.TensorProto_INT32, "batch_size", "encoder_sequence_length"))}}
	body := func(m *onnxpb.ModelProto, name string, inputs, outputs map[string]string, order func(string) int) *onnxpb.GraphProto {
		g := m.Graph
		g.Name = &name
		rename(g, outputs)
		var before []*onnxpb.NodeProto
		for _, v := range g.Input {
			old := v.GetName()
			to, ok := inputs[old]
			if !ok {
				continue
			}
			t := v.Type.GetTensorType()
			if t.GetElemType() != int32(onnxpb.TensorProto_INT64) {
				rename(g, map[string]string{old: to})
				continue
			}
			rename(g, map[string]string{old: to + "/64"})
			v.Name = proto.String(to)
			t.ElemType = proto.Int32(int32(onnxpb.TensorProto_INT32))
			before = append(before, node("Cast", "/"+to+"/Cast", []string{to}, []string{to + "/64"}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT64))))
		}
		g.Node = append(before, g.Node...)
		g.Output = slices.DeleteFunc(g.Output, func(v *onnxpb.ValueInfoProto) bool { return v.GetName() == "last_hidden_state" })
		slices.SortStableFunc(g.Input, func(a, b *onnxpb.ValueInfoProto) int { return order(a.GetName()) - order(b.GetName()) })
		slices.SortStableFunc(g.Output, func(a, b *onnxpb.ValueInfoProto) int { return order(a.GetName()) - order(b.GetName()) })
		return g
	}
	caches := map[string]string{}
	for _, v := range slices.Concat(next.Graph.Input, next.Graph.Output) {
		if p := strings.Split(v.GetName(), "."); len(p) == 4 {
			side := map[string]string{"decoder": "self", "encoder": "cross"}[p[2]]
			caches[v.GetName()] = strings.Replace(p[0], "past_key_values", "past", 1) + "_" + p[3] + "_" + side + "_" + p[1]
		}
	}
	order := func(name string) int {
		if name == "input_ids" {
			return 0
		}
		return slices.IndexFunc([]string{"encoder_input_ids", "encoder_attention_mask", "decoder_input_ids", "logits", "encoder_hidden_states", "_self_", "_cross_"},
			func(word string) bool { return strings.Contains(name, word) })
	}
	caches["input_ids"], caches["encoder_attention_mask"] = "input_ids", "encoder_attention_mask"
	enc := body(encoder, "encoder", map[string]string{"input_ids": "encoder_input_ids", "attention_mask": "encoder_attention_mask", "decoder_input_ids": "decoder_input_ids"}, nil, order)
	dec := body(next, "decoder", caches, caches, order)
	input := func(name string, elem onnxpb.TensorProto_DataType) string {
		outer.Input = append(outer.Input, valueInfo(name, graph.TensorType(elem, 1)))
		return name
	}
	ints := func(name string) string { return input(name, onnxpb.TensorProto_INT32) }
	floats := func(name string) string { return input(name, onnxpb.TensorProto_FLOAT) }
	in := []string{"input_ids", ints("max_length"), ints("min_length"), ints("num_beams"), ints("num_return_sequences"), floats("length_penalty"), floats("repetition_penalty")}
	outputs := []string{"sequences", "sequences_scores", "scores"}
	n := node("BeamSearch", "/generate/BeamSearch", in, outputs, bodyAttr("encoder", enc), bodyAttr("decoder", dec),
		graph.IntAttr("eos_token_id", 1), graph.IntAttr("pad_token_id", 0), graph.IntAttr("decoder_start_token_id", 2), graph.IntAttr("model_type", 1), graph.IntAttr("no_repeat_ngram_size", 0))
	n.Domain = proto.String(contrib)
	outer.Node = []*onnxpb.NodeProto{n}
	outer.Output = []*onnxpb.ValueInfoProto{
		valueInfo("sequences", graph.TensorType(onnxpb.TensorProto_INT32, "batch_size", "num_return_sequences", "max_length")),
		valueInfo("sequences_scores", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch_size", "num_return_sequences")),
		valueInfo("scores", graph.TensorType(onnxpb.TensorProto_FLOAT, "steps", "batch_size", "num_beams", "vocabulary")),
	}
	m := wrapper(encoder, outer)
	one := int64(1)
	m.OpsetImport = append(slices.Clone(m.OpsetImport), &onnxpb.OperatorSetIdProto{Domain: proto.String(contrib), Version: &one})
	return m
}
