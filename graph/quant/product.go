package quant

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Product is a product of activations and a quantised weight by an operator that takes the weight as it is stored, or by
// a few that belong together.
type Product struct {
	*Matrix
	Input, Output *graph.Value  // floats, before activations are quantised and after the scales
	Nodes         []*graph.Node // in the order in which they run; the last makes Output
	Bias          *graph.Value  // input BiasInput of the last node; nil without one
	BiasInput     int
}

// products is the table of operators, by the one that makes the output. A row returns nil for a node that is none of
// its kind, and an error for one whose weight cannot be read.
var products = map[string]func(f *graph.Facts, n *graph.Node) (*Product, error){
	"com.microsoft.MatMulNBits":           bitsProduct,
	"com.microsoft.MatMulBnb4":            bnbProduct,
	"com.microsoft.DynamicQuantizeMatMul": dynamicProduct,
	"com.microsoft.MatMulIntegerToFloat":  integerToFloat,
	"Mul":                                 integerProduct,
}

// ProductOf describes the product that n makes the output of; nil where it makes none.
func ProductOf(f *graph.Facts, n *graph.Node) (*Product, error) {
	name := n.OpType
	if n.Domain != "" && n.Domain != "ai.onnx" {
		name = n.Domain + "." + name
	}
	row := products[name]
	if row == nil || len(n.Out) == 0 || n.Out[0] == nil {
		return nil, nil
	}
	p, err := row(f, n)
	if err == nil && p != nil {
		err = p.finish()
	}
	if err != nil {
		return nil, fmt.Errorf("%v: %w", n, err)
	}
	return p, nil
}

// Through returns the products that read v, directly or as DynamicQuantizeLinear, or QuantizeLinear in front of integer
// products, makes it of v; nil when another node reads it as well. u is a use of v.
func Through(f *graph.Facts, u graph.Use) []*Product {
	n := u.Node
	if n == nil || u.Index != 0 {
		return nil
	}
	if p, err := ProductOf(f, n); p != nil && err == nil {
		return []*Product{p}
	}
	if !n.Is("DynamicQuantizeLinear") && !n.Is("QuantizeLinear") {
		return nil
	}
	var out []*Product
	for _, reader := range n.Out[0].Users() {
		tail := reader.Node
		if tail != nil && tail.Is("MatMulInteger") {
			for range 2 { // Cast, Mul
				if tail.Out[0] == nil || len(tail.Out[0].Users()) != 1 || tail.Out[0].Users()[0].Node == nil {
					return nil
				}
				tail = tail.Out[0].Users()[0].Node
			}
		}
		if tail == nil {
			return nil
		}
		p, err := ProductOf(f, tail)
		if p == nil || err != nil || p.Input != u.Node.In[0] {
			return nil
		}
		out = append(out, p)
	}
	return out
}

// operand returns the constant that a node reads; ok is false where there is no input, err where it is computed.
func operand(f *graph.Facts, n *graph.Node, i int) (c Constant, ok bool, err error) {
	v := n.Input(i)
	if v == nil {
		return c, false, nil
	}
	t := f.Const(v)
	if t == nil {
		return c, false, fmt.Errorf("its input %d, %q, is computed, want a constant", i, v.Name)
	}
	return Constant{n, i, t}, true, nil
}

// operands are the constants at the given inputs; trailing ones that are not there are left out.
func operands(f *graph.Facts, n *graph.Node, inputs ...int) ([]Constant, error) {
	var out []Constant
	for k, i := range inputs {
		c, ok, err := operand(f, n, i)
		if err != nil {
			return nil, err
		}
		if !ok && k < zeros {
			return nil, fmt.Errorf("its input %d is missing", i)
		}
		if ok {
			out = append(out, c)
		}
	}
	return out, nil
}

// bitsProduct reads com.microsoft.MatMulNBits: codes [N, blocks, bytes] of bits each, the rows of a column one after the
// other and its last block filled up, the first code in the low bits; scales [N·blocks]; zero points of as many bits,
// each column's filled up to whole bytes, or of the scales' type; g_idx, the block that each row belongs to.
func bitsProduct(f *graph.Facts, n *graph.Node) (*Product, error) {
	k, cols, bits, block := n.Int("K", 0), n.Int("N", 0), n.Int("bits", 4), n.Int("block_size", 0)
	if bits != 2 && bits != 4 && bits != 8 || block < 1 || block*bits%8 != 0 || k < 1 || cols < 1 || k > 1<<30 || cols > 1<<30 || block > 1<<30 {
		return nil, fmt.Errorf("%d × %d codes of %d bits in blocks of %d are not understood", k, cols, bits, block)
	}
	if n.Int("weight_prepacked", 0) != 0 {
		return nil, fmt.Errorf("its weight is packed for one processor")
	}
	constants, err := operands(f, n, 1, 2, 3)
	if err != nil {
		return nil, err
	}
	all := make([]float64, 1<<bits)
	for c := range all {
		all[c] = float64(c)
	}
	m := &Matrix{Rows: int(k), Cols: int(cols), BlockRows: int(block), BlockCols: 1, Stored: constants, op: "MatMulNBits", zero: float64(int(1) << (bits - 1))}
	m.elem = newElement(fmt.Sprintf("%d bits", bits), true, all)
	if m.group, err = groupsOf(f, n, 4, int(k), int(block)); err != nil {
		return nil, err
	}
	m.store = store{
		padded: func(s size) int { nr, _ := s.blocks(); return nr * s.blockRows },
		planes: func(s size) []plane {
			nr, _ := s.blocks()
			out := []plane{{dtype: uint8Type, bits: int(bits), dims: like(constants[codes], s.cols, nr, s.blockRows*int(bits)/8), row: 1, col: nr * s.blockRows}}
			out = append(out, plane{dtype: constants[scales].Tensor.DType(), bits: elementBits(constants[scales]), dims: like(constants[scales], s.cols, nr), row: 1, col: nr})
			if len(constants) > zeros {
				z := plane{dtype: constants[zeros].Tensor.DType(), bits: elementBits(constants[zeros]), dims: like(constants[zeros], s.cols, nr), row: 1, col: nr}
				if z.dtype == uint8Type {
					bytes := ceil(nr*int(bits), 8)
					z.bits, z.dims, z.col = int(bits), like(constants[zeros], s.cols, bytes), bytes*8/int(bits)
				}
				out = append(out, z)
			}
			return out
		},
		attrs: func(s size) []*onnxpb.AttributeProto {
			return []*onnxpb.AttributeProto{graph.IntAttr("N", int64(s.cols))}
		},
	}
	return single(m, n, 5), nil
}

func elementBits(c Constant) int { return graph.ElementBits(c.Tensor.DType()) }

// like gives a tensor of the given sizes as many axes as an old one has, the first ones multiplied together and ones
// behind.
func like(c Constant, sizes ...int) []int64 {
	rank := max(len(c.Tensor.Dims()), 1)
	var out []int64
	for _, s := range sizes {
		out = append(out, int64(s))
	}
	for len(out) > rank {
		out = append([]int64{out[0] * out[1]}, out[2:]...)
	}
	for len(out) < rank {
		out = append(out, 1)
	}
	return out
}

// groupsOf reads the block of every row; nil where rows are in order.
func groupsOf(f *graph.Facts, n *graph.Node, input, rows, block int) ([]int, error) {
	c, ok, err := operand(f, n, input)
	if !ok || err != nil {
		return nil, err
	}
	blocks := ceil(rows, block)
	x, err := c.Tensor.Int64s()
	if err != nil {
		return nil, err
	}
	if len(x) < rows {
		return nil, fmt.Errorf("its g_idx has %d entries, want %d", len(x), rows)
	}
	out := make([]int, rows)
	inOrder := true
	for r := range out {
		if x[r] < 0 || x[r] >= int64(blocks) {
			return nil, fmt.Errorf("its g_idx names block %d of %d", x[r], blocks)
		}
		out[r] = int(x[r])
		inOrder = inOrder && out[r] == r/block
	}
	if inOrder {
		return nil, nil
	}
	return out, nil
}

// single is the product of one operator whose activations are input 0; bias is the input of the bias, -1 where it takes
// none.
func single(m *Matrix, n *graph.Node, bias int) *Product {
	p := &Product{Matrix: m, Input: n.In[0], Output: n.Out[0], Nodes: []*graph.Node{n}}
	if bias >= 0 {
		p.Bias, p.BiasInput = n.Input(bias), bias
	}
	return p
}

// bnbProduct reads com.microsoft.MatMulBnb4: codes of 4 bits, the rows of a column one after the other, the first in the
// high bits, and the largest magnitude of each block of block_size of them.
func bnbProduct(f *graph.Facts, n *graph.Node) (*Product, error) {
	k, cols, block, kind := n.Int("K", 0), n.Int("N", 0), n.Int("block_size", 0), n.Int("quant_type", -1)
	if k < 1 || cols < 1 || k > 1<<30 || cols > 1<<30 || block < 1 || kind < 0 || kind > 1 || n.Int("transB", 1) != 1 {
		return nil, fmt.Errorf("a weight of %d × %d, type %d, transB %d, is not understood", k, cols, kind, n.Int("transB", 1))
	}
	m := &Matrix{Rows: int(k), Cols: int(cols), BlockRows: int(block), BlockCols: 1, op: "MatMulBnb4", elem: []*element{float4, normalFloat4}[kind]}
	switch {
	case k%block == 0:
	case block%k == 0:
		m.BlockRows, m.BlockCols = int(k), int(block/k)
	default:
		return nil, fmt.Errorf("its blocks of %d begin within columns of %d", block, k)
	}
	var err error
	if m.Stored, err = operands(f, n, 1, 2); err != nil {
		return nil, err
	}
	m.store = store{
		planes: func(s size) []plane {
			nr, nc := s.blocks()
			return []plane{
				{dtype: uint8Type, bits: 4, dims: like(m.Stored[codes], (s.rows*s.cols+1)/2), row: 1, col: s.rows, high: true},
				{dtype: m.Stored[scales].Tensor.DType(), bits: elementBits(m.Stored[scales]), dims: like(m.Stored[scales], nr*nc), row: 1, col: nr},
			}
		},
		attrs: func(s size) []*onnxpb.AttributeProto {
			return []*onnxpb.AttributeProto{graph.IntAttr("N", int64(s.cols))}
		},
	}
	return single(m, n, -1), nil
}

// integerMatrix is a weight [K, N] of 8 bits with one scale, or one for each column.
func integerMatrix(op string, stored []Constant) (*Matrix, error) {
	d := stored[codes].Tensor.Dims()
	if len(d) != 2 {
		return nil, fmt.Errorf("its weight has %d axes, want 2", len(d))
	}
	m := &Matrix{Rows: int(d[0]), Cols: int(d[1]), BlockRows: int(d[0]), BlockCols: int(d[1]), op: op, Stored: stored}
	each := func(c Constant) bool { return c.Tensor.Len() == d[1] && d[1] != 1 }
	if each(stored[scales]) {
		m.BlockCols = 1
	}
	for _, c := range stored[scales:] {
		if c.Tensor.Len() != 1 && !each(c) {
			return nil, fmt.Errorf("%q has dims %v, want one entry or %d", c.Value().Name, c.Tensor.Dims(), d[1])
		}
	}
	if len(stored) > zeros && each(stored[zeros]) && m.BlockCols > 1 {
		return nil, fmt.Errorf("it has a zero point for each column and one scale")
	}
	m.store.planes = func(s size) []plane {
		out := []plane{{dtype: stored[codes].Tensor.DType(), bits: 8, dims: []int64{int64(s.rows), int64(s.cols)}, row: s.cols, col: 1}}
		for _, c := range stored[scales:] {
			p := plane{dtype: c.Tensor.DType(), bits: elementBits(c), dims: slices.Clone(c.Tensor.Dims())}
			if each(c) {
				p.dims[len(p.dims)-1], p.col = int64(s.cols), 1
			}
			out = append(out, p)
		}
		return out
	}
	return m, nil
}

// dynamicProduct reads com.microsoft.DynamicQuantizeMatMul: A, B, scales, zero points, bias.
func dynamicProduct(f *graph.Facts, n *graph.Node) (*Product, error) {
	stored, err := operands(f, n, 1, 2, 3)
	if err != nil {
		return nil, err
	}
	m, err := integerMatrix("DynamicQuantizeMatMul", stored)
	if err != nil {
		return nil, err
	}
	return single(m, n, 4), nil
}

// integerToFloat reads com.microsoft.MatMulIntegerToFloat: A, B, scale of A, scales of B, zero points of both, bias.
func integerToFloat(f *graph.Facts, n *graph.Node) (*Product, error) {
	stored, err := operands(f, n, 1, 3, 5)
	if err != nil {
		return nil, err
	}
	m, err := integerMatrix("MatMulIntegerToFloat", stored)
	if err != nil {
		return nil, err
	}
	p := single(m, n, 6)
	p.Input = beforeQuantizing(p.Input)
	return p, nil
}

// beforeQuantizing is the float value that v was quantised from, v where it is none.
func beforeQuantizing(v *graph.Value) *graph.Value {
	if n := v.Producer; n.Is("DynamicQuantizeLinear") || n.Is("QuantizeLinear") {
		return n.In[0]
	}
	return v
}

// integerProduct reads what dynamic quantisation leaves: MatMulInteger, Cast, and a Mul by the scale of the activations
// times those of the weight.
func integerProduct(f *graph.Facts, n *graph.Node) (*Product, error) {
	for i := range 2 {
		cast := producer(n.Input(i), "Cast")
		if cast == nil {
			continue
		}
		product := producer(cast.Input(0), "MatMulInteger")
		if product == nil || f.Const(product.Input(1)) == nil {
			continue
		}
		scale := scaleOf(f, n, 1-i, f.Const(product.Input(1)))
		if scale == nil {
			return nil, fmt.Errorf("the scale of the weight of %v is computed", product)
		}
		stored, err := operands(f, product, 1)
		if err != nil {
			return nil, err
		}
		stored = append(stored, *scale)
		if zero, ok, err := operand(f, product, 3); err != nil {
			return nil, err
		} else if ok {
			stored = append(stored, zero)
		}
		m, err := integerMatrix("MatMulInteger", stored)
		if err != nil {
			return nil, err
		}
		p := &Product{Matrix: m, Input: beforeQuantizing(product.In[0]), Output: n.Out[0], Nodes: []*graph.Node{product, cast}}
		if scale.Node != n {
			p.Nodes = append(p.Nodes, scale.Node)
		}
		p.Nodes = append(p.Nodes, n)
		return p, nil
	}
	return nil, nil
}

// producer is the node of an operator that makes v, if nothing else reads v.
func producer(v *graph.Value, op string) *graph.Node {
	if v == nil || !v.Producer.Is(op) || len(v.Users()) != 1 {
		return nil
	}
	return v.Producer
}

// scaleOf finds the constant among the factors of a scale: the input itself, or an operand of the product that makes it,
// one with an entry for each column before another.
func scaleOf(f *graph.Facts, n *graph.Node, i int, weight *graph.Tensor) *Constant {
	if t := f.Const(n.Input(i)); t != nil {
		return &Constant{n, i, t}
	}
	product := producer(n.Input(i), "Mul")
	if product == nil {
		return nil
	}
	var found *Constant
	for k := range 2 {
		t := f.Const(product.Input(k))
		if t == nil {
			continue
		}
		d := weight.Dims()
		if found == nil || found.Tensor.Len() == 1 || len(d) == 2 && t.Len() == d[1] {
			found = &Constant{product, k, t}
		}
	}
	return found
}
