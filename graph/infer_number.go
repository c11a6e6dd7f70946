package graph

import (
	"math"

	"onnx-dha/graph/onnxpb"
)

// number is one known element: a float, or an integer that may be symbolic.
type number struct {
	real bool
	f    float64
	d    Dim
}

func realNumber(x float64) number { return number{real: true, f: x} }
func intNumber(d Dim) number      { return number{d: d} }

// integer returns x as a Dim, false when it is not an integer (or too large to be one for certain).
func (x number) integer() (Dim, bool) {
	if !x.real {
		return x.d, true
	}
	if x.f != math.Trunc(x.f) || math.Abs(x.f) > 1<<53 {
		return Dim{}, false
	}
	return Int(int64(x.f)), true
}

// value returns x as a float, false when it is symbolic.
func (x number) value() (float64, bool) {
	if x.real {
		return x.f, true
	}
	n, ok := x.d.Const()
	return float64(n), ok
}

// precision holds the float types that are folded, with their rounding.
var precision = map[elemType]func(float64) float64{
	onnxpb.TensorProto_DOUBLE:   func(x float64) float64 { return x },
	onnxpb.TensorProto_FLOAT:    func(x float64) float64 { return float64(float32(x)) },
	onnxpb.TensorProto_FLOAT16:  func(x float64) float64 { return roundBits(x, 11, -14, 15) },
	onnxpb.TensorProto_BFLOAT16: func(x float64) float64 { return roundBits(x, 8, -126, 127) },
}

// roundBits rounds x, ties to even, to a binary format with the given bits of significand (the leading one included)
// and the exponents of its smallest normal and largest numbers.
func roundBits(x float64, bits, minExp, maxExp int) float64 {
	if x == 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return x
	}
	_, e := math.Frexp(x) // |x| is in [2^(e-1), 2^e)
	ulp := max(e-1, minExp) - (bits - 1)
	y := math.Ldexp(math.RoundToEven(math.Ldexp(x, -ulp)), ulp)
	if math.Abs(y) >= math.Ldexp(1, maxExp+1) {
		return math.Inf(int(math.Copysign(1, x)))
	}
	return y
}

// width holds the integer types that are folded, with the wrapping of numbers that do not fit. Unsigned 64-bit numbers
// beyond int64 are kept by their bits.
var width = map[elemType]func(int64) int64{
	onnxpb.TensorProto_INT64:  func(n int64) int64 { return n },
	onnxpb.TensorProto_UINT64: func(n int64) int64 { return n },
	onnxpb.TensorProto_INT32:  func(n int64) int64 { return int64(int32(n)) },
	onnxpb.TensorProto_UINT32: func(n int64) int64 { return int64(uint32(n)) },
	onnxpb.TensorProto_INT16:  func(n int64) int64 { return int64(int16(n)) },
	onnxpb.TensorProto_UINT16: func(n int64) int64 { return int64(uint16(n)) },
	onnxpb.TensorProto_INT8:   func(n int64) int64 { return int64(int8(n)) },
	onnxpb.TensorProto_UINT8:  func(n int64) int64 { return int64(uint8(n)) },
	onnxpb.TensorProto_BOOL:   func(n int64) int64 { return n },
}

// pack stores elements as the element type holds them; nil when it cannot hold them exactly.
func (f *Facts) pack(e elemType, shape []int64, nums []number) *Known {
	k := &Known{Shape: shape}
	if round := precision[e]; round != nil {
		if floats, ok := values(nums); ok {
			for i := range floats {
				floats[i] = round(floats[i])
			}
			k.Floats = floats
			return k
		}
	} else if width[e] == nil {
		return nil
	}
	k.Ints = make([]Dim, len(nums))
	for i, x := range nums {
		d, ok := x.integer()
		if !ok {
			return nil
		}
		if n, ok := d.Const(); ok && width[e] != nil {
			d = Int(width[e](n))
		}
		if d.lost {
			d = f.newInt()
		}
		k.Ints[i] = d
	}
	return k
}

// values returns nums as floats, false when one is symbolic.
func values(nums []number) ([]float64, bool) {
	out := make([]float64, len(nums))
	for i, x := range nums {
		var ok bool
		if out[i], ok = x.value(); !ok {
			return nil, false
		}
	}
	return out, true
}

// known returns the elements of input i when it is small.
func (c *call) known(i int) (*Known, bool) {
	v := c.Input(i)
	if t := v.Const(); t != nil {
		if n, ok := product(t.Dims()); !ok || n > maxFold || !c.f.spend(n) {
			return nil, false
		}
		return knownTensor(t, maxFold)
	}
	if fa := c.f.of[v]; fa != nil && fa.known != nil {
		return fa.known, true
	}
	return nil, false
}

// numbers returns the elements and the shape of input i when it is small.
func (c *call) numbers(i int) ([]number, []int64, bool) {
	k, ok := c.known(i)
	if !ok {
		return nil, nil, false
	}
	n := len(k.Ints) + len(k.Floats)
	if !c.f.spend(n) {
		return nil, nil, false
	}
	nums := make([]number, n)
	for j, x := range k.Floats {
		nums[j] = realNumber(x)
	}
	float := isFloat(c.elem(i))
	for j, d := range k.Ints {
		nums[j] = intNumber(d)
		if n, ok := d.Const(); ok && float {
			nums[j] = realNumber(float64(n))
		}
	}
	return nums, k.Shape, true
}

// foldable reports whether numbers would return the elements of every input that is there, without reading them.
func (c *call) foldable() bool {
	for _, v := range c.In {
		if v == nil {
			continue
		}
		if fa := c.f.of[v]; fa != nil && fa.known != nil {
			continue
		}
		t := v.Const()
		if t == nil {
			return false
		}
		if n, ok := product(t.Dims()); !ok || n > maxFold {
			return false
		}
	}
	return true
}

// spend takes n from what Infer may still compute; once it does not suffice nothing is folded any more.
func (f *Facts) spend(n int) bool {
	f.budget = max(f.budget-n, 0)
	return f.budget > 0
}
