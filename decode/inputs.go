package decode

import (
	"encoding/binary"
	"fmt"
	"slices"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// source makes one input of a step of n tokens, tokens[batch][n].
type source struct {
	name string
	make func(l *Loop, tokens [][]int64, n int) (*ort.Tensor, error)
}

// numbers returns an element of an input: sequence b, place i of the input's last axis, in a step of n tokens.
type numbers func(l *Loop, tokens [][]int64, b, i, n int) int64

// roleRow says what an input holds and how long its last axis is.
type roleRow struct {
	number numbers
	length func(l *Loop, n int) int // nil: one number for each sequence, or one alone
}

func step(_ *Loop, n int) int { return n }

// roles has a row for each kind of input that follows from the tokens so far, but for masks.
var roles = map[verify.Role]roleRow{
	verify.TokenIDs:  {func(_ *Loop, tokens [][]int64, b, i, _ int) int64 { return tokens[b][i] }, step},
	verify.Positions: {func(l *Loop, _ [][]int64, b, i, _ int) int64 { return int64(max(l.filled+i-l.padding[b], 0)) }, step},
	verify.Places:    {func(l *Loop, _ [][]int64, _, i, _ int) int64 { return int64(l.filled + i) }, step},
	verify.Segments:  {func(*Loop, [][]int64, int, int, int) int64 { return 0 }, step},
	verify.PastLen:   {func(l *Loop, _ [][]int64, _, _, _ int) int64 { return int64(l.filled) }, nil},
	verify.TotalLen:  {func(l *Loop, _ [][]int64, _, _, n int) int64 { return int64(l.filled + n) }, nil},
	verify.LastPos:   {func(l *Loop, _ [][]int64, _, _, n int) int64 { return int64(l.filled + n - 1) }, nil},
	verify.HasPast:   {func(l *Loop, _ [][]int64, _, _, _ int) int64 { return int64(min(l.filled, 1)) }, nil},
	verify.Kept:      {func(*Loop, [][]int64, int, int, int) int64 { return 1 }, nil}, // only the last scores are asked for
	verify.Flags:     {func(*Loop, [][]int64, int, int, int) int64 { return 1 }, nil},
}

// sources says how every input but the caches is made.
func (l *Loop) sources(fixed map[string]*ort.Tensor) ([]source, error) {
	for name := range fixed {
		if !slices.ContainsFunc(l.m.Inputs, func(in verify.Input) bool { return in.Name == name }) {
			return nil, fmt.Errorf("model %q has no input %q that was given", l.m.Path, name)
		}
	}
	var out []source
	for _, in := range l.m.Inputs {
		if t := fixed[in.Name]; t != nil {
			out = append(out, source{in.Name, func(*Loop, [][]int64, int) (*ort.Tensor, error) { return t, nil }})
			continue
		}
		if slices.ContainsFunc(l.caches, func(c *cache) bool { return c.Past == in.Name }) {
			continue
		}
		if i := slices.IndexFunc(l.cross, func(c *cross) bool { return c.Past == in.Name }); i >= 0 {
			out = append(out, l.crossPast(l.cross[i]))
			continue
		}
		row, known := roles[in.Role]
		form, masked := l.m.Mask(in.Name)
		switch {
		case in.Role == verify.TokenIDs && in.Name != l.m.Tokens:
			known = false
		case masked:
			s, err := l.mask(in, form)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
			continue
		}
		if !known {
			return nil, fmt.Errorf("model %q: nothing tells what input %q (%s) of shape %v holds in a step; give its tensor", l.m.Path, in.Name, in.Role, in.Dims)
		}
		s, err := l.source(in, row)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// source makes an input by its row.
func (l *Loop) source(in verify.Input, row roleRow) (source, error) {
	rank := len(in.Dims)
	if rank > 2 || row.length != nil && rank == 0 {
		return source{}, fmt.Errorf("model %q: input %q (%s) has shape %v; want [batch, positions]", l.m.Path, in.Name, in.Role, in.Dims)
	}
	width, write, err := writer(in.DType)
	if err != nil {
		return source{}, fmt.Errorf("model %q: input %q (%s): %w", l.m.Path, in.Name, in.Role, err)
	}
	var memory ort.Tensor
	return source{in.Name, func(l *Loop, tokens [][]int64, n int) (*ort.Tensor, error) {
		rows, length := l.batch, 1
		var shape []int64
		switch {
		case row.length == nil:
			// One for each sequence, [batch] or [batch, 1], or one alone.
			if rank == 0 || l.single(in) {
				rows = 1
			}
			for axis := range rank {
				shape = append(shape, 1)
				if axis == 0 {
					shape[0] = int64(rows)
				}
			}
		case rank == 1:
			rows, length = 1, row.length(l, n)
			shape = []int64{int64(length)}
		default:
			length = row.length(l, n)
			shape = []int64{int64(rows), int64(length)}
		}
		t, err := l.tensor(&memory, in.DType, shape)
		if err != nil {
			return nil, err
		}
		for b := range rows {
			for i := range length {
				x := row.number(l, tokens, b, i, n)
				if in.Rows > 0 && (x < 0 || x >= in.Rows) {
					return nil, fmt.Errorf("%s %d is beyond the model's table of %d", in.Role, x, in.Rows)
				}
				write(t.Raw[(b*length+i)*width:][:width], x)
			}
		}
		return t, nil
	}}, nil
}

// single reports whether an input is one number whatever the batch.
func (l *Loop) single(in verify.Input) bool {
	n, fixed := in.Dims[0].Const()
	if fixed {
		return n == 1
	}
	shape, err := l.m.Shape(in, verify.Case{Name: "decode", Batch: l.batch, Seq: 1, Encoder: 1})
	return err == nil && shape[0] == 1
}

// tensor makes a tensor of a shape in memory that is kept from step to step.
func (l *Loop) tensor(memory *ort.Tensor, dtype onnxpb.TensorProto_DataType, shape []int64) (*ort.Tensor, error) {
	size, err := ort.Bytes(dtype, shape)
	if err != nil {
		return nil, err
	}
	if size > int64(cap(memory.Raw)) {
		memory.Raw = make([]byte, size, 2*size+64)
	}
	return &ort.Tensor{DType: dtype, Shape: shape, Raw: memory.Raw[:size]}, nil
}

// integers gives the bytes of each integer type.
var integers = map[onnxpb.TensorProto_DataType]int{
	onnxpb.TensorProto_INT64: 8, onnxpb.TensorProto_UINT64: 8, onnxpb.TensorProto_INT32: 4, onnxpb.TensorProto_UINT32: 4,
	onnxpb.TensorProto_INT16: 2, onnxpb.TensorProto_UINT16: 2, onnxpb.TensorProto_INT8: 1, onnxpb.TensorProto_UINT8: 1,
	onnxpb.TensorProto_BOOL: 1,
}

// writer returns the bytes of an element and what writes a number into them. Other types than integers hold 0 and 1 only.
func writer(dtype onnxpb.TensorProto_DataType) (width int, write func([]byte, int64), err error) {
	switch integers[dtype] {
	case 8:
		return 8, func(b []byte, x int64) { binary.NativeEndian.PutUint64(b, uint64(x)) }, nil
	case 4:
		return 4, func(b []byte, x int64) { binary.NativeEndian.PutUint32(b, uint32(x)) }, nil
	case 2:
		return 2, func(b []byte, x int64) { binary.NativeEndian.PutUint16(b, uint16(x)) }, nil
	case 1:
		return 1, func(b []byte, x int64) { b[0] = byte(x) }, nil
	}
	one, err := ort.FromFloat64s(dtype, []float64{1}, 1)
	if err != nil {
		return 0, nil, err
	}
	return len(one.Raw), func(b []byte, x int64) {
		clear(b)
		if x != 0 {
			copy(b, one.Raw)
		}
	}, nil
}
