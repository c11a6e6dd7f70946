package unfuse

import (
	"fmt"
	"math"

	"onnx-dha/graph"
)

func init() {
	rows["Attention"] = row{
		attrs:    []string{"is_causal", "q_num_heads", "kv_num_heads", "scale", "softcap", "qk_matmul_output_mode", "softmax_precision"},
		required: 3, inputs: 7, outputs: 4, expand: standardAttention, returns: true,
	}
}

// standardAttention expands ai.onnx Attention (opsets 23 and 24): Q [B, N, S, H], K and V [B, G, L, H], or the same with
// merged heads [B, S, N·H]; a mask that broadcasts to [B, N, S, T], bool (true: visible) or numbers to add; past
// [B, G, P, H]; from opset 24 the filled length of each sequence's keys [B].
func standardAttention(w *writer) error {
	q, k, v := w.in(0), w.in(1), w.in(2)
	elem, err := w.elem(q)
	if err != nil {
		return err
	}
	soft := elem
	if p := w.n.Int("softmax_precision", 0); p != 0 {
		soft = elemType(p)
	}
	if elementSize[soft] == 0 {
		return fmt.Errorf("attribute softmax_precision (%v) is not expanded", soft)
	}
	rank, err := w.rank(q)
	if err != nil {
		return err
	}
	var n, g, h, hv int64
	at := 2
	sizes := func(dst *int64, v *graph.Value, axis int) {
		if err == nil {
			*dst, err = w.dim(v, axis)
		}
	}
	sizes(&h, q, rank-1)
	sizes(&hv, v, rank-1)
	switch rank {
	case 4:
		sizes(&n, q, 1)
		sizes(&g, k, 1)
	case 3:
		at = 1
		n, g = w.n.Int("q_num_heads", 0), w.n.Int("kv_num_heads", 0)
		if err == nil {
			h, err = heads("the query", h, n)
		}
		if err == nil {
			hv, err = heads("the value", hv, g)
		}
	default:
		return fmt.Errorf("the query %q has %d axes, want 3 or 4", q.Name, rank)
	}
	if err != nil {
		return err
	}
	if n < 1 || g < 1 || n%g != 0 {
		return fmt.Errorf("%d query heads do not share %d key/value heads evenly", n, g)
	}
	s := span{qAxis: 2, kAxis: 2}
	s.id = w.describe(q, at) + ";" + w.describe(k, at)
	if rank == 3 {
		q, k, v = w.toHeads(q, n, h), w.toHeads(k, g, h), w.toHeads(v, g, hv)
	}
	if past := w.in(4); past != nil {
		if w.in(5) == nil {
			return fmt.Errorf("it has a past of keys but none of values")
		}
		s.past = w.length(past, 2)
		s.id += ";" + w.describe(past, 2)
		k, v = w.joined(past, k), w.joined(w.in(5), v)
	}
	s.q, s.k = q, k
	mask, err := w.standardMask(s, soft)
	if err != nil {
		return err
	}
	blind, err := w.blind(mask, soft)
	if err != nil {
		return err
	}
	scale := 1 / math.Sqrt(float64(h))
	if w.n.Attr("scale") != nil {
		scale = float64(w.n.Float("scale", 0))
	}
	context, stages, err := w.attend(core{
		q: q, k: k, v: v, heads: n, kv: g, elem: elem, soft: soft, scale: scale, softcap: float64(w.n.Float("softcap", 0)), biases: []*graph.Value{mask}, blind: blind,
	})
	if err != nil {
		return err
	}
	if rank == 3 {
		context = w.fromHeads(context, n, hv)
	}
	w.result(0, context)
	w.result(1, k)
	w.result(2, v)
	if w.wants(3) {
		outputs := []*graph.Value{stages.product, stages.capped, stages.masked, stages.probabilities}
		mode := w.n.Int("qk_matmul_output_mode", 0)
		if mode < 0 || mode > 3 {
			return fmt.Errorf("attribute qk_matmul_output_mode (%d) is not expanded", mode)
		}
		w.result(3, w.as(outputs[mode], soft, elem))
	}
	return nil
}

// blind marks the queries that see no key, [.., S, 1], whose context is 0 (an erratum to opset 23 that the runtime follows):
// everything in their row of the mask is as low as can be. nil where neither the mask input nor filled lengths can hide a
// whole row (the causal mask alone leaves the first key).
func (w *writer) blind(mask *graph.Value, soft elemType) (*graph.Value, error) {
	if w.in(3) == nil && w.in(6) == nil {
		return nil, nil
	}
	low, err := w.number(soft, lowest(soft))
	if err != nil {
		return nil, err
	}
	most := w.nodes("ReduceMax", 1, []*graph.Value{mask, w.ints(-1)}, graph.IntAttr("keepdims", 1))[0]
	return w.op("LessOrEqual", most, low), nil
}

// standardMask is everything that is added to the scores: the mask input, the causal mask and the filled lengths.
func (w *writer) standardMask(s span, soft elemType) (*graph.Value, error) {
	mask := w.in(3)
	zero, err := w.number(soft, 0)
	if err != nil {
		return nil, err
	}
	low, err := w.number(soft, lowest(soft))
	if err != nil {
		return nil, err
	}
	var bias *graph.Value
	if mask != nil {
		shape, ok := w.facts.Shape(mask)
		if !ok || len(shape) < 2 || len(shape) > 4 {
			return nil, fmt.Errorf("the mask %q is not known to have 2 to 4 axes", mask.Name)
		}
		switch e := w.facts.Elem(mask); e {
		case boolType:
			bias = w.op("Where", mask, zero, low)
		default:
			if _, ok := elementSize[e]; !ok {
				return nil, fmt.Errorf("the elements of the mask %q are %v, want bool or a floating-point type", mask.Name, e)
			}
			bias = w.as(mask, e, soft)
		}
	}
	filled := w.in(6)
	rows, columns := (*graph.Value)(nil), (*graph.Value)(nil)
	if filled != nil {
		columns = w.columns(s)
		ends := w.unsqueeze(filled, 1, 2, 3) // [B, 1, 1, 1]
		hidden := w.op("Not", w.op("Less", columns, ends))
		if w.n.Int("is_causal", 0) != 0 {
			// Queries are the last of the filled positions.
			count := w.length(s.q, s.qAxis)
			rows = w.op("Add", w.unsqueeze(w.count(count), 1), w.op("Sub", ends, count))
			hidden = w.op("Or", hidden, w.op("Less", rows, columns))
		}
		if bias == nil {
			bias = zero
		}
		return w.op("Where", hidden, low, bias), nil
	}
	if w.n.Int("is_causal", 0) != 0 {
		return w.causal(w.later(s), bias, soft)
	}
	return bias, nil
}
