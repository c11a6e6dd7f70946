package graph

import (
	"fmt"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// The functions in this file change a graph one step at a time and keep producers and users in agreement. A rewrite
// does not call them: it prepares a Patch, which is applied whole or not at all.

// define adds a value to the scope of g.
func (g *Graph) define(v *Value) error {
	if v.Name == "" {
		return fmt.Errorf("a value without a name")
	}
	if _, ok := g.values[v.Name]; ok {
		return fmt.Errorf("value %q is defined twice", v.Name)
	}
	v.Graph = g
	g.values[v.Name] = v
	return nil
}

// AddInput declares a graph input with the given type.
func (g *Graph) AddInput(name string, typ *onnxpb.TypeProto) *Value {
	v := &Value{Name: name, IsInput: true, Info: &onnxpb.ValueInfoProto{Name: &name, Type: typ}}
	must(g.define(v))
	g.Inputs = append(g.Inputs, v)
	return v
}

// AddInit adds an initializer; its name is the tensor's.
func (g *Graph) AddInit(t *Tensor) *Value {
	v := &Value{Name: t.Name(), Init: t}
	must(g.define(v))
	t.model = g.Model
	g.Model.lazy[t.Proto] = t
	g.Inits = append(g.Inits, v)
	return v
}

// AddNode appends a node; outputs are created under the given names ("" omits one). The caller keeps topological
// order, or calls Sort.
func (g *Graph) AddNode(op, domain, name string, in []*Value, out []string, attrs ...*onnxpb.AttributeProto) *Node {
	n := &Node{Name: name, OpType: op, Domain: domain, Graph: g, Proto: &onnxpb.NodeProto{Attribute: attrs}}
	for i, v := range in {
		n.In = append(n.In, v)
		if v != nil {
			v.users = append(v.users, Use{Node: n, Index: i})
		}
	}
	for i, o := range out {
		if o == "" {
			n.Out = append(n.Out, nil)
			continue
		}
		v := &Value{Name: o, Producer: n, Index: i}
		must(g.define(v))
		n.Out = append(n.Out, v)
	}
	g.Nodes = append(g.Nodes, n)
	return n
}

// AddOutput makes v an output of g; typ may be nil when v is already described.
func (g *Graph) AddOutput(v *Value, typ *onnxpb.TypeProto) {
	if typ != nil {
		v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: typ}
	}
	v.users = append(v.users, Use{Graph: g, Index: len(g.Outputs)})
	g.Outputs = append(g.Outputs, v)
}

// ClearOutputs leaves g without outputs, for a caller that declares others. What they were keeps its name.
func (g *Graph) ClearOutputs() {
	for _, o := range g.Outputs {
		o.users = slices.DeleteFunc(o.users, func(u Use) bool { return u.Node == nil && u.Graph == g })
	}
	g.Outputs = nil
}

// SetInput makes v (nil: omitted) input i of n.
func (n *Node) SetInput(i int, v *Value) {
	for len(n.In) <= i {
		n.In = append(n.In, nil)
	}
	if old := n.In[i]; old != nil {
		old.users = slices.DeleteFunc(old.users, func(u Use) bool { return u.Node == n && u.Index == i })
	}
	n.In[i] = v
	if v != nil {
		v.users = append(v.users, Use{Node: n, Index: i})
	}
}

// SetAttr sets or replaces an attribute. Nodes that were made alike share the list of theirs, so a new one is made.
func (n *Node) SetAttr(a *onnxpb.AttributeProto) {
	n.Proto.Attribute = slices.Clone(n.Proto.Attribute)
	for i, old := range n.Proto.Attribute {
		if old.GetName() == a.GetName() {
			n.Proto.Attribute[i] = a
			return
		}
	}
	n.Proto.Attribute = append(n.Proto.Attribute, a)
}

// RemoveAttr drops an attribute if it is there.
func (n *Node) RemoveAttr(name string) {
	n.Proto.Attribute = slices.DeleteFunc(slices.Clone(n.Proto.Attribute), func(a *onnxpb.AttributeProto) bool { return a.GetName() == name })
}

// unlinkNode takes a node whose outputs nobody uses off everything but the list of nodes.
func (g *Graph) unlinkNode(n *Node) {
	for i := range n.In {
		n.SetInput(i, nil)
	}
	for _, body := range n.bodies() {
		body.unlink()
	}
	for _, o := range n.Out {
		if o != nil {
			delete(g.values, o.Name)
		}
	}
}

// unlink takes a dying body's nodes and outputs off the user lists of outer values.
func (g *Graph) unlink() {
	for _, o := range g.Outputs {
		o.users = slices.DeleteFunc(o.users, func(u Use) bool { return u.Node == nil && u.Graph == g })
	}
	for _, n := range g.Nodes {
		for i := range n.In {
			n.SetInput(i, nil)
		}
		for _, body := range n.bodies() {
			body.unlink()
		}
	}
}

// bodies lists the subgraphs of n in attribute order.
func (n *Node) bodies() []*Graph {
	var out []*Graph
	for _, a := range n.Proto.Attribute {
		out = append(out, n.Subgraphs[a.GetName()]...)
	}
	return out
}

// RemoveDead removes nodes whose outputs nobody uses and initializers without users, repeatedly and in bodies too, and
// returns how many of each went. Graph inputs stay: they are the model's signature. keep names nodes and initializers that were dead
// before (a rewrite does not tidy what it did not touch); nil keeps none.
func (g *Graph) RemoveDead(keep map[any]bool) (nodes, inits int) {
	for again := true; again; {
		again = false
		gone := map[*Node]bool{}
		for _, n := range slices.Backward(g.Nodes) {
			if keep[n] || !n.dead() {
				for _, b := range n.bodies() {
					bodyNodes, bodyInits := b.RemoveDead(keep)
					nodes, inits = nodes+bodyNodes, inits+bodyInits
					again = again || bodyNodes > 0
				}
				continue
			}
			g.unlinkNode(n)
			gone[n] = true
			nodes++
			again = true
		}
		g.Nodes = slices.DeleteFunc(g.Nodes, func(n *Node) bool { return gone[n] })
	}
	g.Inits = slices.DeleteFunc(g.Inits, func(v *Value) bool {
		if len(v.users) > 0 || keep[v] || v.IsInput {
			return false
		}
		delete(g.values, v.Name)
		delete(g.Model.lazy, v.Init.Proto)
		inits++
		return true
	})
	return nodes, inits
}

// RemoveWeight removes an initializer that nothing reads any more, also from the inputs where it is listed there too. One
// that is read stays.
func (g *Graph) RemoveWeight(v *Value) {
	if v.Init == nil || v.Graph != g || len(v.users) > 0 {
		return
	}
	same := func(w *Value) bool { return w == v }
	g.Inits = slices.DeleteFunc(g.Inits, same)
	g.Inputs = slices.DeleteFunc(g.Inputs, same)
	delete(g.values, v.Name)
	delete(g.Model.lazy, v.Init.Proto)
}

// Dead lists the nodes and initializers (as *Node and *Value) that RemoveDead would remove at once.
func (g *Graph) Dead() map[any]bool {
	out := map[any]bool{}
	g.eachGraph(func(g *Graph) {
		for _, n := range g.Nodes {
			if n.dead() {
				out[n] = true
			}
		}
		for _, v := range g.Inits {
			if len(v.users) == 0 && !v.IsInput {
				out[v] = true
			}
		}
	})
	return out
}

func (n *Node) dead() bool {
	for _, o := range n.Out {
		if o != nil && len(o.users) > 0 {
			return false
		}
	}
	return true
}

// Sort brings g.Nodes into topological order and moves no node that need not move: each is placed after the nodes it
// depends on, otherwise as it was. A cycle is an error that names one node on it.
func (g *Graph) Sort() error {
	const (
		unseen = iota
		open
		done
	)
	state := make(map[*Node]int, len(g.Nodes))
	order := make([]*Node, 0, len(g.Nodes))
	type frame struct {
		n    *Node
		deps []*Node
	}
	for _, root := range g.Nodes {
		if state[root] != unseen {
			continue
		}
		stack := []frame{{root, g.dependencies(root)}}
		state[root] = open
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if len(f.deps) == 0 {
				state[f.n] = done
				order = append(order, f.n)
				stack = stack[:len(stack)-1]
				continue
			}
			d := f.deps[0]
			f.deps = f.deps[1:]
			switch state[d] {
			case open:
				return fmt.Errorf("the graph has a cycle through node %v", d)
			case unseen:
				state[d] = open
				stack = append(stack, frame{d, g.dependencies(d)})
			}
		}
	}
	g.Nodes = order
	return nil
}

// dependencies lists the nodes of g that n, or a body inside it, reads from.
func (g *Graph) dependencies(n *Node) []*Node {
	var deps []*Node
	add := func(v *Value) {
		if v != nil && v.Graph == g && v.Producer != nil {
			deps = append(deps, v.Producer)
		}
	}
	for _, v := range n.In {
		add(v)
	}
	for _, body := range n.bodies() {
		for _, o := range body.Outputs {
			add(o)
		}
		body.All(func(m *Node) bool {
			for _, v := range m.In {
				add(v)
			}
			for _, b := range m.bodies() {
				for _, o := range b.Outputs {
					add(o)
				}
			}
			return true
		})
	}
	return deps
}

// FreshName returns base, or base with a number, such that no scope that could see it has the name.
func (g *Graph) FreshName(base string) string {
	taken := func(s string) bool {
		if g.Value(s) != nil {
			return true
		}
		clash := false
		g.All(func(n *Node) bool {
			for _, b := range n.bodies() {
				if _, ok := b.values[s]; ok {
					clash = true
				}
			}
			return !clash
		})
		return clash
	}
	name := base
	for i := 1; taken(name); i++ {
		name = fmt.Sprintf("%s_%d", base, i)
	}
	return name
}

func must(err error) {
	if err != nil {
		panic("graph: " + err.Error()) // a caller's bug: files are checked while loading
	}
}
