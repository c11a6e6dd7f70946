package learn

import (
	"context"
	"fmt"
	"maps"
	"math"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// attended says how Stats.Attended is taken, by far the dearest statistic.
type attended int

const (
	perHead attended = iota // one matrix per query head
	pooled                  // one matrix, the mean over heads, that all heads share
	none                    // the probabilities have no form that this package knows: Attended stays nil
)

// attendedLimit bounds the elements of the per-head matrices of one block; above it they are pooled.
const attendedLimit = 64 << 20

// attendedShare bounds the cost of the attended statistics of a block by this share of the block's forward pass: only
// every stride-th query is used.
const attendedShare = 0.15

// collector adds the statistics of some blocks to a copy.
type collector struct {
	b      *bench
	tokens *graph.Value // bool [tokens, 1], false for padding; nil without a mask
	source *graph.Value // the same for the other side of a cross attention
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

// layout is what the sums of one block are called and how they are shaped.
type layout struct {
	block    int
	n        int // length of x, the appended 1 included
	query    int // the same for the input of the queries; 0 when it is that of the keys
	attended attended
	stride   int
	scores   int // stride over queries of the statistics of scores; 0 without them
}

func (l layout) name(what string) string { return fmt.Sprintf("%d/%s", l.block, what) }

// biased reports whether a block has a bias that a statistic must know of.
func biased(w *fusion.Weights) bool {
	return w.QueryBias != nil || w.KeyBias != nil || w.ValueBias != nil
}

// add sets up the statistics of block i in the second branch.
func (c *collector) add(i int, seq int) (layout, error) {
	block, w := c.b.blocks[i], c.b.lab.Weights[i]
	l := layout{block: i}
	one := biased(w)
	mask := c.keys(block)
	x, n, err := c.inputRows(l.name("x"), block.Key.Projection, mask, one)
	if err != nil {
		return l, err
	}
	l.n = n
	c.b.sum(l.name("input"), c.b.gram(l.name("x"), x, 2), int64(n), int64(n))
	c.count(l.name("tokens"), x, mask)
	c.mean(l.name("mean"), x, n)
	if block.Query.Projection.Input != block.Key.Projection.Input {
		q, m, err := c.inputRows(l.name("q"), block.Query.Projection, c.tokens, one)
		if err != nil {
			return l, err
		}
		l.query = m
		c.b.sum(l.name("query"), c.b.gram(l.name("q"), q, 2), int64(m), int64(m))
		c.count(l.name("queries"), q, c.tokens)
	}
	v := x
	if block.Value.Projection.Input != block.Key.Projection.Input {
		if v, _, err = c.inputRows(l.name("v"), block.Value.Projection, mask, one); err != nil {
			return l, err
		}
	}
	if err := c.attend(&l, v, seq); err != nil {
		return l, err
	}
	return l, c.scores(&l, seq)
}

// count adds up the tokens that a mask shows of rows, all when there is none.
func (c *collector) count(name string, rows, mask *graph.Value) {
	if mask == nil {
		shape := c.b.op("Shape", name+"/shape", []*graph.Value{rows})
		mask = c.b.op("Gather", name+"/length", []*graph.Value{shape, c.b.ints(name+"/first", 0)}, graph.IntAttr("axis", 0))
	}
	c.b.total(name, c.b.cast(mask, onnxpb.TensorProto_FLOAT))
}

// mean adds up rows [tokens, n].
func (c *collector) mean(name string, rows *graph.Value, n int) {
	shape := c.b.op("Shape", name+"/shape", []*graph.Value{rows})
	length := c.b.op("Gather", name+"/length", []*graph.Value{shape, c.b.ints(name+"/first", 0)}, graph.IntAttr("axis", 0))
	dims := c.b.op("Concat", name+"/dims", []*graph.Value{c.b.ints(name+"/1", 1), length}, graph.IntAttr("axis", 0))
	ones := c.b.op("ConstantOfShape", name+"/ones", []*graph.Value{dims}, graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []float32{1})))
	c.b.sum(name, c.b.op("MatMul", name+"/sum", []*graph.Value{ones, rows}), 1, int64(n))
}

// strideFor returns the stride over queries with which the attended statistics of a block cost at most attendedShare of
// its forward pass: per query they take heads·(n² + n·seq) multiplications, the pass about 12·n² + 2·n·seq.
func strideFor(heads, n, seq int) int {
	D, T, H := float64(n), float64(seq), float64(heads)
	return max(1, int(math.Ceil(H*(D*D+D*T)/(attendedShare*(12*D*D+2*D*T)))))
}

// rowInput names the input with the first of every stride-th query.
func rowInput(stride int) string { return fmt.Sprintf("learn/row/%d", stride) }

// attend sets up E[(A_h x)ᵀ(A_h x)] for x [batch·keys, n].
func (c *collector) attend(l *layout, x *graph.Value, seq int) error {
	b, block := c.b, c.b.blocks[l.block]
	name := l.name("attended")
	p, err := c.probabilities(name, block)
	if err != nil || p == nil {
		l.attended = none
		return err
	}
	l.stride = strideFor(block.Heads, l.n, seq)
	if block.Heads*l.n*l.n > attendedLimit {
		l.attended = pooled
	}
	at := c.sample(name, p, x, l.n, l.stride)
	n := int64(l.n)
	b.total(l.name("rows"), at.counted)
	if l.attended == pooled {
		all := b.op("Reshape", name+"/all", []*graph.Value{at.ax, b.ints(name+"/all_shape", -1, n)})
		b.sum(name, b.gram(name, all, 2), n, n)
		return nil
	}
	heads := int64(block.Heads)
	byHead := b.op("Transpose", name+"/by_head", []*graph.Value{at.ax}, graph.IntsAttr("perm", 1, 0, 2, 3))
	flat := b.op("Reshape", name+"/flat", []*graph.Value{byHead, b.ints(name+"/flat_shape", heads, -1, n)})
	b.sum(name, b.gram(name, flat, 3), heads, n, n)
	return nil
}

// sampled is what every stride-th query attends to.
type sampled struct {
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
	out := sampled{ax: b.op("MatMul", name+"/ax", []*graph.Value{every(p), x})}
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

// stats divides the sums of one block by the tokens that they are over.
func (p *pass) stats(l layout, w *fusion.Weights) (*fusion.Stats, error) {
	s := &fusion.Stats{Tokens: p.matrix(l.name("tokens"))[0]}
	if s.Tokens == 0 {
		return nil, fmt.Errorf("no token of the calibration data is visible")
	}
	var err error
	if s.Input, err = symmetric(p.matrix(l.name("input")), l.n, s.Tokens); err != nil {
		return nil, err
	}
	s.Mean = p.matrix(l.name("mean"))
	for i := range s.Mean {
		s.Mean[i] /= s.Tokens
	}
	query := s.Input
	if l.query > 0 {
		if query, err = symmetric(p.matrix(l.name("query")), l.query, p.matrix(l.name("queries"))[0]); err != nil {
			return nil, err
		}
	}
	s.Query = queryStats(w, query)
	switch rows := 0.0; l.attended {
	case perHead:
		rows = p.matrix(l.name("rows"))[0]
		all := p.matrix(l.name("attended"))
		for h := range w.Heads {
			m, err := symmetric(all[h*l.n*l.n:(h+1)*l.n*l.n], l.n, rows)
			if err != nil {
				return nil, err
			}
			s.Attended = append(s.Attended, m)
		}
	case pooled:
		rows = p.matrix(l.name("rows"))[0]
		m, err := symmetric(p.matrix(l.name("attended")), l.n, rows*float64(w.Heads))
		if err != nil {
			return nil, err
		}
		s.Attended = []*mat.SymDense{m}
	}
	return s, p.scoreStats(l, w, s)
}

// symmetric returns x/tokens as a symmetric matrix.
func symmetric(x []float64, n int, tokens float64) (*mat.SymDense, error) {
	m := mat.NewSymDense(n, nil)
	for i := range n {
		for j := i; j < n; j++ {
			v := (x[i*n+j] + x[j*n+i]) / 2 / tokens
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, fmt.Errorf("the statistics hold %v: the model overflows on the calibration data, or they are no text that it knows", v)
			}
			m.SetSym(i, j, v)
		}
	}
	return m, nil
}

// queryStats returns E[q_hᵀq_h] = [W_h; b_h]ᵀ E[xᵀx] [W_h; b_h]: queries are linear in x, so no pass over them is needed.
func queryStats(w *fusion.Weights, input *mat.SymDense) []*mat.SymDense {
	n := input.SymmetricDim()
	rows, _ := w.Query.Dims()
	out := make([]*mat.SymDense, w.Heads)
	d := w.HeadDim
	for h := range out {
		m := mat.NewDense(n, d, nil)
		for i := range rows {
			for c := range d {
				m.Set(i, c, w.Query.At(i, h*d+c))
			}
		}
		if n > rows && w.QueryBias != nil {
			for c := range d {
				m.Set(rows, c, w.QueryBias[h*d+c])
			}
		}
		var half, full mat.Dense
		half.Mul(input, m)
		full.Mul(m.T(), &half)
		out[h] = mat.NewSymDense(d, nil)
		for i := range d {
			for j := i; j < d; j++ {
				out[h].SetSym(i, j, (full.At(i, j)+full.At(j, i))/2)
			}
		}
	}
	return out
}

// calibration is a pass that takes the statistics of some blocks, in a model whose first blocks have other weights.
type calibration struct {
	*pass
	layouts []layout
}

// calibration sets up the statistics of the given blocks on the second branch, in which the first forked blocks have the
// weights that are fed. seq is the length of the calibration samples.
func (l *Lab) calibration(forked, seq int, blocks ...int) (*calibration, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	b.fork(forked)
	c := newCollector(b)
	k := &calibration{}
	for _, i := range blocks {
		lay, err := c.add(i, seq)
		if err != nil {
			b.m.Close()
			return nil, fmt.Errorf("block %q: statistics: %w", l.Blocks[i].Name, err)
		}
		k.layouts = append(k.layouts, lay)
	}
	if k.pass, err = b.pass(); err != nil {
		return nil, err
	}
	return k, nil
}

// firstRow is the first of every stride-th query in the run called at: it moves on from run to run, and from sweep to
// sweep, so that every position counts.
func firstRow(at, stride, length int) int64 {
	n := min(stride, length)
	return int64((at + at/n) % n)
}

// collect runs the batches and returns the statistics of each block. Statistics of sampled queries take others in every
// sweep over the batches.
func (k *calibration) collect(ctx context.Context, batches []Batch, sweeps int, slots map[string]*ort.Tensor, step func()) ([]*fusion.Stats, error) {
	k.reset()
	for at := range sweeps * len(batches) {
		batch := batches[at%len(batches)]
		rows := map[string]*ort.Tensor{}
		for _, l := range k.layouts {
			if l.stride > 0 {
				rows[rowInput(l.stride)] = ort.FromInt64([]int64{firstRow(at, l.stride, batch.Length)}, 1)
			}
			if l.scores > 0 {
				maps.Copy(rows, sketches(l, k.lab.Weights[l.block], at, batch.Length))
			}
		}
		if _, err := k.run(ctx, batch.Feeds, slots, rows); err != nil {
			return nil, err
		}
		step()
	}
	var out []*fusion.Stats
	for _, l := range k.layouts {
		s, err := k.stats(l, k.lab.Weights[l.block])
		if err != nil {
			return nil, fmt.Errorf("block %q: %w", k.lab.Blocks[l.block].Name, err)
		}
		out = append(out, s)
	}
	return out, nil
}
