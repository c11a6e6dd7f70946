package testmodels

import (
	"fmt"
	"math"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// nbits is MatMulNBits.
type nbits struct {
	bits, block int
	zero        string // "", "packed", "float"
	group       bool
	accuracy    int64
}

func (b nbits) product(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
	blocks := (w.rows + b.block - 1) / b.block
	hi := math.Ldexp(1, b.bits) - 1
	// With g_idx the rows of a block are those with one remainder.
	blockOf := func(r int) int { return r / b.block }
	if b.group {
		blockOf = func(r int) int { return r % blocks }
	}
	var codes, zeros []int
	var scales, floats []float64
	for c := range w.cols {
		column := make([]int, blocks*b.block)
		zs := make([]int, (blocks*b.bits+7)/8*8/b.bits)
		for k := range blocks {
			var v []float64
			for r := range w.rows {
				if blockOf(r) == k {
					v = append(v, w.at(r, c))
				}
			}
			scale, zero := affine(v, 0, hi, b.zero != "")
			if b.zero == "float" {
				zero += 0.25
			}
			for r := range w.rows {
				if blockOf(r) == k {
					column[r] = code(w.at(r, c), scale, zero, 0, hi)
				}
			}
			zs[k] = int(zero)
			scales, floats = append(scales, scale), append(floats, zero)
		}
		codes, zeros = append(codes, column...), append(zeros, zs...)
	}
	raw := pack(codes, b.bits)
	in := []*graph.Value{
		x, q.p.Init(graph.NewTensor(w.name+fmt.Sprintf("_Q%d", b.bits), []int64{int64(w.cols), int64(blocks), int64(b.block * b.bits / 8)}, raw)),
		q.floats(w.name+"_scales", []int64{int64(len(scales))}, scales), nil, nil,
	}
	switch b.zero {
	case "packed":
		z := pack(zeros, b.bits)
		in[3] = q.p.Init(graph.NewTensor(w.name+"_zero_points", []int64{int64(len(z))}, z))
	case "float":
		in[3] = q.floats(w.name+"_zero_points", []int64{int64(len(floats))}, floats)
	}
	if b.group {
		idx := make([]int32, w.rows)
		for r := range idx {
			idx[r] = int32(blockOf(r))
		}
		in[4] = q.p.Init(graph.NewTensor(w.name+"_g_idx", []int64{int64(w.rows)}, idx))
	}
	for in[len(in)-1] == nil {
		in = in[:len(in)-1]
	}
	attrs := []*onnxpb.AttributeProto{graph.IntAttr("K", int64(w.rows)), graph.IntAttr("N", int64(w.cols)), graph.IntAttr("bits", int64(b.bits)), graph.IntAttr("block_size", int64(b.block))}
	if b.accuracy > 0 {
		attrs = append(attrs, graph.IntAttr("accuracy_level", b.accuracy))
	}
	return q.p.Node("MatMulNBits", "com.microsoft", n.Name+"_Q", 1, in, attrs...)[0], nil
}

// bnb is MatMulBnb4 with one of its types of 4-bit floats.
type bnb int64

// The numbers of both types, as bitsandbytes lists them.
var bnbNumbers = [2][]float64{
	{0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25, 0, -0.0052, -0.6667, -1, -0.3333, -0.5, -0.1667, -0.25},
	{-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1},
}

func (kind bnb) product(q *quantiser, n *graph.Node, x *graph.Value, w matrix) (*graph.Value, error) {
	const block = 16
	t := w.transposed()
	raw := make([]byte, (len(t.x)+1)/2)
	var largest []float64
	for b := 0; b < len(t.x); b += block {
		part := t.x[b:min(b+block, len(t.x))]
		top := 0.0
		for _, v := range part {
			top = max(top, math.Abs(v))
		}
		for i, v := range part {
			best := 0
			for c, y := range bnbNumbers[kind] {
				if math.Abs(y*top-v) < math.Abs(bnbNumbers[kind][best]*top-v) {
					best = c
				}
			}
			raw[(b+i)/2] |= byte(best) << (4 * (1 - (b+i)%2))
		}
		largest = append(largest, top)
	}
	in := []*graph.Value{x, q.p.Init(graph.NewTensor(w.name+"_Bnb4", []int64{int64(len(raw))}, raw)), q.floats(w.name+"_absmax", []int64{int64(len(largest))}, largest)}
	return q.p.Node("MatMulBnb4", "com.microsoft", n.Name+"_Bnb4", 1, in, graph.IntAttr("K", int64(w.rows)), graph.IntAttr("N", int64(w.cols)),
		graph.IntAttr("block_size", block), graph.IntAttr("quant_type", int64(kind)))[0], nil
}
