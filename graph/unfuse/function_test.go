package unfuse_test

import (
	"errors"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
)

func str(s string) *string { return &s }

func call(domain, op, name string, in, out []string, attrs ...*onnxpb.AttributeProto) *onnxpb.NodeProto {
	return &onnxpb.NodeProto{OpType: &op, Domain: &domain, Name: &name, Input: in, Output: out, Attribute: attrs}
}

// reference makes an attribute that takes the value of the function's attribute of.
func reference(name string, typ onnxpb.AttributeProto_AttributeType, of string) *onnxpb.AttributeProto {
	return &onnxpb.AttributeProto{Name: &name, Type: typ.Enum(), RefAttrName: &of}
}

// withFunctions gives a sketch two functions of its own: "test.scaled" (x, y) → y·LeakyRelu(x, slope), and "test.twice",
// which calls it, in two overloads.
func withFunctions(s *sketch, opset int64) {
	domain, one := "test", int64(1)
	s.m.Proto.OpsetImport = append(s.m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	ten := int64(10)
	s.m.Proto.IrVersion = &ten // overloads
	imports := []*onnxpb.OperatorSetIdProto{{Domain: str(""), Version: &opset}, {Domain: &domain, Version: &one}}
	slope := "slope"
	s.m.Proto.Functions = append(s.m.Proto.Functions,
		&onnxpb.FunctionProto{
			Name: str("scaled"), Domain: &domain, Input: []string{"x", "y"}, Output: []string{"z"}, OpsetImport: imports,
			AttributeProto: []*onnxpb.AttributeProto{graph.FloatAttr(slope, 0.25)},
			Node: []*onnxpb.NodeProto{
				call("", "LeakyRelu", "relu", []string{"x"}, []string{"r"}, reference("alpha", onnxpb.AttributeProto_FLOAT, slope)),
				call("", "Mul", "", []string{"r", "y"}, []string{"z"}),
			},
		},
		&onnxpb.FunctionProto{
			Name: str("twice"), Domain: &domain, Input: []string{"x", "y"}, Output: []string{"a", "b"}, OpsetImport: imports, Attribute: []string{"first"},
			Node: []*onnxpb.NodeProto{
				call("test", "scaled", "one", []string{"x", "y"}, []string{"a"}, reference(slope, onnxpb.AttributeProto_FLOAT, "first")),
				call("test", "scaled", "two", []string{"a", "y"}, []string{"b"}),
			},
		},
		&onnxpb.FunctionProto{
			Name: str("twice"), Overload: str("added"), Domain: &domain, Input: []string{"x", "y"}, Output: []string{"a", "b"}, OpsetImport: imports, Attribute: []string{"first"},
			Node: []*onnxpb.NodeProto{
				call("", "Add", "", []string{"x", "y"}, []string{"a"}),
				call("", "Add", "", []string{"a", "y"}, []string{"b"}),
			},
		})
}

func TestInline(t *testing.T) {
	for name, overload := range map[string]string{"nested": "", "overload": "added"} {
		t.Run(name, func(t *testing.T) {
			each(t, []int64{17, 21}, func(s *sketch) {
				withFunctions(s, s.m.Opset(""))
				s.node("twice", "test", 2, []*graph.Value{s.in("x", "N=3", 4), s.in("y", 4)}, graph.FloatAttr("first", 0.5))
				if overload != "" {
					s.m.Graph.Nodes[0].Proto.Overload = &overload
				}
				s.exact(1e-6)
				m := s.expanded()
				if len(m.Proto.Functions) != 0 {
					t.Errorf("%d functions are left", len(m.Proto.Functions))
				}
				for _, n := range m.Graph.Nodes {
					if !strings.HasPrefix(n.Name, "block/twice/") && n.OpType != "Identity" {
						t.Errorf("%v is not named under the call", n)
					}
				}
			})
		})
	}
}

// A function that means something else in the main graph, or that cannot be taken apart, stays.
func TestInlineRefused(t *testing.T) {
	build := func(opset int64) *sketch {
		s := newSketch(t, 17, f32)
		withFunctions(s, opset)
		s.node("scaled", "test", 1, []*graph.Value{s.in("x", "N=3", 4), s.in("y", 4)})
		return s
	}
	s := build(16)
	_, refused, err := unfuse.Expand(s.m, nil)
	if err != nil || len(refused) != 1 || !strings.Contains(refused[0].Why, `function "scaled" imports opset 16 of "ai.onnx", the model 17`) {
		t.Errorf("got %v, %v", refused, err)
	}
	if len(s.m.Proto.Functions) != 3 {
		t.Errorf("%d functions are left, want all: nothing was inlined", len(s.m.Proto.Functions))
	}
	s = build(17)
	s.m.Proto.Functions[0].Node[0].Attribute = append(s.m.Proto.Functions[0].Node[0].Attribute, &onnxpb.AttributeProto{Name: str("body"), Type: onnxpb.AttributeProto_GRAPH.Enum(), G: &onnxpb.GraphProto{}})
	_, refused, err = unfuse.Expand(s.m, nil)
	if err != nil || len(refused) != 1 || !strings.Contains(refused[0].Why, "with a subgraph") {
		t.Errorf("got %v, %v", refused, err)
	}
}

// An operator inside a function is expanded after the function, and a changed constant finds its way back to the call; one
// that lies in the function does not.
func TestCarryThroughFunction(t *testing.T) {
	runtime(t)
	build := func(inside bool) *sketch {
		s := newSketch(t, 17, f32)
		domain, one, opset := "test", int64(1), int64(17)
		s.m.Proto.OpsetImport = append(s.m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
		f := &onnxpb.FunctionProto{
			Name: str("layer"), Domain: &domain, Input: []string{"x", "w", "b"}, Output: []string{"y"},
			OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: str(""), Version: &opset}, {Domain: str("com.microsoft"), Version: &one}},
			Node:        []*onnxpb.NodeProto{call("com.microsoft", "Attention", "core", []string{"x", "w", "b"}, []string{"y"}, graph.IntAttr("num_heads", 2))},
		}
		if inside {
			bias := graph.NewTensor("", []int64{24}, make([]float32, 24))
			f.Node = append([]*onnxpb.NodeProto{call("", "Constant", "bias", nil, []string{"own"}, graph.TensorAttr("value", bias))}, f.Node...)
			f.Node[1].Input[2] = "own"
		}
		s.m.Proto.Functions = append(s.m.Proto.Functions, f)
		s.node("layer", "test", 1, []*graph.Value{s.in("x", "B=2", "S=3", 6), s.constant("w", 6, 24), s.constant("b", 24)})
		return s
	}
	for _, inside := range []bool{false, true} {
		s := build(inside)
		m := s.reload()
		done, refused, err := unfuse.Expand(m, nil)
		if err != nil || len(refused) > 0 || len(done) != 2 {
			t.Fatalf("%d expansions, %v, %v", len(done), refused, err)
		}
		before := unfuse.Remember(m, done)
		for _, n := range m.Graph.Nodes {
			if n.OpType == "Add" || !inside && n.OpType == "MatMul" && n.In[1].Const() != nil {
				c := n.In[1].Const()
				x, err := c.Float64s()
				if err != nil {
					t.Fatal(err)
				}
				for i := range x {
					x[i] += 0.1
				}
				u, err := graph.FromFloat64s("changed", c.DType(), c.Dims(), x)
				if err != nil {
					t.Fatal(err)
				}
				p := graph.NewPatch(m.Graph)
				p.SetInput(n, 1, p.Init(u))
				if _, err := p.Apply(); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		fused := s.reload()
		err = before.Carry(fused)
		if inside {
			if !errors.Is(err, unfuse.ErrNotCarried) {
				t.Errorf("got %v, want ErrNotCarried", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		want, err := s.run(m, "changed")
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.run(fused, "carried")
		if err != nil {
			t.Fatal(err)
		}
		near(t, want, got, 1e-5)
		unchanged, err := s.run(s.m, "original")
		if err != nil {
			t.Fatal(err)
		}
		if equal(t, unchanged["out0"], got["out0"]) {
			t.Error("the change is not to be seen")
		}
	}
}
