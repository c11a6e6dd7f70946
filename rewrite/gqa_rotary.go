package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

// foldRotary lets the operator turn queries and keys: f gets the wires before the graph's rotary embedding. It returns nil
// where that cannot be, and says in c.rotary why.
//
// The operator turns token s of a step by row past+s of its tables [at least total, half]. They are made of the rows that
// the graph turns by, with rows that nothing reads in front of them, so that whatever the graph's positions are is kept:
// those of a cache that was shifted, frequencies that depend on the length, factors on cos and sin. What it cannot do is
// turn the sequences of a batch by different rows (in a prompt the kernel takes the first sequence's position_ids too).
func (c *core) foldRotary(f *fusedInputs) *rotation {
	b := c.b
	var turns [2]rotation
	for i, w := range []wire{f.q, f.k} {
		path := b.Query
		if i == 1 {
			path = b.Key
		}
		r, misfit := c.rotationOf(w, path)
		if misfit == notTurned && i == 0 {
			return nil
		}
		if misfit != "" {
			c.rotary = "rotary not folded: " + misfit
			return nil
		}
		turns[i] = r
	}
	q, k := turns[0], turns[1]
	c.rotary = "rotary not folded: "
	switch {
	case q.half != k.half || q.interleaved != k.interleaved || q.cos.key != k.cos.key || q.sin.key != k.sin.key:
		c.rotary += "queries and keys are turned differently"
	case b.HeadDim%16 != 0:
		c.rotary += fmt.Sprintf("the operator turns heads of a multiple of 16 channels, not %d", b.HeadDim)
	case q.half%8 != 0:
		c.rotary += fmt.Sprintf("the operator turns a multiple of 16 channels, not %d", 2*q.half)
	case c.e.g.Model.Opset("") < 13:
		c.rotary += "the model's opset is below 13"
	default:
		c.rotary = "rotary folded"
		// Sizes are read off what is turned from now on, so that nothing keeps what was turned alive.
		for _, w := range []wire{q.x, k.x} {
			c.e.fusedOps().sameSize(w.v, 0)
			c.e.fusedOps().sameSize(w.v, w.seq)
		}
		f.q, f.k = untransposed(q.x), untransposed(k.x)
		q.between = slices.Concat(q.between, k.between)
		return &q
	}
	return nil
}

// untransposed is a wire before the Transpose that makes it, where there is one.
func untransposed(w wire) wire {
	n := w.v.Producer
	if !n.Is("Transpose") {
		return w
	}
	perm, ok := n.Ints("perm")
	if !ok || len(perm) != 4 || perm[0] != 0 {
		return w
	}
	return wire{n.In[0], int(perm[w.heads]), int(perm[w.seq]), int(perm[w.channel]), w.n}
}

// operatorTable makes of the rows [S, half] that a step is turned by the table [past+S, half] that the operator looks rows
// past to past+S−1 up in.
func (c *core) operatorTable(t turnTable, past *graph.Value) *graph.Value {
	s, p := c.e.fusedOps(), c.e.p
	return s.once("table "+t.key, func() *graph.Value {
		x := t.v
		shape, _ := c.e.facts.Shape(x)
		var starts, ends, axes, steps []int64
		for a, d := range shape {
			first, end, step := int64(0), int64(1), int64(1)
			switch {
			case a == t.seq, d.Equal(graph.Int(1)):
				continue
			case a == t.column:
				first, step = int64(t.first), int64(t.step)
				end = first + step*int64(t.half-1) + 1
			}
			starts, ends, axes, steps = append(starts, first), append(ends, end), append(axes, int64(a)), append(steps, step)
		}
		if len(axes) > 0 {
			x = s.op("Slice", "rotary_columns", []*graph.Value{
				x, p.Ints("/attention/starts", starts...), p.Ints("/attention/ends", ends...), p.Ints("/attention/axes", axes...), p.Ints("/attention/steps", steps...),
			})
		}
		if t.seq > t.column {
			perm := slices.DeleteFunc(ints(natural(len(shape))), func(a int64) bool { return a == int64(t.seq) || a == int64(t.column) })
			x = s.op("Transpose", "rotary_rows_first", []*graph.Value{x}, graph.IntsAttr("perm", append(perm, int64(t.seq), int64(t.column))...))
		}
		x = s.op("Reshape", "rotary_rows", []*graph.Value{x, p.Ints("/attention/rows_shape", -1, int64(t.half))})
		if c.b.KeyCache == nil {
			return x
		}
		unread := s.once(fmt.Sprint("unread rows ", c.e.facts.Elem(t.v), t.half), func() *graph.Value {
			zero, err := constant("", c.e.facts.Elem(t.v), 0)
			if err != nil {
				panic(err) // a type of floating-point numbers
			}
			size := s.op("Concat", "unread_shape", []*graph.Value{past, p.Ints("/attention/half", int64(t.half))}, graph.IntAttr("axis", 0))
			return s.op("ConstantOfShape", "unread_rows", []*graph.Value{size}, graph.TensorAttr("value", zero))
		})
		return s.op("Concat", "rotary_table", []*graph.Value{unread, x}, graph.IntAttr("axis", 0))
	})
}
