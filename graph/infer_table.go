package graph

import (
	"math"
	"strings"

	"onnx-dha/graph/onnxpb"
)

const (
	floatType = onnxpb.TensorProto_FLOAT
	int32Type = onnxpb.TensorProto_INT32
	int64Type = onnxpb.TensorProto_INT64
	uint8Type = onnxpb.TensorProto_UINT8
	boolType  = onnxpb.TensorProto_BOOL
)

// microsoft is the domain of ONNX Runtime's own operators. Those that it shares with ai.onnx are found under either.
const microsoft = "com.microsoft"

// family is one row of the table: operators that are inferred alike.
type family struct {
	domain string
	ops    string // separated by spaces
	rule
}

// rules is filled at start-up: the rows of operators with bodies lead back to it.
var rules map[opKey]rule

func init() { rules = index(families) }

var families = []family{
	// Elementwise, one operand.
	{ops: "Acos Acosh Asin Asinh Atan Atanh BitwiseNot Celu Cosh CumSum CumProd Elu FastGelu Gelu HardSigmoid HardSwish Hardmax " +
		"LRN LeakyRelu LogSoftmax LpNormalization MeanVarianceNormalization Mish PRelu QuickGelu Selu Shrink Sinh Softmax Softplus " +
		"Softsign Swish Tan ThresholdedRelu", rule: rule{shape: shapeOf(0)}},
	{ops: "Abs", rule: rule{shape: shapeOf(0), fold: elementwise(1, absNumbers)}},
	{ops: "Ceil", rule: rule{shape: shapeOf(0), fold: elementwise(1, rounding(math.Ceil))}},
	{ops: "Floor", rule: rule{shape: shapeOf(0), fold: elementwise(1, rounding(math.Floor))}},
	{ops: "Round", rule: rule{shape: shapeOf(0), fold: elementwise(1, rounding(math.RoundToEven))}},
	{ops: "Cos", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Cos))}},
	{ops: "Erf", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Erf))}},
	{ops: "Exp", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Exp))}},
	{ops: "Log", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Log))}},
	{ops: "Neg", rule: rule{shape: shapeOf(0), fold: elementwise(1, negNumbers)}},
	{ops: "Reciprocal", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(func(x float64) float64 { return 1 / x }))}},
	{ops: "Relu", rule: rule{shape: shapeOf(0), fold: elementwise(1, reluNumbers)}},
	{ops: "Sigmoid", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }))}},
	{ops: "Sign", rule: rule{shape: shapeOf(0), fold: elementwise(1, signNumbers)}},
	{ops: "Sin", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Sin))}},
	{ops: "Sqrt", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Sqrt))}},
	{ops: "Tanh", rule: rule{shape: shapeOf(0), fold: elementwise(1, unary(math.Tanh))}},
	{ops: "IsInf IsNaN", rule: rule{elem: always(boolType), shape: shapeOf(0)}},
	{ops: "Cast", rule: rule{elem: attrElem("to", always(onnxpb.TensorProto_UNDEFINED)), shape: shapeOf(0), fold: elementwise(1, castNumbers)}},
	{ops: "CastLike", rule: rule{elem: elemOf(1), shape: shapeOf(0), fold: castLike}},
	{ops: "Clip", rule: rule{shape: shapeOf(0), fold: elementwise(1, clipNumbers)}},
	{ops: "Dropout", rule: rule{shape: shapeOf(0), fold: dropoutElements, rest: dropoutMask}},
	{ops: "Identity", rule: rule{shape: shapeOf(0), fold: sameElements}},

	// Elementwise, several operands that broadcast.
	{ops: "Add", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(2, addNumbers)}},
	{ops: "Sub", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(2, subNumbers)}},
	{ops: "Mul", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(2, mulNumbers)}},
	{ops: "Div", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(2, divNumbers)}},
	{ops: "Mod", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(2, modNumbers)}},
	{ops: "Pow", rule: rule{shape: broadcastShape, fold: elementwise(2, powNumbers)}},
	{ops: "Min", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(1, minNumbers)}},
	{ops: "Max", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(1, maxNumbers)}},
	{ops: "Sum", rule: rule{elem: anyElem, shape: broadcastShape, fold: elementwise(1, addNumbers)}},
	{ops: "Mean BitShift BitwiseAnd BitwiseOr BitwiseXor", rule: rule{elem: anyElem, shape: broadcastShape}},
	{ops: "Equal", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, comparison(false, true, false))}},
	{ops: "Less", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, comparison(true, false, false))}},
	{ops: "LessOrEqual", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, comparison(true, true, false))}},
	{ops: "Greater", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, comparison(false, false, true))}},
	{ops: "GreaterOrEqual", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, comparison(false, true, true))}},
	{ops: "And", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, logic(0))}},
	{ops: "Or", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, logic(1))}},
	{ops: "Xor", rule: rule{elem: always(boolType), shape: broadcastShape, fold: elementwise(2, xorNumbers)}},
	{ops: "Not", rule: rule{elem: always(boolType), shape: shapeOf(0), fold: elementwise(1, notNumbers)}},
	{ops: "Where", rule: rule{elem: elemOf(1, 2), shape: broadcastShape, fold: elementwise(3, whereNumbers)}},

	// Movement.
	{ops: "Concat", rule: rule{elem: anyElem, shape: concatShape, fold: concatElements}},
	{ops: "Expand", rule: rule{shape: expandShape, fold: broadcastElements}},
	{ops: "Flatten", rule: rule{shape: flattenShape, fold: sameElements}},
	{ops: "Gather", rule: rule{shape: gatherShape, fold: gatherElements}},
	{ops: "GatherElements", rule: rule{shape: shapeOf(1), fold: elementsAlong}},
	{ops: "GatherND", rule: rule{shape: gatherNDShape}},
	{ops: "Pad", rule: rule{shape: padShape}},
	{ops: "Reshape", rule: rule{shape: reshapeShape, fold: sameElements}},
	{ops: "ReverseSequence Scatter ScatterElements ScatterND Trilu", rule: rule{shape: shapeOf(0)}},
	{ops: "TensorScatter", rule: rule{shape: writtenShape}},
	{ops: "Slice", rule: rule{shape: sliceShape, fold: sliceElements}},
	{ops: "Split", rule: rule{rest: splitShapes, fold: splitElements}},
	{ops: "Squeeze", rule: rule{shape: squeezeShape, fold: sameElements}},
	{ops: "Tile", rule: rule{shape: tileShape, fold: tileElements}},
	{ops: "Transpose", rule: rule{shape: transposeShape, fold: transposeElements}},
	{ops: "Unsqueeze", rule: rule{shape: unsqueezeShape, fold: sameElements}},
	{ops: "Compress", rule: rule{shape: compressShape}},
	{ops: "Resize Upsample", rule: rule{shape: rankOf(0)}},

	// Sequences of tensors, by what holds of each.
	{ops: "SequenceEmpty", rule: rule{rest: emptySequence}},
	{ops: "SequenceConstruct", rule: rule{rest: sequenceOf}},
	{ops: "SequenceInsert", rule: rule{rest: insertion}},
	{ops: "SequenceAt", rule: rule{rest: element}},
	{ops: "SequenceErase", rule: rule{shape: shapeOf(0)}},
	{ops: "SequenceLength", rule: rule{rest: sequenceLength}},
	{ops: "SplitToSequence", rule: rule{rest: splitSequence}},
	{ops: "ConcatFromSequence", rule: rule{rest: joinedSequence}},

	// Shapes and fillings.
	{ops: "ConstantOfShape", rule: rule{elem: filledElem, shape: sizesShape(0), fold: filledElements}},
	{ops: "EyeLike RandomNormalLike RandomUniformLike Bernoulli", rule: rule{elem: attrElem("dtype", elemOf(0)), shape: shapeOf(0)}},
	{ops: "NonZero", rule: rule{elem: always(int64Type), shape: nonZeroShape, fold: nonZeroElements}},
	{ops: "OneHot", rule: rule{elem: elemOf(2), shape: oneHotShape}},
	{ops: "RandomNormal RandomUniform", rule: rule{elem: attrElem("dtype", always(floatType)), shape: attrShape}},
	{ops: "Range", rule: rule{elem: anyElem, shape: rangeShape, fold: rangeElements}},
	{ops: "Shape", rule: rule{elem: always(int64Type), shape: shapeShape, fold: shapeElements}},
	{ops: "Size", rule: rule{elem: always(int64Type), shape: scalarShape, fold: sizeElements}},

	// Products.
	{ops: "MatMul", rule: rule{elem: anyElem, shape: matmulShape(0, 1)}},
	{ops: "Gemm", rule: rule{elem: anyElem, shape: gemmShape}},
	{ops: "Einsum", rule: rule{elem: anyElem, shape: einsumShape}},
	{ops: "Conv", rule: rule{elem: elemOf(0, 1), shape: convShape(1)}},
	{ops: "ConvTranspose", rule: rule{elem: elemOf(0, 1), shape: rankOf(0)}},
	{ops: "AveragePool LpPool MaxPool", rule: rule{shape: poolShape, rest: poolIndices}},
	{ops: "GlobalAveragePool GlobalLpPool GlobalMaxPool", rule: rule{shape: globalPoolShape}},
	{domain: microsoft, ops: "FusedMatMul TransposeMatMul", rule: rule{elem: anyElem, shape: fusedMatmulShape}},

	// Reductions.
	{ops: "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceSumSquare", rule: rule{shape: reduceShape}},
	{ops: "ReduceMax", rule: rule{shape: reduceShape, fold: reduceElements(maxNumbers)}},
	{ops: "ReduceMean", rule: rule{shape: reduceShape, fold: meanElements}},
	{ops: "ReduceMin", rule: rule{shape: reduceShape, fold: reduceElements(minNumbers)}},
	{ops: "ReduceProd", rule: rule{shape: reduceShape, fold: reduceElements(mulNumbers)}},
	{ops: "ReduceSum", rule: rule{shape: reduceShape, fold: reduceElements(addNumbers)}},
	{ops: "ArgMax ArgMin", rule: rule{elem: always(int64Type), shape: argShape}},
	{ops: "TopK", rule: rule{rest: topK}},

	// Normalisation.
	{ops: "BatchNormalization GroupNormalization InstanceNormalization SimplifiedLayerNormalization RMSNormalization",
		rule: rule{shape: shapeOf(0)}},
	{ops: "LayerNormalization", rule: rule{shape: shapeOf(0), rest: reducedStatistics(1)}},
	{domain: microsoft, ops: "SkipLayerNormalization SkipSimplifiedLayerNormalization", rule: rule{shape: shapeOf(0), rest: skipNorm}},
	{domain: microsoft, ops: "EmbedLayerNormalization", rule: rule{rest: embedLayerNorm}},

	// Attention and what exporters fuse around it.
	{ops: "Attention", rule: rule{rest: attention}},
	{ops: "RotaryEmbedding", rule: rule{shape: shapeOf(0)}},
	{domain: microsoft, ops: "Attention", rule: rule{rest: packedAttention}},
	{domain: microsoft, ops: "MultiHeadAttention", rule: rule{rest: multiHead(6)}},
	{domain: microsoft, ops: "DecoderMaskedMultiHeadAttention", rule: rule{rest: multiHead(5)}},
	{domain: microsoft, ops: "GroupQueryAttention", rule: rule{rest: groupQuery}},
	{domain: microsoft, ops: "BiasAdd BiasGelu BiasSoftmax GroupNorm MoE QMoE RotaryEmbedding", rule: rule{shape: shapeOf(0)}},

	// Quantisation.
	{ops: "QuantizeLinear", rule: rule{elem: quantizedElem, shape: shapeOf(0)}},
	{ops: "DequantizeLinear", rule: rule{elem: attrElem("output_dtype", elemOf(1)), shape: shapeOf(0)}},
	{ops: "DynamicQuantizeLinear", rule: rule{elem: always(uint8Type), shape: shapeOf(0), rest: quantizationScalars}},
	{ops: "MatMulInteger", rule: rule{elem: always(int32Type), shape: matmulShape(0, 1)}},
	{ops: "QLinearMatMul", rule: rule{elem: elemOf(7), shape: matmulShape(0, 3)}},
	{ops: "ConvInteger", rule: rule{elem: always(int32Type), shape: convShape(1)}},
	{ops: "QLinearConv", rule: rule{elem: elemOf(7), shape: convShape(3)}},
	{domain: microsoft, ops: "MatMulNBits MatMulBnb4", rule: rule{shape: nbitsShape}},
	{domain: microsoft, ops: "DynamicQuantizeMatMul", rule: rule{shape: matmulShape(0, 1)}},
	{domain: microsoft, ops: "MatMulIntegerToFloat", rule: rule{elem: elemOf(2), shape: matmulShape(0, 1)}},

	// Control flow.
	{ops: "If", rule: rule{rest: branches}},
	{ops: "Loop", rule: rule{rest: loop}},
	{ops: "Scan", rule: rule{rest: scan}},
}

// index spreads the table's rows over its operators.
func index(families []family) map[opKey]rule {
	out := map[opKey]rule{}
	for _, fam := range families {
		for _, op := range strings.Fields(fam.ops) {
			out[opKey{fam.domain, op}] = fam.rule
		}
	}
	for key, r := range out {
		alias := opKey{microsoft, key.op}
		if _, own := out[alias]; key.domain == "" && !own {
			out[alias] = r
		}
	}
	return out
}

// shapeOf is the shape of input i.
func shapeOf(i int) func(*call) ([]Dim, bool) {
	return func(c *call) ([]Dim, bool) { return c.shape(i) }
}

// broadcastShape is what the shapes of all inputs broadcast to.
func broadcastShape(c *call) ([]Dim, bool) {
	var shapes [][]Dim
	for i, v := range c.In {
		if v == nil {
			continue
		}
		s, ok := c.shape(i)
		if !ok {
			return nil, false
		}
		shapes = append(shapes, s)
	}
	return c.f.broadcast(shapes...)
}

// always is a type that does not depend on the inputs.
func always(e elemType) func(*call) elemType { return func(*call) elemType { return e } }

// elemOf is the type that the listed inputs, which have to agree, are known to have.
func elemOf(inputs ...int) func(*call) elemType {
	return func(c *call) elemType {
		for _, i := range inputs {
			if e := c.elem(i); e != onnxpb.TensorProto_UNDEFINED {
				return e
			}
		}
		return onnxpb.TensorProto_UNDEFINED
	}
}

// anyElem is the type of all inputs.
func anyElem(c *call) elemType {
	for i := range c.In {
		if e := c.elem(i); e != onnxpb.TensorProto_UNDEFINED {
			return e
		}
	}
	return onnxpb.TensorProto_UNDEFINED
}

// castLike folds CastLike, whose second input gives its type only.
func castLike(c *call, i int, shape []int64) ([]number, bool) {
	if len(c.In) == 0 {
		return nil, false
	}
	one := *c
	node := *c.Node
	node.In = node.In[:1]
	one.Node = &node
	return elementwise(1, castNumbers)(&one, i, shape)
}

// dropoutElements passes elements on outside training.
func dropoutElements(c *call, out int, shape []int64) ([]number, bool) {
	if training, ok := c.ints(2); c.Input(2) != nil && !(ok && len(training) == 1 && training[0] == 0) || c.Attr("is_test") != nil {
		return nil, false
	}
	return sameElements(c, out, shape)
}

func dropoutMask(c *call) {
	if s, ok := c.shape(0); ok {
		c.setOut(1, boolType, s)
	}
}

// poolIndices sets the second output of MaxPool.
func poolIndices(c *call) {
	if len(c.out) > 1 && c.out[0].ranked {
		c.setOut(1, int64Type, c.out[0].shape)
	}
}

// compressShape keeps an unknown number of elements of one axis, or of all.
func compressShape(c *call) ([]Dim, bool) {
	if c.Attr("axis") == nil {
		return c.f.newDims(1), true
	}
	s, ok := c.shape(0)
	if !ok {
		return nil, false
	}
	a, ok := axis(c.Int("axis", 0), len(s))
	if !ok {
		return nil, false
	}
	out := append([]Dim(nil), s...)
	out[a] = c.f.newDim()
	return out, true
}

// quantizedElem is the type of the zero point, or what an attribute says, or uint8.
func quantizedElem(c *call) elemType {
	if c.Input(2) != nil {
		return c.elem(2)
	}
	if e := elemType(c.Int("output_dtype", 0)); e != onnxpb.TensorProto_UNDEFINED {
		return e
	}
	return uint8Type
}

// quantizationScalars sets scale and zero point of DynamicQuantizeLinear.
func quantizationScalars(c *call) {
	c.setOut(1, floatType, nil)
	c.setOut(2, uint8Type, nil)
}
