package quant

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Dequantized returns the matrix that v is when v is what DequantizeLinear makes of constants with two axes. ok is false
// for anything else, and err says what is not understood of one that is.
func Dequantized(f *graph.Facts, v *graph.Value) (m *Matrix, ok bool, err error) {
	n := dequantizer(f, v)
	if n == nil || len(f.Const(n.In[0]).Dims()) != 2 {
		return nil, false, nil
	}
	m = &Matrix{op: "DequantizeLinear"}
	for i := range 3 {
		if n.Input(i) != nil {
			m.Stored = append(m.Stored, Constant{n, i, f.Const(n.In[i])})
		}
	}
	d := m.Stored[codes].Tensor.Dims()
	m.Rows, m.Cols = int(d[0]), int(d[1])
	l, err := linearBlocks(n, m.Stored)
	if err == nil {
		m.BlockRows, m.BlockCols = l.blockRows, l.blockCols
		m.store = l.store(m.Stored)
		err = m.finish()
	}
	if err != nil {
		return nil, true, fmt.Errorf("%v: %w", n, err)
	}
	return m, true, nil
}

// dequantizer is the DequantizeLinear that makes v of constants alone.
func dequantizer(f *graph.Facts, v *graph.Value) *graph.Node {
	if v == nil || v.Init != nil || v.Producer == nil || v.Producer.OpType != "DequantizeLinear" {
		return nil
	}
	n := v.Producer
	if d := n.Domain; d != "" && d != "ai.onnx" && d != "com.microsoft" || n.Input(0) == nil || n.Input(1) == nil {
		return nil
	}
	for _, x := range n.In {
		if x != nil && f.Const(x) == nil {
			return nil
		}
	}
	return n
}

// finish looks the element type up and checks sizes.
func (m *Matrix) finish() error {
	if m.elem == nil {
		if m.elem = elementOf(m.Stored[codes].Tensor.DType()); m.elem == nil {
			return fmt.Errorf("the codes %q are %v, which weights are not quantised to", m.Stored[codes].Tensor.Name(), m.Stored[codes].Tensor.DType())
		}
	}
	if t := m.Stored[scales].Tensor; rounders[t.DType()] == nil {
		return fmt.Errorf("the scales %q are %v, want a floating-point type", t.Name(), t.DType())
	}
	return m.valid()
}

// linear is how DequantizeLinear stores a matrix [rows, cols].
type linear struct {
	blockRows, blockCols int
	axis                 int  // along which scales differ, -1 for a single one
	blocked              bool // scales have as many axes as codes
}

// linearBlocks reads how scales are shared off their form: one for all, one for each index of the axis, one for each block
// along it.
func linearBlocks(n *graph.Node, stored []Constant) (linear, error) {
	d, s := stored[codes].Tensor.Dims(), stored[scales].Tensor.Dims()
	l := linear{int(d[0]), int(d[1]), -1, false}
	axis := n.Int("axis", 1)
	if axis < 0 {
		axis += 2
	}
	if len(stored) > zeros && stored[zeros].Tensor.Len() != stored[scales].Tensor.Len() {
		return l, fmt.Errorf("it has %d scales and %d zero points", stored[scales].Tensor.Len(), stored[zeros].Tensor.Len())
	}
	switch {
	case len(s) == 0 || len(s) == 1 && s[0] == 1 && (axis > 1 || d[axis] != 1):
		return l, nil
	case axis > 1 || len(s) > 2:
		return l, fmt.Errorf("axis %d and scales %v do not fit codes %v", axis, s, d)
	case len(s) == 1 && s[0] == d[axis]:
		l.axis = int(axis)
		if l.blockRows = 1; axis == 1 {
			l.blockRows, l.blockCols = int(d[0]), 1
		}
		return l, nil
	case len(s) == 2 && s[1-axis] == d[1-axis] && s[axis] > 0:
		l.axis, l.blocked = int(axis), true
		size := n.Int("block_size", 0)
		if size == 0 {
			size = (d[axis] + s[axis] - 1) / s[axis]
		}
		if size < 1 || (d[axis]+size-1)/size != s[axis] {
			return l, fmt.Errorf("%d scales do not cover an axis of %d in blocks of %d", s[axis], d[axis], size)
		}
		l.blockRows, l.blockCols = int(size), 1
		if axis == 1 {
			l.blockRows, l.blockCols = 1, int(size)
		}
		return l, nil
	}
	return l, fmt.Errorf("scales %v do not fit codes %v along axis %d", s, d, axis)
}

// store makes planes of any size in the form of the stored constants.
func (l linear) store(stored []Constant) store {
	small := func(t *graph.Tensor, s size) plane {
		p := plane{dtype: t.DType(), bits: graph.ElementBits(t.DType())}
		nr, nc := s.blocks()
		switch {
		case l.axis < 0:
			p.dims = slices.Clone(t.Dims())
		case l.blocked:
			p.dims, p.row, p.col = []int64{int64(nr), int64(nc)}, nc, 1
		case l.axis == 0:
			p.dims, p.row = []int64{int64(nr)}, 1
		default:
			p.dims, p.col = []int64{int64(nc)}, 1
		}
		return p
	}
	return store{
		finer: l.blocked,
		planes: func(s size) []plane {
			t := stored[codes].Tensor
			out := []plane{{dtype: t.DType(), bits: graph.ElementBits(t.DType()), dims: []int64{int64(s.rows), int64(s.cols)}, row: s.cols, col: 1}}
			for _, c := range stored[1:] {
				out = append(out, small(c.Tensor, s))
			}
			return out
		},
		attrs: func(s size) []*onnxpb.AttributeProto {
			if !l.blocked {
				return nil
			}
			return []*onnxpb.AttributeProto{graph.IntAttr("block_size", int64(max(s.blockRows, s.blockCols)))}
		},
	}
}

// Transposed is the same matrix as those see it who read it through a transposition.
func (m *Matrix) Transposed() *Matrix {
	t := *m
	t.Rows, t.Cols, t.BlockRows, t.BlockCols = m.Cols, m.Rows, m.BlockCols, m.BlockRows
	turn := func(s size) size { return size{s.cols, s.rows, s.blockCols, s.blockRows} }
	t.store.planes = func(s size) []plane {
		planes := m.store.planes(turn(s))
		for i := range planes {
			planes[i].row, planes[i].col = planes[i].col, planes[i].row
		}
		return planes
	}
	if m.store.attrs != nil {
		t.store.attrs = func(s size) []*onnxpb.AttributeProto { return m.store.attrs(turn(s)) }
	}
	return &t
}

// Numbers returns what DequantizeLinear makes of constants of any number of axes, a tensor of the same dims; nil where v is
// nothing of the kind. Matrices are FLOAT, others of v's type.
func Numbers(f *graph.Facts, v *graph.Value) *graph.Tensor {
	n := dequantizer(f, v)
	if n == nil {
		return nil
	}
	t, scale := f.Const(n.In[0]), f.Const(n.In[1])
	if len(t.Dims()) == 2 {
		if m, ok, err := Dequantized(f, v); ok && err == nil {
			return m.Decode(v.Name)
		}
		return nil
	}
	var zero *graph.Tensor
	if n.Input(2) != nil {
		zero = f.Const(n.In[2])
	}
	// Scales along one axis, or one.
	each, count := int64(1), scale.Len()
	if count != 1 {
		axis := n.Int("axis", 1)
		if axis < 0 {
			axis += int64(len(t.Dims()))
		}
		if axis < 0 || axis >= int64(len(t.Dims())) || len(scale.Dims()) != 1 || count != t.Dims()[axis] {
			return nil
		}
		for _, d := range t.Dims()[axis+1:] {
			each *= d
		}
	}
	if zero != nil && zero.Len() != count || count == 0 {
		return nil
	}
	elem := f.Elem(v)
	if rounders[elem] == nil {
		elem = floatType
	}
	return graph.Computed(v.Name, elem, slices.Clone(t.Dims()), int64(graph.ElementBits(elem)/8)*t.Len(), func() ([]byte, error) {
		x, err := t.Float64s()
		if err != nil {
			return nil, err
		}
		s, err := scale.Float64s()
		if err != nil {
			return nil, err
		}
		z := make([]float64, len(s))
		if zero != nil {
			if z, err = zero.Float64s(); err != nil {
				return nil, err
			}
		}
		for i := range x {
			k := int64(i) / each % count
			x[i] = (x[i] - z[k]) * s[k]
		}
		out, err := graph.FromFloat64s(v.Name, elem, t.Dims(), x)
		if err != nil {
			return nil, err
		}
		return out.Bytes()
	})
}
