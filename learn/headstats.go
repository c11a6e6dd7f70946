package learn

import (
	"fmt"
	"math"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// headSums is what one block's sums of addHeads are called and whether they are there.
type headSums struct {
	block     int
	attention bool // the attention weights have a form that this package knows
	output    bool // the block has an output projection, or contexts of a known form
}

func (h headSums) name(what string) string { return fmt.Sprintf("heads/%d/%s", h.block, what) }

// reduce reduces axes of v, which stay with length 1.
func (b *bench) reduce(op, name string, v *graph.Value, axes ...int64) *graph.Value {
	since := int64(18) // of axes as an input
	if op == "ReduceSum" {
		since = 13
	}
	if b.m.Opset("") >= since {
		return b.op(op, name, []*graph.Value{v, b.ints(name+"/axes", axes...)})
	}
	return b.op(op, name, []*graph.Value{v}, graph.IntsAttr("axes", axes...))
}

// sumAs adds v, of n elements in any shape, to an accumulator of the given shape of as many elements.
func (b *bench) sumAs(name string, v *graph.Value, shape ...int64) {
	b.sum(name, b.op("Reshape", name+"/flat", []*graph.Value{v, b.ints(name+"/flat_shape", shape...)}), shape...)
}

// tiny stands for weights of 0 in logarithms: a normal number, so that no runtime flushes it to 0.
const tiny = 1e-37

// addHeads sets up sums over all visible queries of block i: of each head's attention weights, and of the products of
// the heads' contributions to the block's output.
func (c *collector) addHeads(i int) (headSums, error) {
	s := headSums{block: i}
	err := c.attentionWeights(&s)
	if err == nil {
		err = c.contributions(&s)
	}
	if err != nil {
		return s, fmt.Errorf("block %q: statistics of heads: %w", c.b.blocks[i].Name, err)
	}
	return s, nil
}

// attentionWeights sums, over queries, the entropy -Σ a ln a, the norm √Σ a² and the largest a of the weights a that
// each head gives to positions, and the logarithm of how many positions the query sees. A position is seen when a head
// gives it any weight: a hidden one gets 0 from all of them, one that a single head despises may round to 0 as well.
func (c *collector) attentionWeights(s *headSums) error {
	b, block := c.b, c.b.blocks[s.block]
	p, err := c.probabilities(s.name("weights"), block)
	if err != nil || p == nil {
		return err
	}
	s.attention = true
	name := s.name("weights")
	zero := b.floats(name+"/zero", nil, 0)
	shape := b.op("Shape", name+"/shape", []*graph.Value{p})
	part := func(at int64) *graph.Value {
		return b.op("Gather", name+"/part", []*graph.Value{shape, b.ints(name+"/at", at)}, graph.IntAttr("axis", 0))
	}
	one := b.ints(name+"/one", 1)
	perQuery := b.op("Concat", name+"/per_query", []*graph.Value{part(0), one, part(2), one}, graph.IntAttr("axis", 0))
	var shown *graph.Value // bool [batch, 1, queries, 1]
	if c.tokens != nil {
		shown = b.op("Reshape", name+"/mask", []*graph.Value{c.tokens, perQuery})
		b.total(s.name("queries"), b.cast(shown, onnxpb.TensorProto_FLOAT))
	} else {
		b.total(s.name("queries"), b.op("ConstantOfShape", name+"/rows", []*graph.Value{perQuery},
			graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []float32{1}))))
	}
	// v is [batch, n, queries, 1]; what hidden queries have there may be NaN.
	sum := func(what string, v *graph.Value, n int) {
		if shown != nil {
			v = b.op("Where", name+"/shown", []*graph.Value{shown, v, zero})
		}
		b.sumAs(s.name(what), b.reduce("ReduceSum", s.name(what)+"/reduced", v, 0, 2, 3), int64(n))
	}
	log := b.op("Log", name+"/log", []*graph.Value{b.op("Max", name+"/above_zero", []*graph.Value{p, b.floats(name+"/tiny", nil, tiny)})})
	sum("entropy", b.op("Neg", name+"/entropy", []*graph.Value{
		b.reduce("ReduceSum", name+"/plogp_sum", b.op("Mul", name+"/plogp", []*graph.Value{p, log}), 3)}), block.Heads)
	sum("norm", b.reduce("ReduceL2", name+"/norm", p, 3), block.Heads)
	sum("peak", b.reduce("ReduceMax", name+"/peak", p, 3), block.Heads)
	seen := b.op("Greater", name+"/seen", []*graph.Value{b.reduce("ReduceMax", name+"/any_head", p, 1), zero})
	positions := b.reduce("ReduceSum", name+"/positions", b.cast(seen, onnxpb.TensorProto_FLOAT), 3)
	sum("uniform", b.op("Log", name+"/uniform", []*graph.Value{
		b.op("Max", name+"/positions_seen", []*graph.Value{positions, b.floats(name+"/at_least", nil, 1)})}), 1)
	return nil
}

// contributions sums ⟨c_g, c_h⟩ over tokens for all pairs of query heads, where c_h = (context of head h)·O_h is what
// the head adds to the block's output. With C = Σ over tokens of contextᵀ·context that is the sum of C ∘ O·Oᵀ over the
// rows of g and the columns of h, so that no contribution is ever written out. A block without an output projection
// gives its contexts side by side: O is the identity.
func (c *collector) contributions(s *headSums) error {
	b, block := c.b, c.b.blocks[s.block]
	name := s.name("contribution")
	heads, dv := int64(block.Heads), int64(block.ValueDim)
	if block.Output == nil {
		v, ok := contextByHead(b.facts, block)
		if !ok {
			return nil
		}
		s.output = true
		x := b.single(v, v)
		energy := b.reduce("ReduceSum", name+"/energy", b.op("Mul", name+"/square", []*graph.Value{x, x}), 3)
		energy = b.op("Transpose", name+"/by_token", []*graph.Value{energy}, graph.IntsAttr("perm", 0, 2, 1, 3))
		rows := c.show(name, b.rows(energy, block.Heads), c.tokens)
		c.count(s.name("tokens"), rows, c.tokens)
		diagonal := b.floats(name+"/identity", []int64{heads, heads}, identity(block.Heads)...)
		b.sumAs(s.name("products"), b.op("Mul", name+"/diagonal", []*graph.Value{b.reduce("ReduceSum", name+"/tokens", rows, 0), diagonal}), heads, heads)
		return nil
	}
	s.output = true
	context, _, err := c.inputRows(name, block.Output.Projection, c.tokens, false)
	if err != nil {
		return err
	}
	c.count(s.name("tokens"), context, c.tokens)
	w := b.single(block.Output.Weight, block.Output.Weight)
	if block.Output.RowAxis == 1 {
		w = b.op("Transpose", name+"/weight", []*graph.Value{w}, graph.IntsAttr("perm", 1, 0))
	}
	if order, sorted := headRows(block.Output); !sorted {
		at := b.ints(name+"/order", order...)
		context = b.op("Gather", name+"/ordered", []*graph.Value{context, at}, graph.IntAttr("axis", 1))
		w = b.op("Gather", name+"/ordered_weight", []*graph.Value{w, at}, graph.IntAttr("axis", 0))
	}
	wide := b.op("MatMul", name+"/weight_gram", []*graph.Value{w, b.op("Transpose", name+"/weight_t", []*graph.Value{w}, graph.IntsAttr("perm", 1, 0))})
	products := b.op("Mul", name+"/products", []*graph.Value{b.gram(name, context, 2), wide})
	products = b.op("Reshape", name+"/by_head", []*graph.Value{products, b.ints(name+"/by_head_shape", heads, dv, heads, dv)})
	b.sumAs(s.name("products"), b.reduce("ReduceSum", name+"/summed", products, 1, 3), heads, heads)
	return nil
}

// headRows lists the rows of an output weight head by head, and tells whether that is their own order.
func headRows(o *attention.Output) (order []int64, sorted bool) {
	sorted = true
	for _, rows := range o.Rows {
		for _, r := range rows {
			sorted = sorted && r == len(order)
			order = append(order, int64(r))
		}
	}
	return order, sorted
}

func identity(n int) []float32 {
	x := make([]float32, n*n)
	for i := range n {
		x[i*n+i] = 1
	}
	return x
}

// contextByHead returns what the second product of a block gives when that is [batch, heads, queries, channels].
func contextByHead(f *graph.Facts, block *attention.Block) (*graph.Value, bool) {
	if block.PV == nil || !block.PV.Is("MatMul") {
		return nil, false
	}
	shape, ranked := f.Shape(block.PV.Out[0])
	l, on := block.Scores[block.PV.In[0]]
	plain := l.Pure && l.Axis == 1 && l.Outer == 1 && l.Heads == block.Heads && l.Repeat == 1 && l.Inner == 1
	return block.PV.Out[0], ranked && on && len(shape) == 4 && plain
}

// headStats are the sums of one block, divided by what they are over.
type headStats struct {
	norm, peak, entropy []float64 // means over queries, of each query head; nil when not measured
	uniform             float64   // mean of ln(positions that a query sees)
	products            []float64 // means of ⟨c_g, c_h⟩ over tokens, [heads, heads]; nil when not measured
}

func (p *pass) headStats(s headSums) (*headStats, error) {
	h := &headStats{}
	uniform := []float64{0}
	for _, row := range []struct {
		to         *[]float64
		what, over string
		measured   bool
	}{
		{&h.norm, "norm", "queries", s.attention},
		{&h.peak, "peak", "queries", s.attention},
		{&h.entropy, "entropy", "queries", s.attention},
		{&uniform, "uniform", "queries", s.attention},
		{&h.products, "products", "tokens", s.output},
	} {
		if !row.measured {
			continue
		}
		x, n := p.matrix(s.name(row.what)), p.matrix(s.name(row.over))[0]
		if n == 0 {
			return nil, fmt.Errorf("no token of the data is visible")
		}
		for i := range x {
			x[i] /= n
			if math.IsNaN(x[i]) || math.IsInf(x[i], 0) {
				return nil, fmt.Errorf("the mean %s of heads is %v: the model overflows on the data, or they are no text that it knows", row.what, x[i])
			}
		}
		*row.to = x
	}
	h.uniform = uniform[0]
	return h, nil
}
