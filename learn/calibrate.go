package learn

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// attended says how Stats.Attended is taken, the dearest of the moments.
type attended int

const (
	perHead attended = iota // one matrix per query head
	pooled                  // one matrix, the mean over heads, that all heads share
	none                    // the probabilities have no form that this package knows: Attended stays nil
)

// attendedLimit bounds the elements of the per-head matrices of one block; above it they are pooled.
const attendedLimit = 64 << 20

// layout is what the sums of one block are called and how they are shaped.
type layout struct {
	block    int
	n        int // width of the projections' input
	turned   int // frequencies of the rotary embedding
	fixed    int // channels of all key heads that it does not turn
	cross    bool
	attended attended
	spread   bool
	stride   int
	scores   int // stride over queries of the statistics of scores; 0 without them
}

func (l layout) name(what string) string { return fmt.Sprintf("%d/%s", l.block, what) }

// add sets up the statistics of block i in the second branch.
func (c *collector) add(i, seq int) (l layout, err error) {
	block, w := c.b.blocks[i], c.b.lab.Weights[i]
	l = layout{block: i, cross: block.Kind == attention.Cross}
	if l.n, err = c.b.width(block.Key.Projection.Input); err != nil {
		return l, err
	}
	mask := c.keys(block)
	q, err := c.channels(l.name("q"), block.Query, w.QueryBias, c.tokens)
	if err != nil {
		return l, err
	}
	H, d := int64(w.Heads), int64(w.HeadDim)
	c.count(l.name("queries"), q.rows, c.tokens)
	c.b.sum(l.name("query"), c.products(l.name("query"), q.pick(nil), H, d), H, d, d)

	k, err := c.channels(l.name("k"), block.Key, w.KeyBias, mask)
	if err != nil {
		return l, err
	}
	c.count(l.name("tokens"), k.rows, mask)
	pairs, rest, err := fusion.Channels(w.Rotary, w.HeadDim)
	if err != nil {
		return l, err
	}
	K := int64(w.KVHeads)
	if l.turned = len(pairs); l.turned > 0 {
		var at []int
		for _, p := range pairs {
			for _, ch := range p {
				for h := range w.KVHeads {
					at = append(at, h*w.HeadDim+ch)
				}
			}
		}
		F := int64(l.turned)
		c.b.sum(l.name("turned"), c.products(l.name("turned"), k.pick(at), F, 2*K), F, 2*K, 2*K)
	}
	var fixed []int
	if l.fixed = len(rest) * w.KVHeads; l.fixed > 0 {
		for h := range w.KVHeads {
			for _, ch := range rest {
				fixed = append(fixed, h*w.HeadDim+ch)
			}
		}
		n, x := int64(l.fixed), k.pick(fixed)
		c.b.sum(l.name("fixed"), c.products(l.name("fixed"), x, 1, n), 1, n, n)
		c.b.sumAs(l.name("fixed_mean"), c.b.reduce("ReduceSum", l.name("fixed_mean/sum"), x, 1), n)
	}

	v, err := c.channels(l.name("v"), block.Value, w.ValueBias, mask)
	if err != nil {
		return l, err
	}
	n := int64(w.ValueHeads * w.ValueDim)
	c.b.sum(l.name("value"), c.products(l.name("value"), v.pick(nil), 1, n), 1, n, n)
	at, err := c.attend(&l, v.plain(nil), seq)
	if err != nil {
		return l, err
	}
	if at != nil && l.fixed > 0 && w.Heads*l.fixed*l.fixed <= attendedLimit {
		c.spread(&l, at, k.plain(fixed), w.Heads)
	}
	return l, c.scores(&l, seq)
}

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

// attend sets up E[(A_h v)ᵀ(A_h v)] and E[A_h v] for v [batch·keys, n], and returns the queries that were sampled, nil where
// the probabilities have no form that is known.
func (c *collector) attend(l *layout, v *graph.Value, seq int) (*sampled, error) {
	b, block, w := c.b, c.b.blocks[l.block], c.b.lab.Weights[l.block]
	name := l.name("attended")
	p, err := c.probabilities(name, block)
	if err != nil || p == nil {
		l.attended = none
		return nil, err
	}
	width := w.ValueHeads * w.ValueDim
	l.stride = strideFor(block.Heads, width, seq)
	if block.Heads*width*width > attendedLimit {
		l.attended = pooled
	}
	at := c.sample(name, p, v, width, l.stride)
	heads, n := int64(block.Heads), int64(width)
	b.total(l.name("rows"), at.counted)
	b.sumAs(l.name("attended_mean"), b.reduce("ReduceSum", name+"/sum", at.ax, 0, 2), heads, n)
	if l.attended == pooled {
		all := b.op("Reshape", name+"/all", []*graph.Value{at.ax, b.ints(name+"/all_shape", -1, n)})
		b.sumAs(name, b.gram(name, all, 2), 1, n, n)
		return &at, nil
	}
	byHead := b.op("Transpose", name+"/by_head", []*graph.Value{at.ax}, graph.IntsAttr("perm", 1, 0, 2, 3))
	flat := b.op("Reshape", name+"/flat", []*graph.Value{byHead, b.ints(name+"/flat_shape", heads, -1, n)})
	b.sum(name, b.gram(name, flat, 3), heads, n, n)
	return &at, nil
}

// signTable is the number of random signs that are fed for keys: no attention is as long.
const signTable = 1 << 16

const spreadInput = "learn/spread"

// spread sets up E_i Σ_j A_ij (k_j − k̄_i)ᵀ(k_j − k̄_i) for k [batch·keys, n] and the queries that were sampled: as the mean of
// the squares of rows Σ_j ξ_j √A_ij (k_j − k̄_i) with random signs ξ, one row for each query instead of one for each key.
func (c *collector) spread(l *layout, at *sampled, k *graph.Value, heads int) {
	b, name, n := c.b, l.name("spread"), int64(l.fixed)
	l.spread = true
	p := at.p
	if at.shown != nil { // what padding holds may be NaN
		p = b.op("Where", name+"/shown", []*graph.Value{at.shown, p, b.floats(name+"/zero", nil, 0)})
	}
	shape := b.op("Shape", name+"/shape", []*graph.Value{p})
	dim := func(axis int64) *graph.Value {
		return b.op("Gather", name+"/dim", []*graph.Value{shape, b.ints(name+"/at", axis)}, graph.IntAttr("axis", 0))
	}
	concat := func(of ...*graph.Value) *graph.Value {
		return b.op("Concat", name+"/dims", of, graph.IntAttr("axis", 0))
	}
	signs := b.input(spreadInput, onnxpb.TensorProto_FLOAT, signTable)
	signs = b.op("Slice", name+"/signs", []*graph.Value{signs, b.ints(name+"/from", 0), dim(3), b.ints(name+"/axis", 0)})
	y := b.op("Mul", name+"/signed", []*graph.Value{b.op("Sqrt", name+"/root", []*graph.Value{p}), signs})
	drift := b.op("Mul", name+"/drift", []*graph.Value{p, b.reduce("ReduceSum", name+"/sums", y, 3)})
	y = b.op("Sub", name+"/centred", []*graph.Value{y, drift})
	rows := b.op("Reshape", name+"/rows", []*graph.Value{y, concat(dim(0), b.ints(name+"/all", -1), dim(3))})
	k = b.op("Reshape", name+"/k", []*graph.Value{k, concat(dim(0), dim(3), b.ints(name+"/n", n))})
	x := b.op("MatMul", name+"/of_keys", []*graph.Value{rows, k})
	x = b.op("Reshape", name+"/split", []*graph.Value{x, concat(dim(0), dim(1), b.ints(name+"/each", -1, n))})
	x = b.op("Transpose", name+"/by_head", []*graph.Value{x}, graph.IntsAttr("perm", 1, 0, 2, 3))
	x = b.op("Reshape", name+"/flat", []*graph.Value{x, b.ints(name+"/flat_shape", int64(heads), -1, n)})
	b.sum(name, b.gram(name, x, 3), int64(heads), n, n)
}

// spreadSigns are those of one run.
func spreadSigns(run int) *ort.Tensor {
	rng := rand.New(rand.NewPCG(uint64(run), 0x59bead))
	x := make([]float32, signTable)
	for i := 0; i < len(x); i += 64 {
		for j, bits := 0, rng.Uint64(); j < 64; j, bits = j+1, bits>>1 {
			x[i+j] = 1 - 2*float32(bits&1)
		}
	}
	return ort.FromFloat32(x, signTable)
}

// stats divides the sums of one block by the tokens that they are over.
func (p *pass) stats(l layout, w *fusion.Weights) (*fusion.Stats, error) {
	s := &fusion.Stats{Tokens: p.matrix(l.name("tokens"))[0]}
	queries := p.matrix(l.name("queries"))[0]
	if s.Tokens == 0 || queries == 0 {
		return nil, fmt.Errorf("no token of the calibration data is visible")
	}
	var values, fixed []*mat.SymDense
	rows := 0.0
	if l.attended != none {
		rows = p.matrix(l.name("rows"))[0]
	}
	of, spread := w.ValueHeads*w.ValueDim, 0
	if l.spread {
		spread = w.Heads
	}
	for _, m := range []struct {
		what  string
		to    *[]*mat.SymDense
		count int
		n     int
		over  float64
	}{
		{"query", &s.Query, w.Heads, w.HeadDim, queries},
		{"turned", &s.Turned, l.turned, 2 * w.KVHeads, s.Tokens},
		{"fixed", &fixed, min(1, l.fixed), l.fixed, s.Tokens},
		{"value", &values, 1, of, s.Tokens},
		{"spread", &s.Spread, spread, l.fixed, rows},
		{"attended", &s.Attended, l.attended.matrices(w.Heads), of, rows * float64(w.Heads/max(1, l.attended.matrices(w.Heads)))},
	} {
		if m.count == 0 {
			continue
		}
		all := p.matrix(l.name(m.what))
		for h := range m.count {
			x, err := symmetric(all[h*m.n*m.n:(h+1)*m.n*m.n], m.n, m.over)
			if err != nil {
				return nil, err
			}
			*m.to = append(*m.to, x)
		}
	}
	s.Value = values[0]
	mean := func(what string, over float64) []float64 {
		x := p.matrix(l.name(what))
		for i := range x {
			x[i] /= over
		}
		return x
	}
	if l.fixed > 0 {
		s.Fixed, s.FixedMean = fixed[0], mean("fixed_mean", s.Tokens)
	}
	if l.attended != none {
		all := mean("attended_mean", rows)
		for h := range w.Heads {
			s.AttendedMean = append(s.AttendedMean, all[h*of:(h+1)*of])
		}
	}
	return s, p.scoreStats(l, w, s)
}

// matrices is the number of matrices of a block of so many query heads.
func (a attended) matrices(heads int) int {
	return map[attended]int{perHead: heads, pooled: 1}[a]
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

// calibration takes the statistics of some blocks, in a model whose first blocks have other weights. Its pass is made when
// the data are known: where no token is hidden nothing has to be masked, which is a good part of the cost.
type calibration struct {
	*pass
	lab         *Lab
	forked, seq int
	blocks      []int
	masked      bool
	layouts     []layout
}

// calibration sets up the statistics of the given blocks on the second branch, in which the first forked blocks have the
// weights that are fed. seq is the length of the calibration samples.
func (l *Lab) calibration(forked, seq int, blocks ...int) (*calibration, error) {
	return &calibration{lab: l, forked: forked, seq: seq, blocks: blocks}, nil
}

func (k *calibration) close() error {
	if k.pass == nil {
		return nil
	}
	return k.pass.close()
}

// prepare makes a pass that suits the batches, unless there is one.
func (k *calibration) prepare(batches []Batch) error {
	masked, err := k.lab.hidden(batches)
	if err != nil || k.pass != nil && (k.masked || !masked) {
		return err
	}
	if err := k.close(); err != nil {
		return err
	}
	b, err := k.lab.bench()
	if err != nil {
		return err
	}
	b.fork(k.forked)
	c := newCollector(b)
	if !masked {
		c.tokens, c.source = nil, nil
	}
	k.masked, k.layouts = masked, nil
	for _, i := range k.blocks {
		lay, err := c.add(i, k.seq)
		if err != nil {
			b.m.Close()
			return fmt.Errorf("block %q: statistics: %w", k.lab.Blocks[i].Name, err)
		}
		k.layouts = append(k.layouts, lay)
	}
	k.pass, err = b.pass()
	return err
}

// hidden reports whether a mask of a batch hides a token.
func (l *Lab) hidden(batches []Batch) (bool, error) {
	for _, in := range l.Signature.Inputs {
		if in.Role != verify.MaskOnes || len(in.Dims) != 2 {
			continue
		}
		for _, b := range batches {
			t := b.Feeds[in.Name]
			if t == nil {
				continue
			}
			x, err := t.Float64s()
			if err != nil {
				return false, err
			}
			if slices.Contains(x, 0) {
				return true, nil
			}
		}
	}
	return false, nil
}

// collect runs the batches and returns the statistics of each block. Statistics of sampled queries take others in every
// sweep over the batches.
func (k *calibration) collect(ctx context.Context, batches []Batch, sweeps int, slots map[string]*ort.Tensor, step func()) ([]*fusion.Stats, error) {
	if err := k.prepare(batches); err != nil {
		return nil, err
	}
	k.reset()
	for at := range sweeps * len(batches) {
		batch := batches[at%len(batches)]
		rows := map[string]*ort.Tensor{}
		for _, l := range k.layouts {
			if l.stride > 0 {
				rows[rowInput(l.stride)] = ort.FromInt64([]int64{firstRow(at, l.stride, batch.Length)}, 1)
			}
			if l.spread {
				rows[spreadInput] = spreadSigns(at)
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
