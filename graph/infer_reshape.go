package graph

import "slices"

// This file infers the operators that keep the elements and their order, or repeat them to a given shape.

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
	if c.f.proven {
		return c.keptElements(in, target, ranked), true
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
	return c.f.broadcast(sizes, in)
}
