package testmodels

import "onnx-dha/graph"

// buildGPT2Dynamo writes GPT-2 as the dynamo exporter does: addmm as Gemm on [-1, D], Split by num_outputs.
func buildGPT2Dynamo(e *emitter) {
	d := newDynamo(e)
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	s := d.symbols(e, ids, pasts)
	addmm := func(module string, x wire, weight, bias []float32, out, in int) wire {
		return e.module(module, func() wire {
			flat := d.view(e, x, num(-1), num(in))
			w, b := e.init(e.param("weight"), transposed(weight, out, in), in, out), e.init(e.param("bias"), bias, out)
			d.as("addmm")
			return d.view(e, e.gemm(flat, w, b, false), s.batch, s.seq, num(out))
		})
	}
	norm := func(module, w string, x wire) wire {
		d.as("layer_norm")
		return e.norm(module, w, x, a.model)
	}
	x := e.module("transformer", func() wire {
		d.as("embedding")
		x := e.embedding("wte", "embed.weight", ids, a.vocab, a.model)
		d.as("embedding")
		x = e.op("Add", x, e.embedding("wpe", "positions.weight", positions, a.maxSeq, a.model))
		bias := e.additive(d.visible(e, mask, s))
		for i := range a.layers {
			x = e.block("h", i, func() wire {
				y := norm("ln_1", layer(i, "attn_norm"), x)
				y = e.module("attn", func() wire {
					weight, packedBias := e.packed(i)
					qkv := addmm("c_attn", y, weight, packedBias, 3*a.attnDim(), a.model)
					parts := e.nodes("Split", 3, []wire{qkv}, graph.IntAttr("axis", 2), graph.IntAttr("num_outputs", 3))
					q, k, v := d.heads(e, parts[0], s, a.heads), d.heads(e, parts[1], s, a.heads), d.heads(e, parts[2], s, a.heads)
					k, v = e.append(pasts, i, -2, k, v)
					y := d.sdpa(e, q, k, v, bias, false)
					y = d.view(e, e.transpose(y, 0, 2, 1, 3), s.batch, s.seq, num(a.attnDim()))
					return addmm("c_proj", y, e.w[layer(i, "o.weight")], e.w[layer(i, "o.bias")], a.model, a.attnDim())
				})
				x := e.op("Add", y, x)
				y = norm("ln_2", layer(i, "mlp_norm"), x)
				return e.op("Add", x, e.module("mlp", func() wire {
					y := addmm("c_fc", y, e.w[layer(i, "up.weight")], e.w[layer(i, "up.bias")], a.ffn, a.model)
					return addmm("c_proj", e.activate("act", y), e.w[layer(i, "down.weight")], e.w[layer(i, "down.bias")], a.model, a.ffn)
				}))
			})
		}
		return norm("ln_f", "norm", x)
	})
	e.tied("lm_head", x)
	e.outputs()
}
