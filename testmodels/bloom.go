package testmodels

// bloomArch is BLOOM (arXiv 2211.05100): ALiBi instead of positions, a norm on the embedding, the embedding as
// classifier.
func bloomArch(o Options) arch {
	a := base(o)
	a.causal, a.position, a.act, a.tied, a.embedNorm = true, alibi, geluNew, true, true
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// buildBLOOM adds slope·position of the key, [1, H, 1, T], to the scores: a row's softmax does not see the query's own
// position.
func buildBLOOM(e *emitter) {
	ids, mask := e.tokens("input_ids"), e.attentionMask()
	pasts := e.pasts()
	a := e.a
	x := e.module("transformer", func() wire {
		x := e.embedding("word_embeddings", "embed.weight", ids, a.vocab, a.model)
		x = e.norm("word_embeddings_layernorm", "embed_norm", x, a.model)
		slopes := each(a.slopes(), func(s float64) float32 { return float32(s) })
		_, seq, past, total := e.traced(ids, mask, pasts)
		at := e.unsqueeze(e.castFloat(e.arange(num(0), total)), 0)
		bias := e.unsqueeze(e.unsqueeze(e.op("Mul", e.fs(slopes, a.heads, 1), at), 0), 2)
		visible := e.visible(mask, seq, past, total)
		for i := range a.layers {
			x = e.block("h", i, func() wire {
				normed := e.norm("input_layernorm", layer(i, "attn_norm"), x, a.model)
				x := e.op("Add", e.module("self_attention", func() wire {
					return e.bloomAttention(i, normed, bias, visible, pasts)
				}), x)
				normed = e.norm("post_attention_layernorm", layer(i, "mlp_norm"), x, a.model)
				return e.op("Add", e.module("mlp", func() wire {
					y := e.linear("dense_h_to_4h", layer(i, "up"), normed, a.ffn, a.model)
					return e.linear("dense_4h_to_h", layer(i, "down"), e.activate("gelu_impl", y), a.model, a.ffn)
				}), x)
			})
		}
		return e.norm("ln_f", "norm", x, a.model)
	})
	e.tied("lm_head", x)
	e.outputs()
}

func (e *emitter) bloomAttention(i int, x, bias, visible wire, pasts [][2]wire) wire {
	a := e.a
	weight, packedBias := e.interleavedHeads(i)
	qkv := e.linearData("query_key_value", x, weight, packedBias, 3*a.attnDim(), a.model)
	batch, seq := e.dim(qkv, 0, e.o.Batch), e.dim(qkv, 1, e.o.Seq)
	qkv = e.view(qkv, batch, seq, num(a.heads), num(3), num(a.headDim))
	pick := func(n int) wire { return e.transpose(e.gather(qkv, e.i(n), 3), 0, 2, 1, 3) }
	q, k, v := pick(0), pick(1), pick(2)
	k, v = e.append(pasts, i, 2, k, v)
	scores := e.op("Mul", e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)), e.f(a.scale))
	scores = e.hide(visible, e.op("Add", bias, scores))
	y := e.unheads(e.op("MatMul", e.softmax(scores, -1), v), batch, seq)
	return e.linear("dense", layer(i, "o"), y, a.model, a.attnDim())
}
