// Package attention finds the attention blocks of a transformer graph by following the head axis from the two products
// around a softmax back to the projections, and describes them. It knows nothing of rewriting.
package attention

import (
	"onnx-dha/graph"
	"onnx-dha/graph/quant"
)

// Block is one attention block, softmax(Q·Kᵀ·scale + mask)·V, described from its projections to its output.
type Block struct {
	// Name is the layer's: blocks of one model that are the same layer in several bodies (the branches of an If, say) have
	// the same name. Body says where the block lies, empty for the main graph.
	Name   string
	Body   string
	Kind   Kind
	Causal bool // a query does not see later positions, as far as the mask's construction tells
	Heads  int  // query heads
	// KVHeads is the number of key heads that are projected and cached; ValueHeads that of value heads (equal in every
	// model but a decoupled one).
	KVHeads, ValueHeads int
	HeadDim             int // channels of one query or key head
	ValueDim            int // channels of one value head
	// KeyOf and ValueOf map a query head to the key and value head it reads.
	KeyOf, ValueOf []int

	Query, Key, Value *Path
	Output            *Output // nil when something other than a projection follows

	Rotary   Rotary
	Scale    float64 // factor on Q·Kᵀ wherever the graph applies it; NaN when it is not a constant
	Mask     Mask
	KeyCache *Cache // nil without a cache
	ValCache *Cache
	// KeyFills and ValueFills say what fills the caches of a block whose Key and Value are bare: one place in every model that
	// does; none where a block of the same name does.
	KeyFills, ValueFills []*Fill

	// Fixed says why a block that is described cannot be rewritten, empty when it can; apart is why it could not if its bare
	// paths were filled.
	Fixed string
	apart string

	QK, Softmax, PV *graph.Node
	Origin          *Origin // the fused operator that the block was expanded from; nil without one, and where nobody noted it
	// Scores are the wires between the two products on which the query heads lie on an axis, with that axis.
	Scores map[*graph.Value]Layout
	// PerHead are inputs between the two products that differ from head to head: relative position bias, ALiBi slopes.
	PerHead []Side
}

// Origin is a fused operator that primitives took the place of: the node, which is no longer in the graph, the inputs that
// it had and the values that stand for its outputs (nil where nothing reads one).
type Origin struct {
	Node            *graph.Node
	Inputs, Results []*graph.Value
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

// Masks: none, a sum with a large negative number, a selection.
const (
	NoMask   Mask = "none"
	AddMask  Mask = "add"
	WhereMsk Mask = "where"
)

// Projection is a MatMul or Gemm with a constant weight, or a product with a quantised one.
type Projection struct {
	Node   *graph.Node
	Input  *graph.Value // the activations
	Output *graph.Value
	// Weight is the initializer or Constant output behind the weight operand; Axis is its column axis (output features)
	// and Operand the node and input that read it, which is not the MatMul when a Transpose or Cast lies between.
	Weight  *graph.Value
	Tensor  *graph.Tensor // the constant of Weight
	Axis    int
	Reader  *graph.Node
	Operand int
	Columns int // output features
	// GemmBias is the bias that the node itself adds (the C operand of a Gemm), its input BiasInput; nil without one.
	GemmBias  *graph.Value
	BiasInput int
	// BiasTensor is its constant, nil when it is computed.
	BiasTensor *graph.Tensor

	// Code is how the weight is stored when it is quantised, nil otherwise. Weight is the initializer of the codes then,
	// Tensor the numbers that they stand for, [in, out] and float, and Nodes are those from the reader of the codes to the
	// one that makes Output, in order; Node is the last. Input is the value that activations are quantised from, if they are.
	Code  *quant.Matrix
	Nodes []*graph.Node
}

// Path is the way from a projection to an operand of one of the products.
type Path struct {
	// Projection has no Node and no Tensor where nothing in this graph projects the heads, Bare saying why: Input, Output
	// and Weight are then the value from which they were followed, and Columns count its heads' channels.
	Projection *Projection
	Bare       string
	// Columns[h][c] is the column of the projection's output that becomes channel c of head h. A packed projection has
	// columns that belong to none.
	Columns [][]int
	Operand *graph.Value // where the path ends
	Nodes   []*graph.Node
	// Wires are the values on the path, and on the side branches that end in a graph output (a cache), with the place
	// of the heads on each.
	Wires map[*graph.Value]Layout
	// Tails are the nodes of those side branches.
	Tails []*graph.Node
	// Entry is the first value that carries this path's columns only; it equals Projection.Output when the weight is
	// not packed.
	Entry *graph.Value
	// Extent says, for the packed wires and the entry, what this path's columns occupy of each axis.
	Extent map[*graph.Value][]Extent
	// Direct says that the wires from the projection to the entry, where heads lie in no pattern that could be kept (in
	// blocks of a tensor-parallel training, say), are best left out: the entry has the axes of the projection's input but
	// the last, and then heads and channels in order. Wires before the entry are not listed.
	Direct bool
	// Repeat is the first wire on which each head occurs once per query head (the repetition of grouped-query
	// attention), and Single the wire of the same layout before it; nil when heads are not repeated. Single may have an
	// axis of size 1 more: Squeeze, 0 when it has not.
	Single, Repeat *graph.Value
	Squeeze        int
	// Biases are constants added to a wire of the path that differ from column to column.
	Biases []Side
	// PerHead are other inputs that differ from head to head; a path with one cannot be fused or re-ordered offline.
	PerHead []Side
	// Adapters are other projections whose outputs are added to this one's, column by column (low-rank adapters that were
	// not merged): the ways from them to where they are added, which is their Operand.
	Adapters []*Path
	// Readers are inputs of nodes outside the block that read a wire with the heads: the keys of a product with positions,
	// say. Whoever fuses heads lets them see as many as before.
	Readers []Side

	// Of an adapter: the projection in front of its own, nil where another node stands there, and the constant factor on
	// what it adds.
	Down   *Projection
	Factor float64
	tracer *tracer
}

// Output is the projection after the second product.
type Output struct {
	*Projection
	// Rows[h][c] is the row of the weight that channel c of head h meets.
	Rows    [][]int
	RowAxis int   // the weight's axis of input features
	Bias    *Side // the constant that is added to what the projection gives, in a Gemm or by an Add; nil without one
	Nodes   []*graph.Node
	// Wires are the values from the product to the projection, with the place of the heads on each.
	Wires map[*graph.Value]Layout
}

// Layout says where the heads lie on a wire: along Axis, index (((o·Heads + h)·Repeat + r)·Inner + i) with
// 0 ≤ o < Outer holds head h. A packed wire has other columns beside them (Pure is false) and only Axis is set. On a
// Spread wire they lie in no such pattern: repeated unequally, or on two axes. Where these are neighbours, key/value
// head and query head within it, Pair is the size of the second.
type Layout struct {
	Axis, Outer, Heads, Repeat, Inner, Pair int
	Pure, Spread                            bool
}

// Extent is what a path's columns occupy of one axis: Count indices. Columns tells whether they change along the axis at
// all, Heads whether the head does.
type Extent struct {
	Count          int
	Columns, Heads bool
}

// Len returns the length of the axis.
func (l Layout) Len() int { return l.Outer * l.Heads * l.Repeat * l.Inner }

// Side is input Input of Node that is not on a path itself.
type Side struct {
	Node   *graph.Node
	Input  int
	Value  *graph.Value
	Tensor *graph.Tensor // of a bias: the constant of Value
	Axis   int           // the axis of Value along which heads (or columns) differ
}

// Cache is the pair of graph input and output through which a caller passes keys or values from step to step. One that
// holds keys and values together (past [2, batch, heads, seq, dim]) is Stacked.
//
// In the body of a node they are what the body calls them, or what it reads of the graph around it. Links are all other
// names of the cache, with the head axis: what it is at first, what other bodies call it, what comes out of the node.
type Cache struct {
	Links             map[*graph.Value]int
	Past, Present     *graph.Value // nil when absent
	PastAxis, PastSeq int          // head axis and sequence axis of Past
	PresentAxis       int
	PastNodes         []*graph.Node
	PastWires         map[*graph.Value]int // values from Past to the Concat, with their head axis
	Stacked           bool
	Heads             int // heads in the cache: KVHeads, or more when repeated heads are cached
	Repeat            int
	Outer             int         // more than 1 when the head axis is merged with the batch, batch·heads
	Concat            *graph.Node // joins cached and new positions, or writes what is new into the past (TensorScatter, ScatterND)
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
	Facts       *graph.Facts
}
