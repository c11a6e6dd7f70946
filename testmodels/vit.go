package testmodels

import "onnx-dha/graph"

// vitArch is the Vision Transformer (Dosovitskiy et al., arXiv 2010.11929): patches of 4×4 pixels, 4×4 of them, a class
// token, logits from its last state. Options.Vocab is the number of classes.
func vitArch(o Options) arch {
	a := base(o)
	a.patch, a.side, a.class, a.position, a.act = 4, 4, true, learned, gelu
	a.qkvBias, a.outBias, a.mlpBias, a.headBias = true, true, true, true
	return a
}

// buildViT writes ViTForImageClassification.
func buildViT(e *emitter) {
	a := e.a
	pixels := e.float("pixel_values", e.batchDim(), 3, a.side*a.patch, a.side*a.patch)
	tokens := a.tokens()
	x := e.module("vit", func() wire {
		x := e.module("embeddings", func() wire {
			batch := e.dim(pixels, 0, e.o.Batch)
			x := e.patches(pixels)
			class := e.expand(e.weights(e.param("cls_token"), "class", 1, 1, a.model), batch, num(-1), num(-1))
			return e.op("Add", e.concat(1, class, x), e.weights(e.param("position_embeddings"), "positions.weight", 1, tokens, a.model))
		})
		for i := range a.layers {
			x = e.block("encoder/layer", i, func() wire {
				normed := e.norm("layernorm_before", layer(i, "attn_norm"), x, a.model)
				x := e.op("Add", e.module("attention", func() wire {
					y := e.module("attention", func() wire { return e.vitAttention(i, normed) })
					return e.module("output", func() wire { return e.linear("dense", layer(i, "o"), y, a.model, a.attnDim()) })
				}), x)
				normed = e.norm("layernorm_after", layer(i, "mlp_norm"), x, a.model)
				y := e.module("intermediate", func() wire {
					return e.activate("intermediate_act_fn", e.linear("dense", layer(i, "up"), normed, a.ffn, a.model))
				})
				return e.module("output", func() wire {
					return e.op("Add", e.linear("dense", layer(i, "down"), y, a.model, a.ffn), x)
				})
			})
		}
		return e.norm("layernorm", "norm", x, a.model)
	})
	class := e.gather(x, e.i(0), 1)
	e.in("classifier", func() {
		w, b := e.weights(e.param("weight"), "head.weight", a.vocab, a.model), e.weights(e.param("bias"), "head.bias", a.vocab)
		e.to("logits").gemm(class, w, b, true)
	})
	e.outputs()
}

// patches projects the patches of an image, [B, side², model].
func (e *emitter) patches(pixels wire) wire {
	a := e.a
	x := e.module("patch_embeddings/projection", func() wire {
		w := e.weights(e.param("weight"), "patch.weight", a.model, 3, a.patch, a.patch)
		p := int64(a.patch)
		return e.node("Conv", []wire{pixels, w, e.weights(e.param("bias"), "patch.bias", a.model)},
			graph.IntsAttr("dilations", 1, 1), graph.IntAttr("group", 1), graph.IntsAttr("kernel_shape", p, p),
			graph.IntsAttr("pads", 0, 0, 0, 0), graph.IntsAttr("strides", p, p))
	})
	// flatten(2): the sizes in front are read from the tensor
	shape := e.is(e.o.Batch, a.model, a.side*a.side)
	if !e.o.Static {
		shape = e.concat(0, e.op("Slice", e.op("Shape", x), e.is(0), e.is(2), e.is(0)), e.is(-1))
	}
	return e.transpose(e.reshape(x, shape), 0, 2, 1)
}

func (e *emitter) vitAttention(i int, x wire) wire {
	a := e.a
	tokens := a.tokens()
	heads := func(module, w string) wire {
		y := e.linear(module, layer(i, w), x, a.attnDim(), a.model)
		return e.heads(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, tokens), a.heads)
	}
	k, v, q := heads("key", "k"), heads("value", "v"), heads("query", "q")
	scores := e.op("Div", e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)), e.f(1/a.scale))
	y := e.transpose(e.op("MatMul", e.softmax(scores, -1), v), 0, 2, 1, 3)
	return e.view(y, e.dim(y, 0, e.o.Batch), e.dim(y, 1, tokens), num(a.attnDim()))
}
