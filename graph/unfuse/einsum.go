package unfuse

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

func init() {
	rows["Einsum"] = row{attrs: []string{"equation"}, required: 2, inputs: 2, outputs: 1, expand: einsum, applies: func(n *graph.Node) bool { return len(n.In) == 2 }}
}

// product is an Einsum of two operands: letters of each, sorted by what they do.
type product struct {
	in  [2]string // letters of the operands
	out string
	// batch letters are in both operands and the result, sum letters in both operands only, free ones in one operand and
	// the result; each list in the order of the result, sums in the order of the first operand.
	batch, sum string
	free       [2]string
}

// parseEinsum reads an equation.
func parseEinsum(equation string) (*product, error) {
	equation = strings.ReplaceAll(equation, " ", "")
	left, out, ok := strings.Cut(equation, "->")
	terms := strings.Split(left, ",")
	if !ok || len(terms) != 2 || strings.Contains(equation, ".") {
		return nil, fmt.Errorf("the equation %q is not one of two operands with a named result", equation)
	}
	p := &product{in: [2]string{terms[0], terms[1]}, out: out}
	for _, t := range []string{terms[0], terms[1], out} {
		for i, l := range t {
			if !('a' <= l && l <= 'z' || 'A' <= l && l <= 'Z') {
				return nil, fmt.Errorf("the equation %q holds %q, which is no letter", equation, l)
			}
			if strings.IndexRune(t, l) != i {
				return nil, fmt.Errorf("the equation %q repeats %q within an operand", equation, l)
			}
		}
	}
	for _, l := range out {
		a, b := strings.ContainsRune(terms[0], l), strings.ContainsRune(terms[1], l)
		switch {
		case a && b:
			p.batch += string(l)
		case a:
			p.free[0] += string(l)
		case b:
			p.free[1] += string(l)
		default:
			return nil, fmt.Errorf("the equation %q names %q in its result only", equation, l)
		}
	}
	for i, t := range terms {
		for _, l := range t {
			if strings.ContainsRune(out, l) {
				continue
			}
			if !strings.ContainsRune(terms[1-i], l) {
				return nil, fmt.Errorf("the equation %q sums over %q of one operand", equation, l)
			}
			if i == 0 {
				p.sum += string(l)
			}
		}
	}
	return p, nil
}

// einsum makes a product of two operands a MatMul. A constant that shares no batch letter with the other operand becomes
// a matrix: that is a projection.
func einsum(w *writer) error {
	p, err := parseEinsum(w.n.Str("equation", ""))
	if err != nil {
		return err
	}
	for i := range 2 {
		if r, err := w.rank(w.in(i)); err != nil || r != len(p.in[i]) {
			return fmt.Errorf("operand %d of %q is not known to have %d axes", i, w.n.Str("equation", ""), len(p.in[i]))
		}
	}
	for i := range 2 {
		if w.in(i).Const() != nil && w.in(1-i).Const() == nil && p.batch == "" && p.sum != "" {
			return w.einsumProjection(p, i)
		}
	}
	return w.einsumProduct(p)
}

// permutation lists where the letters of to are in from.
func permutation(from, to string) []int {
	var perm []int
	for _, l := range to {
		perm = append(perm, strings.IndexRune(from, l))
	}
	return perm
}

func inOrder(perm []int) bool {
	return slices.IsSorted(perm)
}

// arrange permutes the axes named from into the order to.
func (w *writer) arrange(v *graph.Value, from, to string) *graph.Value {
	perm := permutation(from, to)
	if inOrder(perm) {
		return v
	}
	var p []int64
	for _, a := range perm {
		p = append(p, int64(a))
	}
	return w.transpose(v, p...)
}

// einsumProjection multiplies by a constant, operand c.
func (w *writer) einsumProjection(p *product, c int) error {
	x, letters := w.in(1-c), p.in[1-c]
	dims := w.in(c).Const().Dims()
	size := func(letters string) int64 {
		n := int64(1)
		for _, l := range letters {
			n *= dims[strings.IndexRune(p.in[c], l)]
		}
		return n
	}
	sum := permuteLike(p.sum, letters)
	perm := permutation(p.in[c], sum+p.free[c])
	form := part{dims: []int64{size(sum), size(p.free[c])}}
	if !inOrder(perm) {
		form.perm = perm
	}
	m, err := w.part(c, "matrix", form)
	if err != nil {
		return err
	}
	// [free…, sum…] → [free…, Σ] → [free…, columns] → [free…, free of the constant…].
	order := strings.Map(func(l rune) rune {
		if strings.ContainsRune(sum, l) {
			return -1
		}
		return l
	}, letters)
	y := w.arrange(x, letters, order+sum)
	rank := len(order)
	if len(sum) != 1 {
		y = w.reshape(y, append(make([]int64, rank), size(sum))...)
	}
	y = w.op("MatMul", y, m)
	if len(p.free[c]) != 1 {
		target := make([]int64, rank)
		for _, l := range p.free[c] {
			target = append(target, size(string(l)))
		}
		y = w.reshape(y, target...)
	}
	w.result(0, w.arrange(y, order+p.free[c], p.out))
	return nil
}

// permuteLike brings letters into the order in which they are in s.
func permuteLike(letters, s string) string {
	return strings.Map(func(l rune) rune {
		if strings.ContainsRune(letters, l) {
			return l
		}
		return -1
	}, s)
}

// einsumProduct multiplies two computed operands over one letter. The right one has one free letter, its columns; the
// left one may have several, its rows and what the right one is the same for.
func (w *writer) einsumProduct(p *product) error {
	left, right := 0, 1
	if len(p.free[1]) > 1 || len(p.free[0]) == 1 && strings.Index(p.out, p.free[1]) < strings.Index(p.out, p.free[0]) {
		left, right = 1, 0
	}
	if len(p.sum) != 1 || len(p.free[left]) == 0 || len(p.free[right]) != 1 {
		return fmt.Errorf("the equation %q is not a product of matrices", w.n.Str("equation", ""))
	}
	a := w.arrange(w.in(left), p.in[left], p.batch+p.free[left]+p.sum)
	b := w.arrange(w.in(right), p.in[right], p.batch+p.sum+p.free[right])
	if p.batch != "" {
		var same []int64
		for i := range len(p.free[left]) - 1 {
			same = append(same, int64(len(p.batch)+i))
		}
		if len(same) > 0 {
			b = w.unsqueeze(b, same...)
		}
	}
	w.result(0, w.arrange(w.op("MatMul", a, b), p.batch+p.free[left]+p.free[right], p.out))
	return nil
}
