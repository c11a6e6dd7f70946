package graph

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// Sizes beyond all bounds cost neither time nor memory.
func TestInferHugeSizes(t *testing.T) {
	c := newChain(17)
	huge := c.scalar(1 << 60)
	for _, row := range []struct {
		name string
		v    *Value
		want string
	}{
		{"range", c.op("Range", c.scalar(0), huge, c.scalar(1)), "1152921504606846976"},
		{"range of floats", c.op("Range", c.float(0), c.float(1e30), c.float(1e-30)), "?"},
		{"tile", c.op("Tile", c.ints(1, 2), c.ints(1<<40)), "2199023255552"},
		{"tile of tile", c.op("Tile", c.op("Tile", c.ints(1, 2), c.ints(1<<40)), c.ints(1<<40)), "?"},
		{"filling", c.op("ConstantOfShape", c.ints(1<<40, 1<<40)), "1099511627776,1099511627776"},
		{"expand", c.op("Expand", c.scalar(1), c.ints(1<<40)), "1099511627776"},
		{"one hot", c.op("OneHot", c.ints(1), huge, c.ints(0, 1)), "1,1152921504606846976"},
		{"pad", c.op("Pad", c.ints(1), c.ints(math.MaxInt64, math.MaxInt64)), "?"},
		{"pool", c.op("MaxPool", c.input(floatType, 1, 1, 5), IntsAttr("kernel_shape", math.MinInt64), IntsAttr("strides", math.MaxInt64)), "1,1,?"},
		{"rank", c.op("ConstantOfShape", c.ints(slices.Repeat([]int64{1}, 1000)...)), "unranked"},
		{"split", c.op("Split", c.ints(1, 2, 3), IntsAttr("split", math.MaxInt64)), "9223372036854775807"},
	} {
		f := Infer(c.g)
		if s, ok := f.Shape(row.v); !matches(s, ok, row.want) {
			t.Errorf("%s: %v, want %s", row.name, s, row.want)
		}
		if k, ok := f.Known(row.v); ok {
			t.Errorf("%s: %d elements are known", row.name, len(k.Ints)+len(k.Floats))
		}
	}
}

// A long chain of tensors that are just small enough stops being folded, and its shapes stay known.
func TestInferBudget(t *testing.T) {
	c := newChain(13)
	v := c.op("Expand", c.op("Shape", c.input(floatType, "batch")), c.ints(maxFold))
	first := v
	for range 3000 {
		v = c.op("Mul", v, v)
		v = c.op("Sub", v, first)
	}
	f := Infer(c.g)
	if s, ok := f.Shape(v); !matches(s, ok, fmt.Sprint(maxFold)) {
		t.Errorf("the last has shape %v", s)
	}
	if _, ok := f.Known(first); !ok {
		t.Error("the first is not known")
	}
	if k, ok := f.Known(v); ok {
		t.Errorf("the last is known to be %v, …", k.Ints[0])
	}
	kept := 0
	for _, fa := range f.of {
		if fa.known != nil {
			kept += len(fa.known.Ints)
		}
	}
	if kept > foldBudget {
		t.Errorf("%d elements are kept", kept)
	}
}

// Nodes made at random, of every operator in the table, alone and feeding each other, with operands and attributes that
// do not fit: nothing panics, and what is said of a shape and of its elements fits together.
func TestInferMalformed(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	keys := slices.SortedFunc(maps.Keys(rules), func(a, b opKey) int {
		return slices.Compare([]string{a.domain, a.op}, []string{b.domain, b.op})
	})
	for _, key := range keys {
		for range 100 {
			b := newOddGraph(r)
			b.add(key)
			checkFacts(t, b.g)
		}
	}
	for range 1000 {
		b := newOddGraph(r)
		for range 12 {
			b.add(keys[r.IntN(len(keys))])
		}
		checkFacts(t, b.g)
	}
}

// checkFacts infers g and verifies that shapes and elements agree.
func checkFacts(t *testing.T, g *Graph) {
	t.Helper()
	checkThese(t, g, Infer(g))
	checkThese(t, g, Prove(g))
}

func checkThese(t *testing.T, g *Graph, f *Facts) {
	t.Helper()
	g.All(func(n *Node) bool {
		for _, v := range n.Out {
			if v == nil {
				continue
			}
			shape, ranked := f.Shape(v)
			if len(shape) > maxRank {
				t.Errorf("%v: rank %d", n, len(shape))
			}
			for _, d := range shape {
				if x, ok := d.Const(); ok && x < 0 {
					t.Errorf("%v: shape %v", n, shape)
				}
			}
			k, ok := f.Known(v)
			if !ok {
				continue
			}
			count, fits := product(k.Shape)
			if !ranked || !fits || count != len(k.Ints)+len(k.Floats) || !slices.EqualFunc(shape, k.Shape, func(d Dim, n int64) bool { return d.Equal(Int(n)) }) {
				t.Errorf("%v: shape %v with %d and %d elements of %v", n, shape, len(k.Ints), len(k.Floats), k.Shape)
			}
		}
		return true
	})
}

// oddInts are the numbers that break careless code.
var oddInts = []int64{0, 1, 2, 3, 4, -1, -2, -3, -5, 7, 64, 1000, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64}

func odd(r *rand.Rand) int64 { return oddInts[r.IntN(len(oddInts))] }

func oddList(r *rand.Rand) []int64 {
	list := make([]int64, r.IntN(5))
	for i := range list {
		list[i] = odd(r)
	}
	return list
}

// attributes are all those that the table reads.
var attributes = struct{ ints, lists, texts []string }{
	[]string{"axis", "keepdims", "noop_with_empty_axes", "allowzero", "start", "end", "to", "dtype", "output_dtype", "num_heads",
		"kv_num_heads", "q_num_heads", "transA", "transB", "transBatchA", "transBatchB", "N", "k", "batch_dims", "num_outputs", "ceil_mode",
		"fmod", "num_scan_inputs", "past_present_share_buffer", "min", "max"},
	[]string{"axes", "perm", "split", "starts", "ends", "pads", "strides", "dilations", "kernel_shape", "shape", "qkv_hidden_sizes",
		"scan_input_axes", "scan_output_axes"},
	[]string{"equation", "auto_pad"},
}

// oddGraph grows a graph of nodes made at random.
type oddGraph struct {
	r      *rand.Rand
	g      *Graph
	values []*Value
}

func newOddGraph(r *rand.Rand) *oddGraph {
	return &oddGraph{r: r, g: New(9, []int64{1, 8, 9, 11, 13, 18, 24}[r.IntN(7)]).Graph}
}

// add appends a node of an operator.
func (b *oddGraph) add(key opKey) {
	r, g, m := b.r, b.g, b.g.Model
	elems := []elemType{floatType, int64Type, int32Type, boolType, uint8Type, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_STRING, 0, 99}
	var in []*Value
	for i := range r.IntN(7) {
		name := fmt.Sprintf("x%d.%d", len(g.Nodes), i)
		if len(b.values) > 0 && r.IntN(2) == 0 {
			in = append(in, b.values[r.IntN(len(b.values))])
			continue
		}
		switch r.IntN(6) {
		case 0:
			in = append(in, nil)
		case 1:
			list := oddList(r)
			in = append(in, g.AddInit(NewTensor(name, []int64{int64(len(list))}, list)))
		case 2:
			in = append(in, g.AddInit(NewTensor(name, nil, []float32{float32(odd(r))})))
		case 3:
			t := NewTensor(name, oddList(r), []int64{1, 2, 3}) // the dims say something else than the data
			e := int32(elems[r.IntN(len(elems))])
			t.Proto.DataType = &e
			in = append(in, g.AddInit(t))
		default:
			var dims []any
			for range r.IntN(6) {
				dims = append(dims, []any{1, 2, 3, 4, 64, "a", "b", "a + b", nil, "?", int64(-1), int64(1 << 62)}[r.IntN(12)])
			}
			typ := TensorType(elems[r.IntN(len(elems))], dims...)
			if r.IntN(8) == 0 {
				typ = nil
			}
			in = append(in, g.AddInput(name, typ))
		}
	}
	var attrs []*onnxpb.AttributeProto
	for _, name := range attributes.ints {
		switch r.IntN(6) {
		case 0:
			attrs = append(attrs, IntAttr(name, odd(r)))
		case 1:
			attrs = append(attrs, IntAttr(name, r.Int64N(4)))
		}
	}
	for _, name := range attributes.lists {
		switch r.IntN(6) {
		case 0:
			attrs = append(attrs, IntsAttr(name, oddList(r)...))
		case 1:
			attrs = append(attrs, StringAttr(name, "not a list"))
		}
	}
	for _, name := range attributes.texts {
		text := []string{"", "ab,bc->ac", "...a,a...->...", "a...b...,c->z", "->", ",,", "SAME_UPPER", "VALID"}
		attrs = append(attrs, StringAttr(name, text[r.IntN(len(text))]))
	}
	if r.IntN(3) == 0 {
		attrs = append(attrs, TensorAttr("value", NewTensor("", oddList(r), []int64{odd(r)})))
	}
	var out []string
	for i := range r.IntN(6) {
		out = append(out, []string{"", fmt.Sprintf("y%d.%d", len(g.Nodes), i)}[r.IntN(2)])
	}
	n := g.AddNode(key.op, key.domain, "", in, out, attrs...)
	n.Subgraphs = map[string][]*Graph{}
	for _, name := range []string{"then_branch", "else_branch", "body"} {
		if r.IntN(3) == 0 {
			continue
		}
		body := newGraph(m, g)
		body.Owner = n
		for i := range r.IntN(5) {
			body.AddInput(fmt.Sprintf("i%d", i), TensorType(floatType, slices.Repeat([]any{"a"}, r.IntN(3))...))
		}
		for i, v := range body.Inputs {
			if r.IntN(2) == 0 {
				v = body.AddNode("Neg", "", "", []*Value{v}, []string{fmt.Sprintf("o%d", i)}).Out[0]
			}
			body.AddOutput(v, nil)
		}
		n.Subgraphs[name] = []*Graph{body}
		n.Proto.Attribute = append(n.Proto.Attribute, &onnxpb.AttributeProto{Name: &name})
	}
	for _, v := range n.Out {
		if v != nil {
			b.values = append(b.values, v)
		}
	}
}

// What any file holds, Infer survives.
func FuzzInfer(f *testing.F) {
	mergedHeads, loop := newChain(14), newChain(13)
	hiddenHeads(mergedHeads)
	growingLoop(loop)
	for _, c := range []*chain{mergedHeads, loop} {
		path := filepath.Join(f.TempDir(), "model.onnx")
		if err := c.g.Model.Save(path, SaveOptions{}); err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := Read("seed", data); err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Read("fuzzed", data)
		if err != nil {
			return
		}
		defer m.Close()
		checkFacts(t, m.Graph)
	})
}
