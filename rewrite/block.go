package rewrite

import (
	"cmp"
	"fmt"
	"slices"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// editor collects the edits of one model in a patch.
type editor struct {
	g     *graph.Graph
	facts *graph.Facts
	p     *graph.Patch
	// shapes are Shape and Size nodes that have been given a correction, so that two paths do not correct one twice, and
	// corrected what their readers are shown.
	shapes    map[*graph.Node]bool
	corrected map[*graph.Value]*graph.Value
	// targets are the new target shapes of Reshape and Expand nodes, inputs what meets scores from the side by now, types
	// the new declarations of values.
	targets map[*graph.Node]*graph.Value
	inputs  map[graph.Use]*graph.Value
	types   map[*graph.Value]*onnxpb.TypeProto
	static  *static                 // nil until a cache is written in place
	fused   *fusedOps               // nil until a core becomes one operator
	short   map[string]*graph.Value // whether a step is short
	imports map[string]int64        // operator sets that the model must import
	upgrade int64                   // opset that the rewritten model needs, 0 for its own
	notes   []string
	// replaced are weights that some reader has been given another for, made those others by what they replace and how they
	// are made: readers that want the same share one.
	replaced []*graph.Value
	made     map[made]*graph.Value
	links    map[*graph.Value]link
	// projected are the blocks of the plan whose heads a projection gives or takes, altered the one whose heads are changed.
	projected map[*graph.Node][]*attention.Block
	altered   map[*graph.Node]*attention.Block
	starts    map[graph.Use]link       // of loops, where caches begin
	fills     map[*attention.Fill]bool // those done
	settled   map[*graph.Value]bool    // names of caches whose heads follow from a change made
	// requantised are the quantised weights that were given other numbers.
	requantised []Requantised
	of          *attention.Block     // that is being changed
	repacked    map[*graph.Node]bool // projections that were packed again
	opset       int64
}

func newEditor(g *graph.Graph, f *graph.Facts) *editor {
	return &editor{
		g: g, facts: f, p: graph.NewPatch(g), opset: g.Model.Opset(""), shapes: map[*graph.Node]bool{},
		corrected: map[*graph.Value]*graph.Value{}, targets: map[*graph.Node]*graph.Value{}, inputs: map[graph.Use]*graph.Value{}, short: map[string]*graph.Value{}, repacked: map[*graph.Node]bool{}, types: map[*graph.Value]*onnxpb.TypeProto{},
		made: map[made]*graph.Value{}, links: map[*graph.Value]link{}, starts: map[graph.Use]link{}, settled: map[*graph.Value]bool{}, fills: map[*attention.Fill]bool{},
		projected: map[*graph.Node][]*attention.Block{}, altered: map[*graph.Node]*attention.Block{},
	}
}

// change is what happens to the heads of one path: Fusion over its heads, in the order of the fused heads.
type change struct {
	path *attention.Path
	fusion.Fusion
	single bool // repeated heads are bypassed: from there on each head occurs once
	// touched is false for a path that stays as it is.
	touched bool
	// learned are weights [in, heads·channels] that take the place of the mixed ones, and learnedBias those of the bias;
	// the columns of new head g are those of head column[g] (g where column is nil).
	learned, learnedBias *mat.Dense
	column               []int
	factor               float64 // on all heads; 0 stands for 1
}

// alters reports whether the projection's weights change.
func (c change) alters() bool {
	return c.learned != nil || !c.IsIdentity() || c.factor != 0 && c.factor != 1
}

// entry is channel ch of new head g: a learned column, or the mix of that channel of the group's heads, which lie at
// at(head).
func (c change) entry(g, ch int, learned *mat.Dense, at func(head int) int) []term {
	if learned != nil {
		if c.column != nil {
			g = c.column[g]
		}
		return []term{{at: g*len(c.path.Columns[0]) + ch, weight: cmp.Or(c.factor, 1), from: learned}}
	}
	var ts []term
	for j, h := range c.Groups[g] {
		ts = append(ts, term{at: at(h), weight: c.Weights[g][j] * cmp.Or(c.factor, 1)})
	}
	return ts
}

// columns is entry for the columns of the path's projection.
func (c change) columns(g, ch int, learned *mat.Dense) []term {
	return c.entry(g, ch, learned, func(h int) int { return c.path.Columns[h][ch] })
}

// resized returns the layout of a wire after the change.
func (c change) resized(l attention.Layout) attention.Layout {
	l.Heads = c.Heads()
	if c.single {
		l.Repeat = 1
	}
	return l
}

// along returns the new entries of an axis that has layout l. Learned values need all channels of a head on that axis.
func (c change) along(l attention.Layout, learned *mat.Dense) rows {
	var r rows
	for o := range l.Outer {
		for g := range c.Groups {
			for rep := range c.resized(l).Repeat {
				for i := range l.Inner {
					r = append(r, c.entry(g, o*l.Inner+i, learned, func(h int) int { return ((o*l.Heads+h)*l.Repeat+rep)*l.Inner + i }))
				}
			}
		}
	}
	return r
}

// setWeight gives a projection a weight with new columns. A weight, or a Transpose or Cast of it, that something else
// reads too is left alone and copied for this projection.
func (e *editor) setWeight(p *attention.Projection, axis int, r rows) error {
	if p.Code != nil {
		if err := e.setCode(p, axis, r); err != nil {
			return fmt.Errorf("projection %v: %w", p.Node, err)
		}
		return nil
	}
	t, err := mix(p.Tensor, axis, r)
	if err != nil {
		return fmt.Errorf("projection %v: %w", p.Node, err)
	}
	e.setConstant(p.Weight, t, p.Reader, p.Operand, p.Node, 1)
	return nil
}

// setConstant makes node's input read t instead of old. old is read by reader's input operand; when reader is not node,
// a chain of one-input operators leads from it to node's input.
func (e *editor) setConstant(old *graph.Value, t *graph.Tensor, reader *graph.Node, operand int, node *graph.Node, input int) {
	var chain []*graph.Node // from node back to reader
	shared := len(old.Users()) > 1
	for v := node.In[input]; reader != node && v.Producer != nil; v = v.Producer.In[0] {
		shared = shared || len(v.Users()) > 1
		chain = append(chain, v.Producer)
		if v.Producer == reader {
			break
		}
	}
	switch {
	case !shared && old.Init != nil:
		e.p.SetTensor(old, t)
	case !shared:
		e.p.SetInput(reader, operand, e.constant(old, t))
	default:
		v := e.constant(old, t)
		defer e.p.In(node.Graph)()
		slices.Reverse(chain)
		for _, n := range chain {
			v = e.p.Node(n.OpType, n.Domain, n.Name, 1, []*graph.Value{v}, n.Proto.Attribute...)[0]
		}
		e.p.SetInput(node, input, v)
	}
}

// made is what a constant is made of, and how.
type made struct {
	old    *graph.Value
	recipe string
}

// constant is an initializer that takes old's place for some of its readers, in old's scope.
func (e *editor) constant(old *graph.Value, t *graph.Tensor) *graph.Value {
	e.replaced = append(e.replaced, old)
	key := made{old, t.Recipe}
	if v := e.made[key]; v != nil && t.Recipe != "" {
		return v
	}
	defer e.p.In(old.Graph)()
	v := e.p.Init(named(t, old.Name))
	e.made[key] = v
	return v
}

func named(t *graph.Tensor, name string) *graph.Tensor {
	t.Proto.Name = &name
	return t
}

// narrow changes the heads of a path that owns its projection: weight, biases, target shapes, readers of shapes.
func (e *editor) narrow(c change) error {
	proj := c.path.Projection
	l := c.path.Wires[proj.Output]
	columns := func(learned *mat.Dense) rows {
		if l.Axis >= 0 {
			return c.along(l, learned)
		}
		var r rows // one head, which changes along no axis
		for g := range c.Groups {
			for ch := range c.path.Columns[0] {
				r = append(r, c.columns(g, ch, learned))
			}
		}
		return r
	}
	if err := e.setWeight(proj, proj.Axis, columns(c.learned)); err != nil {
		return err
	}
	if err := e.gemmBias(proj, columns(c.learnedBias)); err != nil {
		return err
	}
	return e.wires(c)
}

// gemmBias mixes the C operand of a Gemm.
func (e *editor) gemmBias(proj *attention.Projection, r rows) error {
	v := proj.GemmBias
	if v == nil {
		return nil
	}
	t := proj.BiasTensor
	if t == nil {
		return fmt.Errorf("projection %v: its bias %q is computed, want a constant", proj.Node, v.Name)
	}
	if d := t.Dims(); len(d) == 0 || d[len(d)-1] == 1 && proj.Columns != 1 {
		return nil // one number for every column
	}
	m, err := mix(t, len(t.Dims())-1, r)
	if err != nil {
		return fmt.Errorf("projection %v: bias: %w", proj.Node, err)
	}
	e.setConstant(v, m, proj.Node, proj.BiasInput, proj.Node, proj.BiasInput)
	return nil
}

// wires updates what depends on the number of heads along a path after its entry: biases, targets of Reshape and
// Expand, and what reads shapes.
func (e *editor) wires(c change) error {
	for _, b := range c.path.Biases {
		l, ok := c.path.Wires[b.Node.Out[0]]
		if !ok || !l.Pure {
			continue // on a packed wire: changed with the packed weight
		}
		t, err := c.bias(b, l, c.along(l, nil))
		if err != nil {
			return err
		}
		if t != nil {
			e.setConstant(b.Value, t, b.Node, b.Input, b.Node, b.Input)
		}
	}
	if c.Heads() == heads(c.path) && !c.single { // no size changes
		if identity(c.Map()) {
			return nil
		}
		return e.readers(c, nil)
	}
	for w, l := range c.path.Wires {
		e.settled[w] = e.settled[w] || l.Heads > 0 && l.Axis >= 0 // also of keys and values in one tensor
	}
	bypassed := bypass(c)
	for _, n := range slices.Concat(c.path.Nodes, c.path.Tails) {
		if !n.Is("Reshape") && !n.Is("Expand") || n.Out[0] == nil || bypassed[n] {
			continue
		}
		l, ok := c.path.Wires[n.Out[0]]
		if !ok || !l.Pure || l.Axis < 0 {
			continue
		}
		if err := e.retarget(n, l, c.resized(l)); err != nil {
			return err
		}
	}
	for w, l := range c.path.Wires {
		if l.Pure && l.Axis >= 0 && !bypassed[w.Producer] {
			e.correctShapes(w, l.Axis, l, c.resized(l))
		}
	}
	return e.readers(c, bypassed)
}

// bypass lists the nodes that repeat heads, which nothing reads once repeated heads are bypassed.
func bypass(c change) map[*graph.Node]bool {
	out := map[*graph.Node]bool{}
	if !c.single {
		return out
	}
	var up func(v *graph.Value)
	up = func(v *graph.Value) {
		if v == c.path.Single || v.Producer == nil || out[v.Producer] {
			return
		}
		if _, ok := c.path.Wires[v]; !ok {
			return
		}
		out[v.Producer] = true
		for _, x := range v.Producer.In {
			if x != nil {
				up(x)
			}
		}
	}
	up(c.path.Repeat)
	return out
}

// bias makes the new contents of a constant that is added on a wire of layout l: learned values, or r along its axis. It
// is nil when nothing changes.
func (c change) bias(b attention.Side, l attention.Layout, r rows) (*graph.Tensor, error) {
	t := b.Tensor
	fail := func(err error) (*graph.Tensor, error) {
		return nil, fmt.Errorf("bias %q: %w", b.Value.Name, err)
	}
	if c.learnedBias == nil {
		if r.trivial(int(t.Dims()[b.Axis])) {
			return nil, nil
		}
		m, err := mix(t, b.Axis, r)
		if err != nil {
			return fail(err)
		}
		return m, nil
	}
	if len(c.path.Biases) > 1 || c.path.Projection.GemmBias != nil {
		return fail(fmt.Errorf("it is one of several, which a learned bias cannot replace"))
	}
	d := len(c.path.Columns[0])
	dims := slices.Clone(t.Dims())
	if l.Outer*l.Inner != d && !(l.Outer == 1 && l.Inner == 1 && l.Repeat == 1 && b.Axis == len(dims)-2 && int(dims[b.Axis+1]) == d) || t.Len() != int64(l.Heads*d) {
		return fail(fmt.Errorf("its form %v cannot hold a learned bias", dims))
	}
	// Both forms, [heads·channels] and [heads, channels], lie in memory in the order of their axes.
	heads := c.resized(l).Heads
	dims[b.Axis] = dims[b.Axis] / int64(l.Heads) * int64(heads)
	x := make([]float64, heads*d)
	for g := range heads {
		for ch := range d {
			from := c.entry(g, ch, c.learnedBias, nil)[0]
			at := g*d + ch
			if l.Outer > 1 {
				at = (ch/l.Inner*heads+g)*l.Inner + ch%l.Inner
			}
			x[at] = from.weight * from.from.At(0, from.at)
		}
	}
	if b.Node.Is("Sub") {
		for i := range x {
			x[i] = -x[i]
		}
	}
	m, err := graph.FromFloat64s(t.Name(), t.DType(), dims, x)
	if err != nil {
		return fail(err)
	}
	return m, nil
}

// heads is the number of heads of a path before any change.
func heads(p *attention.Path) int { return len(p.Columns) }

// retarget changes the size of an axis in the target of a Reshape or Expand from that of l to that of m.
func (e *editor) retarget(n *graph.Node, l, m attention.Layout) error {
	if l.Len() == m.Len() {
		return nil
	}
	defer e.p.In(n.Graph)()
	target := n.Input(1)
	if target == nil {
		ints, ok := n.Ints("shape")
		if !ok || l.Axis >= len(ints) {
			return fmt.Errorf("%v: its target shape is missing", n)
		}
		if d := ints[l.Axis]; d != -1 && d != 0 {
			next := slices.Clone(ints)
			next[l.Axis] = d / int64(l.Len()) * int64(m.Len())
			e.p.SetAttr(n, graph.IntsAttr("shape", next...))
		}
		return nil
	}
	known, ok := e.facts.Known(target)
	if !ok {
		return fmt.Errorf("%v: its target shape %q is computed in a way that cannot be followed", n, target.Name)
	}
	axis := l.Axis
	if out, ok := e.facts.Shape(n.Out[0]); ok && n.Is("Expand") {
		axis -= len(out) - len(known.Ints) // a target may have fewer axes than what it is broadcast with
		if axis < 0 {
			return nil
		}
	}
	if axis >= len(known.Ints) {
		return fmt.Errorf("%v: its target shape has %d entries, want more than %d", n, len(known.Ints), axis)
	}
	entry, isConst := known.Ints[axis].Const()
	switch {
	case isConst && entry == -1, isConst && entry == 0 && n.Is("Reshape") && n.Int("allowzero", 0) == 0, isConst && entry == 1 && n.Is("Expand"):
		return nil // follows from the input
	case isConst:
		v, err := e.withEntries(target, known, map[int]int64{axis: entry / int64(l.Len()) * int64(m.Len())})
		if err != nil {
			return fmt.Errorf("%v: %w", n, err)
		}
		e.setTarget(n, v)
	default:
		// The axis is merged with others of unknown size: scale it.
		e.setTarget(n, e.scaled(target, len(known.Ints), axis, l, m))
	}
	return nil
}

// withEntries returns a shape like target with other constants in some entries: a new constant where all of it is known,
// else the same Concat with those parts exchanged, else pieces of the old one between the new entries.
func (e *editor) withEntries(target *graph.Value, known *graph.Known, entries map[int]int64) (*graph.Value, error) {
	if elem := e.facts.Elem(target); elem != onnxpb.TensorProto_INT64 {
		return nil, fmt.Errorf("the target shape %q is %v, want INT64", target.Name, elem)
	}
	all := make([]int64, len(known.Ints))
	constant := true
	for i, d := range known.Ints {
		c, ok := d.Const()
		if x, changed := entries[i]; changed {
			c, ok = x, true
		}
		all[i] = c
		constant = constant && ok
	}
	if constant {
		return e.p.Ints(target.Name, all...), nil
	}
	if n := target.Producer; n.Is("Concat") {
		in := slices.Clone(n.In)
		at, left := 0, len(entries)
		for i, x := range n.In {
			k, ok := e.facts.Known(x)
			if !ok {
				break
			}
			if c, changed := entries[at]; changed && len(k.Ints) == 1 {
				in[i] = e.p.Ints(x.Name, c)
				left--
			}
			at += len(k.Ints)
		}
		if left == 0 {
			return e.p.Op("Concat", n.Name, in, graph.IntAttr("axis", 0)), nil
		}
	}
	var parts []*graph.Value
	for i := 0; i < len(all); {
		if c, changed := entries[i]; changed {
			parts = append(parts, e.p.Ints(target.Name+"/entry", c))
			i++
			continue
		}
		var idx []int64
		for ; i < len(all); i++ {
			if _, changed := entries[i]; changed {
				break
			}
			idx = append(idx, int64(i))
		}
		parts = append(parts, e.p.Op("Gather", target.Name+"/part", []*graph.Value{target, e.p.Ints(target.Name+"/entries", idx...)}, graph.IntAttr("axis", 0)))
	}
	return e.p.Op("Concat", target.Name+"/resized", parts, graph.IntAttr("axis", 0)), nil
}

// scaled returns a shape whose entry on axis is divided by the length of l and multiplied by that of m.
func (e *editor) scaled(shape *graph.Value, rank, axis int, l, m attention.Layout) *graph.Value {
	div, mul := slices.Repeat([]int64{1}, rank), slices.Repeat([]int64{1}, rank)
	// A merged axis has a sampled Outer; the heads alone are what changes.
	div[axis], mul[axis] = int64(l.Heads*l.Repeat), int64(m.Heads*m.Repeat)
	q := e.p.Op("Div", shape.Name+"/per_head", []*graph.Value{shape, e.p.Ints(shape.Name+"/heads", div...)})
	return e.p.Op("Mul", shape.Name+"/resized", []*graph.Value{q, e.p.Ints(shape.Name+"/new_heads", mul...)})
}

// correctShapes lets everything that looks at the shape of w see the number of heads that it had: shapes are computed
// from it for other wires. Readers on the path that need the new number are given it by retarget, which scales what
// they had.
func (e *editor) correctShapes(w *graph.Value, axis int, l, m attention.Layout) {
	if l.Len() == m.Len() {
		return
	}
	for _, u := range w.Users() {
		n := u.Node
		if n == nil || e.shapes[n] || len(n.Out) == 0 || n.Out[0] == nil {
			continue
		}
		switch {
		case n.Is("Shape"):
			shape, ok := e.facts.Shape(w)
			if !ok {
				continue
			}
			at, size := shapeEntry(n, axis, len(shape))
			if at < 0 || !readsEntry(e.facts, n.Out[0], int64(at)) {
				continue
			}
			e.shapes[n] = true
			back := e.p.In(n.Graph)
			e.correct(n.Out[0], func(now *graph.Value) (*graph.Value, []*graph.Node) {
				v := e.scaled(now, size, at, m, l)
				return v, []*graph.Node{v.Producer.In[0].Producer}
			})
			back()
		case n.Is("Size"):
			e.shapes[n] = true
			back := e.p.In(n.Graph)
			out := n.Out[0]
			q := e.p.Op("Div", out.Name+"/per_head", []*graph.Value{out, e.scalar(out.Name+"/heads", int64(m.Heads*m.Repeat))})
			v := e.p.Op("Mul", out.Name+"/original", []*graph.Value{q, e.scalar(out.Name+"/old_heads", int64(l.Heads*l.Repeat))})
			e.p.Replace(out, v, q.Producer)
			back()
		}
	}
}

// shapeEntry returns which entry of a Shape's output an axis of its input of the given rank is, -1 when it is cut off, and
// how many entries there are.
func shapeEntry(n *graph.Node, axis, rank int) (at, size int) {
	bound := func(name string, def int) int {
		x := n.Int(name, int64(def))
		if x < 0 {
			x += int64(rank)
		}
		return int(min(max(x, 0), int64(rank)))
	}
	start, end := bound("start", 0), bound("end", rank)
	if axis < start || axis >= end {
		return -1, max(end-start, 0)
	}
	return axis - start, end - start
}

func (e *editor) scalar(name string, x int64) *graph.Value {
	return e.p.Init(graph.NewTensor(name, nil, []int64{x}))
}

// readsEntry reports whether entry at of a shape is looked at, as far as the readers tell: a Gather or Slice of other
// entries does not.
func readsEntry(f *graph.Facts, shape *graph.Value, at int64) bool {
	for _, u := range shape.Users() {
		n := u.Node
		if n == nil {
			return true
		}
		switch {
		case n.Is("Gather") && u.Index == 0:
			idx, ok := f.Ints(n.Input(1))
			if !ok {
				return true
			}
			known, _ := f.Known(shape)
			for _, i := range idx {
				if i < 0 && known != nil {
					i += int64(len(known.Ints))
				}
				if i == at {
					return true
				}
			}
		case n.Is("Slice") && u.Index == 0:
			before, ok1 := f.Known(shape)
			after, ok2 := f.Known(n.Out[0])
			start, ok3 := f.Ints(n.Input(1))
			if !ok1 || !ok2 || !ok3 || len(start) != 1 || n.Input(4) != nil {
				return true
			}
			s := start[0]
			if s < 0 {
				s += int64(len(before.Ints))
			}
			if at >= s && at < s+int64(len(after.Ints)) {
				return true
			}
		default:
			return true
		}
	}
	return false
}
