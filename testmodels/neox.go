package testmodels

// neoxArch is GPT-NeoX (Black et al., arXiv 2204.06745): rotary positions on a part of each head, attention and MLP side
// by side on the same residual.
func neoxArch(o Options) arch {
	a := base(o)
	a.causal, a.parallel, a.position, a.act = true, true, rotary, gelu
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	a.rotary = o.RotaryDim
	orDefault(&a.rotary, o.HeadDim/2)
	return a
}

// interleavedHeads packs q, k and v head by head, [H·3·d, model] with head h's q, k and v in a row, as GPT-NeoX and
// BLOOM hold them.
func (e *emitter) interleavedHeads(i int) (weight, bias []float32) {
	part := func(kind string, width int) (out []float32) {
		for h := range e.a.heads {
			for _, p := range []string{"q", "k", "v"} {
				data := e.w[layer(i, p+"."+kind)]
				if data == nil {
					return nil
				}
				n := e.a.headDim * width
				out = append(out, data[h*n:(h+1)*n]...)
			}
		}
		return out
	}
	return part("weight", e.a.model), part("bias", 1)
}

// buildNeoX slices q, k and v off the last axis of [B, S, H, 3·d].
func buildNeoX(e *emitter) {
	e.neox(func(qkv wire, batch, seq size) (q, k, v wire) {
		d := e.a.headDim
		qkv = e.view(qkv, batch, seq, num(e.a.heads), num(3*d))
		cut := func(n int) wire { return e.transpose(e.slice(qkv, 3, num(n*d), num((n+1)*d)), 0, 2, 1, 3) }
		return cut(0), cut(1), cut(2)
	})
}

// buildNeoXSplit transposes to [B, H, S, 3·d] and splits.
func buildNeoXSplit(e *emitter) {
	e.neox(func(qkv wire, batch, seq size) (q, k, v wire) {
		d := e.a.headDim
		qkv = e.transpose(e.view(qkv, batch, seq, num(-1), num(3*d)), 0, 2, 1, 3)
		parts := e.split(qkv, -1, d, d, d)
		return parts[0], parts[1], parts[2]
	})
}

// neox writes everything but the way from the packed projection to q, k, v [B, H, S, d].
func (e *emitter) neox(unpack func(qkv wire, batch, seq size) (q, k, v wire)) {
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	x := e.module("gpt_neox", func() wire {
		x := e.embedding("embed_in", "embed.weight", ids, a.vocab, a.model)
		mask = e.added(ids, mask, pasts)
		pair := func(i int) int { return i % (a.rotary / 2) }
		r := e.unsqueezed(e.gathered(positions, a.rotary, pair), 1)
		for i := range a.layers {
			x = e.block("layers", i, func() wire {
				normed := e.norm("input_layernorm", layer(i, "attn_norm"), x, a.model)
				attended := e.module("attention", func() wire {
					weight, bias := e.interleavedHeads(i)
					batch, seq := e.dim(normed, 0, e.o.Batch), e.dim(normed, 1, e.o.Seq)
					qkv := e.linearData("query_key_value", normed, weight, bias, 3*a.attnDim(), a.model)
					q, k, v := unpack(qkv, batch, seq)
					q, k = e.rotatePartial(q, r, a.rotary), e.rotatePartial(k, r, a.rotary)
					k, v = e.append(pasts, i, -2, k, v)
					y := e.unheads(e.neoxCore(q, k, v, mask), batch, seq)
					return e.linear("dense", layer(i, "o"), y, a.model, a.attnDim())
				})
				normed = e.norm("post_attention_layernorm", layer(i, "mlp_norm"), x, a.model)
				y := e.module("mlp", func() wire {
					y := e.linear("dense_h_to_4h", layer(i, "up"), normed, a.ffn, a.model)
					return e.linear("dense_4h_to_h", layer(i, "down"), e.activate("act", y), a.model, a.ffn)
				})
				return e.op("Add", e.op("Add", y, attended), x)
			})
		}
		return e.norm("final_layer_norm", "norm", x, a.model)
	})
	e.head("embed_out", x)
	e.outputs()
}

// neoxCore is GPTNeoXAttention._attn of older transformers: the heads merged for a 3-D product, the scores viewed back.
func (e *emitter) neoxCore(q, k, v, mask wire) wire {
	a := e.a
	batch, seq := e.dim(q, 0, e.o.Batch), e.dim(q, 2, e.o.Seq)
	total := e.dim(k, 2, e.totalStatic())
	q = e.view(q, e.times(batch, num(a.heads)), seq, num(a.headDim))
	k = e.view(k, e.times(batch, num(a.heads)), total, num(a.headDim))
	scores := e.op("Mul", e.op("MatMul", q, e.transpose(k, 0, 2, 1)), e.f(a.scale))
	scores = e.view(scores, batch, num(a.heads), seq, total)
	return e.op("MatMul", e.softmax(e.op("Add", scores, mask), -1), v)
}
