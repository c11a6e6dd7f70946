package attention

import (
	"fmt"

	"onnx-dha/graph"
)

// bare describes the way of heads that are not made by a projection in this graph, as far as the walk sees: from where it
// stopped (what the caller passes, what an operator that it cannot follow gives) to the operand of a product. transposed
// says that the operand's channels are its rows, as those of keys are. There is nothing to fuse on such a path.
func bare(f *survey, operand *graph.Value, from stop, transposed bool) (*Path, *tracer, *sample, *stop) {
	v := from.wire
	shape, ok := concreteShape(f, v)
	dims, _ := f.Shape(v)
	if !ok || len(shape) < 2 || !encloses(v.Graph, operand.Graph) {
		return nil, nil, nil, &from
	}
	channels := 1
	if transposed {
		channels = 2
	}
	for _, axes := range headAxes(len(shape)) {
		n := 1
		for _, a := range axes {
			if _, number := dims[a].Const(); !number || n > maxColumns/shape[a] {
				n = 0
				break
			}
			n *= shape[a]
		}
		if n == 0 {
			continue
		}
		t := axesTracer(f, v, shape, axes, false)
		s := t.at(operand)
		if s == nil || len(s.shape) < 3 {
			continue
		}
		last := len(s.shape)
		if s.stored[last-channels] == 1 && s.shape[last-channels] > 1 || s.stored[last-3+channels] > 1 {
			continue // the channels are elsewhere
		}
		return &Path{Projection: &Projection{Input: v, Output: v, Weight: v, Columns: n}, Bare: from.why, Operand: operand, Nodes: t.nodes}, t, s, nil
	}
	return nil, nil, nil, &from
}

// headAxes lists where heads and channels may lie on a value of so many axes whose first is the batch: on two of them,
// or merged on one.
func headAxes(rank int) [][]int {
	var out [][]int
	for a := 1; a < rank; a++ {
		for b := a + 1; b < rank; b++ {
			out = append(out, []int{a, b})
		}
	}
	for a := rank - 1; a > 0; a-- {
		out = append(out, []int{a})
	}
	return out
}

// Bare reports whether queries, keys or values of the block are not projected in this graph.
func (b *Block) Bare() bool { return b.Query.Bare != "" || b.Key.Bare != "" || b.Value.Bare != "" }

// bareWhy says why a block whose heads are not all projected in this graph cannot be rewritten, empty when they are.
func (b *Block) bareWhy() string {
	names := []string{"queries", "keys", "values"}
	inputs := 0
	why := ""
	for i, p := range []*Path{b.Query, b.Key, b.Value} {
		if p.Bare == "" {
			continue
		}
		if p.Projection.Output.IsInput {
			inputs++
		}
		if why == "" {
			why = fmt.Sprintf("%s: %s", names[i], p.Bare)
		}
	}
	if inputs == 3 {
		return fmt.Sprintf("there is nothing to fuse: queries, keys and values come from the caller, as %q, %q and %q",
			b.Query.Projection.Output.Name, b.Key.Projection.Output.Name, b.Value.Projection.Output.Name)
	}
	return why
}

// loose reports whether a core is none of an attention that has heads: neither queries nor keys nor values are projected
// here, and they are not split into heads.
func (b *Block) loose() bool {
	return b.Heads == 1 && b.Query.Bare != "" && b.Key.Bare != "" && b.Value.Bare != ""
}

// crossing tells self from cross attention.
func (b *Block) crossing(f *survey) Kind {
	q, k := b.Query.Projection.Input, b.Key.Projection.Input
	switch {
	case sameStream(q, k):
		return Self
	case b.Query.Bare == "" || b.Key.Bare == "":
		return Cross
	}
	// Only lengths can tell.
	rows, ok := f.Shape(b.QK.In[0])
	columns, ok2 := f.Shape(b.Key.Projection.Output)
	if ok && ok2 && len(rows) > 2 {
		for _, d := range columns[1:] {
			if d.Equal(rows[len(rows)-2]) {
				return Self
			}
		}
	}
	return Cross
}
