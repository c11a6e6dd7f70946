package graph

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

// Each case breaks one thing in a sound model and states what Check must say.
func TestCheckFindsEveryFault(t *testing.T) {
	find := func(g *Graph, name string) *Node {
		var found *Node
		g.All(func(n *Node) bool {
			if n.Name == name {
				found = n
			}
			return found == nil
		})
		return found
	}
	for _, c := range []struct {
		name  string
		spoil func(m *Model)
		want  string
	}{
		{"no graph", func(m *Model) { m.Graph = nil }, "the model has no graph"},
		{"a second graph", func(m *Model) { m.Proto.Graph = &onnxpb.GraphProto{} }, "Proto.Graph is set while the model is open"},
		{"domain", func(m *Model) { m.Graph.Nodes[0].Domain = "com.example" }, `graph "g": Add "add": the model does not import its domain "com.example"`},
		{"domain in a body", func(m *Model) { find(m.Graph, "nested").Domain = "x" }, `body "then" of If "branch": If "nested": the model does not import its domain "x"`},
		{"two opsets", func(m *Model) {
			m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: proto.String("ai.onnx"), Version: proto.Int64(9)})
		}, `the model imports domain "ai.onnx" as opset 17 and as 9`},
		{"no opset", func(m *Model) { m.Proto.OpsetImport = m.Proto.OpsetImport[1:] }, `the model does not import its domain "ai.onnx"`},
		{"no operator", func(m *Model) { m.Graph.Nodes[0].OpType = "" }, `node 0, "add", has no operator`},
		{"renamed behind the graph", func(m *Model) { m.Graph.Value("y").Name = "why" }, `output "why" is not the value of that name`},
		{"unnamed", func(m *Model) { m.Graph.Value("z").Name = "" }, "output has no name"},
		{"two of a name", func(m *Model) { m.Graph.Value("z").Name = "y" }, `If "branch": output "y" is defined twice`},
		{"lost value", func(m *Model) { m.Graph.values["ghost"] = &Value{Name: "ghost", Graph: m.Graph} }, `value "ghost" is in no list of the graph`},
		{"producer", func(m *Model) { m.Graph.Value("y").Producer = m.Graph.Nodes[1] }, `Add "add": output 0, "y", does not name the node as its only producer`},
		{"index", func(m *Model) { m.Graph.Value("y").Index = 1 }, "does not name the node as its only producer"},
		{"output that is a weight", func(m *Model) { m.Graph.Value("y").Init = m.Graph.Value("w").Init }, "does not name the node as its only producer"},
		{"input mark", func(m *Model) { m.Graph.Value("x").IsInput = false }, `input "x" is not marked as one`},
		{"input twice", func(m *Model) { m.Graph.Inputs = append(m.Graph.Inputs, m.Graph.Inputs[0]) }, `input "x" is listed twice`},
		{"weight twice", func(m *Model) { m.Graph.Inits = append(m.Graph.Inits, m.Graph.Inits[0]) }, `initializer "w" is listed twice`},
		{"weight without a tensor", func(m *Model) { m.Graph.Value("w").Init = nil }, `initializer "w" has no tensor`},
		{"one tensor, two weights", func(m *Model) { m.Graph.Value("w").Init = m.Graph.Value("tiny").Init }, "shares its tensor with another"},
		{"dims", func(m *Model) { m.Graph.Value("w").Init.Proto.Dims = []int64{3} }, `initializer "w": dims [3] of FLOAT take 12 bytes, but the data has 2800`},
		{"sparse weight", func(m *Model) { delete(m.Graph.values, "sparse") }, `sparse initializer "sparse" is not the value of that name`},
		{"order", func(m *Model) { n := m.Graph.Nodes; n[0], n[1] = n[1], n[0] }, `body "" of If "branch": output "y": nothing produces it`},
		{"order seen from a body", func(m *Model) { n := m.Graph.Nodes; n[0], n[1] = n[1], n[0] }, `Mul → "innerOut": input 0, "y", is not computed before the node`},
		{"cycle", func(m *Model) { m.Graph.Nodes[0].SetInput(0, m.Graph.Value("end")) }, `Add "add": input 0, "end", is not computed before the node: the order is wrong, or there is a cycle`},
		{"self", func(m *Model) { m.Graph.Nodes[0].SetInput(0, m.Graph.Value("y")) }, `input 0, "y", is not computed before`},
		{"value of a body outside it", func(m *Model) { m.Graph.Nodes[3].SetInput(0, find(m.Graph, "big").Out[0]) }, `input 0, "c" is not in scope`},
		{"value of another graph", func(m *Model) { m.Graph.Nodes[0].SetInput(0, &Value{Name: "x", Graph: m.Graph}) }, `input 0, "x" is hidden by another value of that name`},
		{"hidden by a body", func(m *Model) {
			body := find(m.Graph, "branch").Subgraphs["then_branch"][0]
			body.AddInit(NewTensor("y", nil, []float32{1}))
		}, `input 0, "y" is hidden by another value of that name`},
		{"user not recorded", func(m *Model) { m.Graph.Value("w").users = nil }, `value "w" records 0 uses, but has 1`},
		{"user too many", func(m *Model) {
			v := m.Graph.Value("w")
			v.users = append(v.users, v.users[0])
		}, `value "w" records 2 uses, but has 1`},
		{"wrong user", func(m *Model) { m.Graph.Value("w").users[0].Index = 7 }, `value "w" records a use that it does not have`},
		{"output of nothing", func(m *Model) { m.Graph.Outputs[0] = &Value{Name: "q", Graph: m.Graph} }, `output "q": nothing produces it`},
		{"missing output", func(m *Model) { m.Graph.Outputs[0] = nil }, "output 0 is missing"},
		{"node of another graph", func(m *Model) { m.Graph.Nodes[0].Graph = nil }, `Add "add" belongs to another graph`},
		{"body without an attribute", func(m *Model) { m.Graph.Nodes[1].RemoveAttr("then_branch") }, `the bodies "then_branch" have no attribute`},
		{"attribute without its body", func(m *Model) { delete(m.Graph.Nodes[1].Subgraphs, "then_branch") }, `attribute "then_branch" holds a graph that the model does not know`},
		{"body of another node", func(m *Model) { m.Graph.Nodes[1].Subgraphs["then_branch"][0].Owner = m.Graph.Nodes[0] }, `body "then_branch" does not name the node as its owner`},
		{"body of another model", func(m *Model) { m.Graph.Nodes[1].Subgraphs["then_branch"][0].Model = nil }, "belongs to another model"},
		{"attribute twice", func(m *Model) {
			n := m.Graph.Nodes[0]
			n.Proto.Attribute = []*onnxpb.AttributeProto{IntAttr("axis", 0), IntAttr("axis", 1)}
		}, `attribute "axis" is given twice`},
		{"owned main graph", func(m *Model) { m.Graph.Owner = m.Graph.Nodes[0] }, "the main graph has an owner"},
		{"nil", func(m *Model) { m.Graph.Nodes[0] = nil }, "an input, initializer or node is nil"},
		{"no message", func(m *Model) { m.Graph.Proto = nil }, "has no message"},

		{"function twice", func(m *Model) { m.Proto.Functions = append(m.Proto.Functions, m.Proto.Functions[0]) }, `function "Twice" of domain "org.example" is defined twice`},
		{"function without a name", func(m *Model) { m.Proto.Functions[0].Name = nil }, `a function of domain "org.example" has no name`},
		{"domain of a function", func(m *Model) { m.Proto.Functions[0].Domain = proto.String("q") }, `function "Twice": the model does not import its domain "q"`},
		{"domain in a function", func(m *Model) { m.Proto.Functions[0].OpsetImport = nil }, `function "Twice": node 0, Constant: the function does not import its domain "ai.onnx"`},
		{"opsets of a function", func(m *Model) {
			f := m.Proto.Functions[0]
			f.OpsetImport = append(f.OpsetImport, &onnxpb.OperatorSetIdProto{Version: proto.Int64(1)})
		}, `function "Twice" imports domain "ai.onnx" as opset 17 and as 1`},
		{"order in a function", func(m *Model) {
			n := m.Proto.Functions[0].Node
			n[0], n[1] = n[1], n[0]
		}, `function "Twice": node 0, Add: input "k" is not computed before the node`},
		{"function input twice", func(m *Model) { m.Proto.Functions[0].Input[1] = "a" }, `function "Twice": value "a" is defined twice`},
		{"value twice in a function", func(m *Model) { m.Proto.Functions[0].Node[1].Output[0] = "k" }, `value "k" is defined twice`},
		{"function output", func(m *Model) { m.Proto.Functions[0].Output[0] = "q" }, `function "Twice": output "q": nothing produces it`},
		{"no operator in a function", func(m *Model) { m.Proto.Functions[0].Node[0].OpType = nil }, `node 0,  has no operator`},
		{"body in a function", func(m *Model) {
			f := m.Proto.Functions[0]
			body := &onnxpb.GraphProto{Node: []*onnxpb.NodeProto{nodeProto("Neg", "", []string{"nowhere"}, []string{"r"})}, Output: []*onnxpb.ValueInfoProto{floatInfo("s")}}
			f.Node = append(f.Node, nodeProto("If", "", []string{"c"}, []string{"p"}, graphAttr("then_branch", body)))
		}, `node 2, If, body then_branch: node 0, Neg: input "nowhere" is not computed before the node`},
		{"function that calls itself", func(m *Model) {
			f := m.Proto.Functions[0]
			f.OpsetImport = append(f.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: f.Domain, Version: proto.Int64(1)})
			call := nodeProto("Twice", "", []string{"a", "b", "c"}, []string{"o2"})
			call.Domain, call.Overload = f.Domain, f.Overload
			f.Node = append(f.Node, call)
		}, `function "Twice" calls function "Twice", which leads back to it`},
	} {
		m, err := Read("m", serialise(t, richModel()))
		if err != nil {
			t.Fatal(err)
		}
		checked(t, m)
		c.spoil(m)
		if err := m.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant it to say %q", c.name, err, c.want)
		}
	}
}

func TestCheckStopsCounting(t *testing.T) {
	m, err := Read("m", serialise(t, smallModel(rawTensor("w", 1, 0))))
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		m.Graph.Nodes = append(m.Graph.Nodes, &Node{OpType: "Neg"})
	}
	if lines := strings.Split(m.Check().Error(), "\n"); len(lines) != maxFaults+1 || lines[maxFaults] != "and more" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

// A body may reuse a name of the graph around it for a value of its own.
func TestBodiesMayHideNames(t *testing.T) {
	pb := smallModel(rawTensor("w", 1, 0))
	body := &onnxpb.GraphProto{
		Node:   []*onnxpb.NodeProto{nodeProto("Neg", "", []string{"x"}, []string{"w"}), nodeProto("Neg", "", []string{"w"}, []string{"o"})},
		Output: []*onnxpb.ValueInfoProto{floatInfo("o")},
	}
	pb.Graph.Node = append(pb.Graph.Node, nodeProto("If", "if", []string{"x"}, []string{"z"}, graphAttr("then_branch", body)))
	m, err := Read("m", serialise(t, pb))
	if err != nil {
		t.Fatal(err)
	}
	checked(t, m)
	if got := len(m.Graph.Value("w").Users()); got != 1 {
		t.Errorf("w of the main graph has %d users, want the Add alone", got)
	}
}

func TestEditsKeepTheInvariants(t *testing.T) {
	m, err := Read("m", serialise(t, richModel()))
	if err != nil {
		t.Fatal(err)
	}
	g := m.Graph
	step := func(what string, f func()) {
		t.Helper()
		f()
		if err := m.Check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	var neg *Node
	step("AddInput", func() { g.AddInput("extra", TensorType(onnxpb.TensorProto_FLOAT)) })
	step("AddInit", func() { g.AddInit(NewTensor(g.FreshName("w"), nil, []float32{1})) })
	step("AddNode", func() {
		neg = g.AddNode("Neg", "", "neg", []*Value{g.Value("w_1"), nil, g.Value("w_1")}, []string{"n", "", "n2"}, IntAttr("a", 1))
	})
	step("SetInput", func() { neg.SetInput(4, g.Value("end")); neg.SetInput(0, g.Value("extra")); neg.SetInput(1, nil) })
	if users := g.Value("w_1").Users(); len(users) != 1 || users[0] != (Use{Node: neg, Index: 2}) {
		t.Errorf("users of w_1: %v", users)
	}
	step("SetAttr", func() { neg.SetAttr(IntAttr("a", 2)); neg.SetAttr(IntAttr("b", 3)); neg.RemoveAttr("none") })
	if neg.Int("a", 0) != 2 || neg.Int("b", 0) != 3 || len(neg.Proto.Attribute) != 2 {
		t.Errorf("attributes %v", neg.Proto.Attribute)
	}
	step("Sort", func() {
		g.Nodes[0], g.Nodes[len(g.Nodes)-1] = g.Nodes[len(g.Nodes)-1], g.Nodes[0]
		if err := g.Sort(); err != nil {
			t.Fatal(err)
		}
	})
	dead := g.Dead()
	if !dead[neg] || !dead[g.Value("tiny")] || dead[g.Value("y").Producer] || dead[g.Value("asInput")] {
		t.Errorf("dead: %v", dead)
	}
	step("RemoveDead with keep", func() {
		if nodes, inits := g.RemoveDead(dead); nodes+inits != 0 {
			t.Errorf("%d nodes and %d weights went that were to stay", nodes, inits)
		}
	})
	step("RemoveDead", func() { // neg, and a node of a body
		nodes, _ := g.RemoveDead(nil)
		if nodes != 2 || g.Value("n") != nil || g.Value("w_1") != nil || g.Value("w") == nil || g.Value("asInput") == nil {
			t.Errorf("%d nodes went", nodes)
		}
	})
	// Without its reader the If goes, and with the bodies go the uses of y and of the outer graph's weights.
	step("RemoveDead of bodies", func() {
		list := g.NodeNamed("list")
		for i, o := range g.Outputs {
			if o == list.Out[0] {
				g.Outputs[i] = g.Value("x")
				g.Value("x").users = append(g.Value("x").users, Use{Graph: g, Index: i})
				list.Out[0].users = nil
			}
		}
		nodes, _ := g.RemoveDead(nil)
		if nodes != 3 || len(g.Nodes) != 1 {
			t.Errorf("%d nodes went, %v are left", nodes, g.Nodes)
		}
	})
	if users := g.Value("y").Users(); len(users) != 1 || users[0].Graph != g {
		t.Errorf("users of y: %v", users)
	}
}

func TestFreshNameIsFreshInBodiesToo(t *testing.T) {
	m, err := Read("m", serialise(t, richModel()))
	if err != nil {
		t.Fatal(err)
	}
	body := m.Graph.NodeNamed("branch").Subgraphs["then_branch"][0]
	for base, want := range map[string]string{"new": "new", "x": "x_1", "innerW": "innerW_1"} {
		if got := m.Graph.FreshName(base); got != want {
			t.Errorf("main graph: %q for %q, want %q", got, base, want)
		}
	}
	if got := body.FreshName("x"); got != "x_1" { // reading x of the main graph must stay possible
		t.Errorf("body: %q", got)
	}
}
