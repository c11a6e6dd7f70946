package testmodels

// buildLlamaDynamo writes Llama as the dynamo exporter does. Head counts are numbers in constant parts of shapes.
func buildLlamaDynamo(e *emitter) {
	d := newDynamo(e)
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	s := d.symbols(e, ids, pasts)
	x := e.module("model", func() wire {
		d.as("embedding")
		x := e.embedding("embed_tokens", "embed.weight", ids, a.vocab, a.model)
		visible := d.visible(e, mask, s)
		r := e.unsqueezed(d.angles(e, positions, s), 1)
		for i := range a.layers {
			x = e.block("layers", i, func() wire {
				normed := d.rms(e, "input_layernorm", layer(i, "attn_norm"), x, a.model)
				x := e.op("Add", x, e.module("self_attn", func() wire { return d.llamaAttention(e, i, normed, visible, r, s, pasts) }))
				normed = d.rms(e, "post_attention_layernorm", layer(i, "mlp_norm"), x, a.model)
				return e.op("Add", x, e.module("mlp", func() wire {
					gate := d.linear(e, "gate_proj", layer(i, "gate"), normed, a.ffn, a.model)
					sigmoid := e.op("Sigmoid", gate)
					d.as("silu")
					gate = e.op("Mul", gate, sigmoid)
					up := d.linear(e, "up_proj", layer(i, "up"), normed, a.ffn, a.model)
					return d.linear(e, "down_proj", layer(i, "down"), e.op("Mul", gate, up), a.model, a.ffn)
				}))
			})
		}
		return d.rms(e, "norm", "norm", x, a.model)
	})
	e.head("lm_head", x)
	e.outputs()
}

func (d *dynamo) llamaAttention(e *emitter, i int, x, visible wire, r rotation, s symbols, pasts [][2]wire) wire {
	a := e.a
	project := func(module, w string, n int) wire {
		return d.linear(e, module, layer(i, w), x, n*a.headDim, a.model)
	}
	norm := func(x wire, w string, n int) wire {
		if !a.qkNorm {
			return d.heads(e, x, s, n)
		}
		x = d.view(e, x, s.batch, s.seq, num(n), num(a.headDim))
		return e.transpose(d.rms(e, w, layer(i, w), x, a.headDim), 0, 2, 1, 3)
	}
	q := norm(project("q_proj", "q", a.heads), "q_norm", a.heads)
	k := norm(project("k_proj", "k", a.kvHeads), "k_norm", a.kvHeads)
	v := d.heads(e, project("v_proj", "v", a.kvHeads), s, a.kvHeads)
	q, k = e.rotateHalf(q, r, num(a.rotary/2)), e.rotateHalf(k, r, num(a.rotary/2))
	k, v = e.append(pasts, i, -2, k, v)
	k, v = d.repeat(e, k, s), d.repeat(e, v, s)
	y := d.sdpa(e, q, k, v, visible, true)
	y = d.view(e, e.transpose(y, 0, 2, 1, 3), s.batch, s.seq, num(a.attnDim()))
	return d.linear(e, "o_proj", layer(i, "o"), y, a.model, a.attnDim())
}

// repeat gives every query head its KV head: unsqueeze, expand, view.
func (d *dynamo) repeat(e *emitter, x wire, s symbols) wire {
	a := e.a
	r := a.heads / a.kvHeads
	if r == 1 {
		return x
	}
	shape := e.shape(s.batch, num(a.kvHeads), num(r), s.total, num(a.headDim))
	x = e.unsqueeze(x, 2)
	d.as("expand")
	x = e.op("Expand", x, shape)
	return d.view(e, x, s.batch, num(a.heads), s.total, num(a.headDim))
}

// angles are the tables [B, S, rotary].
func (d *dynamo) angles(e *emitter, positions wire, s symbols) rotation {
	n := e.a.rotary / 2
	freq, shape := e.fs(e.frequencies(), 1, n, 1), e.shape(s.batch, num(n), num(1))
	d.as("expand")
	freq = e.op("Expand", freq, shape)
	at := e.castFloat(e.unsqueeze(positions, 1))
	d.as("matmul")
	turn := e.transpose(e.op("MatMul", freq, at), 0, 2, 1)
	turn = e.concat(-1, turn, turn)
	return rotation{e.op("Cos", turn), e.op("Sin", turn)}
}

// rms is an RMS norm by Reciprocal.
func (d *dynamo) rms(e *emitter, module, w string, x wire, width int) wire {
	return e.module(module, func() wire {
		two := e.f(2)
		d.as("pow")
		square := e.op("Pow", x, two)
		root := e.op("Sqrt", e.op("Add", e.mean(square), e.f(e.a.eps)))
		d.as("rsqrt")
		unit := e.op("Reciprocal", root)
		unit = e.op("Mul", x, unit)
		return e.op("Mul", e.weights(e.param("weight"), w+".weight", width), unit)
	})
}
