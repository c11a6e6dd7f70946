package quant

import (
	"math"

	"github.com/x448/float16"

	"onnx-dha/graph/onnxpb"
)

// rounders round to the types that scales are stored in.
var rounders = map[dataType]func(float64) float64{
	floatType:                  func(x float64) float64 { return float64(float32(x)) },
	onnxpb.TensorProto_DOUBLE:  func(x float64) float64 { return x },
	onnxpb.TensorProto_FLOAT16: func(x float64) float64 { return float64(float16.Fromfloat32(float32(x)).Float32()) },
	onnxpb.TensorProto_BFLOAT16: func(x float64) float64 {
		b := math.Float32bits(float32(x))
		return float64(math.Float32frombits((b + 0x7fff + b>>16&1) &^ 0xffff))
	},
}

// range of numbers that a weight's codes stand for before scale and zero point, and how scale and zero point may be
// chosen. It is read off the codes in use: a tool that left out a code or a bit (a symmetric range, a reduced one) had a
// reason.
type grid struct {
	elem   *element
	lo, hi float64
	fixed  bool // zero points stay
	whole  bool // they are integers
	signed bool // scales may be negative
	round  func(float64) float64
	shrink []float64 // factors of the scale that are tried
}

// Factors for codes of few bits, where a scale under the largest number's can cost it less than the others gain.
var shrinks = map[int][]float64{2: {1, 0.9, 0.8, 0.7, 0.6, 0.5}, 4: {1, 0.96, 0.92, 0.88, 0.84, 0.8}}

func (m *Matrix) grid(o *opened) grid {
	g := grid{elem: m.elem, lo: math.Inf(1), hi: math.Inf(-1), whole: true, shrink: []float64{1}, round: rounders[m.Stored[scales].Tensor.DType()]}
	used := make([]bool, len(m.elem.numbers))
	for _, c := range o.codes[:o.rows*o.cols] {
		used[c] = true
	}
	for c, u := range used {
		if x := m.elem.numbers[c]; u && !math.IsNaN(x) && !math.IsInf(x, 0) {
			g.lo, g.hi = min(g.lo, x), max(g.hi, x)
		}
	}
	lowest, highest := m.elem.limits()
	g.fixed = m.fixedZeros(o)
	if g.fixed { // as far on one side of the zero point as on the other
		zero := o.zeros[0]
		reach := max(g.hi-zero, zero-g.lo)
		g.lo, g.hi = max(zero-reach, lowest), min(zero+reach, highest)
	}
	if g.lo >= g.hi {
		g.lo, g.hi = lowest, highest
	}
	if len(m.Stored) > zeros {
		_, real := rounders[m.Stored[zeros].Tensor.DType()]
		g.whole = !real
	}
	for _, s := range o.scales {
		g.signed = g.signed || s < 0
	}
	if m.elem.integer && shrinks[m.elem.bits] != nil {
		g.shrink = shrinks[m.elem.bits]
	}
	return g
}

// limits are the smallest and the largest number of a code.
func (e *element) limits() (lo, hi float64) {
	lo, hi = math.Inf(1), math.Inf(-1)
	for _, x := range e.numbers {
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			lo, hi = min(lo, x), max(hi, x)
		}
	}
	return lo, hi
}

// fixedZeros reports whether zero points stay as they are: none stored, one for blocks of different scales, or all in the
// middle of the codes.
func (m *Matrix) fixedZeros(o *opened) bool {
	if len(m.Stored) <= zeros {
		return true
	}
	p := m.store.planes(o.size)
	if s, z := p[scales], p[zeros]; s.row != 0 && z.row == 0 || s.col != 0 && z.col == 0 {
		return true
	}
	lo, hi := m.elem.limits()
	middle := math.Ceil((lo + hi) / 2)
	for _, z := range o.zeros {
		if z != middle {
			return false
		}
	}
	return true
}

// over returns a/b, 0 where the codes have nothing on that side.
func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// settled reports whether there is but one scale to choose for given numbers.
func (g *grid) settled() bool { return len(g.shrink) == 1 && !(g.fixed && g.signed) }

// fit chooses scale and zero point for the numbers of a block: of those that span the numbers, or nearly, the pair with
// the smallest sum of squared errors. zero is the zero point where they are fixed.
func (g *grid) fit(x []float64, zero float64) (scale, at float64) {
	least, most := 0.0, 0.0
	for _, v := range x {
		least, most = min(least, v), max(most, v)
	}
	if least == 0 && most == 0 {
		return 1, zero
	}
	best := math.Inf(1)
	try := func(s float64) {
		s = g.round(s)
		z := zero
		if !g.fixed {
			z = g.lo - least/s
			if g.whole {
				z = min(max(math.RoundToEven(z), g.lo), g.hi)
			}
		}
		if s == 0 || math.IsInf(s, 0) || math.IsNaN(z) {
			return
		}
		if g.settled() {
			scale, at = s, z
			return
		}
		sum := 0.0
		for _, v := range x {
			d := v - (g.elem.numbers[g.elem.nearest(v/s+z, g.lo, g.hi)]-z)*s
			sum += d * d
		}
		if sum < best {
			best, scale, at = sum, s, z
		}
	}
	for _, f := range g.shrink {
		if !g.fixed {
			try(f * (most - least) / (g.hi - g.lo))
			continue
		}
		try(f * max(over(most, g.hi-zero), over(least, g.lo-zero)))
		if g.signed {
			try(-f * max(over(most, zero-g.lo), over(least, zero-g.hi)))
		}
	}
	if scale == 0 { // too small for the scale's type
		return 1, zero
	}
	return scale, at
}

// holds reports whether codes under scale and zero point reach a number, which was rounded to float32.
func (g *grid) holds(v, scale, zero float64) bool {
	x := v/scale + zero
	if g.elem.integer {
		x = math.RoundToEven(x)
	}
	slack := 1e-6 * (g.hi - g.lo)
	return x >= g.lo-slack && x <= g.hi+slack
}
