package quant

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Change says how a new matrix is made of an old one along one axis.
type Change struct {
	Axis int   // 0: rows, 1: columns
	From []int // of every new row or column: the old one that it is a copy of, -1 for others
	// Mixed holds the new matrix, FLOAT [rows, cols].
	Mixed *graph.Tensor
	// Where one scale goes along the whole axis, All are the rows or columns that it has to suit, FLOAT, and Kept says that
	// old ones are among them; nil: those of Mixed.
	All  *graph.Tensor
	Kept bool
	// Unit is how many neighbours move and are mixed together: stretches of Unit rows or columns that begin at multiples of
	// Unit. 0: all.
	Unit int
}

// Recoded is a changed matrix as the operator stores it.
type Recoded struct {
	// Constants are by their roles in Matrix.Stored. Their bytes are made when they are asked for.
	Constants []*graph.Tensor
	// Attrs are attributes of the reading node that change.
	Attrs []*onnxpb.AttributeProto

	mu       sync.Mutex
	make     func() ([][]byte, Rounding, error)
	parts    [][]byte
	rounding *Rounding
}

// Rounding is what quantising numbers anew changed of them.
type Rounding struct {
	Numbers int64   // that were quantised; copies of old ones are not
	Squares float64 // Σ x² over them
	Errors  float64 // Σ (x − quantised x)²
}

// Relative is the root of the mean squared error over the root of the mean square.
func (r Rounding) Relative() float64 {
	if r.Squares == 0 {
		return 0
	}
	return math.Sqrt(r.Errors / r.Squares)
}

// Add adds what another matrix lost.
func (r *Rounding) Add(o Rounding) {
	r.Numbers += o.Numbers
	r.Squares += o.Squares
	r.Errors += o.Errors
}

// Rounding quantises the matrix unless that was done, and returns what it changed.
func (r *Recoded) Rounding() (Rounding, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rounding == nil {
		_, rounding, err := r.make()
		if err != nil {
			return Rounding{}, err
		}
		r.rounding = &rounding
	}
	return *r.rounding, nil
}

// part returns the bytes of a constant. All are made at once and kept until each was asked for, so that a matrix is
// quantised once while a model is saved.
func (r *Recoded) part(i int) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.parts == nil || r.parts[i] == nil {
		parts, rounding, err := r.make()
		if err != nil {
			return nil, err
		}
		r.parts, r.rounding = parts, &rounding
	}
	b := r.parts[i]
	r.parts[i] = nil
	if !slices.ContainsFunc(r.parts, func(b []byte) bool { return b != nil }) {
		r.parts = nil
	}
	return b, nil
}

// ErrMisaligned is the error of a change that does not keep blocks of entries with one scale together.
var ErrMisaligned = errors.New("blocks of numbers that share a scale do not lie within heads")

// Movable reports whether rows (axis 0) or columns can be moved and mixed in runs of n that begin at multiples of n, so
// that what they become depends on nothing but themselves.
func (m *Matrix) Movable(axis, n int) bool {
	length, block := m.Rows, m.BlockRows
	if axis == 1 {
		length, block = m.Cols, m.BlockCols
	}
	return (axis == 1 || m.group == nil) && (block >= length || n%block == 0 || m.store.finer)
}

// Recode makes the constants of a changed matrix in the scheme of the old one: rows and columns that are copies keep
// their codes and scales, others are quantised again with the least rounding that the range of codes in use allows. Where
// one scale goes along the whole axis it stays as long as copies need it and it holds everything.
//
// What a row or column becomes depends on its own numbers, on All and on whether something is Kept, not on where it lies:
// two matrices that hold the same ones in another order, or some of them more than once, get the same codes.
func (m *Matrix) Recode(c Change) (*Recoded, error) {
	s := m.size()
	length, block := &s.rows, &s.blockRows
	if c.Axis == 1 {
		length, block = &s.cols, &s.blockCols
	}
	old := *length
	for _, f := range c.From {
		if f >= old {
			return nil, fmt.Errorf("entry %d of %d is asked for", f, old)
		}
	}
	*length = len(c.From)
	along := *block >= old
	switch {
	case along:
		if *block == old {
			*block = len(c.From)
		}
	case c.Unit%*block != 0:
		if !m.store.finer {
			return nil, fmt.Errorf("%w: %v", ErrMisaligned, m)
		}
		*block = gcd(*block, c.Unit)
	}
	if c.Axis == 0 && m.group != nil {
		return nil, fmt.Errorf("%w: rows are in another order than their scales", ErrMisaligned)
	}
	if want := []int64{int64(s.rows), int64(s.cols)}; !slices.Equal(c.Mixed.Dims(), want) {
		return nil, fmt.Errorf("new numbers have dims %v, want %v", c.Mixed.Dims(), want)
	}
	r := &Recoded{Attrs: m.attrs(s)}
	planes := m.store.planes(s)
	for i, p := range planes {
		r.Constants = append(r.Constants, graph.Computed(m.Stored[i].Value().Name, p.dtype, p.dims, int64(p.size()), func() ([]byte, error) { return r.part(i) }))
	}
	r.make = func() ([][]byte, Rounding, error) {
		w := &recoding{m: m, c: c, size: s, along: along}
		return w.run(planes)
	}
	return r, nil
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// attrs are the attributes that are others for a matrix of size s.
func (m *Matrix) attrs(s size) []*onnxpb.AttributeProto {
	if m.store.attrs == nil {
		return nil
	}
	return m.store.attrs(s)
}

// recoding is the work of one Recode. Entries are named by i along the changed axis and j along the other.
type recoding struct {
	m     *Matrix
	c     Change
	size       // of the new matrix
	along bool // one scale goes along the whole axis
	old   *opened
	grid  grid
	mixed []float32

	codes         []uint16
	scales, zeros []float64
	lines         [][]int // by block along the other axis: its j
	shared        []pair  // by the same, where a scale goes along the whole axis
}

// pair is a scale with its zero point.
type pair struct {
	scale, zero float64
	kept        bool // those of the old matrix
}

func (w *recoding) run(planes []plane) ([][]byte, Rounding, error) {
	var err error
	if w.old, err = w.m.open(); err != nil {
		return nil, Rounding{}, err
	}
	if w.mixed, err = w.c.Mixed.Float32s(); err != nil {
		return nil, Rounding{}, err
	}
	w.grid = w.m.grid(w.old)
	stored := w.m.padded(w.size)
	w.codes = make([]uint16, stored*w.cols)
	nr, nc := w.blocks()
	w.scales, w.zeros = make([]float64, nr*nc), make([]float64, nr*nc)
	w.group()
	if w.along {
		if err := w.share(); err != nil {
			return nil, Rounding{}, err
		}
	}
	block, length := w.blockRows, w.rows
	if w.c.Axis == 1 {
		block, length = w.blockCols, w.cols
	}
	// Blocks are shared among processors; what was lost is added up in their order.
	n := ceil(length, block)
	lost := make([]Rounding, n)
	parts := min(runtime.GOMAXPROCS(0), n)
	var workers sync.WaitGroup
	for p := range parts {
		workers.Go(func() {
			for b := n * p / parts; b < n*(p+1)/parts; b++ {
				lost[b] = w.block(b, b*block, min((b+1)*block, length))
			}
		})
	}
	workers.Wait()
	var total Rounding
	for _, l := range lost {
		total.Add(l)
	}
	out := make([][]byte, len(planes))
	out[codes] = planes[codes].write(w.codes, stored, w.cols)
	if out[scales], err = planes[scales].put(w.scales, nr, nc); err != nil {
		return nil, Rounding{}, err
	}
	if len(planes) > zeros {
		if out[zeros], err = planes[zeros].put(w.zeros, nr, nc); err != nil {
			return nil, Rounding{}, err
		}
	}
	return out, total, nil
}

// group lists the entries along the other axis by block.
func (w *recoding) group() {
	length, block := w.cols, w.blockCols
	if w.c.Axis == 1 {
		length, block = w.rows, w.blockRows
	}
	w.lines = make([][]int, ceil(length, block))
	for j := range length {
		b := j / block
		if w.c.Axis == 1 && w.old.group != nil {
			b = w.old.group[j]
		}
		w.lines[b] = append(w.lines[b], j)
	}
}

func (w *recoding) at(i, j, cols int) int {
	if w.c.Axis == 1 {
		return j*cols + i
	}
	return i*cols + j
}

// oldBlock is the old block of entry i and a block along the other axis.
func (w *recoding) oldBlock(i, b int) int {
	_, nc := w.old.blocks()
	if w.c.Axis == 1 {
		return b*nc + i/w.old.blockCols
	}
	return i/w.old.blockRows*nc + b
}

// share chooses the scales that go along the whole axis.
func (w *recoding) share() error {
	all, cols, count := w.mixed, w.cols, len(w.c.From)
	kept := slices.ContainsFunc(w.c.From, func(f int) bool { return f >= 0 })
	if w.c.All != nil {
		kept = w.c.Kept
		var err error
		if all, err = w.c.All.Float32s(); err != nil {
			return err
		}
		d := w.c.All.Dims()
		cols, count = int(d[1]), int(d[w.c.Axis])
	}
	for b, line := range w.lines {
		x := make([]float64, 0, count*len(line))
		for i := range count {
			for _, j := range line {
				x = append(x, float64(all[w.at(i, j, cols)]))
			}
		}
		o := w.oldBlock(0, b)
		p := pair{w.old.scales[o], w.old.zeros[o], kept}
		for _, v := range x {
			p.kept = p.kept && w.grid.holds(v, p.scale, p.zero)
		}
		if !p.kept {
			if !w.grid.settled() { // the sum of errors must not depend on the order
				slices.Sort(x)
				x = slices.Compact(x)
			}
			p.scale, p.zero = w.grid.fit(x, p.zero)
		}
		w.shared = append(w.shared, p)
	}
	return nil
}

// block makes the entries from first to last along the changed axis, which share their scales.
func (w *recoding) block(b, first, last int) (lost Rounding) {
	_, nc := w.blocks()
	copied := w.copies(first, last)
	for ob, line := range w.lines {
		at := b*nc + ob
		if w.c.Axis == 1 {
			at = ob*nc + b
		}
		if copied && !w.along {
			o := w.oldBlock(w.c.From[first], ob)
			w.scales[at], w.zeros[at] = w.old.scales[o], w.old.zeros[o]
			w.copy(first, last, line)
			continue
		}
		var p pair
		if w.along {
			p = w.shared[ob]
		} else {
			x := make([]float64, 0, (last-first)*len(line))
			for i := first; i < last; i++ {
				for _, j := range line {
					x = append(x, float64(w.mixed[w.at(i, j, w.cols)]))
				}
			}
			zero := w.m.zero
			if len(w.old.zeros) > 0 {
				zero = w.old.zeros[w.oldBlock(0, ob)]
			}
			p.scale, p.zero = w.grid.fit(x, zero)
		}
		w.scales[at], w.zeros[at] = p.scale, p.zero
		for i := first; i < last; i++ {
			if p.kept && w.c.From[i] >= 0 {
				w.copy(i, i+1, line)
				continue
			}
			for _, j := range line {
				k := w.at(i, j, w.cols)
				v := float64(w.mixed[k])
				code := w.grid.elem.nearest(v/p.scale+p.zero, w.grid.lo, w.grid.hi)
				w.codes[k] = code
				d := v - (w.grid.elem.numbers[code]-p.zero)*p.scale
				lost.Numbers++
				lost.Squares += v * v
				lost.Errors += d * d
			}
		}
	}
	if w.c.Axis == 1 { // rows that are stored but not read
		for r := w.rows; r < w.m.padded(w.size); r++ {
			for c := first; c < last; c++ {
				if f := w.c.From[c]; copied {
					w.codes[r*w.cols+c] = w.old.codes[r*w.old.cols+f]
				}
			}
		}
	}
	return lost
}

// copies reports whether the entries from first to last are an old block of one scale.
func (w *recoding) copies(first, last int) bool {
	old := w.old.rows
	block := w.blockRows
	if w.c.Axis == 1 {
		old, block = w.old.cols, w.blockCols
	}
	for i := first; i < last; i++ {
		if f := w.c.From[i]; f < 0 || f != w.c.From[first]+i-first {
			return false
		}
	}
	return w.along || w.c.From[first]%block == 0 && (last-first == block || w.c.From[last-1] == old-1)
}

// copy takes over the codes of entries that are old ones.
func (w *recoding) copy(first, last int, line []int) {
	for i := first; i < last; i++ {
		for _, j := range line {
			w.codes[w.at(i, j, w.cols)] = w.old.codes[w.at(w.c.From[i], j, w.old.cols)]
		}
	}
}

// put makes the bytes of a tensor of scales or zero points.
func (p plane) put(x []float64, rows, cols int) ([]byte, error) {
	if _, real := rounders[p.dtype]; !real {
		c := make([]uint16, len(x))
		for i, v := range x {
			c[i] = uint16(int64(v)) & uint16(1<<p.bits-1)
		}
		// Several blocks may share one: theirs are the same.
		return p.write(c, rows, cols), nil
	}
	all := make([]float64, p.elements())
	for r := range rows {
		for c := range cols {
			all[r*p.row+c*p.col] = x[r*cols+c]
		}
	}
	t, err := graph.FromFloat64s("", p.dtype, p.dims, all)
	if err != nil {
		return nil, err
	}
	return t.Bytes()
}
