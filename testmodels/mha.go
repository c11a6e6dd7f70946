package testmodels

import "math"

// mhaArch is torch.nn.TransformerEncoder on embedded tokens: Vaswani et al. (arXiv 1706.03762) with learned positions,
// norms after each residual sum, ReLU.
func mhaArch(o Options) arch {
	a := base(o)
	a.post, a.noFinal, a.hidden, a.square, a.position, a.act = true, true, true, true, learned, relu
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// buildMHA writes nn.MultiheadAttention as torch 2 does without its fast path.
func buildMHA(e *emitter) {
	e.transformerEncoder(func(i int, x, mask wire) wire {
		a := e.a
		seq, batch, model, d := e.mhaSizes(x)
		qkv := e.inProjection(i, x)
		// unflatten(-1, (3, E)).unsqueeze(0).transpose(0, -2).squeeze(-2)
		qkv = e.unsqueeze(e.view(qkv, seq, batch, num(3), model), 0)
		qkv = e.squeeze(e.transpose(qkv, 3, 1, 2, 0, 4), 3)
		merged := e.times(batch, num(a.heads))
		pick := func(n int) wire {
			x := e.gather(qkv, e.i(n), 0)
			return e.transpose(e.view(x, seq, merged, d), 1, 0, 2)
		}
		q, k, v := pick(0), pick(1), pick(2)
		// The float padding mask [B, S] is spread over the heads and merged with the batch, then split again.
		mask = e.expand(e.view(mask, batch, num(1), num(1), seq), num(-1), num(a.heads), num(-1), num(-1))
		mask = e.view(e.view(mask, merged, num(1), seq), batch, num(a.heads), num(-1), seq)
		split := func(x wire) wire { return e.view(x, batch, num(a.heads), seq, d) }
		y := e.sdpa(split(q), split(k), split(v), mask)
		y = e.view(e.transpose(y, 2, 0, 1, 3), e.times(seq, batch), model)
		y = e.module("out_proj", func() wire {
			w := e.weights(e.param("weight"), layer(i, "o.weight"), a.model, a.attnDim())
			return e.gemm(y, w, e.weights(e.param("bias"), layer(i, "o.bias"), a.model), true)
		})
		return e.view(y, seq, batch, num(a.model))
	})
}

// buildMHASlice writes it as torch before 1.9: slices of the packed projection, q scaled, products of three dims.
func buildMHASlice(e *emitter) {
	e.transformerEncoder(func(i int, x, mask wire) wire {
		a := e.a
		seq, batch, model, d := e.mhaSizes(x)
		qkv := e.inProjection(i, x)
		cut := func(n int) wire { return e.slice(qkv, 2, num(n*a.attnDim()), num((n+1)*a.attnDim())) }
		merged := e.times(batch, num(a.heads))
		q := e.op("Mul", cut(0), e.f(a.scale))
		q = e.transpose(e.view(q, seq, merged, d), 1, 0, 2)
		k := e.view(cut(1), num(-1), merged, d)
		v := e.transpose(e.view(cut(2), num(-1), merged, d), 1, 0, 2)
		scores := e.op("MatMul", q, e.transpose(k, 1, 2, 0))
		scores = e.view(scores, batch, num(a.heads), seq, seq)
		padding := e.op("Less", mask, e.f(0))
		scores = e.op("Where", e.unsqueeze(padding, 1, 2), e.f(math.Inf(-1)), scores)
		scores = e.view(scores, merged, seq, seq)
		y := e.op("MatMul", e.softmax(scores, -1), v)
		y = e.view(e.transpose(y, 1, 0, 2), seq, batch, model)
		return e.linear("out_proj", layer(i, "o"), y, a.model, a.attnDim())
	})
}

// mhaSizes reads the sizes off [S, B, E] as multi_head_attention_forward does; the head dim is a division in the graph.
func (e *emitter) mhaSizes(x wire) (seq, batch, model, d size) {
	seq, batch, model = e.dim(x, 0, e.o.Seq), e.dim(x, 1, e.o.Batch), e.dim(x, 2, e.a.model)
	if e.o.Static {
		return seq, batch, model, num(e.a.headDim)
	}
	return seq, batch, model, size{wire: e.castInt(e.castInt(e.op("Div", model.wire, e.i(e.a.heads))))}
}

// inProjection is the packed linear layer, [S, B, 3·E].
func (e *emitter) inProjection(i int, x wire) wire {
	weight, bias := e.packed(i)
	a := e.a
	y := e.op("MatMul", x, e.init(e.habits.weight("MatMul"), transposed(weight, 3*a.attnDim(), a.model), a.model, 3*a.attnDim()))
	return e.op("Add", y, e.init(e.param("in_proj_bias"), bias, 3*a.attnDim()))
}

// transformerEncoder writes everything around the attention, which works on [S, B, E] and gets a float padding mask
// [B, S] of zeros and -Inf.
func (e *emitter) transformerEncoder(attention func(i int, x, mask wire) wire) {
	ids, mask := e.tokens("input_ids"), e.attentionMask()
	a := e.a
	x := e.embedding("embed", "embed.weight", ids, a.vocab, a.model)
	x = e.op("Add", x, e.embedding("positions", "positions.weight", e.counted(ids), a.maxSeq, a.model))
	x = e.transpose(x, 1, 0, 2)
	mask = e.op("Where", e.castBool(mask), e.f(0), e.f(math.Inf(-1)))
	e.in("transformer_encoder", func() {
		for i := range a.layers {
			x = e.block("layers", i, func() wire {
				y := e.module("self_attn", func() wire { return attention(i, x, mask) })
				x := e.norm("norm1", layer(i, "attn_norm"), e.op("Add", x, y), a.model)
				y = e.op("Relu", e.linear("linear1", layer(i, "up"), x, a.ffn, a.model))
				y = e.linear("linear2", layer(i, "down"), y, a.model, a.ffn)
				return e.norm("norm2", layer(i, "mlp_norm"), e.op("Add", x, y), a.model)
			})
		}
	})
	e.to("last_hidden_state").transpose(x, 1, 0, 2)
	e.outputs()
}
