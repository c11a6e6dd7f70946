package testmodels

import "math"

// selfAttention attends from the new positions to the past and to each other, and appends to the layer's cache.
func (r *Reference) selfAttention(s *sequence, i int, x []vec) []vec {
	a := r.a
	queries := make([][]vec, a.heads)
	for t, xt := range x {
		q, k, v := r.linear(layer(i, "q"), xt), r.linear(layer(i, "k"), xt), r.linear(layer(i, "v"), xt)
		for h := range a.heads {
			queries[h] = append(queries[h], r.place(s, t, layer(i, "q_norm"), r.head(q, h)))
		}
		for h := range a.kvHeads {
			s.keys[i][h] = append(s.keys[i][h], r.place(s, t, layer(i, "k_norm"), r.head(k, h)))
			s.values[i][h] = append(s.values[i][h], r.head(v, h))
		}
	}
	slopes := a.slopes()
	var between func(h, query, key int) float64
	switch a.position {
	case disentangled:
		between = r.disentangledBias(i, queries, s.keys[i])
	case transformerXL:
		between = r.transformerXLBias(i, queries, s.keys[i])
	}
	bias := func(h, query, key int) float64 {
		switch a.position {
		case disentangled, transformerXL:
			return between(h, query, key)
		case windowed:
			at, _ := a.offset(i, query, key)
			return r.w[layer(i, "relative.weight")][at*a.heads+h]
		case alibi:
			return slopes[h] * float64(key-query)
		case relative:
			return r.w["relative.weight"][bucket(key-query, a.causal)*a.heads+h]
		}
		return 0
	}
	heads := make([][]vec, a.heads)
	for h := range a.heads {
		kv := h / (a.heads / a.kvHeads)
		for t, q := range queries[h] {
			at := s.past + t
			heads[h] = append(heads[h], a.attend(q, s.keys[i][kv], s.values[i][kv], func(key int) (float64, bool) {
				if _, together := a.offset(i, at, key); !together {
					return 0, false
				}
				return bias(h, at, key), s.visible[key] && (!a.causal || key <= at) && (a.window == 0 || at-key < a.window)
			}))
		}
	}
	return r.join(layer(i, "o"), heads)
}

// crossAttention attends from the new positions to the encoder's states.
func (r *Reference) crossAttention(s *sequence, i int, x []vec) []vec {
	return r.attendTo(i, "cross_", x, s.encoder, func(key int) bool { return s.encoderVisible[key] })
}

// attendTo attends from x to other states.
func (r *Reference) attendTo(i int, prefix string, x, states []vec, visible func(key int) bool) []vec {
	a := r.a
	keys := each(states, func(e vec) vec { return r.linear(layer(i, prefix+"k"), e) })
	values := each(states, func(e vec) vec { return r.linear(layer(i, prefix+"v"), e) })
	heads := make([][]vec, a.heads)
	for h := range a.heads {
		kv := h / (a.heads / a.kvHeads)
		k := each(keys, func(k vec) vec { return r.head(k, kv) })
		v := each(values, func(v vec) vec { return r.head(v, kv) })
		for _, xt := range x {
			q := r.head(r.linear(layer(i, prefix+"q"), xt), h)
			heads[h] = append(heads[h], a.attend(q, k, v, func(key int) (float64, bool) { return 0, visible(key) }))
		}
	}
	return r.join(layer(i, prefix+"o"), heads)
}

// attend returns Σ_t p_t·values[t] with p = softmax over the visible t of cap(scale·q·keys[t]) + bias; zeros when nothing
// is visible.
func (a *arch) attend(q vec, keys, values []vec, at func(key int) (bias float64, visible bool)) vec {
	scores := make(vec, len(keys))
	top := math.Inf(-1)
	for t, k := range keys {
		bias, ok := at(t)
		if !ok {
			scores[t] = math.Inf(-1)
			continue
		}
		score := a.scale * dot(q, k)
		if a.softcap > 0 {
			score = a.softcap * math.Tanh(score/a.softcap)
		}
		scores[t] = score + bias
		top = max(top, scores[t])
	}
	out := make(vec, len(q))
	total := 0.0
	for t, v := range values {
		if math.IsInf(scores[t], -1) {
			continue
		}
		p := math.Exp(scores[t] - top)
		total += p
		for c := range out {
			out[c] += p * v[c]
		}
	}
	for c := range out {
		if total > 0 {
			out[c] /= total
		}
	}
	return out
}

// head returns the channels of head h.
func (r *Reference) head(x vec, h int) vec { return x[h*r.a.headDim : (h+1)*r.a.headDim] }

// place normalises a query or key head where the architecture does, and turns it to its position.
func (r *Reference) place(s *sequence, t int, norm string, x vec) vec {
	a := r.a
	if a.qkNorm {
		x = r.norm(norm, x)
	}
	if a.position != rotary {
		return x
	}
	out := append(vec(nil), x...)
	for p := range a.rotary / 2 {
		i, j := p, p+a.rotary/2
		if a.interleaved {
			i, j = 2*p, 2*p+1
		}
		sin, cos := math.Sincos(float64(s.positions[t]) * a.frequency(p))
		out[i] = x[i]*cos - x[j]*sin
		out[j] = x[j]*cos + x[i]*sin
	}
	return out
}

// join sets the heads [head][position] side by side and applies the output projection.
func (r *Reference) join(name string, heads [][]vec) []vec {
	out := make([]vec, len(heads[0]))
	for t := range out {
		var x vec
		for _, h := range heads {
			x = append(x, h[t]...)
		}
		out[t] = r.linear(name, x)
	}
	return out
}
