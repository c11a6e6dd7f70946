package testmodels

import "math"

// t5EncoderArch is the encoder of T5 (Raffel et al., arXiv 1910.10683): RMS norms, no biases, no scale, a learned bias
// per head and bucket of relative position.
func t5EncoderArch(o Options) arch {
	a := base(o)
	a.rms, a.position, a.act, a.scale, a.hidden, a.eps = true, relative, relu, 1, true, 1e-6
	return a
}

// t5DecoderArch is its decoder: causal, with cross attention, the embedding as classifier on states scaled by
// model^-½.
func t5DecoderArch(o Options) arch {
	a := t5EncoderArch(o)
	a.causal, a.cross, a.hidden, a.tied = true, true, false, true
	a.logitScale = 1 / math.Sqrt(float64(a.model))
	return a
}

// buildT5 writes T5Stack, encoder or decoder, and the classifier of the decoder.
func buildT5(e *emitter) {
	a := e.a
	ids := e.tokens("input_ids")
	var mask, states, stateMask wire
	stack := "encoder"
	if a.cross {
		stack = "decoder"
		if e.o.Stage != Next {
			states = e.float("encoder_hidden_states", e.batchDim(), e.encoderDim(), a.model)
		}
		stateMask = e.g.AddInput("encoder_attention_mask", intType(e.batchDim(), e.encoderDim()))
	} else {
		mask = e.attentionMask()
	}
	pasts := e.pasts()
	x := e.module(stack, func() wire {
		x := e.embedding("embed_tokens", "embed.weight", ids, a.vocab, a.model)
		past, seq := e.pastSize(pasts), e.dim(ids, 1, e.o.Seq)
		total := e.plus(past, seq)
		if a.cross {
			stateMask = e.inverted(stateMask)
			keys, queries := e.unsqueeze(e.arange(num(0), total), 0), e.unsqueeze(e.arange(past, total), 1)
			mask = e.additive(e.unsqueeze(e.lessOrEqual(keys, queries), 0, 1))
		} else {
			mask = e.inverted(mask)
		}
		var bias wire
		for i := range a.layers {
			x = e.block("block", i, func() wire {
				x := e.sublayer(0, layer(i, "attn_norm"), x, "SelfAttention", func(y wire) wire {
					k := func(y wire) (wire, wire) { return e.append(pasts, i, 2, e.t5Heads(y, i, "k"), e.t5Heads(y, i, "v")) }
					if bias == nil {
						bias = e.op("Add", e.t5Bias(seq, total), mask)
					}
					return e.t5Attention(i, "", y, y, k, bias)
				})
				next := 1
				if a.cross {
					x = e.sublayer(1, layer(i, "cross_norm"), x, "EncDecAttention", func(y wire) wire {
						kv := func(y wire) (wire, wire) {
							if e.o.Stage == Next {
								return e.crossPasts(i)
							}
							return e.crossed(i, e.t5Heads(y, i, "cross_k"), e.t5Heads(y, i, "cross_v"))
						}
						return e.t5Attention(i, "cross_", y, states, kv, e.t5CrossBias(y, stateMask))
					})
					next = 2
				}
				return e.sublayer(next, layer(i, "mlp_norm"), x, "DenseReluDense", func(y wire) wire {
					y = e.activate("act", e.linear("wi", layer(i, "up"), y, a.ffn, a.model))
					return e.linear("wo", layer(i, "down"), y, a.model, a.ffn)
				})
			})
		}
		if a.hidden {
			e.to("last_hidden_state")
		}
		return e.norm("final_layer_norm", "norm", x, a.model)
	})
	if !a.hidden {
		e.tied("lm_head", e.op("Mul", x, e.f(a.logitScale)))
	}
	e.outputs()
}

// encoderSeq is the static length of encoder_hidden_states, unlike the decoder's.
func (e *emitter) encoderSeq() int { return e.o.Seq + 2 }

// sublayer is one of the numbered parts of a T5 block: norm, module, residual sum.
func (e *emitter) sublayer(n int, norm string, x wire, module string, body func(y wire) wire) wire {
	return e.block("layer", n, func() wire {
		y := e.norm("layer_norm", norm, x, e.a.model)
		return e.op("Add", x, e.module(module, func() wire { return body(y) }))
	})
}

// t5Heads projects and splits, the sequence left to Reshape.
func (e *emitter) t5Heads(x wire, i int, w string) wire {
	y := e.linear(w[len(w)-1:], layer(i, w), x, e.a.attnDim(), e.a.model)
	return e.heads(y, e.dim(x, 0, e.o.Batch), num(-1), e.a.heads)
}

// t5Attention is T5Attention: no scale, bias added, keys transposed by axes 3 and 2.
func (e *emitter) t5Attention(i int, prefix string, x, from wire, kv func(wire) (k, v wire), bias wire) wire {
	a := e.a
	batch := e.dim(x, 0, e.o.Batch)
	q := e.t5Heads(x, i, prefix+"q")
	k, v := kv(from)
	scores := e.op("Add", e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)), bias)
	y := e.transpose(e.op("MatMul", e.softmax(scores, -1), v), 0, 2, 1, 3)
	y = e.view(y, batch, num(-1), num(a.attnDim()))
	return e.linear("o", layer(i, prefix+"o"), y, a.model, a.attnDim())
}

// t5Bias is compute_bias: buckets of all pairs of positions, looked up in a table [buckets, H], as [1, H, S, T]; the
// rows of the past cut off.
func (e *emitter) t5Bias(seq, total size) wire {
	n := buckets
	queries, keys := e.unsqueeze(e.arange(num(0), total), 1), e.unsqueeze(e.arange(num(0), total), 0)
	distance := e.op("Sub", keys, queries)
	first := wire(nil)
	if e.a.causal {
		distance = e.op("Neg", e.op("Min", distance, e.i(0)))
	} else {
		n /= 2
		first = e.op("Mul", e.castInt(e.op("Greater", distance, e.i(0))), e.i(n))
		distance = e.op("Abs", distance)
	}
	exact := n / 2
	near := e.op("Less", distance, e.i(exact))
	far := e.op("Log", e.op("Div", e.castFloat(distance), e.f(float64(exact))))
	far = e.op("Div", far, e.f(math.Log(maxDistance/float64(exact))))
	far = e.castInt(e.op("Mul", far, e.f(float64(n-exact))))
	far = e.op("Min", e.op("Add", far, e.i(exact)), e.i(n-1))
	at := e.op("Where", near, distance, far)
	if first != nil {
		at = e.op("Add", first, at)
	}
	bias := e.embedding("relative_attention_bias", "relative.weight", at, buckets, e.a.heads)
	bias = e.unsqueeze(e.transpose(bias, 2, 0, 1), 0)
	if !e.o.Cache {
		return bias
	}
	start := num(-seq.n)
	if seq.wire != nil {
		start = size{wire: e.op("Neg", seq.wire)}
	}
	return e.slice(bias, 2, start, end)
}

// t5CrossBias is the zero bias [1, H, S, T] that a layer without a table makes, plus the mask [B, 1, 1, T].
func (e *emitter) t5CrossBias(x, mask wire) wire {
	shape := e.shape(num(1), num(e.a.heads), e.dim(x, 1, e.o.Seq), e.dim(mask, 3, e.encoderSeq()))
	return e.op("Add", e.filled(shape, 0), mask)
}
