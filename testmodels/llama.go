package testmodels

// llamaArch is Llama (Touvron et al., arXiv 2302.13971) and its descendants: RMS norms, rotary positions, gated SiLU;
// biases on q, k, v for Qwen2, per-head norms for Qwen3.
func llamaArch(o Options) arch {
	a := base(o)
	a.rms, a.causal, a.position, a.act, a.gated = true, true, rotary, silu, true
	a.rotary, a.interleaved = o.HeadDim, o.Interleaved
	a.qkvBias, a.qkNorm = o.Bias, o.QKNorm
	return a
}

// buildLlama writes Llama as TorchScript traces transformers' modules.
func buildLlama(e *emitter) {
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	var x wire
	e.in("model", func() {
		x = e.embedding("embed_tokens", "embed.weight", ids, e.a.vocab, e.a.model)
		m := e.llamaMask(ids, mask, pasts)
		r := e.llamaRotation(positions)
		for i := range e.a.layers {
			x = e.block("layers", i, func() wire { return e.llamaLayer(i, x, m, r, pasts) })
		}
		x = e.norm("norm", "norm", x, e.a.model)
	})
	if e.a.tied {
		e.tied("lm_head", x)
	} else {
		e.head("lm_head", x)
	}
	e.outputs()
}

// llamaMask makes the one mask that all layers share.
func (e *emitter) llamaMask(ids, mask wire, pasts [][2]wire) wire {
	if e.o.Mask == MaskWhere {
		return e.look(ids, mask, pasts)
	}
	return e.added(ids, mask, pasts)
}

// llamaRotation makes the tables: computed for half-split pairs, looked up for interleaved ones.
func (e *emitter) llamaRotation(positions wire) rotation {
	if e.a.interleaved {
		return e.unsqueezed(e.gathered(positions, e.a.rotary/2, func(i int) int { return i }), 2)
	}
	return e.angles(positions)
}

func (e *emitter) llamaLayer(i int, x, mask wire, r rotation, pasts [][2]wire) wire {
	normed := e.norm("input_layernorm", layer(i, "attn_norm"), x, e.a.model)
	attended := e.module("self_attn", func() wire { return e.llamaAttention(i, normed, mask, r, pasts) })
	x = e.op("Add", x, attended)
	normed = e.norm("post_attention_layernorm", layer(i, "mlp_norm"), x, e.a.model)
	return e.op("Add", x, e.module("mlp", func() wire {
		gate := e.linear("gate_proj", layer(i, "gate"), normed, e.a.ffn, e.a.model)
		gate = e.activate("act_fn", gate)
		up := e.linear("up_proj", layer(i, "up"), normed, e.a.ffn, e.a.model)
		return e.linear("down_proj", layer(i, "down"), e.op("Mul", gate, up), e.a.model, e.a.ffn)
	}))
}

func (e *emitter) llamaAttention(i int, x, mask wire, r rotation, pasts [][2]wire) wire {
	a := e.a
	batch, seq := e.dim(x, 0, e.o.Batch), e.dim(x, 1, e.o.Seq)
	q := e.linear("q_proj", layer(i, "q"), x, a.attnDim(), a.model)
	k := e.linear("k_proj", layer(i, "k"), x, a.kvDim(), a.model)
	v := e.linear("v_proj", layer(i, "v"), x, a.kvDim(), a.model)
	v = e.heads(v, batch, seq, a.kvHeads)

	// place turns a projection into rotated heads; the norm and the interleaved rotation work on [B, S, n, d].
	place := func(x wire, n int, norm string, r rotation) wire {
		x = e.view(x, batch, seq, num(n), num(a.headDim))
		if a.qkNorm {
			x = e.norm(norm, layer(i, norm), x, a.headDim)
		}
		if a.interleaved {
			return e.transpose(e.rotatePairs(x, r, batch, seq, n), 0, 2, 1, 3)
		}
		x = e.transpose(x, 0, 2, 1, 3)
		if a.rotary < a.headDim {
			return e.rotatePartial(x, r, a.rotary)
		}
		return e.rotateHalf(x, r, e.middle(x, 3, a.rotary))
	}
	if !a.interleaved {
		r = e.unsqueezed(r, 1)
	}
	q, k = place(q, a.heads, "q_norm", r), place(k, a.kvHeads, "k_norm", r)

	k, v = e.append(pasts, i, 2, k, v)
	var context wire
	if e.o.Broadcast {
		context = e.broadcastKV(q, k, v, mask, batch, seq)
	} else {
		context = e.eager(q, e.repeatKV(k), e.repeatKV(v), mask)
	}
	y := e.unheads(context, batch, seq)
	return e.linear("o_proj", layer(i, "o"), y, a.model, a.attnDim())
}
