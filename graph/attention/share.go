package attention

import (
	"slices"

	"onnx-dha/graph"
)

// borrowed marks blocks that read the keys or values of an earlier block (layers that share them: cross-layer attention,
// YOCO): the earlier block owns the projection, and a rewrite of it lets the others see as many heads as before.
func borrowed(blocks []*Block) {
	owner := map[*graph.Node][]*Block{}
	for _, b := range blocks {
		for _, p := range []*Path{b.Query, b.Key, b.Value} {
			n := p.Projection.Node
			for _, o := range owner[n] {
				for _, other := range []*Path{o.Query, o.Key, o.Value} {
					if o != b && other.Projection.Node == n && overlap(p, other) {
						b.fix("it reads heads of block %q, which owns their projection %v", o.Name, n)
					}
				}
			}
			if !slices.Contains(owner[n], b) {
				owner[n] = append(owner[n], b)
			}
		}
	}
}
