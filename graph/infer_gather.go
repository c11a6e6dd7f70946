package graph

import "slices"

// This file infers the operators that take elements by their indices.

// gatherShape puts the shape of the indices in the place of the indexed axis.
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
	if !c.foldable() {
		return nil, false
	}
	in, ok := c.known(0)
	index, ok2 := c.ints(1)
	if !ok || !ok2 {
		return nil, false
	}
	a, ok := axis(c.Int("axis", 0), len(in.Shape))
	if !ok {
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
	if !c.foldable() {
		return nil, false
	}
	in, ok := c.known(0)
	index, ok2 := c.ints(1)
	if !ok || !ok2 {
		return nil, false
	}
	a, ok := axis(c.Int("axis", 0), len(in.Shape))
	n, _ := product(shape)
	if !ok || len(shape) != len(in.Shape) || len(index) != n {
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
