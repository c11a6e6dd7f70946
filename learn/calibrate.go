package learn

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
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
