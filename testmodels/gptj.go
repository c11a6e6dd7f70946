package testmodels

// gptjArch is GPT-J (Wang and Komatsuzaki): rotary positions on interleaved channel pairs of a part of each head, one
// norm per layer that feeds attention and MLP side by side.
func gptjArch(o Options) arch {
	a := base(o)
	a.causal, a.parallel, a.oneNorm, a.position, a.interleaved, a.act = true, true, true, rotary, true, geluNew
	a.mlpBias, a.headBias = true, true
	a.rotary = o.RotaryDim
	orDefault(&a.rotary, o.HeadDim/2)
	return a
}

// buildGPTJ rotates in [B, S, H, d] layout and transposes after. The channels that are not rotated are joined again even
// where there are none.
func buildGPTJ(e *emitter) {
	ids, mask, positions := e.tokens("input_ids"), e.attentionMask(), e.tokens("position_ids")
	pasts := e.pasts()
	a := e.a
	x := e.module("transformer", func() wire {
		x := e.embedding("wte", "embed.weight", ids, a.vocab, a.model)
		padding := e.inverted(mask)
		r := e.unsqueezed(e.gathered(positions, a.rotary, func(i int) int { return i / 2 }), 2)
		for i := range a.layers {
			x = e.block("h", i, func() wire {
				normed := e.norm("ln_1", layer(i, "attn_norm"), x, a.model)
				attended := e.module("attn", func() wire { return e.gptjAttention(i, normed, padding, r, pasts) })
				y := e.module("mlp", func() wire {
					y := e.linear("fc_in", layer(i, "up"), normed, a.ffn, a.model)
					return e.linear("fc_out", layer(i, "down"), e.activate("act", y), a.model, a.ffn)
				})
				return e.op("Add", e.op("Add", attended, y), x)
			})
		}
		return e.norm("ln_f", "norm", x, a.model)
	})
	e.head("lm_head", x)
	e.outputs()
}

func (e *emitter) gptjAttention(i int, x, padding wire, r rotation, pasts [][2]wire) wire {
	a := e.a
	split := func(module, w string) wire {
		y := e.linear(module, layer(i, w), x, a.attnDim(), a.model)
		return e.view(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, e.o.Seq), num(a.heads), num(a.headDim))
	}
	place := func(x wire) wire {
		turned := e.rotateEveryTwo(e.slice(x, 3, num(0), num(a.rotary)), r)
		return e.transpose(e.concat(-1, turned, e.slice(x, 3, num(a.rotary), end)), 0, 2, 1, 3)
	}
	q, k, v := split("q_proj", "q"), split("k_proj", "k"), split("v_proj", "v")
	v = e.transpose(v, 0, 2, 1, 3)
	k, q = place(k), place(q)
	k, v = e.append(pasts, i, -2, k, v)
	scores := e.hide(e.buffer(q, k, 2), e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)))
	scores = e.op("Div", scores, e.op("Sqrt", e.castFloat(e.i(a.headDim))))
	y := e.op("MatMul", e.softmax(e.op("Add", scores, padding), -1), v)
	y = e.transpose(y, 0, 2, 1, 3)
	y = e.view(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, e.o.Seq), num(a.attnDim()))
	return e.linear("out_proj", layer(i, "o"), y, a.model, a.attnDim())
}
