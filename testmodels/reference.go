package testmodels

import (
	"fmt"
	"math"
)

// Array is a dense row-major tensor of floats (F) or integers (I); the other slice is nil.
type Array struct {
	Dims []int
	F    []float64
	I    []int64
}

// Floats makes a float array.
func Floats(data []float64, dims ...int) Array { return Array{Dims: dims, F: data} }

// Ints makes an integer array.
func Ints(data []int64, dims ...int) Array { return Array{Dims: dims, I: data} }

// Len returns the number of elements that the dims call for.
func (a Array) Len() int {
	n := 1
	for _, d := range a.Dims {
		n *= d
	}
	return n
}

// Reference computes a transformer in float64 with plain loops, one sequence at a time, from the definition of the
// architecture. It reads and writes tensors under the names that the ONNX model uses.
//
// A row whose attention mask is zero is computed too, but what an ONNX graph gives there depends on how it writes the
// mask; nothing that counts reads it.
type Reference struct {
	a     *arch
	w     wide
	cache bool
}

// vec is one hidden state.
type vec = []float64

// Run computes the outputs: logits [batch, seq, vocab] ([batch, classes] for images) or last_hidden_state
// [batch, seq, model], and present.N.key/value [batch, kvHeads, past+seq, headDim] when the model has a cache.
func (r *Reference) Run(in map[string]Array) (map[string]Array, error) {
	first := r.a.input()
	x, ok := in[first]
	if !ok || len(x.Dims) < 2 {
		return nil, fmt.Errorf("reference: input %q is missing or has no batch and sequence", first)
	}
	batch := x.Dims[0]
	for name, v := range in {
		if len(v.F)+len(v.I) != v.Len() {
			return nil, fmt.Errorf("reference: input %q holds %d elements, its dims %v call for %d", name, len(v.F)+len(v.I), v.Dims, v.Len())
		}
		if len(v.Dims) < 2 || v.Dims[0] != batch {
			return nil, fmt.Errorf("reference: input %q has dims %v, want a batch of %d first", name, v.Dims, batch)
		}
	}
	for name, bound := range map[string]int{"input_ids": r.a.vocab, "token_type_ids": 2, "position_ids": r.a.maxSeq} {
		for _, id := range in[name].I {
			if id < 0 || id >= int64(bound) {
				return nil, fmt.Errorf("reference: %s has %d, want 0 to %d", name, id, bound-1)
			}
		}
	}
	out := map[string]Array{}
	for b := range batch {
		s, err := r.sequence(in, b)
		if err != nil {
			return nil, err
		}
		r.embed(s)
		for i := range r.a.layers {
			r.layer(s, i)
		}
		r.output(s, out, batch, b)
	}
	return out, nil
}

// sequence is the state of one batch element.
type sequence struct {
	ids, positions, types []int
	visible               []bool    // per key position, past included
	signal                []float64 // pixels, or frames of sound
	past                  int
	keys, values          [][][]vec // [layer][kv head][position]: past first, then what each layer appends
	encoder               []vec
	encoderVisible        []bool
	x                     []vec // hidden states of the new positions
}

// sequence cuts batch element b out of the inputs.
func (r *Reference) sequence(in map[string]Array, b int) (*sequence, error) {
	a := r.a
	s := &sequence{keys: make([][][]vec, a.layers), values: make([][][]vec, a.layers)}
	ints := func(name string) []int {
		v, ok := in[name]
		if !ok {
			return nil
		}
		n := v.Len() / v.Dims[0]
		out := make([]int, n)
		for i := range out {
			out[i] = int(v.I[b*n+i])
		}
		return out
	}
	bools := func(name string, n int) []bool {
		out := make([]bool, n)
		given := ints(name)
		for i := range out {
			out[i] = given == nil || given[i] != 0
		}
		return out
	}
	for i := range a.layers {
		s.keys[i] = make([][]vec, a.kvHeads)
		s.values[i] = make([][]vec, a.kvHeads)
		if !r.cache {
			continue
		}
		past, _ := cacheNames(a, i)
		for side, name := range past {
			v, ok := in[name]
			if !ok || len(v.Dims) != 4 || v.Dims[1] != a.kvHeads || v.Dims[3] != a.headDim {
				return nil, fmt.Errorf("reference: input %q is missing or not [batch, %d, past, %d]", name, a.kvHeads, a.headDim)
			}
			s.past = v.Dims[2]
			to := [2][][]vec{s.keys[i], s.values[i]}[side]
			for h := range a.kvHeads {
				for t := range s.past {
					at := ((b*a.kvHeads+h)*s.past + t) * a.headDim
					to[h] = append(to[h], v.F[at:at+a.headDim])
				}
			}
		}
	}
	if n := a.tokens(); n > 0 {
		v := in[a.input()]
		size := v.Len() / v.Dims[0]
		s.signal = v.F[b*size : (b+1)*size]
		s.visible = bools("", n)
		return s, nil
	}
	s.ids = ints("input_ids")
	s.types = ints("token_type_ids")
	s.positions = ints("position_ids")
	if want := s.past + len(s.ids); in["attention_mask"].Dims != nil && in["attention_mask"].Dims[1] != want {
		return nil, fmt.Errorf("reference: attention_mask covers %d positions, want past + seq = %d", in["attention_mask"].Dims[1], want)
	}
	s.visible = bools("attention_mask", s.past+len(s.ids))
	if s.positions == nil {
		for i := range s.ids {
			s.positions = append(s.positions, s.past+i)
		}
	}
	if a.cross {
		v := in["encoder_hidden_states"]
		n := v.Dims[1]
		for t := range n {
			at := (b*n + t) * a.model
			s.encoder = append(s.encoder, v.F[at:at+a.model])
		}
		s.encoderVisible = bools("encoder_attention_mask", n)
	}
	return s, nil
}

// embed makes the first hidden states.
func (r *Reference) embed(s *sequence) {
	a := r.a
	row := func(name string, i int) vec { return r.w[name][i*a.model : (i+1)*a.model] }
	if a.patch > 0 {
		if a.class {
			s.x = append(s.x, r.w["class"])
		}
		side := a.side * a.patch
		for p := range a.side * a.side {
			var flat vec
			for c := range 3 {
				for y := range a.patch {
					at := c*side*side + (p/a.side*a.patch+y)*side + p%a.side*a.patch
					flat = append(flat, s.signal[at:at+a.patch]...)
				}
			}
			s.x = append(s.x, r.linear("patch", flat))
		}
		for t := range s.x {
			if a.position == learned {
				s.x[t] = add(s.x[t], row("positions.weight", t))
			}
			if a.embedNorm {
				s.x[t] = r.norm("embed_norm", s.x[t])
			}
		}
		return
	}
	if a.mels > 0 {
		frames := make([]vec, 2*a.side)
		for t := range frames {
			for c := range a.mels {
				frames[t] = append(frames[t], s.signal[c*len(frames)+t])
			}
		}
		for t, x := range r.convolve("conv2", r.convolve("conv1", frames, 1), 2) {
			s.x = append(s.x, add(x, row("positions.weight", t)))
		}
		return
	}
	for i, id := range s.ids {
		x := row("embed.weight", id)
		if f := a.embedScale; f != 0 {
			x = each(x, func(v float64) float64 { return v * f })
		}
		switch a.position {
		case learned:
			x = add(x, row("positions.weight", s.positions[i]))
		case learnedOPT:
			// Positions count the tokens that are there, from 0; a token that is not there gets -1.
			n := -1
			for t := range s.past + i + 1 {
				if s.visible[t] {
					n++
				}
			}
			if !s.visible[s.past+i] {
				n = -1
			}
			x = add(x, row("positions.weight", n+2))
		}
		if a.types {
			x = add(x, row("types.weight", s.types[i]))
		}
		if a.embedNorm {
			x = r.norm("embed_norm", x)
		}
		s.x = append(s.x, x)
	}
}

// convolve is a convolution over three states, padded by zeros, and its activation.
func (r *Reference) convolve(name string, xs []vec, stride int) []vec {
	var out []vec
	for t := 0; t < len(xs); t += stride {
		var seen vec
		for c := range xs[0] {
			for at := t - 1; at <= t+1; at++ {
				v := 0.0
				if at >= 0 && at < len(xs) {
					v = xs[at][c]
				}
				seen = append(seen, v)
			}
		}
		out = append(out, each(r.linear(name, seen), r.a.act.apply))
	}
	return out
}

// layer applies transformer layer i to the hidden states.
func (r *Reference) layer(s *sequence, i int) {
	a := r.a
	attnNorm, mlpNorm := layer(i, "attn_norm"), layer(i, "mlp_norm")
	if a.macaron {
		r.conformer(s, i)
		return
	}
	if a.post {
		for t, y := range r.selfAttention(s, i, s.x) {
			s.x[t] = r.norm(attnNorm, add(s.x[t], y))
		}
		if a.cross {
			for t, y := range r.crossAttention(s, i, s.x) {
				s.x[t] = r.norm(layer(i, "cross_norm"), add(s.x[t], y))
			}
		}
		for t, x := range s.x {
			s.x[t] = r.norm(mlpNorm, add(x, r.mlp(i, x)))
		}
		return
	}
	normed := each(s.x, func(x vec) vec { return r.norm(attnNorm, x) })
	attended := r.selfAttention(s, i, normed)
	if a.parallel {
		for t, x := range s.x {
			to := normed[t]
			if !a.oneNorm {
				to = r.norm(mlpNorm, x)
			}
			s.x[t] = add(add(x, attended[t]), r.mlp(i, to))
		}
		return
	}
	for t := range s.x {
		s.x[t] = add(s.x[t], attended[t])
	}
	if a.cross {
		normed := each(s.x, func(x vec) vec { return r.norm(layer(i, "cross_norm"), x) })
		for t, y := range r.crossAttention(s, i, normed) {
			s.x[t] = add(s.x[t], y)
		}
	}
	for t, x := range s.x {
		s.x[t] = add(x, r.mlp(i, r.norm(mlpNorm, x)))
	}
}

func (r *Reference) mlp(i int, x vec) vec {
	up := r.linear(layer(i, "up"), x)
	if !r.a.gated {
		return r.linear(layer(i, "down"), each(up, r.a.act.apply))
	}
	gate := r.linear(layer(i, "gate"), x)
	for c := range up {
		up[c] *= r.a.act.apply(gate[c])
	}
	return r.linear(layer(i, "down"), up)
}

func (f activation) apply(x float64) float64 {
	switch f {
	case gelu:
		return x * 0.5 * (1 + math.Erf(x/math.Sqrt2))
	case geluNew:
		return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	case silu:
		return x / (1 + math.Exp(-x))
	}
	return max(x, 0)
}

// norm applies the layer norm or RMS norm called name.
func (r *Reference) norm(name string, x vec) vec {
	weight, bias := r.w[name+".weight"], r.w[name+".bias"]
	mean := 0.0
	if !r.a.rms {
		for _, v := range x {
			mean += v / float64(len(x))
		}
	}
	variance := 0.0
	for _, v := range x {
		variance += (v - mean) * (v - mean) / float64(len(x))
	}
	out := make(vec, len(x))
	for i, v := range x {
		out[i] = (v - mean) / math.Sqrt(variance+r.a.eps) * weight[i]
		if bias != nil {
			out[i] += bias[i]
		}
	}
	return out
}

// linear returns W·x + b for the weight [out, in] called name; b may be absent.
func (r *Reference) linear(name string, x vec) vec {
	w, bias := r.w[name+".weight"], r.w[name+".bias"]
	out := make(vec, len(w)/len(x))
	for o := range out {
		out[o] = dot(w[o*len(x):(o+1)*len(x)], x)
		if bias != nil {
			out[o] += bias[o]
		}
	}
	return out
}

// output writes batch element b of every output.
func (r *Reference) output(s *sequence, out map[string]Array, batch, b int) {
	a := r.a
	put := func(name string, data []float64, dims ...int) {
		v, ok := out[name]
		if !ok {
			v = Array{Dims: append([]int{batch}, dims...)}
			v.F = make([]float64, v.Len())
			out[name] = v
		}
		copy(v.F[b*len(data):], data)
	}
	var flat []float64
	states := s.x
	if !a.noFinal {
		states = each(states, func(x vec) vec { return r.norm("norm", x) })
	}
	switch {
	case a.pooled:
		states = []vec{mean(states)}
	case a.probed:
		states = []vec{r.probe(states)}
	}
	for _, x := range states {
		if !a.hidden {
			x = r.classify(x)
		}
		flat = append(flat, x...)
	}
	switch {
	case a.hidden:
		put("last_hidden_state", flat, len(s.x), a.model)
	case a.patch > 0:
		put("logits", flat[:a.vocab], a.vocab) // a class token is the first
	default:
		put("logits", flat, len(s.x), a.vocab)
	}
	if !r.cache {
		return
	}
	for i := range a.layers {
		_, present := cacheNames(a, i)
		for side, heads := range [2][][]vec{s.keys[i], s.values[i]} {
			var flat []float64
			for _, h := range heads {
				for _, x := range h {
					flat = append(flat, x...)
				}
			}
			put(present[side], flat, a.kvHeads, len(heads[0]), a.headDim)
		}
	}
}

// classify returns the logits of a final hidden state.
func (r *Reference) classify(x vec) vec {
	if f := r.a.logitScale; f != 0 {
		x = each(x, func(v float64) float64 { return v * f })
	}
	if !r.a.tied {
		return r.linear("head", x)
	}
	return r.linear("embed", x)
}

func dot(a, b vec) float64 {
	s := 0.0
	for i := range a {
		s += a[i] * b[i]
	}
	return s
}

func add(a, b vec) vec {
	out := make(vec, len(a))
	for i := range a {
		out[i] = a[i] + b[i]
	}
	return out
}

func mean(xs []vec) vec {
	out := make(vec, len(xs[0]))
	for _, x := range xs {
		out = add(out, x)
	}
	return each(out, func(v float64) float64 { return v / float64(len(xs)) })
}

func each[T, U any](xs []T, f func(T) U) []U {
	out := make([]U, len(xs))
	for i, x := range xs {
		out[i] = f(x)
	}
	return out
}
