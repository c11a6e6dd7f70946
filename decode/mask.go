package decode

import (
	"fmt"
	"slices"

	"onnx-dha/ort"
	"onnx-dha/verify"
)

// masks reports whether the model has a mask in which padding can be marked.
func (l *Loop) masks() bool {
	return slices.ContainsFunc(l.m.Inputs, func(in verify.Input) bool {
		if !l.m.MarksPadding(in) {
			return false
		}
		n, fixed := in.Dims[0].Const()
		return !fixed || n == int64(l.batch)
	})
}

// mask makes a mask [batch, positions], which hides the padding, or one with a row for each new token, [queries, positions],
// [batch, queries, positions] or [batch, heads or 1, queries, positions], in which every token sees itself and what stands before it, but the
// padding. Padding sees itself, because a row that hides everything may be no number.
func (l *Loop) mask(in verify.Input, form verify.MaskForm) (source, error) {
	elements, err := ort.FromFloat64s(in.DType, []float64{form.Visible, form.Hidden}, 2)
	if err != nil {
		return source{}, fmt.Errorf("model %q: input %q (%s): %w", l.m.Path, in.Name, in.Role, err)
	}
	width := len(elements.Raw) / 2
	byQuery := l.m.MaskByQuery(in)
	visible, hidden := elements.Raw[:width], elements.Raw[width:]
	var memory ort.Tensor
	return source{in.Name, func(l *Loop, _ [][]int64, n int) (*ort.Tensor, error) {
		rank, positions := len(in.Dims), l.filled+n
		shape, queries := []int64{int64(l.batch), int64(positions)}, 1
		if byQuery {
			if shape, err = l.m.Shape(in, verify.Case{Name: "decode", Batch: l.batch, Seq: n, Past: l.filled, Encoder: 1}); err != nil {
				return nil, err
			}
			if shape[rank-2] != int64(n) || shape[rank-1] != int64(positions) || rank > 2 && shape[0] != 1 && shape[0]%int64(l.batch) != 0 {
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
