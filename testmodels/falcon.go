package testmodels

// falconArch is Falcon 7B (arXiv 2311.16867): one key and one value head for all query heads (Shazeer, arXiv
// 1911.02150), rotary positions, one norm that feeds attention and MLP side by side, no biases.
func falconArch(o Options) arch {
	a := base(o)
	a.causal, a.parallel, a.oneNorm, a.position, a.act, a.tied = true, true, true, rotary, gelu, true
	a.rotary = o.HeadDim
	return a
}

// buildFalcon cuts query_key_value [B, S, H+2, d] along the head axis and lets MatMul broadcast the one KV head.
func buildFalcon(e *emitter) {
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	x := e.module("transformer", func() wire {
		x := e.embedding("word_embeddings", "embed.weight", ids, a.vocab, a.model)
		mask = e.added(ids, mask, pasts)
		r := e.unsqueezed(e.angles(positions), 1)
		for i := range a.layers {
			x = e.block("h", i, func() wire {
				normed := e.norm("input_layernorm", layer(i, "attn_norm"), x, a.model)
				attended := e.module("self_attention", func() wire { return e.falconAttention(i, normed, mask, r, pasts) })
				y := e.module("mlp", func() wire {
					y := e.linear("dense_h_to_4h", layer(i, "up"), normed, a.ffn, a.model)
					return e.linear("dense_4h_to_h", layer(i, "down"), e.activate("act", y), a.model, a.ffn)
				})
				return e.op("Add", e.op("Add", y, attended), x)
			})
		}
		return e.norm("ln_f", "norm", x, a.model)
	})
	e.tied("lm_head", x)
	e.outputs()
}

func (e *emitter) falconAttention(i int, x, mask wire, r rotation, pasts [][2]wire) wire {
	a := e.a
	weight, _ := e.packed(i)
	width := a.attnDim() + 2*a.kvDim()
	qkv := e.linearData("query_key_value", x, weight, nil, width, a.model)
	batch, seq := e.dim(qkv, 0, e.o.Batch), e.dim(qkv, 1, e.o.Seq)
	qkv = e.view(qkv, batch, seq, num(a.heads+2*a.kvHeads), num(a.headDim))
	// Ends counted from the back, as in fused_qkv[..., :-2, :].
	q := e.transpose(e.slice(qkv, 2, num(0), num(-2*a.kvHeads)), 0, 2, 1, 3)
	k := e.transpose(e.slice(qkv, 2, num(-2*a.kvHeads), num(-a.kvHeads)), 0, 2, 1, 3)
	v := e.transpose(e.slice(qkv, 2, num(-a.kvHeads), end), 0, 2, 1, 3)
	q, k = e.rotateHalf(q, r, e.middle(q, 3, a.rotary)), e.rotateHalf(k, r, e.middle(k, 3, a.rotary))
	k, v = e.append(pasts, i, -2, k, v)
	y := e.unheads(e.sdpa(q, k, v, mask), batch, seq)
	return e.linear("dense", layer(i, "o"), y, a.model, a.attnDim())
}
