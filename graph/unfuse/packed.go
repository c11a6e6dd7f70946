package unfuse

import (
	"fmt"

	"onnx-dha/graph"
)

func init() {
	rows["com.microsoft.Attention"] = row{
		attrs:    []string{"num_heads", "unidirectional", "qkv_hidden_sizes", "scale", "mask_filter_value", "do_rotary", "past_present_share_buffer", "rotary_embedding_dim"},
		required: 2, inputs: 6, outputs: 2, expand: packedAttention,
	}
	rows["com.microsoft.QAttention"] = row{
		attrs:    []string{"num_heads", "unidirectional", "scale", "mask_filter_value", "do_rotary", "past_present_share_buffer"},
		required: 5, inputs: 9, outputs: 2, expand: quantizedAttention,
	}
}

// packedAttention expands com.microsoft.Attention, whose projection of queries, keys and values is inside: input
// [B, S, D], weight [D, Dq+Dk+Dv], bias, mask, past [2, B, N, P, H], bias of the scores [B or 1, N or 1, S, T].
func packedAttention(w *writer) error {
	elem, err := w.elem(w.in(0))
	if err != nil {
		return err
	}
	return w.selfAttention(packedInputs{mask: 3, past: 4, bias: 5}, elem, func() *graph.Value {
		y := w.op("MatMul", w.in(0), w.in(1))
		if w.in(2) != nil {
			y = w.op("Add", y, w.in(2))
		}
		return y
	})
}

// quantizedAttention expands com.microsoft.QAttention: the same with an input and a weight of 8 bits, whose product is
// scaled by the scales of both (inputs 3 and 4).
func quantizedAttention(w *writer) error {
	elem, err := w.elem(w.in(3))
	if err != nil {
		return err
	}
	if elem != float32Type || w.in(2) == nil {
		return fmt.Errorf("scales of %v are not expanded, nor is an operator without bias", elem)
	}
	return w.selfAttention(packedInputs{mask: 5, past: 8, bias: -1}, elem, func() *graph.Value {
		y := w.cast(w.op("MatMulInteger", w.in(0), w.in(1), w.in(6), w.in(7)), elem)
		return w.op("Add", w.op("Mul", y, w.op("Mul", w.in(3), w.in(4))), w.in(2))
	})
}

// packedInputs are the numbers of the inputs after the projection's; -1: the operator has none.
type packedInputs struct{ mask, past, bias int }

// selfAttention writes the attention that follows a projection of all three, [B, S, Dq+Dk+Dv] of input 0 and the weight
// that is input 1.
func (w *writer) selfAttention(at packedInputs, elem elemType, project func() *graph.Value) error {
	for _, a := range []string{"do_rotary", "past_present_share_buffer"} {
		if w.n.Int(a, 0) != 0 {
			return fmt.Errorf("attribute %s is not expanded", a)
		}
	}
	x, weights := w.in(0), w.in(1)
	width, err := w.dim(weights, 1)
	if err != nil {
		return err
	}
	sizes, given := w.n.Ints("qkv_hidden_sizes")
	if !given || len(sizes) == 0 {
		sizes = []int64{width / 3, width / 3, width / 3}
	}
	if len(sizes) != 3 || min(sizes[0], sizes[2]) < 1 || sizes[0]+sizes[1]+sizes[2] != width || sizes[0] != sizes[1] {
		return fmt.Errorf("qkv_hidden_sizes %v do not fit a weight of %d columns", sizes, width)
	}
	n := w.n.Int("num_heads", 0)
	h, err := heads("the query", sizes[0], n)
	if err != nil {
		return err
	}
	hv, err := heads("the value", sizes[2], n)
	if err != nil {
		return err
	}
	shape, ok := w.facts.Shape(x)
	if !ok || len(shape) != 3 {
		return fmt.Errorf("input %q has a shape that is not known to be [batch, sequence, channels]", x.Name)
	}
	qkv := w.split(project(), 2, sizes...)
	q, k, v := w.toHeads(qkv[0], n, h), w.toHeads(qkv[1], n, h), w.toHeads(qkv[2], n, hv)
	past := w.in(at.past)
	s := span{q: q, qAxis: 2, kAxis: 2, past: w.pastLength(past, 3)}
	pastDim := "0"
	if past != nil {
		if h != hv {
			return fmt.Errorf("keys and values of different sizes (%d and %d) cannot share a cache", h, hv)
		}
		pastDim = w.describe(past, 3)
		k, v = w.joined(w.pick(past, 0, 0), k), w.joined(w.pick(past, 0, 1), v)
	}
	s.k, s.id = k, fmt.Sprint(shape[1], ";", pastDim)
	bias, err := w.contribBias(at.bias, at.mask, shape[0], s, elem)
	if err != nil {
		return err
	}
	context, _, err := w.attend(core{q: q, k: k, v: v, heads: n, kv: n, elem: elem, soft: wide(elem), scale: w.scaleOr(h), biases: bias})
	if err != nil {
		return err
	}
	w.result(0, w.fromHeads(context, n, hv))
	if w.wants(1) && !w.unpacked(w.n.Out[1], k, v) {
		w.result(1, w.concat(0, w.unsqueeze(k, 0), w.unsqueeze(v, 0)))
	}
	return nil
}

// unpacked hands keys and values to readers that take one of them out of the packed present, and reports whether there
// are no others.
func (w *writer) unpacked(present, k, v *graph.Value) bool {
	var handed []shunt
	for _, u := range present.Users() {
		n := u.Node
		if n == nil || !n.Is("Gather") || u.Index != 0 || n.Int("axis", 0) != 0 || n.Graph != w.n.Graph || len(n.Out) == 0 || n.Out[0] == nil {
			return false
		}
		index := n.Input(1).Const()
		if index == nil || len(index.Dims()) != 0 {
			return false
		}
		i, err := index.Int64s()
		if err != nil || i[0] < -2 || i[0] > 1 {
			return false
		}
		handed = append(handed, shunt{n.Out[0], []*graph.Value{k, v}[(i[0]+2)%2]})
	}
	w.results = append(w.results, handed...)
	return true
}

// contribBias lists what is added to the scores: the bias of the scores (input bias), then padding (input mask) merged
// with the causal mask.
func (w *writer) contribBias(bias, mask int, batch graph.Dim, s span, elem elemType) ([]*graph.Value, error) {
	soft := wide(elem)
	var out []*graph.Value
	if b := w.in(bias); b != nil {
		if r, err := w.rank(b); err != nil || r != 4 {
			return nil, fmt.Errorf("the bias of the scores %q is not known to have 4 axes", b.Name)
		}
		out = append(out, w.as(b, elem, soft))
	}
	pad, err := w.padding(w.in(mask), batch, s, soft, float64(w.n.Float("mask_filter_value", -10000)))
	if err != nil {
		return nil, err
	}
	if w.n.Int("unidirectional", 0) != 0 {
		if pad, err = w.causal(w.later(s), pad, soft); err != nil {
			return nil, err
		}
	}
	if pad != nil {
		out = append(out, pad)
	}
	return out, nil
}
