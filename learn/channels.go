package learn

import (
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// projected is what a projection gives to one kind of heads.
type projected struct {
	rows *graph.Value // [tokens, columns], of the projection
	// pick returns channels by token, [channels, tokens]: those given by their place among the channels of all heads side
	// by side, all when nil.
	pick func(at []int) *graph.Value
	// plain returns the same as [tokens, channels].
	plain func(at []int) *graph.Value
}

// channels reads heads where they are projected, bias included, before anything else happens to them; hidden tokens are
// zeros. Channels are read as rows, of which any are picked by copying whole rows.
func (c *collector) channels(name string, p *attention.Path, bias []float64, mask *graph.Value) (projected, error) {
	b := c.b
	v, err := b.tap(p.Projection.Output)
	if err != nil {
		return projected{}, err
	}
	if c.sequenceFirst(p.Projection.Output) {
		v = b.op("Transpose", name+"/batch_first", []*graph.Value{v}, graph.IntsAttr("perm", 1, 0, 2))
	}
	rows := b.rows(v, p.Projection.Columns)
	var columns []int64
	for _, head := range p.Columns {
		for _, col := range head {
			columns = append(columns, int64(col))
		}
	}
	added, err := addedBias(p, columns, bias)
	if err != nil {
		return projected{}, err
	}
	whole := len(columns) == p.Projection.Columns // and in order
	run := true
	for i, col := range columns {
		run = run && col == columns[0]+int64(i)
	}
	whole = whole && run
	// gather picks columns along an axis, adds what is added to them later on, and hides what the mask hides.
	gather := func(x *graph.Value, axis int64, at []int, dims ...int64) *graph.Value {
		from, some := columns, added
		if at != nil {
			from, some = nil, nil
			for _, i := range at {
				from = append(from, columns[i])
				if added != nil {
					some = append(some, added[i])
				}
			}
		}
		switch {
		case at == nil && whole:
		case at == nil && run:
			x = b.op("Slice", name+"/channels", []*graph.Value{x, b.ints(name+"/from", columns[0]), b.ints(name+"/to", columns[len(columns)-1]+1), b.ints(name+"/axis", axis)})
		default:
			x = b.op("Gather", name+"/channels", []*graph.Value{x, b.ints(name+"/at", from...)}, graph.IntAttr("axis", axis))
		}
		if some != nil {
			x = b.op("Add", name+"/biased", []*graph.Value{x, b.floats(name+"/bias", dims, some...)})
		}
		if mask != nil {
			shape := []int64{-1, -1}
			shape[axis] = 1
			m := b.op("Reshape", name+"/mask", []*graph.Value{mask, b.ints(name+"/mask_shape", shape...)})
			x = b.op("Where", name+"/shown", []*graph.Value{m, x, b.floats(name+"/zero", nil, 0)})
		}
		return x
	}
	if c.turned == nil {
		c.turned = map[*graph.Value]*graph.Value{}
	}
	n := func(at []int) int64 {
		if at == nil {
			return int64(len(columns))
		}
		return int64(len(at))
	}
	out := projected{rows: rows}
	out.pick = func(at []int) *graph.Value {
		t := c.turned[p.Projection.Output]
		if t == nil {
			t = b.op("Transpose", name+"/transposed", []*graph.Value{rows}, graph.IntsAttr("perm", 1, 0))
			c.turned[p.Projection.Output] = t
		}
		return gather(t, 0, at, n(at), 1)
	}
	out.plain = func(at []int) *graph.Value { return gather(rows, 1, at, n(at)) }
	return out, nil
}

// addedBias is what the path adds to the given columns after the projection has given them, nil for nothing: the bias of
// the block's weights less the part that a Gemm has added already.
func addedBias(p *attention.Path, columns []int64, bias []float64) ([]float32, error) {
	if len(p.Biases) == 0 {
		return nil, nil
	}
	var own []float64
	if t := p.Projection.BiasTensor; t != nil {
		var err error
		if own, err = t.Float64s(); err != nil {
			return nil, err
		}
	}
	out := make([]float32, len(columns))
	for i, col := range columns {
		x := bias[i]
		switch {
		case len(own) == 1:
			x -= own[0]
		case own != nil:
			x -= own[col]
		}
		out[i] = float32(x)
	}
	return out, nil
}

// products returns the Gram matrices [groups, n, n] of channels [groups·n, tokens], groups·n of them in order.
func (c *collector) products(name string, x *graph.Value, groups, n int64) *graph.Value {
	b := c.b
	x = b.op("Reshape", name+"/groups", []*graph.Value{x, b.ints(name+"/groups_shape", groups, n, -1)})
	t := b.op("Transpose", name+"/transposed", []*graph.Value{x}, graph.IntsAttr("perm", 0, 2, 1))
	return b.op("MatMul", name+"/gram", []*graph.Value{x, t})
}
