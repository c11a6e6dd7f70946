package unfuse

import (
	"fmt"

	"onnx-dha/graph"
)

func init() {
	rows["com.microsoft.MultiHeadAttention"] = row{
		attrs:    []string{"num_heads", "mask_filter_value", "scale", "unidirectional"},
		required: 1, inputs: 8, outputs: 3, expand: multiHead(multiHeadInputs{bias: 3, mask: 4, scoreBias: 5, past: 6}),
	}
	rows["com.microsoft.DecoderMaskedMultiHeadAttention"] = row{
		attrs:    []string{"num_heads", "mask_filter_value", "scale", "past_present_share_buffer", "output_qk"},
		required: 1, inputs: 11, outputs: 3, expand: multiHead(multiHeadInputs{bias: 10, mask: 3, scoreBias: 4, past: 5, buffers: []int{7, 8, 9}}),
	}
}

// multiHeadInputs are the numbers of the inputs after query, key and value.
type multiHeadInputs struct {
	bias, mask, scoreBias, past int
	buffers                     []int // of caches in fixed buffers and of beams
}

// multiHead expands com.microsoft.MultiHeadAttention and its decoding form: query [B, S, D] with key and value
// [B, L, D], or [B, N, L, H] as they come out of a cache; key and value packed as [B, L, N, 2, H]; all packed as
// [B, S, N, 3, H]; a bias [Dq+Dk+Dv] of all three.
func multiHead(at multiHeadInputs) func(*writer) error {
	return func(w *writer) error {
		for _, a := range []string{"past_present_share_buffer", "output_qk"} {
			if w.n.Int(a, 0) != 0 {
				return fmt.Errorf("attribute %s is not expanded", a)
			}
		}
		for _, i := range at.buffers {
			if w.in(i) != nil {
				return fmt.Errorf("input %d (%q) of a cache in a fixed buffer is not expanded", i, w.in(i).Name)
			}
		}
		query := w.in(0)
		elem, err := w.elem(query)
		if err != nil {
			return err
		}
		shape, ok := w.facts.Shape(query)
		if !ok {
			return fmt.Errorf("the shape of the query %q is not known", query.Name)
		}
		p, err := w.multiHeadOperands(at.bias)
		if err != nil {
			return err
		}
		if w.n.Int("unidirectional", 0) != 0 && p.length != shape[1].String() {
			return fmt.Errorf("attribute unidirectional is not expanded for %s keys and %v queries", p.length, shape[1])
		}
		n := w.n.Int("num_heads", 0)
		k, v := p.k, p.v
		s := span{q: p.q, qAxis: 2, kAxis: 2}
		pastDim, newDim := "0", p.length
		if past := w.in(at.past); past != nil {
			if p.cached || w.in(at.past+1) == nil {
				return fmt.Errorf("a past comes with key and value of this step, and with past values")
			}
			s.past = w.length(past, 2)
			pastDim = w.describe(past, 2)
			k, v = w.joined(past, k), w.joined(w.in(at.past+1), v)
		}
		s.k, s.id = k, fmt.Sprint(shape[1], ";", pastDim)
		if newDim != shape[1].String() {
			s.id += ";" + newDim
		}
		bias, err := w.contribBias(at.scoreBias, at.mask, shape[0], s, elem)
		if err != nil {
			return err
		}
		context, _, err := w.attend(core{q: p.q, k: k, v: v, heads: n, kv: n, elem: elem, soft: wide(elem), scale: w.scaleOr(p.h), biases: bias})
		if err != nil {
			return err
		}
		w.result(0, w.fromHeads(context, n, p.hv))
		w.result(1, k)
		w.result(2, v)
		return nil
	}
}

// operands are queries, keys and values by heads, [B, N, S, H], [B, N, L, H] and [B, N, L, Hv].
type operands struct {
	q, k, v *graph.Value
	h, hv   int64
	cached  bool   // keys and values come out of a cache, with all their positions
	length  string // L
}

func (w *writer) multiHeadOperands(bias int) (*operands, error) {
	n := w.n.Int("num_heads", 0)
	ranks := [3]int{-1, -1, -1}
	for i := range ranks {
		if w.in(i) != nil {
			r, err := w.rank(w.in(i))
			if err != nil {
				return nil, err
			}
			ranks[i] = r
		}
	}
	p := &operands{}
	var err error
	width := func(i int) int64 { // channels of a head of input i
		if err != nil {
			return 0
		}
		var d int64
		if d, err = w.dim(w.in(i), ranks[i]-1); err == nil && ranks[i] == 3 {
			d, err = heads(fmt.Sprintf("input %d", i), d, n)
		}
		return d
	}
	p.h = width(0)
	p.length = w.describe(w.in(0), 1)
	switch ranks {
	case [3]int{5, -1, -1}:
		p.hv = p.h
	case [3]int{3, 5, -1}:
		p.hv, p.length = width(1), w.describe(w.in(1), 1)
	case [3]int{3, 3, 3}:
		p.hv, p.length = width(2), w.describe(w.in(1), 1)
	case [3]int{3, 4, 4}:
		p.hv, p.length, p.cached = width(2), w.describe(w.in(1), 2), true
	default:
		return nil, fmt.Errorf("query, key and value have %d, %d and %d axes, which is not a form that is expanded", ranks[0], ranks[1], ranks[2])
	}
	if err != nil {
		return nil, err
	}
	// part brings one of the three into heads, its bias added. It is [B, S, N·H] or, after unpacking, [B, S, N, H].
	part := func(i int, v *graph.Value, rank int, offset, h int64) *graph.Value {
		if w.in(bias) != nil && err == nil {
			dims := []int64{n * h}
			if rank == 4 {
				dims = []int64{n, h}
			}
			var b *graph.Value
			if b, err = w.stretch(bias, []string{"query_bias", "key_bias", "value_bias"}[i], offset, dims...); err == nil {
				v = w.op("Add", v, b)
			}
		}
		if rank == 4 {
			return w.transpose(v, 0, 2, 1, 3)
		}
		return w.toHeads(v, n, h)
	}
	switch {
	case ranks[0] == 5:
		each := [3]*graph.Value{}
		for i := range each {
			each[i] = part(i, w.pick(w.in(0), 3, int64(i)), 4, int64(i)*n*p.h, p.h)
		}
		p.q, p.k, p.v = each[0], each[1], each[2]
	case ranks[1] == 5:
		p.q = part(0, w.in(0), 3, 0, p.h)
		p.k = part(1, w.pick(w.in(1), 3, 0), 4, n*p.h, p.h)
		p.v = part(2, w.pick(w.in(1), 3, 1), 4, 2*n*p.h, p.hv)
	case p.cached:
		// The bias of keys and values is in the cache already.
		p.q, p.k, p.v = part(0, w.in(0), 3, 0, p.h), w.in(1), w.in(2)
	default:
		p.q = part(0, w.in(0), 3, 0, p.h)
		p.k = part(1, w.in(1), 3, n*p.h, p.h)
		p.v = part(2, w.in(2), 3, 2*n*p.h, p.hv)
	}
	return p, err
}
