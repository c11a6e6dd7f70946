package graph

import (
	"fmt"
	"strings"
)

// This file knows what can be said of dimensions whose values are not known: bounds, and functions of them that are not
// polynomials.

// maxFormula is the length in bytes of a symbol's name up to which it spells a formula.
const maxFormula = 120

// newDim returns a symbol that nothing else equals and that is not negative.
func (f *Facts) newDim() Dim {
	f.fresh++
	return Sym(fmt.Sprintf("?%d", f.fresh))
}

// newInt returns a symbol that nothing else equals.
func (f *Facts) newInt() Dim {
	d := f.newDim()
	f.signed[d.String()] = true
	return d
}

// newDims returns the shape of a tensor of which only the rank is known.
func (f *Facts) newDims(rank int) []Dim {
	s := make([]Dim, rank)
	for i := range s {
		s[i] = f.newDim()
	}
	return s
}

// formula returns a symbol for a function of args that is no polynomial: the same symbol whenever it is computed from
// the same arguments. format has a %v for each; negative says whether the function may be.
func (f *Facts) formula(negative bool, format string, args ...Dim) Dim {
	texts := make([]any, len(args))
	size := len(format)
	for i, a := range args {
		texts[i] = a.String()
		size += len(a.String())
		if a.lost {
			size = maxFormula + 1
		}
	}
	if size > maxFormula {
		if negative {
			return f.newInt()
		}
		return f.newDim()
	}
	d := Sym("?" + fmt.Sprintf(format, texts...))
	if negative {
		f.signed[d.terms[0].vars[0]] = true
	}
	return d
}

// lower returns a number that d does not fall below, false when none is evident.
func (f *Facts) lower(d Dim) (int64, bool) {
	return d.c, f.oneSided(d, func(coef int64) bool { return coef > 0 })
}

// upper returns a number that d does not exceed, false when none is evident.
func (f *Facts) upper(d Dim) (int64, bool) {
	return d.c, f.oneSided(d, func(coef int64) bool { return coef < 0 })
}

// oneSided reports whether all that d adds to its constant term is of the given side of 0, or 0.
func (f *Facts) oneSided(d Dim, side func(coef int64) bool) bool {
	for _, t := range d.terms {
		if !side(t.coef) || f.anySigned(t.vars) {
			return false
		}
	}
	return !d.lost
}

// atMost reports whether a ≤ b is certain.
func (f *Facts) atMost(a, b Dim) bool {
	n, ok := f.lower(b.Sub(a))
	return ok && n >= 0
}

// differ reports whether a ≠ b is certain.
func (f *Facts) differ(a, b Dim) bool {
	lo, ok := f.lower(a.Sub(b))
	hi, ok2 := f.upper(a.Sub(b))
	return ok && lo > 0 || ok2 && hi < 0
}

func (f *Facts) anySigned(vars []string) bool {
	for _, s := range vars {
		if f.signed[s] {
			return true
		}
	}
	return false
}

// arbitrary reports whether d is made of numbers that are not dimensions, so that nothing is known of its sign.
func (f *Facts) arbitrary(d Dim) bool {
	for _, t := range d.terms {
		if f.anySigned(t.vars) {
			return true
		}
	}
	return d.lost
}

// size turns an element that an operator uses as a dimension into one: what might be negative would be an error.
func (f *Facts) size(d Dim) Dim {
	if hi, ok := f.upper(d); d.lost || ok && hi < 0 {
		return f.newDim()
	}
	if lo, ok := f.lower(d); f.proven && !(ok && lo >= 0) {
		return f.newDim()
	}
	if f.arbitrary(d) {
		return f.formula(false, "max(%v, %v)", ordered(Int(0), d)...)
	}
	return d
}

// min returns the smaller of a and b.
func (f *Facts) min(a, b Dim) Dim {
	switch {
	case f.atMost(a, b):
		return a
	case f.atMost(b, a):
		return b
	}
	return f.formula(f.arbitrary(a) || f.arbitrary(b), "min(%v, %v)", ordered(a, b)...)
}

// max returns the greater of a and b.
func (f *Facts) max(a, b Dim) Dim {
	switch {
	case f.atMost(a, b):
		return b
	case f.atMost(b, a):
		return a
	}
	la, oka := f.lower(a)
	lb, okb := f.lower(b)
	negative := !(oka && la >= 0 || okb && lb >= 0)
	return f.formula(negative, "max(%v, %v)", ordered(a, b)...)
}

// extent returns the length of what ends d after its start: 0 when d is negative. One less than a dimension counts as a
// length although the dimension might be 0 (see Facts).
func (f *Facts) extent(d Dim) Dim {
	if n, ok := f.lower(d); ok && n == -1 && len(d.terms) > 0 && !f.proven {
		return d
	}
	return f.max(d, Int(0))
}

// ordered brings the arguments of a commutative function into one order.
func ordered(a, b Dim) []Dim {
	if strings.Compare(a.String(), b.String()) > 0 {
		return []Dim{b, a}
	}
	return []Dim{a, b}
}

// floorDiv returns ⌊a/b⌋ for a positive number b.
func (f *Facts) floorDiv(a Dim, b int64) Dim {
	if n, ok := a.Const(); ok {
		q := n / b
		if n%b < 0 {
			q--
		}
		return Int(q)
	}
	if q, ok := a.Div(Int(b)); ok {
		return q
	}
	return f.formula(!f.atMost(Int(0), a), "floor((%v)/%v)", a, Int(b))
}

// ceilDiv returns ⌈a/b⌉ for a positive number b.
func (f *Facts) ceilDiv(a Dim, b int64) Dim {
	if q, ok := a.Div(Int(b)); ok {
		return q
	}
	return f.floorDiv(a.Add(Int(b-1)), b)
}

// quotient returns a/b rounded toward zero, as integer division is in ONNX; false when b is 0.
func (f *Facts) quotient(a, b Dim) (Dim, bool) {
	n, constant := b.Const()
	if constant && n == 0 {
		return Dim{}, false
	}
	if m, ok := a.Const(); ok && constant {
		if n == -1 {
			return Int(0).Sub(a), true // the least int64 has no positive counterpart: overflow
		}
		return Int(m / n), true
	}
	if q, ok := a.Div(b); ok {
		return q, true
	}
	positive := f.atMost(Int(0), a) && f.atMost(Int(0), b)
	if positive && constant {
		return f.floorDiv(a, n), true
	}
	return f.formula(!positive, "trunc((%v)/(%v))", a, b), true
}

// same returns the best description of two dimensions that have to be equal.
func same(a, b Dim) Dim {
	if _, ok := a.Const(); ok {
		return a
	}
	if _, ok := b.Const(); ok || a.Unknown() {
		return b
	}
	return a
}

// sameShape returns the best description of two shapes that have to be equal, false when their ranks are not.
func sameShape(a, b []Dim) ([]Dim, bool) {
	if len(a) != len(b) {
		return nil, false
	}
	out := make([]Dim, len(a))
	for i := range a {
		out[i] = same(a[i], b[i])
	}
	return out, true
}

// broadcastDim returns the dimension that a and b broadcast to. They are equal or one of them is 1, hence the result is
// the greater where that is certain; otherwise what has a name is preferred, then the first.
func (f *Facts) broadcastDim(a, b Dim) Dim {
	m, aConst := a.Const()
	n, bConst := b.Const()
	switch {
	case f.proven:
		return f.spread(a, b)
	case aConst && m == 1:
		return b
	case bConst && n == 1:
		return a
	case aConst && bConst && m != n:
		return f.newDim()
	case !aConst && !bConst && f.atMost(a, b):
		return b
	case !aConst && !bConst && f.atMost(b, a):
		return a
	}
	return same(a, b)
}

// broadcast returns the shape that the given ones broadcast to, false when there is none to broadcast.
func (f *Facts) broadcast(shapes ...[]Dim) ([]Dim, bool) {
	rank := 0
	for _, s := range shapes {
		rank = max(rank, len(s))
	}
	out := make([]Dim, rank)
	for i := range out {
		out[i] = Int(1)
	}
	for _, s := range shapes {
		for i, d := range s {
			o := &out[rank-len(s)+i]
			*o = f.broadcastDim(*o, d)
		}
	}
	return out, len(shapes) > 0
}

// total returns the product of dims.
func total(dims []Dim) Dim {
	p := Int(1)
	for _, d := range dims {
		p = p.Mul(d)
	}
	return p
}
