package unfuse

import (
	"fmt"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Operators that take and give quantised tensors ("QOperator" form) become the same on floats between DequantizeLinear
// and QuantizeLinear ("QDQ" form), from which the runtime makes them again when it loads a model. Integer arithmetic and
// this differ in how a sum is rounded that lies halfway between two codes.
func init() {
	for name, r := range map[string]struct {
		inputs int
		attrs  []string
		expand func(*writer) error
	}{
		"QLinearMatMul":                  {8, nil, qlinear(binary("MatMul"), 6, 0, 3)},
		"com.microsoft.QLinearAdd":       {8, nil, qlinear(binary("Add"), 6, 0, 3)},
		"com.microsoft.QLinearMul":       {8, nil, qlinear(binary("Mul"), 6, 0, 3)},
		"com.microsoft.QLinearSigmoid":   {5, nil, qlinear(unary("Sigmoid"), 3, 0)},
		"com.microsoft.QLinearLeakyRelu": {5, []string{"alpha"}, qlinear(unary("LeakyRelu", "alpha"), 3, 0)},
		"com.microsoft.QLinearSoftmax":   {5, []string{"axis", "opset"}, qlinear(quantisedSoftmax, 3, 0)},
		"com.microsoft.QGemm":            {9, []string{"alpha", "transA", "transB"}, quantisedGemm},
		"com.microsoft.QLinearWhere":     {9, nil, quantisedWhere},
	} {
		rows[name] = row{attrs: r.attrs, required: r.inputs - 2, inputs: r.inputs, outputs: 1, expand: r.expand}
	}
	rows["com.microsoft.QLinearConcat"] = row{attrs: []string{"axis"}, required: 5, inputs: 1 << 10, outputs: 1, expand: quantisedConcat}
	rows["Mul"] = row{required: 2, inputs: 2, outputs: 1, expand: dynamicProduct, applies: func(n *graph.Node) bool { return integerProduct(n) != nil }}
}

// OnCodes reports whether n is an operator of the table that computes on codes of activations.
func OnCodes(n *graph.Node) bool {
	name := opName(n)
	r, ok := rows[name]
	if !ok || r.applies != nil && !r.applies(n) {
		return false
	}
	return strings.Contains(name, "QLinear") || name == "com.microsoft.QGemm" || name == "com.microsoft.QAttention" || name == "Mul"
}

// dequantise reads the quantised tensor that is input i of the node, with scale and zero point behind it.
func (w *writer) dequantise(i int) (*graph.Value, error) {
	scale := w.in(i + 1)
	if w.in(i) == nil || scale == nil {
		return nil, errMissing
	}
	in := []*graph.Value{w.in(i), scale}
	if w.in(i+2) != nil {
		in = append(in, w.in(i+2))
	}
	axis, err := w.scaleAxis(w.in(i), scale)
	if err != nil {
		return nil, err
	}
	v := w.nodes("DequantizeLinear", 1, in, axis...)[0]
	for k := range in {
		w.reads(v.Producer, k, i+k)
	}
	return v, nil
}

// scaleAxis is the axis attribute for the scales of v: none where there is one scale, else that of its columns.
func (w *writer) scaleAxis(v, scale *graph.Value) ([]*onnxpb.AttributeProto, error) {
	shape, ok := w.facts.Shape(scale)
	if !ok {
		return nil, fmt.Errorf("the shape of the scale %q is not known", scale.Name)
	}
	count := int64(1)
	for _, d := range shape {
		n, ok := d.Const()
		if !ok {
			return nil, fmt.Errorf("the number of scales %q is not known", scale.Name)
		}
		count *= n
	}
	rank, err := w.rank(v)
	if err != nil {
		return nil, err
	}
	switch {
	case count == 1:
		return nil, nil
	case len(shape) != 1 || rank < 2:
		return nil, fmt.Errorf("scales %q with %d axes are not expanded", scale.Name, len(shape))
	case w.opset < 13:
		return nil, fmt.Errorf("the model imports opset %d of ai.onnx; several scales of a tensor are expanded from opset 13 on", w.opset)
	}
	columns, err := w.dim(v, rank-1)
	if err != nil {
		return nil, err
	}
	if columns != count {
		return nil, fmt.Errorf("%d scales %q for %d columns are not expanded", count, scale.Name, columns)
	}
	return []*onnxpb.AttributeProto{graph.IntAttr("axis", int64(rank-1))}, nil
}

// quantise makes output 0 of v with the scale that is input i and the zero point behind it.
func (w *writer) quantise(v *graph.Value, i int) error {
	if w.in(i) == nil {
		return errMissing
	}
	in := []*graph.Value{v, w.in(i)}
	if w.in(i+1) != nil {
		in = append(in, w.in(i+1))
	}
	q := w.op("QuantizeLinear", in...)
	for k := range in[1:] {
		w.reads(q.Producer, k+1, i+k)
	}
	w.result(0, q)
	return nil
}

// qlinear is an operator on quantised operands, each with scale and zero point behind it; out is the input of the result's
// scale.
func qlinear(op func(w *writer, in []*graph.Value) (*graph.Value, error), out int, operands ...int) func(*writer) error {
	return func(w *writer) error {
		var in []*graph.Value
		for _, i := range operands {
			v, err := w.dequantise(i)
			if err != nil {
				return err
			}
			in = append(in, v)
		}
		y, err := op(w, in)
		if err != nil {
			return err
		}
		return w.quantise(y, out)
	}
}

func binary(op string) func(*writer, []*graph.Value) (*graph.Value, error) {
	return func(w *writer, in []*graph.Value) (*graph.Value, error) { return w.op(op, in...), nil }
}

func unary(op string, attrs ...string) func(*writer, []*graph.Value) (*graph.Value, error) {
	return func(w *writer, in []*graph.Value) (*graph.Value, error) {
		var own []*onnxpb.AttributeProto
		for _, a := range w.n.Proto.Attribute {
			for _, name := range attrs {
				if a.GetName() == name {
					own = append(own, a)
				}
			}
		}
		return w.nodes(op, 1, in, own...)[0], nil
	}
}

func quantisedSoftmax(w *writer, in []*graph.Value) (*graph.Value, error) {
	rank, err := w.rank(w.in(0))
	if err != nil {
		return nil, err
	}
	axis := w.n.Int("axis", -1)
	if axis < 0 {
		axis += int64(rank)
	}
	if axis != int64(rank)-1 {
		return nil, fmt.Errorf("a softmax over axis %d of %d is not expanded", axis, rank)
	}
	return w.nodes("Softmax", 1, in, graph.IntAttr("axis", axis))[0], nil
}

// quantisedGemm expands com.microsoft.QGemm: A and B with scales and zero points, C in the product of their scales, and
// perhaps scale and zero point of the result, without which it is float.
func quantisedGemm(w *writer) error {
	a, err := w.dequantise(0)
	if err != nil {
		return err
	}
	if w.n.Int("transB", 0) != 0 {
		if shape, ok := w.facts.Shape(w.in(4)); !ok || len(shape) > 0 && !shape[0].Equal(graph.Int(1)) {
			return fmt.Errorf("a transposed weight with several scales is not expanded")
		}
	}
	b, err := w.dequantise(3)
	if err != nil {
		return err
	}
	in := []*graph.Value{a, b}
	if c := w.in(6); c != nil {
		scale := w.op("Mul", w.in(1), w.in(4))
		c = w.cast(c, w.facts.Elem(w.in(1)))
		in = append(in, w.op("Mul", c, scale))
	}
	var attrs []*onnxpb.AttributeProto
	for _, t := range []string{"transA", "transB"} {
		attrs = append(attrs, graph.IntAttr(t, w.n.Int(t, 0)))
	}
	y := w.nodes("Gemm", 1, in, append(attrs, graph.FloatAttr("alpha", w.n.Float("alpha", 1)))...)[0]
	if w.in(7) == nil {
		w.result(0, y)
		return nil
	}
	return w.quantise(y, 7)
}

// quantisedWhere expands com.microsoft.QLinearWhere: condition, X, Y, each with scale and zero point, those of Z.
func quantisedWhere(w *writer) error {
	x, err := w.dequantise(1)
	if err != nil {
		return err
	}
	y, err := w.dequantise(4)
	if err != nil {
		return err
	}
	return w.quantise(w.op("Where", w.in(0), x, y), 7)
}

// quantisedConcat expands com.microsoft.QLinearConcat: scale and zero point of the result, then operands.
func quantisedConcat(w *writer) error {
	var in []*graph.Value
	for i := 2; i < len(w.n.In); i += 3 {
		v, err := w.dequantise(i)
		if err != nil {
			return err
		}
		in = append(in, v)
	}
	return w.quantise(w.concat(w.n.Int("axis", 0), in...), 0)
}

// integerProduct returns the MatMulInteger of two quantised activations whose sums n scales, as dynamic quantisation of
// the products around a softmax leaves them: Mul(Cast(MatMulInteger(a, b)), Mul(scale of a, scale of b)).
func integerProduct(n *graph.Node) *graph.Node {
	for i := range 2 {
		if n.Input(i) == nil || n.Input(1-i) == nil {
			continue
		}
		cast, scales := n.In[i].Producer, n.In[1-i].Producer
		if !cast.Is("Cast") || !scales.Is("Mul") || cast.Input(0) == nil {
			continue
		}
		product := cast.In[0].Producer
		if !product.Is("MatMulInteger") {
			continue
		}
		a, b := dynamic(product.Input(0)), dynamic(product.Input(1))
		if a == nil || b == nil {
			continue
		}
		if scales.Input(0) == a.Out[1] && scales.Input(1) == b.Out[1] || scales.Input(0) == b.Out[1] && scales.Input(1) == a.Out[1] {
			return product
		}
	}
	return nil
}

func dynamic(v *graph.Value) *graph.Node {
	if v == nil || !v.Producer.Is("DynamicQuantizeLinear") || v.Index != 0 || len(v.Producer.Out) != 3 {
		return nil
	}
	return v.Producer
}

// dynamicProduct makes such a product one of what the codes stand for.
func dynamicProduct(w *writer) error {
	product := integerProduct(w.n)
	var in []*graph.Value
	for i := range 2 {
		q := dynamic(product.In[i]).Out
		if product.Input(2+i) != q[2] {
			return fmt.Errorf("the zero point of %q is not the one that it was quantised with", q[0].Name)
		}
		in = append(in, w.op("DequantizeLinear", q...))
	}
	w.result(0, w.op("MatMul", in...))
	return nil
}
