package ort

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"unsafe"

	"github.com/x448/float16"

	"onnx-dha/graph/onnxpb"
)

// Tensor is a dense array in the machine's byte order, row-major. Sub-byte types are packed, the first element in the
// low bits.
type Tensor struct {
	DType onnxpb.TensorProto_DataType
	Shape []int64 // empty for a scalar
	Raw   []byte
}

// Element is a Go type with an element type of its own.
type Element interface {
	float32 | float64 | int8 | int16 | int32 | int64 | uint8 | uint16 | uint32 | uint64 | bool
}

func elementType[T Element]() onnxpb.TensorProto_DataType {
	var z T
	switch any(z).(type) {
	case float32:
		return onnxpb.TensorProto_FLOAT
	case float64:
		return onnxpb.TensorProto_DOUBLE
	case int8:
		return onnxpb.TensorProto_INT8
	case int16:
		return onnxpb.TensorProto_INT16
	case int32:
		return onnxpb.TensorProto_INT32
	case int64:
		return onnxpb.TensorProto_INT64
	case uint8:
		return onnxpb.TensorProto_UINT8
	case uint16:
		return onnxpb.TensorProto_UINT16
	case uint32:
		return onnxpb.TensorProto_UINT32
	case uint64:
		return onnxpb.TensorProto_UINT64
	}
	return onnxpb.TensorProto_BOOL
}

// From makes a tensor over data, without a copy: the two share memory. data must have the product of shape elements,
// else From panics.
func From[T Element](data []T, shape ...int64) *Tensor {
	t := &Tensor{DType: elementType[T](), Shape: shape}
	if n := t.Len(); n != int64(len(data)) {
		panic(fmt.Sprintf("ort: %d elements for shape %v, which has %d", len(data), shape, n))
	}
	if len(data) > 0 {
		t.Raw = unsafe.Slice((*byte)(unsafe.Pointer(&data[0])), len(data)*int(unsafe.Sizeof(data[0])))
	}
	return t
}

// FromFloat32 makes a float tensor over data.
func FromFloat32(data []float32, shape ...int64) *Tensor { return From(data, shape...) }

// FromInt64 makes an int64 tensor over data.
func FromInt64(data []int64, shape ...int64) *Tensor { return From(data, shape...) }

// FromFloat64s makes a tensor of any real type from values that are rounded to it. It fails for types that this
// package does not compute with (8- and 4-bit floats, complex numbers, strings).
func FromFloat64s(dtype onnxpb.TensorProto_DataType, values []float64, shape ...int64) (*Tensor, error) {
	t, err := New(dtype, shape...)
	if err != nil {
		return nil, err
	}
	if n := t.Len(); n != int64(len(values)) {
		return nil, fmt.Errorf("%d values for shape %v, which has %d elements", len(values), shape, n)
	}
	put, ok := writers[dtype]
	if !ok {
		return nil, fmt.Errorf("cannot make a %s tensor from numbers", typeName(dtype))
	}
	size := bitsOf(dtype) / 8
	for i, x := range values {
		put(t.Raw[i*size:], x)
	}
	return t, nil
}

// New makes a tensor of zeros.
func New(dtype onnxpb.TensorProto_DataType, shape ...int64) (*Tensor, error) {
	t := &Tensor{DType: dtype, Shape: append([]int64(nil), shape...)}
	n, err := t.bytes()
	if err != nil {
		return nil, err
	}
	t.Raw = make([]byte, n)
	return t, nil
}

// Bytes returns how many bytes a tensor of this type and shape takes.
func Bytes(dtype onnxpb.TensorProto_DataType, shape []int64) (int64, error) {
	return (&Tensor{DType: dtype, Shape: shape}).bytes()
}

// Len returns the number of elements.
func (t *Tensor) Len() int64 {
	n := int64(1)
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// maxBytes bounds one tensor: more is a mistake in a shape, not a tensor.
const maxBytes = 1 << 46

func (t *Tensor) bytes() (int64, error) {
	bits := int64(bitsOf(t.DType))
	if bits == 0 {
		return 0, fmt.Errorf("element type %s has no fixed size; want numbers or booleans", typeName(t.DType))
	}
	n := int64(1)
	for _, d := range t.Shape {
		if d < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", t.Shape)
		}
		if d > 0 && n > maxBytes*8/bits/d {
			return 0, fmt.Errorf("shape %v is too large", t.Shape)
		}
		n *= d
	}
	return (n*bits + 7) / 8, nil
}

// Check verifies that Raw has the size that the type and the shape call for.
func (t *Tensor) Check() error {
	n, err := t.bytes()
	if err != nil {
		return err
	}
	if int64(len(t.Raw)) != n {
		return fmt.Errorf("%v holds %d bytes, want %d", t, len(t.Raw), n)
	}
	return nil
}

// Clone copies the tensor.
func (t *Tensor) Clone() *Tensor {
	return &Tensor{DType: t.DType, Shape: append([]int64(nil), t.Shape...), Raw: append([]byte(nil), t.Raw...)}
}

// Reshape returns a view of the same bytes with another shape of as many elements, else it panics.
func (t *Tensor) Reshape(shape ...int64) *Tensor {
	v := &Tensor{DType: t.DType, Shape: shape, Raw: t.Raw}
	if v.Len() != t.Len() {
		panic(fmt.Sprintf("ort: cannot reshape %v to %v", t.Shape, shape))
	}
	return v
}

// String shows the type and shape, such as float[2,8,0,64].
func (t *Tensor) String() string {
	if t == nil {
		return "(none)"
	}
	return typeName(t.DType) + strings.ReplaceAll(fmt.Sprint(t.Shape), " ", ",")
}

func typeName(d onnxpb.TensorProto_DataType) string { return strings.ToLower(d.String()) }

// View returns the elements themselves, without a copy; t must have T's element type.
func View[T Element](t *Tensor) ([]T, error) {
	want := elementType[T]()
	if t.DType != want {
		return nil, fmt.Errorf("tensor is %v, want %s", t, typeName(want))
	}
	if len(t.Raw) == 0 {
		return nil, nil
	}
	var z T
	size := int(unsafe.Sizeof(z))
	if uintptr(unsafe.Pointer(&t.Raw[0]))%unsafe.Alignof(z) != 0 {
		// Bytes cut out of something larger. A Go slice of T must be aligned, so this one is a copy.
		out := make([]T, len(t.Raw)/size)
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&out[0])), len(t.Raw)), t.Raw)
		return out, nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&t.Raw[0])), len(t.Raw)/size), nil
}

// Float32s returns the elements as float32: the tensor's own memory for float tensors, rounded copies for other
// real and boolean types.
func (t *Tensor) Float32s() ([]float32, error) {
	if t.DType == onnxpb.TensorProto_FLOAT {
		return View[float32](t)
	}
	return convert(t, func(x float64) float32 { return float32(x) })
}

// Float64s returns the elements as float64: the tensor's own memory for double tensors, copies for other real and
// boolean types.
func (t *Tensor) Float64s() ([]float64, error) {
	if t.DType == onnxpb.TensorProto_DOUBLE {
		return View[float64](t)
	}
	return convert(t, func(x float64) float64 { return x })
}

// Int64s returns the elements of an integer or boolean tensor as int64: the tensor's own memory for int64 tensors,
// copies for the others.
func (t *Tensor) Int64s() ([]int64, error) {
	switch t.DType {
	case onnxpb.TensorProto_INT64:
		return View[int64](t)
	case onnxpb.TensorProto_UINT64:
		u, err := View[uint64](t)
		out := make([]int64, len(u))
		for i, x := range u {
			out[i] = int64(x)
		}
		return out, err
	case onnxpb.TensorProto_INT32, onnxpb.TensorProto_UINT32, onnxpb.TensorProto_INT16, onnxpb.TensorProto_UINT16,
		onnxpb.TensorProto_INT8, onnxpb.TensorProto_UINT8, onnxpb.TensorProto_BOOL:
		return convert(t, func(x float64) int64 { return int64(x) }) // 32 bits are exact in a float64
	}
	return nil, fmt.Errorf("tensor is %v, want integers or booleans", t)
}

func convert[T any](t *Tensor, f func(float64) T) ([]T, error) {
	get, ok := readers[t.DType]
	if !ok {
		return nil, fmt.Errorf("tensor is %v, want real numbers or booleans", t)
	}
	size := bitsOf(t.DType) / 8
	out := make([]T, len(t.Raw)/size)
	for i := range out {
		out[i] = f(get(t.Raw[i*size:]))
	}
	return out, nil
}

var order = binary.NativeEndian

// readers and writers convert one element from and to its bytes.
var readers = map[onnxpb.TensorProto_DataType]func([]byte) float64{
	onnxpb.TensorProto_FLOAT:   func(b []byte) float64 { return float64(math.Float32frombits(order.Uint32(b))) },
	onnxpb.TensorProto_DOUBLE:  func(b []byte) float64 { return math.Float64frombits(order.Uint64(b)) },
	onnxpb.TensorProto_FLOAT16: func(b []byte) float64 { return float64(float16.Frombits(order.Uint16(b)).Float32()) },
	onnxpb.TensorProto_BFLOAT16: func(b []byte) float64 {
		return float64(math.Float32frombits(uint32(order.Uint16(b)) << 16))
	},
	onnxpb.TensorProto_INT8:   func(b []byte) float64 { return float64(int8(b[0])) },
	onnxpb.TensorProto_UINT8:  func(b []byte) float64 { return float64(b[0]) },
	onnxpb.TensorProto_BOOL:   func(b []byte) float64 { return float64(min(b[0], 1)) },
	onnxpb.TensorProto_INT16:  func(b []byte) float64 { return float64(int16(order.Uint16(b))) },
	onnxpb.TensorProto_UINT16: func(b []byte) float64 { return float64(order.Uint16(b)) },
	onnxpb.TensorProto_INT32:  func(b []byte) float64 { return float64(int32(order.Uint32(b))) },
	onnxpb.TensorProto_UINT32: func(b []byte) float64 { return float64(order.Uint32(b)) },
	onnxpb.TensorProto_INT64:  func(b []byte) float64 { return float64(int64(order.Uint64(b))) },
	onnxpb.TensorProto_UINT64: func(b []byte) float64 { return float64(order.Uint64(b)) },
}

var writers = map[onnxpb.TensorProto_DataType]func([]byte, float64){
	onnxpb.TensorProto_FLOAT:  func(b []byte, x float64) { order.PutUint32(b, math.Float32bits(float32(x))) },
	onnxpb.TensorProto_DOUBLE: func(b []byte, x float64) { order.PutUint64(b, math.Float64bits(x)) },
	onnxpb.TensorProto_FLOAT16: func(b []byte, x float64) {
		order.PutUint16(b, float16.Fromfloat32(float32(x)).Bits())
	},
	onnxpb.TensorProto_BFLOAT16: func(b []byte, x float64) { order.PutUint16(b, bfloat16(float32(x))) },
	onnxpb.TensorProto_INT8:     func(b []byte, x float64) { b[0] = byte(int8(math.RoundToEven(x))) },
	onnxpb.TensorProto_UINT8:    func(b []byte, x float64) { b[0] = byte(math.RoundToEven(x)) },
	onnxpb.TensorProto_BOOL: func(b []byte, x float64) {
		b[0] = 0
		if x != 0 {
			b[0] = 1
		}
	},
	onnxpb.TensorProto_INT16:  func(b []byte, x float64) { order.PutUint16(b, uint16(int16(math.RoundToEven(x)))) },
	onnxpb.TensorProto_UINT16: func(b []byte, x float64) { order.PutUint16(b, uint16(math.RoundToEven(x))) },
	onnxpb.TensorProto_INT32:  func(b []byte, x float64) { order.PutUint32(b, uint32(int32(math.RoundToEven(x)))) },
	onnxpb.TensorProto_UINT32: func(b []byte, x float64) { order.PutUint32(b, uint32(math.RoundToEven(x))) },
	onnxpb.TensorProto_INT64:  func(b []byte, x float64) { order.PutUint64(b, uint64(int64(math.RoundToEven(x)))) },
	onnxpb.TensorProto_UINT64: func(b []byte, x float64) { order.PutUint64(b, uint64(math.RoundToEven(x))) },
}

// bfloat16 keeps the upper half of a float32, rounded to nearest, ties to even.
func bfloat16(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40 // rounding must not turn a NaN into an infinity
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
