package graph

import (
	"fmt"
	"strings"

	"onnx-dha/graph/onnxpb"
)

// Facts is what is known of a graph's values without running it: element types, shapes, and the elements of small
// tensors. It describes the graph as it was when Infer ran; it is not changed afterwards and may be used from several
// goroutines.
type Facts struct {
	of    map[*Value]*fact
	fresh int
}

// fact is what is known of one value.
type fact struct {
	elem   onnxpb.TensorProto_DataType // UNDEFINED when unknown
	shape  []Dim
	ranked bool
	known  *Known
}

// Known is what is known of a small tensor's elements, in row-major order: Ints for integer and bool tensors (false is
// 0, true is 1), where an element may be symbolic, as the elements of Shape(x) are; Floats for float tensors.
type Known struct {
	Shape  []int64
	Ints   []Dim
	Floats []float64
}

// maxKnown is the number of elements up to which Known reads constants.
const maxKnown = 64 << 10

// Infer collects the facts of g, which is a main graph, and of the bodies inside it.
func Infer(g *Graph) *Facts {
	f := &Facts{of: map[*Value]*fact{}}
	for _, v := range g.Inputs {
		f.declare(v)
	}
	g.All(func(n *Node) bool {
		for _, o := range n.Out {
			if o != nil {
				f.declare(o)
			}
		}
		return true
	})
	return f
}

// declare takes a value's declared type for true.
func (f *Facts) declare(v *Value) {
	tt := v.Info.GetType().GetTensorType()
	if tt == nil {
		return
	}
	fa := &fact{elem: onnxpb.TensorProto_DataType(tt.GetElemType())}
	if tt.Shape != nil {
		fa.ranked = true
		for _, d := range tt.Shape.Dim {
			fa.shape = append(fa.shape, f.declared(d))
		}
	}
	f.of[v] = fa
}

// declared returns a dimension as the file states it.
func (f *Facts) declared(d *onnxpb.TensorShapeProto_Dimension) Dim {
	switch x := d.Value.(type) {
	case *onnxpb.TensorShapeProto_Dimension_DimValue:
		if x.DimValue >= 0 {
			return Int(x.DimValue)
		}
	case *onnxpb.TensorShapeProto_Dimension_DimParam:
		if x.DimParam != "" && !strings.HasPrefix(x.DimParam, "?") {
			return ParseDim(x.DimParam)
		}
	}
	return f.newSym()
}

// newSym returns a symbol that nothing else equals.
func (f *Facts) newSym() Dim {
	f.fresh++
	return Sym(fmt.Sprintf("?%d", f.fresh))
}

// Shape returns the dimensions of v, false when its rank is unknown. A dimension of which nothing is known is a symbol
// of its own whose name starts with "?". The slice must not be changed.
func (f *Facts) Shape(v *Value) ([]Dim, bool) {
	if t := v.Const(); t != nil {
		shape := make([]Dim, len(t.Dims()))
		for i, d := range t.Dims() {
			shape[i] = Int(d)
		}
		return shape, true
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

// Known returns what is known of the elements of v: a constant of at most maxKnown elements, or what was folded.
func (f *Facts) Known(v *Value) (*Known, bool) {
	if t := v.Const(); t != nil {
		return knownTensor(t, maxKnown)
	}
	if fa := f.of[v]; fa != nil && fa.known != nil {
		return fa.known, true
	}
	return nil, false
}

// knownTensor reads a constant of at most limit elements.
func knownTensor(t *Tensor, limit int64) (*Known, bool) {
	if n := t.Len(); n < 0 || n > limit {
		return nil, false
	}
	k := &Known{Shape: t.Dims()}
	if ints, err := t.Int64s(); err == nil {
		k.Ints = make([]Dim, len(ints))
		for i, x := range ints {
			k.Ints[i] = Int(x)
		}
		return k, true
	}
	floats, err := t.Float64s()
	if err != nil {
		return nil, false
	}
	k.Floats = floats
	return k, true
}

// Ints returns the elements of an integer or bool tensor when all are known numbers.
func (f *Facts) Ints(v *Value) ([]int64, bool) {
	k, ok := f.Known(v)
	if !ok || k.Floats != nil {
		return nil, false
	}
	out := make([]int64, len(k.Ints))
	for i, d := range k.Ints {
		if out[i], ok = d.Const(); !ok {
			return nil, false
		}
	}
	return out, true
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
