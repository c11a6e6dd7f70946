package testmodels

import (
	"fmt"
	"math"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Scheme is a way in which tools quantise the weights of a model, and perhaps its activations.
type Scheme struct {
	Name, Doc string
	Opset     int64 // from which its operators exist
	// Activations are quantised too, so that what another order of sums changes of them may be a whole step.
	Activations bool
	Biases      bool // vectors that are added have 8 bits as well
	// products multiplies activations; nil: they stay floats.
	products func(q *quantiser, n *graph.Node) *graph.Value
	product  func(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error)
}

// Schemes lists every scheme, one row each.
func Schemes() []Scheme { return slices.Clone(schemes) }

var schemes = []Scheme{
	{Name: "int8", Opset: 13, Doc: "DequantizeLinear, int8, one scale", product: dequantised(onnxpb.TensorProto_INT8, layout{}, false)},
	{Name: "uint8-tensor", Opset: 13, Doc: "DequantizeLinear, uint8, one scale and zero point", product: dequantised(onnxpb.TensorProto_UINT8, layout{}, true)},
	{Name: "int8-column", Opset: 13, Doc: "DequantizeLinear, int8, a scale for each column", product: dequantised(onnxpb.TensorProto_INT8, layout{cols: 1}, false)},
	{Name: "uint8-column", Opset: 13, Doc: "DequantizeLinear, uint8, scale and zero point for each column", product: dequantised(onnxpb.TensorProto_UINT8, layout{cols: 1}, true)},
	{Name: "int8-row", Opset: 13, Doc: "DequantizeLinear, int8, a scale for each row", product: dequantised(onnxpb.TensorProto_INT8, layout{rows: 1}, false)},
	{Name: "int8-transposed", Opset: 13, Doc: "DequantizeLinear of [out, in] with a scale for each output, then Transpose", product: dequantised(onnxpb.TensorProto_INT8, layout{cols: 1, flip: true}, false)},
	{Name: "int4-blocks", Opset: 21, Doc: "DequantizeLinear, int4, blocks of 8 rows", product: dequantised(onnxpb.TensorProto_INT4, layout{rows: 8}, false)},
	{Name: "uint4-blocks", Opset: 21, Doc: "DequantizeLinear, uint4, blocks of 16 rows with zero points", product: dequantised(onnxpb.TensorProto_UINT4, layout{rows: 16}, true)},
	{Name: "int4-columns", Opset: 21, Doc: "DequantizeLinear, int4, blocks of 16 columns, which are not heads", product: dequantised(onnxpb.TensorProto_INT4, layout{cols: 16}, false)},
	{Name: "int16", Opset: 21, Doc: "DequantizeLinear, int16, one scale", product: dequantised(onnxpb.TensorProto_INT16, layout{}, false)},
	{Name: "float8", Opset: 19, Doc: "DequantizeLinear, float8 e4m3fn, one scale", product: dequantised(onnxpb.TensorProto_FLOAT8E4M3FN, layout{}, false)},
	{Name: "float8-e5m2", Opset: 19, Doc: "DequantizeLinear, float8 e5m2, one scale", product: dequantised(onnxpb.TensorProto_FLOAT8E5M2, layout{}, false)},
	{Name: "nbits-4", Doc: "MatMulNBits, 4 bits, blocks of 16", product: nbits{bits: 4, block: 16}.product},
	{Name: "nbits-4-zero", Doc: "MatMulNBits, 4 bits, blocks of 32, zero points", product: nbits{bits: 4, block: 32, zero: "packed"}.product},
	{Name: "nbits-4-float-zero", Doc: "MatMulNBits, 4 bits, blocks of 16, zero points as floats", product: nbits{bits: 4, block: 16, zero: "float"}.product},
	{Name: "nbits-4-group", Doc: "MatMulNBits, 4 bits, blocks of 16, rows in another order (g_idx)", product: nbits{bits: 4, block: 16, group: true}.product},
	{Name: "nbits-8", Doc: "MatMulNBits, 8 bits, blocks of 32", product: nbits{bits: 8, block: 32}.product},
	{Name: "nbits-2", Doc: "MatMulNBits, 2 bits, blocks of 16", product: nbits{bits: 2, block: 16}.product},
	{Name: "nbits-4-int8", Doc: "MatMulNBits, 4 bits, accuracy level 4: activations in int8", Activations: true, product: nbits{bits: 4, block: 16, accuracy: 4}.product},
	{Name: "nf4", Doc: "MatMulBnb4, nf4, blocks of 16", product: bnb(1).product},
	{Name: "fp4", Doc: "MatMulBnb4, fp4, blocks of 16", product: bnb(0).product},
	{Name: "dynamic", Doc: "DynamicQuantizeLinear, MatMulInteger, Cast, Mul; uint8 with a zero point", Activations: true, product: dynamic(onnxpb.TensorProto_UINT8, false, true)},
	{Name: "dynamic-column", Doc: "the same with int8 and a scale for each column", Activations: true, product: dynamic(onnxpb.TensorProto_INT8, true, false)},
	{Name: "qdq", Opset: 13, Doc: "QuantizeLinear and DequantizeLinear around every product", Activations: true, product: static(false)},
	{Name: "qdq-biases", Opset: 13, Doc: "the same with biases of 8 bits", Activations: true, Biases: true, product: static(false)},
	{Name: "gemm", Opset: 13, Doc: "Gemm of DequantizeLinear with a bias of int32", product: gemm},
	{Name: "dynamic-products", Doc: "MatMulInteger of quantised activations too, as older tools wrote it", Activations: true, product: dynamic(onnxpb.TensorProto_UINT8, false, true), products: dynamicProducts},
	{Name: "qdq-products", Opset: 13, Doc: "products of activations between QuantizeLinear and DequantizeLinear too", Activations: true, product: static(false), products: staticProducts(false)},
	{Name: "qoperator-products", Opset: 10, Doc: "QLinearMatMul of activations too", Activations: true, product: static(true), products: staticProducts(true)},
	{Name: "qoperator", Opset: 10, Doc: "QLinearMatMul with quantised activations", Activations: true, product: static(true)},
}

// matrix is a weight [rows, cols] as activations meet it.
type matrix struct {
	name       string
	rows, cols int
	x          []float64
}

func (w matrix) at(r, c int) float64 { return w.x[r*w.cols+c] }

// Quantise gives every MatMul and Gemm with a constant matrix a quantised weight. Weights are rounded to nearest by the
// textbook's formulas, which share nothing with the program's own.
func (s Scheme) Quantise(m *graph.Model) error {
	if m.Opset("") < s.Opset {
		return fmt.Errorf("%s needs opset %d, the model has %d", s.Name, s.Opset, m.Opset(""))
	}
	if m.Opset("com.microsoft") == 0 {
		domain, one := "com.microsoft", int64(1)
		m.Proto.OpsetImport = append(m.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &one})
	}
	facts := graph.Infer(m.Graph)
	q := &quantiser{p: graph.NewPatch(m.Graph), inputs: map[*graph.Value][]*graph.Value{}}
	for _, n := range slices.Clone(m.Graph.Nodes) {
		if !n.Is("MatMul") && !n.Is("Gemm") {
			continue
		}
		t := facts.Const(n.In[1])
		if t == nil && s.products != nil && n.Is("MatMul") {
			q.p.Replace(n.Out[0], s.products(q, n))
		}
		if t == nil || len(t.Dims()) != 2 {
			continue
		}
		x, err := t.Float64s()
		if err != nil {
			return err
		}
		w := matrix{n.In[1].Name, int(t.Dims()[0]), int(t.Dims()[1]), x}
		if n.Int("transB", 0) != 0 {
			w = w.transposed()
		}
		q.bias = n.Input(2)
		y, err := s.product(q, n, n.In[0], w)
		if err != nil {
			return fmt.Errorf("%v: %w", n, err)
		}
		if q.bias != nil {
			y = q.p.Op("Add", n.Name+"/bias", []*graph.Value{y, q.bias})
		}
		q.p.Replace(n.Out[0], y)
	}
	if s.Biases {
		if err := q.biases(m.Graph); err != nil {
			return err
		}
	}
	keep := m.Graph.Dead()
	if _, err := q.p.Apply(); err != nil {
		return err
	}
	m.Graph.RemoveDead(keep)
	return nil
}

// biases quantises vectors that are added, as tools do that quantise every Add.
func (q *quantiser) biases(g *graph.Graph) error {
	for _, n := range g.Nodes {
		for i, v := range n.In {
			t := v.Const()
			if !n.Is("Add") || t == nil || len(t.Dims()) != 1 || t.Len() < 2 || t.DType() != onnxpb.TensorProto_FLOAT {
				continue
			}
			x, err := t.Float64s()
			if err != nil {
				return err
			}
			scale, zero := affine(x, 0, 255, true)
			codes := make([]int, len(x))
			for k := range x {
				codes[k] = code(x[k], scale, zero, 0, 255)
			}
			in := []*graph.Value{q.codes(v.Name+"_quantized", onnxpb.TensorProto_UINT8, t.Dims(), codes), q.floats(v.Name+"_scale", nil, []float64{scale}),
				q.codes(v.Name+"_zero_point", onnxpb.TensorProto_UINT8, nil, []int{int(zero)})}
			q.p.SetInput(n, i, q.p.Op("DequantizeLinear", v.Name+"/DequantizeLinear", in))
		}
	}
	return nil
}

func (w matrix) transposed() matrix {
	t := matrix{w.name, w.cols, w.rows, make([]float64, len(w.x))}
	for r := range w.rows {
		for c := range w.cols {
			t.x[c*w.rows+r] = w.at(r, c)
		}
	}
	return t
}

// quantiser adds the nodes of quantised products.
type quantiser struct {
	p      *graph.Patch
	bias   *graph.Value                    // that is added next; nil when the product took it
	inputs map[*graph.Value][]*graph.Value // activations that were quantised for another product, as tools share them
}

func (q *quantiser) floats(name string, dims []int64, x []float64) *graph.Value {
	data := make([]float32, len(x))
	for i := range x {
		data[i] = float32(x[i])
	}
	return q.p.Init(graph.NewTensor(name, dims, data))
}

// codes makes a tensor of a type of few bits of its codes, low bits first.
func (q *quantiser) codes(name string, dtype onnxpb.TensorProto_DataType, dims []int64, codes []int) *graph.Value {
	width := graph.ElementBits(dtype)
	return q.p.Init(graph.Computed(name, dtype, dims, int64((len(codes)*width+7)/8), func() ([]byte, error) { return pack(codes, width), nil }))
}

func pack(codes []int, width int) []byte {
	out := make([]byte, (len(codes)*width+7)/8)
	for i, c := range codes {
		for b := range width {
			at := i*width + b
			out[at/8] |= byte(c>>b&1) << (at % 8)
		}
	}
	return out
}

// affine is a scale and zero point by which lo ≤ code ≤ hi stand for the numbers: as far as the largest to both sides, or
// from the least to the greatest.
func affine(x []float64, lo, hi float64, asymmetric bool) (scale, zero float64) {
	least, most := 0.0, 0.0
	for _, v := range x {
		least, most = min(least, v), max(most, v)
	}
	if asymmetric {
		if scale = (most - least) / (hi - lo); scale == 0 {
			scale = 1
		}
		scale = float64(float32(scale))
		return scale, math.Round(lo - least/scale)
	}
	zero = math.Ceil((lo + hi) / 2)
	if scale = max(most, -least) / (hi - zero); scale == 0 {
		scale = 1
	}
	return float64(float32(scale)), zero
}

func code(v, scale, zero, lo, hi float64) int {
	return int(min(max(math.RoundToEven(v/scale)+zero, lo), hi))
}

// layout says how many rows or columns share a scale; neither: all do.
type layout struct {
	rows, cols int
	flip       bool // the codes are stored [out, in]
}

// span is the range of an integer type's codes.
func span(dtype onnxpb.TensorProto_DataType) (lo, hi float64, integer bool) {
	size := math.Ldexp(1, graph.ElementBits(dtype))
	switch dtype {
	case onnxpb.TensorProto_INT8, onnxpb.TensorProto_INT16, onnxpb.TensorProto_INT4:
		return -size / 2, size/2 - 1, true
	case onnxpb.TensorProto_UINT8, onnxpb.TensorProto_UINT4:
		return 0, size - 1, true
	}
	return 0, 0, false
}

// small is the bits of a float of 8 bits that is nearest to v, found among all of them.
func small(dtype onnxpb.TensorProto_DataType, v float64) int {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	x, err := graph.Computed("all", dtype, []int64{256}, 256, func() ([]byte, error) { return all, nil }).Float64s()
	if err != nil {
		panic(err)
	}
	best := 0
	for i := range x {
		if math.Abs(x[i]-v) < math.Abs(x[best]-v) || math.IsNaN(x[best]) {
			best = i
		}
	}
	return best
}

// dequantised feeds a MatMul from DequantizeLinear.
func dequantised(dtype onnxpb.TensorProto_DataType, l layout, asymmetric bool) func(*quantiser, *graph.Node, *graph.Value, matrix) (*graph.Value, error) {
	return func(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
		v := q.weight(w, dtype, l, asymmetric)
		return q.p.Op("MatMul", n.Name, []*graph.Value{x, v}), nil
	}
}

// gemm keeps a Gemm, whose bias has 32 bits and a fixed scale.
func gemm(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
	v := q.weight(w, onnxpb.TensorProto_INT8, layout{cols: 1}, false)
	if !n.Is("Gemm") || q.bias.Const() == nil {
		return q.p.Op("MatMul", n.Name, []*graph.Value{x, v}), nil
	}
	b, err := q.bias.Const().Float64s()
	if err != nil {
		return nil, err
	}
	codes := make([]int32, len(b))
	for i := range b {
		codes[i] = int32(math.RoundToEven(b[i] / 0x1p-20))
	}
	in := []*graph.Value{q.p.Init(graph.NewTensor(q.bias.Name+"_quantized", []int64{int64(len(b))}, codes)), q.floats(q.bias.Name+"_scale", nil, []float64{0x1p-20})}
	q.bias = nil
	return q.p.Op("Gemm", n.Name, []*graph.Value{x, v, q.p.Op("DequantizeLinear", n.Name+"/bias", in)}), nil
}

// weight is a weight behind DequantizeLinear.
func (q *quantiser) weight(w matrix, dtype onnxpb.TensorProto_DataType, l layout, asymmetric bool) *graph.Value {
	br, bc := w.rows, w.cols
	axis := -1
	if l.rows > 0 {
		br, axis = l.rows, 0
		bc = 1
		if l.rows == 1 {
			bc = w.cols
		}
	} else if l.cols > 0 {
		bc, axis = l.cols, 1
		br = 1
		if l.cols == 1 {
			br = w.rows
		}
	}
	lo, hi, integer := span(dtype)
	nr, nc := (w.rows+br-1)/br, (w.cols+bc-1)/bc
	codes := make([]int, w.rows*w.cols)
	var scales []float64
	var zeros []int
	for b := range nr * nc {
		var x []float64
		eachIn(w, b/nc*br, b%nc*bc, br, bc, func(r, c int) { x = append(x, w.at(r, c)) })
		scale, zero := affine(x, lo, hi, asymmetric)
		if !integer {
			scale, _ = affine(x, -100, 100, false)
		}
		eachIn(w, b/nc*br, b%nc*bc, br, bc, func(r, c int) {
			if integer {
				codes[r*w.cols+c] = code(w.at(r, c), scale, zero, lo, hi)
			} else {
				codes[r*w.cols+c] = small(dtype, w.at(r, c)/scale)
			}
		})
		scales, zeros = append(scales, scale), append(zeros, int(zero))
	}
	dims := []int64{int64(w.rows), int64(w.cols)}
	if l.flip {
		turned := make([]int, len(codes))
		for r := range w.rows {
			for c := range w.cols {
				turned[c*w.rows+r] = codes[r*w.cols+c]
			}
		}
		codes, dims = turned, []int64{dims[1], dims[0]}
		if axis >= 0 {
			axis = 1 - axis
		}
	}
	var shape []int64 // a scalar
	var attrs []*onnxpb.AttributeProto
	if axis >= 0 {
		shape = []int64{int64(nr * nc)}
		attrs = append(attrs, graph.IntAttr("axis", int64(axis)))
		if block := max(l.rows, l.cols); block > 1 {
			shape = []int64{int64(nr), int64(nc)}
			attrs = append(attrs, graph.IntAttr("block_size", int64(block)))
		}
	}
	in := []*graph.Value{q.codes(w.name+"_quantized", dtype, dims, codes), q.floats(w.name+"_scale", shape, scales)}
	if asymmetric || dtype == onnxpb.TensorProto_INT8 {
		in = append(in, q.codes(w.name+"_zero_point", dtype, shape, zeros))
	}
	v := q.p.Op("DequantizeLinear", w.name+"/DequantizeLinear", in, attrs...)
	if l.flip {
		v = q.p.Op("Transpose", w.name+"/Transpose", []*graph.Value{v}, graph.IntsAttr("perm", 1, 0))
	}
	return v
}

func eachIn(w matrix, r0, c0, rows, cols int, f func(r, c int)) {
	for r := r0; r < min(r0+rows, w.rows); r++ {
		for c := c0; c < min(c0+cols, w.cols); c++ {
			f(r, c)
		}
	}
}

// dynamic is what dynamic quantisation leaves of a MatMul.
func dynamic(dtype onnxpb.TensorProto_DataType, each, asymmetric bool) func(*quantiser, *graph.Node, *graph.Value, matrix) (*graph.Value, error) {
	return func(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
		l := layout{}
		if each {
			l.cols = 1
		}
		a := q.dynamic(x)
		// The codes, without the DequantizeLinear.
		dq := q.weight(w, dtype, l, asymmetric).Producer
		y := q.p.Op("MatMulInteger", n.Name+"_quant", []*graph.Value{a[0], dq.In[0], a[2], dq.In[2]})
		y = q.p.Op("Cast", n.Name+"_output_quantized_cast", []*graph.Value{y}, graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT)))
		s := q.p.Op("Mul", n.Name+"_quant_scales_mul", []*graph.Value{a[1], dq.In[1]})
		return q.p.Op("Mul", n.Name+"_quant_output_scale_mul", []*graph.Value{y, s}), nil
	}
}

// dynamic quantises activations by their own range: codes, scale and zero point.
func (q *quantiser) dynamic(x *graph.Value) []*graph.Value {
	if q.inputs[x] == nil {
		q.inputs[x] = q.p.Node("DynamicQuantizeLinear", "", x.Name+"_QuantizeLinear", 3, []*graph.Value{x})
	}
	return q.inputs[x]
}

func dynamicProducts(q *quantiser, n *graph.Node) *graph.Value {
	a, b := q.dynamic(n.In[0]), q.dynamic(n.In[1])
	y := q.p.Op("MatMulInteger", n.Name+"_quant", []*graph.Value{a[0], b[0], a[2], b[2]})
	y = q.p.Op("Cast", n.Name+"_output_quantized_cast", []*graph.Value{y}, graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT)))
	return q.p.Op("Mul", n.Name+"_quant_output_scale_mul", []*graph.Value{y, q.p.Op("Mul", n.Name+"_quant_scales_mul", []*graph.Value{a[1], b[1]})})
}

// static quantises activations from -6.4 to 6.35: codes, scale and zero point.
func (q *quantiser) static(x *graph.Value) []*graph.Value {
	if q.inputs[x] == nil {
		scale := q.floats(x.Name+"_scale", nil, []float64{0.05})
		zero := q.p.Init(graph.NewTensor(x.Name+"_zero_point", nil, []uint8{128}))
		q.inputs[x] = []*graph.Value{q.p.Op("QuantizeLinear", x.Name+"_QuantizeLinear", []*graph.Value{x, scale, zero}), scale, zero}
	}
	return q.inputs[x]
}

func staticProducts(fused bool) func(q *quantiser, n *graph.Node) *graph.Value {
	return func(q *quantiser, n *graph.Node) *graph.Value {
		a, b := q.static(n.In[0]), q.static(n.In[1])
		var y *graph.Value
		if fused {
			y = q.p.Op("QLinearMatMul", n.Name+"_quant", slices.Concat(a, b, a[1:]))
		} else {
			x := q.p.Op("MatMul", n.Name, []*graph.Value{q.p.Op("DequantizeLinear", n.Name+"/a", a), q.p.Op("DequantizeLinear", n.Name+"/b", b)})
			y = q.p.Op("QuantizeLinear", n.Name+"_QuantizeLinear", []*graph.Value{x, a[1], a[2]})
		}
		return q.p.Op("DequantizeLinear", n.Name+"_DequantizeLinear", []*graph.Value{y, a[1], a[2]})
	}
}

// static is what static quantisation leaves: activations of 8 bits before and after the product.
func static(fused bool) func(*quantiser, *graph.Node, *graph.Value, matrix) (*graph.Value, error) {
	return func(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
		quantised := q.static(x)
		scale, zero := quantised[1], quantised[2]
		weight := q.weight(w, onnxpb.TensorProto_INT8, layout{}, false)
		var y *graph.Value
		if dq := weight.Producer; fused {
			y = q.p.Op("QLinearMatMul", n.Name+"_quant", []*graph.Value{quantised[0], quantised[1], quantised[2], dq.In[0], dq.In[1], dq.In[2], scale, zero})
		} else {
			x := q.p.Op("DequantizeLinear", x.Name+"_DequantizeLinear", quantised)
			y = q.p.Op("QuantizeLinear", n.Name+"_QuantizeLinear", []*graph.Value{q.p.Op("MatMul", n.Name, []*graph.Value{x, weight}), scale, zero})
		}
		return q.p.Op("DequantizeLinear", n.Name+"_DequantizeLinear", []*graph.Value{y, scale, zero}), nil
	}
}
