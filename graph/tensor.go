package graph

import (
	"encoding/binary"
	"fmt"
	"math"

	"onnx-dha/graph/onnxpb"
)

// Tensor is a constant whose bytes may still be in a file. Proto carries everything but large raw data.
type Tensor struct {
	Proto *onnxpb.TensorProto
	model *Model
	src   *source // where the bytes are when Proto does not hold them
}

// source is a range of a mapped file.
type source struct {
	file   *mapped
	offset int64
	length int64
}

// mapped is an open, memory-mapped file.
type mapped struct{}

// Element is a Go type that NewTensor stores.
type Element interface {
	float32 | float64 | int32 | int64 | uint8 | int8 | bool
}

// NewTensor makes a tensor with raw data from a slice in row-major order; nil dims make a scalar.
func NewTensor[T Element](name string, dims []int64, data []T) *Tensor {
	var raw []byte
	var dt onnxpb.TensorProto_DataType
	switch d := any(data).(type) {
	case []float32:
		dt = onnxpb.TensorProto_FLOAT
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
	case []float64:
		dt = onnxpb.TensorProto_DOUBLE
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(x))
		}
	case []int32:
		dt = onnxpb.TensorProto_INT32
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint32(raw, uint32(x))
		}
	case []int64:
		dt = onnxpb.TensorProto_INT64
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
		}
	case []uint8:
		dt = onnxpb.TensorProto_UINT8
		raw = d
	case []int8:
		dt = onnxpb.TensorProto_INT8
		for _, x := range d {
			raw = append(raw, byte(x))
		}
	case []bool:
		dt = onnxpb.TensorProto_BOOL
		for _, x := range d {
			b := byte(0)
			if x {
				b = 1
			}
			raw = append(raw, b)
		}
	}
	if raw == nil {
		raw = []byte{}
	}
	t := int32(dt)
	pb := &onnxpb.TensorProto{Dims: dims, DataType: &t, RawData: raw}
	if name != "" {
		pb.Name = &name
	}
	return &Tensor{Proto: pb}
}

// Name returns the tensor's name.
func (t *Tensor) Name() string { return t.Proto.GetName() }

// DType returns the element type.
func (t *Tensor) DType() onnxpb.TensorProto_DataType {
	return onnxpb.TensorProto_DataType(t.Proto.GetDataType())
}

// Dims returns the dimensions; empty for a scalar. The slice must not be changed.
func (t *Tensor) Dims() []int64 { return t.Proto.Dims }

// Len returns the number of elements.
func (t *Tensor) Len() int64 {
	n := int64(1)
	for _, d := range t.Proto.Dims {
		n *= d
	}
	return n
}

// Int64s returns the elements of an integer or bool tensor in row-major order.
func (t *Tensor) Int64s() ([]int64, error) {
	return nil, fmt.Errorf("not yet")
}

// Float64s returns the elements of a numeric tensor, widened to float64, in row-major order.
func (t *Tensor) Float64s() ([]float64, error) {
	return nil, fmt.Errorf("not yet")
}
