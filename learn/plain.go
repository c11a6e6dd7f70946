package learn

import (
	"fmt"
	"maps"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/quant"
	"onnx-dha/graph/unfuse"
)

// plain gives the blocks of a quantised model the weights that their codes stand for, as floats, which can be inputs of
// a copy and changed by degrees; done is false where no block is quantised. What lies outside the blocks stays as it is.
func plain(m *graph.Model, blocks []*attention.Block) (done bool, err error) {
	nodes := map[*graph.Node]bool{}
	for _, b := range blocks {
		done = done || quantised(b)
		maps.Copy(nodes, b.Nodes())
		for _, v := range constants(b) {
			nodes[v.Producer] = true
		}
	}
	if !done {
		return false, nil
	}
	if err := quant.Plain(m, func(n *graph.Node) bool { return nodes[n] }); err != nil {
		return false, fmt.Errorf("%s: weights as floats: %w", m.Path, err)
	}
	return true, nil
}

// quantised reports whether a weight or bias of a block is.
func quantised(b *attention.Block) bool {
	for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
		if p.Projection.Code != nil {
			return true
		}
	}
	return b.Output != nil && b.Output.Code != nil || slices.ContainsFunc(constants(b), func(v *graph.Value) bool { return v.Const() == nil })
}

// constants are the biases of a block.
func constants(b *attention.Block) []*graph.Value {
	var out []*graph.Value
	add := func(v *graph.Value, constant bool) {
		if v != nil && constant {
			out = append(out, v)
		}
	}
	for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
		add(p.Projection.GemmBias, p.Projection.BiasTensor != nil)
		for _, s := range p.Biases {
			add(s.Value, true)
		}
	}
	if o := b.Output; o != nil {
		add(o.GemmBias, o.BiasTensor != nil)
		if o.Bias != nil {
			add(o.Bias.Value, true)
		}
	}
	return out
}

// fingerprint is that of the model as the file has it.
func (l *Lab) fingerprint() (string, error) {
	if !l.plain {
		return fusion.Fingerprint(l.Blocks)
	}
	m, err := graph.Load(l.Path)
	if err != nil {
		return "", err
	}
	defer m.Close()
	if _, _, err := unfuse.Expand(m, nil); err != nil {
		return "", fmt.Errorf("%s: %w", m.Path, err)
	}
	return fusion.Fingerprint(attention.Find(m).Blocks)
}
