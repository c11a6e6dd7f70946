package testmodels

import "onnx-dha/graph"

// mask4 makes attention_mask [B, T] a [B, 1, 1, T] tensor, as mask[:, None, None, :] is traced.
func (e *emitter) mask4(mask wire) wire { return e.unsqueeze(e.unsqueeze(mask, 1), 2) }

// inverted is the additive padding mask of BERT and its kin: (1 - m)·lowest, [B, 1, 1, T].
func (e *emitter) inverted(mask wire) wire {
	m := e.castFloat(e.mask4(mask))
	return e.op("Mul", e.op("Sub", e.f(1), m), e.lowest())
}

// visible is the causal and padding mask [B, 1, S, T], true where a query may look: a comparison of two Ranges.
func (e *emitter) visible(mask wire, seq, past, total size) wire {
	keys := e.unsqueeze(e.arange(num(0), total), 0)
	queries := e.unsqueeze(e.arange(past, e.plus(past, seq)), 1)
	causal := e.unsqueeze(e.unsqueeze(e.lessOrEqual(keys, queries), 0), 1)
	return e.op("And", causal, e.castBool(e.mask4(mask)))
}

// additive turns a visible mask into 0 and lowest.
func (e *emitter) additive(visible wire) wire { return e.op("Where", visible, e.f(0), e.lowest()) }

// hide puts lowest where a query may not look.
func (e *emitter) hide(visible, scores wire) wire { return e.op("Where", visible, scores, e.lowest()) }

// trilu is the additive causal and padding mask [B, 1, S, T] of transformers since 4.38: a Trilu of lowest, cleared
// where the cache positions allow, expanded over the batch, then filled where padding meets an open place.
func (e *emitter) trilu(mask wire, batch, seq, past, total size) wire {
	full := e.filled(e.shape(seq, total), e.lowestValue())
	upper := e.node("Trilu", []wire{full, e.i(1)}, graph.IntAttr("upper", 1))
	later := e.op("Greater", e.arange(num(0), total), e.reshape(e.arange(past, e.plus(past, seq)), e.is(-1, 1)))
	causal := e.op("Mul", upper, e.castFloat(later))
	causal = e.unsqueeze(e.unsqueeze(causal, 0), 1)
	causal = e.expand(causal, batch, num(1), num(-1), num(-1))
	open := e.op("Add", e.slice(causal, 3, num(0), total), e.castFloat(e.mask4(mask)))
	padding := e.castBool(e.op("Equal", open, e.f(0)))
	return e.op("Where", padding, e.lowest(), e.slice(causal, 3, num(0), total))
}

// traced makes the sizes that causal masks need: of the ids [B, S], of the past, and of attention_mask [B, T].
func (e *emitter) traced(ids, mask wire, pasts [][2]wire) (batch, seq, past, total size) {
	return e.dim(ids, 0, e.o.Batch), e.dim(ids, 1, e.o.Seq), e.pastSize(pasts), e.dim(mask, 1, e.totalStatic())
}

// added makes the additive causal and padding mask that all layers share, in the form that Options.Causal asks for.
func (e *emitter) added(ids, mask wire, pasts [][2]wire) wire {
	batch, seq, past, total := e.traced(ids, mask, pasts)
	if e.o.Causal == CausalTrilu {
		return e.trilu(mask, batch, seq, past, total)
	}
	return e.additive(e.visible(mask, seq, past, total))
}

// look makes the boolean one.
func (e *emitter) look(ids, mask wire, pasts [][2]wire) wire {
	_, seq, past, total := e.traced(ids, mask, pasts)
	return e.visible(mask, seq, past, total)
}

// buffer is the causal mask that eager GPT-2 and GPT-J keep as a boolean buffer [1, 1, MaxSeq, MaxSeq] and slice per
// layer to [1, 1, S, T].
func (e *emitter) buffer(q, k wire, seqAxis int) wire {
	n := e.o.MaxSeq
	lower := make([]bool, n*n)
	for i := range n {
		for j := range i + 1 {
			lower[i*n+j] = true
		}
	}
	buffer := e.habits.constant(e, "", graph.NewTensor("", int64s([]int{1, 1, n, n}), lower))
	seq := e.dim(q, seqAxis, e.o.Seq)
	total := e.dim(k, seqAxis, e.totalStatic())
	first := num(total.n - seq.n)
	if !e.o.Static {
		first = size{wire: e.op("Sub", total.wire, seq.wire)}
	}
	return e.slice(e.slice(buffer, 2, first, total), 3, num(0), total)
}

// totalStatic is the length that attention runs over in a static model.
func (e *emitter) totalStatic() int {
	if e.o.Cache {
		return e.o.Past + e.o.Seq
	}
	return e.o.Seq
}
