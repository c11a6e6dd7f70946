package testmodels

import "slices"

// gpt2Arch is GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners"): learned positions, layer
// norms before each sublayer, biases everywhere, the embedding as classifier.
func gpt2Arch(o Options) arch {
	a := base(o)
	a.causal, a.position, a.act, a.tied = true, learned, geluNew, true
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// packed sets the weights and biases of q, k and v side by side, [3·H·d, model], as c_attn holds them. bias is nil when
// the architecture has none.
func (e *emitter) packed(i int) (weight, bias []float32) {
	part := func(kind string) []float32 {
		return slices.Concat(e.w[layer(i, "q."+kind)], e.w[layer(i, "k."+kind)], e.w[layer(i, "v."+kind)])
	}
	if weight, bias = part("weight"), part("bias"); len(bias) == 0 {
		bias = nil
	}
	return weight, bias
}

// buildGPT2 writes GPT-2 with Conv1D as Gemm and SDPA, as torch 2 exports it through TorchScript.
func buildGPT2(e *emitter) {
	attention := func(i int, x, mask wire, pasts [][2]wire) wire {
		a := e.a
		weight, bias := e.packed(i)
		qkv := e.conv1D("c_attn", x, weight, bias, 3*a.attnDim(), a.model)
		parts := e.split(qkv, 2, a.attnDim(), a.attnDim(), a.attnDim())
		var heads [3]wire
		for n, part := range parts {
			// view(*shape, -1, head_dim): the number of heads is not in the graph
			batch, seq := e.dim(part, 0, e.o.Batch), e.dim(part, 1, e.o.Seq)
			heads[n] = e.transpose(e.view(part, batch, seq, num(-1), num(a.headDim)), 0, 2, 1, 3)
		}
		k, v := e.append(pasts, i, -2, heads[1], heads[2])
		bound := e.dim(k, 2, e.totalStatic())
		y := e.transpose(e.sdpa(heads[0], k, v, e.slice(mask, 3, num(0), bound)), 0, 2, 1, 3)
		y = e.view(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, e.o.Seq), num(-1))
		return e.conv1D("c_proj", y, e.w[layer(i, "o.weight")], e.w[layer(i, "o.bias")], a.model, a.attnDim())
	}
	e.gpt2(gpt2Style{e.added, attention, e.conv1D})
}

// buildGPT2MatMul writes GPT-2 with MatMul+Add and eager attention, as older transformers give and as other exporters
// write it: per layer a slice of the causal buffer, Where, then the padding mask added.
func buildGPT2MatMul(e *emitter) {
	attention := func(i int, x, padding wire, pasts [][2]wire) wire {
		a := e.a
		weight, bias := e.packed(i)
		qkv := e.linearData("c_attn", x, weight, bias, 3*a.attnDim(), a.model)
		parts := e.split(qkv, 2, a.attnDim(), a.attnDim(), a.attnDim())
		batch, seq := e.dim(x, 0, e.o.Batch), e.dim(x, 1, e.o.Seq)
		q, k, v := e.heads(parts[0], batch, seq, a.heads), e.heads(parts[1], batch, seq, a.heads), e.heads(parts[2], batch, seq, a.heads)
		k, v = e.append(pasts, i, -2, k, v)
		scores := e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2))
		scores = e.op("Div", scores, e.f(1/a.scale))
		scores = e.hide(e.buffer(q, k, 2), scores)
		scores = e.op("Add", scores, padding)
		y := e.unheads(e.op("MatMul", e.softmax(scores, -1), v), batch, seq)
		return e.linear("c_proj", layer(i, "o"), y, a.model, a.attnDim())
	}
	padding := func(_, mask wire, _ [][2]wire) wire { return e.inverted(mask) }
	e.gpt2(gpt2Style{padding, attention, e.linearData})
}

// gpt2Style is what differs between ways of writing GPT-2.
type gpt2Style struct {
	mask      func(ids, mask wire, pasts [][2]wire) wire
	attention func(i int, x, mask wire, pasts [][2]wire) wire
	linear    func(module string, x wire, weight, bias []float32, out, in int) wire // of the MLP
}

// gpt2 writes everything around the attention.
func (e *emitter) gpt2(style gpt2Style) {
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	x := e.module("transformer", func() wire {
		x := e.embedding("wte", "embed.weight", ids, a.vocab, a.model)
		x = e.op("Add", x, e.embedding("wpe", "positions.weight", positions, a.maxSeq, a.model))
		mask = style.mask(ids, mask, pasts)
		for i := range a.layers {
			x = e.block("h", i, func() wire {
				normed := e.norm("ln_1", layer(i, "attn_norm"), x, a.model)
				x := e.op("Add", e.module("attn", func() wire { return style.attention(i, normed, mask, pasts) }), x)
				normed = e.norm("ln_2", layer(i, "mlp_norm"), x, a.model)
				return e.op("Add", x, e.module("mlp", func() wire {
					y := style.linear("c_fc", normed, e.w[layer(i, "up.weight")], e.w[layer(i, "up.bias")], a.ffn, a.model)
					return style.linear("c_proj", e.activate("act", y), e.w[layer(i, "down.weight")], e.w[layer(i, "down.bias")], a.model, a.ffn)
				}))
			})
		}
		return e.norm("ln_f", "norm", x, a.model)
	})
	e.tied("lm_head", x)
	e.outputs()
}
