package graph

// This file infers the operators that reduce axes.

// reduced returns which axes of input 0 a Reduce operator sums over, false when that is not known.
func (c *call) reduced(rank int) ([]bool, bool) {
	axes, given, known := c.list("axes", 1)
	if !known {
		return nil, false
	}
	if !given || len(axes) == 0 {
		set := make([]bool, rank)
		for i := range set {
			set[i] = c.Int("noop_with_empty_axes", 0) == 0
		}
		return set, true
	}
	return axisSet(axes, rank)
}

func reduceShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	keep := c.Int("keepdims", 1) != 0
	set, ok := c.reduced(len(in))
	if !ok {
		n, ok := c.length(1)
		switch {
		case keep:
			return c.f.newDims(len(in)), true
		case ok && n > 0 && n <= len(in):
			return c.f.newDims(len(in) - n), true
		}
		return nil, false
	}
	return without(in, set, keep), true
}

// without drops the marked dimensions, or makes them 1.
func without(in []Dim, set []bool, keep bool) []Dim {
	var out []Dim
	for i, d := range in {
		switch {
		case !set[i]:
			out = append(out, d)
		case keep:
			out = append(out, Int(1))
		}
	}
	return out
}

// reduceElements folds a Reduce operator that joins elements two by two, over at least one element.
func reduceElements(join scalar) func(*call, int, []int64) ([]number, bool) {
	return func(c *call, _ int, shape []int64) ([]number, bool) {
		k, ok := c.known(0)
		if !ok {
			return nil, false
		}
		set, ok := c.reduced(len(k.Shape))
		nums, _, ok2 := c.numbers(0)
		n, _ := product(shape)
		if !ok || !ok2 || len(nums) == 0 || !c.f.spend(len(nums)) {
			return nil, false
		}
		// The strides of the result, 0 along what is reduced.
		strides := make([]int, len(k.Shape))
		step := 1
		for i := len(strides) - 1; i >= 0; i-- {
			if !set[i] {
				strides[i] = step
				step *= int(k.Shape[i])
			}
		}
		if step != n {
			return nil, false
		}
		at := mapIndex(k.Shape, func(at []int64) int {
			j := 0
			for i, x := range at {
				j += int(x) * strides[i]
			}
			return j
		})
		out := make([]number, n)
		started := make([]bool, n)
		for i, x := range nums {
			o := &out[at[i]]
			if !started[at[i]] {
				*o, started[at[i]] = x, true
				continue
			}
			if !c.f.spend(1 + len(x.d.terms)*len(o.d.terms)) {
				return nil, false
			}
			if *o, ok = join(c, []number{*o, x}); !ok {
				return nil, false
			}
		}
		return out, true
	}
}

// argShape drops one axis, or makes it 1.
func argShape(c *call) ([]Dim, bool) {
	in, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	set, ok := axisSet([]int64{c.Int("axis", 0)}, len(in))
	if !ok {
		return nil, false
	}
	return without(in, set, c.Int("keepdims", 1) != 0), true
}

// topK keeps K elements of an axis, and their indices.
func topK(c *call) {
	in, ok := c.shape(0)
	c.setElem(0, c.elem(0))
	c.setElem(1, int64Type)
	if !ok {
		return
	}
	a, ok := axis(c.Int("axis", -1), len(in))
	if !ok {
		return
	}
	k := c.f.newDim()
	if n := c.Int("k", -1); n >= 0 { // before opset 10
		k = Int(n)
	} else if d, ok := c.dims(1); ok && len(d) == 1 {
		k = c.f.size(d[0])
	}
	for i := range 2 {
		s := append([]Dim(nil), in...)
		s[a] = k
		c.setShape(i, s)
	}
}

// reducedStatistics sets the optional outputs of a normalisation over the axes from axis on: mean and inverse standard
// deviation, with 1 for each of those axes.
func reducedStatistics(first int) func(*call) {
	return func(c *call) {
		in, ok := c.shape(0)
		if !ok {
			return
		}
		a, ok := axis(c.Int("axis", -1), len(in))
		if !ok {
			return
		}
		out := append([]Dim(nil), in...)
		for i := a; i < len(out); i++ {
			out[i] = Int(1)
		}
		for i := first; i < first+2; i++ {
			c.setOut(i, floatType, out)
		}
	}
}

// meanElements divides the sum by the number of elements that went into it.
func meanElements(c *call, i int, shape []int64) ([]number, bool) {
	nums, ok := reduceElements(addNumbers)(c, i, shape)
	k, ok2 := c.known(0)
	if !ok || !ok2 || len(nums) == 0 || !isFloat(c.elem(0)) {
		return nil, false
	}
	count := float64(max(len(k.Floats), len(k.Ints)) / len(nums))
	for j := range nums {
		x, ok := nums[j].value()
		if !ok {
			return nil, false
		}
		nums[j] = realNumber(x / count)
	}
	return nums, true
}
