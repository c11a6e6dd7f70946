package graph

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// maxFaults bounds the list that Check returns.
const maxFaults = 20

// Check verifies every invariant of the package (see the package comment) and what the format asks of a whole model:
// each domain that a node or function uses is imported, functions are defined once, call each other without a cycle and
// have sound bodies, and tensors have the data that their dims promise. The error lists up to 20 faults. A nil error
// means that Save writes a structurally valid file; whether operators get the types they want is for the runtime to say.
func (m *Model) Check() error {
	c := &checker{model: m}
	if m.Proto == nil || m.Graph == nil {
		return errors.New("the model has no graph")
	}
	if m.Proto.Graph != nil {
		c.fault("Proto.Graph is set while the model is open")
	}
	c.imports("the model", m.Proto.OpsetImport)
	if m.Graph.Outer != nil || m.Graph.Owner != nil {
		c.fault("the main graph has an owner")
	}
	users := map[*Value][]Use{}
	c.graph(m.Graph, nil, users)
	c.users(users)
	c.functions()
	return errors.Join(c.faults...)
}

type checker struct {
	model  *Model
	graphs []*Graph // those visited
	faults []error
}

func (c *checker) fault(format string, args ...any) {
	switch {
	case len(c.faults) < maxFaults:
		c.faults = append(c.faults, fmt.Errorf(format, args...))
	case len(c.faults) == maxFaults:
		c.faults = append(c.faults, errors.New("and more"))
	}
}

// imports checks that no domain is imported in two versions.
func (c *checker) imports(who string, imports []*onnxpb.OperatorSetIdProto) {
	seen := map[string]int64{}
	for _, o := range imports {
		d := canonicalDomain(o.GetDomain())
		if v, ok := seen[d]; ok && v != o.GetVersion() {
			c.fault("%s imports domain %q as opset %d and as %d", who, domainName(d), v, o.GetVersion())
		}
		seen[d] = o.GetVersion()
	}
}

func domainName(d string) string {
	if d = canonicalDomain(d); d == "" {
		return "ai.onnx"
	}
	return d
}

func imported(imports []*onnxpb.OperatorSetIdProto, domain string) bool {
	return slices.ContainsFunc(imports, func(o *onnxpb.OperatorSetIdProto) bool {
		return canonicalDomain(o.GetDomain()) == canonicalDomain(domain)
	})
}

// graph checks one graph and the bodies inside it, and collects the uses of values. available holds what the graphs
// around it have computed when this one runs; nil for the main graph.
func (c *checker) graph(g *Graph, available map[*Value]bool, users map[*Value][]Use) {
	where := g.describe()
	if g.Model != c.model {
		c.fault("%s belongs to another model", where)
		return
	}
	if g.Proto == nil {
		c.fault("%s has no message", where)
		return
	}
	if slices.Contains(g.Inputs, nil) || slices.Contains(g.Inits, nil) || slices.Contains(g.Nodes, nil) {
		c.fault("%s: an input, initializer or node is nil", where)
		return
	}
	c.graphs = append(c.graphs, g)
	ready := map[*Value]bool{} // of this graph, computed so far
	defined := map[string]bool{}
	define := func(v *Value, what string) {
		switch {
		case v.Name == "":
			c.fault("%s: %s has no name", where, what)
		case g.values[v.Name] != v || v.Graph != g:
			c.fault("%s: %s %q is not the value of that name", where, what, v.Name)
		}
		defined[v.Name] = true
	}
	for _, v := range g.Inputs {
		if ready[v] {
			c.fault("%s: input %q is listed twice", where, v.Name)
		}
		if !v.IsInput || v.Producer != nil {
			c.fault("%s: input %q is not marked as one, or has a producer", where, v.Name)
		}
		define(v, "input")
		ready[v] = true
	}
	initialized := map[*Value]bool{}
	tensors := map[*onnxpb.TensorProto]bool{}
	for _, v := range g.Inits {
		if v.Init == nil || v.Init.Proto == nil || v.Producer != nil {
			c.fault("%s: initializer %q has no tensor, or has a producer", where, v.Name)
			continue
		}
		if initialized[v] || ready[v] && !v.IsInput {
			c.fault("%s: initializer %q is listed twice", where, v.Name)
		}
		if err := v.Init.checkData(); err != nil {
			c.fault("%s: initializer %q: %w", where, v.Name, err)
		}
		if tensors[v.Init.Proto] { // a message carries one name
			c.fault("%s: initializer %q shares its tensor with another", where, v.Name)
		}
		tensors[v.Init.Proto] = true
		define(v, "initializer")
		ready[v], initialized[v] = true, true
	}
	for _, s := range g.Proto.SparseInitializer {
		name := s.GetValues().GetName()
		if v := g.values[name]; v == nil || v.Producer != nil || v.Init != nil {
			c.fault("%s: sparse initializer %q is not the value of that name", where, name)
		} else {
			define(v, "sparse initializer")
			ready[v] = true
		}
	}
	for _, n := range g.Nodes {
		for i, v := range n.Out {
			if v == nil {
				continue
			}
			if v.Producer != n || v.Index != i || v.IsInput || v.Init != nil {
				c.fault("%s: %v: output %d, %q, does not name the node as its only producer", where, n, i, v.Name)
			}
			if defined[v.Name] {
				c.fault("%s: %v: output %q is defined twice", where, n, v.Name)
			}
			define(v, "output")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.values)) {
		if !defined[name] {
			c.fault("%s: value %q is in no list of the graph", where, name)
		}
	}

	for i, n := range g.Nodes {
		c.node(g, i, ready, available, users)
		for _, v := range n.Out {
			if v != nil {
				ready[v] = true
			}
		}
	}
	for i, v := range g.Outputs {
		if v == nil {
			c.fault("%s: output %d is missing", where, i)
			continue
		}
		users[v] = append(users[v], Use{Graph: g, Index: i})
		if c.visible(g, v, "%s: output %q", where, v.Name); !ready[v] && !available[v] {
			c.fault("%s: output %q: nothing produces it", where, v.Name)
		}
	}
}

func (c *checker) node(g *Graph, i int, ready, available map[*Value]bool, users map[*Value][]Use) {
	n, where := g.Nodes[i], g.describe()
	if n.Graph != g || n.Proto == nil {
		c.fault("%s: %v belongs to another graph, or has no message", where, n)
		return
	}
	if n.OpType == "" {
		c.fault("%s: node %d, %q, has no operator", where, i, n.Name)
	}
	// Opset imports came with IR version 3.
	if c.model.Proto.GetIrVersion() >= 3 && !imported(c.model.Proto.OpsetImport, n.Domain) {
		c.fault("%s: %v: the model does not import its domain %q", where, n, domainName(n.Domain))
	}
	for i, v := range n.In {
		if v == nil {
			continue
		}
		users[v] = append(users[v], Use{Node: n, Index: i})
		if c.visible(g, v, "%s: %v: input %d, %q", where, n, i, v.Name); !ready[v] && !available[v] {
			c.fault("%s: %v: input %d, %q, is not computed before the node: the order is wrong, or there is a cycle", where, n, i, v.Name)
		}
	}
	seen := map[string]bool{}
	for _, a := range n.Proto.Attribute {
		if seen[a.GetName()] {
			c.fault("%s: %v: attribute %q is given twice", where, n, a.GetName())
		}
		seen[a.GetName()] = true
		if want := len(a.Graphs) + presence(a.G != nil); len(n.Subgraphs[a.GetName()]) < want {
			c.fault("%s: %v: attribute %q holds a graph that the model does not know", where, n, a.GetName())
		}
	}
	if len(n.Subgraphs) == 0 {
		return
	}
	inner := make(map[*Value]bool, len(ready)+len(available))
	for _, m := range []map[*Value]bool{available, ready} {
		for v := range m {
			inner[v] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(n.Subgraphs)) {
		if !seen[name] {
			c.fault("%s: %v: the bodies %q have no attribute", where, n, name)
		}
		for _, b := range n.Subgraphs[name] {
			if b.Outer != g || b.Owner != n {
				c.fault("%s: %v: body %q does not name the node as its owner", where, n, name)
			}
			c.graph(b, inner, users)
		}
	}
}

func presence(b bool) int {
	if b {
		return 1
	}
	return 0
}

// visible checks that the name of v means v where g reads it.
func (c *checker) visible(g *Graph, v *Value, format string, args ...any) {
	if got := g.Value(v.Name); got != v {
		why := "is not in scope"
		if got != nil {
			why = "is hidden by another value of that name"
		}
		c.fault(format+" %s", append(args, why)...)
	}
}

// users compares the recorded users of every value with those found.
func (c *checker) users(found map[*Value][]Use) {
	for _, g := range c.graphs {
		for _, name := range slices.Sorted(maps.Keys(g.values)) {
			v := g.values[name]
			want := found[v]
			if len(v.users) != len(want) {
				c.fault("%s: value %q records %d uses, but has %d", g.describe(), v.Name, len(v.users), len(want))
				continue
			}
			count := map[Use]int{}
			for _, u := range want {
				count[u]++
			}
			for _, u := range v.users {
				if count[u]--; count[u] < 0 {
					c.fault("%s: value %q records a use that it does not have", g.describe(), v.Name)
				}
			}
		}
	}
}

// describe names the graph in messages.
func (g *Graph) describe() string {
	switch {
	case g.Owner == nil && g.Name == "":
		return "the graph"
	case g.Owner == nil:
		return fmt.Sprintf("graph %q", g.Name)
	}
	return fmt.Sprintf("body %q of %v", g.Name, g.Owner)
}

// functions checks the functions of the model, which stay messages.
func (c *checker) functions() {
	type key struct{ domain, name, overload string }
	byKey := map[key]*onnxpb.FunctionProto{}
	keyOf := func(f *onnxpb.FunctionProto) key {
		return key{canonicalDomain(f.GetDomain()), f.GetName(), f.GetOverload()}
	}
	for _, f := range c.model.Proto.Functions {
		if f.GetName() == "" {
			c.fault("a function of domain %q has no name", domainName(f.GetDomain()))
		}
		if byKey[keyOf(f)] != nil {
			c.fault("function %q of domain %q is defined twice", f.GetName(), domainName(f.GetDomain()))
		}
		byKey[keyOf(f)] = f
		if !imported(c.model.Proto.OpsetImport, f.GetDomain()) {
			c.fault("function %q: the model does not import its domain %q", f.GetName(), domainName(f.GetDomain()))
		}
		who := fmt.Sprintf("function %q", f.GetName())
		c.imports(who, f.OpsetImport)
		scope := map[string]bool{}
		for _, in := range f.Input {
			c.defineIn(scope, who, in)
		}
		c.body(who, f.Node, f.Output, scope, f.OpsetImport)
	}

	// A function that calls itself, through others or not, has no meaning: calls are expanded.
	state := map[*onnxpb.FunctionProto]int{}
	var visit func(f *onnxpb.FunctionProto)
	visit = func(f *onnxpb.FunctionProto) {
		state[f] = 1
		eachNode(f.Node, func(n *onnxpb.NodeProto) {
			callee := byKey[key{canonicalDomain(n.GetDomain()), n.GetOpType(), n.GetOverload()}]
			switch {
			case callee == nil:
			case state[callee] == 1:
				c.fault("function %q calls function %q, which leads back to it", f.GetName(), callee.GetName())
			case state[callee] == 0:
				visit(callee)
			}
		})
		state[f] = 2
	}
	for _, f := range c.model.Proto.Functions {
		if state[f] == 0 {
			visit(f)
		}
	}
}

// eachNode calls f for the nodes and those of their bodies.
func eachNode(nodes []*onnxpb.NodeProto, f func(*onnxpb.NodeProto)) {
	for _, n := range nodes {
		f(n)
		for _, a := range n.Attribute {
			for _, g := range bodiesOf(a) {
				eachNode(g.Node, f)
			}
		}
	}
}

// bodiesOf lists the graphs of an attribute message.
func bodiesOf(a *onnxpb.AttributeProto) []*onnxpb.GraphProto {
	if a.G == nil {
		return a.Graphs
	}
	return append([]*onnxpb.GraphProto{a.G}, a.Graphs...)
}

func (c *checker) defineIn(scope map[string]bool, who, name string) {
	if name != "" && scope[name] {
		c.fault("%s: value %q is defined twice", who, name)
	}
	scope[name] = true
}

// body checks the nodes of a function, or of a graph inside one: names are defined once and before they are used, and
// domains are imported. scope holds the names defined before.
func (c *checker) body(who string, nodes []*onnxpb.NodeProto, outputs []string, scope map[string]bool, imports []*onnxpb.OperatorSetIdProto) {
	for i, n := range nodes {
		label := fmt.Sprintf("%s: node %d, %s", who, i, n.GetOpType())
		if n.GetOpType() == "" {
			c.fault("%s has no operator", label)
		}
		if !imported(imports, n.GetDomain()) {
			c.fault("%s: the function does not import its domain %q", label, domainName(n.GetDomain()))
		}
		for _, in := range n.Input {
			if in != "" && !scope[in] {
				c.fault("%s: input %q is not computed before the node", label, in)
			}
		}
		for _, a := range n.Attribute {
			for _, g := range bodiesOf(a) {
				own := map[string]bool{}
				inner := make(map[string]bool, len(scope))
				for name := range scope {
					inner[name] = true
				}
				for _, in := range g.Input {
					c.defineIn(own, label, in.GetName())
					inner[in.GetName()] = true
				}
				for _, t := range g.Initializer {
					own[t.GetName()], inner[t.GetName()] = true, true
				}
				for _, s := range g.SparseInitializer {
					inner[s.GetValues().GetName()] = true
				}
				for _, m := range g.Node {
					for _, o := range m.Output {
						if o != "" {
							c.defineIn(own, label, o)
						}
						delete(inner, o) // hides an outer value from the start
					}
				}
				var outs []string
				for _, o := range g.Output {
					outs = append(outs, o.GetName())
				}
				c.body(label+", body "+a.GetName(), g.Node, outs, inner, imports)
			}
		}
		for _, o := range n.Output {
			if o != "" {
				c.defineIn(scope, label, o)
			}
		}
	}
	for _, o := range outputs {
		if !scope[o] {
			c.fault("%s: output %q: nothing produces it", who, o)
		}
	}
}
