package rewrite

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

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

// recipe identifies the tensor that the rows make of t along axis.
func (r rows) recipe(t *graph.Tensor, axis int) string {
	h := sha256.New()
	var b []byte
	for _, ts := range r {
		b = binary.AppendUvarint(b[:0], uint64(len(ts)))
		for _, x := range ts {
			b = binary.LittleEndian.AppendUint64(binary.AppendVarint(b, int64(x.at)), math.Float64bits(x.weight))
			if x.from != nil {
				b = fmt.Appendf(b, "%p", x.from)
			}
		}
		h.Write(b)
	}
	return fmt.Sprintf("%p %d %x", t, axis, h.Sum(nil))
}

// run is a stretch of neighbouring new rows that are made alike: row first+k is Σ weight·old[at+k] over the terms. Heads
// make runs of their size, so that the elements of a tensor are gone through in long stretches whatever the axis.
type run struct {
	first, length int
	terms         []term
}

// runs cuts rows into runs.
func (r rows) runs() []run {
	var out []run
	for i, ts := range r {
		if len(out) > 0 && out[len(out)-1].goesOn(ts) {
			out[len(out)-1].length++
			continue
		}
		out = append(out, run{i, 1, ts})
	}
	return out
}

// goesOn reports whether ts are the terms of the row after the run.
func (r run) goesOn(ts []term) bool {
	return slices.EqualFunc(r.terms, ts, func(x, y term) bool {
		x.at += r.length
		return x == y
	})
}

// copies reports whether the rows are old ones.
func (r run) copies() bool {
	return len(r.terms) == 1 && r.terms[0].weight == 1 && r.terms[0].from == nil
}

// floatCodec reads and writes one floating-point element type.
type floatCodec struct {
	size int
	add  func(sum []float64, weight float64, b []byte) // sum += weight·b
	put  func(b []byte, sum []float64)
}

// codecs are the element types that weights may have. Sums are in float64 and rounded once, to nearest even.
var codecs = map[onnxpb.TensorProto_DataType]floatCodec{
	onnxpb.TensorProto_FLOAT: {4,
		func(sum []float64, weight float64, b []byte) {
			for i := range sum {
				sum[i] += weight * float64(math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:])))
			}
		},
		func(b []byte, sum []float64) {
			for i, x := range sum {
				binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(float32(x)))
			}
		}},
	onnxpb.TensorProto_DOUBLE: {8,
		func(sum []float64, weight float64, b []byte) {
			for i := range sum {
				sum[i] += weight * math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
			}
		},
		func(b []byte, sum []float64) {
			for i, x := range sum {
				binary.LittleEndian.PutUint64(b[8*i:], math.Float64bits(x))
			}
		}},
	onnxpb.TensorProto_FLOAT16: {2,
		func(sum []float64, weight float64, b []byte) {
			for i := range sum {
				sum[i] += weight * float64(float16.Frombits(binary.LittleEndian.Uint16(b[2*i:])).Float32())
			}
		},
		func(b []byte, sum []float64) {
			for i, x := range sum {
				binary.LittleEndian.PutUint16(b[2*i:], roundHalf(x))
			}
		}},
	onnxpb.TensorProto_BFLOAT16: {2,
		func(sum []float64, weight float64, b []byte) {
			for i := range sum {
				sum[i] += weight * float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:]))<<16))
			}
		},
		func(b []byte, sum []float64) {
			for i, x := range sum {
				binary.LittleEndian.PutUint16(b[2*i:], roundBrain(x))
			}
		}},
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
	recipe := r.recipe(t, axis)
	m := mixture{codec, n, len(r), outer, inner, r.runs()}
	mixed := graph.Computed(t.Name(), t.DType(), dims, bytes, func() ([]byte, error) {
		old, err := t.Bytes()
		if err != nil {
			return nil, err
		}
		mixed := make([]byte, bytes)
		m.fill(mixed, old)
		t.Release()
		return mixed, nil
	})
	mixed.Recipe = recipe
	return mixed, nil
}

// mixture makes the elements of a mixed tensor [outer, rows, inner] of those of an old one [outer, old, inner].
type mixture struct {
	codec        floatCodec
	old, rows    int
	outer, inner int
	runs         []run
}

// fill shares the work among processors: each makes a part of the elements by itself, so the bytes are always the same.
func (m *mixture) fill(mixed, old []byte) {
	total := m.outer * len(m.runs)
	parts := min(runtime.GOMAXPROCS(0), 1+len(mixed)>>16)
	var workers sync.WaitGroup
	for p := range parts {
		workers.Go(func() {
			sum := make([]float64, 4096)
			for job := total * p / parts; job < total*(p+1)/parts; job++ {
				m.stretch(mixed, old, job/len(m.runs), m.runs[job%len(m.runs)], sum)
			}
		})
	}
	workers.Wait()
}

// stretch makes the elements of a run at outer index o; sum is room to work in.
func (m *mixture) stretch(mixed, old []byte, o int, r run, sum []float64) {
	size, length := m.codec.size, r.length*m.inner
	mixed = mixed[(o*m.rows+r.first)*m.inner*size:][:length*size]
	place := func(x term) []byte { return old[(o*m.old+x.at)*m.inner*size:][:length*size] }
	if r.copies() {
		copy(mixed, place(r.terms[0]))
		return
	}
	for done := 0; done < length; done += len(sum) {
		sum := sum[:min(len(sum), length-done)]
		clear(sum)
		for _, x := range r.terms {
			if x.from == nil {
				m.codec.add(sum, x.weight, place(x)[done*size:])
				continue
			}
			for i := range sum {
				at := done + i
				sum[i] += x.weight * x.from.At(o*m.inner+at%m.inner, x.at+at/m.inner)
			}
		}
		m.codec.put(mixed[done*size:], sum)
	}
}
