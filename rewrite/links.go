package rewrite

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// A cache that crosses the boundaries of bodies has other names there: the input that a Loop takes it from, what the other
// branch of an If gives in its place. Most of them are wires of the same layer in another body, or follow from one; links.go
// changes the number of heads of the rest.

// link is a cache under one of its names: its heads on axis have layout was, and are to have layout is.
type link struct {
	axis    int
	was, is attention.Layout
	heads   []int // was → is
	block   string
}

// link notes that a cache changes under all its names, and where loops take in what it is at first.
func (e *editor) link(c *attention.Cache, block string, was, is attention.Layout, heads []int) {
	for v, axis := range c.Links {
		l := link{axis, was, is, heads, block}
		starts := 0
		for _, u := range v.Users() {
			if u.Node == nil || len(u.Node.Subgraphs) == 0 {
				continue
			}
			for _, j := range u.Node.Joints() {
				if j.Initial == v && j.Input == u.Index && linked(c, j.Inputs) {
					e.starts[u] = l
					starts++
				}
			}
		}
		if _, ok := e.links[v]; !ok && (starts == 0 || v.IsInput || v.Producer != nil && len(v.Producer.Subgraphs) > 0) {
			e.links[v] = l
		}
	}
}

func linked(c *attention.Cache, names []*graph.Value) bool {
	return slices.ContainsFunc(names, func(v *graph.Value) bool {
		_, ok := c.Links[v]
		return ok || v == c.Past
	})
}

// settle changes the names of caches that no path led to.
func (e *editor) settle() error {
	names := slices.SortedFunc(maps.Keys(e.links), func(a, b *graph.Value) int { return strings.Compare(a.Name, b.Name) })
	for _, v := range names {
		l := e.links[v]
		if e.settled[v] || l.was.Len() == l.is.Len() {
			continue
		}
		if err := e.settleAt(v, l); err != nil {
			return fmt.Errorf("block %q: its cache is called %q in another body: %w", l.block, v.Name, err)
		}
		e.settled[v] = true
		e.correctShapes(v, l.axis, l.was, l.is)
	}
	uses := slices.SortedFunc(maps.Keys(e.starts), func(a, b graph.Use) int {
		return cmp.Or(strings.Compare(a.Node.String(), b.Node.String()), a.Index-b.Index)
	})
	for _, u := range uses {
		l, v := e.starts[u], u.Node.In[u.Index]
		if e.settled[v] || l.was.Len() == l.is.Len() {
			continue
		}
		back := e.p.In(u.Node.Graph)
		first, err := e.start(v, l)
		back()
		if err != nil {
			return fmt.Errorf("block %q: its cache is %q at first: %w", l.block, v.Name, err)
		}
		e.p.SetInput(u.Node, u.Index, first)
	}
	return nil
}

// start makes what a loop starts from with other heads. The old one stays for those who read it too.
func (e *editor) start(v *graph.Value, l link) (*graph.Value, error) {
	if t := v.Const(); t != nil {
		t, err := l.pick(t)
		if err != nil {
			return nil, err
		}
		return e.constant(v, t), nil
	}
	n := v.Producer
	again := func(x *graph.Value) *graph.Value {
		return e.p.Node(n.OpType, n.Domain, n.Name, 1, []*graph.Value{x}, n.Proto.Attribute...)[0]
	}
	switch {
	case n == nil:
	case n.Is("Identity"), n.Is("Cast"):
		x, err := e.start(n.In[0], l)
		if err != nil {
			return nil, err
		}
		return again(x), nil
	case n.Is("ConstantOfShape"):
		known, ok := e.facts.Known(n.In[0])
		if !ok || l.axis >= len(known.Ints) {
			break
		}
		if entry, ok := known.Ints[l.axis].Const(); !ok || entry != int64(l.was.Len()) {
			break
		}
		target, err := e.withEntries(n.In[0], known, map[int]int64{l.axis: int64(l.is.Len())})
		if err != nil {
			return nil, err
		}
		return again(target), nil
	}
	return nil, fmt.Errorf("%v gives it, and how many heads that has cannot be changed", n)
}

// settleAt changes the heads of one name.
func (e *editor) settleAt(v *graph.Value, l link) error {
	was, is := l.was, l.is
	was.Axis, is.Axis = l.axis, l.axis
	n := v.Producer
	switch {
	case v.IsInput:
		if v.Info.GetType().GetTensorType().GetShape() == nil {
			return nil // inputs of bodies need not be declared
		}
		typ, err := e.resize(v, l.axis, int64(was.Len()), int64(is.Len()), false)
		if err != nil {
			return err
		}
		e.setType(v, typ)
		return nil
	case v.Const() != nil:
		t, err := l.pick(v.Const())
		if err != nil {
			return err
		}
		return e.substitute(v, t)
	case len(n.Subgraphs) > 0:
		return nil // what comes out follows from what bodies give
	case n.Is("Identity"), n.Is("Cast"):
		if _, known := e.links[n.In[0]]; known || e.settled[n.In[0]] {
			return nil
		}
		e.settled[n.In[0]] = true
		return e.settleAt(n.In[0], l)
	}
	return fmt.Errorf("%v gives it there, and how many heads that has cannot be changed", n)
}

// pick takes one head of each group. They must be equal: nothing says how else a constant would be fused.
func (l link) pick(t *graph.Tensor) (*graph.Tensor, error) {
	dims := slices.Clone(t.Dims())
	if l.axis >= len(dims) || dims[l.axis] != int64(l.was.Len()) {
		return nil, fmt.Errorf("the constant has dims %v, want %d heads on axis %d", dims, l.was.Len(), l.axis)
	}
	old, err := t.Bytes()
	if err != nil {
		return nil, err
	}
	first := map[int]int{}
	var take rows
	outer, inner := int64(1), int64(1)
	for a, d := range dims {
		if a < l.axis {
			outer *= d
		}
	}
	if outer > 0 {
		inner = int64(len(old)) / outer / dims[l.axis]
	}
	for h, g := range l.heads {
		f, ok := first[g]
		if !ok {
			first[g] = h
			take = append(take, []term{{at: h, weight: 1}})
			continue
		}
		for o := range outer {
			at := func(head int) []byte { return old[(o*dims[l.axis]+int64(head))*inner:][:inner] }
			if !bytes.Equal(at(f), at(h)) {
				return nil, fmt.Errorf("the constant differs between heads %d and %d, which are fused", f, h)
			}
		}
	}
	return mix(t, l.axis, take)
}

// substitute gives all readers of a constant another.
func (e *editor) substitute(v *graph.Value, t *graph.Tensor) error {
	if v.Init != nil {
		for _, u := range v.Users() {
			if u.Node == nil || len(u.Node.Subgraphs) == 0 {
				return fmt.Errorf("the constant is also read elsewhere")
			}
		}
		e.p.SetTensor(v, t)
		return nil
	}
	if len(v.Users()) > 1 {
		return fmt.Errorf("the constant is also read elsewhere")
	}
	data, err := t.Bytes()
	if err != nil {
		return err
	}
	pb := graph.NewTensor("", t.Dims(), data)
	dtype := int32(t.DType())
	pb.Proto.DataType = &dtype
	e.p.SetAttr(v.Producer, graph.TensorAttr("value", pb))
	return nil
}
