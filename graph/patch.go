package graph

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// A Patch prepares a change beside a graph and applies it whole or not at all (the idea is tract's ModelPatch). New
// nodes and constants read existing values (taps); Replace hands the readers of an existing value to a new one
// (shunts); Expect states what must be known of a value afterwards (seams). Apply carries everything out, sorts, checks
// every invariant and every seam, and takes it all back when one fails.
type Patch struct {
	g      *Graph
	scope  *Graph          // where new nodes and constants go: g, or a body inside it
	values map[string]bool // names of values that are taken, in any scope that could see a new one
	named  map[string]bool // names of nodes; the runtime wants them to differ
	nodes  []*Node
	inits  []*Value
	inputs []*Value
	bodies []*Value // what the bodies of new nodes give
	edits  []func()
	seams  []seam
	shunts []shunt
}

type shunt struct {
	old, new *Value
	except   map[*Node]bool
}

type seam struct {
	v    *Value
	dims []Dim
}

// NewPatch starts a patch of g.
func NewPatch(g *Graph) *Patch {
	p := &Patch{g: g, scope: g, values: map[string]bool{}, named: map[string]bool{}}
	for s := g; s != nil; s = s.Outer {
		for name := range s.values {
			p.values[name] = true
		}
	}
	g.All(func(n *Node) bool {
		p.named[n.Name] = true
		for _, b := range n.bodies() {
			for name := range b.values {
				p.values[name] = true
			}
		}
		return true
	})
	return p
}

// In lets new nodes and constants go to scope, the patched graph or a body inside it, until the returned function is
// called. Their names are taken by no value of any scope, so that none is hidden.
func (p *Patch) In(scope *Graph) (back func()) {
	was := p.scope
	p.scope = scope
	return func() { p.scope = was }
}

// fresh returns base, or base with a number, such that it is not taken, and takes it.
func fresh(taken map[string]bool, base string) string {
	name := base
	for i := 1; taken[name]; i++ {
		name = fmt.Sprintf("%s_%d", base, i)
	}
	taken[name] = true
	return name
}

// Init prepares an initializer; the tensor's name is changed when it is taken.
func (p *Patch) Init(t *Tensor) *Value {
	name := fresh(p.values, t.Name())
	t.Proto.Name = &name
	g := p.scope
	for g.Outer != nil && p.weightsAreInputs() { // bodies have no inputs that nobody gives
		g = g.Outer
	}
	v := &Value{Name: name, Init: t, Graph: g}
	p.inits = append(p.inits, v)
	return v
}

// weightsAreInputs says that the model has an IR version before 4, in which every initializer is listed as an input too.
func (p *Patch) weightsAreInputs() bool { return p.g.Model.Proto.GetIrVersion() < 4 }

// Input prepares an input of the graph behind those that it has; the name is changed when it is taken.
func (p *Patch) Input(name string, typ *onnxpb.TypeProto) *Value {
	name = fresh(p.values, name)
	v := &Value{Name: name, IsInput: true, Graph: p.g, Info: &onnxpb.ValueInfoProto{Name: &name, Type: typ}}
	p.inputs = append(p.inputs, v)
	return v
}

// Ints prepares a one-dimensional int64 constant.
func (p *Patch) Ints(name string, x ...int64) *Value {
	return p.Init(NewTensor(name, []int64{int64(len(x))}, x))
}

// Node prepares a node with outs outputs and returns them; names of outputs come from the node's.
func (p *Patch) Node(op, domain, name string, outs int, in []*Value, attrs ...*onnxpb.AttributeProto) []*Value {
	n := &Node{Name: fresh(p.named, name), OpType: op, Domain: domain, Graph: p.scope, Proto: &onnxpb.NodeProto{Attribute: attrs}, In: slices.Clone(in)}
	for i := range outs {
		n.Out = append(n.Out, &Value{Name: fresh(p.values, fmt.Sprintf("%s_output_%d", n.Name, i)), Graph: p.scope, Producer: n, Index: i})
	}
	p.nodes = append(p.nodes, n)
	return n.Out
}

// Op prepares an ai.onnx node with one output.
func (p *Patch) Op(op, name string, in []*Value, attrs ...*onnxpb.AttributeProto) *Value {
	return p.Node(op, "", name, 1, in, attrs...)[0]
}

// If prepares a choice: what then makes in a body of its own where cond holds, else what els makes in another; both are
// tensors of type elem.
func (p *Patch) If(name string, elem onnxpb.TensorProto_DataType, cond *Value, then, els func() *Value) *Value {
	n := &Node{Name: fresh(p.named, name), OpType: "If", Graph: p.scope, Proto: &onnxpb.NodeProto{}, In: []*Value{cond}, Subgraphs: map[string][]*Graph{}}
	n.Out = []*Value{{Name: fresh(p.values, n.Name+"_output_0"), Graph: p.scope, Producer: n}}
	for _, b := range []struct {
		attr string
		make func() *Value
	}{{"then_branch", then}, {"else_branch", els}} {
		body := newGraph(p.g.Model, p.scope)
		typ := onnxpb.AttributeProto_GRAPH
		body.Owner, body.Name = n, n.Name+"/"+b.attr
		n.Proto.Attribute = append(n.Proto.Attribute, &onnxpb.AttributeProto{Name: &b.attr, Type: &typ, G: body.Proto})
		n.Subgraphs[b.attr] = []*Graph{body}
		back := p.In(body)
		v := b.make()
		v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: anyTensor(elem)}
		p.bodies = append(p.bodies, v)
		back()
	}
	p.nodes = append(p.nodes, n)
	return n.Out[0]
}

// anyTensor is the type of a tensor whose rank is left open.
func anyTensor(elem onnxpb.TensorProto_DataType) *onnxpb.TypeProto {
	e := int32(elem)
	return &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: &e}}}
}

// SetInput makes v input i of an existing node.
func (p *Patch) SetInput(n *Node, i int, v *Value) {
	p.edits = append(p.edits, func() { n.SetInput(i, v) })
}

// SetAttr sets an attribute of an existing node.
func (p *Patch) SetAttr(n *Node, a *onnxpb.AttributeProto) {
	p.edits = append(p.edits, func() { n.SetAttr(a) })
}

// RemoveAttr drops an attribute of an existing node.
func (p *Patch) RemoveAttr(n *Node, name string) {
	p.edits = append(p.edits, func() { n.RemoveAttr(name) })
}

// SetTensor gives an initializer new contents under its old name.
func (p *Patch) SetTensor(v *Value, t *Tensor) {
	t.Proto.Name = &v.Name
	p.edits = append(p.edits, func() {
		t.model = p.g.Model
		p.g.Model.lazy[t.Proto] = t
		v.Init = t
		if v.IsInput && v.Info != nil { // listed as an input too: its declaration follows
			v.Info = declaredLike(v, t)
		}
	})
}

// declaredLike declares v to be a tensor like t.
func declaredLike(v *Value, t *Tensor) *onnxpb.ValueInfoProto {
	dims := make([]any, len(t.Dims()))
	for i, d := range t.Dims() {
		dims[i] = d
	}
	return &onnxpb.ValueInfoProto{Name: &v.Name, Type: TensorType(t.DType(), dims...), MetadataProps: v.Info.GetMetadataProps()}
}

// SetType gives a value a declared type, nil removes it.
func (p *Patch) SetType(v *Value, typ *onnxpb.TypeProto) {
	p.edits = append(p.edits, func() {
		if typ == nil {
			v.Info = nil
			return
		}
		info := &onnxpb.ValueInfoProto{Name: &v.Name}
		if v.Info != nil {
			info.DocString, info.MetadataProps = v.Info.DocString, v.Info.MetadataProps
		}
		info.Type = typ
		v.Info = info
	})
}

// Replace hands every reader of old, except the given nodes, to new. When old is an output of its graph, new takes over
// its name, so that the graph's signature stays.
func (p *Patch) Replace(old, new *Value, except ...*Node) {
	ex := map[*Node]bool{}
	for _, n := range except {
		ex[n] = true
	}
	p.shunts = append(p.shunts, shunt{old, new, ex})
}

// Expect states the dimensions that inference must find for v once the patch is applied; a Dim of which inference knows
// nothing agrees with everything.
func (p *Patch) Expect(v *Value, dims []Dim) { p.seams = append(p.seams, seam{v, dims}) }

// Apply carries the patch out. On an error the graph is as it was.
func (p *Patch) Apply() (*Facts, error) {
	before := p.g.snapshot()
	facts, err := p.apply()
	if err != nil {
		before.restore(p.g)
		return nil, err
	}
	return facts, nil
}

// Commit is Apply for a patch without seams, whose caller asks for no facts: they are not inferred.
func (p *Patch) Commit() error {
	before := p.g.snapshot()
	if err := p.change(); err != nil {
		before.restore(p.g)
		return err
	}
	return nil
}

// change carries the patch out and checks the invariants.
func (p *Patch) change() error {
	for _, v := range p.inputs {
		if err := p.g.define(v); err != nil {
			return err
		}
		p.g.Inputs = append(p.g.Inputs, v)
	}
	for _, v := range p.inits {
		g := v.Graph
		if err := g.define(v); err != nil {
			return err
		}
		v.Init.model = g.Model
		g.Model.lazy[v.Init.Proto] = v.Init
		g.Inits = append(g.Inits, v)
		if p.weightsAreInputs() {
			v.IsInput = true
			v.Info = declaredLike(v, v.Init)
			g.Inputs = append(g.Inputs, v)
		}
	}
	for _, n := range p.nodes {
		for i, v := range n.In {
			if v != nil {
				v.users = append(v.users, Use{Node: n, Index: i})
			}
		}
		for _, o := range n.Out {
			if err := n.Graph.define(o); err != nil {
				return err
			}
		}
		n.Graph.Nodes = append(n.Graph.Nodes, n)
	}
	for _, v := range p.bodies {
		v.Graph.AddOutput(v, nil)
	}
	for _, e := range p.edits {
		e()
	}
	for _, s := range p.shunts {
		if err := s.carryOut(); err != nil {
			return err
		}
	}
	var err error
	p.g.eachGraph(func(g *Graph) { err = errors.Join(err, g.Sort()) })
	if err != nil {
		return err
	}
	return p.g.Model.Check()
}

func (p *Patch) apply() (*Facts, error) {
	if err := p.change(); err != nil {
		return nil, err
	}
	facts := Infer(p.g)
	for _, s := range p.seams {
		got, ok := facts.Shape(s.v)
		if !ok {
			continue
		}
		if len(got) != len(s.dims) {
			return nil, fmt.Errorf("after the change %q has %d axes, expected %d", s.v.Name, len(got), len(s.dims))
		}
		for i, d := range s.dims {
			if !got[i].Equal(d) && !got[i].Unknown() && !d.Unknown() {
				return nil, fmt.Errorf("after the change axis %d of %q is %v, expected %v", i, s.v.Name, got[i], d)
			}
		}
	}
	return facts, nil
}

// carryOut moves readers from one value to another.
func (s shunt) carryOut() error {
	g := s.old.Graph
	var moved []Use
	for _, u := range s.old.users {
		if u.Node == nil || !s.except[u.Node] {
			moved = append(moved, u)
		}
	}
	for _, u := range moved {
		if u.Node != nil {
			u.Node.SetInput(u.Index, s.new)
			continue
		}
		if s.new.IsOutput() || s.new.Producer == nil {
			return fmt.Errorf("output %q cannot be handed to %q", s.old.Name, s.new.Name)
		}
		s.old.users = slices.DeleteFunc(s.old.users, func(x Use) bool { return x == u })
		s.new.users = append(s.new.users, u)
		u.Graph.Outputs[u.Index] = s.new
		switch {
		case u.Graph == g && s.new.Graph == g:
			// The name goes with the role; the old value keeps a derived one.
			aside := g.FreshName(s.old.Name + "_inner")
			name := s.old.Name
			delete(g.values, s.old.Name)
			delete(g.values, s.new.Name)
			s.old.Name, s.new.Name = aside, name
			s.new.Info, s.old.Info = s.old.Info, nil
			g.values[aside], g.values[name] = s.old, s.new
		case u.Graph.Outer == nil:
			return fmt.Errorf("output %q cannot be handed to %q, which is inside a body", s.old.Name, s.new.Name)
		}
	}
	return nil
}

// snapshot is the linking of a graph and the bodies inside it, enough to undo any patch.
type snapshot struct {
	graphs map[*Graph]graphState
	nodes  map[*Node]nodeState
	values map[*Value]Value
	lazy   map[*onnxpb.TensorProto]*Tensor
}

type graphState struct {
	nodes           []*Node
	inits           []*Value
	inputs, outputs []*Value
	values          map[string]*Value
}

type nodeState struct {
	in    []*Value
	attrs []*onnxpb.AttributeProto
}

func (g *Graph) snapshot() *snapshot {
	s := &snapshot{map[*Graph]graphState{}, map[*Node]nodeState{}, map[*Value]Value{}, maps.Clone(g.Model.lazy)}
	var save func(g *Graph)
	save = func(g *Graph) {
		s.graphs[g] = graphState{slices.Clone(g.Nodes), slices.Clone(g.Inits), slices.Clone(g.Inputs), slices.Clone(g.Outputs), maps.Clone(g.values)}
		for _, v := range g.values {
			c := *v
			c.users = slices.Clone(v.users)
			s.values[v] = c
		}
		for _, n := range g.Nodes {
			s.nodes[n] = nodeState{slices.Clone(n.In), slices.Clone(n.Proto.Attribute)}
			for _, b := range n.bodies() {
				save(b)
			}
		}
	}
	save(g)
	return s
}

func (s *snapshot) restore(g *Graph) {
	for gr, st := range s.graphs {
		gr.Nodes, gr.Inits, gr.Inputs, gr.Outputs, gr.values = st.nodes, st.inits, st.inputs, st.outputs, st.values
	}
	for n, st := range s.nodes {
		n.In, n.Proto.Attribute = st.in, st.attrs
	}
	for v, c := range s.values {
		*v = c
	}
	g.Model.lazy = s.lazy
}
