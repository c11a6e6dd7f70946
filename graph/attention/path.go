package attention

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

// projectionOf describes n when it multiplies activations by a constant weight.
func projectionOf(f *survey, n *graph.Node) (*Projection, bool) {
	if n == nil {
		return nil, false
	}
	if p := quantisedProduct(f, n); p != nil {
		return p, true
	}
	if !n.Is("MatMul") && !n.Is("Gemm") || len(n.In) < 2 || n.In[0] == nil || n.In[1] == nil || len(n.Out) == 0 {
		return nil, false
	}
	w, reader, operand, flipped := constantBehind(f, n, 1)
	if w == nil || len(f.Const(w).Dims()) != 2 {
		return nil, false
	}
	p := &Projection{Node: n, Input: n.In[0], Output: n.Out[0], Weight: w, Tensor: f.Const(w), Axis: 1, Reader: reader, Operand: operand}
	if n.Is("Gemm") {
		if n.Int("transA", 0) != 0 {
			return nil, false
		}
		if n.Int("transB", 0) != 0 {
			flipped = !flipped
		}
		if p.GemmBias = n.Input(2); p.GemmBias != nil {
			p.BiasTensor, p.BiasInput = f.Const(p.GemmBias), 2
		}
	}
	if flipped {
		p.Axis = 0
	}
	p.Columns = int(p.Tensor.Dims()[p.Axis])
	return p, p.dequantised(f, flipped)
}

// constantBehind follows operand i of n back to a constant through operators that only change its layout or type.
// It returns the constant, the node and input that read it, and whether its two axes are swapped on the way.
func constantBehind(f *survey, n *graph.Node, i int) (c *graph.Value, reader *graph.Node, operand int, flipped bool) {
	for range 8 {
		v := n.Input(i)
		if v == nil {
			return nil, nil, 0, false
		}
		if f.Const(v) != nil {
			return v, n, i, flipped
		}
		p := v.Producer
		switch {
		case p.Is("Transpose") && (p.Attr("perm") == nil || slices.Equal(p.Attr("perm").Ints, []int64{1, 0})):
			flipped = !flipped
		case p.Is("Identity"), p.Is("Cast"):
		default:
			return nil, nil, 0, false
		}
		n, i = p, 0
	}
	return nil, nil, 0, false
}

// origins walks back from v through the operators of the table to the projections that it comes from, and the places
// where it could go no further. Only where there is none does it ask what the inputs of a body are at first.
func origins(f *survey, v *graph.Value) (found []*Projection, stops []stop) {
	found, stops = originsWithin(f, v, false)
	if len(found) == 0 {
		if outside, more := originsWithin(f, v, true); len(outside) > 0 {
			return outside, more
		}
	}
	return found, stops
}

func originsWithin(f *survey, v *graph.Value, first bool) (found []*Projection, stops []stop) {
	seen := map[*graph.Value]bool{}
	var walk func(v *graph.Value)
	walk = func(v *graph.Value) {
		if v == nil || seen[v] || v.Const() != nil {
			return
		}
		seen[v] = true
		n := v.Producer
		if n != nil && len(n.Subgraphs) > 0 || n == nil && first {
			if before := f.behind(v); len(f.joints[v]) > 0 && len(before) > 0 {
				for _, x := range before {
					walk(x)
				}
				return
			}
		}
		if n == nil {
			stops = append(stops, stop{nil, v, fmt.Sprintf("it comes from the graph input %q, not from a projection in this graph", v.Name)})
			return
		}
		if p, ok := projectionOf(f, n); ok {
			found = append(found, p)
			return
		}
		row, ok := movers[n.OpType]
		if !ok || !isDefaultDomain(n) && !row.anyDomain {
			if !silent[n.OpType] {
				stops = append(stops, stop{n, v, whyStopped(f, n)})
			}
			return
		}
		for i, x := range n.In {
			if row.data == nil || row.data(i) {
				walk(x)
			}
		}
	}
	walk(v)
	return found, stops
}

// whyStopped says in words why a walk cannot pass n.
func whyStopped(f *survey, n *graph.Node) string {
	switch {
	case quantisedWhy(f, n) != "":
		return quantisedWhy(f, n)
	case len(n.Subgraphs) > 0:
		return fmt.Sprintf("it comes out of a subgraph (%s); attention across subgraphs is not supported yet", n.OpType)
	case n.Is("MatMul") || n.Is("Gemm"):
		if w := n.Input(1); w != nil && w.IsInput && w.Init == nil {
			return fmt.Sprintf("the projection's weight %q is passed by the caller, not kept in the model", w.Name)
		}
		if w := n.Input(1).Const(); w != nil {
			return fmt.Sprintf("the projection's weight has %d axes, want 2", len(w.Dims()))
		}
		return "a product of two computed operands stands where a projection with a constant weight is expected"
	case n.OpType == "Einsum" || n.OpType == "Conv":
		return fmt.Sprintf("a projection by %s is not supported yet", n.OpType)
	}
	return fmt.Sprintf("operator %s is not one the walk can follow heads through", opName(n))
}

// headSets reads the head structure of a product operand off its labels: for every position on the batch axes (all but
// the last two, row-major over their sampled sizes) the set of columns in that matrix. With rows > 0 the rows of each
// matrix are told apart: queries of one group may be stacked there, as this project's own lowering does.
func headSets(t *tracer, s *sample, batch []int, rows int) []int32 {
	lead := len(s.shape) - 2
	axes := []int{lead, lead + 1}
	stored := append(slices.Clone(batch), 1, 1)
	if rows > 0 {
		axes = axes[1:]
		stored[len(batch)] = rows
	}
	return t.labels.reduce(s, axes, true).spread(stored)
}

// headList is the result of heads.
type headList struct {
	id      []int
	columns [][]int
	why     string
}

// heads numbers the head sets of a product operand in the order of their first columns: the head at every position, and
// the columns of every head. It fails when sets overlap without being equal, when one is empty, or when they differ in
// size.
func (t *tracer) heads(s *sample, batch []int, rows int) (id []int, columns [][]int, why string) {
	key := appendInts(appendInts(nil, t.facts.id(s), rows), batch...)
	h := remember(t.facts.heads, string(key), func() (h headList) {
		h.id, h.columns, h.why = headColumns(t.labels, headSets(t, s, batch, rows))
		return h
	})
	return h.id, h.columns, h.why
}

func headColumns(l *labels, sets []int32) (id []int, columns [][]int, why string) {
	distinct := slices.Clone(sets)
	slices.SortFunc(distinct, func(a, b int32) int { return slices.Compare(l.set(a), l.set(b)) })
	number := map[int32]int{}
	owner := make([]int, l.n) // of a column: the head it belongs to, and one more
	for h, set := range slices.Compact(distinct) {
		number[set] = h
		cols := make([]int, 0, len(l.set(set)))
		for _, c := range l.set(set) {
			if other := owner[c]; other > 0 {
				return nil, nil, fmt.Sprintf("column %d of the projection belongs to heads %d and %d", c, other-1, h)
			}
			owner[c] = h + 1
			cols = append(cols, int(c))
		}
		if len(cols) == 0 {
			return nil, nil, "some heads do not come from the projection"
		}
		columns = append(columns, cols)
		if len(cols) != len(columns[0]) {
			return nil, nil, fmt.Sprintf("heads have different sizes: head 0 has %d columns, head %d has %d", len(columns[0]), h, len(cols))
		}
	}
	for _, set := range sets {
		id = append(id, number[set])
	}
	return id, columns, ""
}

// owners says which head a label belongs to.
type owners struct {
	labels *labels
	of     []int32 // the head of each column, foreign for columns of other parts
	count  int     // heads

	layouts map[*sample]placement
	extents map[*sample][]Extent
}

// placement is the result of layout.
type placement struct {
	Layout
	ok bool
}

// ownersKey is what owners are made of: columns that heads returned, or as many for each head in order.
type ownersKey struct {
	*labels
	columns   *[]int
	heads, of int
}

// owners inverts columns, which heads returned, out of n.
func (t *tracer) owners(n int, columns [][]int) *owners {
	return remember(t.facts.owners, ownersKey{t.labels, &columns[0], len(columns), n}, func() *owners {
		o := newOwners(t.labels, n, len(columns))
		for h, cols := range columns {
			for _, c := range cols {
				o.of[c] = int32(h)
			}
		}
		return o
	})
}

// blocks are the owners of labels that number the channels of one head after the other.
func (t *tracer) blocks(heads, channels int) *owners {
	return remember(t.facts.owners, ownersKey{t.labels, nil, heads, channels}, func() *owners {
		o := newOwners(t.labels, heads*channels, heads)
		for c := range o.of {
			o.of[c] = int32(c / channels)
		}
		return o
	})
}

func newOwners(l *labels, n, heads int) *owners {
	o := &owners{labels: l, of: make([]int32, n), count: heads, layouts: map[*sample]placement{}, extents: map[*sample][]Extent{}}
	for i := range o.of {
		o.of[i] = foreign
	}
	return o
}

// Marks for labels that belong to no single head.
const (
	foreign = -1 // another part of a packed projection
	mixed   = -2 // several heads
	nothing = -3 // no label
)

// head returns the head that all columns of a label belong to, or a mark.
func (o *owners) head(label int32) int32 {
	switch {
	case label == 0:
		return nothing
	case label <= o.labels.n:
		return o.of[label-1]
	}
	set := o.labels.set(label)
	h := o.of[set[0]]
	for _, c := range set[1:] {
		if o.of[c] != h {
			return mixed
		}
	}
	return h
}

// layout finds the axis and the pattern of heads on a wire. ok is false where heads are mixed or missing.
func (o *owners) layout(s *sample) (l Layout, ok bool) {
	p := remember(o.layouts, s, func() (p placement) {
		p.Layout, p.ok = o.locate(s)
		return p
	})
	return p.Layout, p.ok
}

func (o *owners) locate(s *sample) (l Layout, ok bool) {
	pure := true
	ids := make([]int32, len(s.data))
	for i, label := range s.data {
		switch ids[i] = o.head(label); ids[i] {
		case mixed:
			return l, false
		case foreign, nothing:
			pure = false
		}
	}
	st := s.strides()
	var axes []int
	for a, step := range st {
		if varies(ids, s.stored[a], step) {
			axes = append(axes, a)
		}
	}
	if !pure {
		// The axis with the packed columns: the innermost one on which something changes.
		if len(axes) == 0 {
			return l, false
		}
		return Layout{Axis: axes[len(axes)-1]}, true
	}
	if o.count == 1 && len(axes) == 0 {
		return Layout{Axis: -1, Outer: 1, Heads: 1, Repeat: 1, Inner: 1, Pure: true}, true
	}
	if len(axes) == 2 && axes[1] == axes[0]+1 && s.stored[axes[0]]*s.stored[axes[1]] == o.count {
		first, second, n := st[axes[0]], st[axes[1]], s.stored[axes[1]]
		inOrder := true
		for h := range o.count {
			inOrder = inOrder && int(ids[h/n*first+h%n*second]) == h
		}
		if inOrder {
			return Layout{Axis: axes[0], Pair: s.stored[axes[1]], Outer: 1, Heads: o.count, Repeat: 1, Inner: 1, Pure: true, Spread: true}, true
		}
	}
	if len(axes) != 1 {
		return Layout{Axis: -1, Pure: true, Spread: true}, len(axes) > 1
	}
	a := axes[0]
	irregular := Layout{Axis: a, Pure: true, Spread: true}
	seq := make([]int32, s.stored[a])
	for p := range seq {
		seq[p] = ids[p*st[a]]
	}
	run := 1
	for run < len(seq) && seq[run] == seq[0] {
		run++
	}
	if len(seq)%(run*o.count) != 0 {
		return irregular, true
	}
	inner := o.places(s.data, st[a], run)
	if run%inner != 0 {
		return irregular, true
	}
	for p, h := range seq {
		if int(h) != (p/run)%o.count {
			return irregular, true
		}
	}
	return Layout{Axis: a, Outer: len(seq) / (run * o.count), Heads: o.count, Repeat: run / inner, Inner: inner, Pure: true}, true
}

// places is the number of places that one copy of a head takes of a run of n: one where all are alike, else as many as
// there are columns in it (a rotation gives two places the same columns).
func (o *owners) places(labels []int32, step, n int) int {
	columns, distinct := map[int32]bool{}, map[int32]bool{}
	for p := range n {
		id := labels[p*step]
		distinct[id] = true
		for _, c := range o.labels.set(id) {
			columns[c] = true
		}
	}
	if len(distinct) > 1 && n%len(columns) == 0 {
		return len(columns)
	}
	return len(distinct)
}

// carries reports whether a wire has anything of the heads: a packed one has siblings that do not.
func (o *owners) carries(s *sample) bool {
	return slices.ContainsFunc(s.data, func(id int32) bool {
		return slices.ContainsFunc(o.labels.set(id), func(c int32) bool { return o.of[c] >= 0 })
	})
}

// extent measures what the heads occupy of every axis of a wire.
func (o *owners) extent(s *sample) []Extent {
	return remember(o.extents, s, func() []Extent { return o.measure(s) })
}

func (o *owners) measure(s *sample) []Extent {
	out := make([]Extent, len(s.shape))
	own := make([]int, len(s.data))
	present, all := make([]bool, o.count), 0
	for i, id := range s.data {
		own[i] = foreign
		if set := o.labels.set(id); len(set) > 0 {
			own[i] = int(o.of[set[0]])
		}
		if h := own[i]; h >= 0 && !present[h] {
			present[h] = true
			all++
		}
	}
	for a, step := range s.strides() {
		if step == 0 {
			continue
		}
		seen := make([]int, 0, len(own)) // index along the axis and head, as one number
		for i, h := range own {
			if h >= 0 {
				seen = append(seen, i/step%s.stored[a]*o.count+h)
			}
		}
		slices.Sort(seen)
		seen = slices.Compact(seen)
		out[a] = Extent{Columns: true}
		for i := 0; i < len(seen); {
			first := i
			for i < len(seen) && seen[i]/o.count == seen[first]/o.count {
				i++
			}
			out[a].Count++
			out[a].Heads = out[a].Heads || i-first < all
		}
	}
	return out
}

// follow describes the way from the only projection behind a product operand to that operand, or from where the walk
// back ends without one. Heads are read there by headSets. transposed says that the operand's channels are its rows.
func follow(f *survey, operand *graph.Value, what string, transposed bool) (*Path, *tracer, *sample, *stop) {
	found, stops := origins(f, operand)
	switch {
	case len(found) == 0:
		if len(stops) == 0 {
			return nil, nil, nil, &stop{operand.Producer, operand, what + " are constant"}
		}
		return bare(f, operand, end(stops), transposed)
	}
	proj, adapters, why := addends(f, found, operand)
	if why != "" {
		return nil, nil, nil, &stop{proj.Node, proj.Output, what + ": " + why}
	}
	t, err := newTracer(f, proj.Output, -1, false)
	if err != nil {
		return nil, nil, nil, &stop{proj.Node, proj.Output, err.Error()}
	}
	if shape := t.memo[proj.Output].shape; shape[len(shape)-1] != proj.Columns {
		return nil, nil, nil, &stop{proj.Node, proj.Output, fmt.Sprintf("the projection gives %d columns and its weight has %d", shape[len(shape)-1], proj.Columns)}
	}
	s := t.at(operand)
	if s == nil {
		if len(t.stops) > 0 {
			return nil, nil, nil, &t.stops[0]
		}
		return nil, nil, nil, &stop{operand.Producer, operand, what + " lose their heads on the way"}
	}
	if len(s.shape) < 3 {
		return nil, nil, nil, &stop{operand.Producer, operand, fmt.Sprintf("the operand of the product has %d axes, want at least 3", len(s.shape))}
	}
	return &Path{Projection: proj, Operand: operand, Nodes: t.nodes, Adapters: adapters}, t, s, nil
}

// end returns the stop behind which new heads come: a node that cannot be followed, or the last of the caller's inputs
// (those of earlier steps come first).
func end(stops []stop) stop {
	for _, st := range stops {
		if st.node != nil {
			return st
		}
	}
	return stops[len(stops)-1]
}

// place fills in what depends on the heads: columns, the layout of every wire, the entry, the repetition, biases and
// other inputs that differ from head to head. branches are followed from every wire to graph outputs.
func (p *Path) place(t *tracer, columns [][]int) *stop {
	p.Columns = columns
	p.Wires = map[*graph.Value]Layout{}
	p.Extent = map[*graph.Value][]Extent{}
	owners := t.owners(p.Projection.Columns, columns)
	note := func(v *graph.Value, s *sample, at *graph.Node) *stop {
		l, ok := owners.layout(s)
		if !ok {
			return &stop{at, v, "heads are mixed with one another or with something else there"}
		}
		p.Wires[v] = l
		return nil
	}
	if st := note(p.Projection.Output, t.memo[p.Projection.Output], p.Projection.Node); st != nil {
		return st
	}
	for _, n := range p.Nodes {
		for _, o := range n.Out {
			if s := t.memo[o]; o != nil && s != nil && owners.carries(s) {
				if st := note(o, s, n); st != nil {
					return st
				}
				if !p.Wires[o].Pure {
					p.Extent[o] = owners.extent(s)
				}
			}
		}
		if st := p.sides(t, n); st != nil {
			return st
		}
	}
	if p.tracer != nil {
		return nil // an adapter: the rest is that of the path that it meets
	}
	if st := p.enter(t, owners); st != nil {
		return st
	}
	if st := p.placeAdapters(t); st != nil {
		return st
	}
	return p.repetition(t)
}

// enter finds the entry: walking back from the operand along the carrying input, the last wire before a packed one.
func (p *Path) enter(t *tracer, owners *owners) *stop {
	var run []*graph.Value // from the operand back
	for v := p.Operand; p.Wires[v].Pure; {
		run = append(run, v)
		if v == p.Projection.Output {
			break
		}
		var next *graph.Value
		for _, x := range t.facts.behind(v) {
			if _, ok := p.Wires[x]; ok && x != nil {
				next = x
				break
			}
		}
		if next == nil {
			return &stop{v.Producer, v, "the way back to the projection is lost"}
		}
		v = next
	}
	if len(run) == 0 {
		return &stop{p.Operand.Producer, p.Operand, "the product reads other columns than those of its heads"}
	}
	p.Entry = run[len(run)-1]
	last := slices.IndexFunc(run, func(v *graph.Value) bool { return p.Wires[v].Spread })
	if last > 0 {
		p.direct(t, run[last-1])
	}
	p.Extent[p.Entry] = owners.extent(t.memo[p.Entry])
	return nil
}

// direct makes v the entry of a path on which heads lie in no regular order before it, where it can be.
func (p *Path) direct(t *tracer, v *graph.Value) {
	s, from := t.memo[v], t.memo[p.Projection.Output]
	lead := len(from.shape) - 1
	if len(s.shape) <= lead || !slices.Equal(s.shape[:lead], from.shape[:lead]) || product(s.shape[lead:]) != len(s.data) ||
		!slices.Equal(slices.Concat(p.Columns...), columnsOf(t.labels, s.data)) || len(s.shape) > lead+2 {
		return
	}
	before := map[*graph.Value]bool{}
	var up func(x *graph.Value)
	up = func(x *graph.Value) {
		if _, ok := p.Wires[x]; x == nil || !ok || before[x] {
			return
		}
		before[x] = true
		if x == p.Projection.Output {
			return
		}
		for _, y := range x.Producer.In {
			up(y)
		}
	}
	for _, x := range v.Producer.In {
		up(x)
	}
	for x := range before {
		if n := x.Producer; x != p.Projection.Output && !movement[n.OpType] && !n.Is("Add") {
			return
		}
	}
	for x := range before {
		if x != p.Projection.Output {
			delete(p.Wires, x)
			delete(p.Extent, x)
		}
	}
	p.Entry, p.Direct = v, true
}

// movement are the operators that move elements and change none.
var movement = map[string]bool{
	"Identity": true, "Reshape": true, "Flatten": true, "Transpose": true, "Unsqueeze": true, "Squeeze": true, "Split": true, "Slice": true, "Gather": true,
}

// columnsOf lists the column behind each label, nil unless each has one.
func columnsOf(l *labels, ids []int32) []int {
	out := make([]int, 0, len(ids))
	for _, id := range ids {
		set := l.set(id)
		if len(set) != 1 {
			return nil
		}
		out = append(out, int(set[0]))
	}
	return out
}

// repetition finds where heads are repeated.
func (p *Path) repetition(t *tracer) *stop {
	for _, n := range p.Nodes {
		for _, o := range n.Out {
			l, ok := p.Wires[o]
			if !ok || !l.Pure || l.Spread || l.Repeat == 1 || p.Repeat != nil {
				continue
			}
			p.Repeat = o
			rank := len(t.memo[o].shape)
			for v := n.Input(0); v != nil && (p.Single == nil || p.Squeeze > 0); v = v.Producer.Input(0) {
				m, ok := p.Wires[v]
				if !ok || !m.Pure {
					break
				}
				if s := t.memo[v]; !m.Spread && m.Repeat == 1 && m.Axis == l.Axis && m.Inner == l.Inner {
					switch {
					case len(s.shape) == rank:
						p.Single, p.Squeeze = v, 0
					case len(s.shape) == rank+1 && s.shape[m.Axis+1] == 1 && p.Single == nil:
						p.Single, p.Squeeze = v, m.Axis+1
					}
				}
				if v.Producer == nil {
					break
				}
			}
			if p.Single == nil {
				return &stop{n, o, "key/value heads are repeated in a way that is not understood"}
			}
		}
	}
	return nil
}

// sides looks at the inputs of a path node that are not on the path: constants that differ from column to column are
// biases when they are added, and anything else that differs from head to head is kept for the caller to judge.
func (p *Path) sides(t *tracer, n *graph.Node) *stop {
	if len(n.Out) == 0 || n.Out[0] == nil {
		return nil
	}
	out := t.memo[n.Out[0]]
	l, ok := p.Wires[n.Out[0]]
	if out == nil || !ok {
		return nil
	}
	if l.Spread {
		return nil // nothing is re-ordered on such a path
	}
	data := movers[n.OpType].data
	for i, v := range n.In {
		if v == nil || t.memo[v] != nil || p.adapted(v) || data != nil && !data(i) && !beside[n.OpType] {
			continue
		}
		shape, known := concreteShape(t.facts, v)
		if !known {
			if l.Axis < 0 {
				continue
			}
			return &stop{n, v, fmt.Sprintf("the shape of %q, which meets the heads at %v, is not known", v.Name, n)}
		}
		if n.Is("Concat") {
			continue // caches and rotary halves are looked at elsewhere
		}
		axis := l.Axis - (len(out.shape) - len(shape))
		if l.Axis < 0 || axis < 0 || axis >= len(shape) || shape[axis] == 1 {
			continue
		}
		side := Side{Node: n, Input: i, Value: v, Tensor: t.facts.Const(v), Axis: axis}
		if side.Tensor != nil && (n.Is("Add") || n.Is("Sub") && i == 1) && alone(shape, axis, out, len(out.shape)-len(shape)) {
			p.Biases = append(p.Biases, side)
		} else {
			p.PerHead = append(p.PerHead, side)
		}
	}
	return nil
}

// beside are operators whose inputs without data are numbers that meet the heads, element by element; those of all other
// operators are shapes, indices, bounds and types.
var beside = map[string]bool{
	"Where": true, "LayerNormalization": true, "SimplifiedLayerNormalization": true, "RMSNormalization": true,
	"QuantizeLinear": true, "DequantizeLinear": true,
}

// alone reports whether a constant differs only along axes on which columns differ too.
func alone(shape []int, axis int, out *sample, shift int) bool {
	for a, d := range shape {
		if a != axis && d > 1 && out.stored[a+shift] == 1 {
			return false
		}
	}
	return true
}
