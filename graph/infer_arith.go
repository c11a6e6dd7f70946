package graph

import (
	"math"
	"slices"
)

// This file folds elementwise operators.

// scalar computes one element of the output from one of each input; false when it is not known.
type scalar func(c *call, x []number) (number, bool)

// elementwise folds an operator whose inputs broadcast; the first arity of them are not optional.
func elementwise(arity int, fn scalar) func(*call, int, []int64) ([]number, bool) {
	return func(c *call, _ int, shape []int64) ([]number, bool) {
		for i := range arity {
			if c.Input(i) == nil {
				return nil, false
			}
		}
		if !c.foldable() {
			return nil, false
		}
		var in [][]number
		var at [][]int
		for i, v := range c.In {
			if v == nil {
				in, at = append(in, nil), append(at, nil)
				continue
			}
			nums, s, ok := c.numbers(i)
			if !ok {
				return nil, false
			}
			index, ok := broadcastIndex(s, shape)
			if !ok {
				return nil, false
			}
			in, at = append(in, nums), append(at, index)
		}
		n, _ := product(shape)
		if !c.f.spend(n * len(in)) {
			return nil, false
		}
		out := make([]number, n)
		for i := range out {
			x := make([]number, 0, len(in))
			cost := 1
			for j := range in {
				if in[j] != nil {
					x = append(x, in[j][at[j][i]])
					cost *= 1 + len(x[len(x)-1].d.terms)
				}
			}
			var ok bool
			if !c.f.spend(cost) {
				return nil, false
			}
			if out[i], ok = fn(c, x); !ok {
				return nil, false
			}
		}
		return out, true
	}
}

// broadcastIndex returns, for each element of a tensor of shape out, the element of one of shape in that it is made
// from; false when in does not broadcast to out.
func broadcastIndex(in, out []int64) ([]int, bool) {
	lead := len(out) - len(in)
	if lead < 0 {
		return nil, false
	}
	for i, d := range in {
		if d != 1 && d != out[lead+i] {
			return nil, false
		}
	}
	strides := rowMajor(in)
	return mapIndex(out, func(at []int64) int {
		j := 0
		for i, d := range in {
			if d != 1 {
				j += int(at[lead+i]) * strides[i]
			}
		}
		return j
	}), true
}

// rowMajor returns the distance between neighbours along each axis.
func rowMajor(shape []int64) []int {
	strides := make([]int, len(shape))
	step := 1
	for i := len(shape) - 1; i >= 0; i-- {
		strides[i] = step
		step *= int(shape[i])
	}
	return strides
}

// mapIndex calls fn with the coordinates of every element of shape, in row-major order, and returns the results.
func mapIndex(shape []int64, fn func(at []int64) int) []int {
	n, _ := product(shape)
	out := make([]int, n)
	at := make([]int64, len(shape))
	for i := range out {
		out[i] = fn(at)
		for a := len(at) - 1; a >= 0; a-- {
			if at[a]++; at[a] < shape[a] {
				break
			}
			at[a] = 0
		}
	}
	return out
}

// arithmetic makes a scalar from its form on integers and its form on floats. The first is also right, where it has a
// result, for floats that hold integers, which may be symbolic.
func arithmetic(ints func(f *Facts, x []Dim) (Dim, bool), floats func(x []float64) float64) scalar {
	return func(c *call, x []number) (number, bool) {
		if real, ok := values(x); ok && slices.ContainsFunc(x, func(n number) bool { return n.real }) {
			if floats == nil {
				return number{}, false
			}
			return realNumber(floats(real)), true
		}
		dims := make([]Dim, len(x))
		for i := range x {
			var ok bool
			if dims[i], ok = x[i].integer(); !ok {
				return number{}, false
			}
		}
		d, ok := ints(c.f, dims)
		return intNumber(d), ok
	}
}

// unary makes a scalar of one float; integers have no such form.
func unary(floats func(float64) float64) scalar {
	return arithmetic(noInts, func(x []float64) float64 { return floats(x[0]) })
}

func noInts(*Facts, []Dim) (Dim, bool) { return Dim{}, false }

// fold2 makes a form for any number of operands from one for two.
func fold2[T any](op func(a, b T) T) func(x []T) T {
	return func(x []T) T {
		y := x[0]
		for _, z := range x[1:] {
			y = op(y, z)
		}
		return y
	}
}

// sums makes a scalar for any number of operands from forms for two.
func sums(ints func(a, b Dim) Dim, floats func(a, b float64) float64) scalar {
	all := fold2(ints)
	return arithmetic(func(_ *Facts, x []Dim) (Dim, bool) { return all(x), true }, fold2(floats))
}

var (
	addNumbers = sums(Dim.Add, func(a, b float64) float64 { return a + b })
	subNumbers = sums(Dim.Sub, func(a, b float64) float64 { return a - b })
	mulNumbers = sums(Dim.Mul, func(a, b float64) float64 { return a * b })
	minNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) { return fold2(f.min)(x), true }, fold2(math.Min))
	maxNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) { return fold2(f.max)(x), true }, fold2(math.Max))
)

// divNumbers divides: floats exactly, integers toward zero.
func divNumbers(c *call, x []number) (number, bool) {
	if isFloat(c.elem(0)) {
		return arithmetic(func(_ *Facts, x []Dim) (Dim, bool) { return x[0].Div(x[1]) },
			fold2(func(a, b float64) float64 { return a / b }))(c, x)
	}
	return arithmetic(func(f *Facts, x []Dim) (Dim, bool) { return f.quotient(x[0], x[1]) }, nil)(c, x)
}

// modNumbers is the remainder with the sign of the divisor, or with that of the dividend for fmod.
func modNumbers(c *call, x []number) (number, bool) {
	return arithmetic(func(f *Facts, x []Dim) (Dim, bool) {
		a, b := x[0], x[1]
		m, ok := a.Const()
		n, ok2 := b.Const()
		if ok2 && n == 0 {
			return Dim{}, false
		}
		if ok && ok2 {
			if n == -1 {
				return Int(0), true
			}
			r := m % n
			if r != 0 && (r < 0) != (n < 0) && c.Int("fmod", 0) == 0 {
				r += n
			}
			return Int(r), true
		}
		if _, ok := a.Div(b); ok {
			return Int(0), true
		}
		positive := f.atMost(Int(0), a) && f.atMost(Int(0), b)
		if !positive && c.Int("fmod", 0) != 0 {
			return f.formula(true, "fmod(%v, %v)", a, b), true
		}
		return f.formula(!positive, "mod(%v, %v)", a, b), true
	}, fold2(math.Mod))(c, x)
}

// powNumbers raises to a power; the exponent may have another type than the base, which gives the result's.
func powNumbers(c *call, x []number) (number, bool) {
	if base, ok := x[0].value(); ok && x[0].real {
		e, ok := x[1].value()
		return realNumber(math.Pow(base, e)), ok
	}
	base, ok := x[0].integer()
	e, ok2 := x[1].value()
	if !ok || !ok2 {
		return number{}, false
	}
	if e != math.Trunc(e) || e < 0 || e > 63 {
		b, ok := base.Const()
		y := math.Trunc(math.Pow(float64(b), e))
		d, exact := realNumber(y).integer()
		return intNumber(d), ok && exact
	}
	p := Int(1)
	for range int(e) {
		p = p.Mul(base)
	}
	return intNumber(p), true
}

var (
	negNumbers = arithmetic(func(_ *Facts, x []Dim) (Dim, bool) { return Int(0).Sub(x[0]), true },
		func(x []float64) float64 { return -x[0] })
	absNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) {
		if f.atMost(Int(0), x[0]) {
			return x[0], true
		}
		if f.atMost(x[0], Int(0)) {
			return Int(0).Sub(x[0]), true
		}
		return f.formula(false, "abs(%v)", x[0]), true
	}, func(x []float64) float64 { return math.Abs(x[0]) })
	signNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) {
		n, ok := x[0].Const()
		return Int(int64(compareInt(n))), ok
	}, func(x []float64) float64 {
		if x[0] == 0 {
			return x[0]
		}
		return math.Copysign(1, x[0])
	})
	reluNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) { return f.max(x[0], Int(0)), true },
		func(x []float64) float64 { return math.Max(x[0], 0) })
)

// rounding makes a scalar that leaves integers as they are.
func rounding(fn func(float64) float64) scalar {
	return arithmetic(func(_ *Facts, x []Dim) (Dim, bool) { return x[0], true },
		func(x []float64) float64 { return fn(x[0]) })
}

// clipNumbers limits the first operand to the others, lower and upper limit; each may be absent.
func clipNumbers(c *call, x []number) (number, bool) {
	// Before opset 11 the limits are attributes.
	y, ok := x[0], c.Attr("min") == nil && c.Attr("max") == nil
	if c.Input(1) != nil && ok {
		y, ok = maxNumbers(c, []number{y, x[1]})
	}
	if c.Input(2) != nil && ok {
		y, ok = minNumbers(c, []number{y, x[len(x)-1]})
	}
	return y, ok
}

// comparison makes a scalar from tests on three-way results: yes tells what is certain of numbers in that order.
func comparison(less, equal, greater bool) scalar {
	truth := map[bool]int64{true: 1}
	return func(c *call, x []number) (number, bool) {
		if a, ok := x[0].value(); ok {
			if b, ok := x[1].value(); ok && (x[0].real || x[1].real) {
				return intNumber(Int(truth[a < b && less || a == b && equal || a > b && greater])), true
			}
		}
		a, ok := x[0].integer()
		b, ok2 := x[1].integer()
		if !ok || !ok2 {
			return number{}, false
		}
		f := c.f
		// What each of the three orders would answer, among those that are possible.
		possible := map[bool]bool{}
		if !f.atMost(b, a) {
			possible[less] = true
		}
		if !f.differ(a, b) {
			possible[equal] = true
		}
		if !f.atMost(a, b) {
			possible[greater] = true
		}
		if len(possible) == 1 {
			return intNumber(Int(truth[possible[true]])), true
		}
		return intNumber(f.newDim()), true
	}
}

// logic makes a scalar of truth values that is decided by one operand of the given value, or else by all of them.
func logic(decisive int64) scalar {
	return func(c *call, x []number) (number, bool) {
		open := false
		for _, b := range x {
			n, ok := b.d.Const()
			if b.real {
				return number{}, false
			}
			if ok && n == decisive {
				return b, true
			}
			open = open || !ok
		}
		if open {
			return intNumber(c.f.newDim()), true
		}
		return intNumber(Int(1 - decisive)), true
	}
}

// notNumbers and xorNumbers compute with the truth values 0 and 1.
var (
	notNumbers = arithmetic(func(_ *Facts, x []Dim) (Dim, bool) { return Int(1).Sub(x[0]), true }, nil)
	xorNumbers = arithmetic(func(f *Facts, x []Dim) (Dim, bool) {
		d := x[0].Sub(x[1])
		return d.Mul(d), true
	}, nil)
)

// whereNumbers selects; an undecided condition between different integers gives an unknown one.
func whereNumbers(c *call, x []number) (number, bool) {
	if x[0].real {
		return number{}, false
	}
	if n, ok := x[0].d.Const(); ok {
		if n != 0 {
			return x[1], true
		}
		return x[2], true
	}
	a, ok := x[1].integer()
	b, ok2 := x[2].integer()
	switch {
	case !ok || !ok2:
		return number{}, false
	case a.Equal(b):
		return x[1], true
	case c.f.atMost(Int(0), a) && c.f.atMost(Int(0), b):
		return intNumber(c.f.newDim()), true
	}
	return intNumber(c.f.newInt()), true
}

// castNumbers converts to the output's type.
func castNumbers(c *call, x []number) (number, bool) {
	to := c.out[0].elem
	switch {
	case to == boolType:
		if v, ok := x[0].value(); ok {
			if v != 0 {
				return intNumber(Int(1)), true
			}
			return intNumber(Int(0)), true
		}
		if c.f.differ(x[0].d, Int(0)) {
			return intNumber(Int(1)), true
		}
		if c.elem(0) == boolType {
			return x[0], true
		}
		return intNumber(c.f.newDim()), true
	case isInteger(to) && x[0].real:
		// A float that does not fit the integer type has no defined conversion.
		if !(math.Abs(x[0].f) < 1<<63) {
			return number{}, false
		}
		return intNumber(Int(int64(x[0].f))), true
	}
	return x[0], true
}

func compareInt(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}
