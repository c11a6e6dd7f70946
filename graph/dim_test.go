package graph

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// expr is an arithmetic expression, made at random, that is evaluated without polynomials.
type expr struct {
	op   byte // + - * for inner nodes, s for a symbol, n for a number
	a, b *expr
	sym  string
	n    int64
}

var exprSyms = []string{"batch", "seq", "past", "?1"}

func randomExpr(r *rand.Rand, depth int) *expr {
	if depth == 0 || r.IntN(5) == 0 {
		if r.IntN(2) == 0 {
			return &expr{op: 's', sym: exprSyms[r.IntN(len(exprSyms))]}
		}
		return &expr{op: 'n', n: r.Int64N(7) - 3}
	}
	return &expr{op: "+-*"[r.IntN(3)], a: randomExpr(r, depth-1), b: randomExpr(r, depth-1)}
}

func (e *expr) dim() Dim {
	switch e.op {
	case 's':
		return Sym(e.sym)
	case 'n':
		return Int(e.n)
	case '+':
		return e.a.dim().Add(e.b.dim())
	case '-':
		return e.a.dim().Sub(e.b.dim())
	}
	return e.a.dim().Mul(e.b.dim())
}

func (e *expr) eval(env map[string]int64) *big.Int {
	switch e.op {
	case 's':
		return big.NewInt(env[e.sym])
	case 'n':
		return big.NewInt(e.n)
	}
	a, b := e.a.eval(env), e.b.eval(env)
	switch e.op {
	case '+':
		return a.Add(a, b)
	case '-':
		return a.Sub(a, b)
	}
	return a.Mul(a, b)
}

func randomEnv(r *rand.Rand) map[string]int64 {
	env := map[string]int64{}
	for _, s := range exprSyms {
		env[s] = r.Int64N(199) - 99
	}
	return env
}

func TestDimEvaluatesAsItsExpression(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		e := randomExpr(r, 5)
		d := e.dim()
		if d.lost {
			continue
		}
		env := randomEnv(r)
		want := e.eval(env)
		got, ok := d.Eval(env)
		if ok != want.IsInt64() || ok && got != want.Int64() {
			t.Fatalf("%v at %v = %d, %t; the expression gives %v", d, env, got, ok, want)
		}
	}
}

// Different polynomials of small degree differ at almost every point (Schwartz and Zippel), equal ones nowhere.
func TestDimEqual(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	equal := 0
	for range 4000 {
		a, b := randomExpr(r, 2), randomExpr(r, 2)
		same := true
		for range 8 {
			env := randomEnv(r)
			same = same && a.eval(env).Cmp(b.eval(env)) == 0
		}
		if got := a.dim().Equal(b.dim()); got != same {
			t.Fatalf("%v equal to %v: %t, want %t", a.dim(), b.dim(), got, same)
		}
		if same {
			equal++
		}
	}
	if equal == 0 {
		t.Error("no two expressions were equal: the test shows half of what it should")
	}
	a, b := Sym("a"), Sym("b")
	if p, q := a.Add(b).Mul(a.Sub(b)), a.Mul(a).Sub(b.Mul(b)); !p.Equal(q) {
		t.Errorf("(a+b)(a-b) = %v differs from %v", p, q)
	}
}

func TestDimDiv(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	divided := 0
	for range 3000 {
		p, q := randomExpr(r, 3).dim(), randomExpr(r, 3).dim()
		product := p.Mul(q)
		if product.lost {
			continue
		}
		got, ok := product.Div(q)
		if zero := q.Equal(Int(0)); ok == zero || ok && !got.Equal(p) {
			t.Fatalf("(%v) / (%v) = %v, %t, want %v", product, q, got, ok, p)
		}
		if got, ok := p.Div(q); ok {
			divided++
			if !got.Mul(q).Equal(p) {
				t.Fatalf("(%v) / (%v) = %v", p, q, got)
			}
		}
	}
	if divided == 0 {
		t.Error("no random quotient was exact")
	}
	for _, c := range []struct{ a, b string }{
		{"seq", "batch"}, {"seq + 1", "seq"}, {"3*seq", "2"}, {"seq*seq + 1", "seq + 1"}, {"past + seq", "2*past + 2*seq"},
	} {
		if q, ok := ParseDim(c.a).Div(parse(c.b)); ok {
			t.Errorf("(%s) / (%s) = %v, want none", c.a, c.b, q)
		}
	}
}

// parse is ParseDim with numbers.
func parse(s string) Dim {
	d, _ := (&dimParser{rest: s}).sum()
	return d
}

func TestParseDim(t *testing.T) {
	past, seq := Sym("past"), Sym("seq")
	for _, c := range []struct {
		text string
		want Dim
	}{
		{"past + seq", past.Add(seq)},
		{"past+seq", past.Add(seq)},
		{"past + 1", past.Add(Int(1))},
		{"2*s0", Int(2).Mul(Sym("s0"))},
		{"(past + seq) * 2 - 1", past.Add(seq).Mul(Int(2)).Sub(Int(1))},
		{"-past + seq", seq.Sub(past)},
		{"batch-size", Sym("batch-size")},
		{"unk__12", Sym("unk__12")},
		{"seq/2", Sym("seq/2")},
		{"floor(seq/2)", Sym("floor(seq/2)")},
		{"12", Sym("12")},
		{"1 + 2", Sym("1 + 2")},
		{"past +", Sym("past +")},
		{"((((past", Sym("((((past")},
		{"99999999999999999999*a", Sym("99999999999999999999*a")},
	} {
		if got := ParseDim(c.text); !got.Equal(c.want) {
			t.Errorf("ParseDim(%q) = %v, want %v", c.text, got, c.want)
		}
	}
	r := rand.New(rand.NewPCG(7, 8))
	for range 1000 {
		d := randomExpr(r, 4).dim()
		if _, constant := d.Const(); constant || d.lost || d.Unknown() || len(d.String()) > maxDimText {
			continue
		}
		if back := ParseDim(d.String()); !back.Equal(d) {
			t.Fatalf("%v is read as %v", d, back)
		}
	}
}

func TestDimString(t *testing.T) {
	a, b := Sym("a"), Sym("b")
	for _, c := range []struct {
		d    Dim
		want string
	}{
		{Dim{}, "0"},
		{Int(math.MinInt64), "-9223372036854775808"},
		{b.Add(a), "a + b"},
		{a.Sub(b).Sub(Int(1)), "a - b - 1"},
		{Int(0).Sub(a), "-a"},
		{Int(-2).Mul(a), "-2*a"},
		{Int(1).Add(a.Mul(a).Mul(b)), "a*a*b + 1"},
	} {
		if got := c.d.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// What does not fit is no number, and equals nothing.
func TestDimOverflow(t *testing.T) {
	wide, deep := Int(1), Int(1)
	for i := range 12 {
		wide = wide.Mul(Sym(string(rune('a' + i))).Add(Int(1))) // 2^12 terms
	}
	for range maxDegree + 1 {
		deep = deep.Mul(Sym("a"))
	}
	for name, d := range map[string]Dim{
		"sum":         Int(math.MaxInt64).Add(Int(1)),
		"difference":  Int(math.MinInt64).Sub(Int(1)),
		"product":     Int(1 << 40).Mul(Int(1 << 40)),
		"coefficient": Int(1 << 40).Mul(Sym("a")).Mul(Int(1 << 40)),
		"terms":       wide,
		"degree":      deep,
		"consequence": deep.Sub(deep),
	} {
		_, constant := d.Const()
		_, value := d.Eval(map[string]int64{"a": 1})
		_, quotient := d.Div(Int(1))
		if constant || value || quotient || d.Equal(d) || !d.Unknown() || d.String() != "?" {
			t.Errorf("%s: %v is taken for a number", name, d)
		}
	}
	d := Int(math.MaxInt64).Mul(Sym("a"))
	if n, ok := d.Eval(map[string]int64{"a": 2}); ok {
		t.Errorf("%v = %d at a = 2", d, n)
	}
	if n, ok := d.Sub(Sym("b")).Eval(map[string]int64{"a": 2, "b": math.MaxInt64}); !ok || n != math.MaxInt64 {
		t.Errorf("2·max - max = %d, %t", n, ok)
	}
}

func FuzzParseDim(f *testing.F) {
	for _, s := range []string{"past + seq", "2*s0 - 1", "(a + b)*(a - b)", "--a", "a*-2", "?", "a - - b", "é"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d := ParseDim(s)
		if _, constant := d.Const(); constant || d.lost {
			t.Errorf("%q is read as %v", s, d)
		}
	})
}
