package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// Tie turns m into the tied reference of a plan: the original graph with other weights, in which all heads of one group
// carry the group's fused weights. A rewrite by the same plan must agree with it to rounding, so what differs beyond
// that is a fault of the rewrite; how far the tied reference is from the original is the drift that fusing heads costs.
// On an error m is unchanged.
func Tie(m *graph.Model, plan *fusion.Plan) error {
	e := newEditor(m.Graph, graph.Infer(m.Graph))
	for _, bp := range plan.Blocks {
		if bp.Block.QK.Graph.Model == m {
			if err := e.tieBlock(bp); err != nil {
				return fmt.Errorf("block %q: tied reference: %w", bp.Block.Name, err)
			}
		}
		if err := e.tieFill(bp); err != nil {
			return fmt.Errorf("block %q: tied reference of what fills its cache: %w", bp.Block.Name, err)
		}
	}
	if _, err := e.p.Apply(); err != nil {
		return fmt.Errorf("tied reference: %w", err)
	}
	return nil
}

func (e *editor) tieBlock(bp fusion.BlockPlan) error {
	b := bp.Block
	e.of = b
	paths := map[*graph.Node][]change{}
	var order []*graph.Node
	for _, c := range changes(bp, natural(b.Heads)) {
		if !c.alters() || c.path.Bare != "" {
			continue
		}
		n := c.path.Projection.Node
		if paths[n] == nil {
			order = append(order, n)
		}
		paths[n] = append(paths[n], c)
	}
	for _, n := range order {
		if err := e.tie(paths[n]); err != nil {
			return err
		}
	}
	return e.output(b, natural(b.Heads), bp.Learned)
}

// tie mixes the columns of one projection so that every head gets its group's fused weights.
func (e *editor) tie(changes []change) error {
	proj := changes[0].path.Projection
	r, biases := keep(proj.Columns), keep(proj.Columns)
	for _, c := range changes {
		for g, group := range c.Groups {
			for ch := range c.path.Columns[0] {
				for _, h := range group {
					r[c.path.Columns[h][ch]] = c.columns(g, ch, c.learned)
					biases[c.path.Columns[h][ch]] = c.columns(g, ch, c.learnedBias)
				}
			}
		}
	}
	if err := e.setWeight(proj, proj.Axis, r); err != nil {
		return err
	}
	adapters, adapted := added(changes, r)
	for _, a := range adapters {
		if err := e.setWeight(a.Projection, a.Projection.Axis, adapted); err != nil {
			return err
		}
		if err := e.gemmBias(a.Projection, adapted); err != nil {
			return err
		}
	}
	if err := e.gemmBias(proj, biases); err != nil {
		return err
	}
	done := map[*graph.Node]bool{}
	for _, c := range changes {
		for _, b := range c.path.Biases {
			if done[b.Node] {
				continue
			}
			t := b.Tensor
			bias := biases
			l := c.path.Wires[b.Node.Out[0]]
			var m *graph.Tensor
			var err error
			switch {
			case l.Pure:
				m, err = c.tiedBias(b, l)
			case t.Dims()[b.Axis] != int64(proj.Columns):
				return fmt.Errorf("bias %q has %d entries for %d columns", b.Value.Name, t.Dims()[b.Axis], proj.Columns)
			case !bias.trivial(proj.Columns):
				m, err = mix(t, b.Axis, bias)
			}
			if err != nil {
				return fmt.Errorf("bias %q: %w", b.Value.Name, err)
			}
			if m != nil {
				done[b.Node] = true
				e.setConstant(b.Value, m, b.Node, b.Input, b.Node, b.Input)
			}
		}
	}
	return nil
}

// tiedBias makes a bias on a wire of layout l in which every head has its group's values; nil when nothing changes.
func (c change) tiedBias(b attention.Side, l attention.Layout) (*graph.Tensor, error) {
	if c.learnedBias == nil {
		r := c.tied(l)
		if r.trivial(l.Len()) {
			return nil, nil
		}
		return mix(b.Tensor, b.Axis, r)
	}
	// The fused bias, given to every head of its group.
	each := change{path: c.path, learnedBias: c.learnedBias, Fusion: fusion.Identity(heads(c.path)), column: make([]int, heads(c.path))}
	for g, group := range c.Groups {
		for _, h := range group {
			each.column[h] = g
			if c.column != nil {
				each.column[h] = c.column[g]
			}
		}
	}
	return each.bias(b, l, nil)
}

// tied returns the entries of an axis with layout l on which every head has its group's fused values.
func (c change) tied(l attention.Layout) rows {
	m := c.Map()
	r := make(rows, 0, l.Len())
	for o := range l.Outer {
		for h := range l.Heads {
			group := c.Groups[m[h]]
			for rep := range l.Repeat {
				for i := range l.Inner {
					var ts []term
					for j, old := range group {
						ts = append(ts, term{at: ((o*l.Heads+old)*l.Repeat+rep)*l.Inner + i, weight: c.Weights[m[h]][j]})
					}
					r = append(r, ts)
				}
			}
		}
	}
	return slices.Clip(r)
}
