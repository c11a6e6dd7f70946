package attention_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// What each family is, from its architecture: the description that Find must arrive at by following heads.
var architectures = map[string]struct {
	kv     int // KV heads of 4
	rotary attention.Rotary
	mask   attention.Mask
	causal bool
	scale  float64 // of heads of 8 channels
	cross  bool    // every other block is cross attention
}{
	"gpt2":              {4, none, attention.AddMask, true, isqrt8, false},
	"gpt2-matmul":       {4, none, attention.WhereMsk, true, isqrt8, false},
	"gpt2-dynamo":       {4, none, attention.AddMask, true, isqrt8, false},
	"bert":              {4, none, attention.AddMask, false, isqrt8, false},
	"llama":             {4, half(8), attention.AddMask, true, isqrt8, false},
	"llama-gqa":         {2, half(8), attention.AddMask, true, isqrt8, false},
	"llama-broadcast":   {2, half(8), attention.AddMask, true, isqrt8, false},
	"llama-interleaved": {2, attention.Rotary{Kind: attention.Interleaved, Dims: 8}, attention.AddMask, true, isqrt8, false},
	"llama-where":       {4, half(8), attention.WhereMsk, true, isqrt8, false},
	"llama-dynamo":      {2, half(8), attention.AddMask, true, isqrt8, false},
	"qwen2":             {2, half(8), attention.AddMask, true, isqrt8, false},
	"qwen3":             {2, half(8), attention.AddMask, true, isqrt8, false},
	"gpt-neox":          {4, half(4), attention.AddMask, true, isqrt8, false},
	"gpt-neox-split":    {4, half(4), attention.AddMask, true, isqrt8, false},
	"gptj":              {4, attention.Rotary{Kind: attention.Interleaved, Dims: 4}, attention.WhereMsk, true, isqrt8, false},
	"opt":               {4, none, attention.AddMask, true, isqrt8, false},
	"bloom":             {4, none, attention.WhereMsk, true, isqrt8, false},
	"falcon":            {1, half(8), attention.AddMask, true, isqrt8, false},
	"vit":               {4, none, attention.NoMask, false, isqrt8, false},
	"t5-encoder":        {4, none, attention.AddMask, false, 1, false},
	"t5-decoder":        {4, none, attention.AddMask, true, 1, true},
	"mha":               {4, none, attention.AddMask, false, isqrt8, false},
	"mha-slice":         {4, none, attention.WhereMsk, false, isqrt8, false},
}

var (
	none   = attention.Rotary{Kind: attention.NoRotary}
	isqrt8 = 1 / math.Sqrt(8)
)

func half(dims int) attention.Rotary { return attention.Rotary{Kind: attention.HalfSplit, Dims: dims} }

func TestFindDescribesEveryFamily(t *testing.T) {
	for _, f := range testmodels.Families() {
		for _, static := range []bool{false, true} {
			for _, cache := range []bool{false, true} {
				if cache && !f.Decoder {
					continue
				}
				t.Run(fmt.Sprintf("%s/static=%v/cache=%v", f.Name, static, cache), func(t *testing.T) {
					want, ok := architectures[f.Name]
					if !ok {
						t.Fatal("no architecture is written down for this family")
					}
					m, err := f.Build(testmodels.Options{Cache: cache, Static: static})
					if err != nil {
						t.Fatal(err)
					}
					r := attention.Find(m)
					for _, u := range r.Unsupported {
						t.Errorf("not understood: %v at %v: %s", u.Node, u.At, u.Why)
					}
					layers := 2
					if want.cross {
						layers = 4
					}
					if len(r.Blocks) != layers {
						t.Fatalf("%d blocks, want %d", len(r.Blocks), layers)
					}
					for i, b := range r.Blocks {
						cross := want.cross && i%2 == 1
						kind := attention.Self
						if cross {
							kind = attention.Cross
						}
						if b.Kind != kind || b.Heads != 4 || b.KVHeads != want.kv || b.ValueHeads != want.kv || b.HeadDim != 8 || b.ValueDim != 8 {
							t.Errorf("%s: %s attention, %d query, %d key, %d value heads of %d and %d", b.Name, b.Kind, b.Heads, b.KVHeads, b.ValueHeads, b.HeadDim, b.ValueDim)
						}
						if b.Rotary != want.rotary {
							t.Errorf("%s: rotary %v, want %v", b.Name, b.Rotary, want.rotary)
						}
						if !cross && (b.Mask != want.mask || b.Causal != want.causal) {
							t.Errorf("%s: mask %s, causal %v; want %s, %v", b.Name, b.Mask, b.Causal, want.mask, want.causal)
						}
						if math.Abs(b.Scale-want.scale) > 1e-6 {
							t.Errorf("%s: scale %v, want %v", b.Name, b.Scale, want.scale)
						}
						for h, kv := range b.KeyOf {
							if kv != h*want.kv/4 || b.ValueOf[h] != kv {
								t.Errorf("%s: query head %d reads key head %d and value head %d", b.Name, h, kv, b.ValueOf[h])
							}
						}
						cached := cache && !cross
						if has := b.KeyCache != nil && b.KeyCache.Past != nil && b.ValCache != nil && b.ValCache.Present != nil; has != cached {
							t.Errorf("%s: cache %v, want %v", b.Name, has, cached)
						}
						if b.Output == nil {
							t.Errorf("%s: no output projection", b.Name)
						}
						if b.Fixed != "" {
							t.Errorf("%s: cannot be rewritten: %s", b.Name, b.Fixed)
						}
					}
				})
			}
		}
	}
}

func TestScaleAndMaskVariants(t *testing.T) {
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []testmodels.Options{
		{Scale: testmodels.ScaleDiv}, {Scale: testmodels.ScaleMul}, {Scale: testmodels.ScaleSqrt}, {Scale: testmodels.ScaleQuery},
		{Mask: testmodels.MaskWhere, Causal: testmodels.CausalRange}, {Mask: testmodels.MaskAdd, Causal: testmodels.CausalTrilu},
		{QKNorm: true}, {Interleaved: true}, {Bias: true}, {RotaryDim: 4}, {HeadDim: 6, ModelDim: 40}, {Unfolded: true}, {Opset: 18},
	} {
		m, err := f.Build(o)
		if err != nil {
			t.Fatal(err)
		}
		r := attention.Find(m)
		if len(r.Blocks) != 2 {
			t.Errorf("%+v: %d blocks, want 2", o, len(r.Blocks))
			continue
		}
		d := 8.0
		if o.HeadDim > 0 {
			d = float64(o.HeadDim)
		}
		b := r.Blocks[0]
		if math.Abs(b.Scale-1/math.Sqrt(d)) > 1e-6 || !b.Causal || b.Mask == attention.NoMask {
			t.Errorf("%+v: scale %v, causal %v, mask %s", o, b.Scale, b.Causal, b.Mask)
		}
	}
}

// A block's name is what its nodes or weights share, so that a person finds it in another tool; a number where they
// share nothing.
func TestNames(t *testing.T) {
	for family, want := range map[string]string{
		"llama": "/model/layers.1/self_attn", "gpt2": "/transformer/h.1/attn", "llama-dynamo": "attention.1",
		"bert": "/encoder/layer.1/attention/self",
	} {
		f, err := testmodels.Get(family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Build(testmodels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := attention.Find(m).Blocks[1].Name; got != want {
			t.Errorf("%s: block is called %q, want %q", family, got, want)
		}
	}
}

// builder makes the smallest graphs that show one reason each.
type builder struct {
	*graph.Graph
	n int
}

func newBuilder() builder {
	m := graph.New(9, 17)
	g := m.Graph
	g.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "seq", 8))
	return builder{Graph: g}
}

func (b *builder) op(op string, attrs []*onnxpb.AttributeProto, in ...*graph.Value) *graph.Value {
	b.n++
	return b.AddNode(op, "", fmt.Sprintf("%s_%d", op, b.n), in, []string{fmt.Sprintf("%s_%d_out", op, b.n)}, attrs...).Out[0]
}

func (b *builder) weight(dims ...int64) *graph.Value {
	b.n++
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	data := make([]float32, n)
	for i := range data {
		data[i] = float32(i%7) - 3
	}
	return b.AddInit(graph.NewTensor(fmt.Sprintf("w_%d", b.n), dims, data))
}

func (b *builder) ints(x ...int64) *graph.Value {
	b.n++
	return b.AddInit(graph.NewTensor(fmt.Sprintf("i_%d", b.n), []int64{int64(len(x))}, x))
}

func perm(p ...int64) []*onnxpb.AttributeProto {
	return []*onnxpb.AttributeProto{graph.IntsAttr("perm", p...)}
}

// heads splits [batch, seq, 8] into two heads of four: [batch, 2, seq, 4].
func (b *builder) heads(v *graph.Value) *graph.Value {
	return b.op("Transpose", perm(0, 2, 1, 3), b.op("Reshape", nil, v, b.ints(0, 0, 2, 4)))
}

func (b *builder) finish(q, k, v *graph.Value) {
	s := b.op("MatMul", nil, q, b.op("Transpose", perm(0, 1, 3, 2), k))
	p := b.op("Softmax", []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}, s)
	y := b.op("Reshape", nil, b.op("Transpose", perm(0, 2, 1, 3), b.op("MatMul", nil, p, v)), b.ints(0, 0, 8))
	b.AddOutput(b.op("MatMul", nil, y, b.weight(8, 8)), graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "seq", 8))
}

func TestWhatIsNotUnderstoodSaysWhereAndWhy(t *testing.T) {
	project := func(b *builder) *graph.Value { return b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)) }
	for name, c := range map[string]struct {
		build func(b *builder)
		why   string
	}{
		"two projections": {func(b *builder) {
			crossed := b.op("Slice", nil, project(b), b.ints(7), b.ints(-9), b.ints(2), b.ints(-1))
			b.finish(b.heads(project(b)), b.heads(b.op("Add", nil, project(b), crossed)), b.heads(project(b)))
		}, "do not add up column by column"},
		"softmax over another axis": {func(b *builder) {
			q, k, v := b.heads(project(b)), b.heads(project(b)), b.heads(project(b))
			s := b.op("MatMul", nil, q, b.op("Transpose", perm(0, 1, 3, 2), k))
			p := b.op("Softmax", []*onnxpb.AttributeProto{graph.IntAttr("axis", 1)}, s)
			b.AddOutput(b.op("MatMul", nil, p, v), graph.TensorType(onnxpb.TensorProto_FLOAT, nil, nil, nil, nil))
		}, "not over the last axis"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			c.build(&b)
			r := attention.Find(b.Model)
			if len(r.Blocks) != 0 || len(r.Unsupported) != 1 {
				t.Fatalf("%d blocks, %d reasons, want none and one", len(r.Blocks), len(r.Unsupported))
			}
			u := r.Unsupported[0]
			if !strings.Contains(u.Why, c.why) || !u.Attention || u.At == nil {
				t.Errorf("the reason is %q at %v (attention %v), want one with %q", u.Why, u.At, u.Attention, c.why)
			}
		})
	}
}

// What keeps a block from being rewritten though its heads are known is said with the block.
func TestWhatIsDescribedButFixedSaysWhy(t *testing.T) {
	project := func(b *builder) *graph.Value { return b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)) }
	for name, c := range map[string]struct {
		build func(b *builder)
		why   string
	}{
		"norm over all heads": {func(b *builder) {
			k := b.op("LayerNormalization", nil, project(b), b.weight(8))
			b.finish(b.heads(project(b)), b.heads(k), b.heads(project(b)))
		}, "looks at all heads together"},
		"keys are values": {func(b *builder) {
			kv := b.heads(project(b))
			b.finish(b.heads(project(b)), kv, kv)
		}, "share columns of the projection"},
		"keys from the caller": {func(b *builder) {
			k := b.AddInput("keys", graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", 2, "past", 4))
			b.finish(b.heads(project(b)), k, b.heads(project(b)))
		}, `"keys"`},
		"quantised": {func(b *builder) {
			k := b.op("MatMulInteger", nil, b.op("Cast", []*onnxpb.AttributeProto{graph.IntAttr("to", 3)}, b.Value("x")), b.AddInit(graph.NewTensor("w8", []int64{8, 8}, make([]int8, 64))))
			b.finish(b.heads(project(b)), b.heads(b.op("Cast", []*onnxpb.AttributeProto{graph.IntAttr("to", 1)}, k)), b.heads(project(b)))
		}, "MatMulInteger"},
		"an unknown operator": {func(b *builder) {
			k := b.op("CumSum", nil, b.heads(project(b)), b.ints(2))
			b.finish(b.heads(project(b)), k, b.heads(project(b)))
		}, "operator CumSum"},
		"keys given out changed": {func(b *builder) {
			k := b.heads(project(b))
			b.AddOutput(k, graph.TensorType(onnxpb.TensorProto_FLOAT, nil, nil, nil, nil))
			b.AddOutput(b.op("Identity", nil, k), graph.TensorType(onnxpb.TensorProto_FLOAT, nil, nil, nil, nil))
			b.finish(b.heads(project(b)), k, b.heads(project(b)))
		}, "given out twice"},
		"keys of another block": {func(b *builder) {
			k, v := b.heads(project(b)), b.heads(project(b))
			b.finish(b.heads(project(b)), k, v)
			b.finish(b.heads(project(b)), k, v)
		}, "reads heads of block"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			c.build(&b)
			r := attention.Find(b.Model)
			if len(r.Blocks) == 0 || len(r.Unsupported) != 0 {
				t.Fatalf("%d blocks, %d reasons, want a block and none", len(r.Blocks), len(r.Unsupported))
			}
			if last := r.Blocks[len(r.Blocks)-1]; last.Heads != 2 || last.HeadDim != 4 || !strings.Contains(last.Fixed, c.why) {
				t.Errorf("%d heads of %d, fixed because %q, want one with %q", last.Heads, last.HeadDim, last.Fixed, c.why)
			}
		})
	}
}

// A node outside the block that reads the keys is listed with the axis on which it sees the heads.
func TestReadersOutsideTheBlock(t *testing.T) {
	b := newBuilder()
	k := b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8)))
	b.AddOutput(b.op("CumSum", nil, k, b.ints(2)), graph.TensorType(onnxpb.TensorProto_FLOAT, nil, nil, nil, nil))
	b.finish(b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))), k, b.heads(b.op("MatMul", nil, b.Value("x"), b.weight(8, 8))))
	r := attention.Find(b.Model)
	if len(r.Blocks) != 1 || r.Blocks[0].Fixed != "" {
		t.Fatalf("%d blocks, want one that can be rewritten", len(r.Blocks))
	}
	readers := r.Blocks[0].Key.Readers
	if len(readers) != 1 || !readers[0].Node.Is("CumSum") || readers[0].Value != k || readers[0].Axis != 1 {
		t.Errorf("readers of the keys: %+v, want the CumSum that sees heads on axis 1", readers)
	}
}

// A classifier's softmax is listed as something else than attention.
func TestClassifierIsNoAttention(t *testing.T) {
	b := newBuilder()
	y := b.op("Softmax", []*onnxpb.AttributeProto{graph.IntAttr("axis", -1)}, b.op("MatMul", nil, b.Value("x"), b.weight(8, 5)))
	b.AddOutput(y, graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "seq", 5))
	r := attention.Find(b.Model)
	if len(r.Blocks) != 0 || len(r.Unsupported) != 1 || r.Unsupported[0].Attention {
		t.Errorf("%d blocks and %+v, want one softmax that is no attention", len(r.Blocks), r.Unsupported)
	}
}

// Fused operators and attention in bodies are reported, never missed.
func TestWhatComesLaterIsReported(t *testing.T) {
	b := newBuilder()
	b.AddNode("MultiHeadAttention", "com.microsoft", "mha", []*graph.Value{b.Value("x"), b.Value("x"), b.Value("x")}, []string{"y"}, graph.IntAttr("num_heads", 2))
	b.AddNode("Attention", "", "attn", []*graph.Value{b.Value("x"), b.Value("x"), b.Value("x")}, []string{"z"})
	r := attention.Find(b.Model)
	if len(r.Unsupported) != 2 || !strings.Contains(r.Unsupported[0].Why, "com.microsoft.MultiHeadAttention") || !strings.Contains(r.Unsupported[1].Why, "fused operator Attention") {
		t.Errorf("%+v", r.Unsupported)
	}
}

// The corpus: every model is described or has a reason. Counts and reasons are read off the graphs by hand.
func TestCorpus(t *testing.T) {
	for file, want := range map[string]struct {
		blocks, heads int
		why           string
	}{
		"models/capp-gpt":                                                 {4, 4, ""},
		"models/char-llama":                                               {4, 8, ""},
		"corpus/onnxruntime/attention_distilbert":                         {1, 2, ""},
		"corpus/onnxruntime/attention_mask1d_fp32":                        {1, 12, ""},
		"corpus/onnxruntime/attention_mha":                                {0, 0, "fused operator com.microsoft.MultiHeadAttention"},
		"corpus/onnxruntime/attention_past_state":                         {1, 12, ""},
		"corpus/onnxruntime/attention_past_unidir":                        {1, 2, ""},
		"corpus/onnxruntime/attention_symbolic_batch":                     {1, 2, ""},
		"corpus/onnxruntime/bert_toy_optimized":                           {5, 4, ""},
		"corpus/onnxruntime/gpt2_attention_opt_skiplayernorm":             {0, 0, "fused operator com.microsoft.Attention"},
		"corpus/onnxruntime/gpt2_past":                                    {12, 2, ""},
		"corpus/onnxruntime/gpt2_past_one_layer":                          {1, 2, ""},
		"corpus/onnxruntime/hf_fp16_decoder_attention_with_past":          {0, 0, "fused operator com.microsoft.MultiHeadAttention"},
		"corpus/onnxruntime/hf_fp32_decoder_attention_no_past":            {0, 0, "fused operator com.microsoft"},
		"corpus/ort-genai/tiny-random-LlamaForCausalLM-fp16":              {0, 0, "fused operator com.microsoft.MultiHeadAttention"},
		"corpus/ort-genai/tiny-random-gpt2-fp32/past":                     {0, 0, "fused operator com.microsoft.Attention"},
		"corpus/ort-generated/bert_attention.rnd":                         {1, 2, ""},
		"corpus/ort-generated/gpt2_attention.rnd":                         {1, 4, ""},
		"corpus/ort-generated/rotary_mha_past":                            {0, 0, "RotaryEmbedding"},
		"corpus/ort-generated/tf2onnx_bert_3d_attention.rnd":              {0, 0, "Einsum"},
		"corpus/vespa/dummy_transformer":                                  {2, 2, ""},
		"corpus/onnx-backend/test_attention_3d_gqa_causal":                {0, 0, "fused operator Attention"},
		"corpus/onnx-backend/test_attention_4d_gqa_with_past_and_present": {0, 0, "fused operator Attention"},
		"corpus/onnx-backend/test_attention_4d_expanded":                  {1, 3, ""},
		"corpus/onnx-backend/test_attention_4d_softcap_expanded":          {1, 3, ""},
		"corpus/onnx-backend/test_rotary_embedding_expanded":              {0, 0, "-"},
	} {
		t.Run(file, func(t *testing.T) {
			path := filepath.Join("..", "..", "..", "shared", filepath.FromSlash(file))
			if i, err := os.Stat(path); err == nil && i.IsDir() {
				path = filepath.Join(path, "model")
			}
			m, err := graph.Load(path + ".onnx")
			if os.IsNotExist(err) {
				t.Skip("the shared models are not here")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			r := attention.Find(m)
			if len(r.Blocks) != want.blocks {
				t.Errorf("%d blocks, want %d", len(r.Blocks), want.blocks)
			}
			for _, b := range r.Blocks {
				if b.Heads != want.heads {
					t.Errorf("%s has %d heads, want %d", b.Name, b.Heads, want.heads)
				}
			}
			switch {
			case want.why == "-" || want.blocks > 0:
				for _, u := range r.Unsupported {
					t.Errorf("not understood: %v: %s", u.Node, u.Why)
				}
			case len(r.Unsupported) == 0:
				t.Error("attention is missed without a word")
			default:
				for _, u := range r.Unsupported {
					if !strings.Contains(u.Why, want.why) {
						t.Errorf("the reason for %v is %q, want one with %q", u.Node, u.Why, want.why)
					}
				}
			}
		})
	}
}
