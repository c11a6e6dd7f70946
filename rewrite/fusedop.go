package rewrite

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// This file lowers a whole core to one fused operator, which needs keys and values in the same equal groups. What a model
// does to its scores between the two products becomes a soft-cap and a bias that is added to them.

// wire is a value with the places of its four axes.
type wire struct {
	v                      *graph.Value
	heads, seq, channel, n int // n heads
}

// fusedInputs are the operands of a fused operator, before the sizes of heads are known.
type fusedInputs struct {
	q, k, v wire
	steps   []scoreStep
	guarded bool // rows without a visible key give 0
	softcap float64
}

// scoreStep is a node between the first product and the softmax, with the input that the scores come in by.
type scoreStep struct {
	node *graph.Node
	data int
}

// fusedOperands describes the core as operands, or says why it is none.
func (c *core) fusedOperands() (f fusedInputs, misfit string) {
	b := c.b
	k, v := readers(b.KeyOf, c.k), readers(b.ValueOf, c.v)
	switch {
	case !slices.Equal(k, v):
		return f, "keys and values have different groups"
	case !equal(sizes(k, c.k.Heads())):
		return f, "groups are of different sizes"
	case !identity(c.neighbours()) && !c.canReorder():
		return f, "query heads cannot be re-ordered"
	case (b.KeyCache == nil) != (b.ValCache == nil):
		return f, "only one of keys and values is cached"
	}
	q, ok := c.e.facts.Shape(b.QK.In[0])
	l := b.Query.Wires[b.QK.In[0]]
	if !ok || len(q) != 4 || l.Axis != 1 || l.Outer != 1 || l.Inner != 1 || l.Pair > 0 || l.Spread {
		return f, "the queries are not [batch, heads, sequence, channels]"
	}
	f.q = wire{b.QK.In[0], 1, 2, 3, b.Heads}
	for _, s := range []struct {
		w            *wire
		path         *attention.Path
		cache        *attention.Cache
		seq, channel int
	}{{&f.k, b.Key, b.KeyCache, 3, 2}, {&f.v, b.Value, b.ValCache, 2, 3}} {
		if *s.w, misfit = c.newPositions(s.path, s.cache, s.seq, s.channel); misfit != "" {
			return f, misfit
		}
	}
	if misfit = c.readScores(&f); misfit != "" {
		return f, misfit
	}
	return f, ""
}

// newPositions is the wire with a step's keys or values, before they join the cache.
func (c *core) newPositions(p *attention.Path, cache *attention.Cache, seq, channel int) (w wire, misfit string) {
	w = wire{v: p.Operand, seq: seq, channel: channel}
	if cache != nil && cache.Concat != nil {
		join := cache.Concat
		shape, ok := c.e.facts.Shape(join.Out[0])
		if !ok || len(shape) != 4 || !join.Is("Concat") || len(join.In) != 2 || join.In[0] != cache.Past || cache.Present != join.Out[0] || cache.PastAxis != 1 || cache.PastSeq != 2 || cache.Stacked {
			return w, fmt.Sprintf("the cache of %q is not a pair of [batch, heads, positions, channels] that %v joins", p.Operand.Name, join)
		}
		for v := p.Operand; v != join.Out[0]; {
			n := v.Producer
			f, factor := c.scaling(n)
			switch {
			case v == p.Repeat:
				v = p.Single
			case factor:
				v = n.In[f.data]
			case n != nil && formOnly[n.OpType] && n.Is(n.OpType):
				v = n.In[0]
			default:
				return w, fmt.Sprintf("%v stands between the cache and the product", n)
			}
		}
		w = wire{v: join.In[1], seq: 2, channel: 3}
	} else if cache != nil {
		return w, "its cache is filled elsewhere"
	}
	l, ok := p.Wires[w.v]
	shape, ranked := c.e.facts.Shape(w.v)
	if !ok || !ranked || len(shape) != 4 || l.Axis != 1 || l.Outer != 1 || l.Inner != 1 || l.Pair > 0 || l.Spread || !l.Pure {
		return w, fmt.Sprintf("the heads of %q do not lie on an axis of their own behind the batch", w.v.Name)
	}
	w.heads = 1
	return w, ""
}

// readScores lists what happens to the scores, and makes sure that it can be written as a soft-cap and a bias.
func (c *core) readScores(f *fusedInputs) string {
	v := c.b.QK.Out[0]
	factors, _ := c.factorsAfter(v)
	added := false
	for n := c.b.Softmax; ; {
		var next *graph.Node
		data := 0
		for _, u := range v.Users() {
			switch {
			case u.Node == nil:
				return fmt.Sprintf("the scores %q are given out", v.Name)
			case u.Node.Is("Shape"):
			case next != nil || u.Node.Graph != c.e.g:
				return fmt.Sprintf("the scores %q are read elsewhere too", v.Name)
			default:
				next, data = u.Node, u.Index
			}
		}
		if next == n {
			break
		}
		isFactor := slices.ContainsFunc(factors, func(x factor) bool { return x.node == next })
		switch {
		case next == nil:
			return fmt.Sprintf("the scores %q lead nowhere", v.Name)
		case !next.Is(next.OpType):
			return fmt.Sprintf("%v is not a bias", next)
		case isFactor, next.Is("Cast"), next.Is("Identity"):
		case next.Is("Tanh") && !added && f.softcap == 0:
			users := next.Out[0].Users()
			if len(users) != 1 || users[0].Node == nil {
				return fmt.Sprintf("%v is not part of a soft-cap", next)
			}
			cap, ok := c.scaling(users[0].Node)
			if !ok || cap.value <= 0 {
				return fmt.Sprintf("%v is not part of a soft-cap", next)
			}
			f.softcap = cap.value
			next = users[0].Node
		case next.Is("Add"), next.Is("Sub") && data == 0, next.Is("Where") && data > 0:
			added = true
			f.steps = append(f.steps, scoreStep{next, data})
		case next.Is("Max") && len(next.In) == 2 && added:
			f.steps = append(f.steps, scoreStep{next, data})
		default:
			return fmt.Sprintf("%v is neither a bias nor a soft-cap", next)
		}
		if next.Is("Cast") && added {
			f.steps = append(f.steps, scoreStep{next, 0})
		}
		v = next.Out[0]
	}
	if !c.b.Softmax.Is("Softmax") {
		return fmt.Sprintf("the softmax is spelled out, at %v", c.b.Softmax)
	}
	for v = c.b.Softmax.Out[0]; v != c.b.PV.In[0]; {
		var next *graph.Node
		for _, u := range v.Users() {
			switch n := u.Node; {
			case n == nil:
				return fmt.Sprintf("the probabilities %q are given out", v.Name)
			case n.Is("Shape"), n.Is("IsNaN") && len(n.Out[0].Users()) == 1:
			case next != nil:
				return fmt.Sprintf("the probabilities %q are read elsewhere too", v.Name)
			default:
				next = n
			}
		}
		switch {
		case next == nil:
			return fmt.Sprintf("the probabilities %q lead nowhere", v.Name)
		case next.Is("Where") && next.In[2] == v && next.In[0].Producer.Is("IsNaN"):
			f.guarded = true
		case next.Is("Cast"), next.Is("Identity"), next.Is("Dropout") && len(next.Out) == 1:
		default:
			return fmt.Sprintf("%v stands between the softmax and the values", next)
		}
		v = next.Out[0]
	}
	for _, u := range v.Users() {
		if u.Node != c.b.PV && (u.Node == nil || !u.Node.Is("Shape")) {
			return fmt.Sprintf("the probabilities %q are read elsewhere too", v.Name)
		}
	}
	return ""
}

// fusedOps holds what the fused operators of a model share.
type fusedOps struct {
	e       *editor
	made    map[string]*graph.Value
	entries *entries
}

func (e *editor) fusedOps() *fusedOps {
	if e.fused == nil {
		e.fused = &fusedOps{e, map[string]*graph.Value{}, &entries{map[string]int{}, map[*graph.Tensor][]int{}}}
	}
	return e.fused
}

func (s *fusedOps) once(key string, f func() *graph.Value) *graph.Value {
	if s.made[key] == nil {
		s.made[key] = f()
	}
	return s.made[key]
}

func (s *fusedOps) op(op, name string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	return s.e.p.Op(op, "/attention/"+name, in, attrs...)
}

// size is one entry of a value's shape, [1].
func (s *fusedOps) size(v *graph.Value, axis int) *graph.Value {
	return s.once(fmt.Sprintf("size %p %d", v, axis), func() *graph.Value {
		shape := s.once(fmt.Sprintf("shape %p", v), func() *graph.Value { return s.op("Shape", "shape", []*graph.Value{v}) })
		return s.op("Gather", "size", []*graph.Value{shape, s.e.p.Ints("/attention/axis", int64(axis))}, graph.IntAttr("axis", 0))
	})
}

// sameSize is size, shared by wires whose entry is the same by what is known, and read off an input that has it: wires may
// depend on how much is cached, which is told from the size of a step.
func (s *fusedOps) sameSize(v *graph.Value, axis int) *graph.Value {
	shape, ok := s.e.facts.Shape(v)
	if !ok || shape[axis].Unknown() {
		return s.size(v, axis)
	}
	return s.once("symbol "+shape[axis].String(), func() *graph.Value {
		for _, in := range s.e.g.Inputs {
			dims, ok := s.e.facts.Shape(in)
			if !ok || in.Init != nil {
				continue
			}
			if at := slices.IndexFunc(dims, shape[axis].Equal); at >= 0 {
				return s.size(in, at)
			}
		}
		return s.size(v, axis)
	})
}

// maskLength finds the input that has an entry for every position, cached ones included: [batch, total].
func (e *editor) maskLength(total graph.Dim) *graph.Value {
	for _, v := range e.g.Inputs {
		shape, ok := e.facts.Shape(v)
		if v.Init == nil && ok && len(shape) == 2 && (shape[1].Equal(total) || v.Name == "attention_mask") {
			return v
		}
	}
	return nil
}

// bias is what is added to the scores, broadcast to [1 or B, 1 or H, S, T] and of the queries' type; nil when there is
// nothing.
func (c *core) bias(f fusedInputs, total *graph.Value) (*graph.Value, error) {
	s := c.e.fusedOps()
	elem := c.e.facts.Elem(f.q.v)
	var acc *graph.Value
	key, rank4, now := "", false, elem
	number := func(x float64) (*graph.Value, error) {
		t, err := constant("/attention/number", now, x)
		if err != nil {
			return nil, err
		}
		return s.once(fmt.Sprint("number ", now, x), func() *graph.Value { return c.e.p.Init(t) }), nil
	}
	for _, step := range f.steps {
		n := step.node
		in := make([]*graph.Value, len(n.In))
		key += n.OpType
		for i := range n.In {
			if i == step.data {
				key += " scores"
				continue
			}
			in[i] = c.e.input(n, i)
			key += fmt.Sprintf(" %p", in[i])
		}
		if n.Is("Cast") {
			key += fmt.Sprint(n.Int("to", 0))
		} else {
			now = c.e.facts.Elem(n.Out[0])
		}
		key += ";"
		side := in[len(in)-1]
		if step.data == len(in)-1 {
			side = in[0]
		}
		if n.Is("Add") && acc == nil {
			acc = side
			shape, ok := c.e.facts.Shape(n.In[1-step.data])
			rank4 = ok && len(shape) == 4 && !shape[2].Equal(graph.Int(1)) && !shape[3].Equal(graph.Int(1))
			continue
		}
		scores := acc
		if scores == nil {
			var err error
			if scores, err = number(0); err != nil {
				return nil, err
			}
		}
		in[step.data] = scores
		acc = s.once("bias "+key, func() *graph.Value { return s.op(n.OpType, n.Name, in, n.Proto.Attribute...) })
		if n.Is("Cast") {
			now = c.e.facts.Elem(n.Out[0])
		} else {
			rank4 = false
		}
	}
	if acc == nil {
		return nil, nil
	}
	if f.guarded { // a row of -∞ would be no number
		low, err := number(lowestFinite(now))
		if err != nil {
			return nil, err
		}
		acc = s.once(fmt.Sprintf("finite %p", acc), func() *graph.Value { return s.op("Max", "finite", []*graph.Value{acc, low}) })
	}
	if now != elem {
		acc = s.once(fmt.Sprintf("cast %p", acc), func() *graph.Value {
			return s.op("Cast", "bias_cast", []*graph.Value{acc}, graph.IntAttr("to", int64(elem)))
		})
	}
	if !rank4 {
		acc = s.once(fmt.Sprintf("whole %p", acc), func() *graph.Value {
			one := s.once("one one", func() *graph.Value { return c.e.p.Ints("/attention/ones", 1, 1) })
			target := s.op("Concat", "bias_shape", []*graph.Value{one, s.sameSize(f.q.v, f.q.seq), total}, graph.IntAttr("axis", 0))
			return s.op("Expand", "bias", []*graph.Value{acc, target})
		})
	}
	return acc, nil
}

func lowestFinite(elem onnxpb.TensorProto_DataType) float64 {
	if elem == onnxpb.TensorProto_FLOAT16 {
		return -65504
	}
	return -math.MaxFloat32
}

// total is the number of positions after the step, [1], and whether it is taken from a mask, so that the past may be a buffer
// that is longer than what it holds.
func (c *core) total(f fusedInputs) (total *graph.Value, buffers bool, err error) {
	s := c.e.fusedOps()
	seq := s.sameSize(f.k.v, f.k.seq)
	cache := c.b.KeyCache
	if cache == nil {
		return seq, false, nil
	}
	shape, _ := c.e.facts.Shape(cache.Present)
	mask := c.e.maskLength(shape[2])
	if mask == nil {
		return s.once("total", func() *graph.Value {
			return s.op("Add", "total", []*graph.Value{s.size(cache.Past, 2), seq})
		}), false, nil
	}
	return s.once("total", func() *graph.Value { return s.size(mask, 1) }), true, nil
}

// seen lets those who look at the shapes of wires that fall away see what they saw: sizes that are known, and those of
// batch, step and positions.
func (c *core) seen(wires []*graph.Value, f fusedInputs, total *graph.Value) error {
	s, e := c.e.fusedOps(), c.e
	q, _ := e.facts.Shape(f.q.v)
	scores, _ := e.facts.Shape(c.b.QK.Out[0])
	for _, w := range wires {
		for _, u := range w.Users() {
			n := u.Node
			if n == nil || !n.Is("Shape") || len(n.Out[0].Users()) == 0 {
				continue
			}
			known, ok := e.facts.Known(n.Out[0])
			if !ok {
				return fmt.Errorf("%v looks at a shape that is not known", n)
			}
			var parts []*graph.Value
			for _, d := range known.Ints {
				size, fixed := d.Const()
				switch {
				case fixed:
					parts = append(parts, e.p.Ints("/attention/size", size))
				case d.Equal(q[0]):
					parts = append(parts, s.sameSize(f.q.v, 0))
				case d.Equal(q[f.q.seq]):
					parts = append(parts, s.sameSize(f.q.v, f.q.seq))
				case d.Equal(scores[3]):
					parts = append(parts, total)
				default:
					return fmt.Errorf("%v looks at a size, %v, that is neither batch, step nor positions", n, d)
				}
			}
			e.correct(n.Out[0], func(*graph.Value) (*graph.Value, []*graph.Node) {
				return s.op("Concat", "seen", parts, graph.IntAttr("axis", 0)), nil
			})
		}
	}
	return nil
}

// flat brings a wire into the form [batch, sequence, heads·channels].
func (c *core) flat(w wire, heads int, name string) *graph.Value {
	x := w.v
	perm := []int{0, w.seq, w.heads, w.channel}
	if n := x.Producer; n.Is("Transpose") && len(n.Out[0].Users()) == 1 {
		if p, ok := n.Ints("perm"); ok && len(p) == 4 {
			x = n.In[0]
			for i, a := range perm {
				perm[i] = int(p[a])
			}
		}
	}
	if !identity(perm) {
		x = c.e.p.Op("Transpose", name+"/heads_last", []*graph.Value{x}, graph.IntsAttr("perm", ints(perm)...))
	}
	return c.e.p.Op("Reshape", name+"/flat", []*graph.Value{x, c.e.p.Ints(name+"/flat_shape", 0, 0, -1)})
}

// context hands what a fused operator gives, [batch, sequence, heads·channels] in the order of the query heads, to those who
// read the second product.
func (c *core) contextFrom(out *graph.Value, name string) {
	e, b := c.e, c.b
	x := e.p.Op("Reshape", name+"/heads", []*graph.Value{out, e.p.Ints(name+"/heads_shape", 0, 0, int64(b.Heads), -1)})
	if !identity(c.order) && !c.reorderOutput(c.order) {
		x = e.p.Op("Gather", name+"/ungroup", []*graph.Value{x, e.p.Ints(name+"/ungroup_index", ints(inverse(c.order))...)}, graph.IntAttr("axis", 2))
	}
	pv := b.PV.Out[0]
	if users := pv.Users(); len(users) == 1 && users[0].Node.Is("Transpose") && !pv.IsOutput() {
		if perm, ok := users[0].Node.Ints("perm"); ok && slices.Equal(perm, []int64{0, 2, 1, 3}) {
			e.p.Replace(users[0].Node.Out[0], x)
			return
		}
	}
	x = e.p.Op("Transpose", name+"/heads_first", []*graph.Value{x}, graph.IntsAttr("perm", 0, 2, 1, 3))
	e.p.Replace(pv, x)
}

// shadowed lists the wires that a fused operator makes superfluous.
func (c *core) shadowed() []*graph.Value {
	var out []*graph.Value
	add := func(v *graph.Value) {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	for _, s := range []struct {
		path  *attention.Path
		cache *attention.Cache
	}{{c.b.Key, c.b.KeyCache}, {c.b.Value, c.b.ValCache}} {
		if s.cache == nil || s.cache.Concat == nil {
			continue
		}
		way, err := c.e.follow(s.cache.Concat.Out[0], s.cache.PastSeq, c.b.PV)
		if err != nil {
			continue
		}
		for _, w := range way.wires {
			add(w)
		}
	}
	for w := range c.b.Scores {
		add(w)
	}
	slices.SortFunc(out, func(a, b *graph.Value) int { return strings.Compare(a.Name, b.Name) })
	return out
}
