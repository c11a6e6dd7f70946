package graph

import (
	"math"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// This file infers the operators that make tensors from shapes and shapes from tensors.

// shapeWindow returns the part of the input's dimensions that a Shape node gives.
func (c *call) shapeWindow() ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	bound := func(name string, def int) int {
		n := c.Int(name, int64(def))
		if n < 0 {
			n += int64(len(in))
		}
		return int(min(max(n, 0), int64(len(in))))
	}
	start, end := bound("start", 0), bound("end", len(in))
	return in[start:max(start, end)], true
}

func shapeShape(c *call) ([]Dim, bool) {
	if s, ok := c.shapeWindow(); ok {
		return []Dim{Int(int64(len(s)))}, true
	}
	return c.f.newDims(1), true
}

func shapeElements(c *call, _ int, _ []int64) ([]number, bool) {
	s, ok := c.shapeWindow()
	return intNumbers(s), ok
}

func sizeElements(c *call, _ int, _ []int64) ([]number, bool) {
	s, ok := c.shape(0)
	return []number{intNumber(total(s))}, ok
}

func intNumbers(dims []Dim) []number {
	out := make([]number, len(dims))
	for i, d := range dims {
		out[i] = intNumber(d)
	}
	return out
}

// scalarShape is the shape of a single number.
func scalarShape(*call) ([]Dim, bool) { return nil, true }

// sizesShape takes the elements of input i as dimensions.
func sizesShape(i int) func(*call) ([]Dim, bool) {
	return func(c *call) ([]Dim, bool) {
		dims, ok := c.dims(i)
		if !ok || len(dims) > maxRank {
			n, ok := c.length(i)
			return c.f.newDims(n), ok
		}
		out := make([]Dim, len(dims))
		for j, d := range dims {
			out[j] = c.f.size(d)
		}
		return out, true
	}
}

// attrShape takes the dimensions from an attribute.
func attrShape(c *call) ([]Dim, bool) {
	list, ok := c.Ints("shape")
	return ints(list), ok && !slices.ContainsFunc(list, func(n int64) bool { return n < 0 })
}

// filledElem and filledElements read the value of ConstantOfShape, a float 0 by default.
func filledElem(c *call) elemType {
	if t := c.TensorAttr("value"); t != nil {
		return t.DType()
	}
	return floatType
}

func filledElements(c *call, _ int, shape []int64) ([]number, bool) {
	x := realNumber(0)
	if t := c.TensorAttr("value"); t != nil {
		k, ok := knownTensor(t, 1)
		if !ok || len(k.Ints)+len(k.Floats) != 1 {
			return nil, false
		}
		if len(k.Floats) == 1 {
			x = realNumber(k.Floats[0])
		} else {
			x = intNumber(k.Ints[0])
		}
	}
	n, _ := product(shape)
	if !c.f.spend(n) {
		return nil, false
	}
	return slices.Repeat([]number{x}, n), true
}

// rangeInputs returns start, limit and step of a Range.
func (c *call) rangeInputs() (start, limit, step number, ok bool) {
	var x [3]number
	for i := range x {
		nums, _, ok := c.numbers(i)
		if !ok || len(nums) != 1 {
			return number{}, number{}, number{}, false
		}
		x[i] = nums[0]
	}
	return x[0], x[1], x[2], true
}

// rangeShape is ⌈(limit - start)/step⌉, at least 0.
func rangeShape(c *call) ([]Dim, bool) {
	if c.f.proven && c.elem(0) != int64Type {
		return c.f.newDims(1), true
	}
	start, limit, step, ok := c.rangeInputs()
	if !ok {
		return c.f.newDims(1), true
	}
	if a, ok := start.value(); ok && isFloat(c.elem(0)) {
		b, ok := limit.value()
		d, ok2 := step.value()
		if ok && ok2 {
			n := math.Ceil(precision[c.elem(0)](b-a) / d) // the runtime subtracts in the elements' precision
			if !(n < 1<<53) {
				return c.f.newDims(1), true
			}
			return []Dim{Int(int64(max(n, 0)))}, true
		}
	}
	a, ok := start.integer()
	b, ok2 := limit.integer()
	d, ok3 := step.integer()
	n, ok4 := d.Const()
	if c.f.proven && (c.f.arbitrary(a) || c.f.arbitrary(b)) {
		return c.f.newDims(1), true
	}
	if !ok || !ok2 || !ok3 || !ok4 || n == 0 || n == math.MinInt64 {
		return c.f.newDims(1), true
	}
	way := b.Sub(a)
	if n < 0 {
		way, n = a.Sub(b), -n
	}
	return []Dim{c.f.ceilDiv(c.f.extent(way), n)}, true
}

func rangeElements(c *call, _ int, shape []int64) ([]number, bool) {
	start, _, step, ok := c.rangeInputs()
	if !ok || len(shape) != 1 || !c.f.spend(int(shape[0])) {
		return nil, false
	}
	out := make([]number, shape[0])
	for i := range out {
		x, ok := mulNumbers(c, []number{step, intNumber(Int(int64(i)))})
		if !ok {
			return nil, false
		}
		if out[i], ok = addNumbers(c, []number{start, x}); !ok {
			return nil, false
		}
	}
	return out, true
}

// nonZeroShape is [rank, number of non-zero elements].
func nonZeroShape(c *call) ([]Dim, bool) {
	out := c.f.newDims(2)
	if s, ok := c.shape(0); ok {
		out[0] = Int(int64(len(s)))
	}
	if at, ok := c.nonZero(); ok {
		out[1] = Int(int64(len(at)))
	}
	return out, true
}

// nonZero returns the indices of the elements of input 0 that are not 0.
func (c *call) nonZero() ([]int, bool) {
	nums, _, ok := c.numbers(0)
	if !ok {
		return nil, false
	}
	x, ok := values(nums)
	var at []int
	for i := range x {
		if x[i] != 0 {
			at = append(at, i)
		}
	}
	return at, ok
}

// nonZeroElements lists the coordinates axis by axis.
func nonZeroElements(c *call, _ int, _ []int64) ([]number, bool) {
	at, ok := c.nonZero()
	k, ok2 := c.known(0)
	if !ok || !ok2 {
		return nil, false
	}
	var out []number
	for a, step := range rowMajor(k.Shape) {
		for _, i := range at {
			out = append(out, intNumber(Int(int64(i/step)%k.Shape[a])))
		}
	}
	return out, true
}

// oneHotShape inserts an axis with an element for each class.
func oneHotShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	a, ok := axis(c.Int("axis", -1), len(in)+1)
	if !ok {
		return nil, false
	}
	depth := c.f.newDim()
	if d, ok := c.dims(1); ok && len(d) == 1 {
		depth = c.f.size(d[0])
	}
	return slices.Insert(slices.Clone(in), a, depth), true
}

// rankOf is a shape of input i's rank.
func rankOf(i int) func(*call) ([]Dim, bool) {
	return func(c *call) ([]Dim, bool) {
		s, ok := c.shape(i)
		return c.f.newDims(len(s)), ok
	}
}

// attrElem reads the element type from an attribute; without it the type is def's.
func attrElem(name string, def func(*call) elemType) func(*call) elemType {
	return func(c *call) elemType {
		if e := elemType(c.Int(name, 0)); e != onnxpb.TensorProto_UNDEFINED {
			return e
		}
		return def(c)
	}
}
