package rewrite

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// packed changes the heads of paths that share one projection. Where each path owns a block of columns that is cut out
// by Split or Slice, the weight is packed again with smaller blocks and the cuts move; where columns are interleaved in
// another way (head by head, say), every path gets a projection of its own.
func (e *editor) packed(changes []change) error {
	proj := changes[0].path.Projection
	if !slices.ContainsFunc(changes, func(c change) bool { return c.path.Direct }) {
		if plan, ok := e.repack(proj, changes); ok {
			return plan()
		}
	}
	all := distinct(proj, changes)
	for _, c := range changes {
		if err := e.unpack(c, all); err != nil {
			return err
		}
	}
	e.shapesOf(proj)
	return nil
}

// shapesOf lets what looks at the shape of a projection that fell apart look at that of its input, so that the projection
// is not computed for it.
func (e *editor) shapesOf(proj *attention.Projection) {
	in, ok1 := e.facts.Shape(proj.Input)
	out, ok2 := e.facts.Shape(proj.Output)
	last := len(out) - 1
	if !ok1 || !ok2 || len(in) != len(out) || last < 1 || !slices.EqualFunc(in[:last], out[:last], graph.Dim.Equal) {
		return
	}
	for wires := []*graph.Value{proj.Output}; len(wires) > 0; wires = wires[1:] {
		for _, u := range wires[0].Users() {
			n := u.Node
			if n == nil || len(n.Out) == 0 || n.Out[0] == nil {
				continue
			}
			if e.pointwise(n, u.Index) || (n.Is("Add") || n.Is("Sub")) && e.known(n.In[1-u.Index]) != nil {
				if shape, ok := e.facts.Shape(n.Out[0]); ok && slices.EqualFunc(shape, out, graph.Dim.Equal) {
					wires = append(wires, n.Out[0])
				}
				continue
			}
			if !n.Is("Shape") || proj.Input.Graph != n.Graph {
				continue
			}
			if at, _ := shapeEntry(n, last, len(out)); at >= 0 && !in[last].Equal(out[last]) && readsEntry(e.facts, n.Out[0], int64(at)) {
				continue
			}
			e.p.SetInput(n, 0, proj.Input)
		}
	}
}

// repack prepares the in-place form; ok is false when the columns do not lie in blocks or something else than a cut
// reads the packed wire.
func (e *editor) repack(proj *attention.Projection, changes []change) (plan func() error, ok bool) {
	// Columns: those of a path are replaced where its block begins, others stay.
	type block struct {
		c      change
		at, to int
	}
	var blocks []block
	for _, c := range changes {
		flat := slices.Concat(c.path.Columns...)
		for i, col := range flat {
			if col != flat[0]+i {
				return nil, false
			}
		}
		blocks = append(blocks, block{c, flat[0], flat[0] + len(flat)})
	}
	slices.SortFunc(blocks, func(a, b block) int { return a.at - b.at })
	var r, biases rows
	moved := make([]int, proj.Columns+1) // where an old boundary lies in the new weight; -1 inside a changed block
	col := 0
	copyTo := func(to int) {
		for ; col < to; col++ {
			moved[col] = len(r)
			r = append(r, []term{{at: col, weight: 1}})
			biases = append(biases, []term{{at: col, weight: 1}})
		}
	}
	for _, b := range blocks {
		copyTo(b.at)
		moved[b.at] = len(r)
		for ; col < b.to; col++ {
			if col > b.at {
				moved[col] = -1
			}
		}
		for g := range b.c.Groups {
			for ch := range b.c.path.Columns[0] {
				r = append(r, b.c.columns(g, ch, b.c.learned))
				biases = append(biases, b.c.columns(g, ch, b.c.learnedBias))
			}
		}
	}
	copyTo(proj.Columns)
	moved[proj.Columns] = len(r)

	// Wires: everything that reads the packed columns must keep them on the last axis and cut them at boundaries.
	var edits []func() error
	n := proj.Columns
	adapters, adapted := added(changes, r)
	wires := []*graph.Value{proj.Output}
	for _, a := range adapters {
		wires = append(wires, a.Projection.Output)
	}
	for i := 0; i < len(wires); i++ {
		w := wires[i]
		shape, known := e.facts.Shape(w)
		if !known || len(shape) == 0 || !shape[len(shape)-1].Equal(graph.Int(int64(n))) {
			return nil, false
		}
		last := len(shape) - 1
		for _, u := range w.Users() {
			node := u.Node
			if node == nil || node.Graph != proj.Node.Graph {
				return nil, false
			}
			switch {
			case e.pointwise(node, u.Index):
			case node.Is("Add") || node.Is("Sub") && u.Index == 0:
				other := node.In[1-u.Index]
				t := e.known(other)
				if t == nil && addend(changes, other) {
					break
				}
				if t == nil {
					return nil, false
				}
				d := t.Dims()
				if len(d) == 0 || t.Len() != d[len(d)-1] {
					return nil, false
				}
				if d[len(d)-1] == int64(n) {
					edits = append(edits, func() error {
						b, err := mix(t, len(d)-1, biases)
						if err != nil {
							return fmt.Errorf("bias %q: %w", other.Name, err)
						}
						e.setConstant(other, b, node, 1-u.Index, node, 1-u.Index)
						return nil
					})
				}
			case node.Is("Reshape") && u.Index == 0:
				out, ok := e.facts.Shape(node.Out[0])
				if !ok || len(out) == 0 || !out[len(out)-1].Equal(graph.Int(int64(n))) {
					return nil, false
				}
				edits = append(edits, func() error {
					whole := attention.Layout{Axis: len(out) - 1, Outer: 1, Heads: n, Repeat: 1, Inner: 1, Pure: true}
					resized := whole
					resized.Heads = len(r)
					return e.retarget(node, whole, resized)
				})
			case node.Is("Split") && u.Index == 0:
				if axis := node.Int("axis", 0); axis != int64(last) && axis != -1 {
					return nil, false
				}
				sizes, ok := e.splitSizes(node)
				if !ok {
					return nil, false
				}
				next := make([]int64, len(sizes))
				at := 0
				for k, s := range sizes {
					if moved[at] < 0 || moved[at+s] < 0 {
						return nil, false
					}
					next[k] = int64(moved[at+s] - moved[at])
					at += s
				}
				edits = append(edits, func() error {
					e.setSplit(node, next)
					return nil
				})
				continue // its outputs are the entries
			case node.Is("Slice") && u.Index == 0:
				set, ok := e.sliceEdit(node, last, n, moved)
				if !ok {
					return nil, false
				}
				edits = append(edits, set)
				continue
			case node.Is("Shape"):
				edits = append(edits, func() error { e.correctTotal(node, w, last, n, len(r)); return nil })
				continue
			default:
				return nil, false
			}
			if len(node.Out) == 0 || node.Out[0] == nil {
				return nil, false
			}
			if !slices.Contains(wires, node.Out[0]) {
				wires = append(wires, node.Out[0])
			}
		}
	}
	for _, c := range changes {
		if !slices.Contains(wires, c.path.Projection.Output) || c.path.Entry == proj.Output {
			return nil, false
		}
	}
	return func() error {
		if err := e.setWeight(proj, proj.Axis, r); err != nil {
			return err
		}
		e.repacked[proj.Node] = true
		for _, a := range adapters {
			if err := e.setWeight(a.Projection, a.Projection.Axis, adapted); err != nil {
				return err
			}
			if err := e.gemmBias(a.Projection, adapted); err != nil {
				return err
			}
		}
		if err := e.gemmBias(proj, biases); err != nil {
			return err
		}
		for _, f := range edits {
			if err := f(); err != nil {
				return err
			}
		}
		for _, c := range changes {
			if err := e.wires(c); err != nil {
				return err
			}
		}
		return nil
	}, true
}

// pointwise reports whether n treats every element of its carrying input alike: its other inputs are single numbers.
func (e *editor) pointwise(n *graph.Node, carrying int) bool {
	switch n.OpType {
	case "Identity", "Cast", "Clip", "Add", "Sub", "Mul", "Div", "Min", "Max", "Neg", "Tanh", "Sigmoid", "Relu", "Dropout", "QuantizeLinear", "DequantizeLinear":
	default:
		return false
	}
	if n.Domain != "" && n.Domain != "ai.onnx" {
		return false
	}
	for i, v := range n.In {
		if i == carrying || v == nil {
			continue
		}
		if t := e.known(v); t == nil || t.Len() != 1 {
			return false
		}
	}
	return true
}

// splitSizes returns the sizes of a Split's outputs.
func (e *editor) splitSizes(n *graph.Node) ([]int, bool) {
	var sizes []int
	for _, o := range n.Out {
		if o == nil {
			return nil, false
		}
		shape, ok := e.facts.Shape(o)
		if !ok || len(shape) == 0 {
			return nil, false
		}
		c, ok := shape[len(shape)-1].Const()
		if !ok {
			return nil, false
		}
		sizes = append(sizes, int(c))
	}
	return sizes, true
}

// setSplit gives a Split explicit sizes in the form of the model's opset.
func (e *editor) setSplit(n *graph.Node, sizes []int64) {
	if e.opset < 13 {
		e.p.SetAttr(n, graph.IntsAttr("split", sizes...))
		return
	}
	name := n.Name + "/split"
	if v := n.Input(1); v != nil {
		name = v.Name
	}
	e.p.RemoveAttr(n, "num_outputs")
	e.p.SetInput(n, 1, e.p.Ints(name, sizes...))
}

// sliceEdit moves the bounds of a Slice of the packed axis.
func (e *editor) sliceEdit(n *graph.Node, last, length int, moved []int) (func() error, bool) {
	list := func(input int, attr string) ([]int64, bool) {
		if v := n.Input(input); v != nil {
			return e.facts.Ints(v)
		}
		return n.Ints(attr)
	}
	starts, ok1 := list(1, "starts")
	ends, ok2 := list(2, "ends")
	if !ok1 || !ok2 || len(starts) != len(ends) {
		return nil, false
	}
	axes, haveAxes := list(3, "axes")
	steps, haveSteps := list(4, "steps")
	lo, hi := slices.Clone(starts), slices.Clone(ends)
	for i := range starts {
		axis := int64(i)
		if haveAxes {
			if i >= len(axes) {
				return nil, false
			}
			axis = axes[i]
		}
		if axis < 0 {
			axis += int64(last) + 1
		}
		if axis != int64(last) {
			continue
		}
		if haveSteps && (i >= len(steps) || steps[i] != 1) {
			return nil, false
		}
		at := func(x int64) (int64, bool) {
			if x < 0 {
				x += int64(length)
			}
			x = min(max(x, 0), int64(length))
			return int64(moved[x]), moved[x] >= 0
		}
		var ok bool
		if lo[i], ok = at(starts[i]); !ok {
			return nil, false
		}
		if hi[i], ok = at(ends[i]); !ok {
			return nil, false
		}
	}
	return func() error {
		if n.Input(1) == nil {
			e.p.SetAttr(n, graph.IntsAttr("starts", lo...))
			e.p.SetAttr(n, graph.IntsAttr("ends", hi...))
			return nil
		}
		e.p.SetInput(n, 1, e.p.Ints(n.Input(1).Name, lo...))
		e.p.SetInput(n, 2, e.p.Ints(n.Input(2).Name, hi...))
		// Starts, ends, axes and steps share a type.
		for i := 3; i <= 4; i++ {
			if v := n.Input(i); v != nil {
				x, _ := e.facts.Ints(v)
				e.p.SetInput(n, i, e.p.Ints(v.Name, x...))
			}
		}
		return nil
	}, true
}

// correctTotal lets readers of a packed wire's shape see the old number of columns.
func (e *editor) correctTotal(n *graph.Node, w *graph.Value, axis, was, is int) {
	if was == is || e.shapes[n] || len(n.Out) == 0 || n.Out[0] == nil {
		return
	}
	shape, _ := e.facts.Shape(w)
	at, size := shapeEntry(n, axis, len(shape))
	if at < 0 || !readsEntry(e.facts, n.Out[0], int64(at)) {
		return
	}
	e.shapes[n] = true
	defer e.p.In(n.Graph)()
	delta := make([]int64, size)
	delta[at] = int64(was - is)
	e.correct(n.Out[0], func(now *graph.Value) (*graph.Value, []*graph.Node) {
		v := e.p.Op("Add", n.Out[0].Name+"/original", []*graph.Value{now, e.p.Ints(n.Out[0].Name+"/delta", delta...)})
		return v, []*graph.Node{v.Producer}
	})
}

// unpack gives a path of an interleaved projection its own: the nodes up to the path's entry are made again with the
// path's columns only, and those that cut its part out of the packed axis fall away. all are the columns of everything
// that the projection becomes.
func (e *editor) unpack(c change, all rows) error {
	proj := c.path.Projection
	defer e.p.In(proj.Node.Graph)()
	fail := func(n *graph.Node, why string) error {
		return fmt.Errorf("projection %v: its columns are interleaved and cannot be separated at %v: %s", proj.Node, n, why)
	}
	var r, biases rows
	for g := range c.Groups {
		for ch := range c.path.Columns[0] {
			r = append(r, c.columns(g, ch, c.learned))
			biases = append(biases, c.columns(g, ch, c.learnedBias))
		}
	}
	// The chain from the projection to the entry.
	var chain []*graph.Node
	for v := c.path.Entry; v != proj.Output && !c.path.Direct; {
		n := v.Producer
		chain = append(chain, n)
		var next *graph.Value
		for _, x := range n.In {
			if _, ok := c.path.Wires[x]; ok && x != nil {
				if next != nil {
					return fail(n, "it joins two branches")
				}
				next = x
			}
		}
		if next == nil {
			return fail(n, "the way to the projection is lost")
		}
		v = next
	}
	slices.Reverse(chain)

	cur, err := e.own(proj, r, biases, all)
	if err != nil {
		return fmt.Errorf("projection %v: %w", proj.Node, err)
	}

	if c.path.Direct {
		if cur, err = e.direct(c, cur, biases); err != nil {
			return fail(proj.Node, err.Error())
		}
	}
	// sizes follows the shape of the new wire: what is left of the columns on each axis of the old one.
	from := proj.Output
	for _, n := range chain {
		to := n.Out[0]
		for _, o := range n.Out {
			if _, ok := c.path.Wires[o]; ok && o != nil {
				to = o
			}
		}
		carrying := slices.Index(n.In, from)
		switch {
		case e.pointwise(n, carrying), n.Is("Transpose"), n.Is("Unsqueeze"), n.Is("Squeeze"):
			ins := slices.Clone(n.In)
			ins[carrying] = cur
			cur = e.p.Node(n.OpType, n.Domain, n.Name, 1, ins, n.Proto.Attribute...)[0]
		case n.Is("Add"), n.Is("Sub"):
			side := slices.IndexFunc(n.In, func(x *graph.Value) bool { return x != from })
			t := e.known(n.In[side])
			if t == nil || len(t.Dims()) == 0 || t.Len() != t.Dims()[len(t.Dims())-1] {
				return fail(n, "its bias is not a constant vector")
			}
			ins := slices.Clone(n.In)
			ins[1-side] = cur
			if t.Len() == int64(proj.Columns) {
				m, err := mix(t, len(t.Dims())-1, biases)
				if err != nil {
					return err
				}
				ins[side] = e.p.Init(named(m, n.In[side].Name))
			} else if t.Len() != 1 {
				return fail(n, "its bias does not have one entry per column")
			}
			cur = e.p.Node(n.OpType, n.Domain, n.Name, 1, ins, n.Proto.Attribute...)[0]
		case n.Is("Reshape"):
			left, ok := c.path.Extent[to]
			if !ok {
				return fail(n, "the columns cannot be followed through it")
			}
			v, err := e.extentTarget(n, c, left)
			if err != nil {
				return err
			}
			cur = e.p.Node("Reshape", n.Domain, n.Name, 1, []*graph.Value{cur, v}, n.Proto.Attribute...)[0]
		case n.Is("Split"), n.Is("Slice"):
			// The packed axis holds this part only: nothing is left to cut.
		case n.Is("Gather"):
			if k, ok := e.facts.Known(n.Input(1)); !ok || len(k.Ints) != 1 {
				return fail(n, "it gathers more than one part")
			}
			ins := slices.Clone(n.In)
			ins[0] = cur
			k, _ := e.facts.Known(n.Input(1))
			ins[1] = e.p.Init(graph.NewTensor(n.In[1].Name, k.Shape, []int64{0}))
			cur = e.p.Node("Gather", n.Domain, n.Name, 1, ins, n.Proto.Attribute...)[0]
		default:
			return fail(n, "operator "+n.OpType)
		}
		from = to
	}
	e.p.Replace(c.path.Entry, cur)
	return e.wires(c)
}

// own makes a projection a second time, with columns r of all that it becomes, and biases of its own.
func (e *editor) own(proj *attention.Projection, r, biases, all rows) (*graph.Value, error) {
	if proj.Code != nil {
		return e.ownCode(proj, r, biases, all)
	}
	w, err := mix(proj.Tensor, proj.Axis, r)
	if err != nil {
		return nil, err
	}
	v := e.constant(proj.Weight, w)
	back := []*graph.Node{}
	for x := proj.Node.In[1]; proj.Reader != proj.Node; x = x.Producer.In[0] {
		back = append(back, x.Producer)
		if x.Producer == proj.Reader {
			break
		}
	}
	slices.Reverse(back)
	for _, n := range back {
		v = e.p.Node(n.OpType, n.Domain, n.Name, 1, []*graph.Value{v}, n.Proto.Attribute...)[0]
	}
	in := []*graph.Value{proj.Input, v}
	if b := proj.GemmBias; b != nil {
		t := proj.BiasTensor
		if t == nil {
			return nil, errors.New("its bias is computed")
		}
		if d := t.Dims(); len(d) > 0 && d[len(d)-1] == int64(proj.Columns) {
			m, err := mix(t, len(d)-1, biases)
			if err != nil {
				return nil, err
			}
			b = e.p.Init(named(m, b.Name))
		}
		in = append(in, b)
	}
	return e.p.Node(proj.Node.OpType, proj.Node.Domain, proj.Node.Name, 1, in, proj.Node.Proto.Attribute...)[0], nil
}

// extentTarget returns the target of a Reshape on the way of an unpacked path: axes with columns get what is left of
// them, others stay as they were.
func (e *editor) extentTarget(n *graph.Node, c change, left []attention.Extent) (*graph.Value, error) {
	target := n.Input(1)
	if target == nil {
		return nil, fmt.Errorf("%v: its target shape is missing", n)
	}
	known, ok := e.facts.Known(target)
	if !ok || len(known.Ints) != len(left) {
		return nil, fmt.Errorf("%v: its target shape %q is computed in a way that cannot be followed", n, target.Name)
	}
	entries := map[int]int64{}
	for a, x := range left {
		if !x.Columns {
			continue
		}
		size := x.Count
		if x.Heads && c.Heads() != heads(c.path) {
			size = size / heads(c.path) * c.Heads()
		}
		entries[a] = int64(size)
	}
	v, err := e.withEntries(target, known, entries)
	if err != nil {
		return nil, fmt.Errorf("%v: %w", n, err)
	}
	return v, nil
}
