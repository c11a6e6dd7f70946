package learn

import (
	"fmt"
	"math"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/verify"
)

// attendedShare bounds the cost of the attended statistics of a block by this share of the block's forward pass: only
// every stride-th query is used.
const attendedShare = 0.15

// collector adds the statistics of some blocks to a copy.
type collector struct {
	b      *bench
	tokens *graph.Value                  // bool [tokens, 1], false for padding; nil without a mask
	source *graph.Value                  // the same for the other side of a cross attention
	turned map[*graph.Value]*graph.Value // what a projection gives as [columns, tokens]
}

func newCollector(b *bench) *collector {
	c := &collector{b: b}
	for _, in := range b.lab.Signature.Inputs {
		if in.Role != verify.MaskOnes || len(in.Dims) != 2 {
			continue
		}
		v := b.g.Value(in.Name)
		if in.DType != onnxpb.TensorProto_BOOL {
			v = b.cast(v, onnxpb.TensorProto_BOOL)
		}
		if isEncoder(in.Name) {
			c.source = v
		} else {
			c.tokens = v
		}
	}
	return c
}

// keys returns the mask of the positions that a block attends to.
func (c *collector) keys(block *attention.Block) *graph.Value {
	if block.Kind == attention.Cross {
		return c.source
	}
	return c.tokens
}

// show replaces what a mask [batch, length] hides in rows [batch·length, n] by zeros, whatever it is: states at padded
// positions may be NaN.
func (c *collector) show(name string, rows, mask *graph.Value) *graph.Value {
	if mask == nil {
		return rows
	}
	column := c.b.rows(mask, 1)
	return c.b.op("Where", name+"/shown", []*graph.Value{column, rows, c.b.floats(name+"/zero", nil, 0)})
}

// withOne appends a constant 1 to rows [tokens, n].
func (c *collector) withOne(name string, rows *graph.Value) *graph.Value {
	return c.b.op("Pad", name+"/one", []*graph.Value{rows, c.b.ints(name+"/pads", 0, 0, 0, 1), c.b.floats(name+"/pad", nil, 1)})
}

// gram returns xᵀx of rows [.., tokens, n].
func (b *bench) gram(name string, x *graph.Value, rank int) *graph.Value {
	perm := make([]int64, rank)
	for i := range perm {
		perm[i] = int64(i)
	}
	perm[rank-1], perm[rank-2] = perm[rank-2], perm[rank-1]
	t := b.op("Transpose", name+"/transposed", []*graph.Value{x}, graph.IntsAttr("perm", perm...))
	return b.op("MatMul", name+"/gram", []*graph.Value{t, x})
}

// inputRows returns the inputs of a projection as [tokens, n] with the 1 appended where the block has biases.
func (c *collector) inputRows(name string, p *attention.Projection, mask *graph.Value, one bool) (rows *graph.Value, n int, err error) {
	v, err := c.b.tap(p.Input)
	if err != nil {
		return nil, 0, err
	}
	if n, err = c.b.width(p.Input); err != nil {
		return nil, 0, err
	}
	if c.sequenceFirst(p.Input) {
		v = c.b.op("Transpose", name+"/batch_first", []*graph.Value{v}, graph.IntsAttr("perm", 1, 0, 2))
	}
	rows = c.b.rows(v, n)
	if one {
		rows = c.withOne(name, rows)
		n++
	}
	return c.show(name, rows, mask), n, nil
}

// sequenceFirst reports whether a value is [sequence, batch, channels]: its second axis is the batch of the tokens.
func (c *collector) sequenceFirst(v *graph.Value) bool {
	shape, ok := c.b.facts.Shape(v)
	if !ok || len(shape) != 3 {
		return false
	}
	for _, in := range c.b.lab.Signature.Inputs {
		first, ok := c.b.facts.Shape(c.b.g.Value(in.Name))
		if !ok || len(first) < 2 || in.Role == verify.PastCache {
			continue
		}
		if _, fixed := first[0].Const(); fixed {
			continue
		}
		if shape[0].Equal(first[0]) {
			return false
		}
		if shape[1].Equal(first[0]) {
			return true
		}
	}
	return false
}

// biased reports whether a block has a bias that a statistic must know of.
func biased(w *fusion.Weights) bool {
	return w.QueryBias != nil || w.KeyBias != nil || w.ValueBias != nil
}

// count adds up the tokens that a mask shows of rows, all when there is none.
func (c *collector) count(name string, rows, mask *graph.Value) {
	if mask == nil {
		shape := c.b.op("Shape", name+"/shape", []*graph.Value{rows})
		mask = c.b.op("Gather", name+"/length", []*graph.Value{shape, c.b.ints(name+"/first", 0)}, graph.IntAttr("axis", 0))
	}
	c.b.total(name, c.b.cast(mask, onnxpb.TensorProto_FLOAT))
}

// strideFor returns the stride over queries with which the attended statistics of a block cost at most attendedShare of
// its forward pass: per query they take heads·(n² + n·seq) multiplications, the pass about 12·n² + 2·n·seq.
func strideFor(heads, n, seq int) int {
	D, T, H := float64(n), float64(seq), float64(heads)
	return max(1, int(math.Ceil(H*(D*D+D*T)/(attendedShare*(12*D*D+2*D*T)))))
}

// rowInput names the input with the first of every stride-th query.
func rowInput(stride int) string { return fmt.Sprintf("learn/row/%d", stride) }

// firstRow is the first of every stride-th query in the run called at: it moves on from run to run, and from sweep to
// sweep, so that every position counts.
func firstRow(at, stride, length int) int64 {
	n := min(stride, length)
	return int64((at + at/n) % n)
}

// sampled is what every stride-th query attends to.
type sampled struct {
	p       *graph.Value // its probabilities, [batch, heads, queries, keys]
	ax      *graph.Value // A_h x, [batch, heads, queries, n]; zero for queries that are padding
	shown   *graph.Value // bool [batch, 1, queries, 1], false for padding; nil without a mask
	counted *graph.Value // the same as float, also without a mask
	// every takes the same queries of a value [tokens, width], as [queries, width].
	every func(v *graph.Value, width int) *graph.Value
}

// sample computes A_h x for x [batch·keys, n] and every stride-th row of p [batch, heads, queries, keys].
func (c *collector) sample(name string, p, x *graph.Value, n, stride int) sampled {
	b := c.b
	shape := b.op("Shape", name+"/shape", []*graph.Value{p})
	part := func(at ...int64) *graph.Value {
		return b.op("Gather", name+"/part", []*graph.Value{shape, b.ints(name+"/at", at...)}, graph.IntAttr("axis", 0))
	}
	concat := func(of ...*graph.Value) *graph.Value {
		return b.op("Concat", name+"/dims", of, graph.IntAttr("axis", 0))
	}
	one := b.ints(name+"/1", 1)
	x = b.op("Reshape", name+"/x", []*graph.Value{x, concat(part(0), one, part(3), b.ints(name+"/n", int64(n)))})
	start := b.input(rowInput(stride), onnxpb.TensorProto_INT64, 1)
	every := func(v *graph.Value) *graph.Value {
		return b.op("Slice", name+"/every", []*graph.Value{v, start, b.ints(name+"/end", math.MaxInt64), b.ints(name+"/axis", 2), b.ints(name+"/stride", int64(stride))})
	}
	// the queries of all heads are the rows of one product for each sequence
	p = every(p)
	rows := b.op("Reshape", name+"/queries", []*graph.Value{p, concat(part(0), one, b.ints(name+"/all", -1), part(3))})
	ax := b.op("MatMul", name+"/ax", []*graph.Value{rows, x})
	split := concat(part(0, 1), b.ints(name+"/each", -1, int64(n)))
	out := sampled{p: p, ax: b.op("Reshape", name+"/by_head_and_query", []*graph.Value{ax, split})}
	if c.tokens != nil {
		out.shown = every(b.op("Reshape", name+"/mask", []*graph.Value{c.tokens, concat(part(0), one, part(2), one)}))
		out.ax = b.op("Where", name+"/shown", []*graph.Value{out.shown, out.ax, b.floats(name+"/zero", nil, 0)})
		out.counted = b.cast(out.shown, onnxpb.TensorProto_FLOAT)
	} else {
		out.counted = every(b.op("ConstantOfShape", name+"/rows", []*graph.Value{concat(part(0), one, part(2), one)}, graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []float32{1}))))
	}
	out.every = func(v *graph.Value, width int) *graph.Value {
		v = b.op("Reshape", name+"/by_query", []*graph.Value{v, concat(part(0), one, part(2), b.ints(name+"/width", int64(width)))})
		return b.rows(every(v), width)
	}
	return out
}

// probabilities returns what enters the second product as [batch, heads, queries, keys], nil when it has another form.
func (c *collector) probabilities(name string, block *attention.Block) (*graph.Value, error) {
	if block.PV == nil || len(block.PV.In) == 0 || !block.PV.Is("MatMul") {
		return nil, nil
	}
	v := block.PV.In[0]
	l, ok := block.Scores[v]
	shape, ranked := c.b.facts.Shape(v)
	if !ok || !ranked {
		return nil, nil
	}
	p, err := c.b.tap(v)
	if err != nil {
		return nil, err
	}
	heads := int64(block.Heads)
	plain := l.Pure && l.Heads == block.Heads && l.Repeat == 1 && l.Inner == 1
	switch {
	case len(shape) == 4 && plain && l.Axis == 1 && l.Outer == 1:
		return p, nil
	case len(shape) == 3 && plain && l.Axis == 0: // [batch·heads, queries, keys]
		dims := c.b.op("Shape", name+"/merged", []*graph.Value{p})
		dims = c.b.op("Gather", name+"/rest", []*graph.Value{dims, c.b.ints(name+"/rest_at", 1, 2)}, graph.IntAttr("axis", 0))
		dims = c.b.op("Concat", name+"/split", []*graph.Value{c.b.ints(name+"/heads", -1, heads), dims}, graph.IntAttr("axis", 0))
		return c.b.op("Reshape", name+"/p", []*graph.Value{p, dims}), nil
	case len(shape) == 5 && shape[1].Mul(shape[2]).Equal(graph.Int(heads)): // [batch, KV heads, queries of each, queries, keys]
		dims := c.b.op("Shape", name+"/split", []*graph.Value{p})
		dims = c.b.op("Gather", name+"/rest", []*graph.Value{dims, c.b.ints(name+"/rest_at", 0, 3, 4)}, graph.IntAttr("axis", 0))
		first := c.b.op("Slice", name+"/batch", []*graph.Value{dims, c.b.ints(name+"/from", 0), c.b.ints(name+"/to", 1)})
		last := c.b.op("Slice", name+"/lengths", []*graph.Value{dims, c.b.ints(name+"/from", 1), c.b.ints(name+"/to", 3)})
		dims = c.b.op("Concat", name+"/merged", []*graph.Value{first, c.b.ints(name+"/heads", heads), last}, graph.IntAttr("axis", 0))
		return c.b.op("Reshape", name+"/p", []*graph.Value{p, dims}), nil
	}
	return nil, nil
}
