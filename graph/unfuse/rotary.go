package unfuse

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

func init() {
	rows["com.microsoft.RotaryEmbedding"] = row{
		attrs:    []string{"interleaved", "num_heads", "rotary_embedding_dim", "scale", "is_packed_batching"},
		required: 4, inputs: 4, outputs: 1, expand: func(w *writer) error { return rotaryEmbedding(w, 1, 2, 3) },
	}
	rows["RotaryEmbedding"] = row{
		attrs:    []string{"interleaved", "num_heads", "rotary_embedding_dim"},
		required: 3, inputs: 4, outputs: 1, expand: func(w *writer) error {
			// Before opset 23 ai.onnx has no such operator: tools that lose the domain mean the contrib one.
			if w.opset < 23 && w.in(3) != nil {
				return rotaryEmbedding(w, 1, 2, 3)
			}
			return rotaryEmbedding(w, 3, 1, 2)
		},
	}
}

// rotaryEmbedding expands RotaryEmbedding: x [B, S, N·H] or [B, N, S, H]; tables of cos and sin [max, r/2] that
// positions [B, S] (or the first position, [1]) are looked up in, or [B, S, r/2] without positions. The first r channels
// of each head are turned.
func rotaryEmbedding(w *writer, positions, cos, sin int) error {
	if w.n.Float("scale", 1) != 1 || w.n.Int("is_packed_batching", 0) != 0 {
		return fmt.Errorf("attributes scale and is_packed_batching are not expanded")
	}
	x := w.in(0)
	rank, err := w.rank(x)
	if err != nil {
		return err
	}
	tableRank, err := w.rank(w.in(cos))
	if err != nil {
		return err
	}
	half, err := w.dim(w.in(cos), tableRank-1)
	if err != nil {
		return err
	}
	turned := w.n.Int("rotary_embedding_dim", 0)
	if turned != 0 && turned != 2*half {
		return fmt.Errorf("rotary_embedding_dim is %d, but the table %q turns %d channels", turned, w.in(cos).Name, 2*half)
	}
	width, err := w.dim(x, rank-1)
	if err != nil {
		return err
	}
	n, h := w.n.Int("num_heads", 0), width
	if rank == 3 {
		if n == 0 {
			n = width / (2 * half)
		}
		if h, err = heads("the input", width, n); err != nil {
			return err
		}
	}
	if rank != 3 && rank != 4 || 2*half > h {
		return fmt.Errorf("input %q has %d axes and heads of %d channels, of which %d are turned", x.Name, rank, h, 2*half)
	}
	t, err := w.table(w.in(cos), w.in(sin), w.in(positions), func() (*graph.Value, error) {
		axis := int64(1)
		if rank == 4 {
			axis = 2
		}
		return w.length(x, axis), nil
	})
	if err != nil {
		return err
	}
	interleaved := w.n.Int("interleaved", 0) != 0
	if rank == 4 {
		w.result(0, w.rotate(x, t, 1, n, h, half, interleaved))
		return nil
	}
	y := w.rotate(w.reshape(x, 0, 0, n, h), t, 2, n, h, half, interleaved)
	w.result(0, w.reshape(y, 0, 0, n*h))
	return nil
}

// tables are cos and sin of every position, [B or 1, S, r/2].
type tables struct{ cos, sin *graph.Value }

// table looks positions up: [B, S] of them, or the first of length that follow each other.
func (w *writer) table(cos, sin, positions *graph.Value, length func() (*graph.Value, error)) (tables, error) {
	rank, err := w.rank(cos)
	if err != nil {
		return tables{}, err
	}
	if positions == nil {
		if rank != 3 {
			return tables{}, fmt.Errorf("without positions the table %q has %d axes, want 3", cos.Name, rank)
		}
		return tables{cos, sin}, nil
	}
	shape, ok := w.facts.Shape(positions)
	if !ok || rank != 2 {
		return tables{}, fmt.Errorf("the table %q has %d axes, want 2, and the shape of the positions %q must be known", cos.Name, rank, positions.Name)
	}
	if len(shape) == 1 { // the first position, the same for all sequences of the batch
		n, err := length()
		if err != nil {
			return tables{}, err
		}
		positions = w.unsqueeze(w.op("Add", w.count(n), positions), 0)
	}
	return w.lookUp(cos, sin, positions), nil
}

// lookUp takes the rows of tables at positions [B or 1, S].
func (w *writer) lookUp(cos, sin, positions *graph.Value) tables {
	get := func(v *graph.Value) *graph.Value {
		return w.memo("rows of "+v.Name+" at "+positions.Name, func() *graph.Value { return w.op("Gather", v, positions) })
	}
	return tables{get(cos), get(sin)}
}

// rotate turns the first 2·half channels of the heads of x, which is [B, S, N, H] with the heads on axis 2 or
// [B, N, S, H] with the heads on axis 1.
func (w *writer) rotate(x *graph.Value, t tables, axis, n, h, half int64, interleaved bool) *graph.Value {
	along := func(v *graph.Value) *graph.Value {
		return w.memo(fmt.Sprint(v.Name, " along ", axis), func() *graph.Value { return w.unsqueeze(v, axis) })
	}
	cos, sin := along(t.cos), along(t.sin)
	sizes := []int64{half, half}
	if interleaved {
		sizes = []int64{2 * half}
	}
	if h > 2*half {
		sizes = append(sizes, h-2*half)
	}
	parts := []*graph.Value{x}
	if len(sizes) > 1 {
		parts = w.split(x, 3, sizes...)
	}
	var a, b *graph.Value
	if interleaved {
		a, b = w.slice(parts[0], 3, 0, 2*half, 2), w.slice(parts[0], 3, 1, 2*half, 2)
	} else {
		a, b = parts[0], parts[1]
	}
	turned := []*graph.Value{
		w.op("Sub", w.op("Mul", a, cos), w.op("Mul", b, sin)),
		w.op("Add", w.op("Mul", a, sin), w.op("Mul", b, cos)),
	}
	if interleaved {
		pairs := w.concat(4, w.unsqueeze(turned[0], 4), w.unsqueeze(turned[1], 4))
		turned = []*graph.Value{w.reshape(pairs, 0, 0, 0, 2*half)}
	}
	if h > 2*half {
		turned = slices.Concat(turned, parts[len(parts)-1:])
	}
	if len(turned) == 1 {
		return turned[0]
	}
	return w.concat(3, turned...)
}
