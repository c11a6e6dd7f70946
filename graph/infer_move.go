package graph

import "slices"

// This file infers the other operators that move elements without computing with them.

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

// transposeShape permutes the dimensions.
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

// concatShape adds up the inputs along the axis.
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

// concatElements takes a run of each input in turn, once for every index of the axes before the joined one.
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

// tileShape multiplies every dimension by its repeats.
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
