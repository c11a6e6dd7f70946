// Package quant reads and writes quantised weights: constants of a few bits with a scale, and perhaps a zero point, for
// every block of them. A weight is a matrix of numbers to those who use it; how its codes, scales and zero points lie in
// the tensors of an operator is one row of a table for each operator.
package quant

import (
	"math"
	"slices"
	"sync"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

type dataType = onnxpb.TensorProto_DataType

const (
	floatType = onnxpb.TensorProto_FLOAT
	uint8Type = onnxpb.TensorProto_UINT8
)

// element is what the codes of a weight stand for.
type element struct {
	name    string
	bits    int
	integer bool
	numbers []float64 // of every code; NaN for one that stands for no number
	sorted  []uint16  // codes of finite numbers in the order of these, one for each number; none for integers
}

// newElement makes the element type of codes that stand for the given numbers.
func newElement(name string, integer bool, numbers []float64) *element {
	e := &element{name: name, integer: integer, numbers: numbers}
	for 1<<e.bits < len(numbers) {
		e.bits++
	}
	if integer {
		return e
	}
	for c, x := range numbers {
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			e.sorted = append(e.sorted, uint16(c))
		}
	}
	slices.SortStableFunc(e.sorted, func(a, b uint16) int {
		switch x, y := numbers[a], numbers[b]; {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	e.sorted = slices.CompactFunc(e.sorted, func(a, b uint16) bool { return numbers[a] == numbers[b] }) // one of ±0
	return e
}

// nearest returns the code of the number that is nearest to x among those from lo to hi, the even one of two that are
// equally near.
func (e *element) nearest(x, lo, hi float64) uint16 {
	x = min(max(x, lo), hi)
	if e.integer {
		return uint16(int64(math.RoundToEven(x))) & uint16(len(e.numbers)-1)
	}
	i, found := slices.BinarySearchFunc(e.sorted, x, func(c uint16, x float64) int {
		switch n := e.numbers[c]; {
		case n < x:
			return -1
		case n > x:
			return 1
		}
		return 0
	})
	switch {
	case found || i == 0:
		return e.sorted[min(i, len(e.sorted)-1)]
	case i == len(e.sorted):
		return e.sorted[i-1]
	}
	below, above := e.sorted[i-1], e.sorted[i]
	switch down, up := x-e.numbers[below], e.numbers[above]-x; {
	case down < up, down == up && below%2 == 0:
		return below
	}
	return above
}

// elements are the ONNX types that weights are quantised to. Each is made when it is asked for.
var elements = map[dataType]func() *element{}

func init() {
	for t, name := range map[dataType]string{
		onnxpb.TensorProto_INT2: "int2", onnxpb.TensorProto_INT4: "int4", onnxpb.TensorProto_INT8: "int8", onnxpb.TensorProto_INT16: "int16",
		onnxpb.TensorProto_UINT2: "uint2", onnxpb.TensorProto_UINT4: "uint4", onnxpb.TensorProto_UINT8: "uint8", onnxpb.TensorProto_UINT16: "uint16",
	} {
		elements[t] = sync.OnceValue(func() *element { return newElement(name, true, numbers(t)) })
	}
	for t, name := range map[dataType]string{
		onnxpb.TensorProto_FLOAT8E4M3FN: "float8 e4m3fn", onnxpb.TensorProto_FLOAT8E4M3FNUZ: "float8 e4m3fnuz",
		onnxpb.TensorProto_FLOAT8E5M2: "float8 e5m2", onnxpb.TensorProto_FLOAT8E5M2FNUZ: "float8 e5m2fnuz", onnxpb.TensorProto_FLOAT4E2M1: "float4 e2m1",
	} {
		elements[t] = sync.OnceValue(func() *element { return newElement(name, false, numbers(t)) })
	}
}

// elementOf returns what codes of an ONNX type stand for, nil when it is none that weights are quantised to.
func elementOf(t dataType) *element {
	if make := elements[t]; make != nil {
		return make()
	}
	return nil
}

// numbers reads a tensor of every code of a type.
func numbers(t dataType) []float64 {
	bits := graph.ElementBits(t)
	codes := make([]uint16, 1<<bits)
	for c := range codes {
		codes[c] = uint16(c)
	}
	p := plane{dtype: t, bits: bits, dims: []int64{int64(len(codes))}, row: 1}
	raw := p.write(codes, len(codes), 1)
	out, err := graph.Computed("codes", t, p.dims, int64(len(raw)), func() ([]byte, error) { return raw, nil }).Float64s()
	if err != nil {
		panic(err) // every type above has numbers
	}
	return out
}

// normalFloat4 and float4 are the numbers that the codes of 4-bit weights of bitsandbytes stand for (Dettmers et al.
// 2023, arXiv 2305.14314, appendix E, and the library's FP4), with a scale that makes the largest of a block ±1.
var (
	normalFloat4 = newElement("nf4", false, []float64{
		-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0,
		0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
	})
	float4 = newElement("fp4", false, []float64{
		0, 0.005208333333, 0.66666667, 1, 0.33333333, 0.5, 0.16666667, 0.25, math.Copysign(0, -1), -0.005208333333, -0.66666667, -1, -0.33333333, -0.5, -0.16666667, -0.25,
	})
)
