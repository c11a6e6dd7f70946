package unfuse_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
	"onnx-dha/testmodels"
)

// forms makes values inside the branches of an If.
type forms struct{ *graph.Patch }

func (f forms) op(op string, in ...*graph.Value) *graph.Value { return f.Op(op, "inner/"+op, in) }

func (f forms) reshape(x *graph.Value, dims ...int64) *graph.Value {
	return f.op("Reshape", x, f.Ints("shape", dims...))
}

func (f forms) gather(x *graph.Value, heads ...int64) *graph.Value {
	return f.Op("Gather", "inner/Gather", []*graph.Value{x, f.Ints("heads", heads...)}, graph.IntAttr("axis", 1))
}

func (f forms) sum(x *graph.Value, axis int64) *graph.Value {
	return f.Op("ReduceSum", "inner/ReduceSum", []*graph.Value{x, f.Ints("axis", axis)}, graph.IntAttr("keepdims", 0))
}

// maker makes a value of two others.
type maker func(f forms, x, y *graph.Value) *graph.Value

// choose makes an If the output of the sketch. Its condition is an input that the run sets to few where cond makes none.
func (s *sketch) choose(few float64, cond, then, els maker, x, y *graph.Value) {
	f := forms{graph.NewPatch(s.m.Graph)}
	var when *graph.Value
	if cond != nil {
		when = cond(f, x, y)
	} else {
		when = s.list("few", bit, []float64{few})
	}
	out := f.If("block/If", s.elem, when, func() *graph.Value { return then(f, x, y) }, func() *graph.Value { return els(f, x, y) })
	out = f.Op("Identity", "block/Identity", []*graph.Value{out})
	s.output(f, out)
}

func (s *sketch) output(f forms, out *graph.Value) {
	if _, err := f.Apply(); err != nil {
		s.t.Fatal(err)
	}
	s.m.Graph.AddOutput(out, graph.TensorType(s.elem))
	out.Info.Type.GetTensorType().Shape = nil
}

// The queries of heads 0 and 1 read key head 0, that of head 2 reads key head 1: [B, 3, S, 4] × [B, 2, 4, T].
func padded(f forms, q, k *graph.Value) *graph.Value {
	rows := f.reshape(f.gather(q, 0, 1, 2, 2), 0, 2, -1, 4)
	return f.gather(f.reshape(f.op("MatMul", rows, k), 0, 4, -1, 0), 0, 1, 2)
}

func copied(f forms, q, k *graph.Value) *graph.Value { return f.op("MatMul", q, f.gather(k, 0, 0, 1)) }

// inPieces multiplies one row with pieces of two positions: [B, 2, 1, C] × [B, 2, C, 4].
func inPieces(f forms, p, v *graph.Value) *graph.Value {
	return f.sum(f.op("MatMul", f.reshape(p, 0, 0, -1, 1, 2), f.reshape(v, 0, 0, -1, 2, 4)), 2)
}

// whole is whether inPieces fits: one row, and an even number of positions.
func whole(f forms, p, _ *graph.Value) *graph.Value {
	size := func(axis int64) *graph.Value { return f.op("Gather", f.op("Shape", p), f.Ints("axis", axis)) }
	one := f.op("Not", f.op("Greater", size(2), f.Ints("one", 1)))
	return f.op("And", one, f.op("Equal", f.op("Mod", size(3), f.Ints("piece", 2)), f.Ints("none", 0)))
}

func product(f forms, x, y *graph.Value) *graph.Value { return f.op("MatMul", x, y) }

// An If that chooses between two forms of one product gives way to the second.
func TestChoice(t *testing.T) {
	heads := func(s *sketch) (x, y *graph.Value) {
		return s.in("q", "B=2", 3, "S=2", 4), s.in("k", "B=2", 2, 4, "T=5")
	}
	row := func(s *sketch) (x, y *graph.Value) {
		return s.in("p", "B=2", 2, "S=1", "C=6"), s.in("v", "B=2", 2, "C=6", 4)
	}
	for name, c := range map[string]struct {
		operands        func(s *sketch) (x, y *graph.Value)
		cond, then, els maker
	}{
		"padded groups":   {heads, nil, padded, copied},
		"other way round": {heads, nil, copied, copied},
		"pieces":          {row, whole, inPieces, product},
		"rows and columns": {row, nil, func(f forms, p, v *graph.Value) *graph.Value {
			return swapped(f, f.op("MatMul", swapped(f, v), swapped(f, p)))
		}, product},
		"a choice in a choice": {heads, nil, func(f forms, q, k *graph.Value) *graph.Value {
			one := f.op("Equal", f.op("Gather", f.op("Shape", q), f.Ints("axis", 2)), f.Ints("one", 1))
			return f.Op("Identity", "inner/Identity", []*graph.Value{f.If("inner/If", f32, one, func() *graph.Value { return copied(f, q, k) }, func() *graph.Value { return padded(f, q, k) })})
		}, copied},
	} {
		for _, few := range []float64{0, 1} {
			t.Run(name, func(t *testing.T) {
				each(t, []int64{13, 17, 21}, func(s *sketch) {
					x, y := c.operands(s)
					s.choose(few, c.cond, c.then, c.els, x, y)
					s.exact(1e-5)
				})
			})
		}
	}
}

func swapped(f forms, x *graph.Value) *graph.Value {
	return f.Op("Transpose", "inner/Transpose", []*graph.Value{x}, graph.IntsAttr("perm", 0, 1, 3, 2))
}

// Branches may give what their readers bring into one shape; readers that do not see the difference.
func TestChoiceOfShapes(t *testing.T) {
	for reader, refused := range map[string]bool{"Reshape": false, "Identity": true} {
		s := newSketch(t, 17, f32)
		p, v := s.in("p", "B=2", 2, "S=1", "C=6"), s.in("v", "B=2", 2, "C=6", 4)
		f := forms{graph.NewPatch(s.m.Graph)}
		out := f.If("block/If", s.elem, whole(f, p, v),
			func() *graph.Value {
				return f.Op("Unsqueeze", "inner/Unsqueeze", []*graph.Value{inPieces(f, p, v), f.Ints("axis", 2)})
			},
			func() *graph.Value { return product(f, p, v) })
		if reader == "Reshape" {
			out = f.reshape(out, 0, 2, -1, 4)
		} else {
			out = f.op("Identity", out)
		}
		s.output(f, out)
		_, why, err := unfuse.Expand(s.reload(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(why) > 0; got != refused {
			t.Errorf("read by %s: refused %v, want %v", reader, got, refused)
		}
	}
}

// Choices between other things stay: those whose branches give different results are refused with the reason, the others
// are no forms of a product.
func TestNoChoice(t *testing.T) {
	constant := func(f forms) *graph.Value { return f.Init(graph.NewTensor("w", []int64{1}, []float32{2})) }
	for name, c := range map[string]struct {
		then, els maker
		why       string
	}{
		"other groups": {padded, func(f forms, q, k *graph.Value) *graph.Value { return f.op("MatMul", q, f.gather(k, 0, 1, 1)) }, "give different results"},
		"one head too few": {padded, func(f forms, q, k *graph.Value) *graph.Value {
			return f.op("MatMul", f.gather(q, 0, 1), f.gather(k, 0, 0))
		}, "give different results"},
		"never of one form": {func(f forms, q, k *graph.Value) *graph.Value {
			return f.op("MatMul", f.reshape(q, 0, 3, 5, 7), f.gather(k, 0, 0, 1))
		}, copied, "could not be told"},
		"pieces that do not fit": {func(f forms, q, k *graph.Value) *graph.Value {
			pieces := f.reshape(f.gather(k, 0, 0, 1), 0, 3, 2, 2, -1)
			pieces = f.Op("Transpose", "inner/Transpose", []*graph.Value{pieces}, graph.IntsAttr("perm", 0, 1, 3, 2, 4))
			return f.sum(f.op("MatMul", f.reshape(q, 0, 3, -1, 1, 2), pieces), 2)
		}, copied, "give different results"},
		"a scale": {func(f forms, q, k *graph.Value) *graph.Value { return f.op("Mul", padded(f, q, k), constant(f)) }, copied, ""},
		"another operand": {padded, func(f forms, q, k *graph.Value) *graph.Value {
			return f.op("MatMul", q, swapped(f, f.gather(q, 0, 0, 1)))
		}, ""},
		"two products": {copied, func(f forms, q, k *graph.Value) *graph.Value {
			return f.Op("Concat", "inner/Concat", []*graph.Value{f.op("MatMul", f.gather(q, 0, 1), f.gather(k, 0, 0)), f.op("MatMul", f.gather(q, 2), f.gather(k, 1))}, graph.IntAttr("axis", 1))
		}, ""},
		"a mask":     {padded, func(f forms, q, k *graph.Value) *graph.Value { return f.op("Add", copied(f, q, k), constant(f)) }, ""},
		"no product": {func(f forms, q, _ *graph.Value) *graph.Value { return f.op("Identity", q) }, func(f forms, q, _ *graph.Value) *graph.Value { return f.gather(q, 0) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSketch(t, 17, f32)
			s.choose(1, nil, c.then, c.els, s.in("q", "B=2", 3, "S=2", 4), s.in("k", "B=2", 2, 4, "T=5"))
			m := s.reload()
			before := message(t, m)
			done, refused, err := unfuse.Expand(m, nil)
			if err != nil || len(done) > 0 {
				t.Fatalf("expanded %v, %v", done, err)
			}
			switch {
			case c.why == "" && len(refused) > 0:
				t.Errorf("refused: %s", refused[0].Why)
			case c.why != "" && (len(refused) == 0 || !strings.Contains(refused[0].Why, c.why)):
				t.Errorf("refused %v, want %q", refused, c.why)
			}
			if !proto.Equal(before, message(t, m)) {
				t.Error("the model changed")
			}
		})
	}
}

func message(t *testing.T, m *graph.Model) proto.Message {
	t.Helper()
	pb, err := m.Message()
	if err != nil {
		t.Fatal(err)
	}
	return proto.Clone(pb)
}

// A merged decoder, an If with the whole model in either branch, is no choice between forms.
func TestMergedDecoder(t *testing.T) {
	for _, family := range []string{"gpt2", "llama-gqa", "t5-decoder"} {
		f, err := testmodels.Get(family)
		if err != nil {
			t.Fatal(err)
		}
		first, err := f.Message(testmodels.Options{Stage: testmodels.First})
		if err != nil {
			t.Fatal(err)
		}
		next, err := f.Message(testmodels.Options{Stage: testmodels.Next})
		if err != nil {
			t.Fatal(err)
		}
		data, err := proto.Marshal(testmodels.Merge(first, next))
		if err != nil {
			t.Fatal(err)
		}
		m, err := graph.Read("merged.onnx", data)
		if err != nil {
			t.Fatal(err)
		}
		done, refused, err := unfuse.Expand(m, nil)
		if err != nil || len(done)+len(refused) > 0 {
			t.Errorf("%s: expanded %v, refused %v, %v", family, done, refused, err)
		}
		if blocks := attention.Find(m).Blocks; len(blocks) == 0 || blocks[0].Body == "" {
			t.Errorf("%s: its blocks do not lie in the branches any more", family)
		}
	}
}
