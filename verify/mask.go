package verify

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// MaskForm is what a mask of token positions holds where a token may look, and where not.
type MaskForm struct{ Visible, Hidden float64 }

var (
	marksTokens  = MaskForm{1, 0}
	marksPadding = MaskForm{0, 1}
)

// lowest is what a mask that is added to scores holds at a hidden position, by the mask's type: its lowest finite number,
// as exporters have it. A row that hides everything is then no division by zero.
var lowest = map[onnxpb.TensorProto_DataType]float64{
	onnxpb.TensorProto_FLOAT: -3.4028234663852886e38, onnxpb.TensorProto_DOUBLE: -1.7976931348623157e308,
	onnxpb.TensorProto_FLOAT16: -65504, onnxpb.TensorProto_BFLOAT16: -3.3895313892515355e38,
}

// Mask returns what the mask called name holds; ok is false when there is none of that name whose meaning is known.
func (s *Signature) Mask(name string) (form MaskForm, ok bool) {
	form, ok = s.masks[name]
	return form, ok
}

// formOf says what a mask holds, [batch, positions] or with a row for each new token, [batch, queries, positions] or [batch,
// heads or 1, queries, positions]. Integers and truth values say by themselves what they mean; what numbers do to scores, be added
// to them or say which are hidden, the graph tells. ok is false where nothing does.
func formOf(in Input, g *graph.Graph) (form MaskForm, ok bool) {
	if !in.isMask() || len(in.Dims) < 2 || len(in.Dims) > 4 || strings.Contains(strings.ToLower(in.Name), "encoder") {
		return MaskForm{}, false
	}
	switch {
	case in.Role == MaskHides:
		return marksPadding, true
	case isInt(in.DType) || isBool(in.DType):
		return marksTokens, true
	}
	for _, r := range numberForms {
		if r.holds(g.Value(in.Name)) {
			return r.form(in.DType)
		}
	}
	return marksTokens, len(in.Dims) == 2 // as exporters have them
}

// numberForms are the forms of masks of numbers, tried in turn.
var numberForms = []struct {
	holds func(*graph.Value) bool
	form  func(onnxpb.TensorProto_DataType) (MaskForm, bool)
}{
	{isAdded, func(t onnxpb.TensorProto_DataType) (MaskForm, bool) { return MaskForm{0, lowest[t]}, lowest[t] != 0 }},
	{isPenalty, func(onnxpb.TensorProto_DataType) (MaskForm, bool) { return marksPadding, true }},
	{isCompared, func(onnxpb.TensorProto_DataType) (MaskForm, bool) { return marksTokens, true }},
}

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

func (in Input) isMask() bool { return in.Role == MaskOnes || in.Role == MaskHides }

// MaskByQuery reports whether a mask has a row for each new token: [batch, queries, positions], [batch, heads or 1, queries,
// positions], or one for all sequences, [queries, positions].
func (s *Signature) MaskByQuery(in Input) bool {
	if len(in.Dims) != 2 {
		return len(in.Dims) > 2
	}
	symbol, ok := soleSymbol(in.Dims[0])
	return ok && s.quantity[symbol] == Seq
}

// MarksPadding reports whether a mask has a place for the padding in front of each sequence.
func (s *Signature) MarksPadding(in Input) bool {
	if _, known := s.masks[in.Name]; !known {
		return false
	}
	_, fixed := in.Dims[0].Const()
	switch {
	case len(in.Dims) == 2 && !fixed && in.Dims[0].Equal(in.Dims[1]):
		return false // one mask for all sequences, of positions by positions
	case len(in.Dims) > 2:
		return !fixed // else one mask for all sequences
	case isFloat(in.DType):
		return !fixed && !s.MaskByQuery(in)
	}
	return !s.MaskByQuery(in)
}

// pads reports whether the model has a mask in which padding in front of a sequence can be marked.
func (s *Signature) pads() bool { return !s.lengths && slices.ContainsFunc(s.Inputs, s.MarksPadding) }

// isEncoderMask reports whether the input marks the positions of the other side of a cross attention.
func (in Input) isEncoderMask() bool {
	return in.isMask() && len(in.Dims) == 2 && !isFloat(in.DType) && strings.Contains(strings.ToLower(in.Name), "encoder")
}

// makeMask hides padding, and from the tokens of a decoder what comes after them where the mask has a row for each. Padding
// sees itself there, because a row that hides everything may be no number.
func makeMask(s *Signature, in Input, b batch, shape []int64, _ *rand.Rand) ([]float64, error) {
	form, known := s.masks[in.Name]
	if !known {
		form = marksTokens
		if in.Role == MaskHides {
			form = marksPadding
		}
	}
	out := fill(shape, form.Visible)
	switch {
	case in.isEncoderMask():
		hideEnds(out, int(shape[1]), form.Hidden)
		return out, nil
	case !known:
		return out, nil
	case !s.MaskByQuery(in):
		if !s.MarksPadding(in) {
			return out, nil
		}
		return out, hidePadding(out, b, shape, form.Hidden)
	}
	queries, width := int(shape[len(shape)-2]), int(shape[len(shape)-1])
	if queries != b.Seq || width != b.Past+b.Seq || len(out) == 0 {
		return out, nil // of something else than the tokens
	}
	rows, causal := len(out)/(queries*width), s.IsDecoder()
	marks := b.real != nil && rows%b.Batch == 0 // else one mask for all sequences
	for row := range rows {
		sequence := row * b.Batch / rows
		for i := range queries {
			for j := range width {
				self := b.Past + i
				later := causal && j > self
				if padded := marks && !b.real[sequence][j]; j != self && (later || padded) {
					out[(row*queries+i)*width+j] = form.Hidden
				}
			}
		}
	}
	return out, nil
}

// hidePadding marks the padding of [batch, positions].
func hidePadding(mask []float64, b batch, shape []int64, hidden float64) error {
	if b.real == nil {
		return nil
	}
	width := int(shape[1])
	if int(shape[0]) != len(b.real) || width != len(b.real[0]) {
		return fmt.Errorf("shape %v does not hold %d sequences of %d positions; want its last axis to cover cache and tokens",
			shape, len(b.real), len(b.real[0]))
	}
	for i, row := range b.real {
		for j, ok := range row {
			if !ok {
				mask[i*width+j] = hidden
			}
		}
	}
	return nil
}

// hideEnds hides the last b positions of sequence b, as the encoder pads a batch, but never the first position.
func hideEnds(mask []float64, width int, hidden float64) {
	for i := range mask {
		if row, col := i/width, i%width; col > 0 && col >= width-row {
			mask[i] = hidden
		}
	}
}
