package graph

import (
	"cmp"
	"math/big"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Dim is a dimension, or any integer computed from dimensions: a polynomial with integer coefficients over named
// symbols, such as past_sequence_length + sequence_length or 2*batch. The zero value is 0. Two Dims are compared with
// Equal; a Dim is never changed after it is made and may be shared.
//
// A result whose coefficients leave int64, or that has more than maxTerms terms or a degree above maxDegree, is not
// kept: it becomes a Dim that equals nothing, itself included, has no value, and makes everything computed from it the
// same. So a hostile file costs neither memory nor a wrong answer.
type Dim struct {
	c     int64  // constant term
	terms []term // the others: non-zero coefficients, distinct monomials, greatest first
	lost  bool   // overflowed
}

// term is coef · vars[0] · vars[1] · …; vars is sorted, not empty, and repeats a symbol for its powers.
type term struct {
	coef int64
	vars []string
}

const (
	maxTerms  = 64
	maxDegree = 16
)

var lostDim = Dim{lost: true}

// Int returns the constant n.
func Int(n int64) Dim { return Dim{c: n} }

// Sym returns the symbol called name. Names that start with "?" stand for dimensions that nobody named.
func Sym(name string) Dim { return Dim{terms: []term{{1, []string{name}}}} }

// Const returns the value of a Dim without symbols.
func (d Dim) Const() (int64, bool) {
	return d.c, len(d.terms) == 0 && !d.lost
}

// Unknown reports whether d depends on something without a name: a symbol that starts with "?", or an overflow.
func (d Dim) Unknown() bool {
	return d.lost || slices.ContainsFunc(d.terms, func(t term) bool {
		return slices.ContainsFunc(t.vars, func(s string) bool { return strings.HasPrefix(s, "?") })
	})
}

// Add returns d + e.
func (d Dim) Add(e Dim) Dim { return d.plus(e, 1, nil) }

// Sub returns d - e.
func (d Dim) Sub(e Dim) Dim { return d.plus(e, -1, nil) }

// Mul returns d · e.
func (d Dim) Mul(e Dim) Dim {
	if d.lost || e.lost {
		return lostDim
	}
	if len(d.terms) > len(e.terms) {
		d, e = e, d
	}
	sum := Dim{}.plus(e, d.c, nil)
	for _, t := range d.terms {
		sum = sum.plus(e, t.coef, t.vars)
	}
	return sum
}

// plus returns d + k·m·e for a monomial m (nil is 1). Both term lists are ordered, and multiplying by m keeps the order,
// so that they merge.
func (d Dim) plus(e Dim, k int64, m []string) Dim {
	if d.lost || e.lost {
		return lostDim
	}
	if k == 0 {
		return d
	}
	kc, ok := mul64(k, e.c)
	if !ok {
		return lostDim
	}
	var scaled []term
	for _, t := range e.terms {
		c, ok := mul64(k, t.coef)
		if !ok || len(t.vars)+len(m) > maxDegree {
			return lostDim
		}
		scaled = append(scaled, term{c, mulVars(t.vars, m)})
	}
	out := Dim{c: d.c}
	if len(m) > 0 {
		if kc != 0 {
			scaled = append(scaled, term{kc, m})
		}
	} else if out.c, ok = add64(d.c, kc); !ok {
		return lostDim
	}
	a, b := d.terms, scaled
	for len(a) > 0 || len(b) > 0 {
		order := 0
		switch {
		case len(b) == 0:
			order = -1
		case len(a) == 0:
			order = 1
		default:
			order = compareVars(b[0].vars, a[0].vars)
		}
		switch {
		case order < 0:
			out.terms, a = append(out.terms, a[0]), a[1:]
		case order > 0:
			out.terms, b = append(out.terms, b[0]), b[1:]
		default:
			c, ok := add64(a[0].coef, b[0].coef)
			if !ok {
				return lostDim
			}
			if c != 0 {
				out.terms = append(out.terms, term{c, a[0].vars})
			}
			a, b = a[1:], b[1:]
		}
	}
	if len(out.terms) > maxTerms {
		return lostDim
	}
	return out
}

// Div returns the polynomial q with q · e = d, and false when there is none (or e is 0). It is long division by leading
// terms: were e · q = d, the leading term of d would be the product of those of e and q, at every step.
func (d Dim) Div(e Dim) (Dim, bool) {
	if d.lost || e.lost {
		return Dim{}, false
	}
	lead := e.lead()
	if lead.coef == 0 {
		return Dim{}, false
	}
	var q Dim
	for steps := 0; steps <= maxTerms; steps++ {
		t := d.lead()
		if t.coef == 0 {
			return q, true
		}
		m, ok := divVars(t.vars, lead.vars)
		if !ok || lead.coef == -1 && t.coef == -t.coef || t.coef%lead.coef != 0 {
			return Dim{}, false
		}
		c := t.coef / lead.coef
		q = q.plus(Int(1), c, m)
		negated, ok := mul64(c, -1)
		if !ok {
			return Dim{}, false
		}
		if d = d.plus(e, negated, m); d.lost || q.lost {
			return Dim{}, false
		}
	}
	return Dim{}, false
}

// lead returns the greatest term of d; its coefficient is 0 for d = 0.
func (d Dim) lead() term {
	if len(d.terms) > 0 {
		return d.terms[0]
	}
	return term{coef: d.c}
}

// Equal reports whether d and e are the same polynomial, hence the same number whatever the symbols stand for.
func (d Dim) Equal(e Dim) bool {
	return !d.lost && !e.lost && d.c == e.c && slices.EqualFunc(d.terms, e.terms, func(a, b term) bool {
		return a.coef == b.coef && slices.Equal(a.vars, b.vars)
	})
}

// Eval returns the value of d when the symbols have the values of env; false when one is missing or the value does not
// fit an int64.
func (d Dim) Eval(env map[string]int64) (int64, bool) {
	if d.lost {
		return 0, false
	}
	// The sum may fit although a summand does not.
	sum := big.NewInt(d.c)
	for _, t := range d.terms {
		p := big.NewInt(t.coef)
		for _, s := range t.vars {
			v, ok := env[s]
			if !ok {
				return 0, false
			}
			p.Mul(p, big.NewInt(v))
		}
		sum.Add(sum, p)
	}
	return sum.Int64(), sum.IsInt64()
}

// String writes d as a sum of products, "past + seq - 1"; ParseDim reads it back. An overflowed Dim is "?".
func (d Dim) String() string {
	if d.lost {
		return "?"
	}
	if len(d.terms) == 0 {
		return strconv.FormatInt(d.c, 10)
	}
	var b strings.Builder
	for i, t := range d.terms {
		coef := strconv.FormatInt(t.coef, 10)
		switch {
		case i > 0 && t.coef < 0:
			b.WriteString(" - ")
			coef = coef[1:]
		case i > 0:
			b.WriteString(" + ")
		}
		switch coef {
		case "1":
		case "-1":
			b.WriteByte('-')
		default:
			b.WriteString(coef + "*")
		}
		b.WriteString(strings.Join(t.vars, "*"))
	}
	switch coef := strconv.FormatInt(d.c, 10); {
	case d.c < 0:
		b.WriteString(" - " + coef[1:])
	case d.c > 0:
		b.WriteString(" + " + coef)
	}
	return b.String()
}

// compareVars orders monomials by degree, then by the exponents of the symbols in alphabetical order (graded
// lexicographic order): the sorted lists differ first where one of them has more of an earlier symbol.
func compareVars(a, b []string) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return slices.Compare(b, a)
}

// mulVars merges two sorted lists.
func mulVars(a, b []string) []string {
	if len(b) == 0 {
		return a
	}
	out := slices.Concat(a, b)
	slices.Sort(out)
	return out
}

// divVars removes the entries of b, each once, from a; false when one is not there.
func divVars(a, b []string) ([]string, bool) {
	var out []string
	for _, s := range a {
		if len(b) > 0 && b[0] == s {
			b = b[1:]
			continue
		}
		out = append(out, s)
	}
	return out, len(b) == 0
}

func add64(a, b int64) (int64, bool) {
	s := a + b
	return s, (s > a) == (b > 0)
}

func mul64(a, b int64) (int64, bool) {
	abs := func(x int64) uint64 {
		if x < 0 {
			return -uint64(x)
		}
		return uint64(x)
	}
	hi, lo := bits.Mul64(abs(a), abs(b))
	// The least int64 has no positive counterpart; it is given up for simplicity.
	return a * b, hi == 0 && lo < 1<<63
}

// maxDimText bounds the symbolic expressions that are taken apart.
const maxDimText = 256

// ParseDim reads a dimension's name as exporters write it: a symbol, or a sum of products of symbols and integers
// ("past_sequence_length + 1", "2*s0"). Any other text is one symbol with that name, and so is a bare number, which is
// a name like any other there. A minus needs spaces around it: "batch-size" is a name.
func ParseDim(text string) Dim {
	p := dimParser{rest: strings.TrimSpace(text)}
	if len(p.rest) > maxDimText || strings.HasPrefix(p.rest, "?") {
		return Sym(text)
	}
	d, ok := p.sum()
	if _, constant := d.Const(); !ok || p.rest != "" || constant || d.lost {
		return Sym(text)
	}
	return d
}

// dimParser is a recursive-descent parser; maxDimText bounds its depth, and its methods return false at the first
// surprise.
type dimParser struct{ rest string }

func (p *dimParser) sum() (Dim, bool) {
	d, ok := p.product()
	for ok {
		var e Dim
		switch {
		case p.skip(" - "):
			e, ok = p.product()
			d = d.Sub(e)
		case p.skip("+"), p.skip(" +"):
			e, ok = p.product()
			d = d.Add(e)
		default:
			return d, true
		}
	}
	return Dim{}, false
}

func (p *dimParser) product() (Dim, bool) {
	d, ok := p.factor()
	for ok && (p.skip("*") || p.skip(" *")) {
		var e Dim
		e, ok = p.factor()
		d = d.Mul(e)
	}
	return d, ok
}

func (p *dimParser) factor() (Dim, bool) {
	p.rest = strings.TrimLeft(p.rest, " ")
	if p.skip("-") {
		d, ok := p.factor()
		return Int(0).Sub(d), ok
	}
	if p.skip("(") {
		d, ok := p.sum()
		return d, ok && (p.skip(")") || p.skip(" )"))
	}
	end := 0
	for end < len(p.rest) && (isNameByte(p.rest[end]) || end > 0 && p.rest[end] == '-') {
		end++
	}
	word := p.rest[:end]
	p.rest = p.rest[end:]
	if n, err := strconv.ParseInt(word, 10, 64); err == nil {
		return Int(n), true
	}
	if word == "" || word[0] >= '0' && word[0] <= '9' {
		return Dim{}, false
	}
	return Sym(word), true
}

func (p *dimParser) skip(s string) bool {
	rest, ok := strings.CutPrefix(p.rest, s)
	if ok {
		p.rest = rest
	}
	return ok
}

func isNameByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("_.:", c) >= 0
}
