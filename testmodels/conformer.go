package testmodels

import (
	"math"

	"onnx-dha/graph"
)

// conformerArch is the Conformer (Gulati et al., arXiv 2005.08100, section 2): attention with the relative positions of
// Transformer-XL (Dai et al., arXiv 1901.02860, section 3.3) and a convolution, between two MLPs of half weight.
func conformerArch(o Options) arch {
	a := base(o)
	a.hidden, a.noFinal, a.position, a.macaron, a.act = true, true, transformerXL, true, silu
	a.qkvBias, a.outBias, a.mlpBias = true, true, true
	return a
}

// width of the depthwise convolution of a Conformer.
const kernel = 3

// conformerSchema lists what a layer has beside attention and the second MLP: names, dims, means and deviations.
func (a *arch) conformerSchema(i int, norm func(name string, mean float64, dim int), linear func(name string, out, in int, bias bool), add func(name string, mean, std float64, dims ...int)) {
	norm(layer(i, "first_norm"), 1, a.model)
	linear(layer(i, "first_up"), a.ffn, a.model, true)
	linear(layer(i, "first_down"), a.model, a.ffn, true)
	linear(layer(i, "position"), a.attnDim(), a.model, false)
	add(layer(i, "content_bias"), 0, 0.5, a.heads, a.headDim)
	add(layer(i, "position_bias"), 0, 0.5, a.heads, a.headDim)
	norm(layer(i, "conv_norm"), 1, a.model)
	linear(layer(i, "conv_in"), 2*a.model, a.model, true)
	add(layer(i, "depthwise.weight"), 0, 0.6, a.model, 1, kernel)
	norm(layer(i, "batch_norm"), 1, a.model)
	add(layer(i, "batch_norm.mean"), 0, 0.2, a.model)
	add(layer(i, "batch_norm.variance"), 1, 0.1, a.model)
	linear(layer(i, "conv_out"), a.model, a.model, true)
	norm(layer(i, "last_norm"), 1, a.model)
}

// sinusoid is the embedding of a distance: sines and cosines of its channels in turn.
func (a *arch) sinusoid(distance int) []float64 {
	x := make([]float64, a.model)
	for c := range x {
		sin, cos := math.Sincos(float64(distance) * math.Pow(a.theta, -float64(c/2*2)/float64(a.model)))
		x[c] = [2]float64{sin, cos}[c%2]
	}
	return x
}

// transformerXLBias returns what scores have beside queries times keys [head][position]: the query, by a bias of its
// head, to the distance, and a bias of the head to the key.
func (r *Reference) transformerXLBias(i int, queries, keys [][]vec) func(h, query, key int) float64 {
	a := r.a
	return func(h, query, key int) float64 {
		at := r.head(r.linear(layer(i, "position"), a.sinusoid(query-key)), h)
		content, position := r.head(r.w[layer(i, "content_bias")], h), r.head(r.w[layer(i, "position_bias")], h)
		return a.scale * (dot(content, keys[h][key]) + dot(add(queries[h][query], position), at))
	}
}

// conformer applies layer i.
func (r *Reference) conformer(s *sequence, i int) {
	mlp := func(which, norm string) {
		for t, x := range s.x {
			y := r.linear(layer(i, which+"down"), each(r.linear(layer(i, which+"up"), r.norm(layer(i, norm), x)), r.a.act.apply))
			s.x[t] = add(x, each(y, func(v float64) float64 { return v / 2 }))
		}
	}
	mlp("first_", "first_norm")
	for t, y := range r.selfAttention(s, i, each(s.x, func(x vec) vec { return r.norm(layer(i, "attn_norm"), x) })) {
		s.x[t] = add(s.x[t], y)
	}
	gated := each(s.x, func(x vec) vec {
		y := r.linear(layer(i, "conv_in"), r.norm(layer(i, "conv_norm"), x))
		n := len(y) / 2
		for c := range n {
			y[c] /= 1 + math.Exp(-y[n+c])
		}
		return y[:n]
	})
	weight := func(name string, c int) float64 { return r.w[layer(i, name)][c] }
	for t := range s.x {
		y := make(vec, r.a.model)
		for c := range y {
			for k := range kernel {
				if at := t + k - kernel/2; at >= 0 && at < len(gated) {
					y[c] += weight("depthwise.weight", c*kernel+k) * gated[at][c]
				}
			}
			y[c] = (y[c]-weight("batch_norm.mean", c))/math.Sqrt(weight("batch_norm.variance", c)+r.a.eps)*weight("batch_norm.weight", c) + weight("batch_norm.bias", c)
		}
		s.x[t] = add(s.x[t], r.linear(layer(i, "conv_out"), each(y, r.a.act.apply)))
	}
	mlp("", "mlp_norm")
	s.x = each(s.x, func(x vec) vec { return r.norm(layer(i, "last_norm"), x) })
}

// conformerLayer writes it, with the attention of a dress.
func (e *emitter) conformerLayer(i int, x wire, attend func(x wire) wire) wire {
	a := e.a
	mlp := func(module, which, norm string, x wire) wire {
		return e.module(module, func() wire {
			y := e.linear("up", layer(i, which+"up"), e.norm("norm", layer(i, norm), x, a.model), a.ffn, a.model)
			y = e.linear("down", layer(i, which+"down"), e.activate("act", y), a.model, a.ffn)
			return e.op("Add", x, e.op("Mul", y, e.f(0.5)))
		})
	}
	x = mlp("ffn1", "first_", "first_norm", x)
	x = e.op("Add", x, attend(e.norm("attn_norm", layer(i, "attn_norm"), x, a.model)))
	x = e.op("Add", x, e.module("conv_module", func() wire {
		y := e.linear("pointwise_conv1", layer(i, "conv_in"), e.norm("norm", layer(i, "conv_norm"), x, a.model), 2*a.model, a.model)
		half := e.split(e.transpose(y, 0, 2, 1), 1, a.model, a.model)
		y = e.op("Mul", half[0], e.op("Sigmoid", half[1]))
		w := e.weights(e.param("depthwise_conv.weight"), layer(i, "depthwise.weight"), a.model, 1, kernel)
		y = e.node("Conv", []wire{y, w}, graph.IntAttr("group", int64(a.model)), graph.IntsAttr("kernel_shape", kernel), graph.IntsAttr("pads", kernel/2, kernel/2))
		in := []wire{y}
		for _, part := range []string{"weight", "bias", "mean", "variance"} {
			in = append(in, e.weights(e.param("batch_norm."+part), layer(i, "batch_norm."+part), a.model))
		}
		y = e.activation(e.node("BatchNormalization", in, graph.FloatAttr("epsilon", float32(a.eps))))
		return e.linear("pointwise_conv2", layer(i, "conv_out"), e.transpose(y, 0, 2, 1), a.model, a.model)
	}))
	x = mlp("ffn2", "", "mlp_norm", x)
	if i == a.layers-1 {
		e.to("last_hidden_state")
	}
	return e.norm("final_layer_norm", layer(i, "last_norm"), x, a.model)
}

// conformerAttention is RelPositionMultiHeadedAttention of ESPnet and what copied it: two biased queries, and distances
// moved into place by padding the product, reading it as if its rows were shorter, and cutting (Transformer-XL, appendix
// B).
func conformerAttention(e *emitter, s site) wire {
	a := e.a
	batch, seq := e.dim(s.x, 0, e.o.Batch), e.dim(s.x, 1, e.o.Seq)
	project := func(module, w string, x wire) wire { return e.linear(module, layer(s.i, w), x, a.attnDim(), a.model) }
	split := func(x wire, batch size) wire { return e.view(x, batch, num(-1), num(a.heads), num(a.headDim)) }
	q := split(project("linear_q", "q", s.x), batch)
	k := e.transpose(split(project("linear_k", "k", s.x), batch), 0, 2, 3, 1)
	v := e.transpose(split(project("linear_v", "v", s.x), batch), 0, 2, 1, 3)
	// The distances S-1, …, -(S-1), from the middle of a table of all.
	n := e.o.MaxSeq
	var table []float32
	for distance := n - 1; distance > -n; distance-- {
		table = append(table, each(a.sinusoid(distance), func(v float64) float32 { return float32(v) })...)
	}
	first, last := num(n-e.o.Seq), num(n-1+e.o.Seq)
	if seq.wire != nil {
		first, last = size{wire: e.op("Sub", e.i(n), seq.wire)}, size{wire: e.op("Add", e.i(n-1), seq.wire)}
	}
	distances := e.slice(e.init("pos_enc.pe", table, 1, 2*n-1, a.model), 1, first, last)
	p := e.transpose(split(project("linear_pos", "position", distances), num(1)), 0, 2, 3, 1)
	biased := func(name string) wire {
		return e.transpose(e.op("Add", q, e.weights(e.param(name), layer(s.i, name), a.heads, a.headDim)), 0, 2, 1, 3)
	}
	content := e.op("MatMul", biased("content_bias"), k)
	position := e.op("MatMul", biased("position_bias"), p)
	zeros := e.filled(e.shape(batch, num(a.heads), seq, num(1)), 0)
	position = e.view(e.concat(-1, zeros, position), batch, num(a.heads), num(-1), seq)
	position = e.view(e.slice(position, 2, num(1), end), batch, num(a.heads), seq, num(-1))
	position = e.slice(position, 3, num(0), seq)
	scores := e.op("Div", e.op("Add", content, position), e.f(1/a.scale))
	p = e.softmax(e.op("Add", scores, s.mask), -1)
	return e.linear("linear_out", layer(s.i, "o"), e.unheads(e.op("MatMul", p, v), batch, seq), a.model, a.attnDim())
}
