package attention

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

// An adapter is a second projection whose output is added to that of the first, column by column: the up-projection B of
// a low-rank adapter that was not merged, x·W + (x·A)·B·s (Hu et al. 2021, arXiv 2106.09685). What mixes the columns of
// the first mixes those of the second in the same way, since both meet in a sum.

// addends separates the projections that an operand is the sum of: the one with the most input features, and the others
// as adapters of it, traced to the operand. why is not empty where one of them gives other columns to it than the first.
func addends(f *survey, found []*Projection, operand *graph.Value) (main *Projection, adapters []*Path, why string) {
	rows := func(p *Projection) int64 { return p.Tensor.Dims()[1-p.Axis] }
	main = found[0]
	for _, p := range found[1:] {
		if rows(p) > rows(main) {
			main = p
		}
	}
	if len(found) == 1 {
		return main, nil, ""
	}
	t, err := newTracer(f, main.Output, -1, false)
	if err != nil {
		return main, nil, err.Error()
	}
	s := t.at(operand)
	for _, p := range found {
		if p == main {
			continue
		}
		at, err := newTracer(f, p.Output, -1, false)
		if err != nil {
			return main, nil, err.Error()
		}
		if as := at.at(operand); s == nil || as == nil || p.Columns != main.Columns || !sameLabels(t.labels, s, at.labels, as) {
			return main, nil, fmt.Sprintf("the sum of %v and %v, which do not add up column by column", main.Node, p.Node)
		}
		adapters = append(adapters, &Path{Projection: p, tracer: at})
	}
	return main, adapters, ""
}

// sameLabels reports whether two samples name the same columns everywhere.
func sameLabels(l *labels, s *sample, m *labels, o *sample) bool {
	if !slices.Equal(s.shape, o.shape) || !slices.Equal(s.stored, o.stored) || len(s.data) != len(o.data) {
		return false
	}
	for i := range s.data {
		if !slices.Equal(l.set(s.data[i]), m.set(o.data[i])) {
			return false
		}
	}
	return true
}

// placeAdapters describes the adapters' ways up to where they meet that of p, whose tracer is t.
func (p *Path) placeAdapters(t *tracer) *stop {
	for _, a := range p.Adapters {
		own := a.tracer
		for _, n := range own.nodes {
			if !slices.Contains(p.Nodes, n) {
				a.Nodes = append(a.Nodes, n)
				continue
			}
			for _, x := range n.In {
				if x == nil || own.memo[x] == nil || t.memo[x] != nil || x == a.Operand {
					continue
				}
				if a.Operand != nil {
					return &stop{n, x, fmt.Sprintf("what %v adds to the projection meets it twice", a.Projection.Node)}
				}
				a.Operand = x
			}
		}
		a.Down, _ = projectionOf(own.facts, a.Projection.Input.Producer)
		if a.Operand == nil {
			return &stop{a.Projection.Node, a.Projection.Output, "what it adds to another projection does not meet that one"}
		}
		a.Factor = own.memo[a.Operand].scale
		if st := a.place(own, p.Columns); st != nil {
			return st
		}
		if sides := append(a.PerHead, a.Biases...); len(sides) > 0 {
			return &stop{sides[0].Node, sides[0].Value, "it differs from head to head on the way of an adapter"}
		}
	}
	return nil
}

// adapted reports whether v is what an adapter adds.
func (p *Path) adapted(v *graph.Value) bool {
	return slices.ContainsFunc(p.Adapters, func(a *Path) bool { return a.tracer.memo[v] != nil })
}
