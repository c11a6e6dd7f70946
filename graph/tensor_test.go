package graph

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

func tensorOf(dtype onnxpb.TensorProto_DataType, dims ...int64) *Tensor {
	return &Tensor{Proto: &onnxpb.TensorProto{Name: proto.String("t"), DataType: proto.Int32(int32(dtype)), Dims: dims}}
}

// Each element type in raw_data and in the typed list that the format assigns to it.
func TestEveryElementType(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	le := binary.LittleEndian
	for _, c := range []struct {
		dtype onnxpb.TensorProto_DataType
		raw   []byte
		typed func(*onnxpb.TensorProto)
		want  []float64
	}{
		{onnxpb.TensorProto_FLOAT, le.AppendUint32(le.AppendUint32(nil, 0x3fc00000), 0xff800000),
			func(t *onnxpb.TensorProto) { t.FloatData = []float32{1.5, float32(-inf)} }, []float64{1.5, -inf}},
		{onnxpb.TensorProto_DOUBLE, le.AppendUint64(nil, 0x3ff8000000000000),
			func(t *onnxpb.TensorProto) { t.DoubleData = []float64{1.5} }, []float64{1.5}},
		{onnxpb.TensorProto_FLOAT16, []byte{0x00, 0x3e, 0x01, 0x00, 0x00, 0xfc},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x3e00, 1, 0xfc00} }, []float64{1.5, math.Ldexp(1, -24), -inf}},
		{onnxpb.TensorProto_BFLOAT16, []byte{0xc0, 0x3f, 0x80, 0xff},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x3fc0, 0xff80} }, []float64{1.5, -inf}},
		// Largest, smallest, special values: tables of the ONNX documentation on float stored in 8 bits.
		{onnxpb.TensorProto_FLOAT8E4M3FN, []byte{0x7e, 0x01, 0x7f, 0xff, 0xb8, 0x80},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x7e, 1, 0x7f, 0xff, 0xb8, 0x80} }, []float64{448, math.Ldexp(1, -9), nan, nan, -1, 0}},
		{onnxpb.TensorProto_FLOAT8E4M3FNUZ, []byte{0x7f, 0x01, 0x80, 0xc0},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x7f, 1, 0x80, 0xc0} }, []float64{240, math.Ldexp(1, -10), nan, -1}},
		{onnxpb.TensorProto_FLOAT8E5M2, []byte{0x7b, 0x01, 0x7c, 0xfc, 0x7d, 0xbc},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x7b, 1, 0x7c, 0xfc, 0x7d, 0xbc} }, []float64{57344, math.Ldexp(1, -16), inf, -inf, nan, -1}},
		{onnxpb.TensorProto_FLOAT8E5M2FNUZ, []byte{0x7f, 0x01, 0x80, 0xc0},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x7f, 1, 0x80, 0xc0} }, []float64{57344, math.Ldexp(1, -17), nan, -1}},
		{onnxpb.TensorProto_FLOAT8E8M0, []byte{0, 127, 254, 255},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0, 127, 254, 255} }, []float64{math.Ldexp(1, -127), 1, math.Ldexp(1, 127), nan}},
		{onnxpb.TensorProto_FLOAT4E2M1, []byte{0x10, 0x32, 0x54, 0x76, 0xf9, 0x0c},
			func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x10, 0x32, 0x54, 0x76, 0xf9, 0x0c} }, []float64{0, .5, 1, 1.5, 2, 3, 4, 6, -.5, -6, -2}},

		{onnxpb.TensorProto_INT64, le.AppendUint64(nil, 1<<63), func(t *onnxpb.TensorProto) { t.Int64Data = []int64{math.MinInt64} }, []float64{math.MinInt64}},
		{onnxpb.TensorProto_INT32, le.AppendUint32(nil, 0xfffffffe), func(t *onnxpb.TensorProto) { t.Int32Data = []int32{-2} }, []float64{-2}},
		{onnxpb.TensorProto_INT16, []byte{0xfe, 0xff, 1, 0}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{-2, 1} }, []float64{-2, 1}},
		{onnxpb.TensorProto_INT8, []byte{0x80, 0x7f}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{-128, 127} }, []float64{-128, 127}},
		{onnxpb.TensorProto_INT4, []byte{0x78, 0x0f}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x78, 0x0f} }, []float64{-8, 7, -1}},
		{onnxpb.TensorProto_INT2, []byte{0b11_10_01_00, 0b10}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0b11_10_01_00, 0b10} }, []float64{0, 1, -2, -1, -2}},
		{onnxpb.TensorProto_UINT64, le.AppendUint64(nil, 1<<63), func(t *onnxpb.TensorProto) { t.Uint64Data = []uint64{1 << 63} }, []float64{1 << 63}},
		{onnxpb.TensorProto_UINT32, le.AppendUint32(nil, 0xfffffffe), func(t *onnxpb.TensorProto) { t.Uint64Data = []uint64{0xfffffffe} }, []float64{0xfffffffe}},
		{onnxpb.TensorProto_UINT16, []byte{0xfe, 0xff}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0xfffe} }, []float64{0xfffe}},
		{onnxpb.TensorProto_UINT8, []byte{0xfe}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0xfe} }, []float64{0xfe}},
		{onnxpb.TensorProto_UINT4, []byte{0x78, 0x0f}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0x78, 0x0f} }, []float64{8, 7, 15}},
		{onnxpb.TensorProto_UINT2, []byte{0b11_10_01_00, 0b10}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0b11_10_01_00, 0b10} }, []float64{0, 1, 2, 3, 2}},
		{onnxpb.TensorProto_BOOL, []byte{0, 1}, func(t *onnxpb.TensorProto) { t.Int32Data = []int32{0, 1} }, []float64{0, 1}},
	} {
		raw, typed := tensorOf(c.dtype, int64(len(c.want))), tensorOf(c.dtype, int64(len(c.want)))
		raw.Proto.RawData = c.raw
		c.typed(typed.Proto)
		for form, x := range map[string]*Tensor{"raw": raw, "typed": typed} {
			got, err := x.Float64s()
			if err != nil || !slices.EqualFunc(got, c.want, sameFloat) {
				t.Errorf("%v %s: %v, want %v, %v", c.dtype, form, got, c.want, err)
			}
			narrow, err := x.Float32s()
			if err != nil || !slices.EqualFunc(narrow, c.want, func(a float32, b float64) bool { return sameFloat(float64(a), float64(float32(b))) }) {
				t.Errorf("%v %s: as float32 %v, want %v, %v", c.dtype, form, narrow, c.want, err)
			}
			if b, err := x.Bytes(); err != nil || !bytes.Equal(b, c.raw) {
				t.Errorf("%v %s: bytes %x, want %x, %v", c.dtype, form, b, c.raw, err)
			}
			ints, err := x.Int64s()
			integer := !strings.Contains(c.dtype.String(), "FLOAT") && c.dtype != onnxpb.TensorProto_DOUBLE
			switch {
			case !integer && (err == nil || !strings.Contains(err.Error(), "want integers")):
				t.Errorf("%v %s: read as integers, %v", c.dtype, form, err)
			case c.dtype == onnxpb.TensorProto_UINT64 && (err == nil || !strings.Contains(err.Error(), "element 0, 9223372036854775808, is over the range of int64")):
				t.Errorf("%v %s: %v", c.dtype, form, err)
			case integer && c.dtype != onnxpb.TensorProto_UINT64:
				if err != nil || !slices.EqualFunc(ints, c.want, func(a int64, b float64) bool { return a == int64(b) }) {
					t.Errorf("%v %s: %v, want %v, %v", c.dtype, form, ints, c.want, err)
				}
			}
			if err := x.checkData(); err != nil {
				t.Errorf("%v %s: %v", c.dtype, form, err)
			}
		}
	}
	for dtype := range onnxpb.TensorProto_DataType_name {
		d := onnxpb.TensorProto_DataType(dtype)
		if _, ok := elementTypes[d]; !ok && d != onnxpb.TensorProto_STRING && d != onnxpb.TensorProto_UNDEFINED {
			t.Errorf("%v is not in the table", d)
		}
	}
}

func sameFloat(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

// Every pattern of the two half-size formats comes back, and between two neighbours the nearer one is taken, the even
// one in the middle.
func TestRoundingIsToNearestEven(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		dtype onnxpb.TensorProto_DataType
		inf   int
	}{{onnxpb.TensorProto_FLOAT16, 0x7c00}, {onnxpb.TensorProto_BFLOAT16, 0x7f80}} {
		all := tensorOf(c.dtype, 1<<16)
		for i := range 1 << 16 {
			all.Proto.RawData = binary.LittleEndian.AppendUint16(all.Proto.RawData, uint16(i))
		}
		values, err := all.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		back, err := FromFloat64s("", c.dtype, []int64{1 << 16}, values)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range values {
			if b := binary.LittleEndian.Uint16(back.Proto.RawData[2*i:]); !math.IsNaN(x) && int(b) != i {
				t.Fatalf("%v: pattern %#x, %g, became %#x", c.dtype, i, x, b)
			}
			if math.IsNaN(x) != (i&0x7fff > c.inf) {
				t.Fatalf("%v: pattern %#x is %g", c.dtype, i, x)
			}
		}
		var in []float64
		var want []int
		add := func(x float64, pattern int) {
			in, want = append(in, x, -x), append(want, pattern, pattern|0x8000)
		}
		for i := range c.inf {
			lo, hi := values[i], values[i+1]
			if i == c.inf-1 { // the step that would follow the largest number
				hi = 2*lo - values[i-1]
			}
			even := i + i&1
			mid := lo + (hi-lo)/2 // exact: both have few digits
			add(mid, even)
			add(math.Nextafter(mid, 0), i)
			add(math.Nextafter(mid, hi), i+1)
			if x := lo + (hi-lo)*rng.Float64(); x != mid {
				add(x, i+presence(x > mid))
			}
		}
		add(math.Inf(1), c.inf)
		add(math.MaxFloat64, c.inf)
		add(math.SmallestNonzeroFloat64, 0)
		got, err := FromFloat64s("", c.dtype, []int64{int64(len(in))}, in)
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range in {
			if b := int(binary.LittleEndian.Uint16(got.Proto.RawData[2*i:])); b != want[i] {
				t.Fatalf("%v: %g became %#x, %g; want %#x, %g", c.dtype, x, b, values[b], want[i], values[want[i]])
			}
		}
		if x, err := FromFloat64s("", c.dtype, nil, []float64{math.NaN()}); err != nil {
			t.Error(err)
		} else if v, err := x.Float64s(); err != nil || !math.IsNaN(v[0]) {
			t.Errorf("%v: NaN became %v, %v", c.dtype, v, err)
		}
	}
}

func TestFromFloat64s(t *testing.T) {
	in := []float64{0, 1, 100}
	for dtype, e := range elementTypes {
		x, err := FromFloat64s("x", dtype, []int64{3, 1}, in)
		if e.put == nil {
			if err == nil || !strings.Contains(err.Error(), `tensor "x": cannot make a `+dtype.String()) {
				t.Errorf("%v: %v", dtype, err)
			}
			continue
		}
		if dtype == onnxpb.TensorProto_BOOL {
			if err == nil || !strings.Contains(err.Error(), "element 2 is 100, which BOOL does not hold") {
				t.Errorf("%v: %v", dtype, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%v: %v", dtype, err)
		}
		if got, err := x.Float64s(); err != nil || !slices.Equal(got, in) || x.DType() != dtype || x.Len() != 3 || x.Name() != "x" {
			t.Errorf("%v: %v, %v", dtype, got, err)
		}
	}
	for _, c := range []struct {
		dtype onnxpb.TensorProto_DataType
		x     float64
		want  string
	}{
		{onnxpb.TensorProto_INT8, 128, "element 0 is 128, which INT8 does not hold"},
		{onnxpb.TensorProto_INT8, -129, "does not hold"},
		{onnxpb.TensorProto_UINT8, -1, "does not hold"},
		{onnxpb.TensorProto_UINT8, 256, "does not hold"},
		{onnxpb.TensorProto_INT64, 1 << 63, "does not hold"},
		{onnxpb.TensorProto_UINT64, 1 << 63 * 2, "does not hold"},
		{onnxpb.TensorProto_INT32, 0.5, "element 0 is 0.5"},
		{onnxpb.TensorProto_INT32, math.NaN(), "element 0 is NaN"},
		{onnxpb.TensorProto_UINT32, math.Inf(1), "element 0 is +Inf"},
	} {
		if _, err := FromFloat64s("x", c.dtype, []int64{1}, []float64{c.x}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v of %v: %v", c.dtype, c.x, err)
		}
	}
	for _, c := range []struct {
		dtype onnxpb.TensorProto_DataType
		x     float64
	}{{onnxpb.TensorProto_INT8, -128}, {onnxpb.TensorProto_INT64, -1 << 63}, {onnxpb.TensorProto_UINT64, 1 << 63}, {onnxpb.TensorProto_BOOL, 1}, {onnxpb.TensorProto_UINT16, 65535}} {
		x, err := FromFloat64s("x", c.dtype, nil, []float64{c.x})
		if err != nil {
			t.Errorf("%v of %v: %v", c.dtype, c.x, err)
		} else if got, err := x.Float64s(); err != nil || got[0] != c.x {
			t.Errorf("%v of %v: %v, %v", c.dtype, c.x, got, err)
		}
	}
	if _, err := FromFloat64s("x", onnxpb.TensorProto_FLOAT, []int64{2, 2}, in); err == nil || !strings.Contains(err.Error(), "3 values for dims [2 2], which hold 4") {
		t.Error(err)
	}
	if _, err := FromFloat64s("x", onnxpb.TensorProto_FLOAT, []int64{-3}, in); err == nil || !strings.Contains(err.Error(), "a dimension is negative") {
		t.Error(err)
	}
}

// Integers reach float32 in one rounding: 2⁵⁴+2³⁰+1 lies just above the middle of two float32 numbers, and float64
// loses the one that tells.
func TestIntegersRoundOnce(t *testing.T) {
	const x = 1<<54 + 1<<30 + 1
	got, err := NewTensor("x", nil, []int64{x}).Float32s()
	if err != nil || got[0] != 1<<54+1<<31 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestTensorErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		t    *Tensor
		want string
	}{
		{"bytes do not fit", func() *Tensor {
			x := tensorOf(onnxpb.TensorProto_FLOAT, 2)
			x.Proto.RawData = make([]byte, 9)
			return x
		}(), `tensor "t": dims [2] of FLOAT take 8 bytes, but the data has 9`},
		{"entries do not fit", func() *Tensor {
			x := tensorOf(onnxpb.TensorProto_INT4, 3)
			x.Proto.Int32Data = []int32{1, 2, 3}
			return x
		}(), `tensor "t": dims [3] of INT4 take 2 entries, but the data has 3`},
		{"negative", tensorOf(onnxpb.TensorProto_FLOAT, 2, -1), `tensor "t": dims [2 -1]: a dimension is negative`},
		{"overflow", tensorOf(onnxpb.TensorProto_INT4, 1<<32, 1<<32), "the number of elements overflows"},
		{"overflow in bytes", tensorOf(onnxpb.TensorProto_DOUBLE, 1<<61), "the number of elements overflows"},
		{"no data", tensorOf(onnxpb.TensorProto_FLOAT, 1<<40), "but the data has 0"},
		{"segment", func() *Tensor {
			x := tensorOf(onnxpb.TensorProto_FLOAT, 1)
			x.Proto.Segment = &onnxpb.TensorProto_Segment{}
			return x
		}(), "segmented tensors are not supported"},
		{"external and alone", func() *Tensor {
			x := tensorOf(onnxpb.TensorProto_FLOAT, 1)
			x.Proto.DataLocation = onnxpb.TensorProto_EXTERNAL.Enum()
			return x
		}(), "its data is external, but the tensor belongs to no loaded model"},
		{"strings", tensorOf(onnxpb.TensorProto_STRING, 1), `tensor "t": its elements are STRING, want numbers`},
		{"complex", tensorOf(onnxpb.TensorProto_COMPLEX64, 1), "its elements are COMPLEX64, want numbers"},
		{"undefined", tensorOf(onnxpb.TensorProto_UNDEFINED, 1), "its elements are UNDEFINED, want numbers"},
		{"of the future", tensorOf(99, 1), "its elements are 99, want numbers"},
	} {
		if _, err := c.t.Float64s(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if _, err := c.t.Float32s(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if _, err := tensorOf(onnxpb.TensorProto_STRING, 1).Bytes(); err == nil || !strings.Contains(err.Error(), "element type STRING has no bytes") {
		t.Error(err)
	}
	x := tensorOf(onnxpb.TensorProto_COMPLEX128, 1)
	x.Proto.DoubleData = []float64{1, -1}
	if b, err := x.Bytes(); err != nil || len(b) != 16 || x.checkData() != nil {
		t.Errorf("complex: %x, %v", b, err)
	}
	if n := tensorOf(onnxpb.TensorProto_FLOAT, 0, 1<<62, 1<<62).Len(); n != 0 {
		t.Errorf("an empty tensor has %d elements", n)
	}
	if got, err := tensorOf(onnxpb.TensorProto_FLOAT, 0).Float64s(); err != nil || len(got) != 0 {
		t.Errorf("an empty tensor: %v, %v", got, err)
	}
	if got, err := tensorOf(onnxpb.TensorProto_FLOAT).Float64s(); err == nil {
		t.Errorf("a scalar without data: %v", got)
	}
}

func TestNewTensor(t *testing.T) {
	check := func(x *Tensor, dtype onnxpb.TensorProto_DataType, want ...float64) {
		t.Helper()
		got, err := x.Float64s()
		if err != nil || x.DType() != dtype || !slices.Equal(got, want) {
			t.Errorf("%v %v, want %v %v; %v", x.DType(), got, dtype, want, err)
		}
	}
	d := []int64{2}
	check(NewTensor("", d, []float32{1.5, -2}), onnxpb.TensorProto_FLOAT, 1.5, -2)
	check(NewTensor("", d, []float64{1.5, -2}), onnxpb.TensorProto_DOUBLE, 1.5, -2)
	check(NewTensor("", d, []int32{1, -2}), onnxpb.TensorProto_INT32, 1, -2)
	check(NewTensor("", d, []int64{1, -2}), onnxpb.TensorProto_INT64, 1, -2)
	check(NewTensor("", d, []int8{1, -2}), onnxpb.TensorProto_INT8, 1, -2)
	check(NewTensor("", d, []uint8{1, 254}), onnxpb.TensorProto_UINT8, 1, 254)
	check(NewTensor("", d, []bool{true, false}), onnxpb.TensorProto_BOOL, 1, 0)
	check(NewTensor("", nil, []float32{7}), onnxpb.TensorProto_FLOAT, 7)
	check(NewTensor[int64]("", []int64{0}, nil), onnxpb.TensorProto_INT64)
}
