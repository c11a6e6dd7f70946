package learn

import (
	"context"
	"fmt"
	"math"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// Quality is how well a model does on some samples, and how far it is from the original.
type Quality struct {
	Positions int `json:"positions"` // that were compared
	// Loss is the mean of -ln p(next token), in nats, and Perplexity e to it; NaN for a model that predicts no token.
	Loss       float64 `json:"loss"`
	Perplexity float64 `json:"perplexity"`
	// KL is the mean divergence of the model's distributions from the original's, in nats; for a model whose output is no
	// distribution it is the squared error relative to the output's mean square. Top1 is the share of positions with the
	// same most likely entry.
	KL   float64 `json:"kl"`
	Top1 float64 `json:"top1"`
}

// meter is a pass that compares the second branch with the original.
type meter struct {
	*pass
	scores    bool // the output is one of logits
	next      bool
	reference bool // the original's log-probabilities are fed
}

// referenceLimit bounds the bytes of the original's log-probabilities that are kept between runs.
const referenceLimit = 512 << 20

// output returns the output that quality is measured on: logits where there are some.
func (b *bench) output(outs []*graph.Value) (v *graph.Value, logits bool, err error) {
	present := map[string]bool{}
	for _, c := range b.lab.Signature.Caches {
		present[c.Present] = true
	}
	for _, o := range outs {
		if o.Name == b.lab.Signature.Logits || strings.Contains(strings.ToLower(o.Name), "logits") {
			return o, true, nil
		}
	}
	for _, o := range outs {
		switch b.facts.Elem(o) {
		case onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_BFLOAT16, onnxpb.TensorProto_DOUBLE:
			if !present[o.Name] {
				return o, false, nil
			}
		}
	}
	return nil, false, fmt.Errorf("the model has no output of numbers besides its caches; there is nothing to measure on")
}

// logProbabilities returns ln softmax of rows of logits, no less than a bound that keeps 0·ln 0 at 0.
func (b *bench) logProbabilities(name string, v *graph.Value) *graph.Value {
	p := b.op("LogSoftmax", name+"/log_softmax", []*graph.Value{v}, graph.IntAttr("axis", 1))
	return b.op("Max", name+"/bounded", []*graph.Value{p, b.floats(name+"/least", nil, -1e4)})
}

// measured is the output as rows of the original and of the second branch.
func (b *bench) measured(outs []*graph.Value) (original, now *graph.Value, width int, logits bool, err error) {
	out, logits, err := b.output(outs)
	if err != nil {
		return nil, nil, 0, false, err
	}
	if width, err = b.width(out); err != nil {
		return nil, nil, 0, false, err
	}
	if now, err = b.tap(out); err != nil {
		return nil, nil, 0, false, err
	}
	original, now = b.rows(b.single(out, out), width), b.rows(now, width)
	if logits {
		original, now = b.logProbabilities("original", original), b.logProbabilities("now", now)
	}
	return original, now, width, logits, nil
}

// meter sets up the comparison; like is a batch of the kind that will be measured. With reference the original's rows are
// fed instead of computed.
func (l *Lab) meter(like Batch, reference bool) (*meter, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	m, err := b.meter(like, reference)
	if err != nil {
		b.m.Close()
		return nil, err
	}
	if m.pass, err = b.pass(); err != nil {
		return nil, err
	}
	return m, nil
}

func (b *bench) meter(like Batch, reference bool) (*meter, error) {
	b.fork(len(b.blocks))
	original, now, width, logits, err := b.measured(b.outputs)
	if err != nil {
		return nil, err
	}
	m := &meter{scores: logits, next: like.Next != nil && logits, reference: reference}
	if reference {
		original = b.input("learn/reference", onnxpb.TensorProto_FLOAT, "learn/rows", width)
	}
	var counted *graph.Value // bool [rows, 1]
	if like.Weight != nil {
		counted = b.rows(b.cast(b.input("learn/weight", onnxpb.TensorProto_FLOAT, "learn/batch", "learn/length"), onnxpb.TensorProto_BOOL), 1)
	} else {
		shape := b.op("Shape", "measure/shape", []*graph.Value{now})
		rows := b.op("Gather", "measure/rows", []*graph.Value{shape, b.ints("measure/first", 0)}, graph.IntAttr("axis", 0))
		dims := b.op("Concat", "measure/column", []*graph.Value{rows, b.ints("measure/1", 1)}, graph.IntAttr("axis", 0))
		counted = b.op("ConstantOfShape", "measure/all", []*graph.Value{dims}, graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []bool{true})))
	}
	total := func(name string, v *graph.Value) {
		b.total(name, b.op("Where", name+"/counted", []*graph.Value{counted, v, b.floats(name+"/zero", nil, 0)}))
	}
	b.total("positions", b.cast(counted, onnxpb.TensorProto_FLOAT))
	difference := b.op("Sub", "measure/difference", []*graph.Value{original, now})
	if !logits {
		total("error", b.op("Mul", "measure/squared", []*graph.Value{difference, difference}))
		total("energy", b.op("Mul", "measure/energy", []*graph.Value{original, original}))
		return m, nil
	}
	p := b.op("Exp", "measure/p", []*graph.Value{original})
	total("kl", b.op("Mul", "measure/kl", []*graph.Value{p, difference}))
	best := func(name string, v *graph.Value) *graph.Value {
		return b.op("ArgMax", name+"/best", []*graph.Value{v}, graph.IntAttr("axis", 1), graph.IntAttr("keepdims", 1))
	}
	same := b.op("Equal", "measure/same", []*graph.Value{best("original", original), best("now", now)})
	total("top1", b.cast(same, onnxpb.TensorProto_FLOAT))
	if m.next {
		next := b.rows(b.input("learn/next", onnxpb.TensorProto_INT64, "learn/batch", "learn/length"), 1)
		for name, v := range map[string]*graph.Value{"loss_original": original, "loss_now": now} {
			total(name, b.op("GatherElements", name+"/of_next", []*graph.Value{v, next}, graph.IntAttr("axis", 1)))
		}
	}
	return m, nil
}

// measure runs the batches and returns the quality of the original and of the second branch. references are the
// original's rows of each batch where the meter wants them fed.
func (m *meter) measure(ctx context.Context, batches []Batch, slots Slots, references []*ort.Tensor, step func()) (original, now Quality, err error) {
	m.reset()
	for i, b := range batches {
		extra := map[string]*ort.Tensor{"learn/weight": b.Weight, "learn/next": b.Next}
		if m.reference {
			extra["learn/reference"] = references[i]
		}
		if _, err := m.run(ctx, b.Feeds, slots, extra); err != nil {
			return original, now, err
		}
		step()
	}
	n := m.matrix("positions")[0]
	mean := func(name string) float64 { return m.matrix(name)[0] / n }
	original, now = Quality{Positions: int(n), Loss: math.NaN(), Perplexity: math.NaN(), Top1: 1}, Quality{Positions: int(n), Loss: math.NaN(), Perplexity: math.NaN()}
	if !m.scores {
		now.KL, now.Top1 = m.matrix("error")[0]/m.matrix("energy")[0], math.NaN()
		original.Top1 = math.NaN()
	} else {
		now.KL, now.Top1 = mean("kl"), mean("top1")
	}
	if m.next {
		original.Loss, now.Loss = -mean("loss_original"), -mean("loss_now")
		original.Perplexity, now.Perplexity = math.Exp(original.Loss), math.Exp(now.Loss)
	}
	if math.IsNaN(now.KL) {
		return original, now, fmt.Errorf("the divergence from the original is not a number: the model overflows on these samples, or none of their positions counts")
	}
	return original, now, nil
}

// references computes the original's rows of each batch, nil when they are more than may be kept.
func (l *Lab) references(ctx context.Context, batches []Batch) ([]*ort.Tensor, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	original, _, width, _, err := b.measured(b.outputs)
	if err != nil {
		b.m.Close()
		return nil, err
	}
	tokens := 0
	for _, batch := range batches {
		tokens += batch.Tokens
	}
	if tokens*width*4 > referenceLimit {
		b.m.Close()
		return nil, nil
	}
	b.g.AddOutput(original, graph.TensorType(onnxpb.TensorProto_FLOAT, "learn/rows", width))
	name := original.Name
	p, err := b.pass()
	if err != nil {
		return nil, err
	}
	defer p.close()
	var out []*ort.Tensor
	for _, batch := range batches {
		o, err := p.run(ctx, batch.Feeds, nil, nil, name)
		if err != nil {
			return nil, err
		}
		out = append(out, o[name])
	}
	return out, nil
}
