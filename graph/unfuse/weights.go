package unfuse

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// weight says that a node of an expansion reads a constant of the fused operator: all of it, or a part in another form.
type weight struct {
	reader  *graph.Node
	operand int
	of      int // input of the fused operator
	part    *part
}

// part is what a new constant takes of an old one: elements from offset on under other dims, or all of them after the
// axes were permuted.
type part struct {
	perm   []int // nil: as they are
	offset int64
	dims   []int64
}

// elementSize is the bytes of an element of the types that weights have.
var elementSize = map[onnxpb.TensorProto_DataType]int64{float32Type: 4, float16Type: 2, bfloat16Type: 2, doubleType: 8}

// permuted returns the elements of a tensor of the given dims, size bytes each, with axis perm[i] in the place of axis i.
func permuted(raw []byte, dims []int64, perm []int, size int64) []byte {
	strides := make([]int64, len(dims))
	step := size
	for i := len(dims) - 1; i >= 0; i-- {
		strides[i] = step
		step *= dims[i]
	}
	out := make([]byte, 0, len(raw))
	var walk func(axis int, at int64)
	walk = func(axis int, at int64) {
		if axis == len(perm) {
			out = append(out, raw[at:at+size]...)
			return
		}
		p := perm[axis]
		if axis == len(perm)-1 && p == axis { // elements that lie side by side
			out = append(out, raw[at:at+size*dims[p]]...)
			return
		}
		for i := range dims[p] {
			walk(axis+1, at+i*strides[p])
		}
	}
	walk(0, 0)
	return out
}

func count(dims []int64) int64 {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	return n
}

// take makes the part of a tensor. The bytes are made when they are asked for.
func (p part) take(t *graph.Tensor, name string) (*graph.Tensor, error) {
	size, ok := elementSize[t.DType()]
	if !ok {
		return nil, fmt.Errorf("the elements of %q are %v, want a floating-point type", name, t.DType())
	}
	n := count(p.dims)
	if p.offset < 0 || n < 0 || n > t.Len()-p.offset || p.perm != nil && (len(p.perm) != len(t.Dims()) || n != t.Len()) {
		return nil, fmt.Errorf("a constant has dims %v, of which no %v can be taken", t.Dims(), p.dims)
	}
	return graph.Computed(name, t.DType(), p.dims, n*size, func() ([]byte, error) {
		raw, err := t.Bytes()
		switch {
		case err != nil:
			return nil, err
		case p.perm != nil:
			return permuted(raw, t.Dims(), p.perm, size), nil
		}
		return raw[p.offset*size : (p.offset+n)*size], nil
	}), nil
}

// put replaces the part in raw, the bytes of old, by what a changed tensor holds.
func (p part) put(raw []byte, old, changed *graph.Tensor) error {
	if changed.DType() != old.DType() || changed.Len() != count(p.dims) {
		return fmt.Errorf("a part %v of a constant of %v became %v %v", p.dims, old.DType(), changed.DType(), changed.Dims())
	}
	size := elementSize[old.DType()]
	data, err := changed.Bytes()
	if err != nil {
		return err
	}
	if p.perm != nil {
		dims, back := make([]int64, len(p.perm)), make([]int, len(p.perm))
		for i, a := range p.perm {
			dims[i], back[a] = old.Dims()[a], i
		}
		data = permuted(data, dims, back, size)
	}
	copy(raw[p.offset*size:], data)
	return nil
}

// part makes a constant of a part of input of, which must be a constant itself.
func (w *writer) part(of int, name string, p part) (*graph.Value, error) {
	t := w.in(of).Const()
	if t == nil {
		return nil, fmt.Errorf("input %d (%q) is computed, want a constant", of, w.in(of).Name)
	}
	taken, err := p.take(t, w.base+"/"+name)
	if err != nil {
		return nil, err
	}
	v := w.p.Init(taken)
	if w.derived == nil {
		w.derived = map[*graph.Value]weight{}
	}
	w.derived[v] = weight{of: of, part: &p}
	return v, nil
}

// stretch is elements from offset on of the vector that is input of, under the given dims: a new constant where the
// vector is one, cut out by nodes where it is computed.
func (w *writer) stretch(of int, name string, offset int64, dims ...int64) (*graph.Value, error) {
	if w.in(of).Const() != nil {
		return w.part(of, name, part{offset: offset, dims: dims})
	}
	v := w.slice(w.in(of), 0, offset, offset+count(dims), 1)
	if len(dims) > 1 {
		v = w.reshape(v, dims...)
	}
	return v, nil
}

// ErrNotCarried is returned by Constants.Carry when a changed constant has no counterpart in the fused model.
var ErrNotCarried = errors.New("the change cannot be carried back to the fused operators")

// Constants remembers the constants of an expanded model, so that a change of them can be carried back to a copy of the
// model in which the operators are still fused.
type Constants struct {
	expanded   *graph.Model
	expansions []Expansion
	before     map[*graph.Value]*graph.Tensor
	known      map[*graph.Node]bool
	inputs     map[*graph.Node][]*graph.Value
}

// Remember notes the constants of a model that Expand made, before somebody changes them.
func Remember(expanded *graph.Model, expansions []Expansion) *Constants {
	c := &Constants{
		expanded: expanded, expansions: expansions,
		before: map[*graph.Value]*graph.Tensor{}, known: map[*graph.Node]bool{}, inputs: map[*graph.Node][]*graph.Value{},
	}
	note := func(n *graph.Node) {
		if c.known[n] {
			return
		}
		c.known[n], c.inputs[n] = true, slices.Clone(n.In)
		for _, v := range n.In {
			if v != nil && v.Init != nil {
				c.before[v] = v.Init
			}
		}
	}
	expanded.Graph.All(func(n *graph.Node) bool {
		note(n)
		return true
	})
	return c
}

// place is an input of a node.
type place struct {
	node  *graph.Node
	input int
}

// changed returns the constant that input i of n of the expanded model reads now if it is another than before.
func (c *Constants) changed(n *graph.Node, i int) (*graph.Tensor, bool) {
	v := n.Input(i)
	return v.Const(), v != nil && (v != c.inputs[n][i] || v.Init != c.before[v])
}

// Carry gives fused, another copy of the model before it was expanded, the constants that the expanded model has now.
// Only constants of the expanded model may have changed since Remember. A change inside a function of the model, whose
// constants all calls share, is ErrNotCarried.
func (c *Constants) Carry(fused *graph.Model) error {
	by := map[string]*graph.Node{}
	fused.Graph.All(func(n *graph.Node) bool {
		by[key(n)] = n
		return true
	})
	p := graph.NewPatch(fused.Graph)
	inner := map[*graph.Node]bool{}
	changes := map[place]*graph.Tensor{}
	for i := len(c.expansions) - 1; i >= 0; i-- {
		e := &c.expansions[i]
		if err := c.gather(e, changes); err != nil {
			return err
		}
		for _, n := range e.Nodes {
			inner[n] = true
		}
	}
	for i := range c.expansions {
		e := &c.expansions[i]
		if inner[e.node] {
			continue // inside a function: gathered into the call
		}
		for input := range e.inputs {
			t := changes[place{e.node, input}]
			if t == nil {
				continue
			}
			n := by[e.Key]
			if n == nil {
				return fmt.Errorf("%s: %w: the fused model has no such node", e.Node, ErrNotCarried)
			}
			p.SetInput(n, input, p.Init(t))
		}
	}
	var failed error
	c.expanded.Graph.All(func(n *graph.Node) bool {
		if !c.known[n] || inner[n] {
			return true
		}
		for i := range n.In {
			if _, ok := c.changed(n, i); !ok {
				continue
			}
			o := by[key(n)]
			if o == nil {
				failed = fmt.Errorf("%v: %w: the fused model has no such node", n, ErrNotCarried)
				return false
			}
			v, err := c.copy(p, o.Graph, n.In[i])
			if err != nil {
				failed = fmt.Errorf("%v: %w", n, err)
				return false
			}
			p.SetInput(o, i, v)
		}
		return true
	})
	if failed != nil {
		return failed
	}
	keep := fused.Graph.Dead()
	if _, err := p.Apply(); err != nil {
		return err
	}
	fused.Graph.RemoveDead(keep)
	return nil
}

// copy makes a value of the expanded model in a graph of the fused one: a constant, or what nodes that were added make of
// one.
func (c *Constants) copy(p *graph.Patch, g *graph.Graph, v *graph.Value) (*graph.Value, error) {
	defer p.In(g)()
	switch {
	case v.Init != nil:
		u, err := clone(v.Init, v.Name)
		if err != nil {
			return nil, err
		}
		return p.Init(u), nil
	case v.Producer == nil || c.known[v.Producer]:
		if o := g.Value(v.Name); o != nil {
			return o, nil
		}
		return nil, fmt.Errorf("%w: it has no value %q", ErrNotCarried, v.Name)
	}
	n := v.Producer
	var in []*graph.Value
	for _, x := range n.In {
		y, err := c.copy(p, g, x)
		if err != nil {
			return nil, err
		}
		in = append(in, y)
	}
	return p.Node(n.OpType, n.Domain, n.Name, len(n.Out), in, n.Proto.Attribute...)[v.Index], nil
}

// clone makes a tensor of another model that has t's elements.
func clone(t *graph.Tensor, name string) (*graph.Tensor, error) {
	bits := int64(graph.ElementBits(t.DType()))
	if bits == 0 {
		return nil, fmt.Errorf("the elements of %q are %v, want numbers", t.Name(), t.DType())
	}
	return graph.Computed(name, t.DType(), t.Dims(), (bits*t.Len()+7)/8, t.Bytes), nil
}

// gather finds the constants of a fused operator that its expansion reads otherwise now. Expansions inside it were
// gathered before.
func (c *Constants) gather(e *Expansion, changes map[place]*graph.Tensor) error {
	mapped := map[place]weight{}
	for _, w := range e.weights {
		mapped[place{w.reader, w.operand}] = w
	}
	type piece struct {
		part
		changed *graph.Tensor
	}
	pieces := map[int][]piece{}
	for _, n := range e.Nodes {
		for i := range n.In {
			at := place{n, i}
			t, ok := changes[at]
			if !ok && c.known[n] {
				t, ok = c.changed(n, i)
			}
			if !ok {
				continue
			}
			w, known := mapped[at]
			old := (*graph.Tensor)(nil)
			if known {
				old = e.inputs[w.of].Const()
			}
			if t == nil || old == nil {
				return fmt.Errorf("%s: %w: input %d of %v is no constant of it", e.Node, ErrNotCarried, i, n)
			}
			if w.part == nil {
				u, err := clone(t, e.inputs[w.of].Name)
				if err != nil {
					return err
				}
				changes[place{e.node, w.of}] = u
				continue
			}
			pieces[w.of] = append(pieces[w.of], piece{*w.part, t})
		}
	}
	for of, list := range pieces {
		old := e.inputs[of].Const()
		size := elementSize[old.DType()] * old.Len()
		changes[place{e.node, of}] = graph.Computed(e.inputs[of].Name, old.DType(), old.Dims(), size, func() ([]byte, error) {
			b, err := old.Bytes()
			if err != nil {
				return nil, err
			}
			b = slices.Clone(b)
			for _, p := range list {
				if err := p.put(b, old, p.changed); err != nil {
					return nil, err
				}
			}
			return b, nil
		})
	}
	return nil
}
