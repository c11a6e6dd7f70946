package graph

import (
	"encoding/binary"
	"math"

	"github.com/x448/float16"
	"google.golang.org/protobuf/encoding/protowire"

	"onnx-dha/graph/onnxpb"
)

// elementType says how one element type is stored.
type elementType struct {
	bits    int                          // of one element in raw data
	list    protowire.Number             // typed data field that may hold it
	integer func(uint64) int64           // bits to integer; nil when it is none
	float   func(uint64) float64         // bits to float; nil for integers, complex numbers
	put     func(float64) (uint64, bool) // float64 to bits; nil when not offered
}

// ElementBits returns the bits that one element of type t takes in raw data, 0 for types that have none (strings).
func ElementBits(t onnxpb.TensorProto_DataType) int { return elementTypes[t].bits }

func (e elementType) numeric() bool { return e.integer != nil || e.float != nil }

func (e elementType) float64(x uint64) float64 {
	if e.float != nil {
		return e.float(x)
	}
	return float64(e.integer(x))
}

// size returns the bytes of n elements as raw data.
func (e elementType) size(n int64) int64 {
	if e.bits >= 8 {
		return n * int64(e.bits/8)
	}
	per := int64(8 / e.bits)
	return n/per + (n%per+per-1)/per
}

// stored returns the entries of n elements in a typed data list.
func (e elementType) stored(n int64) int64 {
	switch {
	case e.bits < 8:
		return e.size(n) // packed, one byte to an entry
	case e.integer == nil && e.float == nil:
		return 2 * n // complex
	}
	return n
}

// entry returns the bytes of raw data that one entry of a typed data list becomes.
func (e elementType) entry() int {
	switch {
	case e.bits < 8:
		return 1
	case e.integer == nil && e.float == nil:
		return e.bits / 16 // half a complex number
	}
	return e.bits / 8
}

// at returns the bits of element i.
func (e elementType) at(raw []byte, i int) uint64 {
	switch e.bits {
	case 2:
		return uint64(raw[i/4]>>(2*(i%4))) & 3
	case 4:
		return uint64(raw[i/2]>>(4*(i%2))) & 15
	case 8:
		return uint64(raw[i])
	case 16:
		return uint64(binary.LittleEndian.Uint16(raw[2*i:]))
	case 32:
		return uint64(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return binary.LittleEndian.Uint64(raw[8*i:])
}

// elementTypes is the table of all types that have bytes (STRING has none).
var elementTypes = map[onnxpb.TensorProto_DataType]elementType{
	onnxpb.TensorProto_FLOAT:   {32, floatData, nil, func(x uint64) float64 { return float64(math.Float32frombits(uint32(x))) }, putFloat32},
	onnxpb.TensorProto_DOUBLE:  {64, doubleData, nil, math.Float64frombits, func(x float64) (uint64, bool) { return math.Float64bits(x), true }},
	onnxpb.TensorProto_FLOAT16: {16, int32Data, nil, func(x uint64) float64 { return float64(float16.Frombits(uint16(x)).Float32()) }, putFloat(5, 10)},
	onnxpb.TensorProto_BFLOAT16: {16, int32Data, nil, func(x uint64) float64 { return float64(math.Float32frombits(uint32(x) << 16)) },
		putFloat(8, 7)},

	onnxpb.TensorProto_FLOAT8E4M3FN:   {8, int32Data, nil, small{4, 3, 7, fnNaN}.float64, nil},
	onnxpb.TensorProto_FLOAT8E4M3FNUZ: {8, int32Data, nil, small{4, 3, 8, uzNaN}.float64, nil},
	onnxpb.TensorProto_FLOAT8E5M2:     {8, int32Data, nil, small{5, 2, 15, ieeeNaN}.float64, nil},
	onnxpb.TensorProto_FLOAT8E5M2FNUZ: {8, int32Data, nil, small{5, 2, 16, uzNaN}.float64, nil},
	onnxpb.TensorProto_FLOAT4E2M1:     {4, int32Data, nil, small{2, 1, 1, noNaN}.float64, nil},
	onnxpb.TensorProto_FLOAT8E8M0:     {8, int32Data, nil, exponent, nil},

	onnxpb.TensorProto_INT64:  {64, int64Data, signed(64), nil, putInt(64, true)},
	onnxpb.TensorProto_INT32:  {32, int32Data, signed(32), nil, putInt(32, true)},
	onnxpb.TensorProto_INT16:  {16, int32Data, signed(16), nil, putInt(16, true)},
	onnxpb.TensorProto_INT8:   {8, int32Data, signed(8), nil, putInt(8, true)},
	onnxpb.TensorProto_INT4:   {4, int32Data, signed(4), nil, nil},
	onnxpb.TensorProto_INT2:   {2, int32Data, signed(2), nil, nil},
	onnxpb.TensorProto_UINT64: {64, uint64Data, unsigned, func(x uint64) float64 { return float64(x) }, putInt(64, false)},
	onnxpb.TensorProto_UINT32: {32, uint64Data, unsigned, nil, putInt(32, false)},
	onnxpb.TensorProto_UINT16: {16, int32Data, unsigned, nil, putInt(16, false)},
	onnxpb.TensorProto_UINT8:  {8, int32Data, unsigned, nil, putInt(8, false)},
	onnxpb.TensorProto_UINT4:  {4, int32Data, unsigned, nil, nil},
	onnxpb.TensorProto_UINT2:  {2, int32Data, unsigned, nil, nil},
	onnxpb.TensorProto_BOOL:   {8, int32Data, truth, nil, putInt(1, false)},

	onnxpb.TensorProto_COMPLEX64:  {64, floatData, nil, nil, nil},
	onnxpb.TensorProto_COMPLEX128: {128, doubleData, nil, nil, nil},
}

func unsigned(x uint64) int64 { return int64(x) }

func truth(x uint64) int64 {
	if x != 0 {
		return 1
	}
	return 0
}

func signed(bits int) func(uint64) int64 {
	return func(x uint64) int64 { return int64(x<<(64-bits)) >> (64 - bits) }
}

func putFloat32(x float64) (uint64, bool) { return uint64(math.Float32bits(float32(x))), true }

// putInt returns a converter to integers of up to 64 bits that refuses what they do not hold exactly.
func putInt(bits int, signed bool) func(float64) (uint64, bool) {
	return func(x float64) (uint64, bool) {
		if !signed {
			return uint64(x), x == math.Trunc(x) && x >= 0 && x < math.Ldexp(1, bits)
		}
		top := math.Ldexp(1, bits-1)
		return uint64(int64(x)), x == math.Trunc(x) && x >= -top && x < top
	}
}

// putFloat returns a converter to an IEEE format of the given field widths that rounds once, to nearest even. (Going
// through float32 would round twice.)
func putFloat(expBits, manBits int) func(float64) (uint64, bool) {
	bias := 1<<(expBits-1) - 1
	inf := uint64(1<<expBits-1) << manBits
	return func(x float64) (uint64, bool) {
		sign := math.Float64bits(x) >> 63 << (expBits + manBits)
		switch {
		case math.IsNaN(x):
			return sign | inf | 1<<(manBits-1), true
		case math.IsInf(x, 0):
			return sign | inf, true
		case x == 0:
			return sign, true
		}
		x = math.Abs(x)
		_, e := math.Frexp(x)
		e = max(e-1, 1-bias) // exponent of the leading digit; subnormal numbers share the lowest
		// In units of the last place x is at most 2^(manBits+1), so the rounding is exact arithmetic; a carry out of the
		// mantissa runs into the exponent, which is what it should do.
		m := uint64(math.RoundToEven(math.Ldexp(x, manBits-e)))
		return sign | min(m+uint64(e+bias-1)<<manBits, inf), true
	}
}

// nan says which patterns of a small float are not a number.
type nan int

const (
	noNaN   nan = iota // every pattern is finite
	fnNaN              // all ones, either sign; no infinities
	uzNaN              // the pattern of minus zero; no infinities
	ieeeNaN            // as IEEE 754: the highest exponent holds infinities and NaN
)

// small is a float format of at most 8 bits: sign, exponent, mantissa.
type small struct {
	exp, man, bias int
	nan            nan
}

func (f small) float64(x uint64) float64 {
	e, m := int(x>>f.man)&(1<<f.exp-1), int(x)&(1<<f.man-1)
	top := 1<<f.exp - 1
	switch {
	case f.nan == uzNaN && x == 1<<(f.exp+f.man),
		f.nan == fnNaN && e == top && m == 1<<f.man-1,
		f.nan == ieeeNaN && e == top && m != 0:
		return math.NaN()
	}
	var v float64
	switch {
	case f.nan == ieeeNaN && e == top:
		v = math.Inf(1)
	case e == 0:
		v = math.Ldexp(float64(m), 1-f.bias-f.man)
	default:
		v = math.Ldexp(float64(m+1<<f.man), e-f.bias-f.man)
	}
	if x>>(f.exp+f.man) != 0 {
		v = -v
	}
	return v
}

// exponent reads FLOAT8E8M0, a power of two without sign or mantissa.
func exponent(x uint64) float64 {
	if x == 255 {
		return math.NaN()
	}
	return math.Ldexp(1, int(x)-127)
}
