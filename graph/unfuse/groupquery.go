package unfuse

import (
	"fmt"

	"onnx-dha/graph"
)

func init() {
	rows["com.microsoft.GroupQueryAttention"] = row{
		attrs: []string{"num_heads", "kv_num_heads", "scale", "softcap", "do_rotary", "rotary_interleaved", "local_window_size",
			"smooth_softmax", "qk_output", "k_quant_type", "v_quant_type", "kv_cache_bit_width"},
		required: 1, inputs: 12, outputs: 3, expand: groupQuery, returns: true,
	}
}

// groupQuery expands com.microsoft.GroupQueryAttention: query [B, S, N·H] with key and value [B, S, G·H], or all packed
// as [B, S, (N+2·G)·H]; past [B, G, P, H]; a causal mask, and a window in front of it; rotary embedding inside.
//
// The operator takes from seqlens_k how much of each sequence's past is filled and writes what is new behind it. The
// expansion joins past and new keys as a whole, which is the same when the past holds nothing but filled positions; in a
// buffer it writes them in front of total_sequence_length, which is the same for sequences of one length.
func groupQuery(w *writer) error {
	for _, a := range []string{"qk_output", "kv_cache_bit_width"} {
		if w.n.Int(a, 0) != 0 {
			return fmt.Errorf("attribute %s is not expanded", a)
		}
	}
	for _, a := range []string{"k_quant_type", "v_quant_type"} {
		if t := w.n.Str(a, "NONE"); t != "NONE" {
			return fmt.Errorf("attribute %s (%s) is not expanded", a, t)
		}
	}
	query := w.in(0)
	elem, err := w.elem(query)
	if err != nil {
		return err
	}
	shape, ok := w.facts.Shape(query)
	if !ok || len(shape) != 3 {
		return fmt.Errorf("the query %q is not known to have 3 axes", query.Name)
	}
	n, g := w.n.Int("num_heads", 0), w.n.Int("kv_num_heads", 0)
	if n < 1 || g < 1 || n%g != 0 {
		return fmt.Errorf("%d query heads do not share %d key/value heads evenly", n, g)
	}
	width, err := w.dim(query, 2)
	if err != nil {
		return err
	}
	all := n
	if w.in(1) == nil {
		all = n + 2*g
	}
	h, err := heads("the query", width, all)
	if err != nil {
		return err
	}
	parts := []*graph.Value{query, w.in(1), w.in(2)}
	if w.in(1) == nil {
		parts = w.split(query, 2, n*h, g*h, g*h)
	} else if w.in(2) == nil {
		return fmt.Errorf("it has a key but no value")
	}
	q, k, v := w.toHeads(parts[0], n, h), w.toHeads(parts[1], g, h), w.toHeads(parts[2], g, h)
	past := w.in(3)
	if past != nil && w.in(4) == nil || past == nil && w.in(4) != nil {
		return fmt.Errorf("a past of keys and one of values come together")
	}
	s := span{q: q, qAxis: 2, kAxis: 2, past: w.pastLength(past, 2), id: fmt.Sprint(shape[1], ";0")}
	buffer := past != nil && oneBuffer(past, w.n.Out[min(1, len(w.n.Out)-1)])
	var total *graph.Value
	switch {
	case buffer && w.in(6) == nil:
		return fmt.Errorf("its caches are buffers, and nothing says how many positions are filled (total_sequence_length)")
	case buffer:
		total = w.reshape(w.cast(w.in(6), int64Type), 1)
		s.past = w.squeeze(w.op("Sub", total, w.length(q, 2)), 0)
		s.id = fmt.Sprint(shape[1], ";buffer ", w.in(6).Name)
		w.exp.assume(fmt.Sprintf("the same number of positions of the buffer %q is filled for all sequences of a batch", past.Name))
		w.exp.fixed = "its caches are buffers that GroupQueryAttention writes where they lie, at places that the caller counts"
	case past != nil:
		s.id = fmt.Sprint(shape[1], ";", w.describe(past, 2))
		w.exp.assume(fmt.Sprintf("every position of the past %q is filled (sequences of a batch of one length, no fixed buffer)", past.Name))
	}
	if w.n.Int("do_rotary", 0) != 0 {
		if q, k, err = w.groupRotary(s, q, k, n, g, h); err != nil {
			return err
		}
	}
	newK, newV := k, v
	switch {
	case buffer:
		places := w.unsqueeze(w.op("Add", w.count(w.length(q, 2)), s.past), 1) // [S, 1]
		places = w.op("Expand", places, w.op("Shape", k))
		newK, newV = w.writeInto(past, places, k), w.writeInto(w.in(4), places, v)
		k, v = w.op("Slice", newK, w.ints(0), total, w.ints(2)), w.op("Slice", newV, w.ints(0), total, w.ints(2))
	case past != nil:
		k, v = w.joined(past, k), w.joined(w.in(4), v)
		newK, newV = k, v
	}
	s.q, s.k = q, k
	soft := wide(elem)
	hidden := w.later(s)
	if window := w.n.Int("local_window_size", -1); window > 0 {
		hidden = w.outside(s, window)
	}
	mask, err := w.causal(hidden, nil, soft)
	if err != nil {
		return err
	}
	biases := []*graph.Value{mask}
	if b := w.in(10); b != nil {
		biases = append(biases, w.as(b, elem, soft))
	}
	sink, err := w.sink(n, elem, soft)
	if err != nil {
		return err
	}
	context, _, err := w.attend(core{
		q: q, k: k, v: v, heads: n, kv: g, elem: elem, soft: soft, scale: w.scaleOr(h), softcap: float64(w.n.Float("softcap", 0)), biases: biases, sink: sink,
	})
	if err != nil {
		return err
	}
	w.result(0, w.fromHeads(context, n, h))
	w.result(1, newK)
	w.result(2, newV)
	return nil
}

// writeInto puts new keys or values [B, G, S, H] into a buffer [B, G, C, H], at places of the form of what is new.
func (w *writer) writeInto(buffer, places, now *graph.Value) *graph.Value {
	return w.nodes("ScatterElements", 1, []*graph.Value{buffer, places, now}, graph.IntAttr("axis", 2))[0]
}

// sink is the score that heads may give to no key: that of input 11, one for each of n heads, or 0 for a smooth softmax;
// nil without one.
func (w *writer) sink(n int64, elem, soft elemType) (*graph.Value, error) {
	if v := w.in(11); v != nil {
		return w.reshape(w.as(v, elem, soft), 1, n, 1, 1), nil
	}
	if w.n.Int("smooth_softmax", 0) == 0 {
		return nil, nil
	}
	zero, err := w.number(soft, 0)
	if err != nil {
		return nil, err
	}
	return w.reshape(zero, 1, 1, 1, 1), nil
}

// groupRotary turns queries and new keys by the tables of inputs 7 and 8, at the positions of input 9 or those that
// follow the past.
func (w *writer) groupRotary(s span, q, k *graph.Value, n, g, h int64) (*graph.Value, *graph.Value, error) {
	cos, sin := w.in(7), w.in(8)
	if cos == nil || sin == nil {
		return nil, nil, fmt.Errorf("it turns queries and keys (do_rotary) without tables of cos and sin")
	}
	half, err := w.dim(cos, 1)
	if err != nil {
		return nil, nil, err
	}
	if 2*half > h {
		return nil, nil, fmt.Errorf("the table %q turns %d channels of heads that have %d", cos.Name, 2*half, h)
	}
	positions := w.in(9)
	if positions != nil {
		// The kernel takes the first position of a prompt and counts on from there.
		w.exp.assume(fmt.Sprintf("the positions %q of a sequence follow each other", positions.Name))
	} else {
		positions = w.memo("positions "+s.id, func() *graph.Value {
			rows := w.count(w.length(s.q, s.qAxis))
			if s.past != nil {
				rows = w.op("Add", rows, s.past)
			}
			return w.unsqueeze(rows, 0)
		})
	}
	t := w.lookUp(cos, sin, positions)
	interleaved := w.n.Int("rotary_interleaved", 0) != 0
	return w.rotate(q, t, 1, n, h, half, interleaved), w.rotate(k, t, 1, g, h, half, interleaved), nil
}

// oneBuffer reports whether past and present are declared with the same length.
func oneBuffer(past, present *graph.Value) bool {
	if present == nil || past.Info == nil || present.Info == nil {
		return false
	}
	a, b := past.Info.GetType().GetTensorType().GetShape().GetDim(), present.Info.GetType().GetTensorType().GetShape().GetDim()
	if len(a) != 4 || len(b) != 4 {
		return false
	}
	return a[2].GetDimParam() == b[2].GetDimParam() && a[2].GetDimValue() == b[2].GetDimValue() && (a[2].GetDimParam() != "" || a[2].GetDimValue() > 0)
}
