package rewrite

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/x448/float16"
	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// term is one summand of a mixed row: weight times row at of the old tensor, or of from where that is given.
type term struct {
	at     int
	weight float64
	from   *mat.Dense // [other entries, entries along the mixed axis]
}

// rows says how the entries of a tensor along one axis are made from the old ones: new entry i is Σ weight·old[at] over
// rows[i]. Fusing, tying, dropping and re-ordering heads are all of this form.
type rows [][]term

// keep returns rows that copy n entries.
func keep(n int) rows {
	r := make(rows, n)
	for i := range r {
		r[i] = []term{{at: i, weight: 1}}
	}
	return r
}

// trivial reports whether r copies n entries unchanged.
func (r rows) trivial(n int) bool {
	if len(r) != n {
		return false
	}
	for i, ts := range r {
		if len(ts) != 1 || ts[0] != (term{at: i, weight: 1}) {
			return false
		}
	}
	return true
}

// floatCodec reads and writes one floating-point element type.
type floatCodec struct {
	size int
	get  func([]byte) float64
	put  func([]byte, float64)
}

// codecs are the element types that weights may have. Sums are in float64 and rounded once, to nearest even.
var codecs = map[onnxpb.TensorProto_DataType]floatCodec{
	onnxpb.TensorProto_FLOAT: {4,
		func(b []byte) float64 { return float64(math.Float32frombits(binary.LittleEndian.Uint32(b))) },
		func(b []byte, x float64) { binary.LittleEndian.PutUint32(b, math.Float32bits(float32(x))) }},
	onnxpb.TensorProto_DOUBLE: {8,
		func(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) },
		func(b []byte, x float64) { binary.LittleEndian.PutUint64(b, math.Float64bits(x)) }},
	onnxpb.TensorProto_FLOAT16: {2,
		func(b []byte) float64 { return float64(float16.Frombits(binary.LittleEndian.Uint16(b)).Float32()) },
		func(b []byte, x float64) { binary.LittleEndian.PutUint16(b, roundHalf(x)) }},
	onnxpb.TensorProto_BFLOAT16: {2,
		func(b []byte) float64 {
			return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
		},
		func(b []byte, x float64) { binary.LittleEndian.PutUint16(b, roundBrain(x)) }},
}

// roundOdd rounds x to float32 with a sticky last bit, so that rounding the result again to at most 22 bits is the same
// as rounding x once (Boldo and Melquiond, "When double rounding is odd", 2005).
func roundOdd(x float64) float32 {
	f := float32(x)
	if float64(f) == x || math.IsNaN(x) || math.IsInf(float64(f), 0) {
		return f
	}
	bits := math.Float32bits(f)
	if math.Abs(float64(f)) > math.Abs(x) {
		bits-- // towards zero first
	}
	return math.Float32frombits(bits | 1)
}

func roundHalf(x float64) uint16 { return float16.Fromfloat32(roundOdd(x)).Bits() }

func roundBrain(x float64) uint16 {
	f := math.Float32bits(roundOdd(x))
	if math.IsNaN(x) {
		return uint16(f>>16) | 0x40
	}
	return uint16((f + 0x7fff + (f >> 16 & 1)) >> 16)
}

// mix makes a tensor like t whose entries along axis are r; the bytes are computed when they are asked for.
func mix(t *graph.Tensor, axis int, r rows) (*graph.Tensor, error) {
	codec, ok := codecs[t.DType()]
	if !ok {
		return nil, fmt.Errorf("tensor %q is %v, want a floating-point type", t.Name(), t.DType())
	}
	dims := append([]int64(nil), t.Dims()...)
	if axis < 0 || axis >= len(dims) {
		return nil, fmt.Errorf("tensor %q has %d axes, want more than %d", t.Name(), len(dims), axis)
	}
	n := int(dims[axis])
	outer, inner := 1, 1
	for i, d := range dims {
		if i < axis {
			outer *= int(d)
		} else if i > axis {
			inner *= int(d)
		}
	}
	for _, ts := range r {
		for _, x := range ts {
			others, entries := outer*inner, n
			if x.from != nil {
				others, entries = x.from.Dims()
			}
			if x.at < 0 || x.at >= entries {
				return nil, fmt.Errorf("tensor %q has %d entries along axis %d, entry %d is asked for", t.Name(), entries, axis, x.at)
			}
			if others != outer*inner {
				return nil, fmt.Errorf("tensor %q has %d entries beside axis %d, its learned values have %d", t.Name(), outer*inner, axis, others)
			}
		}
	}
	dims[axis] = int64(len(r))
	bytes := int64(outer) * int64(len(r)) * int64(inner) * int64(codec.size)
	return graph.Computed(t.Name(), t.DType(), dims, bytes, func() ([]byte, error) {
		src, err := t.Bytes()
		if err != nil {
			return nil, err
		}
		dst := make([]byte, bytes)
		w := inner * codec.size
		for o := range outer {
			from, to := src[o*n*w:(o+1)*n*w], dst[o*len(r)*w:(o+1)*len(r)*w]
			for i, ts := range r {
				if len(ts) == 1 && ts[0].weight == 1 && ts[0].from == nil {
					copy(to[i*w:(i+1)*w], from[ts[0].at*w:])
					continue
				}
				for e := 0; e < w; e += codec.size {
					sum := 0.0
					for _, x := range ts {
						if x.from != nil {
							sum += x.weight * x.from.At(o*inner+e/codec.size, x.at)
							continue
						}
						sum += x.weight * codec.get(from[x.at*w+e:])
					}
					codec.put(to[i*w+e:], sum)
				}
			}
		}
		return dst, nil
	}), nil
}
