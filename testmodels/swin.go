package testmodels

import "onnx-dha/graph"

// swinArch is one stage of the Swin Transformer (Liu et al., arXiv 2103.14030): patches attend in windows, which every
// second layer moves by half a window; a learned bias per head and offset in the window. Options.Vocab is the number of
// classes.
func swinArch(o Options) arch {
	a := vitArch(o)
	a.class, a.pooled, a.embedNorm, a.position, a.windows = false, true, true, windowed, 2
	return a
}

// offsets is the number of distances along one side of a window, from -(w-1) to w-1.
func (a *arch) offsets() int { return 2*a.windows - 1 }

// shift is how far layer i moves its windows.
func (a *arch) shift(i int) int { return i % 2 * a.windows / 2 }

// offset returns the row of layer i's bias table for two patches, and whether they are in one window. Windows do not wrap
// around the image.
func (a *arch) offset(i, query, key int) (row int, together bool) {
	if a.windows == 0 {
		return 0, true
	}
	w := a.windows
	for _, axis := range [2][2]int{{query / a.side, key / a.side}, {query % a.side, key % a.side}} {
		// Moved up by a window less the shift, the first window is the part that the shift cuts off.
		q, k := axis[0]+w-a.shift(i), axis[1]+w-a.shift(i)
		if q/w != k/w {
			return 0, false
		}
		row = row*a.offsets() + q - k + w - 1
	}
	return row, true
}

// buildSwin writes SwinForImageClassification.
func buildSwin(e *emitter) {
	a := e.a
	pixels := e.float("pixel_values", e.batchDim(), 3, a.side*a.patch, a.side*a.patch)
	x := e.module("swin", func() wire {
		x := e.module("embeddings", func() wire { return e.norm("norm", "embed_norm", e.patches(pixels), a.model) })
		for i := range a.layers {
			x = e.block("encoder/layers.0/blocks", i, func() wire {
				batch := e.dim(x, 0, e.o.Batch)
				y := e.norm("layernorm_before", layer(i, "attn_norm"), x, a.model)
				y = e.rolled(e.view(y, batch, num(a.side), num(a.side), num(a.model)), a.shift(i))
				y = e.module("attention", func() wire { return e.swinAttention(i, e.partition(y, batch)) })
				y = e.rolled(e.unpartition(y), a.side-a.shift(i))
				x = e.op("Add", x, e.view(y, batch, num(a.side*a.side), num(a.model)))
				y = e.norm("layernorm_after", layer(i, "mlp_norm"), x, a.model)
				y = e.activate("intermediate/intermediate_act_fn", e.linear("intermediate/dense", layer(i, "up"), y, a.ffn, a.model))
				return e.op("Add", x, e.linear("output/dense", layer(i, "down"), y, a.model, a.ffn))
			})
		}
		x = e.norm("layernorm", "norm", x, a.model)
		pooled := e.node("GlobalAveragePool", []wire{e.transpose(x, 0, 2, 1)})
		return e.node("Flatten", []wire{pooled}, graph.IntAttr("axis", 1))
	})
	e.in("classifier", func() {
		w, b := e.weights(e.param("weight"), "head.weight", a.vocab, a.model), e.weights(e.param("bias"), "head.bias", a.vocab)
		e.to("logits").gemm(x, w, b, true)
	})
	e.outputs()
}

// rolled is torch.roll(x, (-n, -n), (1, 2)) of [B, side, side, model], by two slices and a Concat per axis.
func (e *emitter) rolled(x wire, n int) wire {
	if n%e.a.side == 0 {
		return x
	}
	for _, axis := range []int{1, 2} {
		x = e.concat(axis, e.slice(x, axis, num(n), end), e.slice(x, axis, num(0), num(n)))
	}
	return x
}

// partition cuts [B, side, side, model] into windows, [B·windows, w², model].
func (e *emitter) partition(x wire, batch size) wire {
	w, n := num(e.a.windows), num(e.a.side/e.a.windows)
	x = e.transpose(e.view(x, batch, n, w, n, w, num(e.a.model)), 0, 1, 3, 2, 4, 5)
	return e.view(e.view(x, num(-1), w, w, num(e.a.model)), num(-1), num(w.n*w.n), num(e.a.model))
}

// unpartition is its inverse, [B, side, side, model].
func (e *emitter) unpartition(x wire) wire {
	w, n, side := num(e.a.windows), num(e.a.side/e.a.windows), num(e.a.side)
	x = e.view(x, num(-1), n, n, w, w, num(e.a.model))
	return e.view(e.transpose(x, 0, 1, 3, 2, 4, 5), num(-1), side, side, num(e.a.model))
}

// swinAttention is attention in windows [B·windows, w², model]. A moved layer adds the mask of all windows of an image to
// scores of five dims.
func (e *emitter) swinAttention(i int, x wire) wire {
	a := e.a
	n, perImage := a.windows*a.windows, a.side/a.windows*(a.side/a.windows)
	batch := e.dim(x, 0, e.o.Batch*perImage)
	heads := func(module, w string) wire {
		y := e.linear("self/"+module, layer(i, w), x, a.attnDim(), a.model)
		return e.heads(y, e.dim(y, 0, e.o.Batch*perImage), num(-1), a.heads)
	}
	k, v, q := heads("key", "k"), heads("value", "v"), heads("query", "q")
	scores := e.op("Div", e.op("MatMul", q, e.transpose(k, 0, 1, 3, 2)), e.f(1/a.scale))
	table := e.weights(e.param("self.relative_position_bias_table"), layer(i, "relative.weight"), a.offsets()*a.offsets(), a.heads)
	rows := make([]int, 0, n*n)
	hidden := make([]float32, 0, perImage*n*n)
	at := func(window, t int) int { // the patch at place t of a window, in the image before it was rolled
		per := a.side / a.windows
		y, x := window/per*a.windows+t/a.windows+a.shift(i), window%per*a.windows+t%a.windows+a.shift(i)
		return y%a.side*a.side + x%a.side
	}
	for window := range perImage {
		for query := range n {
			for key := range n {
				row, together := a.offset(i, at(window, query), at(window, key))
				if window == 0 {
					rows = append(rows, row)
				}
				if together {
					hidden = append(hidden, 0)
				} else {
					hidden = append(hidden, -100)
				}
			}
		}
	}
	bias := e.view(e.gather(table, e.is(rows...), 0), num(n), num(n), num(-1))
	scores = e.op("Add", scores, e.unsqueeze(e.transpose(bias, 2, 0, 1), 0))
	if a.shift(i) > 0 {
		scores = e.view(scores, e.over(batch, perImage), num(perImage), num(a.heads), num(n), num(n))
		mask := e.unsqueeze(e.unsqueeze(e.fs(hidden, perImage, n, n), 1), 0)
		scores = e.view(e.op("Add", scores, mask), num(-1), num(a.heads), num(n), num(n))
	}
	y := e.transpose(e.op("MatMul", e.softmax(scores, -1), v), 0, 2, 1, 3)
	y = e.view(y, e.dim(y, 0, e.o.Batch*perImage), e.dim(y, 1, n), num(a.attnDim()))
	return e.linear("output/dense", layer(i, "o"), y, a.model, a.attnDim())
}

// over is an integer division of sizes.
func (e *emitter) over(x size, n int) size {
	if x.wire == nil {
		return num(x.n / n)
	}
	return size{wire: e.castInt(e.op("Div", x.wire, e.i(n)))}
}
