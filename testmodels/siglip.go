package testmodels

import "slices"

// siglipArch is the image side of SigLIP (Zhai et al., arXiv 2303.15343): a vision transformer without a class token,
// whose states one learned query pools by an attention of its own, as in Zhai et al., arXiv 2106.04560. Options.Vocab is
// the number of classes. The weights of the pooling are named as those of a further layer.
func siglipArch(o Options) arch {
	a := vitArch(o)
	a.class, a.act, a.probed = false, geluNew, true
	return a
}

// probe pools the states [B, N, model] to [B, model] as SiglipMultiheadAttentionPoolingHead does: nn.MultiheadAttention
// with a query of its own, so that keys and values are one packed layer; then a residual MLP.
func (e *emitter) probe(states wire) wire {
	a, i := e.a, e.a.layers
	batch, n := e.dim(states, 0, e.o.Batch), num(a.tokens())
	x := e.module("attention", func() wire {
		query := e.expand(e.weights(e.param("probe"), "probe", 1, 1, a.model), batch, num(-1), num(-1))
		q := e.linear("in_proj_q", layer(i, "q"), e.transpose(query, 1, 0, 2), a.attnDim(), a.model)
		part := func(of string) []float32 { return slices.Concat(e.w[layer(i, "k"+of)], e.w[layer(i, "v"+of)]) }
		kv := e.linearData("in_proj_kv", e.transpose(states, 1, 0, 2), part(".weight"), part(".bias"), 2*a.attnDim(), a.model)
		kv = e.unsqueeze(e.view(kv, n, batch, num(2), num(a.attnDim())), 0)
		kv = e.squeeze(e.transpose(kv, 3, 1, 2, 0, 4), 3)
		merged := e.times(batch, num(a.heads))
		heads := func(x wire, n size) wire { return e.transpose(e.view(x, n, merged, num(a.headDim)), 1, 0, 2) }
		q = e.op("Mul", heads(q, num(1)), e.f(a.scale))
		k, v := heads(e.gather(kv, e.i(0), 0), n), heads(e.gather(kv, e.i(1), 0), n)
		y := e.op("MatMul", e.softmax(e.op("MatMul", q, e.transpose(k, 0, 2, 1)), -1), v)
		y = e.view(e.transpose(y, 1, 0, 2), batch, num(a.attnDim()))
		return e.linear("out_proj", layer(i, "o"), y, a.model, a.attnDim())
	})
	y := e.norm("layernorm", layer(i, "mlp_norm"), x, a.model)
	y = e.activate("mlp/act", e.linear("mlp/fc1", layer(i, "up"), y, a.ffn, a.model))
	return e.op("Add", x, e.linear("mlp/fc2", layer(i, "down"), y, a.model, a.ffn))
}

// probe is its definition.
func (r *Reference) probe(states []vec) vec {
	i := r.a.layers
	x := r.attendTo(i, "", []vec{r.w["probe"]}, states, func(int) bool { return true })[0]
	return add(x, r.mlp(i, r.norm(layer(i, "mlp_norm"), x)))
}
