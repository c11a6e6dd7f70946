package unfuse

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// functionOf finds the model's function that a node calls, nil when it calls none.
func functionOf(m *graph.Model, n *graph.Node) *onnxpb.FunctionProto {
	for _, f := range m.Proto.Functions {
		if f.GetName() == n.OpType && sameDomain(f.GetDomain(), n.Domain) && f.GetOverload() == n.Proto.GetOverload() {
			return f
		}
	}
	return nil
}

func sameDomain(a, b string) bool { return a == b || a+b == "ai.onnx" }

// maxNodes bounds what functions that call functions may grow to.
const maxNodes = 1 << 20

// inlineAll puts the bodies of functions in the place of their calls, one level deep.
func inlineAll(m *graph.Model, only func(*graph.Node) bool) ([]Expansion, map[*graph.Node]string, error) {
	if len(m.Proto.Functions) == 0 {
		return nil, nil, nil
	}
	refused := map[*graph.Node]string{}
	s := &session{m: m, p: graph.NewPatch(m.Graph)}
	var done []Expansion
	total := 0
	var calls []*graph.Node
	m.Graph.All(func(n *graph.Node) bool {
		total++
		if functionOf(m, n) != nil && (only == nil || only(n)) {
			calls = append(calls, n)
		}
		return true
	})
	for _, n := range calls {
		f := functionOf(m, n)
		if err := inlinable(m, f, n); err != nil {
			refused[n] = err.Error()
			continue
		}
		if total += len(f.Node); total > maxNodes {
			refused[n] = fmt.Sprintf("inlining function %q would make more than %d nodes", f.GetName(), maxNodes)
			continue
		}
		done = append(done, *s.inline(n, f))
	}
	if len(done) == 0 {
		return nil, refused, nil
	}
	keep := m.Graph.Dead()
	if _, err := s.p.Apply(); err != nil {
		return nil, nil, fmt.Errorf("inlining functions: %w", err)
	}
	m.Graph.RemoveDead(keep)
	return done, refused, nil
}

// inlinable refuses a function whose body means something else in the main graph, or that a call hands a subgraph.
func inlinable(m *graph.Model, f *onnxpb.FunctionProto, call *graph.Node) error {
	if len(call.Subgraphs) > 0 {
		return fmt.Errorf("the call hands function %q a subgraph, which is not inlined", f.GetName())
	}
	used := map[string]bool{}
	for _, n := range f.Node {
		if len(n.Output) == 0 {
			return fmt.Errorf("function %q holds %s %q without outputs", f.GetName(), n.GetOpType(), n.GetName())
		}
		used[n.GetDomain()] = true
		for _, a := range n.Attribute {
			if a.G != nil || len(a.Graphs) > 0 {
				return fmt.Errorf("function %q holds %s %q with a subgraph, which is not inlined", f.GetName(), n.GetOpType(), n.GetName())
			}
		}
	}
	for _, o := range f.OpsetImport {
		uses := false
		for d := range used {
			uses = uses || sameDomain(d, o.GetDomain())
		}
		if v := m.Opset(o.GetDomain()); uses && v != o.GetVersion() {
			return fmt.Errorf("function %q imports opset %d of %q, the model %d", f.GetName(), o.GetVersion(), domainName(o.GetDomain()), v)
		}
	}
	return nil
}

func domainName(d string) string {
	if d == "" {
		return "ai.onnx"
	}
	return d
}

// inline prepares a call's body in its place. Names are put under the call's.
func (s *session) inline(n *graph.Node, f *onnxpb.FunctionProto) *Expansion {
	defer s.p.In(n.Graph)()
	w := &writer{session: s, n: n, base: baseName(n), exp: &Expansion{Op: opName(n), Node: n.String(), Key: key(n), node: n, inputs: slices.Clone(n.In)}}
	values := map[string]*graph.Value{"": nil}
	for i, name := range f.Input {
		values[name] = n.Input(i)
	}
	for _, pb := range f.Node {
		var in []*graph.Value
		for _, name := range pb.Input {
			in = append(in, values[name])
		}
		name := pb.GetName()
		if name == "" {
			name = pb.GetOpType()
		}
		out := s.p.Node(pb.GetOpType(), pb.GetDomain(), w.base+"/"+strings.TrimPrefix(name, "/"), len(pb.Output), in, arguments(pb, f, n)...)
		node := out[0].Producer
		if pb.GetOverload() != "" {
			node.Proto.Overload = pb.Overload
		}
		w.exp.Nodes = append(w.exp.Nodes, node)
		for i, o := range pb.Output {
			if o == "" {
				node.Out[i] = nil
				continue
			}
			values[o] = out[i]
		}
	}
	for i, name := range f.Output {
		if v := values[name]; v != nil {
			w.result(i, v)
		}
	}
	w.commit()
	return w.exp
}

// arguments are the attributes of a node in a function: those that name an attribute of the function take what the call
// gives, else the function's default, else none.
func arguments(pb *onnxpb.NodeProto, f *onnxpb.FunctionProto, call *graph.Node) []*onnxpb.AttributeProto {
	var out []*onnxpb.AttributeProto
	for _, a := range pb.Attribute {
		if a.GetRefAttrName() == "" {
			out = append(out, a)
			continue
		}
		given := call.Attr(a.GetRefAttrName())
		for _, d := range f.AttributeProto {
			if given == nil && d.GetName() == a.GetRefAttrName() {
				given = d
			}
		}
		if given == nil {
			continue
		}
		name := a.GetName()
		out = append(out, &onnxpb.AttributeProto{
			Name: &name, Type: given.Type, F: given.F, I: given.I, S: given.S, T: given.T, SparseTensor: given.SparseTensor, Tp: given.Tp,
			Floats: given.Floats, Ints: given.Ints, Strings: given.Strings, Tensors: given.Tensors, SparseTensors: given.SparseTensors, TypeProtos: given.TypeProtos,
		})
	}
	return out
}

// dropUnusedFunctions forgets functions that nothing calls any more.
func dropUnusedFunctions(m *graph.Model) {
	if len(m.Proto.Functions) == 0 {
		return
	}
	type id struct{ domain, name, overload string }
	called := map[id]bool{}
	m.Graph.All(func(n *graph.Node) bool {
		called[id{n.Domain, n.OpType, n.Proto.GetOverload()}] = true
		return true
	})
	for again := true; again; {
		again = false
		for _, f := range m.Proto.Functions {
			if !called[id{f.GetDomain(), f.GetName(), f.GetOverload()}] {
				continue
			}
			for _, n := range f.Node {
				c := id{n.GetDomain(), n.GetOpType(), n.GetOverload()}
				again = again || !called[c]
				called[c] = true
			}
		}
	}
	m.Proto.Functions = slices.DeleteFunc(m.Proto.Functions, func(f *onnxpb.FunctionProto) bool {
		return !called[id{f.GetDomain(), f.GetName(), f.GetOverload()}]
	})
}
