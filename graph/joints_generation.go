package graph

import "strings"

// This file reads the bodies of ONNX Runtime's generation operators. They pass caches from one call of a decoder to the
// next by position (contrib_ops/cpu/transformers: subgraph_gpt.cc, subgraph_t5_encoder.cc, subgraph_t5_decoder.cc); no
// cache crosses the operator's own boundary.

// searchJoints lists the caches. A decoder alone takes input_ids, position_ids, attention_mask and pasts, and gives logits
// and presents; a decoder with an encoder takes self-attention pasts and then cross-attention ones, which the encoder
// (that may be the decoder's first call as well) gives in the order of its own outputs.
func searchJoints(n *Node) []*Joint {
	body := func(name string) *Graph {
		if s := n.Subgraphs[name]; len(s) > 0 {
			return s[0]
		}
		return nil
	}
	decoder, encoder := body("decoder"), body("encoder")
	if decoder == nil {
		return nil
	}
	var out []*Joint
	pasts := pastsOf(decoder)
	for i, past := range pasts {
		j := &Joint{Node: n, Inputs: []*Value{past}}
		for _, b := range []*Graph{decoder, body("init_decoder")} {
			if b == nil {
				continue
			}
			if presents := presentsOf(b); i < len(presents) {
				j.Results = append(j.Results, presents[i])
			}
			if b != decoder {
				j.Inputs = append(j.Inputs, present(nth(pastsOf(b), i))...)
			}
		}
		out = append(out, j)
	}
	if encoder == nil {
		return out
	}
	// Encoders of the older form give self-attention and cross-attention caches as the decoder takes them, those of the
	// newer form the latter alone.
	given := presentsOf(encoder)
	if skip := len(pasts) - len(given); skip >= 0 {
		for i, v := range given {
			out[skip+i].Results = append(out[skip+i].Results, v)
		}
	}
	return out
}

// pastsOf lists the cache inputs of a decoder, which have at least 4 axes and follow one another.
func pastsOf(g *Graph) []*Value { return named4D(g.Inputs, "past_") }

// presentsOf lists the cache outputs.
func presentsOf(g *Graph) []*Value { return named4D(g.Outputs, "present_") }

// named4D lists the values whose names begin with prefix and that are no lengths: the operators ask for these names.
func named4D(list []*Value, prefix string) []*Value {
	var out []*Value
	for _, v := range list {
		if v == nil || !strings.HasPrefix(v.Name, prefix) {
			continue
		}
		if shape := v.Info.GetType().GetTensorType().GetShape(); shape != nil && len(shape.Dim) < 4 {
			continue
		}
		out = append(out, v)
	}
	return out
}
