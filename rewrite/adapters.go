package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// adapters changes what is added to the projection of a path as the projection is changed: columns are mixed alike.
// Learned weights stand for the sum, so what was added becomes zero. Adapters of a projection that is packed again are
// changed with it.
func (e *editor) adapters(c change) error {
	if !c.touched || !c.alters() || e.repacked[c.path.Projection.Node] {
		return nil
	}
	for _, a := range c.path.Adapters {
		if c.path.Entry != c.path.Projection.Output {
			return fmt.Errorf("projection %v: its columns are interleaved, and %v adds to them", c.path.Projection.Node, a.Projection.Node)
		}
		own := c
		own.path, own.learned, own.learnedBias, own.single = a, nil, nil, false
		l := a.Wires[a.Projection.Output]
		r := own.along(l, nil)
		if c.learned != nil {
			r = make(rows, len(r))
		}
		if err := e.setWeight(a.Projection, a.Projection.Axis, r); err != nil {
			return err
		}
		if err := e.gemmBias(a.Projection, r); err != nil {
			return err
		}
		if err := e.wires(own); err != nil {
			return err
		}
	}
	return nil
}

// added are the adapters of paths that share a projection, each once, and the columns of them where those of the
// projection are r.
func added(changes []change, r rows) (list []*attention.Path, columns rows) {
	for _, c := range changes {
		for _, a := range c.path.Adapters {
			if !slices.ContainsFunc(list, func(b *attention.Path) bool { return a.Projection.Node == b.Projection.Node }) {
				list = append(list, a)
			}
		}
	}
	columns = slices.Clone(r)
	for i, ts := range columns {
		if slices.ContainsFunc(ts, func(x term) bool { return x.from != nil }) {
			columns[i] = nil
		}
	}
	return list, columns
}

// addend reports whether v carries columns of the projection of the changes, or of an adapter of it.
func addend(changes []change, v *graph.Value) bool {
	on := func(p *attention.Path) bool {
		_, ok := p.Wires[v]
		return ok
	}
	return slices.ContainsFunc(changes, func(c change) bool {
		return len(c.path.Adapters) > 0 && (on(c.path) || slices.ContainsFunc(c.path.Adapters, on))
	})
}
