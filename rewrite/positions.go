package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

// positions follows the axis of cached positions forward from where it begins: which wires have it, at what place, and
// which tensors meet it from the side. It reads the graph as it was before the rewrite.
type positions struct {
	e     *editor
	axis  map[*graph.Value]int // of every wire with positions
	wires []*graph.Value       // in the order in which they were reached
	sides []positionSide
	until *graph.Node  // the product that sums over positions
	given *graph.Value // what is given out of them: the present
}

// positionSide is an operand of an elementwise node that is as long as the positions, and no wire of theirs itself.
type positionSide struct {
	node        *graph.Node
	input, axis int // axis of the operand
}

// follow walks from v, whose positions lie on axis, to the node until.
func (e *editor) follow(v *graph.Value, axis int, until *graph.Node) (*positions, error) {
	p := &positions{e: e, axis: map[*graph.Value]int{v: axis}, wires: []*graph.Value{v}, until: until}
	for i := 0; i < len(p.wires); i++ {
		for _, u := range p.wires[i].Users() {
			if err := p.step(p.wires[i], u); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// carriers are the operators that leave the axis where it is relative to the last one, with the inputs that positions may
// come in by; nil stands for all.
var carriers = map[string][]int{
	"Identity": {0}, "Cast": {0}, "Neg": {0}, "Abs": {0}, "Tanh": {0}, "Dropout": {0}, "Clip": {0}, "IsNaN": {0}, "Not": {0},
	"Softmax": {0}, "Mul": nil, "Div": nil, "Add": nil, "Sub": nil, "Max": nil, "Min": nil, "Where": nil, "And": nil, "Or": nil,
	"Sigmoid": {0}, "Pow": nil,
}

func (p *positions) step(v *graph.Value, u graph.Use) error {
	n, axis := u.Node, p.axis[v]
	fail := func(why string) error { return fmt.Errorf("at %v: %s", n, why) }
	if n == nil || n.Is("Shape") || n.Is("Size") {
		return nil
	}
	if n == p.until {
		return nil
	}
	if n.Graph != p.e.g {
		return fail("positions are read inside a subgraph")
	}
	if n.Domain != "" && n.Domain != "ai.onnx" || len(n.Out) == 0 || n.Out[0] == nil {
		return fail("positions cannot be followed through it")
	}
	in, ok1 := p.e.facts.Shape(v)
	out, ok2 := p.e.facts.Shape(n.Out[0])
	if !ok1 || !ok2 {
		return fail("its shape is not known")
	}
	switch inputs, carries := carriers[n.OpType]; {
	case carries && (inputs == nil || slices.Contains(inputs, u.Index)):
		back := len(in) - axis
		for i, x := range n.In {
			if i == u.Index || x == nil {
				continue
			}
			shape, ok := p.e.facts.Shape(x)
			if !ok {
				return fail(fmt.Sprintf("the shape of %q is not known", x.Name))
			}
			at := len(shape) - back
			if at < 0 || shape[at].Equal(graph.Int(1)) {
				continue
			}
			if _, known := p.axis[x]; !known {
				s := positionSide{n, i, at}
				if !slices.Contains(p.sides, s) {
					p.sides = append(p.sides, s)
				}
			}
		}
		return p.reach(n.Out[0], len(out)-back)
	case u.Index > 0 && !n.Is("Concat") && !n.Is("MatMul"):
		return fail("positions reach an input that moves data")
	}
	switch n.OpType {
	case "Transpose":
		perm, ok := n.Ints("perm")
		if !ok {
			return p.reach(n.Out[0], len(in)-1-axis)
		}
		return p.reach(n.Out[0], slices.Index(perm, int64(axis)))
	case "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand":
		// The axis is where as many elements lie before it, whatever axes of size 1 come and go.
		if n.Is("Expand") {
			return p.reach(n.Out[0], len(out)-(len(in)-axis))
		}
		before := graph.Int(1)
		for _, d := range in[:axis] {
			before = before.Mul(d)
		}
		have := graph.Int(1)
		for a, d := range out {
			if d.Equal(in[axis]) && have.Equal(before) {
				return p.reach(n.Out[0], a)
			}
			have = have.Mul(d)
		}
		return fail("positions are merged with another axis")
	case "Gather":
		at := int(n.Int("axis", 0))
		if at < 0 {
			at += len(in)
		}
		switch {
		case at == axis:
			return fail("single positions are picked")
		case at < axis:
			return p.reach(n.Out[0], axis+len(out)-len(in))
		}
		return p.reach(n.Out[0], axis)
	case "MatMul":
		switch {
		case u.Index == 1 && axis == len(in)-1:
			return p.reach(n.Out[0], len(out)-1)
		case u.Index == 0 && axis == len(in)-2:
			return p.reach(n.Out[0], len(out)-2)
		}
	case "Slice", "Split", "Concat":
		if in[axis].Equal(out[axis]) && !in[axis].Unknown() {
			return p.reach(n.Out[0], axis)
		}
	}
	return fail("positions cannot be followed through it")
}

// reach notes that v has the positions on axis.
func (p *positions) reach(v *graph.Value, axis int) error {
	if at, ok := p.axis[v]; ok {
		if at != axis {
			return fmt.Errorf("at %v: positions lie on two axes of %q", v.Producer, v.Name)
		}
		return nil
	}
	p.axis[v] = axis
	p.wires = append(p.wires, v)
	p.sides = slices.DeleteFunc(p.sides, func(s positionSide) bool { return s.node.In[s.input] == v })
	return nil
}
