package attention

import (
	"slices"

	"onnx-dha/graph"
)

// borrowed marks blocks that read the keys or values of an earlier block (layers that share them: cross-layer attention,
// YOCO): the earlier block owns the projection, and a rewrite of it lets the others see as many heads as before.
func borrowed(blocks []*Block) {
	owner := map[*graph.Value][]*Block{}
	for _, b := range blocks {
		for _, p := range []*Path{b.Query, b.Key, b.Value} {
			from := p.Projection.Output
			for _, o := range owner[from] {
				for _, other := range []*Path{o.Query, o.Key, o.Value} {
					if o != b && overlap(p, other) {
						b.fix("it reads heads of block %q, which owns their projection %q", o.Name, from.Name)
					}
				}
			}
			if !slices.Contains(owner[from], b) {
				owner[from] = append(owner[from], b)
			}
		}
	}
	// What looks like an adapter may be the values of an earlier block (value residuals, arXiv 2410.17897).
	for _, b := range blocks {
		for _, p := range []*Path{b.Query, b.Key, b.Value} {
			for _, a := range p.Adapters {
				for _, o := range owner[a.Projection.Output] {
					b.fix("heads of block %q, projected by %v, are added to its own", o.Name, a.Projection.Node)
				}
			}
		}
	}
}
