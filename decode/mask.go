package decode

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// maskForm is what a mask holds where a token may look, and where not.
type maskForm struct{ visible, hidden float64 }

var (
	ones  = maskForm{1, 0}
	hides = maskForm{0, 1}
)

// lowest is what a mask that is added to scores holds at a hidden position, by the mask's type: its lowest finite number,
// as exporters have it. A row that hides everything is then no division by zero.
var lowest = map[onnxpb.TensorProto_DataType]float64{
	onnxpb.TensorProto_FLOAT: -3.4028234663852886e38, onnxpb.TensorProto_DOUBLE: -1.7976931348623157e308,
	onnxpb.TensorProto_FLOAT16: -65504, onnxpb.TensorProto_BFLOAT16: -3.3895313892515355e38,
}

// formOf says what a mask of token positions holds. Integers and truth values say by themselves what they mean; what
// numbers do to scores, be added to them or say which are hidden, the graph tells. ok is false where nothing does.
func formOf(in verify.Input, g *graph.Graph) (form maskForm, ok bool) {
	if !isMask(in) || len(in.Dims) < 2 || len(in.Dims) > 4 || strings.Contains(strings.ToLower(in.Name), "encoder") {
		return maskForm{}, false
	}
	switch {
	case in.Role == verify.MaskHides:
		return hides, true
	case integers[in.DType] > 0:
		return ones, true
	}
	for _, r := range numberForms {
		if r.holds(g.Value(in.Name)) {
			return r.form(in.DType)
		}
	}
	return ones, len(in.Dims) == 2 // as exporters have them
}

// numberForms are the forms of masks of numbers, tried in turn.
var numberForms = []struct {
	holds func(*graph.Value) bool
	form  func(onnxpb.TensorProto_DataType) (maskForm, bool)
}{
	{isAdded, func(t onnxpb.TensorProto_DataType) (maskForm, bool) { return maskForm{0, lowest[t]}, lowest[t] != 0 }},
	{isPenalty, func(onnxpb.TensorProto_DataType) (maskForm, bool) { return hides, true }},
	{isCompared, func(onnxpb.TensorProto_DataType) (maskForm, bool) { return ones, true }},
}

func isMask(in verify.Input) bool { return in.Role == verify.MaskOnes || in.Role == verify.MaskHides }

// keeps lists operators that hand the numbers of a mask on, by the inputs that they may come in by; nil stands for any.
var keeps = map[string][]int{
	"Identity": {0}, "Cast": {0}, "Reshape": {0}, "Flatten": {0}, "Squeeze": {0}, "Unsqueeze": {0}, "Transpose": {0}, "Expand": {0}, "Slice": {0},
	"Tile": {0}, "Split": {0}, "Gather": {0}, "Pad": {0}, "Concat": nil,
}

// sums lists operators that put a mask together with scores or with other masks.
var sums = map[string][]int{"Add": nil, "Where": {1, 2}, "Max": nil, "Min": nil, "Clip": {0}}

// biases says which input of an operator is added to scores, or is scores.
var biases = map[string]int{
	"Softmax": 0, "Attention": 3, "com.microsoft Attention": 5, "com.microsoft MultiHeadAttention": 5, "com.microsoft GroupQueryAttention": 10,
}

// meets follows a mask through operators of the tables until a use is what is looked for.
func meets(v *graph.Value, through []map[string][]int, found func(graph.Use) bool) bool {
	seen, queue := map[*graph.Value]bool{}, []*graph.Value{v}
	for len(queue) > 0 {
		v, queue = queue[0], queue[1:]
		if v == nil || seen[v] {
			continue
		}
		seen[v] = true
		for _, u := range v.Users() {
			if u.Node == nil {
				continue
			}
			if found(u) {
				return true
			}
			for _, table := range through {
				if inputs, ok := table[operator(u.Node)]; ok && (inputs == nil || slices.Contains(inputs, u.Index)) {
					queue = append(queue, u.Node.Out...)
				}
			}
		}
	}
	return false
}

// operator is a node's operator, with its domain when that is not the standard's.
func operator(n *graph.Node) string {
	if n.Is(n.OpType) {
		return n.OpType
	}
	return n.Domain + " " + n.OpType
}

// isAdded reports whether a mask comes to a softmax by sums alone.
func isAdded(v *graph.Value) bool {
	return meets(v, []map[string][]int{keeps, sums}, func(u graph.Use) bool {
		bias, ok := biases[operator(u.Node)]
		return ok && u.Index == bias
	})
}

// isPenalty reports whether a mask is multiplied by a negative number: it says what is hidden.
func isPenalty(v *graph.Value) bool {
	return meets(v, []map[string][]int{keeps}, func(u graph.Use) bool {
		if !u.Node.Is("Mul") || u.Node.Input(1-u.Index) == nil {
			return false
		}
		factor := u.Node.Input(1 - u.Index).Const()
		if factor == nil {
			return false
		}
		x, err := factor.Float64s()
		return err == nil && len(x) == 1 && x[0] < 0
	})
}

// isCompared reports whether a mask says which positions are seen, by its difference to 1 or by a choice.
func isCompared(v *graph.Value) bool {
	return meets(v, []map[string][]int{keeps, sums}, func(u graph.Use) bool {
		return slices.Contains([]string{"Sub", "Mul", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "CumSum"}, operator(u.Node)) || u.Node.Is("Where") && u.Index == 0
	})
}

// masks reports whether the model has a mask in which padding can be marked.
func (l *Loop) masks() bool {
	return slices.ContainsFunc(l.m.Inputs, func(in verify.Input) bool {
		if _, ok := l.m.masks[in.Name]; !ok {
			return false
		}
		n, fixed := in.Dims[0].Const()
		return !fixed || n == int64(l.batch)
	})
}

// mask makes a mask [batch, positions], which hides the padding, or one with a row for each new token, [batch, queries,
// positions] or [batch, heads or 1, queries, positions], in which every token sees itself and what stands before it, but the
// padding. Padding sees itself, because a row that hides everything may be no number.
func (l *Loop) mask(in verify.Input, form maskForm) (source, error) {
	elements, err := ort.FromFloat64s(in.DType, []float64{form.visible, form.hidden}, 2)
	if err != nil {
		return source{}, fmt.Errorf("model %q: input %q (%s): %w", l.m.Path, in.Name, in.Role, err)
	}
	width := len(elements.Raw) / 2
	visible, hidden := elements.Raw[:width], elements.Raw[width:]
	var memory ort.Tensor
	return source{in.Name, func(l *Loop, _ [][]int64, n int) (*ort.Tensor, error) {
		rank, positions := len(in.Dims), l.filled+n
		shape, queries := []int64{int64(l.batch), int64(positions)}, 1
		if rank > 2 {
			if shape, err = l.m.Shape(in, verify.Case{Name: "decode", Batch: l.batch, Seq: n, Past: l.filled, Encoder: 1}); err != nil {
				return nil, err
			}
			if shape[rank-2] != int64(n) || shape[rank-1] != int64(positions) || shape[0] != 1 && shape[0]%int64(l.batch) != 0 {
				return nil, fmt.Errorf("it has shape %v for %d tokens of %d sequences after %d; want [batch, …, tokens, positions]", shape, n, l.batch, l.filled)
			}
			queries = n
		}
		t, err := l.tensor(&memory, in.DType, shape)
		if err != nil {
			return nil, err
		}
		rows := len(t.Raw) / (width * queries * positions)
		for row := range rows {
			padding := l.padding[row*l.batch/rows]
			for i := range queries {
				self := positions - queries + i
				for j := range positions {
					x := hidden
					if j == self || padding <= j && j < self {
						x = visible
					}
					copy(t.Raw[((row*queries+i)*positions+j)*width:], x)
				}
			}
		}
		return t, nil
	}}, nil
}
