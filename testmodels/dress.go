package testmodels

import "onnx-dha/graph"

// dress is how an exporter or optimiser writes attention, whatever the architecture. What is around it is alike in all
// dresses, because nothing depends on it.
type dress struct {
	opset int64
	// attention writes one attention from the normed state to what its output projection gives.
	attention func(e *emitter, s site) wire
	finish    func(e *emitter) // what is done to the whole graph in the end; nil: nothing
}

// site is one attention of a model: queries from x, keys and values from source.
type site struct {
	i           int
	prefix      string // of its weights
	x, source   wire   // [B, S, model] and [B, L, model]
	mask        wire   // to add to scores, [B, 1 or H, S, T]; nil without one
	visible     wire   // the same without ALiBi, true where a query may look; nil without one
	rotation    rotation
	positions   wire
	attentionBy wire // attention_mask
	pasts       [][2]wire
}

// dressed returns a builder of the architecture in a dress.
func dressed(d dress) func(*emitter) {
	return func(e *emitter) {
		a := e.a
		e.habits = &initializers{torchscript{used: map[string]int{}, serial: 40}}
		var ids, types, positions, mask, states, stateMask wire
		sensed := a.tokens() > 0
		if !sensed {
			ids = e.tokens("input_ids")
		}
		switch {
		case sensed:
		case a.cross:
			if e.o.Stage != Next {
				states = e.float("encoder_hidden_states", e.batchDim(), e.encoderDim(), a.model)
			}
			if !a.open {
				stateMask = e.g.AddInput("encoder_attention_mask", intType(e.batchDim(), e.encoderDim()))
			}
		default:
			mask = e.attentionMask()
		}
		if a.types {
			types = e.tokens("token_type_ids")
		}
		if a.hasPositionIDs() {
			positions = e.tokens("position_ids")
		}
		pasts := e.pasts()
		self := site{positions: positions, attentionBy: mask, pasts: pasts}
		var x wire
		switch {
		case a.mels > 0:
			x = e.heard()
		case a.patch > 0:
			x = e.seen()
		default:
			x = e.dressedEmbedding(ids, types, positions, pasts)
			e.masked(&self, ids)
		}
		cross := site{prefix: "cross_", source: states}
		if stateMask != nil {
			cross.mask = e.inverted(stateMask)
			cross.visible = e.castBool(e.mask4(stateMask))
		}
		if a.position == rotary {
			self.rotation = e.unsqueezed(e.gathered(positions, a.rotary, func(i int) int { return i % (a.rotary / 2) }), 1)
		}
		for i := range a.layers {
			x = e.block("layers", i, func() wire { return e.dressedLayer(d, i, x, self, cross) })
		}
		if !a.noFinal {
			if a.hidden {
				e.to("last_hidden_state")
			}
			x = e.norm("norm", "norm", x, a.model)
		}
		if a.probed {
			x = e.module("head", func() wire { return e.probe(x) })
		}
		switch {
		case a.hidden:
		case a.tied:
			e.tied("lm_head", x)
		default:
			e.head("lm_head", x)
		}
		e.outputs()
		if d.finish != nil {
			d.finish(e)
		}
	}
}

func (e *emitter) dressedEmbedding(ids, types, positions wire, pasts [][2]wire) wire {
	a := e.a
	x := e.embedding("embed", "embed.weight", ids, a.vocab, a.model)
	if a.embedScale != 0 {
		x = e.op("Mul", x, e.f(a.embedScale))
	}
	if a.position == learned {
		if positions == nil {
			past := e.pastSize(pasts)
			positions = e.unsqueeze(e.arange(past, e.plus(past, e.dim(ids, 1, e.o.Seq))), 0)
		}
		x = e.op("Add", x, e.embedding("positions", "positions.weight", positions, a.maxSeq, a.model))
	}
	if types != nil {
		x = e.op("Add", x, e.embedding("types", "types.weight", types, 2, a.model))
	}
	if a.embedNorm {
		x = e.norm("embed_norm", "embed_norm", x, a.model)
	}
	return x
}

// masked makes the masks of self attention: padding, later positions, those before a window, ALiBi.
func (e *emitter) masked(s *site, ids wire) {
	a := e.a
	seq, past := e.dim(ids, 1, e.o.Seq), e.pastSize(s.pasts)
	total := e.plus(past, seq)
	if s.attentionBy != nil {
		s.visible = e.castBool(e.mask4(s.attentionBy))
	}
	keys := e.unsqueeze(e.arange(num(0), total), 0)
	queries := e.unsqueeze(e.arange(past, total), 1)
	and := func(v wire) {
		v = e.unsqueeze(e.unsqueeze(v, 0), 1)
		if s.visible != nil {
			v = e.op("And", v, s.visible)
		}
		s.visible = v
	}
	if a.causal {
		and(e.lessOrEqual(keys, queries))
	}
	if a.window > 0 {
		and(e.op("Greater", keys, e.op("Sub", queries, e.i(a.window))))
	}
	s.mask = e.additive(s.visible)
	if a.position == alibi {
		slopes := each(a.slopes(), func(s float64) float32 { return float32(s) })
		distance := e.castFloat(e.op("Sub", keys, queries))
		bias := e.op("Mul", e.unsqueeze(e.unsqueeze(distance, 0), 1), e.fs(slopes, 1, a.heads, 1, 1))
		s.mask = e.op("Add", bias, s.mask)
	}
}

func (e *emitter) dressedLayer(d dress, i int, x wire, self, cross site) wire {
	a := e.a
	attend := func(s site, module string, x wire) wire {
		s.i, s.x = i, x
		if s.prefix == "" {
			s.source = x
		}
		return e.module(module, func() wire { return d.attention(e, s) })
	}
	mlp := func(x wire) wire {
		return e.module("mlp", func() wire {
			up := e.linear("up", layer(i, "up"), x, a.ffn, a.model)
			if a.gated {
				up = e.op("Mul", e.activate("act", e.linear("gate", layer(i, "gate"), x, a.ffn, a.model)), up)
			} else {
				up = e.activate("act", up)
			}
			return e.linear("down", layer(i, "down"), up, a.model, a.ffn)
		})
	}
	if a.macaron {
		return e.conformerLayer(i, x, func(x wire) wire { return attend(self, "attn", x) })
	}
	if a.post {
		x = e.norm("attn_norm", layer(i, "attn_norm"), e.op("Add", x, attend(self, "attn", x)), a.model)
		if a.cross {
			x = e.norm("cross_norm", layer(i, "cross_norm"), e.op("Add", x, attend(cross, "cross_attn", x)), a.model)
		}
		y := e.op("Add", x, mlp(x))
		if a.hidden && i == a.layers-1 {
			e.to("last_hidden_state")
		}
		return e.norm("mlp_norm", layer(i, "mlp_norm"), y, a.model)
	}
	normed := e.norm("attn_norm", layer(i, "attn_norm"), x, a.model)
	attended := attend(self, "attn", normed)
	if a.parallel {
		if !a.oneNorm {
			normed = e.norm("mlp_norm", layer(i, "mlp_norm"), x, a.model)
		}
		return e.op("Add", e.op("Add", x, attended), mlp(normed))
	}
	x = e.op("Add", x, attended)
	if a.cross {
		x = e.op("Add", x, attend(cross, "cross_attn", e.norm("cross_norm", layer(i, "cross_norm"), x, a.model)))
	}
	return e.op("Add", x, mlp(e.norm("mlp_norm", layer(i, "mlp_norm"), x, a.model)))
}

// initializers are habits that keep constants as initializers, as folding tools leave them.
type initializers struct{ torchscript }

func (h *initializers) constant(e *emitter, _ string, t *graph.Tensor) wire {
	name := h.node(e.scope, "const")
	t.Proto.Name = &name
	return e.g.AddInit(t)
}

// placed norms and turns heads [B, n, S, d] where the architecture does.
func (e *emitter) placed(s site, x wire, norm string) wire {
	a := e.a
	if a.qkNorm {
		x = e.norm(norm, layer(s.i, norm), x, a.headDim)
	}
	switch {
	case s.rotation.cos == nil:
		return x
	case a.rotary < a.headDim:
		parts := e.split(x, 3, a.rotary, a.headDim-a.rotary)
		return e.concat(3, e.turned(parts[0], s.rotation), parts[1])
	}
	return e.turned(x, s.rotation)
}

// turned rotates x by halves, cut apart by one Split.
func (e *emitter) turned(x wire, r rotation) wire {
	half := e.a.rotary / 2
	parts := e.split(x, 3, half, half)
	return e.op("Add", e.op("Mul", x, r.cos), e.op("Mul", e.concat(3, e.op("Neg", parts[1]), parts[0]), r.sin))
}

// capped is what becomes of scaled scores before the mask.
func (e *emitter) capped(scores wire) wire {
	if e.a.softcap == 0 {
		return scores
	}
	return e.op("Mul", e.op("Tanh", e.op("Div", scores, e.f(e.a.softcap))), e.f(e.a.softcap))
}

// scored is cap(Q·Kᵀ·scale) + mask for q [B, H, S, d] and kt [B, H, d, T].
func (e *emitter) scored(s site, q, kt wire) wire {
	x := e.capped(e.op("Mul", e.op("MatMul", q, kt), e.f(e.a.scale)))
	if s.mask != nil {
		x = e.op("Add", x, s.mask)
	}
	return x
}

// grown joins the cache of self attention, and gives or takes that of cross attention. k and v project.
func (e *emitter) grown(s site, k, v func() wire) (wire, wire) {
	switch {
	case s.prefix == "":
		return e.append(s.pasts, s.i, 2, k(), v())
	case e.o.Stage == Next:
		return e.crossPasts(s.i)
	}
	return e.crossed(s.i, k(), v())
}

// seen makes an image states, a patch each.
func (e *emitter) seen() wire {
	a := e.a
	x := e.patches(e.float(a.input(), e.batchDim(), 3, a.side*a.patch, a.side*a.patch))
	return e.op("Add", x, e.weights("position_embedding.weight", "positions.weight", a.tokens(), a.model))
}

// heard makes sound [B, mels, 2·side] states [B, side, model], as Whisper's encoder does (Radford et al., arXiv
// 2212.04356, section 2.2): two convolutions over time, the second halving it, and positions.
func (e *emitter) heard() wire {
	a := e.a
	x := e.float(a.input(), e.batchDim(), a.mels, 2*a.side)
	for stride, name := range []string{"conv1", "conv2"} {
		channels := a.model
		if stride == 0 {
			channels = a.mels
		}
		x = e.module(name, func() wire {
			w, b := e.weights(e.param("weight"), name+".weight", a.model, channels, 3), e.weights(e.param("bias"), name+".bias", a.model)
			return e.activation(e.node("Conv", []wire{x, w, b}, graph.IntsAttr("kernel_shape", 3), graph.IntsAttr("pads", 1, 1), graph.IntsAttr("strides", int64(stride+1))))
		})
	}
	return e.op("Add", e.transpose(x, 0, 2, 1), e.weights("embed_positions.weight", "positions.weight", a.side, a.model))
}

// repeated gives every query head its own key or value head by constant shapes: [B, G, T, d] → [B, H, T, d].
func (e *emitter) repeated(x wire) wire {
	r := e.a.heads / e.a.kvHeads
	if r == 1 {
		return x
	}
	x = e.op("Expand", e.unsqueeze(x, 2), e.is(1, 1, r, 1, 1))
	tail := e.op("Shape", x)
	tail = e.op("Slice", tail, e.is(3), e.is(5), e.is(0))
	return e.op("Reshape", x, e.concat(0, e.is(0, e.a.heads), tail))
}
