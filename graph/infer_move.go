package graph

import (
	"math"
	"slices"
)

// This file infers the operators that move elements without computing with them.

// moved returns the elements of input i at the given places.
func (c *call) moved(i int, at []int) ([]number, bool) {
	nums, _, ok := c.numbers(i)
	if !ok || !c.f.spend(len(at)) {
		return nil, false
	}
	out := make([]number, len(at))
	for j, k := range at {
		if k < 0 || k >= len(nums) {
			return nil, false
		}
		out[j] = nums[k]
	}
	return out, true
}

// sameElements folds what changes the shape only.
func sameElements(c *call, out int, _ []int64) ([]number, bool) {
	nums, _, ok := c.numbers(0)
	return nums, ok && out == 0
}

// broadcastElements folds Expand.
func broadcastElements(c *call, _ int, shape []int64) ([]number, bool) {
	k, ok := c.known(0)
	if !ok {
		return nil, false
	}
	at, ok := broadcastIndex(k.Shape, shape)
	if !ok {
		return nil, false
	}
	return c.moved(0, at)
}

// reshapeShape keeps the number of elements, from which the one dimension that is not given follows.
func reshapeShape(c *call) ([]Dim, bool) {
	in, ranked := c.shape(0)
	target, ok := c.target()
	if !ok || len(target) > maxRank {
		return nil, false
	}
	out := make([]Dim, len(target))
	var open, unnamed []int // dimensions to be solved for; those that are something without a name
	for i, d := range target {
		n, constant := d.Const()
		switch {
		case constant && n == 0 && c.Int("allowzero", 0) == 0 && i < len(in):
			out[i] = in[i]
		case constant && n < 0, constant && n == 0 && c.Int("allowzero", 0) == 0, !constant && c.f.arbitrary(d):
			out[i] = c.f.newDim()
			open = append(open, i)
		default:
			out[i] = c.f.size(d)
		}
		if out[i].Unknown() {
			unnamed = append(unnamed, i)
		}
	}
	if len(open) == 0 {
		open = unnamed
	}
	if len(open) == 1 && ranked {
		i := open[0]
		if q, ok := total(in).Div(total(slices.Concat(out[:i], out[i+1:]))); ok && out[i].Unknown() {
			out[i] = q
		}
	}
	return out, true
}

// target returns the wanted shape of a Reshape; its elements may be 0 and -1.
func (c *call) target() ([]Dim, bool) {
	if list, ok := c.Ints("shape"); ok && c.Input(1) == nil { // before opset 5
		return ints(list), true
	}
	if dims, ok := c.dims(1); ok {
		return dims, true
	}
	n, ok := c.length(1)
	target := make([]Dim, n)
	for i := range target {
		target[i] = c.f.newInt()
	}
	return target, ok
}

// ints makes constants.
func ints(list []int64) []Dim {
	out := make([]Dim, len(list))
	for i, n := range list {
		out[i] = Int(n)
	}
	return out
}

// flattenShape merges the dimensions before axis, and the others.
func flattenShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return c.f.newDims(2), c.Input(0) != nil
	}
	a := c.Int("axis", 1)
	if a < 0 {
		a += int64(len(in))
	}
	if a < 0 || a > int64(len(in)) {
		return nil, false
	}
	return []Dim{total(in[:a]), total(in[a:])}, true
}

// unsqueezeShape inserts dimensions of 1.
func unsqueezeShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	axes, given, known := c.list("axes", 1)
	if !ok || !given {
		return nil, false
	}
	if !known {
		n, ok := c.length(1)
		return c.f.newDims(len(in) + n), ok
	}
	if len(in)+len(axes) > maxRank {
		return nil, false
	}
	fresh, ok := axisSet(axes, len(in)+len(axes))
	if !ok {
		return nil, false
	}
	var out []Dim
	for _, one := range fresh {
		switch {
		case one:
			out = append(out, Int(1))
		case len(in) == 0: // an axis is listed twice
			return nil, false
		default:
			out, in = append(out, in[0]), in[1:]
		}
	}
	return out, len(in) == 0
}

// squeezeShape removes the listed dimensions, or all that are 1.
func squeezeShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	axes, given, known := c.list("axes", 1)
	if !ok {
		return nil, false
	}
	if !known {
		n, ok := c.length(1)
		return c.f.newDims(max(len(in)-n, 0)), ok && n <= len(in)
	}
	gone, ok := axisSet(axes, len(in))
	if !ok {
		return nil, false
	}
	var out []Dim
	for i, d := range in {
		n, constant := d.Const()
		if !given {
			if !constant {
				return nil, false // whether it goes is decided at run time
			}
			gone[i] = n == 1
		}
		if !gone[i] {
			out = append(out, d)
		}
	}
	return out, true
}

// expandShape broadcasts the input to a target.
func expandShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	target, known := c.dims(1)
	if !ok || len(target) > maxRank {
		return nil, false
	}
	if !known {
		n, ok := c.length(1)
		return c.f.newDims(max(n, len(in))), ok
	}
	sizes := make([]Dim, len(target))
	for i, d := range target {
		sizes[i] = c.f.size(d)
	}
	return c.f.broadcast(in, sizes)
}

// Transpose

// permutation returns where the axes of a Transpose come from.
func (c *call) permutation(rank int) ([]int, bool) {
	perm := make([]int, rank)
	list, ok := c.Ints("perm")
	for i := range perm {
		perm[i] = rank - 1 - i
		if ok {
			if len(list) != rank || list[i] < 0 || list[i] >= int64(rank) {
				return nil, false
			}
			perm[i] = int(list[i])
		}
	}
	return perm, true
}

func transposeShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		list, given := c.Ints("perm")
		return c.f.newDims(min(len(list), maxRank)), given && len(list) <= maxRank
	}
	perm, ok := c.permutation(len(in))
	if !ok {
		return nil, false
	}
	out := make([]Dim, len(in))
	for i, a := range perm {
		out[i] = in[a]
	}
	return out, true
}

func transposeElements(c *call, _ int, shape []int64) ([]number, bool) {
	k, ok := c.known(0)
	if !ok {
		return nil, false
	}
	perm, ok := c.permutation(len(k.Shape))
	if !ok || len(shape) != len(perm) {
		return nil, false
	}
	strides := rowMajor(k.Shape)
	return c.moved(0, mapIndex(shape, func(at []int64) int {
		j := 0
		for i, a := range perm {
			j += int(at[i]) * strides[a]
		}
		return j
	}))
}

// Concat

func concatShape(c *call) ([]Dim, bool) {
	var out []Dim
	var sum Dim
	whole := true
	for i := range c.In {
		in, ok := c.shape(i)
		if !ok {
			whole = false
			continue
		}
		a, ok := axis(c.Int("axis", 1), len(in))
		if !ok {
			return nil, false
		}
		sum = sum.Add(in[a])
		if out == nil {
			out = in
			continue
		}
		if out, ok = sameShape(out, in); !ok {
			return nil, false
		}
	}
	if out == nil {
		return nil, false
	}
	if !whole {
		sum = c.f.newDim()
	}
	out = slices.Clone(out)
	a, _ := axis(c.Int("axis", 1), len(out))
	out[a] = sum
	return out, true
}

func concatElements(c *call, _ int, shape []int64) ([]number, bool) {
	a, ok := axis(c.Int("axis", 1), len(shape))
	if !ok || !c.foldable() {
		return nil, false
	}
	n, _ := product(shape)
	lead, _ := product(shape[:a])
	out := make([]number, 0, n)
	parts := make([][]number, len(c.In))
	for i := range c.In {
		if parts[i], _, ok = c.numbers(i); !ok || lead > 0 && len(parts[i])%lead != 0 {
			return nil, false
		}
	}
	for row := range lead {
		for _, p := range parts {
			w := len(p) / lead
			out = append(out, p[row*w:(row+1)*w]...)
		}
	}
	return out, true
}

// Split

// splitShapes sets the parts, whose sizes are listed or equal.
func splitShapes(c *call) {
	in, ok := c.shape(0)
	if !ok {
		for i := range c.out {
			c.setElem(i, c.elem(0))
		}
		return
	}
	sizes := c.splitSizes(in)
	a, ok := axis(c.Int("axis", 0), len(in))
	for i := range c.out {
		c.setElem(i, c.elem(0))
		if !ok {
			continue
		}
		s := slices.Clone(in)
		s[a] = c.f.newDim()
		if i < len(sizes) {
			s[a] = c.f.size(sizes[i])
		}
		c.setShape(i, s)
	}
}

// splitSizes returns the lengths of a Split's parts along its axis, nil when they are not known.
func (c *call) splitSizes(in []Dim) []Dim {
	a, ok := axis(c.Int("axis", 0), len(in))
	if !ok {
		return nil
	}
	if list, ok := c.Ints("split"); ok {
		return ints(list)
	}
	if c.Input(1) != nil {
		sizes, _ := c.dims(1)
		return sizes
	}
	// Equal parts; since opset 18 the last may be smaller.
	parts := int64(len(c.out))
	if parts == 0 || c.Int("num_outputs", parts) != parts {
		return nil
	}
	each, exact := in[a].Div(Int(parts))
	n, constant := in[a].Const()
	if !exact && (!constant || c.Attr("num_outputs") == nil) {
		return nil
	}
	if !exact {
		each = c.f.ceilDiv(in[a], parts)
	}
	sizes := make([]Dim, parts)
	for i := range sizes {
		sizes[i] = each
		if !exact {
			e, _ := each.Const()
			sizes[i] = Int(max(0, min(e, n-int64(i)*e)))
		}
	}
	return sizes
}

func splitElements(c *call, out int, shape []int64) ([]number, bool) {
	in, ok := c.known(0)
	if !ok || len(in.Shape) != len(shape) {
		return nil, false
	}
	a, ok := axis(c.Int("axis", 0), len(shape))
	sizes, known := constants(c.splitSizes(ints(in.Shape)))
	if !ok || !known || out >= len(sizes) {
		return nil, false
	}
	var start int64
	for _, s := range sizes[:out] {
		start += s
	}
	return c.window(in.Shape, shape, func(i int) (int64, int64) {
		if i == a {
			return start, 1
		}
		return 0, 1
	})
}

// window returns the elements of input 0, of shape in, that lie at start + step·k along each axis.
func (c *call) window(in, shape []int64, along func(axis int) (start, step int64)) ([]number, bool) {
	strides := rowMajor(in)
	return c.moved(0, mapIndex(shape, func(at []int64) int {
		j := 0
		for i, k := range at {
			start, step := along(i)
			j += int(start+step*k) * strides[i]
		}
		return j
	}))
}

// Slice

// span is the part of an axis that a Slice takes: length elements at start + step·k.
type span struct {
	start, length Dim
	step          int64
}

// spans returns what a Slice takes along each axis of a tensor of shape in, false when it is malformed or its axes are
// not known.
func (c *call) spans(in []Dim) ([]span, bool) {
	var starts, ends []Dim // nil when not known
	var count int
	axes, steps := []int64(nil), []int64(nil)
	axesGiven, axesKnown, stepsGiven, stepsKnown := false, true, false, true
	if s, ok := c.Ints("starts"); ok { // before opset 10
		e, _ := c.Ints("ends")
		starts, ends, count = ints(s), ints(e), len(s)
		axes, axesGiven = c.Ints("axes")
	} else {
		var ok bool
		if starts, ok = c.dims(1); !ok {
			starts = nil
		}
		if ends, ok = c.dims(2); !ok {
			ends = nil
		}
		axes, axesGiven, axesKnown = c.inputList(3)
		steps, stepsGiven, stepsKnown = c.inputList(4)
		count = max(len(starts), len(ends))
		if n, ok := c.length(1); ok {
			count = n
		}
	}
	out := make([]span, len(in))
	for i, d := range in {
		out[i] = span{length: d, step: 1}
	}
	if !axesKnown {
		for i := range out {
			out[i] = c.f.newSpan(1)
		}
		return out, true
	}
	if axesGiven {
		count = len(axes)
	}
	if starts != nil && len(starts) != count || ends != nil && len(ends) != count || stepsGiven && stepsKnown && len(steps) != count {
		return nil, false
	}
	if !axesGiven && count > len(in) {
		return nil, false
	}
	for k := range count {
		a := k
		if axesGiven {
			var ok bool
			if a, ok = axis(axes[k], len(in)); !ok {
				return nil, false
			}
		}
		step := int64(1)
		if stepsGiven && stepsKnown {
			step = steps[k]
		}
		if starts == nil || ends == nil || !stepsKnown {
			out[a] = c.f.newSpan(step)
			continue
		}
		if step == 0 {
			return nil, false
		}
		out[a] = c.f.span(starts[k], ends[k], in[a], step)
	}
	return out, true
}

// newSpan is a part of which nothing is known.
func (f *Facts) newSpan(step int64) span {
	return span{start: f.newInt(), length: f.newDim(), step: step}
}

// span resolves the bounds of a Slice, which count from the end when negative and stop at the ends of the axis.
func (f *Facts) span(start, end, dim Dim, step int64) span {
	step = max(step, -math.MaxInt64)
	s, ok := start.Const()
	e, ok2 := end.Const()
	n, ok3 := dim.Const()
	if ok && ok2 && ok3 {
		low, high := int64(0), n // where the bounds stop
		if step < 0 {
			low, high = -1, n-1
		}
		if s < 0 {
			s += n
		}
		if e < 0 {
			e += n
		}
		// A start before the first element is the first, going up; an end there is none at all, going down.
		s, e = min(max(s, 0), high), min(max(e, low), high)
		length := int64(0)
		switch {
		case step > 0 && s < e:
			length = (e-s-1)/step + 1
		case step < 0 && s > e:
			length = (s-e-1)/-step + 1
		}
		return span{Int(s), Int(length), step}
	}
	if step < 0 {
		// Only the reversal of a whole axis is followed.
		if ok && ok2 && step == -1 && s == -1 && e <= math.MinInt32 {
			return span{dim.Sub(Int(1)), dim, step}
		}
		return f.newSpan(step)
	}
	if f.arbitrary(start) || f.arbitrary(end) {
		return f.newSpan(step)
	}
	lo, hi := f.stop(start, dim), f.stop(end, dim)
	length := hi.Sub(lo)
	// A length that is -1 when the axis is empty is one of the granted ones (see Facts).
	if n, ok := f.lower(length); !ok || n < -1 {
		length = f.max(length, Int(0))
	}
	return span{lo, f.ceilDiv(length, step), step}
}

// stop resolves one bound of a Slice with a positive step.
func (f *Facts) stop(at, dim Dim) Dim {
	n, constant := at.Const()
	_, table := dim.Const()
	// A computed bound of a fixed table, and the first and last element, are there (see Facts).
	granted := table && !constant || constant && n >= -1 && n <= 1
	switch up, ok := f.upper(at); {
	case constant && n >= math.MaxInt32 || f.atMost(dim, at):
		return dim
	case constant && n <= math.MinInt32:
		return Int(0)
	case ok && up <= 0 && !(constant && n == 0):
		if at = at.Add(dim); granted {
			return at
		}
		return f.max(at, Int(0))
	case granted:
		return at
	}
	return f.min(at, dim)
}

func sliceShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	spans, ok := c.spans(in)
	if !ok {
		return nil, false
	}
	out := make([]Dim, len(in))
	for i, s := range spans {
		out[i] = s.length
	}
	return out, true
}

func sliceElements(c *call, _ int, shape []int64) ([]number, bool) {
	in, ok := c.known(0)
	if !ok {
		return nil, false
	}
	spans, ok := c.spans(ints(in.Shape))
	if !ok || len(spans) != len(shape) {
		return nil, false
	}
	starts := make([]int64, len(spans))
	for i, s := range spans {
		if starts[i], ok = s.start.Const(); !ok {
			return nil, false
		}
	}
	return c.window(in.Shape, shape, func(i int) (int64, int64) { return starts[i], spans[i].step })
}

// Gather

func gatherShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	index, ok2 := c.shape(1)
	if !ok || !ok2 {
		return nil, false
	}
	a, ok := axis(c.Int("axis", 0), len(in))
	if !ok {
		return nil, false
	}
	return slices.Concat(in[:a], index, in[a+1:]), true
}

func gatherElements(c *call, _ int, shape []int64) ([]number, bool) {
	in, ok := c.known(0)
	if !ok {
		return nil, false
	}
	index, ok := c.ints(1)
	a, ok2 := axis(c.Int("axis", 0), len(in.Shape))
	if !ok || !ok2 {
		return nil, false
	}
	n := in.Shape[a]
	lead, _ := product(in.Shape[:a])
	tail, _ := product(in.Shape[a+1:])
	var at []int
	for l := range lead {
		for _, i := range index {
			if i < 0 {
				i += n
			}
			if i < 0 || i >= n {
				return nil, false
			}
			for t := range tail {
				at = append(at, (l*int(n)+int(i))*tail+t)
			}
		}
	}
	return c.moved(0, at)
}

// gatherNDShape indexes the axes after batch_dims with the rows of the index tensor.
func gatherNDShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	index, ok2 := c.shape(1)
	if !ok || !ok2 || len(index) == 0 {
		return nil, false
	}
	n, ok := index[len(index)-1].Const()
	batch := c.Int("batch_dims", 0)
	if !ok || batch < 0 || n < 0 || n > maxRank || batch > maxRank || int(batch+n) > len(in) {
		return nil, false
	}
	return slices.Concat(index[:len(index)-1], in[batch+n:]), true
}

// elementsAlong folds GatherElements.
func elementsAlong(c *call, _ int, shape []int64) ([]number, bool) {
	in, ok := c.known(0)
	if !ok {
		return nil, false
	}
	index, ok := c.ints(1)
	a, ok2 := axis(c.Int("axis", 0), len(in.Shape))
	n, _ := product(shape)
	if !ok || !ok2 || len(shape) != len(in.Shape) || len(index) != n {
		return nil, false
	}
	strides := rowMajor(in.Shape)
	k := -1
	return c.moved(0, mapIndex(shape, func(at []int64) int {
		k++
		j := 0
		for i, x := range at {
			if i == a {
				if x = index[k]; x < 0 {
					x += in.Shape[a]
				}
			}
			if x < 0 || x >= in.Shape[i] {
				return -1
			}
			j += int(x) * strides[i]
		}
		return j
	}))
}

// Tile

func tileShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	repeats, ok := c.dims(1)
	if !ok {
		return c.f.newDims(len(in)), true
	}
	if len(repeats) != len(in) {
		return nil, false
	}
	out := make([]Dim, len(in))
	for i, d := range in {
		out[i] = d.Mul(c.f.size(repeats[i]))
	}
	return out, true
}

func tileElements(c *call, _ int, shape []int64) ([]number, bool) {
	in, ok := c.known(0)
	if !ok || len(in.Shape) != len(shape) {
		return nil, false
	}
	strides := rowMajor(in.Shape)
	return c.moved(0, mapIndex(shape, func(at []int64) int {
		j := 0
		for i, x := range at {
			j += int(x%max(in.Shape[i], 1)) * strides[i]
		}
		return j
	}))
}

// padShape grows every axis at both ends.
func padShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	pads, given := []Dim(nil), false
	if list, ok := c.Ints("pads"); ok { // before opset 11
		pads, given = ints(list), true
	} else {
		pads, given = c.dims(1)
	}
	axes, listed, known := c.inputList(3)
	if !given || !known {
		return c.f.newDims(len(in)), true
	}
	if !listed {
		axes = make([]int64, len(in))
		for i := range axes {
			axes[i] = int64(i)
		}
	}
	if len(pads) != 2*len(axes) {
		return nil, false
	}
	out := slices.Clone(in)
	for i, a := range axes {
		j, ok := axis(a, len(in))
		if !ok {
			return nil, false
		}
		out[j] = c.f.size(out[j].Add(pads[i]).Add(pads[i+len(axes)]))
	}
	return out, true
}
