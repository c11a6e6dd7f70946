package unfuse

import (
	"errors"
	"slices"

	"onnx-dha/graph"
)

// array is a tensor, row-major.
type array struct {
	shape []int
	data  []float64
}

// maxElements bounds an array, so that a hostile file cannot ask for a large one.
const maxElements = 1 << 23

var errForm = errors.New("the shapes do not fit")

func newArray(shape []int) (*array, error) {
	n := 1
	for _, d := range shape {
		if d < 0 || d > 0 && n > maxElements/d {
			return nil, errForm
		}
		n *= d
	}
	return &array{shape, make([]float64, n)}, nil
}

// evaluation is of nodes at some sizes of the symbols of a graph.
type evaluation struct {
	facts *graph.Facts
	sizes map[string]int64
	work  *int64 // elements that may still be computed
}

func (e *evaluation) spend(elements int) { *e.work -= int64(elements) }

// step computes an operator. data says which inputs are elements; they are handed over in order.
type step struct {
	data func(input int) bool
	take func(e *evaluation, n *graph.Node, in []*array) ([]*array, error)
}

func first(i int) bool { return i == 0 }
func every(int) bool   { return true }

// steps are the operators that forms of a product are made of.
var steps = map[string]step{
	"Identity":  {first, func(_ *evaluation, _ *graph.Node, in []*array) ([]*array, error) { return in, nil }},
	"Reshape":   {first, one(reshapeArray)},
	"Squeeze":   {first, one(squeezeArray)},
	"Unsqueeze": {first, one(unsqueezeArray)},
	"Transpose": {first, one(transposeArray)},
	"Gather":    {first, one(gatherArray)},
	"ReduceSum": {first, one(sumArray)},
	"Concat":    {every, concatArrays},
	"MatMul":    {every, multiplyArrays},
}

func one(f func(e *evaluation, n *graph.Node, x *array) (*array, error)) func(*evaluation, *graph.Node, []*array) ([]*array, error) {
	return func(e *evaluation, n *graph.Node, in []*array) ([]*array, error) {
		y, err := f(e, n, in[0])
		return []*array{y}, err
	}
}

// integers reads a list that is input i of a node, made of constants and sizes, or in older opsets an attribute; nil where
// there is none.
func (e *evaluation) integers(n *graph.Node, i int, attr string) ([]int64, error) {
	v := n.Input(i)
	if v == nil {
		list, _ := n.Ints(attr)
		return list, nil
	}
	known, ok := e.facts.Known(v)
	if !ok || known.Floats != nil {
		return nil, errForm
	}
	list := make([]int64, len(known.Ints))
	for i, d := range known.Ints {
		if list[i], ok = d.Eval(e.sizes); !ok {
			return nil, errForm
		}
	}
	return list, nil
}

// axesOf reads axes of a tensor with rank of them, ascending.
func (e *evaluation) axesOf(n *graph.Node, rank int) ([]int, error) {
	list, err := e.integers(n, 1, "axes")
	var out []int
	for _, a := range list {
		if a < 0 {
			a += int64(rank)
		}
		if a < 0 || a >= int64(rank) || slices.Contains(out, int(a)) {
			return nil, errForm
		}
		out = append(out, int(a))
	}
	slices.Sort(out)
	return out, err
}

// axisOf reads the axis attribute.
func axisOf(n *graph.Node, rank int) (int, error) {
	a := n.Int("axis", 0)
	if a < 0 {
		a += int64(rank)
	}
	if a < 0 || a >= int64(rank) {
		return 0, errForm
	}
	return int(a), nil
}

// around returns how many elements lie before, along and behind an axis.
func (x *array) around(axis int) (before, along, behind int) {
	before, behind = 1, 1
	for _, d := range x.shape[:axis] {
		before *= d
	}
	for _, d := range x.shape[axis+1:] {
		behind *= d
	}
	return before, x.shape[axis], behind
}

// resized is x with n indices along an axis.
func (x *array) resized(axis, n int) (*array, error) {
	shape := slices.Clone(x.shape)
	shape[axis] = n
	return newArray(shape)
}

func reshapeArray(e *evaluation, n *graph.Node, x *array) (*array, error) {
	target, err := e.integers(n, 1, "shape")
	if err != nil {
		return nil, err
	}
	shape := make([]int, len(target))
	size, rest := 1, -1
	for i, d := range target {
		switch {
		case d == -1 && rest < 0:
			rest = i
			continue
		case d == 0 && n.Int("allowzero", 0) == 0 && i < len(x.shape):
			d = int64(x.shape[i])
		}
		if d < 1 || d > maxElements || size > maxElements/int(d) {
			return nil, errForm
		}
		shape[i] = int(d)
		size *= int(d)
	}
	if rest >= 0 {
		shape[rest] = len(x.data) / size
		size *= shape[rest]
	}
	if size != len(x.data) {
		return nil, errForm
	}
	return &array{shape, x.data}, nil
}

func squeezeArray(e *evaluation, n *graph.Node, x *array) (*array, error) {
	axes, err := e.axesOf(n, len(x.shape))
	if err != nil || axes == nil {
		return nil, errForm
	}
	shape := slices.Clone(x.shape)
	for _, a := range slices.Backward(axes) {
		if shape[a] != 1 {
			return nil, errForm
		}
		shape = slices.Delete(shape, a, a+1)
	}
	return &array{shape, x.data}, nil
}

func unsqueezeArray(e *evaluation, n *graph.Node, x *array) (*array, error) {
	list, err := e.integers(n, 1, "axes")
	if err != nil || len(list) > 8 {
		return nil, errForm
	}
	axes, err := e.axesOf(n, len(x.shape)+len(list))
	if err != nil {
		return nil, err
	}
	shape := slices.Clone(x.shape)
	for _, a := range axes {
		shape = slices.Insert(shape, a, 1)
	}
	return &array{shape, x.data}, nil
}

func transposeArray(_ *evaluation, n *graph.Node, x *array) (*array, error) {
	rank := len(x.shape)
	perm, given := n.Ints("perm")
	if !given {
		for a := range rank {
			perm = append(perm, int64(rank-1-a))
		}
	}
	if len(perm) != rank {
		return nil, errForm
	}
	strides, step := make([]int, rank), 1
	for a := rank - 1; a >= 0; a-- {
		strides[a] = step
		step *= x.shape[a]
	}
	y := &array{data: make([]float64, 0, len(x.data))}
	seen := make([]bool, rank)
	for _, p := range perm {
		if p < 0 || p >= int64(rank) || seen[p] {
			return nil, errForm
		}
		seen[p] = true
		y.shape = append(y.shape, x.shape[p])
	}
	var walk func(axis, at int)
	walk = func(axis, at int) {
		if axis == rank {
			y.data = append(y.data, x.data[at])
			return
		}
		for i := range y.shape[axis] {
			walk(axis+1, at+i*strides[perm[axis]])
		}
	}
	walk(0, 0)
	return y, nil
}

// pick takes indices of an axis.
func (x *array) pick(axis int, index []int) (*array, error) {
	y, err := x.resized(axis, len(index))
	if err != nil {
		return nil, err
	}
	before, along, behind := x.around(axis)
	for b := range before {
		for i, from := range index {
			copy(y.data[(b*len(index)+i)*behind:][:behind], x.data[(b*along+from)*behind:][:behind])
		}
	}
	return y, nil
}

func gatherArray(e *evaluation, n *graph.Node, x *array) (*array, error) {
	axis, err := axisOf(n, len(x.shape))
	if err != nil {
		return nil, err
	}
	list, err := e.integers(n, 1, "")
	if err != nil || list == nil {
		return nil, errForm
	}
	var index []int
	for _, i := range list {
		if i < 0 {
			i += int64(x.shape[axis])
		}
		if i < 0 || i >= int64(x.shape[axis]) {
			return nil, errForm
		}
		index = append(index, int(i))
	}
	y, err := x.pick(axis, index)
	if err != nil {
		return nil, err
	}
	indices, _ := e.facts.Known(n.In[1])
	var dims []int
	for _, d := range indices.Shape {
		dims = append(dims, int(d))
	}
	y.shape = slices.Replace(y.shape, axis, axis+1, dims...)
	return y, nil
}

func sumArray(e *evaluation, n *graph.Node, x *array) (*array, error) {
	axes, err := e.axesOf(n, len(x.shape))
	if err != nil || axes == nil {
		return nil, errForm
	}
	keep := n.Int("keepdims", 1) != 0
	for _, a := range slices.Backward(axes) {
		y, err := x.resized(a, 1)
		if err != nil {
			return nil, err
		}
		before, along, behind := x.around(a)
		for b := range before {
			for i := range along {
				for j := range behind {
					y.data[b*behind+j] += x.data[(b*along+i)*behind+j]
				}
			}
		}
		if x = y; !keep {
			x.shape = slices.Delete(x.shape, a, a+1)
		}
	}
	return x, nil
}

func concatArrays(_ *evaluation, n *graph.Node, in []*array) ([]*array, error) {
	axis, err := axisOf(n, len(in[0].shape))
	if err != nil {
		return nil, err
	}
	total := 0
	for _, x := range in {
		if len(x.shape) != len(in[0].shape) || !slices.Equal(x.shape[:axis], in[0].shape[:axis]) || !slices.Equal(x.shape[axis+1:], in[0].shape[axis+1:]) {
			return nil, errForm
		}
		total += x.shape[axis]
	}
	y, err := in[0].resized(axis, total)
	if err != nil {
		return nil, err
	}
	before, _, behind := y.around(axis)
	y.data = y.data[:0]
	for b := range before {
		for _, x := range in {
			part := x.shape[axis] * behind
			y.data = append(y.data, x.data[b*part:][:part]...)
		}
	}
	return []*array{y}, nil
}

// multiplyArrays multiplies [.., M, K] and [.., K, N]; other axes are repeated where one is 1 or missing.
func multiplyArrays(e *evaluation, _ *graph.Node, in []*array) ([]*array, error) {
	if len(in) != 2 || len(in[0].shape) < 2 || len(in[1].shape) < 2 {
		return nil, errForm
	}
	a, b := in[0], in[1]
	rank := max(len(a.shape), len(b.shape))
	wide := func(x *array) []int { return append(slices.Repeat([]int{1}, rank-len(x.shape)), x.shape...) }
	as, bs := wide(a), wide(b)
	shape := make([]int, rank)
	for i := range rank - 2 {
		if shape[i] = max(as[i], bs[i]); as[i] != shape[i] && as[i] != 1 || bs[i] != shape[i] && bs[i] != 1 {
			return nil, errForm
		}
	}
	rows, inner, columns := as[rank-2], as[rank-1], bs[rank-1]
	shape[rank-2], shape[rank-1] = rows, columns
	y, err := newArray(shape)
	if err != nil || inner != bs[rank-2] || int64(len(y.data)) > *e.work/int64(max(inner, 1)) {
		return nil, errForm
	}
	e.spend(len(y.data) * inner)
	var walk func(axis, i, j, k int)
	walk = func(axis, i, j, k int) {
		if axis < rank-2 {
			for x := range shape[axis] {
				walk(axis+1, i*as[axis]+x%as[axis], j*bs[axis]+x%bs[axis], k*shape[axis]+x)
			}
			return
		}
		left, right, out := a.data[i*rows*inner:], b.data[j*inner*columns:], y.data[k*rows*columns:]
		for r := range rows {
			row := out[r*columns:][:columns]
			for c := range inner {
				f := left[r*inner+c]
				for n, x := range right[c*columns:][:columns] {
					row[n] += f * x
				}
			}
		}
	}
	walk(0, 0, 0, 0)
	return []*array{y}, nil
}
