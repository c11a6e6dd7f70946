package graph

import (
	"testing"

	"onnx-dha/graph/onnxpb"
)

// withBody adds a node with one body per attribute; build fills each.
func (c *chain) withBody(op string, in []*Value, outputs int, attrs []*onnxpb.AttributeProto, bodies map[string]func(b *chain)) *Node {
	var out []string
	for range outputs {
		c.n++
		out = append(out, "n"+string(rune('a'+c.n)))
	}
	n := c.g.AddNode(op, "", "", in, out, attrs...)
	n.Subgraphs = map[string][]*Graph{}
	for name, build := range bodies {
		body := newGraph(c.g.Model, c.g)
		body.Owner = n
		build(&chain{g: body, n: 100 * len(name)})
		n.Subgraphs[name] = []*Graph{body}
		n.Proto.Attribute = append(n.Proto.Attribute, &onnxpb.AttributeProto{Name: &name})
	}
	return n
}

func TestInferIf(t *testing.T) {
	c := newChain(13)
	x := c.input(floatType, "batch", 4, "seq")
	gather := func(v *Value, i int64) *Value { return c.op("Gather", c.op("Shape", v), c.scalar(i)) }
	transposed := func(b *chain) { b.g.AddOutput(b.op("Transpose", x, IntsAttr("perm", 0, 2, 1)), nil) }
	same := func(b *chain) { b.g.AddOutput(b.op("Neg", x), nil) }
	squeezed := func(b *chain) { b.g.AddOutput(b.op("Squeeze", x, b.ints(1)), nil) }
	for _, row := range []struct {
		name        string
		condition   *Value
		then, other func(*chain)
		want        string
	}{
		{"taken", c.op("Equal", gather(x, 1), c.scalar(4)), transposed, squeezed, "batch,seq,4"},
		{"not taken", c.op("Equal", gather(x, 0), c.scalar(-1)), squeezed, same, "batch,4,seq"},
		{"open", c.op("Equal", gather(x, 0), c.scalar(1)), transposed, same, "batch,?,?"},
		{"ranks differ", c.op("Equal", gather(x, 0), c.scalar(1)), squeezed, same, "unranked"},
	} {
		n := c.withBody("If", []*Value{row.condition}, 1, nil, map[string]func(*chain){"then_branch": row.then, "else_branch": row.other})
		f := Infer(c.g)
		if s, ok := f.Shape(n.Out[0]); !matches(s, ok, row.want) {
			t.Errorf("%s: %v, want %s", row.name, s, row.want)
		}
		if e := f.Elem(n.Out[0]); e != floatType {
			t.Errorf("%s: %v, want float", row.name, e)
		}
	}
}

// growingLoop builds a Loop that carries two values of shape [batch, 8], one of which grows.
func growingLoop(c *chain) *Node {
	x := c.input(floatType, "batch", 8)
	n := c.withBody("Loop", []*Value{c.scalar(3), nil, x, x}, 4, nil, map[string]func(*chain){"body": func(b *chain) {
		b.g.AddInput("i", TensorType(int64Type))
		condition := b.g.AddInput("go on", TensorType(boolType))
		grown := b.g.AddInput("grown", nil)
		fixed := b.g.AddInput("fixed", TensorType(floatType, "batch", 8))
		b.g.AddOutput(condition, nil)
		b.g.AddOutput(b.op("Concat", grown, x, IntAttr("axis", 0)), nil)
		b.g.AddOutput(b.op("MatMul", fixed, b.op("Transpose", x)), nil)
		b.g.AddOutput(b.op("Neg", x), nil)
		b.g.AddOutput(b.op("Neg", grown), nil)
	}})
	c.g.AddOutput(n.Out[0], TensorType(floatType, "rows", 8))
	return n
}

func TestInferLoop(t *testing.T) {
	c := newChain(13)
	n := growingLoop(c)
	f := Infer(c.g)
	for i, want := range []string{"?,8", "batch,?", "?,batch,8", "?,?,8"} {
		if s, ok := f.Shape(n.Out[i]); !matches(s, ok, want) {
			t.Errorf("output %d: %v, want %s", i, s, want)
		}
	}
	body := n.Subgraphs["body"][0]
	if s, ok := f.Shape(body.Outputs[3]); !matches(s, ok, "batch,8") {
		t.Errorf("the outer value has shape %v in the body", s)
	}
	// What no iteration changes holds in the body, what one changes does not.
	for i, want := range map[int]string{2: "?,8", 3: "batch,8"} {
		if s, ok := f.Shape(body.Inputs[i]); !matches(s, ok, want) {
			t.Errorf("carried value %d has shape %v in the body, want %s", i-2, s, want)
		}
	}
}

func TestInferScan(t *testing.T) {
	c := newChain(13)
	state, x := c.input(floatType, "batch", 8), c.input(floatType, "batch", "seq", 8)
	n := c.withBody("Scan", []*Value{state, x}, 2, []*onnxpb.AttributeProto{IntAttr("num_scan_inputs", 1), IntsAttr("scan_input_axes", 1), IntsAttr("scan_output_axes", -1)},
		map[string]func(*chain){"body": func(b *chain) {
			s, row := b.g.AddInput("s", nil), b.g.AddInput("row", nil)
			b.g.AddOutput(b.op("Add", s, row), nil)
			b.g.AddOutput(b.op("Neg", row), nil)
		}})
	f := Infer(c.g)
	for i, want := range []string{"batch,8", "batch,8,?"} {
		if s, ok := f.Shape(n.Out[i]); !matches(s, ok, want) {
			t.Errorf("output %d: %v, want %s", i, s, want)
		}
	}
}

// What the file declares counts where nothing is inferred.
func TestInferDeclarations(t *testing.T) {
	declare := func(v *Value, elem elemType, dims ...any) *Value {
		v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: TensorType(elem, dims...)}
		return v
	}
	c := newChain(13)
	x := c.input(floatType, "batch", "past + 1", "?", nil)
	mystery := declare(c.op("Mystery", x), floatType, "batch", 7)
	added := declare(c.op("Neg", x), floatType, "n", "total", 9, "m")
	chosen := declare(c.op("Compress", x, IntAttr("axis", 0)), floatType, 3, 4, 5, 6)
	local := c.op("Gelu", x)
	domain, name := "", "Gelu"
	c.g.Model.Proto.Functions = []*onnxpb.FunctionProto{{Domain: &domain, Name: &name}}
	f := Infer(c.g)
	for _, row := range []struct {
		v    *Value
		want string
	}{
		{x, "batch,past + 1,?,?"},
		{mystery, "batch,7"},
		{added, "batch,past + 1,9,?"},
		{chosen, "3,past + 1,5,6"},
		{local, "unranked"}, // the model's own Gelu may be anything
	} {
		if s, ok := f.Shape(row.v); !matches(s, ok, row.want) {
			t.Errorf("%v: %v, want %s", row.v, s, row.want)
		}
	}
	s, _ := f.Shape(x)
	if s[2].Equal(s[3]) || !s[2].Equal(s[2]) {
		t.Errorf("unknown dimensions %v and %v", s[2], s[3])
	}
}
