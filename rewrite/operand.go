package rewrite

import (
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// operand is the right operand of a product before what brings it into the form in which it is multiplied, [.., heads, rows,
// cols]: that is one Transpose of it. A product in the branch of an If, or one that follows a Transpose at once, takes it as
// it lies in memory; behind a Reshape the runtime would make a copy, in every step of decoding one of the whole cache.
type operand struct {
	v     *graph.Value
	axis  int         // of the heads
	shape []graph.Dim // before heads are fused, nil where it is not known
	order []int       // of its axes in the product
	moved bool        // what it is now is not behind one Transpose
}

// operand goes back from input 1 of n over whatever only turns it around: Transposes, Reshapes that merge the heads with the
// batch, [batch, heads, rows, cols] ↔ [batch·heads, rows, cols], and factors that were taken off.
func (c *core) operand(n *graph.Node, path *attention.Path, view axisView) operand {
	e, u := c.e, view.v
	if view.single {
		return operand{v: view.split(), axis: view.headAxis(), moved: true}
	}
	// Axes are those of the form with the heads on an axis of their own, which is what merged wires are brought into.
	form := func(v *graph.Value) (l attention.Layout, shape []graph.Dim, ok bool) {
		l, ok = path.Wires[v]
		shape, known := e.facts.Shape(v)
		return l, shape, ok && known && l.Axis >= 0 && l.Inner == 1 && l.Pair == 0 && !l.Spread && v != path.Projection.Output && (l.Outer == 1 || l.Axis == 0 && len(shape) == 3)
	}
	o := operand{axis: view.headAxis(), moved: view.merged}
	l, shape, ok := form(u)
	if !ok {
		return operand{v: view.split(), axis: view.headAxis(), moved: view.merged}
	}
	rank := len(shape)
	if l.Outer > 1 {
		rank++
	}
	o.order = natural(rank)
	for {
		t := u.Producer
		if v := c.gone[u]; v != nil {
			u = v
			continue
		}
		if t == nil || t.Graph != n.Graph || u == path.Repeat {
			break
		}
		before, from, ok := form(t.Input(0))
		merged := before.Outer > 1
		if !ok {
			break
		}
		perm, given := t.Ints("perm")
		if t.Is("Transpose") && given && merged == (l.Outer > 1) && (!merged || perm[0] == 0) {
			next := make([]int, rank)
			for i, a := range o.order {
				switch {
				case !merged:
					next[i] = int(perm[a])
				case a > 1:
					next[i] = int(perm[a-1]) + 1
				default:
					next[i] = a
				}
			}
			o.order, o.axis = next, before.Axis
			if merged {
				o.axis++
			}
		} else if t.Is("Reshape") && merged != (l.Outer > 1) && o.axis == 1 && rank == 4 && len(from)+len(shape) == 7 &&
			slices.EqualFunc(from[len(from)-2:], shape[len(shape)-2:], graph.Dim.Equal) {
			o.moved = true
		} else {
			break
		}
		u, l, shape = t.In[0], before, from
	}
	o.v = u
	if l.Outer > 1 {
		o.v = axisView{e: e, v: u, axis: l.Axis, heads: view.heads, merged: true}.split()
		shape = slices.Concat([]graph.Dim{graph.Sym("?batch"), graph.Int(int64(view.heads))}, shape[1:])
	}
	o.shape = shape
	return o
}

// turned is the operand, or heads of it, as it is multiplied.
func (o operand) turned(e *editor, v *graph.Value, name string) *graph.Value {
	if identity(o.order) {
		return v
	}
	return e.p.Op("Transpose", name+"/turned", []*graph.Value{v}, graph.IntsAttr("perm", ints(o.order)...))
}
