package testmodels

// bertArch is BERT (Devlin et al., arXiv 1810.04805): learned positions, token types, norms after each residual sum.
func bertArch(o Options) arch {
	a := base(o)
	a.post, a.embedNorm, a.noFinal, a.hidden, a.types = true, true, true, true, true
	a.position, a.act = learned, gelu
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// buildBERT writes BertModel without the pooler.
func buildBERT(e *emitter) {
	ids, mask, types := e.tokens("input_ids"), e.attentionMask(), e.tokens("token_type_ids")
	a := e.a
	mask = e.inverted(mask)
	x := e.module("embeddings", func() wire {
		words := e.embedding("word_embeddings", "embed.weight", ids, a.vocab, a.model)
		kinds := e.embedding("token_type_embeddings", "types.weight", types, 2, a.model)
		places := e.embedding("position_embeddings", "positions.weight", e.counted(ids), a.maxSeq, a.model)
		return e.norm("LayerNorm", "embed_norm", e.op("Add", e.op("Add", words, kinds), places), a.model)
	})
	e.in("encoder", func() {
		for i := range a.layers {
			x = e.block("layer", i, func() wire {
				x := e.module("attention", func() wire {
					y := e.module("self", func() wire { return e.bertAttention(i, x, mask) })
					return e.module("output", func() wire {
						y := e.linear("dense", layer(i, "o"), y, a.model, a.attnDim())
						return e.norm("LayerNorm", layer(i, "attn_norm"), e.op("Add", y, x), a.model)
					})
				})
				y := e.module("intermediate", func() wire {
					y := e.linear("dense", layer(i, "up"), x, a.ffn, a.model)
					return e.activate("intermediate_act_fn", y)
				})
				return e.module("output", func() wire {
					y := e.linear("dense", layer(i, "down"), y, a.model, a.ffn)
					y = e.op("Add", y, x)
					if i == a.layers-1 {
						e.to("last_hidden_state")
					}
					return e.norm("LayerNorm", layer(i, "mlp_norm"), y, a.model)
				})
			})
		}
	})
	e.outputs()
}

// bertAttention is BertSelfAttention up to the output projection. transpose_for_scores keeps the head count as a number
// and traces batch and sequence from each projection.
func (e *emitter) bertAttention(i int, x, mask wire) wire {
	a := e.a
	heads := func(module, w string) wire {
		y := e.linear(module, layer(i, w), x, a.attnDim(), a.model)
		return e.heads(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, e.o.Seq), a.heads)
	}
	q, k, v := heads("query", "q"), heads("key", "k"), heads("value", "v")
	scores := e.op("Div", e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)), e.f(1/a.scale))
	y := e.op("MatMul", e.softmax(e.op("Add", scores, mask), -1), v)
	y = e.transpose(y, 0, 2, 1, 3)
	return e.view(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, e.o.Seq), num(a.attnDim()))
}
