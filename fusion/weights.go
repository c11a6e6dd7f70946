package fusion

import (
	"fmt"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph/attention"
)

// Weights are the projections of one block as matrices, in the orientation and order of heads of Learned.
type Weights struct {
	Heads, KVHeads, ValueHeads int
	HeadDim, ValueDim          int
	KeyOf, ValueOf             []int // the key and value head of each query head
	Rotary                     attention.Rotary
	// Query is [model, Heads·HeadDim], Key [input, KVHeads·HeadDim], Value [input, ValueHeads·ValueDim]; Output is
	// [Heads·ValueDim, out], nil when no output projection was found.
	Query, Key, Value, Output                 *mat.Dense
	QueryBias, KeyBias, ValueBias, OutputBias []float64 // nil without a bias
}

// ReadWeights reads the projections of a block, widened to float64.
func ReadWeights(b *attention.Block) (*Weights, error) {
	w := &Weights{
		Heads: b.Heads, KVHeads: b.KVHeads, ValueHeads: b.ValueHeads, HeadDim: b.HeadDim, ValueDim: b.ValueDim,
		KeyOf: b.KeyOf, ValueOf: b.ValueOf, Rotary: b.Rotary,
	}
	for _, s := range []struct {
		what string
		path *attention.Path
		m    **mat.Dense
		bias *[]float64
	}{{"queries", b.Query, &w.Query, &w.QueryBias}, {"keys", b.Key, &w.Key, &w.KeyBias}, {"values", b.Value, &w.Value, &w.ValueBias}} {
		m, err := projectionMatrix(s.path.Projection)
		if err != nil {
			return nil, fmt.Errorf("block %q: %s: %w", b.Name, s.what, err)
		}
		if err := addAdapters(m, s.path); err != nil {
			return nil, fmt.Errorf("block %q: %s: %w", b.Name, s.what, err)
		}
		var cols []int
		for _, head := range s.path.Columns {
			cols = append(cols, head...)
		}
		rows, _ := m.Dims()
		out := mat.NewDense(rows, len(cols), nil)
		for j, c := range cols {
			for i := range rows {
				out.Set(i, j, m.At(i, c))
			}
		}
		*s.m = out
		if *s.bias, err = pathBias(s.path, cols); err != nil {
			return nil, fmt.Errorf("block %q: %s: %w", b.Name, s.what, err)
		}
	}
	if o := b.Output; o != nil {
		m, err := projectionMatrix(o.Projection)
		if err != nil {
			return nil, fmt.Errorf("block %q: output: %w", b.Name, err)
		}
		_, cols := m.Dims()
		w.Output = mat.NewDense(b.Heads*b.ValueDim, cols, nil)
		for h, rows := range o.Rows {
			for c, r := range rows {
				w.Output.SetRow(h*b.ValueDim+c, m.RawRowView(r))
			}
		}
		if o.Bias != nil {
			if w.OutputBias, err = o.Bias.Tensor.Float64s(); err != nil {
				return nil, fmt.Errorf("block %q: output bias: %w", b.Name, err)
			}
		}
	}
	return w, nil
}

// addAdapters adds the products A·B·s of a path's low-rank adapters to its weight [in, columns].
func addAdapters(w *mat.Dense, p *attention.Path) error {
	for _, a := range p.Adapters {
		if a.Down == nil || a.Down.Input != p.Projection.Input {
			return fmt.Errorf("%v adds to %v what is no projection of the same activations, so that no one weight stands for the sum", a.Projection.Node, p.Projection.Node)
		}
		down, err := projectionMatrix(a.Down)
		if err != nil {
			return err
		}
		up, err := projectionMatrix(a.Projection)
		if err != nil {
			return err
		}
		var product mat.Dense
		product.Mul(down, up)
		product.Scale(a.Factor, &product)
		w.Add(w, &product)
	}
	return nil
}

// projectionMatrix returns a projection's weight as [in, out].
func projectionMatrix(p *attention.Projection) (*mat.Dense, error) {
	t := p.Tensor
	x, err := t.Float64s()
	if err != nil {
		return nil, err
	}
	d := t.Dims()
	m := mat.NewDense(int(d[0]), int(d[1]), x)
	if p.Axis == 0 {
		m = mat.DenseCopyOf(m.T())
	}
	return m, nil
}

// pathBias adds up the constants that are added to the given columns of a path, nil when there are none.
func pathBias(p *attention.Path, cols []int) ([]float64, error) {
	var out []float64
	add := func(x []float64, at func(i int) int, sign float64) error {
		if out == nil {
			out = make([]float64, len(cols))
		}
		for i := range cols {
			k := at(i)
			if k < 0 || k >= len(x) {
				return fmt.Errorf("a bias of %d elements has no element %d", len(x), k)
			}
			out[i] += sign * x[k]
		}
		return nil
	}
	if g := p.Projection.GemmBias; g != nil {
		t := p.Projection.BiasTensor
		if t == nil {
			return nil, fmt.Errorf("the bias %q is computed, want a constant", g.Name)
		}
		x, err := t.Float64s()
		if err != nil {
			return nil, err
		}
		at := func(i int) int { return cols[i] }
		if len(x) == 1 {
			at = func(int) int { return 0 }
		}
		if err := add(x, at, 1); err != nil {
			return nil, err
		}
	}
	for _, b := range p.Biases {
		x, err := b.Tensor.Float64s()
		if err != nil {
			return nil, err
		}
		sign := 1.0
		if b.Node.Is("Sub") {
			sign = -1
		}
		var at func(i int) int
		switch l := p.Wires[b.Node.Out[0]]; {
		case len(x) == p.Projection.Columns:
			at = func(i int) int { return cols[i] }
		case l.Pure && len(x) == len(cols):
			at = func(i int) int { return i } // [heads, channels] after the split into heads
		default:
			return nil, fmt.Errorf("the bias %q has %d elements for %d columns", b.Value.Name, len(x), len(cols))
		}
		if err := add(x, at, sign); err != nil {
			return nil, err
		}
	}
	return out, nil
}
