package rewrite

import (
	"fmt"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// side is the key or the value half of a block's plan whose heads are projected in another graph, and there cached.
type side struct {
	change
	cache *attention.Cache
}

// filled lists what fills the caches of a block in this model, by projection. What fills those of several blocks is listed
// with the first.
func (e *editor) filled(bp fusion.BlockPlan) (order []*graph.Node, sides map[*graph.Node][]side) {
	all := changes(bp, natural(bp.Block.Heads))
	sides = map[*graph.Node][]side{}
	for i, fills := range [][]*attention.Fill{bp.Block.KeyFills, bp.Block.ValueFills} {
		for _, f := range fills {
			if f.Path.Operand.Graph.Model != e.g.Model || e.fills[f] {
				continue
			}
			e.fills[f] = true
			c := all[1+i]
			c.path, c.touched = f.Path, c.alters()
			n := f.Path.Projection.Node
			if sides[n] == nil {
				order = append(order, n)
			}
			sides[n] = append(sides[n], side{c, f.Cache})
		}
	}
	return order, sides
}

// fill rewrites the projections in this model that fill the caches of a block, which may lie in another.
func (e *editor) fill(bp fusion.BlockPlan, res *Result) error {
	e.of = bp.Block
	order, sides := e.filled(bp)
	for _, n := range order {
		var all []change
		for _, s := range sides[n] {
			if s.touched && len(s.path.PerHead) > 0 {
				return fmt.Errorf("%q differs from head to head at %v, so heads cannot be fused", s.path.PerHead[0].Value.Name, s.path.PerHead[0].Node)
			}
			all = append(all, s.change)
		}
		back := e.p.In(n.Graph)
		err := e.projection(all)
		back()
		if err != nil {
			return err
		}
		for _, s := range sides[n] {
			if !s.touched {
				continue
			}
			c, err := e.cache(s.change, s.cache, bp.Block.Name)
			if err != nil {
				return err
			}
			if c.Block = bp.Block.Name; !identity(c.Map) {
				res.add(*c)
			}
		}
	}
	return nil
}

// tieFill is fill for the tied reference.
func (e *editor) tieFill(bp fusion.BlockPlan) error {
	e.of = bp.Block
	order, sides := e.filled(bp)
	for _, n := range order {
		var all []change
		for _, s := range sides[n] {
			if s.touched {
				all = append(all, s.change)
			}
		}
		if len(all) == 0 {
			continue
		}
		if err := e.tie(all); err != nil {
			return err
		}
	}
	return nil
}
