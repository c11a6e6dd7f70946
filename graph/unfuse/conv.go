package unfuse

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

func init() {
	rows["Conv"] = row{
		attrs:    []string{"kernel_shape", "strides", "pads", "dilations", "group", "auto_pad"},
		required: 2, inputs: 3, outputs: 1, expand: pointwiseConv, applies: pointwiseNearProduct,
	}
	rows["com.microsoft.BiasSoftmax"] = row{attrs: []string{"axis", "is_inner_broadcast"}, required: 2, inputs: 2, outputs: 1, expand: biasSoftmax}
}

// pointwiseConv makes a convolution with a kernel of one element a projection of channels:
//
//	[B, C, ...] → [B, S, C] · [C, O] + [O] → [B, O, ...]
func pointwiseConv(w *writer) error {
	d := w.in(1).Const().Dims()
	rank := int64(len(d))
	if r, err := w.rank(w.in(0)); err != nil || int64(r) != rank {
		return fmt.Errorf("its input %q is not known to have %d axes", w.in(0).Name, rank)
	}
	perm := []int{1, 0}
	for a := 2; a < len(d); a++ {
		perm = append(perm, a)
	}
	m, err := w.part(1, "matrix", part{perm: perm, dims: []int64{d[1], d[0]}})
	if err != nil {
		return err
	}
	x := w.in(0)
	if rank > 3 {
		x = w.reshape(x, 0, 0, -1)
	}
	y := w.op("MatMul", w.transpose(x, 0, 2, 1), m)
	if w.in(2) != nil {
		y = w.op("Add", y, w.in(2))
	}
	y = w.transpose(y, 0, 2, 1)
	if rank > 3 {
		shape := w.op("Shape", w.in(0))
		y = w.op("Reshape", y, w.concat(0, w.ints(0, d[0]), w.slice(shape, 0, 2, rank, 1)))
	}
	w.result(0, y)
	return nil
}

// pointwiseNearProduct reports whether a convolution looks at one element and stands next to a product of two computed
// operands, as projections of an attention do. Others are left alone: there are many of them in networks of images.
func pointwiseNearProduct(n *graph.Node) bool {
	w := n.Input(1).Const()
	if w == nil || len(w.Dims()) < 3 || n.Int("group", 1) != 1 || len(n.Out) == 0 || n.Out[0] == nil || n.Input(0) == nil {
		return false
	}
	for _, k := range w.Dims()[2:] {
		if k != 1 {
			return false
		}
	}
	for attr, neutral := range map[string]int64{"strides": 1, "pads": 0} {
		list, _ := n.Ints(attr)
		if slices.ContainsFunc(list, func(x int64) bool { return x != neutral }) {
			return false
		}
	}
	if p := n.Str("auto_pad", "NOTSET"); p != "NOTSET" && p != "VALID" {
		return false
	}
	return leadsToProduct(n.Out[0]) || comesFromProduct(n.Input(0))
}

// carriers are operators that heads pass between a projection and a product.
var carriers = map[string]bool{
	"Reshape": true, "Transpose": true, "Split": true, "Slice": true, "Gather": true, "Squeeze": true, "Unsqueeze": true,
	"Identity": true, "Mul": true, "Div": true, "Add": true, "Cast": true, "Concat": true, "Flatten": true,
}

// computedProduct reports whether n multiplies two computed operands.
func computedProduct(n *graph.Node) bool {
	return (n.OpType == "MatMul" || n.OpType == "Einsum") && n.Input(0) != nil && n.Input(1) != nil && n.Input(0).Const() == nil && n.Input(1).Const() == nil
}

// maxCarriers bounds the search for a product.
const maxCarriers = 24

func leadsToProduct(v *graph.Value) bool {
	queue := []*graph.Value{v}
	for i := 0; i < len(queue) && i < maxCarriers; i++ {
		for _, u := range queue[i].Users() {
			switch {
			case u.Node == nil || u.Node.Graph != v.Graph:
			case computedProduct(u.Node):
				return true
			case carriers[u.Node.OpType]:
				for _, o := range u.Node.Out {
					if o != nil {
						queue = append(queue, o)
					}
				}
			}
		}
	}
	return false
}

func comesFromProduct(v *graph.Value) bool {
	for range maxCarriers {
		n := v.Producer
		if n == nil || !carriers[n.OpType] && !computedProduct(n) || n.Input(0) == nil {
			return false
		}
		if computedProduct(n) {
			return true
		}
		v = n.Input(0)
	}
	return false
}

// biasSoftmax expands com.microsoft.BiasSoftmax: softmax(x + bias) over the last axes from axis on. A bias that is
// repeated along axes inside the batch broadcasts by the rule of ONNX; one that is repeated outside them has no axis of
// size 1 there.
func biasSoftmax(w *writer) error {
	rank, err := w.rank(w.in(0))
	if err != nil {
		return err
	}
	other, err := w.rank(w.in(1))
	if err != nil {
		return err
	}
	axis := w.n.Int("axis", 1)
	if axis < 0 {
		axis += int64(rank)
	}
	if axis != int64(rank)-1 {
		return fmt.Errorf("a softmax over axes %d to %d is not expanded, only one over the last", axis, rank-1)
	}
	if w.n.Int("is_inner_broadcast", 1) != 0 && other != rank {
		return fmt.Errorf("its bias has %d axes for scores of %d, so what it is repeated along is not known", other, rank)
	}
	w.result(0, w.nodes("Softmax", 1, []*graph.Value{w.op("Add", w.in(0), w.in(1))}, graph.IntAttr("axis", axis))[0])
	return nil
}
