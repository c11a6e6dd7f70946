// Package testmodels builds small transformers in the un-fused styles of real exporters, together with a plain Go
// implementation of each architecture that knows nothing of ONNX, so that a rewritten graph can be judged by numbers
// from an independent source. It also converts llama2.c checkpoints to ONNX.
//
// A family is one architecture in one exporter's dress. Builders and references share weights by name and nothing else:
// a builder packs, transposes and names them as its exporter would, the reference reads them as the architecture
// defines them.
package testmodels

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Options size and vary a model. The zero value is a model of two layers and four heads of eight channels.
type Options struct {
	Layers   int // 2
	Heads    int // 4
	KVHeads  int // Heads, 2 for the grouped-query families, 1 for the multi-query ones
	HeadDim  int // 8
	ModelDim int // Heads·HeadDim
	FFN      int // 2·ModelDim
	Vocab    int // 64; the number of classes for ViT
	MaxSeq   int // 64: rows of the position tables

	Cache  bool // past key/value inputs and present outputs; decoders only
	Static bool // fixed dims of Batch, Seq and Past instead of symbolic ones
	Batch  int  // 2; used when Static
	Seq    int  // 5; used when Static
	Past   int  // 3; used when Static and Cache
	Stage  Stage

	Seed  uint64                      // of the weights: same options, same bytes
	DType onnxpb.TensorProto_DataType // FLOAT (the zero value means that too) or FLOAT16
	Opset int64                       // the family's own unless given

	// Variants. Families set the ones that make them what they are; where a family leaves one open it is a choice.
	Bias        bool   // biases on q, k and v (Llama families)
	QKNorm      bool   // RMS norm of every query and key head (Llama families)
	Interleaved bool   // rotary pairs (2i, 2i+1) instead of (i, i+d/2) (Llama families)
	RotaryDim   int    // rotated channels per head; HeadDim, or half of it for GPT-NeoX and GPT-J
	Broadcast   bool   // query heads on an axis behind their key/value head, nothing repeated (TorchScript Llama families)
	Unfolded    bool   // linear weights stay [out, in] behind a Transpose node, as older dynamo exporters leave them
	Scale       Scale  // where 1/√d enters (TorchScript Llama families)
	Mask        Mask   // how scores are hidden (TorchScript Llama families)
	Causal      Causal // how the causal mask is made (TorchScript Llama families)
}

// Stage says which of the two models of a decoder is meant that is exported as a pair.
type Stage string

// Stages. The first step takes no cache and gives one, which with cross attention holds the keys and values of the
// encoder's states as well. The next ones take it, in place of the encoder's states, and give back what grew.
const (
	First Stage = "first"
	Next  Stage = "next"
)

// Scale says where a graph multiplies by 1/√d.
type Scale string

// Places of the scale. ScaleSqrt takes the square root of a factor computed from Shape on both operands, as
// TorchScript writes scaled_dot_product_attention.
const (
	ScaleDiv   Scale = "div"   // Q·Kᵀ / √d
	ScaleMul   Scale = "mul"   // Q·Kᵀ · d^-½
	ScaleSqrt  Scale = "sqrt"  // (Q·d^-¼)·(K·d^-¼)ᵀ
	ScaleQuery Scale = "query" // (Q·d^-½)·Kᵀ
)

// Mask says how positions are hidden from the softmax.
type Mask string

// Masks: a float tensor added to the scores, or a Where between scores and a large negative number.
const (
	MaskAdd   Mask = "add"
	MaskWhere Mask = "where"
)

// Causal says how the causal mask is made.
type Causal string

// Causal masks: Trilu of a constant, or a comparison of two Ranges.
const (
	CausalTrilu Causal = "trilu"
	CausalRange Causal = "range"
)

// Family is one architecture as one exporter writes it.
type Family struct {
	Name    string
	Doc     string // the idioms that this row is here for
	Decoder bool   // causal; Options.Cache applies
	// Uniform says that the sequences of a batch are of one length, and one at a time after a prompt, because the operator
	// of the style (GroupQueryAttention) takes no others.
	Uniform bool

	unstaged bool // cross attention always projects its keys and values

	opset  int64 // by default
	oldest int64 // that has the operators of the style; 11 when zero
	preset func(*Options)
	define func(Options) arch
	build  func(*emitter)
}

// Families lists every family, one row each.
func Families() []Family { return slices.Clone(families) }

// Get returns the family called name.
func Get(name string) (Family, error) {
	for _, f := range slices.Concat(families, dressedFamilies) {
		if f.Name == name {
			return f, nil
		}
	}
	return Family{}, fmt.Errorf("no test model family %q", name)
}

var families = []Family{
	{
		Name: "gpt2", Decoder: true, opset: 14, define: gpt2Arch, build: buildGPT2,
		Doc: "TorchScript, SDPA: Conv1D as Gemm between reshapes to 2-D, Split with sizes, √s from Shape on q and k, Trilu mask",
	},
	{
		Name: "gpt2-matmul", Decoder: true, opset: 13, define: gpt2Arch, build: buildGPT2MatMul,
		Doc: "TorchScript, eager: MatMul+Add c_attn, Split, Div, Where over a sliced causal buffer, then an added padding mask",
	},
	{
		Name: "gpt2-dynamo", Decoder: true, opset: 18, oldest: 18, define: gpt2Arch, build: buildGPT2Dynamo,
		Doc: "torch dynamo: Gemm on [-1, D], Split num_outputs, constants as initializers, K transposed through a 3-D reshape",
	},
	{
		Name: "bert", opset: 14, define: bertArch, build: buildBERT,
		Doc: "TorchScript: MatMul+Add per projection, Div after Q·Kᵀ, mask (1-m)·min added",
	},
	{
		Name: "llama", Decoder: true, opset: 14, define: llamaArch, build: buildLlama,
		Doc: "TorchScript, eager: rotate_half with Slice, Neg, Concat; every head its own K and V; Div after Q·Kᵀ",
	},
	{
		Name: "llama-gqa", Decoder: true, opset: 17, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.grouped(); o.scale(ScaleSqrt) },
		Doc:    "TorchScript, SDPA: repeat_kv by Unsqueeze, Expand to a computed shape, Reshape; √s from Shape on q and k",
	},
	{
		Name: "llama-broadcast", Decoder: true, opset: 14, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.grouped(); o.Broadcast = true },
		Doc:    "TorchScript: grouped queries by 5-D products that broadcast, [B, KV, r, S, d] · [B, KV, 1, d, T]",
	},
	{
		Name: "llama-interleaved", Decoder: true, opset: 17, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.Interleaved = true; o.grouped(); o.scale(ScaleMul); o.causal(CausalRange) },
		Doc:    "TorchScript: rotary on channel pairs by a reshape to [.., d/2, 2], as in llama2.c; Mul after Q·Kᵀ",
	},
	{
		Name: "llama-where", Decoder: true, opset: 14, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.scale(ScaleQuery); o.mask(MaskWhere); o.causal(CausalRange) },
		Doc:    "TorchScript: scale on q alone, scores hidden by Where, causal by comparing Ranges",
	},
	{
		Name: "llama-dynamo", Decoder: true, opset: 18, oldest: 18, define: llamaArch, build: buildLlamaDynamo,
		preset: func(o *Options) { o.grouped() },
		Doc:    "torch dynamo: GQA by Expand and Reshape, K transposed through a 3-D reshape, √s constants, IsNaN guard after the softmax, one initializer for all equal constants (a head count may also be an axis)",
	},
	{
		Name: "qwen2", Decoder: true, opset: 14, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.Bias = true; o.grouped() },
		Doc:    "TorchScript: Llama with biases on q, k, v and grouped-query attention",
	},
	{
		Name: "qwen3", Decoder: true, opset: 17, define: llamaArch, build: buildLlama,
		preset: func(o *Options) { o.QKNorm = true; o.grouped(); o.scale(ScaleMul) },
		Doc:    "TorchScript: Llama with an RMS norm on every query and key head before the rotation",
	},
	{
		Name: "gpt-neox", Decoder: true, opset: 14, define: neoxArch, build: buildNeoX,
		Doc: "TorchScript: qkv interleaved per head, Slice on the last axis, partial rotary, parallel residual",
	},
	{
		Name: "gpt-neox-split", Decoder: true, opset: 17, define: neoxArch, build: buildNeoXSplit,
		Doc: "TorchScript, newer: the same projection, Transpose first, then Split on the last axis",
	},
	{
		Name: "gptj", Decoder: true, opset: 13, define: gptjArch, build: buildGPTJ,
		Doc: "TorchScript: rotate_every_two by strided slices in [B, S, H, d] layout, partial rotary, one norm, parallel residual",
	},
	{
		Name: "opt", Decoder: true, opset: 13, define: optArch, build: buildOPT,
		Doc: "TorchScript: q scaled before the reshape, 3-D products on [B·H, S, d], mask added through a [B, H, S, T] view, Max clip",
	},
	{
		Name: "bloom", Decoder: true, opset: 14, define: bloomArch, build: buildBLOOM,
		Doc: "TorchScript: qkv interleaved per head, picked by Gather on axis 3; ALiBi slopes per head added; Where mask",
	},
	{
		Name: "falcon", Decoder: true, opset: 14, define: falconArch, build: buildFalcon,
		preset: func(o *Options) { o.multiQuery() },
		Doc:    "TorchScript: one key/value head, sliced off the head axis of a packed projection, broadcast without Expand",
	},
	{
		Name: "vit", opset: 14, define: vitArch, build: buildViT,
		Doc: "TorchScript: patch Conv, class token, no mask",
	},
	{
		Name: "t5-encoder", opset: 13, oldest: 12, define: t5EncoderArch, build: buildT5,
		Doc: "TorchScript: relative position bias [1, H, S, S] added with the mask, no scale",
	},
	{
		Name: "t5-decoder", Decoder: true, opset: 13, oldest: 12, define: t5DecoderArch, build: buildT5,
		Doc: "TorchScript: causal relative bias, self-attention cache, cross attention to encoder_hidden_states",
	},
	{
		Name: "mha", opset: 14, define: mhaArch, build: buildMHA,
		Doc: "torch nn.MultiheadAttention: packed in_proj, [S, B, 3, E] unflatten, Gather 0/1/2, [S, B·H, d], head dim from Shape",
	},
	{
		Name: "mha-slice", opset: 11, define: mhaArch, build: buildMHASlice,
		Doc: "older torch nn.MultiheadAttention: packed in_proj cut by Slice, q scaled, 3-D products, Where mask; attribute axes",
	},
}

// grouped asks for two key/value heads where the caller has not said how many.
func (o *Options) grouped() {
	if o.KVHeads == 0 && o.Heads%2 == 0 {
		o.KVHeads = 2
	}
}

func (o *Options) multiQuery() {
	if o.KVHeads == 0 {
		o.KVHeads = 1
	}
}

func (o *Options) scale(s Scale)   { orDefault(&o.Scale, s) }
func (o *Options) mask(m Mask)     { orDefault(&o.Mask, m) }
func (o *Options) causal(c Causal) { orDefault(&o.Causal, c) }

// orDefault sets *v to d when it is zero.
func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// resolve fills in what the caller left open and refuses what the family cannot be.
func (f Family) resolve(o Options) (Options, error) {
	for _, v := range []struct {
		name string
		n    int
	}{
		{"Layers", o.Layers}, {"Heads", o.Heads}, {"KVHeads", o.KVHeads}, {"HeadDim", o.HeadDim}, {"ModelDim", o.ModelDim},
		{"FFN", o.FFN}, {"Vocab", o.Vocab}, {"MaxSeq", o.MaxSeq}, {"Batch", o.Batch}, {"Seq", o.Seq}, {"Past", o.Past}, {"RotaryDim", o.RotaryDim},
	} {
		if v.n < 0 {
			return o, fmt.Errorf("test model %s: %s is %d, want 0 (the default) or more", f.Name, v.name, v.n)
		}
	}
	if o.Stage == Next {
		o.Cache = true
	}
	orDefault(&o.Layers, 2)
	orDefault(&o.Heads, 4)
	if f.preset != nil {
		f.preset(&o)
	}
	orDefault(&o.KVHeads, o.Heads)
	orDefault(&o.HeadDim, 8)
	orDefault(&o.ModelDim, o.Heads*o.HeadDim)
	orDefault(&o.FFN, 2*o.ModelDim)
	orDefault(&o.Vocab, 64)
	orDefault(&o.MaxSeq, 64)
	orDefault(&o.Batch, 2)
	orDefault(&o.Seq, 5)
	orDefault(&o.Past, 3)
	orDefault(&o.Opset, f.opset)
	orDefault(&o.DType, onnxpb.TensorProto_FLOAT)
	o.scale(ScaleDiv)
	o.mask(MaskAdd)
	o.causal(CausalTrilu)
	if o.Opset < 14 && o.Causal == CausalTrilu {
		o.Causal = CausalRange // Trilu came with opset 14
	}
	switch {
	case o.Cache && o.Stage == First:
		return o, fmt.Errorf("test model %s: a first step has no cache yet", f.Name)
	case (o.Cache || o.Stage != "") && !f.Decoder:
		return o, fmt.Errorf("test model %s: an encoder has no cache", f.Name)
	case o.Stage != "" && f.unstaged:
		return o, fmt.Errorf("test model %s: not written in steps", f.Name)
	case o.Opset < max(f.oldest, 11):
		return o, fmt.Errorf("test model %s: opset %d is older than its operators, want %d or more", f.Name, o.Opset, max(f.oldest, 11))
	case o.DType != onnxpb.TensorProto_FLOAT && o.DType != onnxpb.TensorProto_FLOAT16:
		return o, fmt.Errorf("test model %s: weights of type %v, want FLOAT or FLOAT16", f.Name, o.DType)
	case o.Heads%o.KVHeads != 0:
		return o, fmt.Errorf("test model %s: %d KV heads do not divide %d heads", f.Name, o.KVHeads, o.Heads)
	}
	return o, nil
}

// open resolves the options and defines the architecture.
func (f Family) open(o Options) (Options, *arch, error) {
	o, err := f.resolve(o)
	if err != nil {
		return o, nil, err
	}
	a := f.define(o)
	a.maxSeq = o.MaxSeq
	if err := a.check(o); err != nil {
		return o, nil, fmt.Errorf("test model %s: %w", f.Name, err)
	}
	return o, &a, nil
}

// Build makes the ONNX model. The error names the option that the family cannot satisfy.
func (f Family) Build(o Options) (*graph.Model, error) {
	o, a, err := f.open(o)
	if err != nil {
		return nil, err
	}
	return f.assemble(o, a, a.generate(o.Seed)), nil
}

// assemble runs the builder on given weights.
func (f Family) assemble(o Options, a *arch, w bank) *graph.Model {
	ir := int64(7)
	switch {
	case o.Opset >= 18:
		ir = 10
	case o.Opset >= 15:
		ir = 8
	}
	m := graph.New(ir, o.Opset)
	producer := "onnx-dha testmodels"
	m.Proto.ProducerName = &producer
	m.Graph.Name = "main_graph"
	f.build(newEmitter(m.Graph, o, a, w))
	return m
}

// Attentions is the number of attentions in the model.
func (f Family) Attentions(o Options) (int, error) {
	o, a, err := f.open(o)
	if err != nil {
		return 0, err
	}
	switch {
	case a.cross:
		return 2 * o.Layers, nil
	case a.probed:
		return o.Layers + 1, nil
	}
	return o.Layers, nil
}

// Reference returns the plain implementation of the same model: same weights, same input and output names.
func (f Family) Reference(o Options) (*Reference, error) {
	o, a, err := f.open(o)
	if err != nil {
		return nil, err
	}
	return &Reference{a: a, w: a.generate(o.Seed).widen(), cache: o.Cache}, nil
}
