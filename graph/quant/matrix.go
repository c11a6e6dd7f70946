package quant

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"sync"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Matrix is a quantised constant matrix as a graph stores it. Entry (r, c) is (code − zero point) · scale, of which each
// block of BlockRows × BlockCols entries shares scale and zero point.
type Matrix struct {
	Rows, Cols           int // what activations [.., Rows] meet, and gives [.., Cols]
	BlockRows, BlockCols int
	// Stored are the constants that hold it: codes, scales, and zero points where there are any.
	Stored []Constant

	op    string // the operator that reads it
	elem  *element
	zero  float64 // the zero point where none is stored
	group []int   // block row of every row where rows are not in order (g_idx)
	store store
}

// Constant is an input of a node that holds a part of a quantised matrix.
type Constant struct {
	Node   *graph.Node
	Input  int
	Tensor *graph.Tensor
}

// Value is what the node reads there.
func (c Constant) Value() *graph.Value { return c.Node.In[c.Input] }

// Roles of the stored constants.
const (
	codes = iota
	scales
	zeros
)

// size is the size of a matrix and of its blocks.
type size struct{ rows, cols, blockRows, blockCols int }

// store says how an operator stores a matrix of some size.
type store struct {
	// padded is the number of rows that codes are stored of; nil: all and no more.
	padded func(size) int
	planes func(size) []plane // as Stored
	attrs  func(size) []*onnxpb.AttributeProto
	// finer tells that blocks may be given another size.
	finer bool
}

func (m *Matrix) size() size { return size{m.Rows, m.Cols, m.BlockRows, m.BlockCols} }

func (s size) blocks() (rows, cols int) { return ceil(s.rows, s.blockRows), ceil(s.cols, s.blockCols) }

func ceil(a, b int) int { return (a + b - 1) / b }

func (m *Matrix) padded(s size) int {
	if m.store.padded == nil {
		return s.rows
	}
	return m.store.padded(s)
}

// String names the operator, the type of the codes and what shares a scale: "MatMulNBits, 4 bits in blocks of 32".
func (m *Matrix) String() string {
	var per string
	switch {
	case m.BlockRows == m.Rows && m.BlockCols == m.Cols:
		per = "per tensor"
	case m.BlockRows == m.Rows && m.BlockCols == 1:
		per = "per column"
	case m.BlockRows == 1 && m.BlockCols == m.Cols:
		per = "per row"
	case m.BlockCols == 1:
		per = fmt.Sprintf("in blocks of %d", m.BlockRows)
	default:
		per = fmt.Sprintf("in blocks of %d columns", m.BlockCols)
	}
	s := fmt.Sprintf("%s, %s %s", m.op, m.elem.name, per)
	if len(m.Stored) > zeros {
		s += ", zero points"
	}
	return s
}

// opened is a matrix with everything read.
type opened struct {
	size
	elem   *element
	codes  []uint16 // [padded, cols]
	scales []float64
	zeros  []float64
	group  []int
}

// open reads the stored constants.
func (m *Matrix) open() (*opened, error) {
	s := m.size()
	planes := m.store.planes(s)
	raw, err := m.Stored[codes].Tensor.Bytes()
	if err != nil {
		return nil, err
	}
	o := &opened{size: s, elem: m.elem, codes: planes[codes].read(raw, m.padded(s), s.cols), group: m.group}
	nr, nc := s.blocks()
	if o.scales, err = planes[scales].numbers(m.Stored[scales].Tensor, nr, nc); err != nil {
		return nil, err
	}
	o.zeros = make([]float64, nr*nc)
	for i := range o.zeros {
		o.zeros[i] = m.zero
	}
	if len(m.Stored) > zeros {
		p, t := planes[zeros], m.Stored[zeros].Tensor
		if p.packed() {
			raw, err := t.Bytes()
			if err != nil {
				return nil, err
			}
			for i, x := range p.read(raw, nr, nc) {
				o.zeros[i] = float64(x)
			}
		} else if o.zeros, err = p.numbers(t, nr, nc); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// packed reports whether a tensor's elements hold several numbers.
func (p plane) packed() bool { return p.bits != graph.ElementBits(p.dtype) }

// block returns the index of the block of an entry.
func (o *opened) block(r, c int) int {
	_, nc := o.blocks()
	b := r / o.blockRows
	if o.group != nil {
		b = o.group[r]
	}
	return b*nc + c/o.blockCols
}

// number is the entry (r, c), rounded to float32 as runtimes do.
func (o *opened) number(r, c int) float32 {
	b := o.block(r, c)
	return float32((o.elem.numbers[o.codes[r*o.cols+c]] - o.zeros[b]) * o.scales[b])
}

// Decode returns the matrix as a float tensor [Rows, Cols], whose elements are made when they are asked for.
func (m *Matrix) Decode(name string) *graph.Tensor {
	return graph.Computed(name, floatType, []int64{int64(m.Rows), int64(m.Cols)}, 4*int64(m.Rows)*int64(m.Cols), func() ([]byte, error) {
		o, err := m.open()
		if err != nil {
			return nil, err
		}
		out := make([]byte, 4*o.rows*o.cols)
		parts := min(runtime.GOMAXPROCS(0), o.rows)
		var workers sync.WaitGroup
		for p := range parts {
			workers.Go(func() {
				for r := o.rows * p / parts; r < o.rows*(p+1)/parts; r++ {
					for c := range o.cols {
						binary.LittleEndian.PutUint32(out[4*(r*o.cols+c):], math.Float32bits(o.number(r, c)))
					}
				}
			})
		}
		workers.Wait()
		return out, nil
	})
}

// valid checks that the constants hold the matrix.
func (m *Matrix) valid() error {
	s := m.size()
	if s.rows < 1 || s.cols < 1 || s.blockRows < 1 || s.blockCols < 1 {
		return fmt.Errorf("its weight has no entries")
	}
	if math.MaxInt32/s.rows < s.cols {
		return fmt.Errorf("its weight of %d × %d is too large", s.rows, s.cols)
	}
	nr, nc := s.blocks()
	for i, p := range m.store.planes(s) {
		rows, cols := nr, nc
		if i == codes {
			rows, cols = m.padded(s), s.cols
		}
		t := m.Stored[i].Tensor
		if t.DType() != p.dtype || int64(p.elements()) != t.Len()*int64(graph.ElementBits(p.dtype))/int64(p.bits) || !p.fits(rows, cols) {
			return fmt.Errorf("%q has dims %v, which do not hold %d × %d", t.Name(), t.Dims(), rows, cols)
		}
	}
	return nil
}
