package graph

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// chain grows a graph node by node.
type chain struct {
	g *Graph
	n int
}

func newChain(opset int64) *chain { return &chain{g: New(9, opset).Graph} }

func (c *chain) input(elem elemType, dims ...any) *Value {
	c.n++
	return c.g.AddInput(fmt.Sprintf("x%d", c.n), TensorType(elem, dims...))
}

func (c *chain) ints(n ...int64) *Value {
	c.n++
	return c.g.AddInit(NewTensor(fmt.Sprintf("c%d", c.n), []int64{int64(len(n))}, n))
}

func (c *chain) scalar(n int64) *Value {
	c.n++
	return c.g.AddInit(NewTensor(fmt.Sprintf("c%d", c.n), nil, []int64{n}))
}

func (c *chain) float(x float32) *Value {
	c.n++
	return c.g.AddInit(NewTensor(fmt.Sprintf("c%d", c.n), nil, []float32{x}))
}

// op adds a node; operands are values (nil: omitted), the rest are attributes.
func (c *chain) op(op string, args ...any) *Value {
	var in []*Value
	var attrs []*onnxpb.AttributeProto
	for _, a := range args {
		switch a := a.(type) {
		case *Value:
			in = append(in, a)
		case nil:
			in = append(in, nil)
		case *onnxpb.AttributeProto:
			attrs = append(attrs, a)
		}
	}
	c.n++
	return c.g.AddNode(op, "", "", in, []string{fmt.Sprintf("v%d", c.n)}, attrs...).Out[0]
}

// known writes the elements of v: integers as polynomials, floats as Go does, "unknown" for none.
func known(f *Facts, v *Value) string {
	k, ok := f.Known(v)
	if !ok {
		return "unknown"
	}
	var out []string
	for _, d := range k.Ints {
		if d.Unknown() {
			out = append(out, "?")
		} else {
			out = append(out, d.String())
		}
	}
	for _, x := range k.Floats {
		out = append(out, fmt.Sprint(x))
	}
	return strings.Join(out, ", ")
}

func TestFold(t *testing.T) {
	axis := func(n int64) *onnxpb.AttributeProto { return IntAttr("axis", n) }
	to := func(e elemType) *onnxpb.AttributeProto { return IntAttr("to", int64(e)) }
	// Every row computes from the shape [batch, seq, 192] of an input.
	for _, c := range []struct {
		name  string
		want  string
		build func(c *chain, shape *Value) *Value
	}{
		{"shape", "batch, seq, 192", func(c *chain, s *Value) *Value { return s }},
		{"gather", "seq", func(c *chain, s *Value) *Value { return c.op("Gather", s, c.scalar(-2)) }},
		{"gather elements", "192, batch", func(c *chain, s *Value) *Value { return c.op("GatherElements", s, c.ints(2, 0)) }},
		{"slice", "seq, 192", func(c *chain, s *Value) *Value { return c.op("Slice", s, c.ints(1), c.ints(math.MaxInt64)) }},
		{"slice back", "192, batch", func(c *chain, s *Value) *Value {
			return c.op("Slice", s, c.ints(-1), c.ints(-100), c.ints(0), c.ints(-2))
		}},
		{"concat", "batch, seq, 192, 12, 64", func(c *chain, s *Value) *Value { return c.op("Concat", s, c.ints(12, 64), axis(0)) }},
		{"unsqueeze", "batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("Unsqueeze", s, c.ints(0)) }},
		{"squeeze", "192", func(c *chain, s *Value) *Value {
			return c.op("Squeeze", c.op("Slice", s, c.ints(-1), c.ints(math.MaxInt64)))
		}},
		{"add", "batch + 1, seq + 1, 193", func(c *chain, s *Value) *Value { return c.op("Add", s, c.scalar(1)) }},
		{"sub", "batch - 1, seq - 2, 189", func(c *chain, s *Value) *Value { return c.op("Sub", s, c.ints(1, 2, 3)) }},
		{"mul", "batch*batch, seq*seq, 36864", func(c *chain, s *Value) *Value { return c.op("Mul", s, s) }},
		{"div", "?, ?, 48", func(c *chain, s *Value) *Value { return c.op("Div", s, c.scalar(4)) }},
		{"div exactly", "seq, batch, 192", func(c *chain, s *Value) *Value {
			// The product over all, by that over the two others.
			others := c.op("Mul", c.op("Gather", s, c.ints(0, 1, 0)), c.op("Gather", s, c.ints(2, 2, 1)))
			return c.op("Div", c.op("ReduceProd", s), others)
		}},
		{"div truncates", "-3, 3, -3", func(c *chain, s *Value) *Value { return c.op("Div", c.ints(-7, 7, 7), c.ints(2, 2, -2)) }},
		{"div by zero", "?, ?", func(c *chain, s *Value) *Value { return c.op("Div", c.ints(1, 2), c.ints(0, 1)) }},
		{"mod", "1, -1, ?", func(c *chain, s *Value) *Value {
			return c.op("Mod", c.op("Concat", c.ints(-7, 7), c.op("Gather", s, c.ints(1)), axis(0)), c.ints(2, -2, 8))
		}},
		{"fmod", "-1, 1", func(c *chain, s *Value) *Value { return c.op("Mod", c.ints(-7, 7), c.ints(2, -2), IntAttr("fmod", 1)) }},
		{"neg", "-batch, -seq, -192", func(c *chain, s *Value) *Value { return c.op("Neg", s) }},
		{"abs of neg", "batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("Abs", c.op("Neg", s)) }},
		{"pow", "batch*batch, seq*seq, 36864", func(c *chain, s *Value) *Value { return c.op("Pow", s, c.scalar(2)) }},
		{"min", "0, 0, 7", func(c *chain, s *Value) *Value { return c.op("Min", s, c.ints(0, 0, 7)) }},
		{"max", "batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("Max", s, c.ints(0, -1, 7)) }},
		{"clip", "0, ?, 100", func(c *chain, s *Value) *Value {
			return c.op("Clip", c.op("Mul", s, c.ints(0, 1, 1)), c.scalar(0), c.scalar(100))
		}},
		{"cast around", "batch, seq, 192", func(c *chain, s *Value) *Value {
			return c.op("Cast", c.op("Floor", c.op("Cast", s, to(floatType))), to(int64Type))
		}},
		{"cast to bool", "?, ?, 1", func(c *chain, s *Value) *Value { return c.op("Cast", s, to(boolType)) }},
		{"cast like", "batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("CastLike", s, c.input(int32Type, 3)) }},
		{"cast truncates", "-2, 2", func(c *chain, s *Value) *Value {
			x := c.g.AddInit(NewTensor("f", []int64{2}, []float32{-2.7, 2.7}))
			return c.op("Cast", x, to(int64Type))
		}},
		{"scale", "0.07216878235340118", func(c *chain, s *Value) *Value {
			// float32(1/float32(√192))
			last := c.op("Cast", c.op("Gather", s, c.scalar(-1)), to(floatType))
			return c.op("Reciprocal", c.op("Sqrt", last))
		}},
		{"half", "0.0999755859375", func(c *chain, s *Value) *Value { // the nearest number with 11 bits
			return c.op("Cast", c.float(0.1), to(onnxpb.TensorProto_FLOAT16))
		}},
		{"bfloat", "0.10009765625", func(c *chain, s *Value) *Value {
			return c.op("Cast", c.float(0.1), to(onnxpb.TensorProto_BFLOAT16))
		}},
		{"symbolic float", "unknown", func(c *chain, s *Value) *Value { return c.op("Cast", s, to(floatType)) }},
		{"size", "192*batch*seq", func(c *chain, s *Value) *Value { return c.op("Size", c.g.Inputs[0]) }},
		{"equal", "0, ?, 0", func(c *chain, s *Value) *Value { return c.op("Equal", s, c.ints(-1, 1, 191)) }},
		{"equal itself", "1, 1, 1", func(c *chain, s *Value) *Value { return c.op("Equal", s, s) }},
		{"where", "batch, 5, 7", func(c *chain, s *Value) *Value {
			minus := c.op("Mul", c.op("ConstantOfShape", c.ints(3), TensorAttr("value", NewTensor("", []int64{1}, []int64{1}))), c.scalar(-1))
			target := c.op("Concat", c.op("Gather", s, c.ints(0)), c.ints(-1, 7), axis(0))
			return c.op("Where", c.op("Equal", target, minus), c.ints(4, 5, 6), target)
		}},
		{"undecided where", "?, ?, 192", func(c *chain, s *Value) *Value {
			return c.op("Where", c.op("Equal", s, c.ints(1, 1, 1)), c.ints(1, 2, 3), c.op("Mul", s, c.ints(0, 1, 1)))
		}},
		{"less", "?, 1, 0", func(c *chain, s *Value) *Value { return c.op("Less", c.ints(0, -1, 192), s) }},
		{"less or equal", "1, 1, 1", func(c *chain, s *Value) *Value { return c.op("LessOrEqual", c.ints(0, -1, 192), s) }},
		{"greater", "0, ?, 1", func(c *chain, s *Value) *Value {
			return c.op("Greater", s, c.op("Concat", c.op("Add", c.op("Gather", s, c.ints(0)), c.scalar(1)), c.ints(5, 5), axis(0)))
		}},
		{"logic", "0, ?, 1", func(c *chain, s *Value) *Value {
			b := c.op("Equal", s, c.ints(-1, 5, 192)) // no, perhaps, yes
			return c.op("Or", c.op("And", b, c.op("Not", c.op("Equal", s, c.ints(5, -1, -1)))), c.op("Xor", b, b))
		}},
		{"reshape", "batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("Reshape", s, c.ints(1, -1)) }},
		{"expand", "1, 1", func(c *chain, s *Value) *Value {
			return c.op("Expand", c.ints(1), c.ints(2))
		}},
		{"tile", "batch, seq, 192, batch, seq, 192", func(c *chain, s *Value) *Value { return c.op("Tile", s, c.ints(2)) }},
		{"transpose", "batch, 1, seq, 2, 192, 3", func(c *chain, s *Value) *Value {
			return c.op("Transpose", c.op("Concat", c.op("Unsqueeze", s, c.ints(0)), c.op("Unsqueeze", c.ints(1, 2, 3), c.ints(0)), axis(0)))
		}},
		{"split", "seq", func(c *chain, s *Value) *Value {
			return c.g.AddNode("Split", "", "", []*Value{s}, []string{"p", "q", "r"}).Out[1]
		}},
		{"reduce prod", "192*batch*seq", func(c *chain, s *Value) *Value { return c.op("ReduceProd", s, IntAttr("keepdims", 0)) }},
		{"reduce sum", "batch + seq + 192", func(c *chain, s *Value) *Value { return c.op("ReduceSum", s, c.ints(0)) }},
		{"reduce max", "?", func(c *chain, s *Value) *Value { return c.op("ReduceMax", s) }},
		{"reduce rows", "3, 7", func(c *chain, s *Value) *Value {
			return c.op("ReduceSum", c.op("Reshape", c.ints(1, 2, 3, 4), c.ints(2, 2)), c.ints(1))
		}},
		{"range", "seq, seq + 2, seq + 4", func(c *chain, s *Value) *Value {
			from := c.op("Gather", s, c.scalar(1))
			return c.op("Range", from, c.op("Add", from, c.scalar(5)), c.scalar(2))
		}},
		{"non zero", "0, 2", func(c *chain, s *Value) *Value { return c.op("NonZero", c.ints(5, 0, -1)) }},
		{"long range", "unknown", func(c *chain, s *Value) *Value {
			return c.op("Range", c.scalar(0), c.op("Gather", s, c.scalar(1)), c.scalar(1))
		}},
		{"unknown but the same", "0", func(c *chain, s *Value) *Value {
			n := c.input(int64Type)
			return c.op("Sub", c.op("Add", n, c.scalar(3)), c.op("Add", c.scalar(3), n))
		}},
		{"formulas of the same", "1, 1, 1", func(c *chain, s *Value) *Value {
			return c.op("Equal", c.op("Div", s, c.scalar(5)), c.op("Div", c.op("Identity", s), c.scalar(5)))
		}},
		{"overflow", "?", func(c *chain, s *Value) *Value { return c.op("Mul", c.ints(math.MaxInt64), c.ints(2)) }},
	} {
		b := newChain(13)
		shape := b.op("Shape", b.input(floatType, "batch", "seq", 192))
		v := c.build(b, shape)
		if got := known(Infer(b.g), v); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// hiddenHeads builds an attention core on [batch, seq, 768] that computes its head count, 768/64, from the shape, and the
// scale from the head dim as PyTorch's exporter does: its root on both operands.
func hiddenHeads(c *chain) (shape, heads, root, scores, merged *Value) {
	x := c.input(floatType, "batch", "seq", 768)
	s := c.op("Shape", x)
	dim := func(i int64) *Value { return c.op("Unsqueeze", c.op("Gather", s, c.scalar(i)), c.ints(0)) }
	heads = c.op("Div", dim(2), c.ints(64))
	q := c.op("Transpose", c.op("Reshape", x, c.op("Concat", dim(0), dim(1), heads, c.ints(64), IntAttr("axis", 0))), IntsAttr("perm", 0, 2, 1, 3))
	k := c.op("Transpose", q, IntsAttr("perm", 0, 1, 3, 2))
	root = c.op("Sqrt", c.op("Div", c.float(1), c.op("Sqrt", c.op("Cast", c.op("Slice", c.op("Shape", q), c.ints(-1), c.ints(math.MaxInt64)), IntAttr("to", int64(floatType))))))
	scores = c.op("MatMul", c.op("Mul", q, root), c.op("Mul", k, root))
	merged = c.op("Reshape", c.op("Transpose", c.op("MatMul", scores, q), IntsAttr("perm", 0, 2, 1, 3)), c.op("Concat", dim(0), dim(1), c.ints(-1), IntAttr("axis", 0)))
	c.g.AddOutput(merged, TensorType(floatType, "batch", "seq", 768))
	return s, heads, root, scores, merged
}

func TestFoldHiddenHeads(t *testing.T) {
	c := newChain(14)
	s, heads, root, scores, merged := hiddenHeads(c)
	f := Infer(c.g)
	if got, _ := f.Shape(scores); !matches(got, true, "batch,12,seq,seq") {
		t.Errorf("scores are %v", got)
	}
	if got, _ := f.Shape(merged); !matches(got, true, "batch,seq,768") {
		t.Errorf("merged heads are %v", got)
	}
	if got, ok := f.Scalar(root); !ok || got != float64(float32(math.Sqrt(0.125))) {
		t.Errorf("root of the scale is %v, %t", got, ok)
	}
	if n, ok := f.Ints(heads); !ok || !slices.Equal(n, []int64{12}) {
		t.Errorf("heads are %v, %t", n, ok)
	}
	if n, ok := f.Ints(s); ok {
		t.Errorf("the symbolic shape is %v", n)
	}
}

// sliceOf is Python's slicing, element by element; ONNX differs in that a start beyond the end of a reversed axis is its
// last element, which is the same.
func sliceOf(n, start, end, step int64) []int64 {
	clamp := func(x, lo, hi int64) int64 {
		if x < 0 {
			x += n
		}
		return min(max(x, lo), hi)
	}
	var out []int64
	if step > 0 {
		for i := clamp(start, 0, n); i < clamp(end, 0, n); i += step {
			out = append(out, i)
		}
		return out
	}
	for i := clamp(start, 0, n-1); i > clamp(end, -1, n-1); i += step {
		out = append(out, i)
	}
	return out
}

func TestSliceAgainstLoops(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 2000 {
		n := r.Int64N(9)
		start, end, step := r.Int64N(25)-12, r.Int64N(25)-12, r.Int64N(9)-4
		if step == 0 {
			continue
		}
		want := sliceOf(n, start, end, step)
		elements := make([]int64, n)
		for i := range elements {
			elements[i] = int64(i)
		}
		c := newChain(13)
		y := c.op("Slice", c.ints(elements...), c.ints(start), c.ints(end), c.ints(0), c.ints(step))
		got, ok := Infer(c.g).Ints(y)
		if !ok || !slices.Equal(got, want) {
			t.Fatalf("[0:%d][%d:%d:%d] = %v, %t, want %v", n, start, end, step, got, ok, want)
		}
		// The same with a symbolic length, where it can be told.
		c = newChain(13)
		y = c.op("Slice", c.input(floatType, "n"), c.ints(start), c.ints(end), c.ints(0), c.ints(step))
		shape, _ := Infer(c.g).Shape(y)
		empty := n == 0 && min(start, end) < 2 && max(start, end) > -2 // see Facts: the element is taken to be there
		if length, ok := shape[0].Eval(map[string]int64{"n": n}); ok && length != int64(len(want)) && !empty {
			t.Fatalf("[0:n][%d:%d:%d] has %v elements, %d for n = %d, want %d", start, end, step, shape[0], length, n, len(want))
		}
	}
}

func TestRoundToHalf(t *testing.T) {
	for _, c := range []struct{ x, want float64 }{
		{1, 1}, {65504, 65504}, {65519, 65504}, {65520, math.Inf(1)}, {-1e9, math.Inf(-1)},
		{2049, 2048}, {2051, 2052}, // ties to even
		{math.Ldexp(1, -24), math.Ldexp(1, -24)}, {math.Ldexp(1, -25), 0}, {math.Ldexp(3, -26), math.Ldexp(1, -24)},
		{math.Inf(1), math.Inf(1)}, {0, 0},
	} {
		if got := precision[onnxpb.TensorProto_FLOAT16](c.x); got != c.want {
			t.Errorf("%v rounds to %v, want %v", c.x, got, c.want)
		}
	}
	for range 1000 {
		x := rand.NormFloat64() * math.Exp(40*rand.NormFloat64())
		if got, want := roundBits(x, 24, -126, 127), float64(float32(x)); got != want {
			t.Fatalf("%v rounds to %v, float32 is %v", x, got, want)
		}
	}
}
