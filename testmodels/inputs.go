package testmodels

import "math/rand/v2"

// Shape sizes the inputs of one run.
type Shape struct {
	Batch, Seq int
	Past       int // cached positions; with Options.Cache only
	Pad        int // positions that the last batch element hides: its first ones for a decoder, its last ones for an encoder
}

// Inputs makes inputs for a model of these options: random tokens, masks, positions counted over the mask, and a past
// of random keys and values. Static options fix the shape but for Pad.
func (f Family) Inputs(o Options, s Shape, seed uint64) (map[string]Array, error) {
	o, a, err := f.open(o)
	if err != nil {
		return nil, err
	}
	if o.Static {
		s.Batch, s.Seq, s.Past = o.Batch, o.Seq, o.Past
	}
	if !o.Cache {
		s.Past = 0
	}
	r := rand.New(rand.NewPCG(seed, 1))
	normal := func(dims ...int) Array {
		x := Array{Dims: dims}
		x.F = make([]float64, x.Len())
		for i := range x.F {
			x.F[i] = float64(float32(r.NormFloat64()))
		}
		return x
	}
	below := func(n int, dims ...int) Array {
		x := Array{Dims: dims}
		x.I = make([]int64, x.Len())
		for i := range x.I {
			x.I[i] = r.Int64N(int64(n))
		}
		return x
	}
	in := map[string]Array{}
	switch a.input() {
	case "input_features":
		in[a.input()] = normal(s.Batch, a.mels, 2*a.side)
		return in, nil
	case "pixel_values":
		in["pixel_values"] = normal(s.Batch, 3, a.side*a.patch, a.side*a.patch)
		return in, nil
	}
	in["input_ids"] = below(a.vocab, s.Batch, s.Seq)
	if a.types {
		in["token_type_ids"] = below(2, s.Batch, s.Seq)
	}
	if a.cross {
		n := s.Seq + 2
		if o.Stage != Next {
			in["encoder_hidden_states"] = normal(s.Batch, n, a.model)
		}
		if !a.open {
			in["encoder_attention_mask"] = mask(s.Batch, n, s.Pad, false)
		}
	} else {
		in["attention_mask"] = mask(s.Batch, s.Past+s.Seq, s.Pad, f.Decoder)
	}
	if a.hasPositionIDs() {
		in["position_ids"] = positions(in["attention_mask"], s.Past)
	}
	if !o.Cache {
		return in, nil
	}
	for i := range a.layers {
		past, _ := cacheNames(a, i)
		in[past[0]] = normal(s.Batch, a.kvHeads, s.Past, a.headDim)
		in[past[1]] = normal(s.Batch, a.kvHeads, s.Past, a.headDim)
		if a.cross && o.Stage == Next {
			past, _ = crossNames(i)
			in[past[0]] = normal(s.Batch, a.kvHeads, s.Seq+2, a.headDim)
			in[past[1]] = normal(s.Batch, a.kvHeads, s.Seq+2, a.headDim)
		}
	}
	return in, nil
}

// hasPositionIDs reports whether the model takes positions from its caller.
func (a *arch) hasPositionIDs() bool {
	return a.causal && !a.cross && (a.position == learned || a.position == rotary)
}

// mask is ones [batch, n] but for pad zeros in the last row, on the left or on the right.
func mask(batch, n, pad int, left bool) Array {
	m := Array{Dims: []int{batch, n}, I: make([]int64, batch*n)}
	for i := range m.I {
		m.I[i] = 1
	}
	last := m.I[(batch-1)*n:]
	if left {
		clear(last[:pad])
	} else {
		clear(last[n-pad:])
	}
	return m
}

// positions counts the visible tokens before each new one, as generation loops do; hidden tokens get position 1.
func positions(mask Array, past int) Array {
	batch, total := mask.Dims[0], mask.Dims[1]
	p := Array{Dims: []int{batch, total - past}}
	for b := range batch {
		n := int64(-1)
		for t, m := range mask.I[b*total : (b+1)*total] {
			n += m
			switch {
			case t < past:
			case m == 0:
				p.I = append(p.I, 1)
			default:
				p.I = append(p.I, n)
			}
		}
	}
	return p
}
