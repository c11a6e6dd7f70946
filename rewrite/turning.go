package rewrite

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// This file evaluates the operators that a rotary embedding is made of.

// entries numbers the entries of tables by how they are computed, from 1; the same for all blocks of a model.
type entries struct {
	ids     map[string]int
	columns map[*graph.Tensor][]int
}

func (t *entries) id(format string, a ...any) int {
	key := fmt.Sprintf(format, a...)
	if t.ids[key] == 0 {
		t.ids[key] = len(t.ids) + 1
	}
	return t.ids[key]
}

// column returns, for each column of a constant table [max, n], a number that columns with the same contents share.
func (t *entries) column(c *graph.Tensor) []int {
	if of, ok := t.columns[c]; ok {
		return of
	}
	var of []int
	if x, err := c.Float64s(); err == nil {
		n := int(c.Dims()[1])
		for j := range n {
			var b strings.Builder
			for i := j; i < len(x); i += n {
				fmt.Fprintf(&b, "%x ", math.Float64bits(x[i]))
			}
			of = append(of, t.id("column %s", b.String()))
		}
	}
	t.columns[c] = of
	return of
}

// wire returns v at small sizes, nil when it cannot be worked out.
func (t *turning) wire(v *graph.Value) *array {
	if a, ok := t.made[v]; ok {
		return a
	}
	shape, ok := t.size(v)
	if !ok {
		return nil
	}
	var a *array
	switch {
	case v == t.x:
		a = &array{shape, nil}
		for i := range volume(shape) {
			a.at = append(a.at, cell{parts: []turnTerm{{x: i}}})
		}
	default:
		if a = t.computed(v, shape); a == nil {
			a = &array{shape, nil} // what is not looked into stands for itself
			for i := range volume(shape) {
				a.at = append(a.at, cell{entry: t.entries.id("%p[%d]", v, i)})
			}
		}
	}
	t.made[v] = a
	return a
}

func volume(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// computed evaluates the node that makes v, of the given shape; nil when it is not one of those known here.
func (t *turning) computed(v *graph.Value, shape []int) *array {
	facts, n := t.c.e.facts, v.Producer
	if c := facts.Const(v); c != nil {
		x, err := c.Float64s()
		if err != nil || len(x) != volume(shape) {
			return nil
		}
		a := &array{shape, nil}
		for _, x := range x {
			a.at = append(a.at, cell{entry: t.entries.id("number %x", math.Float64bits(x))})
		}
		return a
	}
	if n == nil || !n.Is(n.OpType) || len(n.Subgraphs) > 0 {
		return nil
	}
	if f, ok := t.gone[n]; ok {
		return t.wire(n.In[f.data])
	}
	switch n.OpType {
	case "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten":
		return t.moved(n.In[0], shape, func(at []int, in []int) int { return place(shape, at) })
	case "Cast":
		if facts.Elem(n.In[0]) == facts.Elem(v) {
			return t.moved(n.In[0], shape, func(at []int, in []int) int { return place(shape, at) })
		}
	case "Transpose":
		perm, ok := n.Ints("perm")
		return t.moved(n.In[0], shape, func(at []int, in []int) int {
			from := make([]int, len(at))
			for i := range at {
				axis := len(at) - 1 - i
				if ok {
					axis = int(perm[i])
				}
				from[axis] = at[i]
			}
			return place(in, from)
		})
	case "Expand":
		return t.moved(n.In[0], shape, func(at []int, in []int) int { return under(in, at) })
	case "Slice":
		return t.slice(n, shape)
	case "Split":
		axis := int(n.Int("axis", 0))
		if axis < 0 {
			axis += len(shape)
		}
		if axis < 0 || axis >= len(shape) || !t.fixed(n.In[0], axis) {
			return nil
		}
		begin := 0
		for _, o := range n.Out {
			if o == v {
				break
			}
			size, ok := t.size(o)
			if !ok {
				return nil
			}
			begin += size[axis]
		}
		return t.moved(n.In[0], shape, func(at []int, in []int) int {
			from := slices.Clone(at)
			from[axis] += begin
			return place(in, from)
		})
	case "Concat":
		return t.concat(n, shape)
	case "Gather":
		return t.gather(n, shape)
	case "MatMul": // frequencies [.., n, 1] times positions [.., 1, step]
		a, b := t.wire(n.In[0]), t.wire(n.In[1])
		if a == nil || b == nil || len(a.shape) < 2 || len(b.shape) < 2 || a.shape[len(a.shape)-1] != 1 || !t.fixed(n.In[0], len(a.shape)-1) {
			return nil
		}
	case "Neg", "Cos", "Sin", "Mul", "Div", "Add", "Sub":
	default:
		return nil
	}
	return t.elementwise(n, shape)
}

// moved takes each element of the result from one of v: from maps the result's index to a place in v, whose shape is in.
func (t *turning) moved(v *graph.Value, shape []int, from func(at, in []int) int) *array {
	src := t.wire(v)
	if src == nil {
		return nil
	}
	a := &array{shape, nil}
	for i := range volume(shape) {
		at := from(index(shape, i), src.shape)
		if at < 0 || at >= len(src.at) {
			return nil
		}
		a.at = append(a.at, src.at[at])
	}
	return a
}

// under is the place that a broadcast takes the element at from.
func under(in, at []int) int {
	x := 0
	for a, n := range in {
		i := at[len(at)-len(in)+a]
		if n == 1 {
			i = 0
		}
		x = x*n + i
	}
	return x
}

// fixed reports whether an axis has a constant size: what is true at a small size is true only of such an axis when it is
// cut.
func (t *turning) fixed(v *graph.Value, axis int) bool {
	shape, ok := t.c.e.facts.Shape(v)
	if !ok || axis >= len(shape) {
		return false
	}
	_, ok = shape[axis].Const()
	return ok
}

func (t *turning) slice(n *graph.Node, shape []int) *array {
	arg := func(i int, name string) ([]int64, bool) {
		if x := n.Input(i); x != nil {
			return t.c.e.facts.Ints(x)
		}
		return n.Ints(name)
	}
	starts, ok := arg(1, "starts")
	if !ok {
		return nil
	}
	axes, ok := arg(3, "axes")
	if !ok {
		if n.Input(3) != nil {
			return nil
		}
		for i := range starts {
			axes = append(axes, int64(i))
		}
	}
	steps, ok := arg(4, "steps")
	if !ok && n.Input(4) != nil {
		return nil
	}
	begin, step := make([]int, len(shape)), slices.Repeat([]int{1}, len(shape))
	for i, axis := range axes {
		if axis < 0 {
			axis += int64(len(shape))
		}
		if axis < 0 || int(axis) >= len(shape) || !t.fixed(n.In[0], int(axis)) {
			return nil
		}
		in, _ := t.size(n.In[0])
		if steps != nil {
			step[axis] = int(steps[i])
		}
		if starts[i] < 0 {
			starts[i] += int64(in[axis])
		}
		if step[axis] < 1 || starts[i] < 0 {
			return nil
		}
		begin[axis] = int(starts[i])
	}
	return t.moved(n.In[0], shape, func(at, in []int) int {
		from := make([]int, len(at))
		for a := range at {
			if from[a] = begin[a] + step[a]*at[a]; from[a] >= in[a] {
				return -1
			}
		}
		return place(in, from)
	})
}

func (t *turning) concat(n *graph.Node, shape []int) *array {
	axis := int(n.Int("axis", 0))
	if axis < 0 {
		axis += len(shape)
	}
	var ins []*array
	for _, x := range n.In {
		in := t.wire(x)
		if in == nil || len(in.shape) != len(shape) || axis < 0 || axis >= len(shape) || !t.fixed(x, axis) {
			return nil
		}
		ins = append(ins, in)
	}
	a := &array{shape, nil}
	for i := range volume(shape) {
		at := index(shape, i)
		k := 0
		for k < len(ins) && at[axis] >= ins[k].shape[axis] {
			at[axis] -= ins[k].shape[axis]
			k++
		}
		if k == len(ins) {
			return nil
		}
		a.at = append(a.at, ins[k].at[place(ins[k].shape, at)])
	}
	return a
}

// gather picks by constant indices, or rows of a constant table by positions.
func (t *turning) gather(n *graph.Node, shape []int) *array {
	facts := t.c.e.facts
	picked, ok := t.size(n.In[1])
	if !ok {
		return nil
	}
	if c := facts.Const(n.In[0]); c != nil && len(c.Dims()) == 2 && n.Int("axis", 0) == 0 {
		column, at := t.entries.column(c), t.wire(n.In[1])
		if column == nil || at == nil || len(shape) != len(picked)+1 {
			return nil
		}
		a := &array{shape, nil}
		for i := range volume(shape) {
			w := len(column)
			a.at = append(a.at, cell{entry: t.entries.id("row %d of %d", at.at[i/w].entry, column[i%w])})
		}
		return a
	}
	in, ok := t.size(n.In[0])
	if !ok {
		return nil
	}
	axis := int(n.Int("axis", 0))
	if axis < 0 {
		axis += len(in)
	}
	picks, known := facts.Ints(n.In[1])
	if !known || axis < 0 || axis >= len(in) || !t.fixed(n.In[0], axis) || len(picks) != volume(picked) {
		return nil
	}
	return t.moved(n.In[0], shape, func(at, in []int) int {
		from := slices.Clone(at[:axis])
		pick := picks[place(picked, at[axis:axis+len(picked)])]
		if pick < 0 {
			pick += int64(in[axis])
		}
		return place(in, append(append(from, int(pick)), at[axis+len(picked):]...))
	})
}

// elementwise adds and multiplies elements, those of tables among themselves too.
func (t *turning) elementwise(n *graph.Node, shape []int) *array {
	var ins []*array
	for _, x := range n.In {
		in := t.wire(x)
		if in == nil {
			return nil
		}
		ins = append(ins, in)
	}
	a := &array{shape, nil}
	for i := range volume(shape) {
		at := index(shape, i)
		var x []cell
		linear := 0
		for _, in := range ins {
			e := in.at[under(in.shape, at)]
			if e.parts != nil {
				linear++
			}
			x = append(x, e)
		}
		if linear == 0 {
			ids := n.OpType
			for _, e := range x {
				ids += fmt.Sprint(" ", e.entry)
			}
			a.at = append(a.at, cell{entry: t.entries.id("%s", ids)})
			continue
		}
		parts := slices.Clone(x[0].parts)
		switch {
		case n.OpType == "Neg":
			negate(parts)
		case (n.OpType == "Add" || n.OpType == "Sub") && linear == 2:
			more := slices.Clone(x[1].parts)
			if n.OpType == "Sub" {
				negate(more)
			}
			parts = append(parts, more...)
		case n.OpType == "Mul" && linear == 1:
			by, table := x[1].entry, n.In[1]
			if x[0].parts == nil {
				parts, by, table = slices.Clone(x[1].parts), x[0].entry, n.In[0]
			}
			for k := range parts {
				if parts[k].by != 0 {
					return nil
				}
				parts[k].by = by
			}
			if !slices.Contains(t.tables, table) {
				t.tables = append(t.tables, table)
			}
		default:
			return nil
		}
		a.at = append(a.at, cell{parts: parts})
	}
	return a
}

func negate(parts []turnTerm) {
	for k := range parts {
		parts[k].minus = !parts[k].minus
	}
}
