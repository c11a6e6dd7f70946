package learn

import (
	"context"
	"fmt"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// refit is a pass that takes the statistics for the output projection of one block: the Gram matrix of what its heads
// give now, g, and its product with what the block should give, y: the original's residual stream after the block, less
// what else is in that stream now. So the error that earlier blocks left there is corrected as far as this one can.
type refit struct {
	*pass
	block int
	rows  int  // of g, the appended 1 for the bias included
	out   int  // channels of y
	bias  bool // the last row is the bias
}

// refit sets up block i, with all blocks up to and including it in the second branch.
func (l *Lab) refit(i int) (*refit, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	r, err := b.refit(i)
	if err != nil {
		b.m.Close()
		return nil, fmt.Errorf("block %q: refit of the output: %w", l.Blocks[i].Name, err)
	}
	if r.pass, err = b.pass(); err != nil {
		return nil, err
	}
	return r, nil
}

func (b *bench) refit(i int) (*refit, error) {
	b.fork(i + 1)
	block := b.blocks[i]
	o := block.Output
	r := &refit{block: i, bias: o.Bias != nil}
	c := newCollector(b)
	var err error
	if r.rows, err = b.width(o.Projection.Input); err != nil {
		return nil, err
	}
	r.out = o.Columns
	contexts, err := b.tap(o.Projection.Input)
	if err != nil {
		return nil, err
	}
	g := b.rows(contexts, r.rows)
	if r.bias {
		g = c.withOne("refit/g", g)
		r.rows++
	}
	y, err := b.wanted(o)
	if err != nil {
		return nil, err
	}
	mask := c.tokens
	if c.sequenceFirst(o.Projection.Input) && mask != nil {
		mask = b.op("Transpose", "refit/mask", []*graph.Value{mask}, graph.IntsAttr("perm", 1, 0))
	}
	g, y = c.show("refit/g", g, mask), c.show("refit/y", y, mask)
	t := b.op("Transpose", "refit/transposed", []*graph.Value{g}, graph.IntsAttr("perm", 1, 0))
	b.sum("gram", b.op("MatMul", "refit/gram", []*graph.Value{t, g}), int64(r.rows), int64(r.rows))
	b.sum("cross", b.op("MatMul", "refit/cross", []*graph.Value{t, y}), int64(r.rows), int64(r.out))
	c.count("tokens", g, mask)
	return r, nil
}

// wanted is what a block should give, [tokens, channels]: what the original's residual stream has after it and the second
// branch's has not from elsewhere.
func (b *bench) wanted(o *attention.Output) (*graph.Value, error) {
	given := o.Projection.Output
	if o.Bias != nil {
		given = o.Bias.Node.Out[0]
	}
	stream := residual(given, b.facts)
	original := b.single(stream, stream)
	now, err := b.tap(stream)
	if err != nil {
		return nil, err
	}
	own, err := b.tap(given)
	if err != nil {
		return nil, err
	}
	rest := b.op("Sub", "refit/rest", []*graph.Value{b.rows(now, o.Columns), b.rows(own, o.Columns)})
	return b.op("Sub", "refit/y", []*graph.Value{b.rows(original, o.Columns), rest}), nil
}

// residual follows what a block gives to the residual stream that it is added to, through additions that nothing else
// reads in between (a parallel feed-forward part, then the stream). It is the value itself where none follows.
func residual(v *graph.Value, facts *graph.Facts) *graph.Value {
	last := v
	for at := v; len(at.Users()) == 1; {
		n := at.Users()[0].Node
		if n == nil || n.Graph != at.Graph {
			break
		}
		next := n.Out[0]
		switch {
		case n.Is("Add") && n.In[0].Const() == nil && n.In[1].Const() == nil:
			last = next
		case n.Is("Add"), n.Is("Identity"): // a constant is in both streams and drops out of the difference
		case n.Is("Reshape") && sameWidth(facts, at, next):
		default:
			return last
		}
		at = next
	}
	return last
}

// sameWidth reports whether two values have the same number of channels, known or equal.
func sameWidth(facts *graph.Facts, a, b *graph.Value) bool {
	x, okX := facts.Shape(a)
	y, okY := facts.Shape(b)
	return okX && okY && len(x) > 0 && len(y) > 0 && x[len(x)-1].Equal(y[len(y)-1])
}

// solve runs the batches and returns the output projection that fits best around the one that the block has now, in the
// order of fusion.Learned, with its bias.
func (r *refit) solve(ctx context.Context, batches []Batch, slots Slots, now *fusion.Learned, step func()) (*mat.Dense, []float64, error) {
	r.reset()
	for _, b := range batches {
		if _, err := r.run(ctx, b.Feeds, slots, nil); err != nil {
			return nil, nil, err
		}
		step()
	}
	w, o := r.lab.Weights[r.block], r.lab.Blocks[r.block].Output
	tokens := r.matrix("tokens")[0]
	order := make([]int, 0, r.rows) // rows of the weight by head and channel
	for _, rows := range o.Rows {
		order = append(order, rows...)
	}
	if r.bias {
		order = append(order, r.rows-1)
	}
	if len(order) != r.rows || tokens == 0 {
		return nil, nil, fmt.Errorf("block %q: refit of the output: %d rows for %d channels of heads, %g tokens", r.lab.Blocks[r.block].Name, r.rows, len(order), tokens)
	}
	all, crossed := r.matrix("gram"), r.matrix("cross")
	gram, cross := mat.NewSymDense(r.rows, nil), mat.NewDense(r.rows, r.out, nil)
	for i, a := range order {
		for j, b := range order[i:] {
			gram.SetSym(i, i+j, (all[a*r.rows+b]+all[b*r.rows+a])/2/tokens)
		}
		for j := range r.out {
			cross.Set(i, j, crossed[a*r.out+j]/tokens)
		}
	}
	have := mat.NewDense(r.rows, r.out, nil)
	weight, bias := w.Output, w.OutputBias
	if now != nil && now.Output != nil {
		weight = now.Output
	}
	if now != nil && now.OutputBias != nil {
		bias = now.OutputBias
	}
	rows, _ := weight.Dims()
	have.Slice(0, rows, 0, r.out).(*mat.Dense).Copy(weight)
	if r.bias {
		have.SetRow(rows, bias)
	}
	fit, err := fusion.RefitOutput(gram, cross, have, fusion.RefitRidge(gram))
	if err != nil {
		return nil, nil, fmt.Errorf("block %q: %w", r.lab.Blocks[r.block].Name, err)
	}
	out := mat.DenseCopyOf(fit.Slice(0, rows, 0, r.out))
	if !r.bias {
		return out, nil, nil
	}
	return out, fit.RawRowView(rows), nil
}
