package graph

import (
	"slices"

	"onnx-dha/graph/onnxpb"
)

// This file infers the operators with bodies. A body sees the facts of the graph around it.

// branches infers both bodies of an If. Its outputs are those of the branch that is certain to be taken, or what the
// two agree on.
func branches(c *call) {
	for _, body := range c.bodies() {
		c.f.body(body, nil)
	}
	then, other := c.bodyNamed("then_branch"), c.bodyNamed("else_branch")
	if then == nil || other == nil {
		return
	}
	taken, ok := c.ints(0)
	for i := range c.out {
		a, b := c.f.output(then, i), c.f.output(other, i)
		switch {
		case ok && len(taken) == 1 && taken[0] != 0:
			c.out[i] = a
		case ok && len(taken) == 1:
			c.out[i] = b
		default:
			c.out[i] = c.f.agree(a, b)
		}
	}
}

// loop infers the body of a Loop: inputs are the iteration's number, the condition, and the carried values; outputs are
// the condition, the carried values, and one element of each collected output.
func loop(c *call) {
	body := c.bodyNamed("body")
	if body == nil {
		return
	}
	carried := max(len(c.In)-2, 0)
	in := []fact{{elem: int64Type, ranked: true}, {elem: boolType, ranked: true}}
	for i := range carried {
		in = append(in, c.fact(2+i))
	}
	c.f.iterate(body, in, 2, carried, 1)
	for i := range c.out {
		last := c.f.output(body, 1+i)
		if i < carried {
			first := c.fact(2 + i)
			if first.empty {
				last = c.f.everyTime(last)
			}
			c.out[i] = c.f.agree(first, last) // the initial value comes out when there is no iteration
			continue
		}
		c.out[i] = c.f.collected(last, 0)
	}
}

// scan infers the body of a Scan: inputs are the states and one element of each scanned input, outputs the states and
// one element of each collected output.
func scan(c *call) {
	body := c.bodyNamed("body")
	scanned := c.Int("num_scan_inputs", 0)
	states := int64(len(c.In)) - scanned
	// Before opset 9 everything has a batch dimension more, which no exporter in use writes.
	if body == nil || scanned < 0 || states < 0 || c.Graph.Model.Opset("") < 9 {
		for _, b := range c.bodies() {
			c.f.body(b, nil)
		}
		return
	}
	inAxes, _ := c.Ints("scan_input_axes")
	outAxes, _ := c.Ints("scan_output_axes")
	var in []fact
	for i := range c.In {
		fa := c.fact(i)
		if int64(i) < states {
			in = append(in, fa)
			continue
		}
		a, ok := axis(entry(inAxes, i-int(states)), len(fa.shape))
		if !ok || !fa.ranked {
			in = append(in, fact{elem: fa.elem})
			continue
		}
		set := make([]bool, len(fa.shape))
		set[a] = true
		in = append(in, fact{elem: fa.elem, shape: without(fa.shape, set, false), ranked: true})
	}
	c.f.iterate(body, in, 0, int(states), 0)
	for i := range c.out {
		last := c.f.output(body, i)
		if int64(i) < states {
			c.out[i] = c.f.agree(c.fact(i), last)
			continue
		}
		c.out[i] = c.f.collected(last, entry(outAxes, i-int(states)))
	}
}

// entry returns list[i], 0 beyond its end.
func entry(list []int64, i int) int64 {
	if i < len(list) {
		return list[i]
	}
	return 0
}

// bodyNamed returns the body in the attribute called name, nil when there is none.
func (c *call) bodyNamed(name string) *Graph {
	if s := c.Subgraphs[name]; len(s) > 0 {
		return s[0]
	}
	return nil
}

// output returns what is known of output i of a body.
func (f *Facts) output(g *Graph, i int) fact {
	if i >= len(g.Outputs) || g.Outputs[i] == nil {
		return fact{}
	}
	v := g.Outputs[i]
	fa := fact{elem: f.Elem(v)}
	fa.shape, fa.ranked = f.Shape(v)
	fa.known, _ = f.Known(v)
	if fa.known != nil && len(fa.known.Ints)+len(fa.known.Floats) > maxFold {
		fa.known = nil
	}
	return fa
}

// Limits of iterate: how often a body is looked at, and how deep in loops more than once.
const (
	maxRounds = 3
	maxLoops  = 2
)

// iterate infers a body that is run many times. count of its inputs, from first on, are carried: the next iteration gets
// the outputs from last on for them. They begin as in says; what an iteration changes of them is forgotten, until the
// rest holds before and after.
func (f *Facts) iterate(body *Graph, in []fact, first, count, last int) {
	carried := in[first : first+count]
	varies := make([][]bool, count)
	for i := range carried {
		carried[i].known = nil
		varies[i] = make([]bool, len(carried[i].shape))
	}
	f.loops++
	defer func() { f.loops-- }()
	for round := 1; ; round++ {
		final := round == maxRounds || f.loops > maxLoops
		for i := range carried {
			if final && carried[i].ranked {
				carried[i].shape = f.newDims(len(carried[i].shape))
			}
		}
		f.body(body, in)
		changed := false
		for i := range carried {
			changed = f.forget(&carried[i], f.output(body, last+i), varies[i]) || changed
		}
		if !changed || final {
			return
		}
	}
}

// forget drops of a fact what does not hold of another and reports whether there was such a thing. Of dimensions that
// vary nothing holds.
func (f *Facts) forget(fa *fact, other fact, varies []bool) (changed bool) {
	if fa.elem != other.elem && fa.elem != onnxpb.TensorProto_UNDEFINED {
		fa.elem, changed = onnxpb.TensorProto_UNDEFINED, true
	}
	if !fa.ranked {
		return changed
	}
	if !other.ranked || len(other.shape) != len(fa.shape) {
		fa.shape, fa.ranked = nil, false
		return true
	}
	shape := slices.Clone(fa.shape)
	for i, d := range shape {
		if !varies[i] && !d.Equal(other.shape[i]) {
			shape[i], varies[i], changed = f.newDim(), true, true
		}
	}
	fa.shape = shape
	return changed
}

// agree returns what holds of a value that is one of two, or of the tensors of two sequences.
func (f *Facts) agree(a, b fact) fact {
	switch {
	case a.empty:
		return b
	case b.empty:
		return a
	}
	out := fact{}
	if a.elem == b.elem {
		out.elem = a.elem
	}
	if !a.ranked || !b.ranked || len(a.shape) != len(b.shape) {
		return out
	}
	out.ranked = true
	out.shape = f.newDims(len(a.shape))
	for i := range out.shape {
		if a.shape[i].Equal(b.shape[i]) {
			out.shape[i] = a.shape[i]
		}
	}
	if k := a.known; k != nil && b.known != nil && slices.Equal(k.Shape, b.known.Shape) && k.Floats == nil && b.known.Floats == nil {
		for i, d := range k.Ints {
			if !d.Equal(b.known.Ints[i]) {
				return out
			}
		}
		out.known = k
	}
	return out
}

// everyTime returns what holds of a value in every iteration: a dimension without a name may be another one each time.
func (f *Facts) everyTime(fa fact) fact {
	out := fact{elem: fa.elem, ranked: fa.ranked, shape: f.newDims(len(fa.shape))}
	for i, d := range fa.shape {
		if !d.Unknown() {
			out.shape[i] = d
		}
	}
	return out
}

// collected returns what holds of the concatenation, along a new axis, of a value from every iteration.
func (f *Facts) collected(fa fact, at int64) fact {
	out := fact{elem: fa.elem}
	if !fa.ranked || len(fa.shape) >= maxRank {
		return out
	}
	a, ok := axis(at, len(fa.shape)+1)
	if !ok {
		return out
	}
	same := f.everyTime(fa).shape
	out.ranked = true
	out.shape = slices.Insert(same, a, f.newDim())
	return out
}
