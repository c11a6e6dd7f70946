package attention

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/quant"
)

// Quantised activations keep their heads: a value in fewer bits is the same value.
func init() {
	for _, op := range []string{"QuantizeLinear", "DequantizeLinear"} {
		movers[op] = mover{only(0), moveQuantised, true}
		betweenProducts[op] = only(0)
	}
	movers["DynamicQuantizeLinear"] = mover{only(0), moveFirst, false}
	betweenProducts["DynamicQuantizeLinear"] = only(0)
}

// moveQuantised passes labels on where one scale serves all of them; scales that differ along an axis belong to weights.
func moveQuantised(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	if shape, ok := concreteShape(t.facts, n.Input(1)); !ok || product(shape) != 1 {
		return nil, errScales
	}
	return []*sample{in[0]}, nil
}

// errScales is returned for activations whose scales differ along an axis.
var errScales = errors.New("it quantises with several scales, which those of activations are not followed through")

// Const is the constant behind v, also one that is stored in fewer bits and dequantised.
func (s *survey) Const(v *graph.Value) *graph.Tensor {
	if t := s.Facts.Const(v); t != nil {
		return t
	}
	return quant.Numbers(s.Facts, v)
}

// Scalar is the one element of v, also one that is stored in fewer bits.
func (s *survey) Scalar(v *graph.Value) (float64, bool) {
	if x, ok := s.Facts.Scalar(v); ok {
		return x, true
	}
	if t := quant.Numbers(s.Facts, v); t != nil && t.Len() == 1 {
		if x, err := t.Float64s(); err == nil {
			return x[0], true
		}
	}
	return 0, false
}

// quantisedProduct describes a projection by an operator that takes its weight as it is stored.
func quantisedProduct(f *survey, n *graph.Node) *Projection {
	p, err := quant.ProductOf(f.Facts, n)
	if p == nil || err != nil {
		return nil
	}
	first := p.Stored[0]
	proj := &Projection{
		Node: n, Input: p.Input, Output: p.Output, Nodes: p.Nodes, Code: p.Matrix,
		Weight: first.Value(), Reader: first.Node, Operand: first.Input, GemmBias: p.Bias, BiasInput: p.BiasInput,
	}
	proj.decoded()
	if p.Bias != nil {
		proj.BiasTensor = f.Const(p.Bias)
	}
	return proj
}

// dequantised notes how the weight of a projection is stored when DequantizeLinear makes it; false when that is not
// understood. flipped says that its axes are swapped between there and the product.
func (p *Projection) dequantised(f *survey, flipped bool) bool {
	m, ok, err := quant.Dequantized(f.Facts, p.Weight)
	if !ok || err != nil {
		return err == nil
	}
	chain := []*graph.Node{p.Node}
	for v := p.Node.In[1]; v != p.Weight; v = v.Producer.In[0] {
		chain = append(chain, v.Producer)
	}
	p.Nodes = append(chain, p.Weight.Producer)
	slices.Reverse(p.Nodes)
	if p.Code = m; flipped {
		p.Code = m.Transposed()
	}
	first := m.Stored[0]
	p.Weight, p.Reader, p.Operand = first.Value(), first.Node, first.Input
	p.decoded()
	return true
}

// decoded gives the projection the numbers of its weight, [in, out].
func (p *Projection) decoded() {
	p.Tensor, p.Axis, p.Columns = p.Code.Decode(p.Weight.Name), 1, p.Code.Cols
}

// quantisedWhy says why the weight of a quantised product that ends at n is not understood, empty where n is none or it
// is.
func quantisedWhy(f *survey, n *graph.Node) string {
	_, err := quant.ProductOf(f.Facts, n)
	if err == nil && (n.Is("MatMul") || n.Is("Gemm")) {
		for i, v := 0, n.Input(1); i < 4 && v != nil && v.Producer != nil && err == nil; i, v = i+1, v.Producer.Input(0) {
			_, _, err = quant.Dequantized(f.Facts, v)
		}
	}
	if err == nil {
		return ""
	}
	return fmt.Sprintf("the projection's weight is quantised in a way that is not understood: %v", err)
}

// reading is projectionOf for the reader of a value, which DynamicQuantizeLinear may stand in front of.
func reading(f *survey, u graph.Use) (*Projection, bool) {
	if p, ok := projectionOf(f, u.Node); ok {
		return p, u.Index == 0
	}
	if through := quant.Through(f.Facts, u); len(through) == 1 {
		p := quantisedProduct(f, through[0].Nodes[len(through[0].Nodes)-1])
		return p, p != nil
	}
	return nil, false
}
