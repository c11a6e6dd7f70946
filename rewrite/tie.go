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
		paths := map[*graph.Node][]change{}
		var order []*graph.Node
		for _, c := range []change{{path: bp.Block.Key, Fusion: bp.Key}, {path: bp.Block.Value, Fusion: bp.Value}} {
			if c.IsIdentity() {
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
				return fmt.Errorf("block %q: tied reference: %w", bp.Block.Name, err)
			}
		}
	}
	if _, err := e.p.Apply(); err != nil {
		return fmt.Errorf("tied reference: %w", err)
	}
	return nil
}

// tie mixes the columns of one projection so that every head gets its group's fused weights.
func (e *editor) tie(changes []change) error {
	proj := changes[0].path.Projection
	r := keep(proj.Columns)
	for _, c := range changes {
		for g, group := range c.Groups {
			for ch := range c.path.Columns[0] {
				var ts []term
				for j, h := range group {
					ts = append(ts, term{c.path.Columns[h][ch], c.Weights[g][j]})
				}
				for _, h := range group {
					r[c.path.Columns[h][ch]] = ts
				}
			}
		}
	}
	if err := e.setWeight(proj, proj.Axis, r); err != nil {
		return err
	}
	if err := e.gemmBias(proj, r); err != nil {
		return err
	}
	done := map[*graph.Node]bool{}
	for _, c := range changes {
		for _, b := range c.path.Biases {
			if done[b.Node] {
				continue
			}
			t := b.Value.Const()
			bias := r
			if l := c.path.Wires[b.Node.Out[0]]; l.Pure {
				bias = c.tied(l)
			} else if t.Dims()[b.Axis] != int64(proj.Columns) {
				return fmt.Errorf("bias %q has %d entries for %d columns", b.Value.Name, t.Dims()[b.Axis], proj.Columns)
			}
			if len(bias) == proj.Columns && bias.trivial(proj.Columns) {
				continue
			}
			m, err := mix(t, b.Axis, bias)
			if err != nil {
				return fmt.Errorf("bias %q: %w", b.Value.Name, err)
			}
			done[b.Node] = true
			e.setConstant(b.Value, m, b.Node, b.Input, b.Node, b.Input)
		}
	}
	return nil
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
						ts = append(ts, term{((o*l.Heads+old)*l.Repeat+rep)*l.Inner + i, c.Weights[m[h]][j]})
					}
					r = append(r, ts)
				}
			}
		}
	}
	return slices.Clip(r)
}
