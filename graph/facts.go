package graph

import (
	"math"

	"onnx-dha/graph/onnxpb"
)

// Facts is what is known of a graph's values without running it: element types, shapes, and the elements of small
// tensors. It describes the graph as it was when Infer ran and is not changed afterwards.
//
// Facts hold for every run that the operators accept, and for these readings, without which an exporter's graph means
// nothing: where a Slice or Range takes or drops a single element of a symbolic dimension, the element is there; a
// computed bound of a Slice does not lie beyond a table of fixed size, such as a causal mask of the longest sequence; and
// an element that a Reshape takes for a dimension is one, although its symbol might stand for 0. Where two named
// dimensions broadcast, one of them may be 1 and the result the other.
type Facts struct {
	of map[*Value]*fact

	functions map[opKey]bool  // the model's own functions
	fresh     int             // symbols made so far
	signed    map[string]bool // symbols that may stand for a negative number; dimensions cannot
	budget    int             // what may still be spent on folding
	loops     int             // bodies of loops around the node under inference

	proven      bool                // nothing is granted (see Prove)
	spreads     map[string][]string // symbols for what dimensions broadcast to: those dimensions, sorted
	spreadNames map[string]string   // and the other way round
}

// fact is what is known of one value.
type fact struct {
	elem   elemType // UNDEFINED when unknown
	shape  []Dim    // meaningful when ranked
	ranked bool
	// known holds the elements. In a float tensor with symbolic elements (a dimension that was cast) they are integers,
	// and kept in Ints.
	known *Known
	empty bool // a sequence without tensors
}

type elemType = onnxpb.TensorProto_DataType

// Known is what is known of a small tensor's elements, in row-major order: Ints for integer and bool tensors (false is
// 0, true is 1), where an element may be symbolic, as the elements of Shape(x) are; Floats for float tensors, rounded
// to the element type after every operation as the runtime does. Neither may be changed.
type Known struct {
	Shape  []int64
	Ints   []Dim
	Floats []float64
}

const (
	maxRank  = 16       // shapes of higher rank are not followed
	maxKnown = 64 << 10 // elements up to which Known reads constants
	maxFold  = 4096     // elements up to which tensors are computed
)

// Shape returns the dimensions of v, false when its rank is unknown. A dimension of which nothing is known is a symbol
// of its own, whose name starts with "?"; it equals only itself. The slice must not be changed.
func (f *Facts) Shape(v *Value) ([]Dim, bool) {
	if t := v.Const(); t != nil {
		return tensorShape(t)
	}
	if fa := f.of[v]; fa != nil && fa.ranked {
		return fa.shape, true
	}
	return nil, false
}

// Elem returns the element type of v, UNDEFINED when it is unknown.
func (f *Facts) Elem(v *Value) onnxpb.TensorProto_DataType {
	if t := v.Const(); t != nil {
		return t.DType()
	}
	if fa := f.of[v]; fa != nil {
		return fa.elem
	}
	return onnxpb.TensorProto_UNDEFINED
}

// Known returns what is known of the elements of v: those of a constant of at most 64 Ki elements, or what was folded,
// at most 4096. Up to eight integers that nobody can know, such as a length that the caller passes in, are symbols too
// (named "?…", and perhaps negative).
func (f *Facts) Known(v *Value) (*Known, bool) {
	if t := v.Const(); t != nil {
		return knownTensor(t, maxKnown)
	}
	if fa := f.of[v]; fa != nil && fa.known != nil && (fa.known.Ints == nil || !isFloat(fa.elem)) {
		return fa.known, true
	}
	return nil, false
}

// Ints returns the elements of an integer or bool tensor when all are known numbers.
func (f *Facts) Ints(v *Value) ([]int64, bool) {
	k, ok := f.Known(v)
	if !ok || k.Floats != nil {
		return nil, false
	}
	return constants(k.Ints)
}

// Scalar returns the element of a one-element tensor, integer or float, when it is a known number.
func (f *Facts) Scalar(v *Value) (float64, bool) {
	k, ok := f.Known(v)
	if !ok || len(k.Ints)+len(k.Floats) != 1 {
		return 0, false
	}
	if len(k.Floats) == 1 {
		return k.Floats[0], true
	}
	n, ok := k.Ints[0].Const()
	return float64(n), ok
}

// tensorShape returns a constant's dimensions.
func tensorShape(t *Tensor) ([]Dim, bool) {
	if len(t.Dims()) > maxRank {
		return nil, false
	}
	shape := make([]Dim, len(t.Dims()))
	for i, d := range t.Dims() {
		if d < 0 {
			return nil, false
		}
		shape[i] = Int(d)
	}
	return shape, true
}

// knownTensor reads a constant of at most limit elements.
func knownTensor(t *Tensor, limit int) (*Known, bool) {
	n, ok := product(t.Dims())
	if !ok || n > limit {
		return nil, false
	}
	k := &Known{Shape: t.Dims()}
	if isFloat(t.DType()) {
		floats, err := t.Float64s()
		if err != nil || len(floats) != n {
			return nil, false
		}
		k.Floats = floats
		return k, true
	}
	ints, err := t.Int64s()
	if err != nil || len(ints) != n {
		return nil, false
	}
	k.Ints = make([]Dim, n)
	for i, x := range ints {
		k.Ints[i] = Int(x)
	}
	return k, true
}

// constants returns the values of dims, false when one of them is symbolic.
func constants(dims []Dim) ([]int64, bool) {
	out := make([]int64, len(dims))
	for i, d := range dims {
		var ok bool
		if out[i], ok = d.Const(); !ok {
			return nil, false
		}
	}
	return out, true
}

// product returns the number of elements of a shape, false when it is negative or beyond all use.
func product(shape []int64) (int, bool) {
	n := int64(1)
	for _, d := range shape {
		var ok bool
		if n, ok = mul64(n, d); !ok || d < 0 {
			return 0, false
		}
	}
	return int(n), n <= math.MaxInt32
}

func isFloat(e elemType) bool {
	_, ok := precision[e]
	return ok
}

// isInteger reports whether e is an integer type that knownTensor reads exactly.
func isInteger(e elemType) bool {
	_, ok := width[e]
	return ok
}
