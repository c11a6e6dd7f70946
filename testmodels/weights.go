package testmodels

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
)

// tensorSpec is one weight by its architectural name. Linear weights are [out, in].
type tensorSpec struct {
	name      string
	dims      []int
	mean, std float64
}

func (s tensorSpec) size() int {
	n := 1
	for _, d := range s.dims {
		n *= d
	}
	return n
}

// bank holds weights by architectural name.
type bank map[string][]float32

// wide is a bank in float64, for the reference.
type wide map[string][]float64

func (b bank) widen() wide {
	w := wide{}
	for name, data := range b {
		x := make([]float64, len(data))
		for i, v := range data {
			x[i] = float64(v)
		}
		w[name] = x
	}
	return w
}

// layer returns the name of a layer's tensor.
func layer(i int, name string) string { return fmt.Sprintf("layers.%d.%s", i, name) }

// schema lists every weight of the architecture. Standard deviations are such that activations stay near one and
// attention is far from uniform: scores have a standard deviation of about 2, so that reading the wrong head shows.
func (a *arch) schema() []tensorSpec {
	var s []tensorSpec
	add := func(name string, mean, std float64, dims ...int) { s = append(s, tensorSpec{name, dims, mean, std}) }
	norm := func(name string, mean float64, dim int) {
		add(name+".weight", mean, 0.2, dim)
		if !a.rms {
			add(name+".bias", 0, 0.2, dim)
		}
	}
	linear := func(name string, gain float64, out, in int, bias bool, biasStd float64) {
		add(name+".weight", 0, gain/math.Sqrt(float64(in)), out, in)
		if bias {
			add(name+".bias", 0, biasStd, out)
		}
	}
	attention := func(i int, prefix string) {
		// Without a scale the query projection has to be smaller by √d to leave the scores where they are.
		query := 1.5 * a.scaledBy()
		linear(layer(i, prefix+"q"), query, a.attnDim(), a.model, a.qkvBias, 0.5)
		linear(layer(i, prefix+"k"), 1.5, a.kvDim(), a.model, a.qkvBias && !a.freeKeys, 0.5)
		linear(layer(i, prefix+"v"), 1, a.kvDim(), a.model, a.qkvBias, 0.2)
		linear(layer(i, prefix+"o"), 1, a.model, a.attnDim(), a.outBias, 0.2)
	}

	switch {
	case a.mels > 0:
		linear("conv1", 1, a.model, 3*a.mels, true, 0.2)
		linear("conv2", 1, a.model, 3*a.model, true, 0.2)
		add("positions.weight", 0, 0.5, a.tokens(), a.model)
	case a.patch > 0:
		linear("patch", 1, a.model, 3*a.patch*a.patch, true, 0.2)
		if a.class {
			add("class", 0, 1, a.model)
		}
		if a.position == learned {
			add("positions.weight", 0, 0.5, a.tokens(), a.model)
		}
	default:
		add("embed.weight", 0, 0.5, a.vocab, a.model)
		switch a.position {
		case learned:
			add("positions.weight", 0, 0.5, a.maxSeq, a.model)
		case learnedOPT:
			add("positions.weight", 0, 0.5, a.maxSeq+2, a.model)
		case disentangled:
			add("distances.weight", 0, 1, 2*a.reach, a.model)
		case relative:
			add("relative.weight", 0, 1, buckets, a.heads)
		}
	}
	if a.types {
		add("types.weight", 0, 0.5, 2, a.model)
	}
	if a.embedNorm {
		norm("embed_norm", 1, a.model)
	}
	for i := range a.layers {
		norm(layer(i, "attn_norm"), 1, a.model)
		if a.macaron {
			a.conformerSchema(i, norm, func(name string, out, in int, bias bool) { linear(name, 1, out, in, bias, 0.2) }, add)
		}
		attention(i, "")
		if a.windows > 0 {
			add(layer(i, "relative.weight"), 0, 1, a.offsets()*a.offsets(), a.heads)
		}
		if a.qkNorm {
			norm(layer(i, "q_norm"), 1.5, a.headDim)
			norm(layer(i, "k_norm"), 1.5, a.headDim)
		}
		if a.cross {
			norm(layer(i, "cross_norm"), 1, a.model)
			attention(i, "cross_")
		}
		if !a.oneNorm {
			norm(layer(i, "mlp_norm"), 1, a.model)
		}
		if a.gated {
			linear(layer(i, "gate"), 1, a.ffn, a.model, a.mlpBias, 0.2)
		}
		linear(layer(i, "up"), 1, a.ffn, a.model, a.mlpBias, 0.2)
		linear(layer(i, "down"), 1, a.model, a.ffn, a.mlpBias, 0.2)
	}
	if a.probed {
		add("probe", 0, 1, a.model)
		attention(a.layers, "")
		norm(layer(a.layers, "mlp_norm"), 1, a.model)
		linear(layer(a.layers, "up"), 1, a.ffn, a.model, a.mlpBias, 0.2)
		linear(layer(a.layers, "down"), 1, a.model, a.ffn, a.mlpBias, 0.2)
	}
	if !a.noFinal {
		norm("norm", 1, a.model)
	}
	if !a.hidden && !a.tied {
		linear("head", 1, a.vocab, a.model, a.headBias, 0.2)
	}
	return s
}

// scaledBy is 1 when the architecture scales scores by 1/√d, and 1/√d when it expects small weights instead.
func (a *arch) scaledBy() float64 {
	if a.scale == 1 {
		return 1 / math.Sqrt(float64(a.headDim))
	}
	return 1
}

// generate draws every weight. Each tensor has its own stream, so that a tensor does not depend on the ones before it.
func (a *arch) generate(seed uint64) bank {
	b := bank{}
	for _, s := range a.schema() {
		h := fnv.New64a()
		h.Write([]byte(s.name))
		r := rand.New(rand.NewPCG(seed, h.Sum64()))
		data := make([]float32, s.size())
		for i := range data {
			data[i] = float32(s.mean + s.std*r.NormFloat64())
		}
		b[s.name] = data
	}
	return b
}
