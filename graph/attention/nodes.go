package attention

import (
	"slices"

	"onnx-dha/graph"
)

// Nodes returns the nodes that a block consists of, from its projections to its output projection, the side branches to
// caches, what reads the weights, and what fills its caches elsewhere included.
func (b *Block) Nodes() map[*graph.Node]bool {
	nodes := map[*graph.Node]bool{}
	add := func(list ...*graph.Node) {
		for _, n := range list {
			if n != nil {
				nodes[n] = true
			}
		}
	}
	add(b.QK, b.Softmax, b.PV)
	for v := range b.Scores {
		add(v.Producer)
	}
	for _, p := range []*Path{b.Query, b.Key, b.Value} {
		add(p.Nodes...)
		add(p.Tails...)
		add(p.Projection.Node, p.Projection.Reader)
		add(p.Projection.Nodes...)
		for _, a := range p.Adapters {
			add(a.Nodes...)
			add(a.Projection.Node, a.Projection.Reader)
			add(a.Projection.Nodes...)
		}
	}
	for _, f := range slices.Concat(b.KeyFills, b.ValueFills) {
		add(f.Path.Nodes...)
		add(f.Path.Tails...)
		add(f.Path.Projection.Node, f.Path.Projection.Reader)
		add(f.Path.Projection.Nodes...)
	}
	if o := b.Output; o != nil {
		add(o.Nodes...)
		add(o.Node, o.Reader)
		add(o.Projection.Nodes...)
	}
	return nodes
}
