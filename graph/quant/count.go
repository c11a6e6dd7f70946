package quant

import "onnx-dha/graph"

// holder says which inputs of an operator hold a quantised weight: its codes, and what they are scaled and shifted by.
type holder struct {
	codes int
	rest  []int
}

var holders = map[string]holder{
	"DequantizeLinear": {0, []int{1, 2}}, "MatMulNBits": {1, []int{2, 3, 4}}, "MatMulBnb4": {1, []int{2}}, "MatMulInteger": {1, []int{3}},
	"DynamicQuantizeMatMul": {1, []int{2, 3}}, "MatMulIntegerToFloat": {1, []int{2, 3, 4, 5}}, "QLinearMatMul": {3, []int{1, 2, 4, 5, 6, 7}},
	"QGemm": {3, []int{1, 2, 4, 5, 7, 8}}, "QAttention": {1, []int{3, 4, 6, 7}}, "QLinearConv": {3, []int{1, 2, 4, 5, 6, 7}}, "ConvInteger": {1, []int{3}},
	"GatherBlockQuantized": {0, []int{2, 3}},
}

// Weights counts the numbers that the codes read by n stand for, and names the constants that hold the codes and what
// belongs to them; codes is nil where n reads none.
func Weights(n *graph.Node) (numbers int64, codes *graph.Value, rest []*graph.Value) {
	h, ok := holders[n.OpType]
	if !ok {
		return 0, nil, nil
	}
	codes = n.Input(h.codes)
	t := codes.Const()
	if t == nil {
		return 0, nil, nil
	}
	numbers = t.Len()
	if k, cols := n.Int("K", 0), n.Int("N", 0); k > 0 && cols > 0 && k < 1<<31 && cols < 1<<31 {
		numbers = k * cols // several to a byte
	}
	for _, i := range h.rest {
		if v := n.Input(i); v != nil {
			rest = append(rest, v)
		}
	}
	return numbers, codes, rest
}
