// Package attention finds the attention blocks of a transformer graph by following the head axis from the two products
// around a softmax back to the projections, and describes them. It knows nothing of rewriting.
package attention

import "onnx-dha/graph"

// Block is one attention block, softmax(Q·Kᵀ·scale + mask)·V, described from its projections to its output.
type Block struct {
	Name    string
	Kind    Kind
	Causal  bool // a query does not see later positions, as far as the mask's construction tells
	Heads   int  // query heads
	KVHeads int  // key/value heads that are projected and cached
	HeadDim int  // channels of one query or key head
	// ValueDim is the number of channels of one value head (HeadDim in almost every model).
	ValueDim int
	// KVOf maps a query head to the key/value head it reads.
	KVOf []int

	Query, Key, Value *Projection
	Output            *Projection // nil when something other than a projection follows

	Rotary   Rotary
	Scale    float64 // factor on Q·Kᵀ wherever the graph applies it; NaN when it is not a constant
	Mask     Mask
	KeyCache *Cache // nil without a cache
	ValCache *Cache

	QK, Softmax, PV *graph.Node
}

// Kind says where keys and values come from.
type Kind string

// Kinds of attention.
const (
	Self  Kind = "self"
	Cross Kind = "cross"
)

// Rotary says how position enters queries and keys.
type Rotary struct {
	Kind RotaryKind
	Dims int // rotated channels of each head; HeadDim unless the rotation is partial
}

// RotaryKind is the pairing of the channels that a rotary embedding turns together.
type RotaryKind string

// Rotary pairings: none, channel i with i+d/2, channel 2i with 2i+1.
const (
	NoRotary    RotaryKind = "none"
	HalfSplit   RotaryKind = "half-split"
	Interleaved RotaryKind = "interleaved"
)

// Mask says how positions are hidden from the softmax.
type Mask string

// Masks.
const (
	NoMask   Mask = "none"
	AddMask  Mask = "add"
	WhereMsk Mask = "where"
)

// Projection is a MatMul, Gemm or similar with a constant weight.
type Projection struct {
	Node   *graph.Node
	Weight *graph.Value
	Bias   *graph.Value // nil without a bias
}

// Cache is the pair of graph input and output through which a caller passes keys or values from step to step.
type Cache struct {
	Past, Present *graph.Value
	HeadAxis      int
	SeqAxis       int
}

// Unsupported is a softmax or attention operator that could not be described, with the place and the reason.
type Unsupported struct {
	Node *graph.Node // the softmax or attention operator
	At   *graph.Node // where the walk stopped; may equal Node
	Wire string      // the value it stopped on
	Why  string
	// Attention is false for a softmax that is certainly something else (a classifier, a router).
	Attention bool
}

// Report is what Find saw in a model.
type Report struct {
	Blocks      []*Block
	Unsupported []Unsupported
}
