package attention

import (
	"encoding/binary"
	"errors"
	"slices"
)

// A sample is a wire seen with small concrete sizes, where every element carries a label: the set of source columns
// (of a projection's output, say) that it was computed from. Moving labels through Reshape, Transpose, Split and the
// like is what a runtime does with numbers, so nothing about packing, interleaving or merged axes needs a case of its
// own; where the heads went is read off the labels afterwards.
//
// An axis along which no label changes is stored with size 1, so the cost of a sample is the number of columns, not
// batch × sequence × columns.
type sample struct {
	shape  []int
	stored []int // shape[i], or 1 where labels do not change along axis i
	data   []int32
	// scale is the product of the constant factors that the elements were multiplied by on the way; NaN where branches
	// with different factors meet.
	scale float64
}

// labels interns sets of columns: label 0 is the empty set, label c+1 with c < n is {c}, larger ones are looked up.
type labels struct {
	n     int32
	ones  []int32 // 0, 1, …, n-1: the sets of one column
	sets  [][]int32
	pairs []int32            // what sets of two columns lie in
	index map[string]int32   // of sets of more than two columns
	memo  map[[2]int32]int32 // unions of two labels, the smaller first; for two columns that is the index as well
}

func newLabels(n int) *labels {
	return &labels{n: int32(n), ones: count(n), index: map[string]int32{}, memo: map[[2]int32]int32{}}
}

// count returns 0, 1, …, n-1.
func count(n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(i)
	}
	return out
}

// set returns the columns behind a label, ascending.
func (l *labels) set(id int32) []int32 {
	switch {
	case id == 0:
		return nil
	case id <= l.n:
		return l.ones[id-1 : id : id]
	}
	return l.sets[id-l.n-1]
}

func (l *labels) intern(set []int32) int32 {
	switch len(set) {
	case 0:
		return 0
	case 1:
		return set[0] + 1
	case 2:
		pair := [2]int32{set[0] + 1, set[1] + 1}
		id, ok := l.memo[pair]
		if !ok {
			id = l.add(set)
			l.memo[pair] = id
		}
		return id
	}
	key := make([]byte, 0, 4*len(set))
	for _, c := range set {
		key = binary.LittleEndian.AppendUint32(key, uint32(c))
	}
	if id, ok := l.index[string(key)]; ok {
		return id
	}
	id := l.add(set)
	l.index[string(key)] = id
	return id
}

// add gives a set a label of its own.
func (l *labels) add(set []int32) int32 {
	l.sets = append(l.sets, set)
	return l.n + int32(len(l.sets))
}

// union returns the label of the union of two sets.
func (l *labels) union(a, b int32) int32 {
	switch {
	case a == b || b == 0:
		return a
	case a == 0:
		return b
	case a > b:
		a, b = b, a
	}
	if id, ok := l.memo[[2]int32{a, b}]; ok {
		return id
	}
	if b <= l.n { // two columns, for which the memo is the index
		l.pairs = append(l.pairs, a-1, b-1)
		id := l.add(l.pairs[len(l.pairs)-2 : len(l.pairs) : len(l.pairs)])
		l.memo[[2]int32{a, b}] = id
		return id
	}
	merged := slices.Concat(l.set(a), l.set(b))
	slices.Sort(merged)
	id := l.intern(slices.Compact(merged))
	l.memo[[2]int32{a, b}] = id
	return id
}

// errShape is returned for sizes that do not fit together; the caller names the node.
var errShape = errors.New("its sizes do not fit its inputs")

func product(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// strides returns row-major strides of the stored array, 0 for axes that are stored once.
func (s *sample) strides() []int {
	st := make([]int, len(s.stored))
	step := 1
	for i := len(s.stored) - 1; i >= 0; i-- {
		if s.stored[i] > 1 {
			st[i] = step
		}
		step *= s.stored[i]
	}
	return st
}

// strided reads an array of the given size, row-major, out of data: one step along axis a is steps[a] there.
func strided(data []int32, size, steps []int) []int32 {
	out := make([]int32, 0, product(size))
	var read func(axis, at int)
	read = func(axis, at int) {
		switch n, step := size[axis], steps[axis]; {
		case axis < len(size)-1:
			for range n {
				read(axis+1, at)
				at += step
			}
		case step == 1:
			out = append(out, data[at:at+n]...)
		default:
			for range n {
				out = append(out, data[at])
				at += step
			}
		}
	}
	if len(size) == 0 {
		return append(out, data[0])
	}
	read(0, 0)
	return out
}

// spread returns the labels of s stored at the given sizes, which may have more axes on the left: broadcasting.
func (s *sample) spread(stored []int) []int32 {
	return strided(s.data, stored, append(make([]int, len(stored)-len(s.stored)), s.strides()...))
}

// varies reports whether values, one for each element of a stored array, change along an axis of length n whose stride is
// step.
func varies(values []int32, n, step int) bool {
	if step == 0 {
		return false
	}
	for ; len(values) > 0; values = values[n*step:] {
		for i, v := range values[step : n*step] {
			if v != values[i] {
				return true
			}
		}
	}
	return false
}

// full returns s with the given axes stored at their full size.
func (s *sample) full(axes ...int) *sample {
	stored := slices.Clone(s.stored)
	same := true
	for _, a := range axes {
		same = same && stored[a] == s.shape[a]
		stored[a] = s.shape[a]
	}
	if same {
		return s
	}
	return &sample{s.shape, stored, s.spread(stored), s.scale}
}

// compact stores axes along which no label changes once.
func (s *sample) compact() *sample {
	stored, steps := slices.Clone(s.stored), s.strides()
	for a, step := range steps {
		if step > 0 && !varies(s.data, s.stored[a], step) {
			stored[a], steps[a] = 1, 0
		}
	}
	return &sample{s.shape, stored, strided(s.data, stored, steps), s.scale}
}

// transpose permutes axes: axis i of the result is axis perm[i] of s.
func (s *sample) transpose(perm []int) (*sample, error) {
	if len(perm) != len(s.shape) {
		return nil, errShape
	}
	shape, stored, steps := make([]int, len(perm)), make([]int, len(perm)), make([]int, len(perm))
	old := s.strides()
	seen := make([]bool, len(perm))
	for i, p := range perm {
		if p < 0 || p >= len(perm) || seen[p] {
			return nil, errShape
		}
		seen[p] = true
		shape[i], stored[i], steps[i] = s.shape[p], s.stored[p], old[p]
	}
	return &sample{shape, stored, strided(s.data, stored, steps), s.scale}, nil
}

// reshape changes the shape in row-major order. Axes are matched in the smallest groups of equal size; a group whose
// labels do not change stays stored once.
func (s *sample) reshape(shape []int) (*sample, error) {
	if product(shape) != product(s.shape) {
		return nil, errShape
	}
	stored := make([]int, len(shape))
	var expand []int
	i, j := 0, 0
	for i < len(s.shape) || j < len(shape) {
		i0, j0 := i, j
		ni, nj := 1, 1
		if i < len(s.shape) {
			ni = s.shape[i]
			i++
		}
		if j < len(shape) {
			nj = shape[j]
			j++
		}
		for ni != nj {
			switch {
			case ni < nj && i < len(s.shape):
				ni *= s.shape[i]
				i++
			case j < len(shape):
				nj *= shape[j]
				j++
			default:
				return nil, errShape
			}
		}
		// Trailing axes of size 1 belong to the last group.
		constant := true
		for a := i0; a < i; a++ {
			constant = constant && s.stored[a] == 1
		}
		for b := j0; b < j; b++ {
			stored[b] = 1
			if !constant {
				stored[b] = shape[b]
			}
		}
		if !constant {
			for a := i0; a < i; a++ {
				expand = append(expand, a)
			}
		}
	}
	out := &sample{slices.Clone(shape), stored, s.full(expand...).data, s.scale}
	if len(expand) > 1 {
		out = out.compact() // a split may leave an axis (the batch of batch·heads) along which nothing changes
	}
	return out, nil
}

// pick selects indices along an axis; index -1 gives the empty label.
func (s *sample) pick(axis int, idx []int) *sample {
	shape, stored := slices.Clone(s.shape), slices.Clone(s.stored)
	shape[axis] = len(idx)
	if s.stored[axis] == 1 {
		return &sample{shape, stored, s.data, s.scale}
	}
	stored[axis] = len(idx)
	inner := product(s.stored[axis+1:])
	data := make([]int32, 0, product(stored))
	for from := 0; from < len(s.data); from += inner * s.stored[axis] {
		for _, i := range idx {
			if i < 0 {
				data = append(data, make([]int32, inner)...)
				continue
			}
			data = append(data, s.data[from+i*inner:from+(i+1)*inner]...)
		}
	}
	return &sample{shape, stored, data, s.scale}
}

// insert adds an axis of size 1.
func (s *sample) insert(axis int) *sample {
	return &sample{slices.Insert(slices.Clone(s.shape), axis, 1), slices.Insert(slices.Clone(s.stored), axis, 1), s.data, s.scale}
}

// drop removes an axis of size 1.
func (s *sample) drop(axis int) *sample {
	return &sample{slices.Delete(slices.Clone(s.shape), axis, axis+1), slices.Delete(slices.Clone(s.stored), axis, axis+1), s.data, s.scale}
}

// broadcast returns the common shape of several, by the rule of NumPy.
func broadcast(shapes ...[]int) ([]int, error) {
	rank := 0
	for _, s := range shapes {
		rank = max(rank, len(s))
	}
	out := make([]int, rank)
	for i := range out {
		out[i] = 1
	}
	for _, s := range shapes {
		for i, d := range s {
			o := &out[rank-len(s)+i]
			switch {
			case *o == 1:
				*o = d
			case d != 1 && d != *o:
				return nil, errShape
			}
		}
	}
	return out, nil
}

// expand broadcasts s to a shape of at least its rank.
func (s *sample) expand(shape []int) *sample {
	stored := make([]int, len(shape))
	shift := len(shape) - len(s.stored)
	for i := range stored {
		stored[i] = 1
		if i >= shift && s.stored[i-shift] > 1 {
			stored[i] = s.stored[i-shift]
		}
	}
	return &sample{slices.Clone(shape), stored, s.data, s.scale}
}

// merge is the label of an elementwise operator: the union of the inputs' labels at each position. sides are the
// shapes of inputs that carry no labels.
func (l *labels) merge(in []*sample, sides [][]int) (*sample, error) {
	var shapes [][]int
	for _, s := range in {
		shapes = append(shapes, s.shape)
	}
	shape, err := broadcast(shapes...)
	if err != nil {
		return nil, err
	}
	for _, side := range sides {
		// What carries no labels may only add axes and stretch those of size 1. Its sampled sizes need not fit: nothing
		// says that total_sequence_length is the sum of two other symbols.
		for len(shape) < len(side) {
			shape = slices.Insert(shape, 0, 1)
		}
		for i, d := range side {
			if o := &shape[len(shape)-len(side)+i]; *o == 1 {
				*o = d
			}
		}
	}
	out := in[0].expand(shape)
	for _, s := range in[1:] {
		b := s.expand(shape)
		stored := make([]int, len(shape))
		for i := range stored {
			stored[i] = max(out.stored[i], b.stored[i])
		}
		data, other := out.spread(stored), b.spread(stored)
		if len(l.memo) == 0 { // a rotation joins columns in pairs
			l.memo = make(map[[2]int32]int32, min(len(data)/2, 1<<16))
		}
		for i := range data {
			data[i] = l.union(data[i], other[i])
		}
		out = &sample{shape, stored, data, sameScale(out.scale, b.scale)}
	}
	return out, nil
}

// concat joins samples along an axis. Where labels do not change along it, the joined axis is taken to carry them
// throughout: what else is on it (a cache, say) has none.
func (l *labels) concat(axis int, in []*sample, sizes []int) (*sample, error) {
	total, constant := 0, true
	var shape []int
	for i, s := range in {
		total += sizes[i]
		if s != nil {
			constant = constant && s.stored[axis] == 1
			shape = s.shape
		}
	}
	labelled := 0
	for _, s := range in {
		if s == nil {
			continue
		}
		labelled++
		if len(s.shape) != len(shape) {
			return nil, errShape
		}
	}
	if labelled == 0 {
		return nil, errShape
	}
	if constant && labelled == 1 {
		for _, s := range in {
			if s != nil {
				out := *s
				out.shape = slices.Clone(s.shape)
				out.shape[axis] = total
				return &out, nil
			}
		}
	}
	stored := slices.Clone(shape)
	for a := range stored {
		stored[a] = 1
		for _, s := range in {
			if s == nil || a == axis || s.stored[a] == 1 {
				continue
			}
			if stored[a] > 1 && stored[a] != s.stored[a] {
				return nil, errShape
			}
			stored[a] = s.stored[a]
		}
	}
	stored[axis] = total
	outShape := slices.Clone(shape)
	outShape[axis] = total
	inner := product(stored[axis+1:])
	data := make([]int32, product(stored))
	scale := 0.0
	first, at := true, 0
	for i, s := range in {
		run := sizes[i] * inner
		if s != nil {
			size := slices.Clone(stored)
			size[axis] = sizes[i]
			part := s.spread(size)
			for from, to := 0, at; from < len(part); from, to = from+run, to+total*inner {
				copy(data[to:], part[from:from+run])
			}
			if first {
				scale, first = s.scale, false
			} else {
				scale = sameScale(scale, s.scale)
			}
		}
		at += run
	}
	return &sample{outShape, stored, data, scale}, nil
}

// reduce joins the labels along axes and stores the result once there; the axes keep their size when keep is false
// (a normalisation), else they become 1.
func (l *labels) reduce(s *sample, axes []int, toOne bool) *sample {
	stored := slices.Clone(s.stored)
	shape := slices.Clone(s.shape)
	for _, a := range axes {
		stored[a] = 1
		if toOne {
			shape[a] = 1
		}
	}
	// Collect each cell's columns first and intern once: a chain of unions would keep every prefix.
	out := &sample{shape, stored, make([]int32, product(stored)), s.scale}
	cells := strided(count(len(out.data)), s.stored, out.strides()) // of each element
	ends := make([]int, len(out.data))
	for _, c := range cells {
		ends[c]++
	}
	for c := 1; c < len(ends); c++ {
		ends[c] += ends[c-1]
	}
	sorted, next := make([]int32, len(s.data)), slices.Clone(ends)
	for i := len(cells) - 1; i >= 0; i-- {
		c := cells[i]
		next[c]--
		sorted[next[c]] = s.data[i]
	}
	for i, end := range ends {
		cell := sorted[next[i]:end]
		slices.Sort(cell)
		set := make([]int32, 0, len(cell))
		for _, id := range slices.Compact(cell) {
			set = append(set, l.set(id)...)
		}
		slices.Sort(set)
		out.data[i] = l.intern(slices.Compact(set))
	}
	return out
}
