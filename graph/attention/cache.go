package attention

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// caches finds the pasts and presents of keys and values, and who else reads what a fusion changes.
func (b *Block) caches(f *survey, kt, vt *tracer) *stop {
	own := map[*graph.Node]bool{b.QK: true, b.PV: true}
	for _, p := range []*Path{b.Query, b.Key, b.Value} {
		for _, n := range p.Nodes {
			own[n] = true
		}
	}
	var st *stop
	if b.KeyCache, st = b.Key.cache(f, kt, own, "keys"); st != nil {
		return st
	}
	if b.ValCache, st = b.Value.cache(f, vt, own, "values"); st != nil {
		return st
	}
	b.KeyCache, b.ValCache = b.Key.fed(f, b.KeyCache), b.Value.fed(f, b.ValCache)
	for _, c := range []*Cache{b.KeyCache, b.ValCache} {
		if c != nil && (c.Concat.Is("ScatterND") || c.Concat.Is("ScatterElements")) && b.Fixed == "" {
			b.Fixed = fmt.Sprintf("its cache %q is written in place by %v, whose indices count heads", c.Past.Name, c.Concat)
		}
	}
	return nil
}

// cache looks for a Concat with something from a graph input, or a write into it, and for branches to graph outputs. What else reads a wire
// with the heads is noted in Readers.
func (p *Path) cache(f *survey, t *tracer, own map[*graph.Node]bool, what string) (*Cache, *stop) {
	c := &Cache{PastAxis: -1, PastSeq: -1, PresentAxis: -1, Repeat: 1}
	for _, n := range p.Nodes {
		if !joins(n) {
			continue
		}
		for i, x := range n.In {
			if x == nil || t.memo[x] != nil || i > 0 && !n.Is("Concat") || vacant(f, x) && x.Producer != nil && t.memo[x.Producer.Input(0)] != nil {
				continue
			}
			l, ok := p.Wires[n.Out[0]]
			if !ok {
				continue
			}
			if st := c.past(f, n, x, l, what); st != nil {
				return nil, st
			}
		}
	}
	b := branches{p: p, t: t, stacked: map[*graph.Value]bool{}}
	for w := range p.Wires {
		b.queue = append(b.queue, w)
	}
	slices.SortFunc(b.queue, func(a, b *graph.Value) int { return strings.Compare(a.Name, b.Name) })
	for i := 0; i < len(b.queue); i++ {
		w := b.queue[i]
		l := p.Wires[w]
		for _, u := range w.Users() {
			n := u.Node
			switch {
			case n == nil && !l.Pure && !b.stacked[w]: // a packed wire as an output: the projection itself is asked for
			case n == nil && u.Graph.Outer != nil:
				c.link(f, w, l.Axis)
				b.out(f, w, u.Graph.Owner, func(j *graph.Joint) bool { return slices.Contains(j.Results, w) })
				if c.Present == nil {
					c.present(w, l, b.stacked[w])
				}
			case n != nil && len(f.joints[w]) > 0 && len(n.Subgraphs) > 0:
				c.link(f, w, l.Axis)
				b.out(f, w, n, func(j *graph.Joint) bool { return j.Initial == w })
			case n == nil:
				if c.Present != nil && c.Present != w && c.Present.Graph == w.Graph {
					return nil, &stop{w.Producer, w, fmt.Sprintf("%s are given out twice, as %q and %q", what, c.Present.Name, w.Name)}
				}
				c.present(w, l, b.stacked[w])
			case own[n] || silent[n.OpType] || slices.Contains(p.Tails, n) || len(n.Out) == 1 && vacant(f, n.Out[0]):
			case !l.Pure && !b.stacked[w]: // another part of a packed projection
			case b.follow(n, u.Index, w):
			case !b.stacked[w] && !l.Spread && l.Axis >= 0:
				p.Readers = append(p.Readers, Side{Node: n, Input: u.Index, Value: w, Axis: l.Axis})
			default:
				return nil, &stop{n, w, fmt.Sprintf("%s are also read by %v", what, n)}
			}
		}
	}
	if c.Past == nil && c.Present == nil {
		return nil, nil
	}
	if c.Past != nil {
		c.link(f, c.Past, c.PastAxis)
	}
	return c, nil
}

// vacant reports that v has no elements, as the channels that a rotation of all of them leaves.
func vacant(f *survey, v *graph.Value) bool {
	dims, ok := f.Shape(v)
	return ok && v.Const() == nil && slices.ContainsFunc(dims, func(d graph.Dim) bool { return d.Equal(graph.Int(0)) })
}

// fed makes the input that a bare path begins at its cache.
func (p *Path) fed(f *survey, c *Cache) *Cache {
	past := p.Projection.Output
	l, ok := p.Wires[past]
	if p.Bare == "" || !past.IsInput || !ok || !l.Pure || l.Spread || c != nil && c.Past != nil {
		return c
	}
	if c == nil {
		c = &Cache{PresentAxis: -1}
	}
	c.Past, c.PastAxis, c.PastSeq = past, l.Axis, -1
	c.Heads, c.Repeat, c.Outer = l.Heads*l.Repeat, l.Repeat, l.Outer
	c.link(f, past, l.Axis)
	return c
}

// present makes w, where heads have layout l, what the caller gets back.
func (c *Cache) present(w *graph.Value, l Layout, stacked bool) {
	c.Present, c.PresentAxis, c.Stacked = w, l.Axis, c.Stacked || stacked
	c.Heads, c.Repeat, c.Outer = l.Heads*l.Repeat, l.Repeat, l.Outer
}

// branches follows what leaves a path beside its product: to a graph output, which makes a cache of it.
type branches struct {
	p       *Path
	t       *tracer
	queue   []*graph.Value
	stacked map[*graph.Value]bool // keys and values in one tensor
}

// out adds what comes out of n for w to the wires of the path: n carries w across its boundary by a joint that is asked for.
func (b *branches) out(f *survey, w *graph.Value, n *graph.Node, is func(*graph.Joint) bool) {
	for _, j := range f.joints[w] {
		if j.Node != n || j.Out == nil || !is(j) {
			continue
		}
		if _, ok := b.p.Wires[j.Out]; !ok {
			b.p.Wires[j.Out], b.t.memo[j.Out], b.stacked[j.Out] = b.p.Wires[w], b.t.memo[w], b.stacked[w]
			b.queue = append(b.queue, j.Out)
		}
	}
}

// follow adds what n makes of wire w, its input of that index, to the path's tails. It reports false, and adds nothing,
// when the heads do not come out of n where a cache could hold them, or other nodes read more of them than their number.
func (b *branches) follow(n *graph.Node, index int, w *graph.Value) bool {
	l := b.p.Wires[w]
	row, ok := movers[n.OpType]
	if !ok || !isDefaultDomain(n) || row.data != nil && !row.data(index) || len(n.Out) == 0 || b.t.at(n.Out[0]) == nil || !leadsOut(n, map[*graph.Node]bool{}) && !measured(n) {
		return false
	}
	layouts := map[*graph.Value]Layout{}
	var stacked []*graph.Value
	for _, o := range n.Out {
		s := b.t.at(o)
		if o == nil || s == nil {
			continue
		}
		ol, ok := b.t.owners(b.p.Projection.Columns, b.p.Columns).layout(s)
		switch {
		case n.Is("Concat") && (!ok || !ol.Pure):
			// Keys and values in one tensor: the heads keep their axis.
			ol, ok = Layout{Axis: l.Axis, Outer: l.Outer, Heads: l.Heads, Repeat: l.Repeat, Inner: l.Inner}, true
			stacked = append(stacked, o)
		case b.stacked[w] && n.Is("Identity"):
			stacked = append(stacked, o)
		case !ok || !ol.Pure:
			return false
		}
		if !ok {
			return false
		}
		layouts[o] = ol
	}
	for _, o := range stacked {
		b.stacked[o] = true
	}
	b.p.Tails = append(b.p.Tails, n)
	for _, o := range n.Out {
		if ol, ok := layouts[o]; ok {
			b.p.Wires[o] = ol
			b.queue = append(b.queue, o)
		}
	}
	return true
}

// measured reports whether nothing is asked of what n gives but how large it is (the length of keys, in exports of
// nn.MultiheadAttention).
func measured(n *graph.Node) bool {
	users := 0
	for _, o := range n.Out {
		if o == nil {
			continue
		}
		for _, u := range o.Users() {
			if !u.Node.Is("Shape") && !u.Node.Is("Size") {
				return false
			}
			users++
		}
	}
	return users > 0
}

// leadsOut reports whether something that n gives becomes a graph output by operators that heads are followed through.
func leadsOut(n *graph.Node, seen map[*graph.Node]bool) bool {
	if seen[n] || len(seen) > 16 {
		return false
	}
	seen[n] = true
	for _, o := range n.Out {
		if o == nil {
			continue
		}
		if o.IsOutput() {
			return true
		}
		for _, u := range o.Users() {
			if u.Node == nil || u.Node.Graph != n.Graph {
				continue
			}
			row, ok := movers[u.Node.OpType]
			if ok && isDefaultDomain(u.Node) && (row.data == nil || row.data(u.Index)) && leadsOut(u.Node, seen) {
				return true
			}
		}
	}
	return false
}

// past follows the other input of a Concat back to a graph input.
func (c *Cache) past(f *survey, concat *graph.Node, x *graph.Value, l Layout, what string) *stop {
	if c.Past != nil {
		return &stop{concat, x, fmt.Sprintf("%s are joined with two pasts", what)}
	}
	v := x
	for v.Producer != nil {
		n := v.Producer
		row, ok := movers[n.OpType]
		if !ok || !isDefaultDomain(n) || v.Const() != nil || n.Input(0) == nil || row.data == nil {
			break
		}
		c.PastNodes = append(c.PastNodes, n)
		v = n.Input(0)
	}
	if !v.IsInput || v.Const() != nil {
		shape, ok := concreteShape(f, x)
		if ok && l.Axis >= 0 && shape[l.Axis] == 1 {
			c.PastNodes = nil
			return nil // the same for every head
		}
		return &stop{concat, x, fmt.Sprintf("%s are joined with %q, which is not a cache that the caller passes", what, x.Name)}
	}
	shape, ok := concreteShape(f, v)
	if !ok {
		return &stop{concat, v, fmt.Sprintf("the shape of the cache input %q is not known", v.Name)}
	}
	at := concat.Int("axis", 0)
	if !concat.Is("Concat") {
		at = int64(writeAxis(f, concat, l.Axis))
	}
	seq, err := normAxis(at, 64)
	if s, ok := concreteShape(f, x); ok && at < 0 {
		seq, err = normAxis(at, len(s))
	}
	if err != nil {
		return &stop{concat, x, err.Error()}
	}
	c.PastWires = map[*graph.Value]int{}
	for a := range shape {
		t, err := newTracer(f, v, a, false)
		if err != nil {
			continue
		}
		s := t.at(x)
		if s == nil {
			continue
		}
		if seq < len(s.stored) && s.stored[seq] > 1 {
			c.PastSeq = a
		}
		if l.Axis >= 0 && s.stored[l.Axis] > 1 {
			if c.PastAxis >= 0 {
				return &stop{concat, v, fmt.Sprintf("the heads of the cache input %q are spread over two axes", v.Name)}
			}
			c.PastAxis = a
			for w, ws := range t.memo {
				if ws == nil {
					continue
				}
				for wa, n := range ws.stored {
					if n > 1 {
						c.PastWires[w] = wa
					}
				}
			}
		}
	}
	if l.Axis >= 0 && c.PastAxis < 0 {
		return &stop{concat, v, fmt.Sprintf("the cache input %q has no axis with the heads", v.Name)}
	}
	c.Past, c.Concat = v, concat
	c.Heads, c.Repeat, c.Outer = l.Heads*l.Repeat, l.Repeat, l.Outer
	return nil
}
