package quant_test

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/quant"
	"onnx-dha/testmodels"
)

// matrix makes a FLOAT tensor of entries.
func matrix(rows, cols int, at func(r, c int) float64) *graph.Tensor {
	data := make([]float32, 0, rows*cols)
	for r := range rows {
		for c := range cols {
			data = append(data, float32(at(r, c)))
		}
	}
	return graph.NewTensor("mixed", []int64{int64(rows), int64(cols)}, data)
}

func numbers(t *testing.T, x *graph.Tensor) []float64 {
	t.Helper()
	f, err := x.Float64s()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func content(t *testing.T, r *quant.Recoded) [][]byte {
	t.Helper()
	var out [][]byte
	for _, c := range r.Constants {
		b, err := c.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// put gives a model of one product its recoded weight.
func put(m *graph.Model, q *quant.Matrix, r *quant.Recoded) {
	p := graph.NewPatch(m.Graph)
	for i, c := range q.Stored {
		p.SetInput(c.Node, c.Input, p.Init(r.Constants[i]))
	}
	for _, a := range r.Attrs {
		p.SetAttr(q.Stored[0].Node, a)
	}
	if _, err := p.Apply(); err != nil {
		panic(err)
	}
}

func eachScheme(t *testing.T, f func(t *testing.T, m *graph.Model, q *quant.Matrix)) {
	for _, s := range testmodels.Schemes() {
		if strings.HasPrefix(s.Name, "qoperator") {
			continue
		}
		t.Run(s.Name, func(t *testing.T) {
			m := product(t, s)
			f(t, m, stored(t, m))
		})
	}
}

// unit is how many columns move together in these tests: heads of eight.
const unit = 8

// Copies keep their codes and scales bit by bit, wherever they go: a matrix made of old columns decodes to them.
func TestCopiesKeepTheirCodes(t *testing.T) {
	eachScheme(t, func(t *testing.T, m *graph.Model, q *quant.Matrix) {
		old := numbers(t, q.Decode("w"))
		from := slices.Concat(span(16, 24), span(0, 8), span(16, 24), span(8, 16))
		r, err := q.Recode(quant.Change{Axis: 1, From: from, Unit: unit, Mixed: matrix(in, len(from), func(r, c int) float64 { return old[r*out+from[c]] })})
		if err != nil {
			t.Fatal(err)
		}
		put(m, q, r)
		now := stored(t, m)
		if now.Cols != len(from) || now.Rows != in {
			t.Fatalf("%d × %d, want %d × %d", now.Rows, now.Cols, in, len(from))
		}
		x := numbers(t, now.Decode("w"))
		for i, f := range from {
			for row := range in {
				if x[row*len(from)+i] != old[row*out+f] {
					t.Fatalf("row %d of column %d is %v, want the %v of column %d", row, i, x[row*len(from)+i], old[row*out+f], f)
				}
			}
		}
		cost, err := r.Rounding()
		if err != nil {
			t.Fatal(err)
		}
		if cost.Numbers != 0 {
			t.Errorf("%d numbers were quantised again, want none", cost.Numbers)
		}
	})
}

func span(a, b int) []int {
	var s []int
	for ; a < b; a++ {
		s = append(s, a)
	}
	return s
}

// What a column becomes does not depend on where it lies or how often: the columns of a rewritten model and those of its
// tied reference, which hold the same ones in other places, stand for the same numbers.
func TestSameColumnsSameCodes(t *testing.T) {
	eachScheme(t, func(t *testing.T, _ *graph.Model, q *quant.Matrix) {
		old := numbers(t, q.Decode("w"))
		// Columns 0 to 7 stay, the mean of the others takes their place: once, or twice as tied heads do.
		mixed := func(r, c int) float64 {
			if c < 8 {
				return old[r*out+c]
			}
			return 0.5*old[r*out+8+c%8] + 0.5*old[r*out+16+c%8]
		}
		decode := func(order []int) []float64 {
			from := make([]int, len(order))
			for i, c := range order {
				if from[i] = c; c >= 8 {
					from[i] = -1
				}
			}
			r, err := q.Recode(quant.Change{Axis: 1, From: from, Unit: unit, Mixed: matrix(in, len(order), func(r, c int) float64 { return mixed(r, order[c]) })})
			if err != nil {
				t.Fatal(err)
			}
			m := product(t, schemeOf(t))
			put(m, stored(t, m), r)
			return numbers(t, stored(t, m).Decode("w"))
		}
		once, twice := span(0, 16), slices.Concat(span(8, 16), span(0, 8), span(8, 16))
		a, b := decode(once), decode(twice)
		for i, c := range twice {
			for r := range in {
				if a[r*len(once)+c] != b[r*len(twice)+i] {
					t.Fatalf("entry (%d, %d) is %v alone and %v among more", r, c, a[r*len(once)+c], b[r*len(twice)+i])
				}
			}
		}
	})
}

// schemeOf is the scheme of the subtest.
func schemeOf(t *testing.T) testmodels.Scheme {
	name := t.Name()[strings.LastIndex(t.Name(), "/")+1:]
	for _, s := range testmodels.Schemes() {
		if s.Name == name {
			return s
		}
	}
	t.Fatal(name)
	return testmodels.Scheme{}
}

// New numbers are quantised as well as the textbook's rounding does: within half a step of the old scales where a scale
// stays, and to the error that the bits allow elsewhere. The figure that is reported is the error.
func TestRoundingIsReported(t *testing.T) {
	eachScheme(t, func(t *testing.T, m *graph.Model, q *quant.Matrix) {
		old := numbers(t, q.Decode("w"))
		want := func(r, c int) float64 { return 0.6*old[r*out+c] - 0.3*old[r*out+(c+8)%out] }
		from := slices.Repeat([]int{-1}, out)
		r, err := q.Recode(quant.Change{Axis: 1, From: from, Unit: unit, Mixed: matrix(in, out, want)})
		if err != nil {
			t.Fatal(err)
		}
		cost, err := r.Rounding()
		if err != nil {
			t.Fatal(err)
		}
		first := content(t, r)
		put(m, q, r)
		x := numbers(t, stored(t, m).Decode("w"))
		errors, squares, original, weights := 0.0, 0.0, 0.0, 0.0
		for row := range in {
			for c := range out {
				w := float64(float32(want(row, c)))
				errors += (x[row*out+c] - w) * (x[row*out+c] - w)
				squares += w * w
			}
		}
		plain := numbers(t, matrix(in, out, weight))
		for i := range plain {
			original += (old[i] - plain[i]) * (old[i] - plain[i])
			weights += plain[i] * plain[i]
		}
		if got := math.Sqrt(errors / squares); math.Abs(got-cost.Relative()) > 1e-6 || cost.Numbers != in*out {
			t.Errorf("%v over %d numbers is reported, want %v over %d", cost.Relative(), cost.Numbers, got, in*out)
		}
		// The weights themselves were rounded by simple formulas in the same scheme.
		if limit := 1.3 * math.Sqrt(original/weights); cost.Relative() > limit {
			t.Errorf("the added rounding is %v; that of the weights themselves was %v", cost.Relative(), math.Sqrt(original/weights))
		}
		if again := content(t, r); fmt.Sprint(len(again)) != fmt.Sprint(len(first)) || !slices.EqualFunc(first, again, bytes.Equal) {
			t.Error("the bytes are others when they are asked for again")
		}
	})
}

// Rows can be re-ordered where no block of numbers that share a scale is torn; other changes are refused.
func TestRows(t *testing.T) {
	eachScheme(t, func(t *testing.T, m *graph.Model, q *quant.Matrix) {
		old := numbers(t, q.Decode("w"))
		from := slices.Concat(span(32, 48), span(0, 16), span(16, 32))
		c := quant.Change{Axis: 0, From: from, Unit: 16, Mixed: matrix(in, out, func(r, c int) float64 { return old[from[r]*out+c] })}
		r, err := q.Recode(c)
		if !q.Movable(0, 16) {
			if err == nil {
				t.Error("rows were re-ordered across blocks")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		put(m, q, r)
		x := numbers(t, stored(t, m).Decode("w"))
		for i := range x {
			if x[i] != old[from[i/out]*out+i%out] {
				t.Fatalf("entry (%d, %d) is %v, want %v", i/out, i%out, x[i], old[from[i/out]*out+i%out])
			}
		}
	})
}
