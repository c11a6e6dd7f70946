package verify

import (
	"slices"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

const (
	fl  = onnxpb.TensorProto_FLOAT
	hf  = onnxpb.TensorProto_FLOAT16
	i64 = onnxpb.TensorProto_INT64
	i32 = onnxpb.TensorProto_INT32
	bo  = onnxpb.TensorProto_BOOL
)

type end struct {
	name string
	elem onnxpb.TensorProto_DataType
	dims []any
}

// frame is a model of inputs and outputs alone: every output is made by an operator that nothing is known of.
func frame(ins, outs []end, wire func(g *graph.Graph)) *graph.Model {
	m := graph.New(8, 17)
	for _, in := range ins {
		m.Graph.AddInput(in.name, graph.TensorType(in.elem, in.dims...))
	}
	if wire != nil {
		wire(m.Graph)
	}
	for _, out := range outs {
		v := m.Graph.Value(out.name)
		if v == nil {
			v = m.Graph.AddNode("Mystery", "x", "make_"+out.name, m.Graph.Inputs, []string{out.name}).Out[0]
		}
		m.Graph.AddOutput(v, graph.TensorType(out.elem, out.dims...))
	}
	return m
}

func TestRolesByNameAndUse(t *testing.T) {
	dims := []any{"b", "s"}
	m := frame([]end{
		{"input_ids", i64, dims},
		{"decoder_input_ids", i32, dims},
		{"attention_mask", i64, dims},
		{"decoder_attention_mask", bo, dims},
		{"position_ids", i64, dims},
		{"cache_position", i64, []any{"s"}},
		{"token_type_ids", i64, dims},
		{"use_cache_branch", bo, []any{1}},
		{"seqlens_k", i32, []any{"b"}},
		{"total_sequence_length", i32, nil},
		{"past_sequence_length", i32, []any{1}},
		{"encoder_hidden_states", fl, []any{"b", "e", 8}},
		{"looked_up", i64, dims},
		{"counts", i64, dims},
		{"training", bo, nil},
		{"pixel_values", hf, []any{"b", 3, "h", "w"}},
	}, []end{{"y", fl, nil}}, func(g *graph.Graph) {
		table := g.AddInit(graph.NewTensor("table", []int64{5, 2}, make([]float32, 10)))
		cast := g.AddNode("Cast", "", "cast", []*graph.Value{g.Value("looked_up")}, []string{"cast"}, graph.IntAttr("to", int64(i32))).Out[0]
		g.AddNode("Gather", "", "look", []*graph.Value{table, cast}, []string{"found"})
	})
	s, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Role{
		"input_ids": TokenIDs, "decoder_input_ids": TokenIDs, "attention_mask": MaskOnes, "decoder_attention_mask": MaskOnes,
		"position_ids": Positions, "cache_position": Places, "token_type_ids": Segments, "use_cache_branch": HasPast,
		"seqlens_k": LastPos, "total_sequence_length": TotalLen, "past_sequence_length": PastLen,
		"encoder_hidden_states": Numbers, "looked_up": TokenIDs, "counts": Integers, "training": Flags, "pixel_values": Numbers,
	}
	for _, in := range s.Inputs {
		if in.Role != want[in.Name] {
			t.Errorf("%s: got %s, want %s", in.Name, in.Role, want[in.Name])
		}
	}
	if in := s.input("looked_up"); in.Rows != 5 {
		t.Errorf("looked_up indexes a table of %d rows, want 5", in.Rows)
	}
	if s.Tokens != "decoder_input_ids" {
		t.Errorf("tokens are %q", s.Tokens)
	}
	if s.Precision != hf {
		t.Errorf("precision %v, want float16", s.Precision)
	}
}

func TestTableBehindDequantization(t *testing.T) {
	m := frame([]end{{"input_ids", i64, []any{"b", "s"}}}, nil, func(g *graph.Graph) {
		q := g.AddInit(graph.NewTensor("q", []int64{7, 2}, make([]int8, 14)))
		scale := g.AddInit(graph.NewTensor("scale", nil, []float32{1}))
		table := g.AddNode("DequantizeLinear", "", "dq", []*graph.Value{q, scale}, []string{"table"}).Out[0]
		flat := g.AddNode("Flatten", "", "flat", []*graph.Value{g.Value("input_ids")}, []string{"flat"}).Out[0]
		g.AddNode("Gather", "", "look", []*graph.Value{table, flat}, []string{"found"})
	})
	s, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	if s.Inputs[0].Rows != 7 {
		t.Errorf("%d rows, want 7", s.Inputs[0].Rows)
	}
}

func TestCachePairs(t *testing.T) {
	kv := []any{"b", 4, "past", 8}
	for name, c := range map[string]struct {
		m    *graph.Model
		want []CachePair
	}{
		"names of Optimum": {
			frame([]end{{"past_key_values.0.key", fl, kv}, {"past_key_values.0.value", fl, kv}, {"past_key_values.10.key", fl, kv}},
				[]end{{"logits", fl, kv}, {"present.10.key", fl, kv}, {"present.0.key", fl, kv}, {"present.0.value", fl, kv}}, nil),
			[]CachePair{{"past_key_values.0.key", "present.0.key", 2, true}, {"past_key_values.0.value", "present.0.value", 2, true}, {"past_key_values.10.key", "present.10.key", 2, true}},
		},
		"stacked, numbered": {
			frame([]end{{"past_0", fl, []any{2, "b", 4, "past", 8}}}, []end{{"present_0", fl, []any{2, "b", 4, "all", 8}}}, nil),
			[]CachePair{{"past_0", "present_0", 3, true}},
		},
		"cross attention": {
			frame([]end{{"past_key_values.0.decoder.key", fl, kv}, {"past_key_values.0.encoder.key", fl, []any{"b", 4, "enc", 8}}},
				[]end{{"present.0.decoder.key", fl, kv}, {"present.0.encoder.key", fl, kv}}, nil),
			[]CachePair{{"past_key_values.0.decoder.key", "present.0.decoder.key", 2, true}, {"past_key_values.0.encoder.key", "present.0.encoder.key", 2, false}},
		},
		"another type or rank": {
			frame([]end{{"past_a", fl, kv}, {"past_b", fl, []any{"b", 4}}}, []end{{"present_a", hf, kv}, {"present_b", fl, []any{"b", 4}}}, nil),
			nil,
		},
		"by the Concat, whatever the names": {
			frame([]end{{"k_in", fl, kv}, {"k_now", fl, kv}}, []end{{"k_out", fl, kv}}, func(g *graph.Graph) {
				cat := g.AddNode("Concat", "", "", []*graph.Value{g.Value("k_in"), g.Value("k_now")}, []string{"joined"}, graph.IntAttr("axis", -1)).Out[0]
				g.AddNode("Identity", "", "", []*graph.Value{cat}, []string{"k_out"})
			}),
			[]CachePair{{"k_in", "k_out", 3, true}},
		},
		"a buffer that begins with positions": {
			frame([]end{{"past_key_values.0.key", fl, []any{"max_cache_len", "b", 4, 8}}}, []end{{"present.0.key", fl, []any{"max_cache_len", "b", 4, 8}}}, nil),
			[]CachePair{{"past_key_values.0.key", "present.0.key", 0, true}},
		},
		"a Concat of something else": {
			frame([]end{{"hidden", fl, []any{"b", "s", 8}}, {"prefix", fl, []any{"b", "p", 8}}}, []end{{"all", fl, []any{"b", "t", 8}}}, func(g *graph.Graph) {
				g.AddNode("Concat", "", "", []*graph.Value{g.Value("prefix"), g.Value("hidden")}, []string{"all"}, graph.IntAttr("axis", 1))
			}),
			nil,
		},
		"by the fused operator": {
			frame([]end{{"q", fl, kv}, {"a", fl, kv}, {"c", fl, kv}}, []end{{"a2", fl, kv}, {"c2", fl, kv}}, func(g *graph.Graph) {
				q := g.Value("q")
				g.AddNode("GroupQueryAttention", "com.microsoft", "", []*graph.Value{q, q, q, g.Value("a"), g.Value("c")}, []string{"y", "a2", "c2"})
			}),
			[]CachePair{{"a", "a2", 2, true}, {"c", "c2", 2, true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Describe(c.m)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.Caches, c.want) {
				t.Errorf("got %v, want %v", s.Caches, c.want)
			}
		})
	}
}

func TestWhatSymbolsCount(t *testing.T) {
	for symbol, want := range map[string]Quantity{
		"batch_size": Batch, "sequence_length": Seq, "decoder_sequence_length": Seq, "past_sequence_length": Past,
		"past_decoder_sequence_length": Past, "total_sequence_length": Total, "encoder_sequence_length": Encoder,
		"encoder_sequence_length_out": Encoder, "max_seq_len_in_batch": Seq, "kv_len": Past, "num_tokens": Seq,
	} {
		if got, ok := quantityByName(symbol); !ok || got != want {
			t.Errorf("%s: got %s, want %s", symbol, got, want)
		}
	}
	if q, ok := quantityByName("unk__17"); ok {
		t.Errorf("unk__17 counts %s", q)
	}
}

func TestLogitsByNameOrWidth(t *testing.T) {
	ids := end{"input_ids", i64, []any{"b", "s"}}
	embed := func(g *graph.Graph) {
		table := g.AddInit(graph.NewTensor("table", []int64{50, 2}, make([]float32, 100)))
		g.AddNode("Gather", "", "look", []*graph.Value{table, g.Value("input_ids")}, []string{"found"})
	}
	for name, c := range map[string]struct {
		outs []end
		want string
	}{
		"by name":          {[]end{{"hidden", fl, []any{"b", "s", 50}}, {"logits", fl, []any{"b", "s", "v"}}}, "logits"},
		"by width":         {[]end{{"hidden", fl, []any{"b", "s", 2}}, {"scores", fl, []any{"b", "s", 50}}}, "scores"},
		"two of one width": {[]end{{"a", fl, []any{"b", "s", 50}}, {"c", fl, []any{"b", "s", 50}}}, ""},
		"none":             {[]end{{"pooled", fl, []any{"b", 50}}}, ""},
		"of integers":      {[]end{{"logits", i64, []any{"b", "s", 50}}}, ""},
	} {
		s, err := Describe(frame([]end{ids}, c.outs, embed))
		if err != nil {
			t.Fatal(err)
		}
		if s.Logits != c.want {
			t.Errorf("%s: got %q, want %q", name, s.Logits, c.want)
		}
		if s.IsDecoder() != (c.want != "") {
			t.Errorf("%s: IsDecoder is %v", name, s.IsDecoder())
		}
	}
}

func TestInputsThatCannotBeMade(t *testing.T) {
	m := graph.New(8, 17)
	elem := int32(fl)
	m.Graph.AddInput("x", &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: &elem}}})
	if _, err := Describe(m); err == nil {
		t.Error("an input without a shape")
	}
	m = graph.New(8, 17)
	m.Graph.AddInput("x", &onnxpb.TypeProto{Value: &onnxpb.TypeProto_SequenceType{SequenceType: &onnxpb.TypeProto_Sequence{}}})
	if _, err := Describe(m); err == nil {
		t.Error("a sequence")
	}
}

// Masks, positions and lengths of one padded call with a past, worked out by hand.
func TestValuesOfAPaddedCall(t *testing.T) {
	m := frame([]end{
		{"input_ids", i64, []any{"b", "s"}},
		{"attention_mask", i32, []any{"b", "t"}},
		{"position_ids", i64, []any{"b", "s"}},
		{"past_key", fl, []any{"b", 2, "p", 4}},
		{"seqlens_k", i32, []any{"b"}},
		{"total_sequence_length", i32, nil},
		{"use_cache_branch", bo, []any{1}},
		{"token_type_ids", i64, []any{"b", "s"}},
	}, []end{{"present_key", fl, []any{"b", 2, "t", 4}}}, nil)
	s, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	c := s.settle(Case{Batch: 3, Seq: 2, Past: 2, Padding: true})
	in, err := s.feed(batch{Case: c, real: padding(3, 4)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]int64{
		"attention_mask":        {1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1},
		"position_ids":          {2, 3, 1, 2, 0, 1},
		"seqlens_k":             {3, 3, 3},
		"total_sequence_length": {4},
		"use_cache_branch":      {1},
		"token_type_ids":        {0, 0, 0, 0, 0, 0},
	} {
		got, err := in[name].Int64s()
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: got %v %v (%v), want %v", name, in[name], got, err, want)
		}
	}
	if s := in["past_key"].Shape; !slices.Equal(s, []int64{3, 2, 2, 4}) {
		t.Errorf("past %v", s)
	}
	if !slices.Equal(padding(2, 1)[1], []bool{true}) {
		t.Error("a sequence that is all padding")
	}
}

func TestDefaultCasesStayWithinTheModel(t *testing.T) {
	m := frame([]end{
		{"input_ids", i64, []any{"b", "s"}}, {"position_ids", i64, []any{"b", "s"}}, {"past_key", fl, []any{"b", 2, "p", 4}},
	}, []end{{"present_key", fl, []any{"b", 2, "t", 4}}}, func(g *graph.Graph) {
		table := g.AddInit(graph.NewTensor("wpe", []int64{6, 2}, make([]float32, 12)))
		g.AddNode("Gather", "", "look", []*graph.Value{table, g.Value("position_ids")}, []string{"found"})
	})
	s, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, c := range DefaultCases(s) {
		if names[c.Name] {
			t.Errorf("case %s twice", c.Name)
		}
		names[c.Name] = true
		if _, err := s.feed(batch{Case: c}, nil); err != nil {
			t.Errorf("case %s: %v", c.Name, err)
		}
	}
	if len(names) < 4 {
		t.Errorf("only %v", names)
	}
}

// A mask of positions by positions, as nn.Transformer takes it, has no place for the padding of a sequence.
func TestOneMaskForAllSequences(t *testing.T) {
	m := frame([]end{{"src", fl, []any{"batch", "seq", 8}}, {"tgt", fl, []any{"batch", "dec", 8}}, {"tgt_mask", fl, []any{"dec", "dec"}}},
		[]end{{"out", fl, []any{"batch", "dec", 8}}}, nil)
	s, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	if s.pads() {
		t.Error("the mask marks padding")
	}
	c := s.settle(Case{Batch: 3, Seq: 16, Padding: true})
	if _, err := s.feed(batch{Case: c, real: padding(3, 16)}, nil); err != nil {
		t.Error(err)
	}
}
