package testmodels

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// The dresses. Each is the attention of a whole exporter, so that an architecture in it is one row of Dressed.

// simplified is what onnxsim, onnxslim and the like leave: every shape a constant with 0 and -1, K transposed straight
// into the product, no Identity and no Constant nodes.
var simplified = dress{opset: 17, attention: func(e *emitter, s site) wire {
	a := e.a
	heads := func(module, w string, x wire, n int) wire {
		y := e.linear(module, layer(s.i, s.prefix+w), x, n*a.headDim, a.model)
		return e.reshape(y, e.is(0, 0, n, a.headDim))
	}
	q := e.placed(s, e.transpose(heads("q_proj", "q", s.x, a.heads), 0, 2, 1, 3), "q_norm")
	k, v := e.grown(s,
		func() wire {
			return e.placed(s, e.transpose(heads("k_proj", "k", s.source, a.kvHeads), 0, 2, 1, 3), "k_norm")
		},
		func() wire { return e.transpose(heads("v_proj", "v", s.source, a.kvHeads), 0, 2, 1, 3) })
	scores := e.scored(s, q, e.transpose(e.repeated(k), 0, 1, 3, 2))
	y := e.op("MatMul", e.softmax(scores, -1), e.repeated(v))
	y = e.reshape(e.transpose(y, 0, 2, 1, 3), e.is(0, 0, a.attnDim()))
	return e.linear("o_proj", layer(s.i, s.prefix+"o"), y, a.model, a.attnDim())
}}

// nameless is simplified after graphsurgeon's cleanup: nodes without names, values numbered.
var nameless = dress{opset: 17, attention: simplified.attention, finish: func(e *emitter) {
	for _, n := range e.g.Nodes {
		empty := ""
		n.Name, n.Proto.Name = empty, &empty
	}
}}

// packedReshape is paddle2onnx: all weights Constant nodes, one projection reshaped to [B, S, 3, H, d], heads brought in
// front at once, q, k and v taken off by Slice and Squeeze.
var packedReshape = dress{opset: 13, attention: func(e *emitter, s site) wire {
	a := e.a
	weight, bias := e.packed(s.i)
	qkv := e.linearData("qkv", s.x, weight, bias, 3*a.attnDim(), a.model)
	qkv = e.transpose(e.reshape(qkv, e.is(0, 0, 3, a.heads, a.headDim)), 2, 0, 3, 1, 4)
	part := func(n int) func() wire {
		return func() wire { return e.squeeze(e.slice(qkv, 0, num(n), num(n+1)), 0) }
	}
	k, v := e.grown(s, part(1), part(2))
	scores := e.op("MatMul", e.op("Mul", part(0)(), e.f(a.scale)), e.transpose(k, 0, 1, 3, 2))
	if s.mask != nil {
		scores = e.op("Add", scores, s.mask)
	}
	y := e.transpose(e.op("MatMul", e.softmax(scores, -1), v), 0, 2, 1, 3)
	return e.linear("proj", layer(s.i, "o"), e.reshape(y, e.is(0, 0, a.attnDim())), a.model, a.attnDim())
}, finish: constantNodes}

// constantNodes makes every initializer a Constant node in front.
func constantNodes(e *emitter) {
	for _, v := range slices.Clone(e.g.Inits) {
		c := e.g.AddNode("Constant", "", v.Name+"/constant", nil, []string{v.Name + ".constant"}, graph.TensorAttr("value", v.Init)).Out[0]
		for _, u := range slices.Clone(v.Users()) {
			u.Node.SetInput(u.Index, c)
		}
	}
	e.g.RemoveDead(nil)
	if err := e.g.Sort(); err != nil {
		panic(err) // nodes without inputs have a place in any graph
	}
}

// flat is tf2onnx: activations are brought to two dims around every MatMul, and back by sizes read from the input.
var flat = dress{opset: 13, attention: func(e *emitter, s site) wire {
	a := e.a
	dense := func(module, w string, x wire, out, in int, sizes ...size) wire {
		return e.module(module, func() wire {
			y := e.op("MatMul", e.reshape(x, e.is(-1, in)), e.init(e.param("kernel:0"), transposed(e.w[w+".weight"], out, in), in, out))
			if b := e.w[w+".bias"]; b != nil {
				y = e.op("Add", y, e.init(e.param("bias:0"), b, out))
			}
			return e.view(y, sizes...)
		})
	}
	heads := func(module, w string, x wire, n, static int) wire {
		y := dense(module, layer(s.i, s.prefix+w), x, n*a.headDim, a.model, e.dim(x, 0, e.o.Batch), e.dim(x, 1, static), num(n), num(a.headDim))
		return e.transpose(y, 0, 2, 1, 3)
	}
	static := e.o.Seq
	if s.prefix != "" {
		static = e.encoderSeq()
	}
	q := e.placed(s, heads("query", "q", s.x, a.heads, e.o.Seq), "q_norm")
	k, v := e.grown(s,
		func() wire { return e.placed(s, heads("key", "k", s.source, a.kvHeads, static), "k_norm") },
		func() wire { return heads("value", "v", s.source, a.kvHeads, static) })
	scores := e.scored(s, q, e.transpose(e.repeated(k), 0, 1, 3, 2))
	y := e.transpose(e.op("MatMul", e.softmax(scores, -1), e.repeated(v)), 0, 2, 1, 3)
	return dense("output", layer(s.i, s.prefix+"o"), y, a.model, a.attnDim(), e.dim(s.x, 0, e.o.Batch), e.dim(s.x, 1, e.o.Seq), num(a.model))
}}

// einsums is keras: MultiHeadAttention by Einsum with kernels [model, H, d] and biases [H, d], keys on the left of the
// first product. Heads stay on axis 2. Without a cache.
var einsums = dress{opset: 14, attention: func(e *emitter, s site) wire {
	a := e.a
	sum := func(equation string, x, y wire) wire {
		return e.node("Einsum", []wire{x, y}, graph.StringAttr("equation", equation))
	}
	heads := func(module, w string, x wire) wire {
		return e.module(module, func() wire {
			y := sum("abc,cde->abde", x, e.init(e.param("kernel:0"), transposed(e.w[w+".weight"], a.attnDim(), a.model), a.model, a.heads, a.headDim))
			if b := e.w[w+".bias"]; b != nil {
				y = e.op("Add", y, e.init(e.param("bias:0"), b, a.heads, a.headDim))
			}
			return y
		})
	}
	name := func(w string) string { return layer(s.i, s.prefix+w) }
	q, k, v := heads("query", name("q"), s.x), heads("key", name("k"), s.source), heads("value", name("v"), s.source)
	scores := e.capped(sum("aecd,abcd->acbe", k, e.op("Mul", q, e.f(a.scale))))
	if s.mask != nil {
		scores = e.op("Add", scores, s.mask)
	}
	y := sum("acbe,aecd->abcd", e.softmax(scores, -1), v)
	return e.module("attention_output", func() wire {
		y := sum("abcd,cde->abe", y, e.init(e.param("kernel:0"), transposed(e.w[name("o")+".weight"], a.model, a.attnDim()), a.heads, a.headDim, a.model))
		if b := e.w[name("o")+".bias"]; b != nil {
			y = e.op("Add", y, e.init(e.param("bias:0"), b, a.model))
		}
		return y
	})
}}

// groupQuery is onnxruntime-genai's model builder: GroupQueryAttention after separate projections or a packed one, with
// the rotary embedding inside. Sequences of a batch are of one length, as the expansion of the operator assumes.
func groupQuery(packed bool) dress {
	return dress{opset: 17, attention: func(e *emitter, s site) wire {
		a := e.a
		var in [11]wire
		switch {
		case packed:
			weight, bias := e.packed(s.i)
			in[0] = e.linearData("qkv_proj", s.x, weight, bias, a.attnDim()+2*a.kvDim(), a.model)
		default:
			in[0] = e.linear("q_proj", layer(s.i, "q"), s.x, a.attnDim(), a.model)
			in[1] = e.linear("k_proj", layer(s.i, "k"), s.x, a.kvDim(), a.model)
			in[2] = e.linear("v_proj", layer(s.i, "v"), s.x, a.kvDim(), a.model)
			if a.qkNorm {
				in[0], in[1] = e.headNorm(s, in[0], "q_norm", a.heads), e.headNorm(s, in[1], "k_norm", a.kvHeads)
			}
		}
		e.microsoft()
		counted := e.node("ReduceSum", []wire{s.attentionBy, e.is(1)}, graph.IntAttr("keepdims", 0))
		in[5] = e.cast(e.op("Sub", counted, e.i(1)), onnxpb.TensorProto_INT32)
		in[6] = e.cast(e.scalar(size{wire: e.gather(e.op("Shape", s.attentionBy), e.i(1), 0)}), onnxpb.TensorProto_INT32)
		attrs := []*onnxpb.AttributeProto{graph.IntAttr("num_heads", int64(a.heads)), graph.IntAttr("kv_num_heads", int64(a.kvHeads)), graph.FloatAttr("scale", float32(a.scale))}
		if a.position == rotary {
			cos, sin := e.tables(a.rotary/2, func(i int) int { return i })
			in[7], in[8] = e.init("cos_cache", cos, e.o.MaxSeq, a.rotary/2), e.init("sin_cache", sin, e.o.MaxSeq, a.rotary/2)
			attrs = append(attrs, graph.IntAttr("do_rotary", 1))
		}
		if a.window > 0 {
			attrs = append(attrs, graph.IntAttr("local_window_size", int64(a.window)))
		}
		if a.softcap > 0 {
			attrs = append(attrs, graph.FloatAttr("softcap", float32(a.softcap)))
		}
		name := e.habits.node(e.scope, "GroupQueryAttention")
		out := []string{name + "/output_0", name + "/output_1", name + "/output_2"}
		if s.pasts != nil {
			in[3], in[4] = s.pasts[s.i][0], s.pasts[s.i][1]
			_, present := cacheNames(a, s.i)
			out[1], out[2] = present[0], present[1]
		}
		y := e.g.AddNode("GroupQueryAttention", "com.microsoft", name, in[:9], out, attrs...).Out[0]
		return e.linear("o_proj", layer(s.i, "o"), y, a.model, a.attnDim())
	}}
}

// eager is transformers' BartAttention, which WhisperAttention and others copied: the query scaled before it is split,
// products of three dims, the mask added in four.
var eager = dress{opset: 14, attention: func(e *emitter, s site) wire {
	a := e.a
	heads := func(x wire) wire { return e.heads(x, e.dim(x, 0, e.o.Batch), num(-1), a.heads) }
	project := func(module, w string, x wire) wire {
		return e.linear(module, layer(s.i, s.prefix+w), x, a.attnDim(), a.model)
	}
	q := heads(e.op("Mul", project("q_proj", "q", s.x), e.f(a.scale)))
	k, v := e.grown(s,
		func() wire { return heads(project("k_proj", "k", s.source)) },
		func() wire { return heads(project("v_proj", "v", s.source)) })
	length := e.o.Seq
	if n := a.tokens(); n > 0 {
		length = n
	}
	batch, seq := e.dim(s.x, 0, e.o.Batch), e.dim(s.x, 1, length)
	merged := e.times(batch, num(a.heads))
	flat := func(x wire) wire { return e.view(x, merged, num(-1), num(a.headDim)) }
	scores := e.op("MatMul", flat(q), e.transpose(flat(k), 0, 2, 1))
	if s.mask != nil {
		scores = e.op("Add", e.view(scores, batch, num(a.heads), seq, num(-1)), s.mask)
		scores = e.view(scores, merged, seq, num(-1))
	}
	y := e.op("MatMul", e.softmax(scores, -1), flat(v))
	y = e.unheads(e.view(y, batch, num(a.heads), seq, num(a.headDim)), batch, seq)
	return e.linear("out_proj", layer(s.i, s.prefix+"o"), y, a.model, a.attnDim())
}}

// headNorm norms each head of [B, S, n·d] by itself, between two Reshapes.
func (e *emitter) headNorm(s site, x wire, norm string, n int) wire {
	x = e.norm(norm, layer(s.i, norm), e.reshape(x, e.is(0, 0, n, e.a.headDim)), e.a.headDim)
	return e.reshape(x, e.is(0, 0, n*e.a.headDim))
}

// microsoft imports ONNX Runtime's own operators.
func (e *emitter) microsoft() {
	if e.g.Model.Opset("com.microsoft") == 0 {
		domain, version := "com.microsoft", int64(1)
		e.g.Model.Proto.OpsetImport = append(e.g.Model.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &version})
	}
}

// standard is mobius and other builders on new opsets: Attention and RotaryEmbedding 23 on [B, S, n·d], a mask of bits.
var standard = dress{opset: 23, attention: func(e *emitter, s site) wire {
	a := e.a
	q := e.linear("q_proj", layer(s.i, s.prefix+"q"), s.x, a.attnDim(), a.model)
	k := e.linear("k_proj", layer(s.i, s.prefix+"k"), s.source, a.kvDim(), a.model)
	v := e.linear("v_proj", layer(s.i, s.prefix+"v"), s.source, a.kvDim(), a.model)
	if a.qkNorm {
		q, k = e.headNorm(s, q, "q_norm", a.heads), e.headNorm(s, k, "k_norm", a.kvHeads)
	}
	if s.rotation.cos != nil {
		cos, sin := e.tables(a.rotary/2, func(i int) int { return i })
		tables := []wire{e.init("cos_cache", cos, e.o.MaxSeq, a.rotary/2), e.init("sin_cache", sin, e.o.MaxSeq, a.rotary/2), s.positions}
		turn := func(x wire, n int) wire {
			attrs := []*onnxpb.AttributeProto{graph.IntAttr("num_heads", int64(n))}
			if a.rotary < a.headDim {
				attrs = append(attrs, graph.IntAttr("rotary_embedding_dim", int64(a.rotary)))
			}
			return e.node("RotaryEmbedding", append([]wire{x}, tables...), attrs...)
		}
		q, k = turn(q, a.heads), turn(k, a.kvHeads)
	}
	attrs := []*onnxpb.AttributeProto{graph.IntAttr("q_num_heads", int64(a.heads)), graph.IntAttr("kv_num_heads", int64(a.kvHeads)), graph.FloatAttr("scale", float32(a.scale))}
	if a.softcap > 0 {
		attrs = append(attrs, graph.FloatAttr("softcap", float32(a.softcap)))
	}
	mask := s.visible
	switch {
	case a.position == alibi:
		mask = s.mask
	case mask == nil:
	case !a.causal || s.prefix != "": // the runtime wants a row for each query
		mask = e.op("Expand", mask, e.shape(num(1), num(1), e.dim(s.x, 1, e.o.Seq), num(1)))
	}
	in := []wire{q, k, v, mask}
	name := e.habits.node(e.scope, "Attention")
	out := []string{name + "_output_0"}
	if s.pasts != nil && s.prefix == "" {
		in = append(in, s.pasts[s.i][0], s.pasts[s.i][1])
		_, present := cacheNames(a, s.i)
		out = append(out, present[0], present[1])
	}
	y := e.g.AddNode("Attention", "", name, in, out, attrs...).Out[0]
	return e.linear("o_proj", layer(s.i, s.prefix+"o"), y, a.model, a.attnDim())
}}

// Dressed lists what Families does not have: architectures in dresses, that is what an architecture adds (windows, caps, partial
// rotation) in what exporters add (fused operators, Einsum, folded shapes), and architectures whose attention is no one
// else's.
func Dressed() []Family { return slices.Clone(dressedFamilies) }

var dressedFamilies = func() []Family {
	with := func(define func(Options) arch, change func(*arch)) func(Options) arch {
		return func(o Options) arch {
			a := define(o)
			change(&a)
			return a
		}
	}
	grouped := (*Options).grouped
	mistral := with(llamaArch, func(a *arch) { a.window = 4 })
	gemma := with(llamaArch, func(a *arch) {
		a.softcap, a.act, a.tied = 3, geluNew, true
		a.embedScale = 2
	})
	phi := with(neoxArch, func(a *arch) { a.oneNorm = true })
	mpt := with(gpt2Arch, func(a *arch) {
		a.position, a.act = alibi, gelu
		a.qkvBias, a.outBias, a.mlpBias = false, false, false
	})
	distilbert := with(bertArch, func(a *arch) { a.types = false })
	whisper := with(gpt2Arch, func(a *arch) { a.cross, a.open, a.freeKeys, a.act = true, true, true, gelu })
	ear := with(whisper, func(a *arch) {
		a.causal, a.cross, a.tied, a.hidden = false, false, false, true
		a.mels, a.side = 6, 8
	})
	bart := with(distilbert, func(a *arch) { a.causal, a.cross, a.tied, a.hidden = true, true, true, false })
	siglipText := with(gpt2Arch, func(a *arch) { a.causal, a.hidden, a.tied = false, true, false })
	clip := with(gpt2Arch, func(a *arch) { a.hidden, a.tied = true, false })

	dresses := map[string]struct {
		dress
		doc string
	}{
		"simplified": {simplified,
			"onnxsim, onnxslim: every shape a constant with 0 and -1, K transposed straight into the product, no Constant nodes"},
		"graphsurgeon": {nameless,
			"the same after graphsurgeon's cleanup: nodes without names"},
		"paddle": {packedReshape,
			"paddle2onnx: weights as Constant nodes, qkv reshaped to [B, S, 3, H, d], heads in front by one Transpose, Slice and Squeeze"},
		"torch": {eager,
			"TorchScript, eager, as BART has it: the query scaled before it is split, products of three dims, the mask added in four"},
		"tf": {flat,
			"tf2onnx: Reshape to two dims around every MatMul, and back by sizes read from the input"},
		"keras": {einsums,
			"keras: Einsum with kernels [model, H, d] and biases [H, d], keys on the left of the first product"},
		"genai": {groupQuery(false),
			"onnxruntime-genai: GroupQueryAttention with the rotary embedding inside"},
		"genai-packed": {groupQuery(true),
			"onnxruntime-genai: the same after one packed projection"},
		"mobius": {standard,
			"mobius: Attention and RotaryEmbedding of opset 23, a mask of bits"},
	}
	var out []Family
	for _, row := range []struct {
		arch   string
		define func(Options) arch
		preset func(*Options)
		in     []string
	}{
		{"bert", bertArch, nil, []string{"simplified", "paddle", "tf", "keras", "mobius"}},
		{"distilbert", distilbert, nil, []string{"graphsurgeon"}},
		{"clip-text", clip, nil, []string{"simplified", "keras"}},
		{"gpt2", gpt2Arch, nil, []string{"paddle", "tf", "mobius"}},
		{"siglip-image", siglipArch, nil, []string{"simplified"}},
		{"siglip-text", siglipText, nil, []string{"torch"}},
		{"whisper-encoder", ear, nil, []string{"torch", "simplified"}},
		{"whisper-decoder", whisper, nil, []string{"torch", "simplified", "tf", "mobius"}},
		{"bart-encoder", distilbert, nil, []string{"torch"}},
		{"bart-decoder", bart, nil, []string{"torch"}},
		{"mistral", mistral, grouped, []string{"simplified", "genai", "mobius"}},
		{"gemma", gemma, grouped, []string{"simplified", "genai-packed", "mobius"}},
		{"phi", phi, nil, []string{"graphsurgeon", "genai-packed", "mobius"}},
		{"qwen2", llamaArch, func(o *Options) { o.Bias = true; o.grouped() }, []string{"tf", "genai-packed"}},
		{"qwen3", llamaArch, func(o *Options) { o.QKNorm = true; o.grouped() }, []string{"simplified", "genai", "mobius"}},
		{"mpt", mpt, nil, []string{"simplified", "mobius"}},
	} {
		for _, name := range row.in {
			d := dresses[name]
			a := row.define(base0)
			preset := func(o *Options) {
				if row.preset != nil {
					row.preset(o)
				}
				if strings.HasPrefix(name, "genai") { // the operator turns multiples of 16 channels
					orDefault(&o.HeadDim, 16*base0.HeadDim/row.define(base0).turned())
					orDefault(&o.ModelDim, 32)
				}
			}
			out = append(out, Family{
				Name: fmt.Sprintf("%s/%s", row.arch, name), Doc: d.doc,
				Decoder: a.causal && !a.hidden && name != "keras", unstaged: a.cross && (name == "keras" || name == "mobius"), Uniform: strings.HasPrefix(name, "genai"), opset: d.opset, oldest: d.opset, preset: preset, define: row.define, build: dressed(d.dress),
			})
		}
	}
	return append(out, ofTheirOwn...)
}()

// turned is the number of channels that a rotary embedding turns, all of them without one.
func (a arch) turned() int {
	if a.position != rotary {
		return a.headDim
	}
	return a.rotary
}

// base0 are options to ask an architecture what it is.
var base0 = Options{HeadDim: 8, Heads: 4, KVHeads: 4, RotaryDim: 4}
