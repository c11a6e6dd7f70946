package graph

import (
	"slices"
)

// Const returns the tensor behind v when it is known without running anything: an initializer (also one that is listed
// as an input, the form of IR versions before 4 and of exporters that keep it, since nobody passes weights), the output
// of a Constant node, or what Identity, Transpose, Reshape, Slice, Split, Gather, Concat and the like make of such
// tensors by moving elements. It is nil otherwise. The tensor of a computed constant reads its elements when asked.
func (v *Value) Const() *Tensor {
	budget := constBudget
	return v.constant(&budget, nil)
}

// Const is Value.Const with the help of facts: bounds, indices and shapes may also be computed from known shapes.
func (f *Facts) Const(v *Value) *Tensor {
	budget := constBudget
	return v.constant(&budget, f)
}

// constBudget bounds the nodes behind a computed constant: what is repeated in a graph must not multiply.
const constBudget = 64

func (v *Value) constant(budget *int, f *Facts) *Tensor {
	if v == nil {
		return nil
	}
	if v.Init != nil {
		return v.Init
	}
	n := v.Producer
	if n == nil || canonicalDomain(n.Domain) != "" {
		return nil
	}
	if n.OpType == "Constant" {
		return n.ConstantTensor()
	}
	move, ok := constantMoves[n.OpType]
	if *budget--; !ok || *budget < 0 || len(n.In) == 0 {
		return nil
	}
	in := make([]*Tensor, len(n.In))
	for i, x := range n.In {
		if x == nil {
			continue
		}
		if in[i] = x.constant(budget, f); in[i] != nil {
			continue
		}
		if f == nil || i == 0 || n.OpType == "Concat" {
			return nil
		}
		ints, ok := f.Ints(x)
		if !ok {
			return nil
		}
		known, _ := f.Known(x)
		in[i] = NewTensor("", known.Shape, ints)
	}
	if in[0] == nil || len(in[0].Dims()) > maxConstRank {
		return nil
	}
	if bits := ElementBits(in[0].DType()); bits == 0 || bits%8 != 0 {
		return nil
	}
	t := move(n, in, v.Index)
	if t != nil {
		t.Proto.Name = &v.Name
	}
	return t
}

// maxConstRank bounds the axes of a computed constant.
const maxConstRank = 16

// constantMoves are the operators that constants are followed through: those that move elements and compute nothing.
var constantMoves = map[string]func(n *Node, in []*Tensor, output int) *Tensor{
	"Identity":  func(_ *Node, in []*Tensor, _ int) *Tensor { return in[0].viewed(in[0].Dims()) },
	"Transpose": constTranspose,
	"Reshape":   constReshape,
	"Squeeze":   constSqueeze,
	"Unsqueeze": constUnsqueeze,
	"Slice":     constSlice,
	"Split":     constSplit,
	"Gather":    constGather,
	"Concat":    constConcat,
}

// viewed is a tensor with the same elements in the same order under other dims.
func (t *Tensor) viewed(dims []int64) *Tensor {
	n, err := elements(dims)
	if err != nil || n != t.Len() {
		return nil
	}
	bits := ElementBits(t.DType())
	return Computed("", t.DType(), slices.Clone(dims), n*int64(bits/8), t.Bytes)
}

// strided is a tensor whose element at index i is element offset + Σ i·strides of t.
func (t *Tensor) strided(dims []int64, offset int64, strides []int64) *Tensor {
	n, err := elements(dims)
	if err != nil {
		return nil
	}
	bits := ElementBits(t.DType())
	size := int64(bits / 8)
	return Computed("", t.DType(), slices.Clone(dims), n*size, func() ([]byte, error) {
		src, err := t.Bytes()
		if err != nil {
			return nil, err
		}
		out := make([]byte, 0, n*size)
		// Runs of neighbours are copied together: the last axis when its stride is 1.
		run := int64(1)
		rank := len(dims)
		if rank > 0 && strides[rank-1] == 1 {
			rank--
			run = dims[rank]
		}
		idx := make([]int64, rank)
		for at := offset; int64(len(out)) < n*size; {
			out = append(out, src[at*size:(at+run)*size]...)
			a := rank - 1
			for ; a >= 0; a-- {
				idx[a]++
				at += strides[a]
				if idx[a] < dims[a] {
					break
				}
				at -= idx[a] * strides[a]
				idx[a] = 0
			}
			if a < 0 {
				break
			}
		}
		return out, nil
	})
}

// elementStrides returns the strides of a tensor in elements.
func elementStrides(dims []int64) []int64 {
	st := make([]int64, len(dims))
	step := int64(1)
	for i := len(dims) - 1; i >= 0; i-- {
		st[i] = step
		step *= dims[i]
	}
	return st
}

// listOf reads a list of integers: input i, or an attribute in the opsets that have one.
func listOf(n *Node, in []*Tensor, i int, attr string) ([]int64, bool) {
	if i < len(in) && in[i] != nil {
		x, err := in[i].Int64s()
		return x, err == nil
	}
	return n.Ints(attr)
}

// axisIn brings an axis into 0 ≤ axis < rank.
func axisIn(axis int64, rank int) (int, bool) {
	if axis < 0 {
		axis += int64(rank)
	}
	return int(axis), axis >= 0 && axis < int64(rank)
}

func constTranspose(n *Node, in []*Tensor, _ int) *Tensor {
	d := in[0].Dims()
	perm := make([]int64, len(d))
	for i := range perm {
		perm[i] = int64(len(d) - 1 - i)
	}
	if p, ok := n.Ints("perm"); ok {
		perm = p
	}
	sorted := slices.Sorted(slices.Values(perm))
	st := elementStrides(d)
	dims, strides := make([]int64, len(perm)), make([]int64, len(perm))
	if len(perm) != len(d) {
		return nil
	}
	for i, p := range perm {
		if sorted[i] != int64(i) {
			return nil
		}
		dims[i], strides[i] = d[p], st[p]
	}
	return in[0].strided(dims, 0, strides)
}

func constReshape(n *Node, in []*Tensor, _ int) *Tensor {
	target, ok := listOf(n, in, 1, "shape")
	if !ok || len(target) > maxConstRank {
		return nil
	}
	d := in[0].Dims()
	dims := slices.Clone(target)
	infer, known := -1, int64(1)
	for i, t := range target {
		switch {
		case t == -1 && infer < 0:
			infer = i
			continue
		case t == 0 && n.Int("allowzero", 0) == 0 && i < len(d):
			dims[i] = d[i]
		case t < 0:
			return nil
		}
		if dims[i] != 0 && known > in[0].Len() {
			return nil
		}
		known *= dims[i]
	}
	if infer >= 0 {
		if known == 0 || in[0].Len()%known != 0 {
			return nil
		}
		dims[infer] = in[0].Len() / known
	}
	return in[0].viewed(dims)
}

func constSqueeze(n *Node, in []*Tensor, _ int) *Tensor {
	axes, given := listOf(n, in, 1, "axes")
	d := in[0].Dims()
	drop := make([]bool, len(d))
	for _, a := range axes {
		x, ok := axisIn(a, len(d))
		if !ok || d[x] != 1 {
			return nil
		}
		drop[x] = true
	}
	var dims []int64
	for i, n := range d {
		if !drop[i] && (given || n != 1) {
			dims = append(dims, n)
		}
	}
	return in[0].viewed(dims)
}

func constUnsqueeze(n *Node, in []*Tensor, _ int) *Tensor {
	axes, given := listOf(n, in, 1, "axes")
	rank := len(in[0].Dims()) + len(axes)
	if !given || rank > maxConstRank {
		return nil
	}
	dims := make([]int64, rank)
	for _, a := range axes {
		x, ok := axisIn(a, rank)
		if !ok || dims[x] == 1 {
			return nil
		}
		dims[x] = 1
	}
	rest := in[0].Dims()
	for i := range dims {
		if dims[i] == 0 {
			dims[i], rest = rest[0], rest[1:]
		}
	}
	return in[0].viewed(dims)
}

func constSlice(n *Node, in []*Tensor, _ int) *Tensor {
	starts, ok1 := listOf(n, in, 1, "starts")
	ends, ok2 := listOf(n, in, 2, "ends")
	axes, haveAxes := listOf(n, in, 3, "axes")
	steps, haveSteps := listOf(n, in, 4, "steps")
	if !ok1 || !ok2 || len(starts) != len(ends) || haveAxes && len(axes) != len(starts) || haveSteps && len(steps) != len(starts) {
		return nil
	}
	dims := slices.Clone(in[0].Dims())
	strides := elementStrides(dims)
	offset := int64(0)
	for i := range starts {
		a := int64(i)
		if haveAxes {
			a = axes[i]
		}
		axis, ok := axisIn(a, len(dims))
		if !ok || haveSteps && steps[i] != 1 {
			return nil
		}
		size := dims[axis]
		bound := func(x int64) int64 {
			if x < 0 {
				x += size
			}
			return min(max(x, 0), size)
		}
		lo, hi := bound(starts[i]), bound(ends[i])
		offset += lo * strides[axis]
		dims[axis] = max(hi-lo, 0)
	}
	return in[0].strided(dims, offset, strides)
}

func constSplit(n *Node, in []*Tensor, output int) *Tensor {
	dims := slices.Clone(in[0].Dims())
	axis, ok := axisIn(n.Int("axis", 0), len(dims))
	if !ok {
		return nil
	}
	sizes, given := listOf(n, in, 1, "split")
	if !given {
		each := (dims[axis] + int64(len(n.Out)) - 1) / int64(len(n.Out))
		for left := dims[axis]; len(sizes) < len(n.Out); left -= each {
			sizes = append(sizes, max(min(each, left), 0))
		}
	}
	from := int64(0)
	for i, s := range sizes {
		if s < 0 || from+s > dims[axis] {
			return nil
		}
		if i == output {
			strides := elementStrides(dims)
			dims[axis] = s
			return in[0].strided(dims, from*strides[axis], strides)
		}
		from += s
	}
	return nil
}

func constGather(n *Node, in []*Tensor, _ int) *Tensor {
	dims := in[0].Dims()
	axis, ok := axisIn(n.Int("axis", 0), len(dims))
	if !ok || len(in) < 2 || in[1] == nil || in[1].Len() != 1 || len(in[1].Dims()) > 1 {
		return nil // one index: lists of them belong to embeddings
	}
	idx, err := in[1].Int64s()
	if err != nil {
		return nil
	}
	at, ok := axisIn(idx[0], int(min(dims[axis], 1<<30)))
	if !ok {
		return nil
	}
	strides := elementStrides(dims)
	offset := int64(at) * strides[axis]
	out := slices.Clone(dims)
	if len(in[1].Dims()) == 0 {
		out, strides = slices.Delete(out, axis, axis+1), slices.Delete(strides, axis, axis+1)
	} else {
		out[axis] = 1
	}
	return in[0].strided(out, offset, strides)
}

func constConcat(n *Node, in []*Tensor, _ int) *Tensor {
	dims := slices.Clone(in[0].Dims())
	axis, ok := axisIn(n.Int("axis", 0), len(dims))
	if !ok {
		return nil
	}
	dims[axis] = 0
	for _, t := range in {
		if t == nil || t.DType() != in[0].DType() || len(t.Dims()) != len(dims) {
			return nil
		}
		for a, d := range t.Dims() {
			if a != axis && d != dims[a] {
				return nil
			}
		}
		dims[axis] += t.Dims()[axis]
	}
	total, err := elements(dims)
	if err != nil {
		return nil
	}
	bits := ElementBits(in[0].DType())
	size := int64(bits / 8)
	inner := size
	for _, d := range dims[axis+1:] {
		inner *= d
	}
	outer := int64(1)
	for _, d := range dims[:axis] {
		outer *= d
	}
	return Computed("", in[0].DType(), dims, total*size, func() ([]byte, error) {
		out := make([]byte, 0, total*size)
		parts := make([][]byte, len(in))
		for i, t := range in {
			b, err := t.Bytes()
			if err != nil {
				return nil, err
			}
			parts[i] = b
		}
		for o := range outer {
			for i, t := range in {
				w := t.Dims()[axis] * inner
				out = append(out, parts[i][o*w:(o+1)*w]...)
			}
		}
		return out, nil
	})
}
