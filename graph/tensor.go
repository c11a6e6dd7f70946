package graph

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"

	"onnx-dha/graph/onnxpb"
)

// Tensor is a constant whose bytes may still be in a file. Proto carries everything but large data.
type Tensor struct {
	Proto *onnxpb.TensorProto
	model *Model
	parts []part // data fields whose bytes Proto does not hold
	ext   *source

	computed *computed // what makes the bytes when they are nowhere yet
	// Recipe identifies how the bytes of a computed tensor are made: tensors of one recipe have the same. Empty when nothing
	// is known of it.
	Recipe string
}

// part is a data field of a tensor message that is still in the file, as serialised.
type part struct {
	field protowire.Number
	source
}

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
		raw = make([]byte, 0, 4*len(d))
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
		}
	case []float64:
		dt = onnxpb.TensorProto_DOUBLE
		raw = make([]byte, 0, 8*len(d))
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(x))
		}
	case []int32:
		dt = onnxpb.TensorProto_INT32
		raw = make([]byte, 0, 4*len(d))
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint32(raw, uint32(x))
		}
	case []int64:
		dt = onnxpb.TensorProto_INT64
		raw = make([]byte, 0, 8*len(d))
		for _, x := range d {
			raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
		}
	case []uint8:
		dt = onnxpb.TensorProto_UINT8
		raw = d
	case []int8:
		dt = onnxpb.TensorProto_INT8
		raw = make([]byte, 0, len(d))
		for _, x := range d {
			raw = append(raw, byte(x))
		}
	case []bool:
		dt = onnxpb.TensorProto_BOOL
		raw = make([]byte, 0, len(d))
		for _, x := range d {
			b := byte(0)
			if x {
				b = 1
			}
			raw = append(raw, b)
		}
	}
	return newRaw(name, dt, dims, raw)
}

func newRaw(name string, dtype onnxpb.TensorProto_DataType, dims []int64, raw []byte) *Tensor {
	if raw == nil {
		raw = []byte{}
	}
	t := int32(dtype)
	pb := &onnxpb.TensorProto{Dims: dims, DataType: &t, RawData: raw}
	if name != "" {
		pb.Name = &name
	}
	return &Tensor{Proto: pb}
}

// FromFloat64s makes a tensor of the given element type from values in row-major order. Floating point types (FLOAT,
// DOUBLE, FLOAT16, BFLOAT16) are rounded once, to nearest even, too large values to infinity. Integer types and BOOL
// take only values they hold exactly; anything else, another element type, or a count that does not fit the dims is an
// error.
func FromFloat64s(name string, dtype onnxpb.TensorProto_DataType, dims []int64, data []float64) (*Tensor, error) {
	n, err := elements(dims)
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", name, err)
	}
	if n != int64(len(data)) {
		return nil, fmt.Errorf("tensor %q: %d values for dims %v, which hold %d", name, len(data), dims, n)
	}
	f, ok := elementTypes[dtype]
	if !ok || f.put == nil {
		return nil, fmt.Errorf("tensor %q: cannot make a %v tensor of float64 values", name, dtype)
	}
	size := f.bits / 8
	raw := make([]byte, size*len(data))
	for i, x := range data {
		b, ok := f.put(x)
		if !ok {
			return nil, fmt.Errorf("tensor %q: element %d is %v, which %v does not hold", name, i, x, dtype)
		}
		for j := range size {
			raw[i*size+j] = byte(b >> (8 * j))
		}
	}
	return newRaw(name, dtype, dims, raw), nil
}

// Name returns the tensor's name.
func (t *Tensor) Name() string { return t.Proto.GetName() }

// DType returns the element type.
func (t *Tensor) DType() onnxpb.TensorProto_DataType {
	return onnxpb.TensorProto_DataType(t.Proto.GetDataType())
}

// Dims returns the dimensions; empty for a scalar. The slice must not be changed.
func (t *Tensor) Dims() []int64 { return t.Proto.Dims }

// Len returns the number of elements. It is 0 when the dims are negative or their product overflows, which no tensor
// of a loaded model has.
func (t *Tensor) Len() int64 {
	n, err := elements(t.Proto.Dims)
	if err != nil {
		return 0
	}
	return n
}

// elements multiplies dims.
func elements(dims []int64) (int64, error) {
	n, zero := uint64(1), false
	over := false
	for _, d := range dims {
		if d < 0 {
			return 0, fmt.Errorf("dims %v: a dimension is negative", dims)
		}
		if d == 0 {
			zero = true
			continue
		}
		hi, lo := bits.Mul64(n, uint64(d))
		over = over || hi != 0 || lo > math.MaxInt64/16 // 16 is the largest element, so byte counts fit as well
		n = lo
	}
	if zero {
		return 0, nil
	}
	if over {
		return 0, fmt.Errorf("dims %v: the number of elements overflows", dims)
	}
	return int64(n), nil
}

// describe names the tensor in messages.
func (t *Tensor) describe() string {
	if t.Name() == "" {
		return "unnamed tensor"
	}
	return fmt.Sprintf("tensor %q", t.Name())
}

// part returns the range of a data field that is still in the file.
func (t *Tensor) part(num protowire.Number) *source {
	for i := range t.parts {
		if t.parts[i].field == num {
			return &t.parts[i].source
		}
	}
	return nil
}

// rawBytes returns the bytes of raw_data or of the external file, nil when the tensor has neither.
func (t *Tensor) rawBytes() ([]byte, error) {
	if t.Proto.GetDataLocation() == onnxpb.TensorProto_EXTERNAL {
		if t.ext == nil {
			return nil, errors.New("its data is external, but the tensor belongs to no loaded model")
		}
		return t.ext.bytes()
	}
	if s := t.part(rawData); s != nil {
		return s.bytes()
	}
	if t.computed != nil {
		return t.computed.bytes()
	}
	return t.Proto.RawData, nil
}

// Bytes returns the elements in row-major order, little-endian, as raw_data stores them (4-bit types two to a byte,
// 2-bit types four, the first in the low bits). For a tensor that stores them so they come straight from the memory
// map: the slice must not be changed, and is valid until the model is closed.
func (t *Tensor) Bytes() ([]byte, error) {
	b, err := t.bytes()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.describe(), err)
	}
	return b, nil
}

func (t *Tensor) bytes() ([]byte, error) {
	n, err := elements(t.Proto.Dims)
	if err != nil {
		return nil, err
	}
	if t.Proto.Segment != nil {
		return nil, errors.New("segmented tensors are not supported")
	}
	e, ok := elementTypes[t.DType()]
	if !ok {
		return nil, fmt.Errorf("element type %v has no bytes", t.DType())
	}
	want := e.size(n)
	raw, err := t.rawBytes()
	if err != nil {
		return nil, err
	}
	if raw != nil {
		if int64(len(raw)) != want {
			return nil, fmt.Errorf("dims %v of %v take %d bytes, but the data has %d", t.Proto.Dims, t.DType(), want, len(raw))
		}
		return raw, nil
	}
	if n == 0 {
		return []byte{}, nil
	}
	stored, count, err := t.typed(e)
	if err != nil {
		return nil, err
	}
	if count != e.stored(n) {
		return nil, fmt.Errorf("dims %v of %v take %d entries, but the data has %d", t.Proto.Dims, t.DType(), e.stored(n), count)
	}
	return stored, nil
}

// entries counts a typed data list that Proto holds.
func (t *Tensor) entries(list protowire.Number) int64 {
	switch list {
	case floatData:
		return int64(len(t.Proto.FloatData))
	case doubleData:
		return int64(len(t.Proto.DoubleData))
	case int32Data:
		return int64(len(t.Proto.Int32Data))
	case int64Data:
		return int64(len(t.Proto.Int64Data))
	}
	return int64(len(t.Proto.Uint64Data))
}

// typed converts the list of a typed data field to raw bytes and counts its entries.
func (t *Tensor) typed(e elementType) ([]byte, int64, error) {
	width := e.entry()
	var raw []byte
	put := func(x uint64) {
		for j := range width {
			raw = append(raw, byte(x>>(8*j)))
		}
	}
	s := t.part(e.list)
	if s == nil {
		raw = make([]byte, 0, width*int(t.entries(e.list)))
		switch e.list {
		case floatData:
			for _, x := range t.Proto.FloatData {
				put(uint64(math.Float32bits(x)))
			}
		case doubleData:
			for _, x := range t.Proto.DoubleData {
				put(math.Float64bits(x))
			}
		case int32Data:
			for _, x := range t.Proto.Int32Data {
				put(uint64(x))
			}
		case int64Data:
			for _, x := range t.Proto.Int64Data {
				put(uint64(x))
			}
		case uint64Data:
			for _, x := range t.Proto.Uint64Data {
				put(x)
			}
		}
		return raw, t.entries(e.list), nil
	}
	b, err := s.bytes()
	if err != nil {
		return nil, 0, err
	}
	if e.list == floatData || e.list == doubleData {
		if len(b)%width != 0 {
			return nil, 0, fmt.Errorf("%d bytes of data are no whole number of entries", len(b))
		}
		return b, int64(len(b) / width), nil // packed floats are little-endian on the wire
	}
	count := int64(0)
	for len(b) > 0 {
		x, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, 0, fmt.Errorf("entry %d of the data is not a number", count)
		}
		put(x)
		b = b[n:]
		count++
	}
	return raw, count, nil
}

// Int64s returns the elements of an integer or bool tensor in row-major order. Other types, and unsigned values over
// the range of int64, are errors.
func (t *Tensor) Int64s() ([]int64, error) {
	e, raw, err := t.open(func(e elementType) bool { return e.integer != nil }, "integers")
	if err != nil {
		return nil, err
	}
	out := make([]int64, t.Len())
	for i := range out {
		x := e.integer(e.at(raw, i))
		if x < 0 && t.DType() == onnxpb.TensorProto_UINT64 {
			return nil, fmt.Errorf("%s: element %d, %d, is over the range of int64", t.describe(), i, uint64(x))
		}
		out[i] = x
	}
	return out, nil
}

// Float64s returns the elements of a numeric tensor, widened to float64, in row-major order. Complex and string
// tensors are errors. Integers beyond 2⁵³ are rounded.
func (t *Tensor) Float64s() ([]float64, error) {
	e, raw, err := t.open(elementType.numeric, "numbers")
	if err != nil {
		return nil, err
	}
	out := make([]float64, t.Len())
	for i := range out {
		out[i] = e.float64(e.at(raw, i))
	}
	return out, nil
}

// Float32s returns the elements of a numeric tensor as float32 in row-major order: exact for the types of up to 32-bit
// floats and 24-bit integers, rounded to nearest even for the others. Complex and string tensors are errors.
func (t *Tensor) Float32s() ([]float32, error) {
	e, raw, err := t.open(elementType.numeric, "numbers")
	if err != nil {
		return nil, err
	}
	out := make([]float32, t.Len())
	if t.DType() == onnxpb.TensorProto_FLOAT {
		for i := range out {
			out[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
		return out, nil
	}
	for i := range out {
		x := e.at(raw, i)
		if e.integer != nil {
			// Straight from the integer: through float64 it would round twice.
			if t.DType() == onnxpb.TensorProto_UINT64 {
				out[i] = float32(x)
			} else {
				out[i] = float32(e.integer(x))
			}
			continue
		}
		out[i] = float32(e.float64(x))
	}
	return out, nil
}

// open checks that the element type suits and returns its reader and the bytes.
func (t *Tensor) open(suits func(elementType) bool, want string) (elementType, []byte, error) {
	e, ok := elementTypes[t.DType()]
	if !ok || !suits(e) {
		return e, nil, fmt.Errorf("%s: its elements are %v, want %s", t.describe(), t.DType(), want)
	}
	raw, err := t.Bytes()
	return e, raw, err
}
