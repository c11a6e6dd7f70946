package testmodels

// optArch is OPT (Zhang et al., arXiv 2205.01068): learned positions counted over the attention mask, two rows further,
// ReLU, the embedding as classifier.
func optArch(o Options) arch {
	a := base(o)
	a.causal, a.position, a.act, a.tied = true, learnedOPT, relu, true
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// buildOPT writes OPT with transformers' older attention on [B·H, S, d].
func buildOPT(e *emitter) {
	ids, mask := e.tokens("input_ids"), e.attentionMask()
	pasts := e.pasts()
	a := e.a
	x := e.module("model/decoder", func() wire {
		x := e.embedding("embed_tokens", "embed.weight", ids, a.vocab, a.model)
		places := e.module("embed_positions", func() wire {
			count := e.op("CumSum", mask, e.i(1))
			at := e.op("Sub", e.op("Mul", count, mask), e.i(1))
			at = e.slice(at, 1, e.pastSize(pasts), end)
			return e.op("Gather", e.weights(e.param("weight"), "positions.weight", a.maxSeq+2, a.model), e.op("Add", at, e.i(2)))
		})
		x = e.op("Add", x, places)
		_, seq, past, total := e.traced(ids, mask, pasts)
		bias := e.optMask(mask, seq, past, total)
		for i := range a.layers {
			x = e.block("layers", i, func() wire {
				normed := e.norm("self_attn_layer_norm", layer(i, "attn_norm"), x, a.model)
				x := e.op("Add", x, e.module("self_attn", func() wire { return e.optAttention(i, normed, bias, pasts) }))
				normed = e.norm("final_layer_norm", layer(i, "mlp_norm"), x, a.model)
				y := e.activate("activation_fn", e.linear("fc1", layer(i, "up"), normed, a.ffn, a.model))
				return e.op("Add", x, e.linear("fc2", layer(i, "down"), y, a.model, a.ffn))
			})
		}
		return e.norm("final_layer_norm", "norm", x, a.model)
	})
	e.tied("lm_head", x)
	e.outputs()
}

// optMask is the sum of a causal mask and an expanded padding mask, each 0 or lowest. Where both hide the sum overflows
// to -Inf, which the clip in the attention undoes.
func (e *emitter) optMask(mask wire, seq, past, total size) wire {
	keys := e.unsqueeze(e.arange(num(0), total), 0)
	queries := e.unsqueeze(e.arange(past, e.plus(past, seq)), 1)
	causal := e.op("Where", e.lessOrEqual(keys, queries), e.f(0), e.lowest())
	causal = e.unsqueeze(e.unsqueeze(causal, 0), 1)
	gap := e.op("Sub", e.f(1), e.castFloat(e.mask4(mask)))
	padding := e.op("Where", e.castBool(gap), e.lowest(), gap)
	return e.op("Add", padding, causal)
}

func (e *emitter) optAttention(i int, x, mask wire, pasts [][2]wire) wire {
	a := e.a
	batch, seq := e.dim(x, 0, e.o.Batch), e.dim(x, 1, e.o.Seq)
	shape := func(x wire, seq size) wire {
		return e.transpose(e.view(x, batch, seq, num(a.heads), num(a.headDim)), 0, 2, 1, 3)
	}
	q := e.op("Mul", e.linear("q_proj", layer(i, "q"), x, a.attnDim(), a.model), e.f(a.scale))
	k := shape(e.linear("k_proj", layer(i, "k"), x, a.attnDim(), a.model), num(-1))
	v := shape(e.linear("v_proj", layer(i, "v"), x, a.attnDim(), a.model), num(-1))
	k, v = e.append(pasts, i, 2, k, v)
	merged := e.times(batch, num(a.heads))
	q = e.view(shape(q, seq), merged, num(-1), num(a.headDim))
	k = e.view(k, merged, num(-1), num(a.headDim))
	v = e.view(v, merged, num(-1), num(a.headDim))
	total := e.dim(k, 1, e.totalStatic())
	scores := e.op("MatMul", q, e.transpose(k, 0, 2, 1))
	scores = e.op("Add", e.view(scores, batch, num(a.heads), seq, total), mask)
	scores = e.op("Max", scores, e.lowest())
	scores = e.view(scores, e.times(batch, num(a.heads)), seq, total)
	y := e.op("MatMul", e.softmax(scores, -1), v)
	y = e.transpose(e.view(y, batch, num(a.heads), seq, num(a.headDim)), 0, 2, 1, 3)
	y = e.view(y, batch, seq, num(a.attnDim()))
	return e.linear("out_proj", layer(i, "o"), y, a.model, a.attnDim())
}
