package rewrite_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// exactFused rewrites a model with fused operators through their expansion and runs it against the fused model with tied
// constants, so that what the expansion computes is compared too.
func exactFused(t *testing.T, path string, low fusion.Lowering, key, val func(int) [][]int, steps int) {
	t.Helper()
	dir := t.TempDir()
	load := func() *graph.Model {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	// Operators that belong to no block stay fused.
	m := load()
	done, _, err := unfuse.Expand(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[*graph.Node]bool{}
	for _, b := range attention.Find(m).Blocks {
		maps.Copy(nodes, b.Nodes())
	}
	only := unfuse.Owners(done, nodes)
	var res *rewrite.Result
	for _, out := range []string{"rewritten.onnx", "tied.onnx"} {
		m := load()
		done, _, err := unfuse.Expand(m, only)
		if err != nil {
			t.Fatal(err)
		}
		plan, ok := planFor(m, low, key, val)
		if !ok {
			t.Skip("no such grouping")
		}
		var blocks []*attention.Block
		for _, bp := range plan.Blocks {
			blocks = append(blocks, bp.Block)
		}
		rewrite.NoteOrigins(blocks, done)
		if out == "tied.onnx" {
			before := unfuse.Remember(m, done)
			if err := rewrite.Tie(m, plan); err != nil {
				t.Fatal(err)
			}
			m = load()
			err = before.Carry(m)
		} else {
			res, err = rewrite.Apply(m, plan)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		if err := m.Save(filepath.Join(dir, out), graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := verify.Run(context.Background(), verify.Request{
		Original: path, Rewritten: filepath.Join(dir, "rewritten.onnx"), Tied: filepath.Join(dir, "tied.onnx"),
		Caches: res.Caches, Steps: steps, Seed: 7,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Exact.Lines) == 0 {
		t.Error("nothing was compared")
	}
	for _, l := range r.Exact.Lines {
		if !l.Passed() {
			t.Errorf("%s %s: %s", l.Case, l.Output, strings.Join(l.Broken, "; "))
		}
	}
}

func TestExactFusedCorpus(t *testing.T) {
	runtime(t)
	for _, name := range []string{
		"onnxruntime/attention_mha", "onnxruntime/gpt2_attention_opt_skiplayernorm", "onnxruntime/hf_fp32_decoder_attention_no_past",
		"onnxruntime/hf_fp16_decoder_attention_with_past", "ort-genai/tiny-random-gpt2-fp32/past",
		"ort-genai/tiny-random-LlamaForCausalLM-fp16/model", "ort-generated/tf2onnx_bert_3d_attention.rnd",
	} {
		path := shared(t, "corpus", filepath.FromSlash(name+".onnx"))
		for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
			t.Run(name+"/"+string(low)+"/one each", func(t *testing.T) { exactFused(t, path, low, single, single, 3) })
			t.Run(name+"/"+string(low)+"/adjacent", func(t *testing.T) { exactFused(t, path, low, adjacent, adjacent, 3) })
			t.Run(name+"/"+string(low)+"/scattered", func(t *testing.T) { exactFused(t, path, low, strided, strided, 3) })
		}
	}
}

// fusedDecoder is a decoder of two layers without MLPs whose attention is one fused operator: 4 query heads of 16
// channels, caches past_key_values.i.key and .value of the given key/value heads.
func fusedDecoder(t *testing.T, opset int64, kv int, layer func(d *decoder, i int, x *graph.Value) *graph.Value) string {
	t.Helper()
	d := &decoder{m: graph.New(10, opset), rand: rand.New(rand.NewPCG(3, 4)), kv: kv}
	domain, one := "com.microsoft", int64(1)
	d.m.Proto.OpsetImport = append(d.m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	g := d.m.Graph
	ids := g.AddInput("input_ids", graph.TensorType(onnxpb.TensorProto_INT64, "batch", "sequence"))
	d.mask = g.AddInput("attention_mask", graph.TensorType(onnxpb.TensorProto_INT64, "batch", "total"))
	x := d.op("Gather", "/embed/Gather", d.weight("embed.weight", 40, hidden), ids)
	for i := range 2 {
		x = d.op("Add", fmt.Sprintf("/layers.%d/Add", i), x, layer(d, i, x))
	}
	logits := g.AddNode("MatMul", "", "/lm_head/MatMul", []*graph.Value{x, d.weight("lm_head.weight", hidden, 40)}, []string{"logits"}).Out[0]
	g.AddOutput(logits, graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", 40))
	for _, p := range d.presents {
		g.AddOutput(p, p.Info.GetType())
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := d.m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

const hidden = 64

type decoder struct {
	m        *graph.Model
	rand     *rand.Rand
	kv       int
	mask     *graph.Value
	presents []*graph.Value
}

func (d *decoder) weight(name string, dims ...int64) *graph.Value {
	n := int64(1)
	for _, x := range dims {
		n *= x
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(d.rand.NormFloat64() * 0.2)
	}
	return d.m.Graph.AddInit(graph.NewTensor(name, dims, data))
}

func (d *decoder) ints(name string, dims []int64, x ...int64) *graph.Value {
	if v := d.m.Graph.Value(name); v != nil {
		return v
	}
	return d.m.Graph.AddInit(graph.NewTensor(name, dims, x))
}

func (d *decoder) op(op, name string, in ...*graph.Value) *graph.Value {
	return d.m.Graph.AddNode(op, "", name, in, []string{name + "_output_0"}).Out[0]
}

func (d *decoder) linear(i int, name string, x *graph.Value, in, out int64) *graph.Value {
	return d.op("MatMul", fmt.Sprintf("/layers.%d/attn/%s/MatMul", i, name), x, d.weight(fmt.Sprintf("layers.%d.attn.%s.weight", i, name), in, out))
}

func (d *decoder) past(i int, what string) *graph.Value {
	return d.m.Graph.AddInput(fmt.Sprintf("past_key_values.%d.%s", i, what), graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", d.kv, "past", 16))
}

// fused adds the operator with presents and the output projection.
func (d *decoder) fused(op, domain string, i int, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	name := fmt.Sprintf("/layers.%d/attn/%s", i, op)
	n := d.m.Graph.AddNode(op, domain, name, in, []string{name + "_output_0", fmt.Sprintf("present.%d.key", i), fmt.Sprintf("present.%d.value", i)}, attrs...)
	for _, p := range n.Out[1:] {
		p.Info = &onnxpb.ValueInfoProto{Name: &p.Name, Type: graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", d.kv, "total", 16)}
		d.presents = append(d.presents, p)
	}
	return d.linear(i, "o_proj", n.Out[0], hidden, hidden)
}

// lengths are the inputs of GroupQueryAttention that say how much of the cache is filled.
func (d *decoder) lengths() (seqlens, total *graph.Value) {
	if v := d.m.Graph.Value("seqlens"); v != nil {
		return v, d.m.Graph.Value("total_length")
	}
	g := d.m.Graph
	sum := d.op("ReduceSum", "/mask/ReduceSum", d.mask, d.ints("one_axis", []int64{1}, 1))
	last := d.op("Sub", "/mask/Sub", sum, d.ints("one", nil, 1))
	flat := d.op("Reshape", "/mask/Reshape", last, d.ints("flat", []int64{1}, -1))
	seqlens = g.AddNode("Cast", "", "/mask/Cast", []*graph.Value{flat}, []string{"seqlens"}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT32))).Out[0]
	length := d.op("Gather", "/mask/Gather", d.op("Shape", "/mask/Shape", d.mask), d.ints("one", nil, 1))
	total = g.AddNode("Cast", "", "/mask/Cast_1", []*graph.Value{length}, []string{"total_length"}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT32))).Out[0]
	return seqlens, total
}

// tables are cos and sin of 64 positions.
func (d *decoder) tables() (cos, sin *graph.Value) {
	if v := d.m.Graph.Value("cos_cache"); v != nil {
		return v, d.m.Graph.Value("sin_cache")
	}
	var c, s []float32
	for p := range 64 {
		for i := range 8 {
			a := float64(p) * math.Pow(10000, -float64(i)/8)
			c, s = append(c, float32(math.Cos(a))), append(s, float32(math.Sin(a)))
		}
	}
	return d.m.Graph.AddInit(graph.NewTensor("cos_cache", []int64{64, 8}, c)), d.m.Graph.AddInit(graph.NewTensor("sin_cache", []int64{64, 8}, s))
}

func (d *decoder) groupQuery(i int, x *graph.Value, packed bool, attrs ...*onnxpb.AttributeProto) *graph.Value {
	kv := int64(d.kv * 16)
	in := make([]*graph.Value, 9)
	if packed {
		in[0] = d.linear(i, "qkv_proj", x, hidden, hidden+2*kv)
	} else {
		in[0], in[1], in[2] = d.linear(i, "q_proj", x, hidden, hidden), d.linear(i, "k_proj", x, hidden, kv), d.linear(i, "v_proj", x, hidden, kv)
	}
	in[3], in[4] = d.past(i, "key"), d.past(i, "value")
	in[5], in[6] = d.lengths()
	in[7], in[8] = d.tables()
	return d.fused("GroupQueryAttention", "com.microsoft", i, in, append(attrs, graph.IntAttr("num_heads", 4), graph.IntAttr("kv_num_heads", int64(d.kv)))...)
}

// visible is a mask of bits [batch, 1, 1, total] for ai.onnx Attention.
func (d *decoder) visible() *graph.Value {
	if v := d.m.Graph.Value("visible"); v != nil {
		return v
	}
	bits := d.m.Graph.AddNode("Cast", "", "/mask/Cast", []*graph.Value{d.mask}, []string{"bits"}, graph.IntAttr("to", int64(onnxpb.TensorProto_BOOL))).Out[0]
	return d.m.Graph.AddNode("Unsqueeze", "", "/mask/Unsqueeze", []*graph.Value{bits, d.ints("axes", []int64{2}, 1, 2)}, []string{"visible"}).Out[0]
}

// A decoder of each fused operator, prefill and decoding, with halved and with scattered heads.
func TestExactFusedDecoders(t *testing.T) {
	runtime(t)
	for _, c := range []struct {
		name  string
		opset int64
		kv    int
		layer func(d *decoder, i int, x *graph.Value) *graph.Value
	}{
		{"GroupQueryAttention", 17, 4, func(d *decoder, i int, x *graph.Value) *graph.Value { return d.groupQuery(i, x, false) }},
		{"GroupQueryAttention, grouped", 17, 2, func(d *decoder, i int, x *graph.Value) *graph.Value { return d.groupQuery(i, x, false) }},
		{"GroupQueryAttention, rotary, packed", 21, 4, func(d *decoder, i int, x *graph.Value) *graph.Value {
			return d.groupQuery(i, x, true, graph.IntAttr("do_rotary", 1))
		}},
		{"GroupQueryAttention, grouped, rotary, packed", 21, 2, func(d *decoder, i int, x *graph.Value) *graph.Value {
			return d.groupQuery(i, x, true, graph.IntAttr("do_rotary", 1), graph.IntAttr("rotary_interleaved", 1))
		}},
		{"GroupQueryAttention, window, softcap", 14, 4, func(d *decoder, i int, x *graph.Value) *graph.Value {
			return d.groupQuery(i, x, false, graph.IntAttr("local_window_size", 4), graph.FloatAttr("softcap", 2))
		}},
		{"MultiHeadAttention", 17, 4, func(d *decoder, i int, x *graph.Value) *graph.Value {
			mask := d.m.Graph.Value("mask32")
			if mask == nil {
				mask = d.m.Graph.AddNode("Cast", "", "/mask/Cast", []*graph.Value{d.mask}, []string{"mask32"}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT32))).Out[0]
			}
			bias := d.weight(fmt.Sprintf("layers.%d.attn.qkv.bias", i), 3*hidden)
			in := []*graph.Value{d.linear(i, "q_proj", x, hidden, hidden), d.linear(i, "k_proj", x, hidden, hidden), d.linear(i, "v_proj", x, hidden, hidden), bias, mask, nil, d.past(i, "key"), d.past(i, "value")}
			return d.fused("MultiHeadAttention", "com.microsoft", i, in, graph.IntAttr("num_heads", 4), graph.IntAttr("unidirectional", 1))
		}},
		{"Attention 23", 23, 4, func(d *decoder, i int, x *graph.Value) *graph.Value {
			in := []*graph.Value{d.linear(i, "q_proj", x, hidden, hidden), d.linear(i, "k_proj", x, hidden, hidden), d.linear(i, "v_proj", x, hidden, hidden), d.visible(), d.past(i, "key"), d.past(i, "value")}
			return d.fused("Attention", "", i, in, graph.IntAttr("q_num_heads", 4), graph.IntAttr("kv_num_heads", 4), graph.IntAttr("is_causal", 1))
		}},
		{"Attention 24, grouped", 24, 2, func(d *decoder, i int, x *graph.Value) *graph.Value {
			in := []*graph.Value{d.linear(i, "q_proj", x, hidden, hidden), d.linear(i, "k_proj", x, hidden, 32), d.linear(i, "v_proj", x, hidden, 32), d.visible(), d.past(i, "key"), d.past(i, "value")}
			return d.fused("Attention", "", i, in, graph.IntAttr("q_num_heads", 4), graph.IntAttr("kv_num_heads", 2), graph.IntAttr("is_causal", 1), graph.FloatAttr("softcap", 3))
		}},
	} {
		path := fusedDecoder(t, c.opset, c.kv, c.layer)
		for _, low := range []fusion.Lowering{fusion.Auto, fusion.Grouped, fusion.Expand} {
			t.Run(c.name+"/"+string(low)+"/one each", func(t *testing.T) { exactFused(t, path, low, single, single, 4) })
			t.Run(c.name+"/"+string(low)+"/adjacent", func(t *testing.T) { exactFused(t, path, low, adjacent, adjacent, 4) })
			t.Run(c.name+"/"+string(low)+"/decoupled", func(t *testing.T) { exactFused(t, path, low, strided, all, 4) })
		}
	}
}

// asFunction turns a model's whole graph into a function of the model that the graph calls once, its constants being
// arguments.
func asFunction(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m onnxpb.ModelProto
	if err := proto.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	name, domain, one, ir := "decoder", "test", int64(1), int64(10)
	f := &onnxpb.FunctionProto{Name: &name, Domain: &domain, Node: m.Graph.Node, OpsetImport: m.OpsetImport}
	call := &onnxpb.NodeProto{OpType: &name, Domain: &domain, Name: &name}
	for _, v := range m.Graph.Input {
		f.Input, call.Input = append(f.Input, v.GetName()), append(call.Input, v.GetName())
	}
	for _, v := range m.Graph.Initializer {
		f.Input, call.Input = append(f.Input, v.GetName()), append(call.Input, v.GetName())
	}
	for _, v := range m.Graph.Output {
		f.Output, call.Output = append(f.Output, v.GetName()), append(call.Output, v.GetName())
	}
	m.Graph.Node, m.Graph.ValueInfo = []*onnxpb.NodeProto{call}, nil
	m.Functions = append(m.Functions, f)
	m.IrVersion = &ir
	m.OpsetImport = append(slices.Clone(m.OpsetImport), &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	if data, err = proto.Marshal(&m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Attention inside a function of the model is found when the function is put in the place of its call, and rewritten
// exactly; the reference still calls the function.
func TestExactFunction(t *testing.T) {
	runtime(t)
	for _, family := range []string{"llama", "gpt2", "bert"} {
		f, err := testmodels.Get(family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "model.onnx")
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		asFunction(t, path)
		t.Run(family+"/adjacent", func(t *testing.T) { exactFused(t, path, fusion.Grouped, adjacent, adjacent, 3) })
		t.Run(family+"/decoupled", func(t *testing.T) { exactFused(t, path, fusion.Expand, unequal, all, 3) })
	}
}

// origin is a model's blocks with the expansions that they came from.
type origin struct {
	blocks     []*attention.Block
	expansions []unfuse.Expansion
}

// expandedPlan expands a model's fused operators and plans all blocks.
func expandedPlan(t *testing.T, m *graph.Model, low fusion.Lowering, key, val func(int) [][]int) (*fusion.Plan, origin) {
	t.Helper()
	done, _, err := unfuse.Expand(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, ok := planFor(m, low, key, val)
	if !ok {
		t.Fatal("no such grouping")
	}
	o := origin{expansions: done}
	for _, bp := range plan.Blocks {
		o.blocks = append(o.blocks, bp.Block)
	}
	return plan, o
}
