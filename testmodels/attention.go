package testmodels

// Pieces of TorchScript attention modules that several families share. Heads travel as [B, H, S, d].

// heads makes [B, S, n·d] into [B, n, S, d].
func (e *emitter) heads(x wire, batch, seq size, n int) wire {
	return e.transpose(e.view(x, batch, seq, num(n), num(e.a.headDim)), 0, 2, 1, 3)
}

// unheads makes [B, H, S, d] into [B, S, H·d].
func (e *emitter) unheads(x wire, batch, seq size) wire {
	return e.view(e.transpose(x, 0, 2, 1, 3), batch, seq, num(e.a.attnDim()))
}

// headScale is √(1/√d) computed from the shape of q, as TorchScript writes scaled_dot_product_attention: it is applied
// to both operands.
func (e *emitter) headScale(q wire) wire {
	last := e.op("Slice", e.op("Shape", q), e.is(-1), e.is(end.n))
	root := e.op("Sqrt", e.castFloat(last))
	return e.castFloat(e.op("Div", e.fs([]float32{1}, 1), root))
}

// sdpa is TorchScript's scaled_dot_product_attention on [B, H, S, d]: √s on q and on the transposed k. mask may be nil.
func (e *emitter) sdpa(q, k, v, mask wire) wire {
	s := e.headScale(q)
	kt := e.transpose(k, 0, 1, 3, 2)
	q = e.op("Mul", q, e.op("Sqrt", s))
	kt = e.op("Mul", kt, e.op("Sqrt", s))
	scores := e.op("MatMul", q, kt)
	if mask != nil {
		scores = e.op("Add", scores, mask)
	}
	return e.op("MatMul", e.softmax(scores, -1), v)
}

// eager is softmax(scale(Q·Kᵀ))·V with the scale where the options want it and the mask added or by Where: mask is an
// additive tensor for MaskAdd, a visible one for MaskWhere, or nil.
func (e *emitter) eager(q, k, v, mask wire) wire {
	if e.o.Scale == ScaleSqrt && e.o.Mask == MaskAdd {
		return e.sdpa(q, k, v, mask)
	}
	root := 1 / e.a.scale
	kt := e.transpose(k, 0, 1, 3, 2)
	switch e.o.Scale {
	case ScaleQuery:
		q = e.op("Mul", q, e.f(e.a.scale))
	case ScaleSqrt:
		s := e.headScale(q)
		q, kt = e.op("Mul", q, e.op("Sqrt", s)), e.op("Mul", kt, e.op("Sqrt", s))
	}
	scores := e.op("MatMul", q, kt)
	switch e.o.Scale {
	case ScaleDiv:
		scores = e.op("Div", scores, e.f(root))
	case ScaleMul:
		scores = e.op("Mul", scores, e.f(e.a.scale))
	}
	switch {
	case mask == nil:
	case e.o.Mask == MaskWhere:
		scores = e.hide(mask, scores)
	default:
		scores = e.op("Add", scores, mask)
	}
	return e.op("MatMul", e.softmax(scores, -1), v)
}

// repeatKV gives every query head its key or value head, as transformers' repeat_kv is traced: [B, KV, T, d] →
// [B, KV, r, T, d] → [B, H, T, d], every size read from the tensor.
func (e *emitter) repeatKV(x wire) wire {
	r := e.a.heads / e.a.kvHeads
	if r == 1 {
		return x
	}
	batch, kv := e.dim(x, 0, e.o.Batch), e.dim(x, 1, e.a.kvHeads)
	total, d := e.dim(x, 2, e.totalStatic()), e.dim(x, 3, e.a.headDim)
	x = e.expand(e.unsqueeze(x, 2), batch, kv, num(r), total, d)
	return e.view(x, batch, e.times(kv, num(r)), total, d)
}

// broadcastKV is attention in which the query heads of one key or value head lie on an axis behind it, so that products
// broadcast instead of repeating: q [B, KV, r, S, d] · kᵀ [B, KV, 1, d, T]. The mask is added.
func (e *emitter) broadcastKV(q, k, v, mask wire, batch, seq size) wire {
	r := e.a.heads / e.a.kvHeads
	q = e.view(q, batch, num(e.a.kvHeads), num(r), seq, num(e.a.headDim))
	kt := e.transpose(e.unsqueeze(k, 2), 0, 1, 2, 4, 3)
	scores := e.op("Add", e.op("Div", e.op("MatMul", q, kt), e.f(1/e.a.scale)), e.unsqueeze(mask, 1))
	context := e.op("MatMul", e.softmax(scores, -1), e.unsqueeze(v, 2))
	return e.view(context, batch, num(e.a.heads), seq, num(e.a.headDim))
}
