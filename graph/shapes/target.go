package shapes

import (
	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// targets gives, by operator, a constant target in place of a computed one; nil where there is none.
var targets = map[string]func(n *graph.Node, in, target []graph.Dim) []int64{"Reshape": reshaped, "Expand": expanded}

// target makes the second operand of a Reshape or Expand a constant where it can be one.
func (r *reducer) target(n *graph.Node, s *scope) {
	fixed := targets[n.OpType]
	if fixed == nil || !n.Is(n.OpType) || len(n.In) < 2 || n.In[1] == nil {
		return
	}
	in, ok := r.facts.Shape(n.In[0])
	k, ok2 := r.facts.Known(n.In[1])
	if !ok || !ok2 || k.Floats != nil || len(k.Shape) != 1 {
		return
	}
	if _, numbers, ok := describe(onnxpb.TensorProto_INT64, k); !ok || numbers != nil {
		return // one that is constant already is left to elements
	}
	target := fixed(n, in, k.Ints)
	if target == nil {
		return
	}
	r.p.SetInput(n, 1, r.constant(s, onnxpb.TensorProto_INT64, k.Shape, target))
	if n.Is("Reshape") && n.Attr("allowzero") != nil {
		r.p.RemoveAttr(n, "allowzero")
	}
	r.res.Targets++
	r.changed = true
}

// reshaped is a constant target of a Reshape, nil when there is none. A dimension that stays where it is is 0, "as the
// input has it": also where it is empty, with and without allowzero. One other dimension may be -1, "what is left", as long
// as all the rest are numbers: were one of them empty, there would be no telling.
func reshaped(n *graph.Node, in, target []graph.Dim) []int64 {
	out := make([]int64, len(target))
	left, zeros, open := -1, 0, 0
	for i, d := range target {
		c, constant := d.Const()
		switch {
		case constant && c == 0 && n.Int("allowzero", 0) != 0:
			return nil // an empty dimension, which 0 means no longer beside those that are kept
		case constant:
			out[i] = c
			if c < 0 {
				open++
			}
			if c == 0 {
				zeros++
			}
		case i < len(in) && d.Equal(in[i]):
			zeros++
		default:
			if left >= 0 {
				return nil
			}
			left, out[i] = i, -1
		}
	}
	if left >= 0 && zeros+open > 0 {
		return nil
	}
	return out
}

// expanded is a constant target of an Expand, nil when there is none: 1 stands for the dimension of the input.
func expanded(_ *graph.Node, in, target []graph.Dim) []int64 {
	out := make([]int64, len(target))
	for i, d := range target {
		c, constant := d.Const()
		at := i - len(target) + len(in)
		switch {
		case constant:
			out[i] = c
		case at >= 0 && d.Equal(in[at]):
			out[i] = 1
		default:
			return nil
		}
	}
	return out
}
