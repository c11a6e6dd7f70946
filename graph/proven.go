package graph

import (
	"slices"
	"strconv"
	"strings"
)

// Prove collects the facts of g, which is a main graph, that hold in every run that the operators accept, whatever the
// file declares: facts that a graph may be changed by without changing a bit of what it computes. They are fewer than
// those of Infer, which reads a graph as its exporter meant it:
//
//   - of declarations only the type, the rank and the constant dimensions of graph inputs count, which a runtime checks
//     when it is called. Every other dimension of every input is a symbol of its own: two that have the same name need
//     not have the same size;
//   - where two dimensions broadcast, either may be 1; the result is a function of both that is neither;
//   - bounds of a Slice or Range may lie beyond the end, an element of a Reshape's target may be 0;
//   - only operators of a list are inferred, and only integers and truth values are computed: with floats, narrow
//     integers that could wrap and bodies that run more than once the knowledge ends.
//
// Three things are granted: no size, and no product of sizes that a graph computes, exceeds an int64; the operands of a
// Concat agree but for the axis, as the operator demands (runtimes may let empty ones differ); and where a Reshape keeps
// the number of elements at most one of the symbols in its target stands for 0.
func Prove(g *Graph) *Facts { return infer(g, true) }

// provable are the operators whose rules hold without reservation, by domain. Rows of the table of rules that read more
// into a graph than its operators enforce ask Facts.proven.
var provable = map[string]string{
	"": "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip " +
		"Concat ConstantOfShape Conv ConvInteger Cos Cosh CumSum DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand " +
		"EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual HardSigmoid HardSwish Hardmax Identity If " +
		"InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul MatMulInteger Max Mean " +
		"Min Mish Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 " +
		"ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape RotaryEmbedding Round " +
		"ScatterElements ScatterND Selu Shape Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size Slice Softmax Softplus Softsign Split Sqrt Squeeze " +
		"Sub Sum Swish Tan Tanh TensorScatter ThresholdedRelu Tile Transpose Trilu Unsqueeze Where Xor Attention",
	microsoft: "BiasGelu DynamicQuantizeMatMul FastGelu FusedMatMul Gelu GroupQueryAttention MatMulIntegerToFloat MatMulNBits MultiHeadAttention " +
		"QuickGelu RotaryEmbedding SkipLayerNormalization SkipSimplifiedLayerNormalization",
}

// What may be computed with elements that are symbols. A mover takes them as they are. Sums and products are right also where they
// wrap, since all of them wrap alike. Everything else needs to know that they are sizes, or results of such.
const (
	movers = "Concat ConstantOfShape Dropout Expand Flatten Gather GatherElements Identity Reshape Shape Size Slice Split Squeeze Tile Transpose Unsqueeze"
	rings  = "Add Mul Neg ReduceProd ReduceSum Sub Sum"
)

var (
	provableOps = listed(provable)
	moverOps    = listed(map[string]string{"": movers})
	ringOps     = listed(map[string]string{"": rings})
)

func listed(domains map[string]string) map[opKey]bool {
	out := map[opKey]bool{}
	for domain, ops := range domains {
		for _, op := range strings.Fields(ops) {
			out[opKey{domain, op}] = true
		}
	}
	return out
}

// cautious returns what of a rule is certain of c.
func (r rule) cautious(c *call) rule {
	if r.fold != nil && !c.exact() {
		r.fold = nil
	}
	return r
}

// exact reports whether the elements of c's outputs can be computed from symbols.
func (c *call) exact() bool {
	key := opKey{canonicalDomain(c.Domain), c.OpType}
	switch key.op {
	case "Shape", "Size":
		return true // whatever the type of the input
	case "Pow":
		return false // runtimes compute it with floats
	}
	for i, v := range c.In {
		if v == nil {
			continue
		}
		if !countable(c.elem(i)) {
			return false
		}
		dims, ok := c.dims(i)
		if !ok {
			return false
		}
		if _, constant := constants(dims); constant || moverOps[key] {
			continue
		}
		switch {
		case key.op == "Cast" && elemType(c.Int("to", 0)) != c.elem(i) && c.elem(i) != boolType,
			key.op != "Cast" && c.elem(i) == int32Type,
			key.op != "Cast" && !ringOps[key] && slices.ContainsFunc(dims, c.f.arbitrary):
			return false
		}
	}
	return true
}

// countable reports whether elements of type e are computed with.
func countable(e elemType) bool { return e == int64Type || e == int32Type || e == boolType }

// prune drops what is not certain of the outputs of c: elements of other types, and what operators of attention say of
// their caches.
func (c *call) prune() {
	for i := range c.out {
		if !countable(c.out[i].elem) {
			c.out[i].known = nil
		}
		if i > 0 && strings.Contains(c.OpType, "Attention") {
			c.out[i] = fact{elem: c.out[i].elem}
		}
	}
}

// checked is what a runtime checks of a graph input, and nothing for any other value.
func (f *Facts) checked(v *Value) fact {
	tt := v.Info.GetType().GetTensorType()
	if tt == nil || !v.IsInput || v.Graph.Outer != nil {
		return fact{}
	}
	fa := fact{elem: elemType(tt.GetElemType())}
	// What is declared to have no axes is not checked.
	if n := len(tt.GetShape().GetDim()); n > 0 && n <= maxRank {
		fa.ranked = true
		for _, d := range tt.Shape.Dim {
			fa.shape = append(fa.shape, f.declared(d, false))
		}
	}
	return fa
}

// spread is broadcastDim where nothing is granted: a symbol for what a and b broadcast to. It is the same for the same
// dimensions in any order and number, since broadcasting is commutative, associative and idempotent. A number other than 1
// is the result itself; the runtime refuses all but it and 1.
func (f *Facts) spread(a, b Dim) Dim {
	m, aConst := a.Const()
	n, bConst := b.Const()
	switch {
	case a.Equal(b), aConst && m != 1 && !bConst, bConst && n == 1:
		return a
	case aConst && m == 1, bConst && !aConst:
		return b
	case aConst || a.lost || b.lost:
		return f.newDim()
	}
	var all []string
	for _, d := range []Dim{a, b} {
		if of, ok := f.spreads[d.String()]; ok {
			all = append(all, of...)
			continue
		}
		all = append(all, d.String())
	}
	slices.Sort(all)
	all = slices.Compact(all)
	key := strings.Join(all, " | ")
	if len(key) > maxSpread {
		return f.newDim()
	}
	name, ok := f.spreadNames[key]
	if !ok {
		name = "?spread" + strconv.Itoa(len(f.spreadNames))
		f.spreadNames[key], f.spreads[name] = name, all
	}
	return Sym(name)
}

// maxSpread bounds the description of what a dimension is spread from.
const maxSpread = 2048

// keptElements is what the target of a Reshape says of the result where nothing is granted. An element that may be 0
// stands for the dimension at its place in the input then: it is certain where that is the same, or where the number of
// elements shows it.
func (c *call) keptElements(in, target []Dim, ranked bool) []Dim {
	copies := c.Int("allowzero", 0) == 0
	out := make([]Dim, len(target))
	var open, doubtful []int
	for i, d := range target {
		n, constant := d.Const()
		at := i < len(in)
		low, positive := c.f.lower(d)
		switch {
		case constant && n == 0 && copies && at:
			out[i] = in[i]
		case constant && n == -1:
			open = append(open, i)
		case constant && n >= 0 && !(n == 0 && copies), at && d.Equal(in[i]), positive && (low > 0 || !copies || at && divides(d, in[i])):
			out[i] = d
		case positive:
			out[i] = d
			doubtful = append(doubtful, i)
		default:
			out[i] = c.f.newDim()
		}
	}
	switch {
	case ranked && len(open) == 0 && total(in).Equal(total(out)):
		return out
	case ranked && len(open) == 1 && len(doubtful) == 0:
		i := open[0]
		q, ok := total(in).Div(total(slices.Concat(out[:i], out[i+1:])))
		if low, positive := c.f.lower(q); ok && positive && low >= 0 {
			out[i] = q
			return out
		}
	}
	for _, i := range slices.Concat(open, doubtful) {
		out[i] = c.f.newDim()
	}
	return out
}

// divides reports whether e is a multiple of d, and hence 0 where d is.
func divides(d, e Dim) bool {
	_, ok := e.Div(d)
	return ok
}

// writtenShape is the shape of what TensorScatter writes into. What is written has the same sizes, except along the axis;
// where nothing is granted it is they that others can be compared with, since a cache is an input with sizes of its own.
func writtenShape(c *call) ([]Dim, bool) {
	past, ok := c.shape(0)
	update, ok2 := c.shape(1)
	if !c.f.proven || !ok || !ok2 || len(past) != len(update) {
		return past, ok
	}
	a, ok := axis(c.Int("axis", -2), len(past))
	if !ok {
		return nil, false
	}
	out := slices.Clone(update)
	out[a] = past[a]
	return out, true
}
