package testmodels

import (
	"fmt"
	"math"
)

// arch is a transformer by its definition, apart from how any exporter writes it. The zero value of a field is the
// plain choice.
type arch struct {
	layers, heads, kvHeads, headDim, model, ffn, vocab, maxSeq int

	rms       bool // RMS norms instead of layer norms
	eps       float64
	post      bool // norms follow the residual sum (BERT) instead of opening each sublayer
	parallel  bool // the MLP reads the residual that attention reads
	macaron   bool // attention and a convolution between two MLPs of half weight (Conformer)
	oneNorm   bool // with parallel: one norm feeds both
	embedNorm bool // a norm right after the embedding
	noFinal   bool // no norm before the output

	position    position
	rotary      int // rotated channels per head
	interleaved bool
	theta       float64

	qkvBias, outBias, mlpBias, headBias bool
	freeKeys                            bool // keys have no bias where queries and values do
	qkNorm                              bool

	act   activation
	gated bool // act(gate·x) ⊙ (up·x)

	causal  bool
	cross   bool // a second attention per layer, to encoder_hidden_states
	open    bool // all of them, so that there is no encoder_attention_mask
	scale   float64
	window  int     // a query sees so many positions, its own the last; 0: all
	softcap float64 // scores s become c·tanh(s/c); 0: they stay

	types      bool    // token type embedding
	tied       bool    // the embedding is the classifier
	logitScale float64 // factor on the final hidden state; 0 means 1
	embedScale float64 // factor on the embedding; 0 means 1
	square     bool    // H·d has to be the model's width
	hidden     bool    // the output is last_hidden_state
	patch      int     // side of an image patch; 0 for text
	side       int     // of the image, in patches; the length of a recording, in states
	mels       int     // channels of a frame of sound, two frames to a state; 0 for text and images
	class      bool    // a learned token before those of the patches, whose state is classified
	pooled     bool    // the mean of the states is classified
	probed     bool    // what a learned query finds in the states is classified
	reach      int     // the farthest distance that a table of distances tells apart
	windows    int     // attention stays in windows of so many patches a side, moved by half of it in every second layer
}

// position says how a model knows where a token is.
type position string

const (
	noPosition    position = ""
	learned       position = "learned"  // a table row added to the embedding, at position_ids or 0..S-1
	learnedOPT    position = "learned2" // the same, two rows further, positions counted over the attention mask
	rotary        position = "rotary"
	alibi         position = "alibi"
	relative      position = "relative"       // T5 buckets
	windowed      position = "windowed"       // Swin: a bias per head and offset in a window
	disentangled  position = "disentangled"   // DeBERTa: biases from the products of queries and keys with distances
	transformerXL position = "transformer-xl" // sines of distances, projected, against queries
)

type activation string

const (
	gelu    activation = "gelu"     // x·Φ(x)
	geluNew activation = "gelu_new" // its tanh approximation
	silu    activation = "silu"
	relu    activation = "relu"
)

// T5 buckets. With these values no distance falls on a bucket's edge but the first and the last, where rounding of the
// logarithm changes nothing, so float32 and float64 agree on every bucket.
const (
	buckets     = 8
	maxDistance = 20
)

// base carries over the sizes.
func base(o Options) arch {
	return arch{
		layers: o.Layers, heads: o.Heads, kvHeads: o.KVHeads, headDim: o.HeadDim, model: o.ModelDim, ffn: o.FFN, vocab: o.Vocab,
		eps: 1e-5, scale: 1 / math.Sqrt(float64(o.HeadDim)), theta: 1e4,
	}
}

// check refuses sizes that the architecture has no meaning for.
func (a *arch) check(o Options) error {
	grouped := a.position == rotary && a.rms || a.kvHeads == 1
	switch {
	case a.kvHeads != a.heads && !grouped:
		return fmt.Errorf("%d KV heads for %d heads, but this architecture gives every head its own", a.kvHeads, a.heads)
	case a.position == rotary && (a.rotary <= 0 || a.rotary > a.headDim || a.rotary%2 != 0):
		return fmt.Errorf("RotaryDim %d, want an even number up to the head dim %d", a.rotary, a.headDim)
	case a.square && a.attnDim() != a.model:
		return fmt.Errorf("%d heads of %d make %d, but this architecture wants ModelDim %d", a.heads, a.headDim, a.attnDim(), a.model)
	case o.Static && o.Seq+o.Past > a.maxSeq:
		return fmt.Errorf("static shape: Seq %d + Past %d exceed MaxSeq %d", o.Seq, o.Past, a.maxSeq)
	}
	return nil
}

// input names what the model reads.
func (a *arch) input() string {
	switch {
	case a.patch > 0:
		return "pixel_values"
	case a.mels > 0:
		return "input_features"
	}
	return "input_ids"
}

// tokens is the number of states of an image or a recording; 0 for text, which has as many as it is long.
func (a *arch) tokens() int {
	switch {
	case a.patch == 0:
		return a.side
	case a.class:
		return a.side*a.side + 1
	}
	return a.side * a.side
}

// attnDim is the width of all query heads together, kvDim that of the key or value heads.
func (a *arch) attnDim() int { return a.heads * a.headDim }
func (a *arch) kvDim() int   { return a.kvHeads * a.headDim }

// slopes returns the ALiBi slope of every head: the geometric sequence 2^(-8/n), 2^(-16/n), … for n heads, n a power of
// two; for other n the sequence of the next lower power, then every second one of the next higher (Press et al.,
// "Train Short, Test Long", and its released code).
func (a *arch) slopes() []float64 {
	pow := 1
	for pow*2 <= a.heads {
		pow *= 2
	}
	s := make([]float64, a.heads)
	for h := range s {
		if h < pow {
			s[h] = math.Exp2(-8 * float64(h+1) / float64(pow))
		} else {
			s[h] = math.Exp2(-4 * float64(2*(h-pow)+1) / float64(pow))
		}
	}
	return s
}

// frequency returns the angle per position of rotary pair i.
func (a *arch) frequency(i int) float64 { return math.Pow(a.theta, -2*float64(i)/float64(a.rotary)) }

// bucket returns the T5 relative position bucket of a key that is distance positions after its query.
func bucket(distance int, causal bool) int {
	n, first := buckets, 0
	if causal {
		distance = max(-distance, 0)
	} else {
		n /= 2
		if distance > 0 {
			first = n
		}
		distance = max(distance, -distance)
	}
	exact := n / 2
	if distance < exact {
		return first + distance
	}
	far := math.Log(float64(distance)/float64(exact)) / math.Log(float64(maxDistance)/float64(exact))
	return first + min(exact+int(far*float64(n-exact)), n-1)
}
