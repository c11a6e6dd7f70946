package graph

import (
	"math"
	"slices"
)

// This file infers the operators that take ranges out of a tensor.

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
	if !ok || !known || out >= len(sizes) || !c.f.spend(len(sizes)) {
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
	return span{lo, f.ceilDiv(f.extent(hi.Sub(lo)), step), step}
}

// stop resolves one bound of a Slice with a positive step.
func (f *Facts) stop(at, dim Dim) Dim {
	n, constant := at.Const()
	_, table := dim.Const()
	// A computed bound of a fixed table, and the first and last element, are there (see Facts).
	granted := !f.proven && (table && !constant || constant && n >= -1 && n <= 1)
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

// sliceShape keeps the length that is taken along each axis.
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
