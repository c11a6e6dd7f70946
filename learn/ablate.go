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
)

// Heads are removed by gates: a copy of the model has one more input per block, a factor for each query head on what
// the head hands to the output projection. One session serves every ablation so; with all gates at 1 it is the model
// itself, bit for bit.

// Effect says what it means that a head is missed.
type Effect string

// Effects. LossEffect is the increase of the cross-entropy of the next token, in nats per token, for causal models.
// KLEffect is the mean divergence KL(original ‖ without the head), in nats, of other models that score classes or
// tokens. ChangeEffect is √(Σ‖y' - y‖² / Σ‖y‖²) over the first output y that is neither scores nor a cache.
const (
	LossEffect   Effect = "loss"
	KLEffect     Effect = "kl"
	ChangeEffect Effect = "change"
)

// effect chooses what is measured when heads are removed.
func (b *bench) effect(batches []Batch) (Effect, *graph.Value, error) {
	out, logits, err := b.output(b.outputs)
	if err != nil {
		return "", nil, err
	}
	if !logits {
		return ChangeEffect, out, nil
	}
	shape, ranked := b.facts.Shape(out)
	causal := slices.ContainsFunc(b.blocks, func(x *attention.Block) bool {
		return x.Kind == attention.Self && (x.Causal || x.KeyCache != nil)
	})
	next := !slices.ContainsFunc(batches, func(x Batch) bool { return x.Next == nil })
	if causal && next && ranked && len(shape) == 3 {
		return LossEffect, out, nil
	}
	return KLEffect, out, nil
}

// ablation is a copy of the model with gates.
type ablation struct {
	*pass
	effect Effect
	rows   string   // the output of what is measured, as rows; "" for a loss
	width  int      // of the rows
	gates  []string // the input of each block, "" for one that has no gate
	heads  []int    // query heads of each block
}

const (
	lossOutput  = "learn/ablation/loss" // Σ -ln p(next token) over the positions that count of each sequence, double [batch, 1]
	distanceSum = "ablation/distance"   // of the rows from those fed as reference: Σ KL, or Σ of squares
	energySum   = "ablation/energy"     // Σ of squares of the rows
	countSum    = "ablation/rows"       // rows that count
)

func gateName(block int) string { return fmt.Sprintf("learn/gate/%d", block) }

// ablation writes and loads the copy.
func (l *Lab) ablation(batches []Batch) (*ablation, error) {
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	a := &ablation{}
	for i, block := range b.blocks {
		name := ""
		if gateable(b.facts, block) {
			name = b.gate(i, block)
		}
		a.heads, a.gates = append(a.heads, block.Heads), append(a.gates, name)
	}
	if err := a.setUp(b, batches); err != nil {
		b.m.Close()
		return nil, err
	}
	a.pass, err = b.pass()
	return a, err
}

// gateable reports whether the heads of a block can be removed: an output projection follows, or the contexts have a form
// that this package knows.
func gateable(f *graph.Facts, block *attention.Block) bool {
	_, known := contextByHead(f, block)
	return known || block.Output != nil
}

// gate multiplies what each query head hands on by a factor, and returns the name of the input that holds the factors.
func (b *bench) gate(i int, block *attention.Block) string {
	name := gateName(i)
	factors := b.input(name, onnxpb.TensorProto_FLOAT, block.Heads)
	if block.Output == nil {
		v, _ := contextByHead(b.facts, block)
		users := slices.Clone(v.Users())
		column := b.op("Reshape", name+"/column", []*graph.Value{factors, b.ints(name+"/shape", int64(block.Heads), 1, 1)})
		gated := b.op("Mul", name+"/gated", []*graph.Value{v, b.like(v, column)})
		for _, u := range users {
			if u.Node != nil {
				u.Node.SetInput(u.Index, gated)
			}
		}
		return name
	}
	head := make([]int64, block.Heads*block.ValueDim) // of each row of the weight
	for h, rows := range block.Output.Rows {
		for _, r := range rows {
			head[r] = int64(h)
		}
	}
	v := block.Output.Input
	row := b.op("Gather", name+"/rows", []*graph.Value{factors, b.ints(name+"/head", head...)}, graph.IntAttr("axis", 0))
	block.Output.Node.SetInput(0, b.op("Mul", name+"/gated", []*graph.Value{v, b.like(v, row)}))
	return name
}

// like returns x, which is float, in the element type of v.
func (b *bench) like(v, x *graph.Value) *graph.Value {
	if t := b.facts.Elem(v); t != onnxpb.TensorProto_FLOAT {
		return b.cast(x, t)
	}
	return x
}

func (a *ablation) setUp(b *bench, batches []Batch) error {
	effect, out, err := b.effect(batches)
	if err != nil {
		return err
	}
	if a.width, err = b.width(out); err != nil {
		return err
	}
	a.effect = effect
	rows := b.rows(b.single(out, out), a.width)
	if effect != ChangeEffect {
		rows = b.logProbabilities("ablation", rows)
	}
	zero := b.floats("ablation/zero", nil, 0)
	if effect == LossEffect {
		next := b.input("learn/next", onnxpb.TensorProto_INT64, "learn/batch", "learn/length")
		weight := b.input("learn/weight", onnxpb.TensorProto_FLOAT, "learn/batch", "learn/length")
		log := b.op("GatherElements", "ablation/of_next", []*graph.Value{rows, b.rows(next, 1)}, graph.IntAttr("axis", 1))
		log = b.op("Reshape", "ablation/by_sequence", []*graph.Value{log, b.op("Shape", "ablation/shape", []*graph.Value{next})})
		log = b.op("Where", "ablation/counted", []*graph.Value{b.cast(weight, onnxpb.TensorProto_BOOL), log, zero})
		sum := b.reduce("ReduceSum", "ablation/sum", b.cast(log, onnxpb.TensorProto_DOUBLE), 1)
		loss := b.g.AddNode("Neg", "", lossOutput, []*graph.Value{sum}, []string{lossOutput}).Out[0]
		b.g.AddOutput(loss, graph.TensorType(onnxpb.TensorProto_DOUBLE, "learn/batch", 1))
		return nil
	}
	reference := b.input("learn/reference", onnxpb.TensorProto_FLOAT, "learn/rows", a.width)
	difference := b.op("Sub", "ablation/difference", []*graph.Value{rows, reference})
	square := func(v *graph.Value) *graph.Value { return b.op("Mul", "ablation/square", []*graph.Value{v, v}) }
	distance := square(difference)
	if effect == KLEffect {
		p := b.op("Exp", "ablation/p", []*graph.Value{reference})
		distance = b.op("Neg", "ablation/kl", []*graph.Value{b.op("Mul", "ablation/weighted", []*graph.Value{p, difference})})
	}
	c := newCollector(b)
	mask := c.tokens
	if !b.perToken(out, mask) {
		mask = nil
	}
	for _, s := range []struct {
		name string
		v    *graph.Value
	}{{distanceSum, distance}, {energySum, square(rows)}} {
		b.total(s.name, b.cast(c.show(s.name, s.v, mask), onnxpb.TensorProto_DOUBLE))
	}
	c.count(countSum, rows, mask)
	a.rows = rows.Name
	b.g.AddOutput(rows, graph.TensorType(onnxpb.TensorProto_FLOAT, "learn/rows", a.width))
	return nil
}

// perToken reports whether out has a row for each element of a mask.
func (b *bench) perToken(out, mask *graph.Value) bool {
	if mask == nil {
		return false
	}
	if mask.Producer != nil {
		mask = mask.Producer.In[0] // the input behind a Cast
	}
	o, known := b.facts.Shape(out)
	m, ok := b.facts.Shape(mask)
	return known && ok && len(o) == 3 && len(m) == 2 && o[0].Equal(m[0]) && o[1].Equal(m[1])
}

// removal is a set of query heads of one block.
type removal struct {
	block int
	heads []int
}

// effects removes each set of heads in turn and returns the effect of each and its standard error over sequences (NaN
// where it is not known: for a single sequence, or effects other than a loss), and the loss with all heads in place
// (NaN for the other effects). Batches come first, so that no more than one batch's outputs are kept.
func (a *ablation) effects(ctx context.Context, batches []Batch, removals []removal, step func()) (effect, deviation []float64, base float64, err error) {
	full := map[string]*ort.Tensor{}
	for i, name := range a.gates {
		if name != "" {
			full[name] = gateOf(a.heads[i], nil)
		}
	}
	var weights, baseLoss []float64              // of each sequence
	increase := make([][]float64, len(removals)) // of each sequence
	distance, energy, rows := make([]float64, len(removals)), 0.0, 0.0
	for _, batch := range batches {
		var before []float64
		extra := map[string]*ort.Tensor{"learn/next": batch.Next, "learn/weight": batch.Weight}
		// run returns the losses of the sequences, nil when something else is measured.
		run := func(gates map[string]*ort.Tensor, want string) (*ort.Tensor, error) {
			a.reset()
			for name, t := range gates {
				extra[name] = t
			}
			var names []string
			if want != "" {
				names = []string{want}
			}
			out, err := a.run(ctx, batch.Feeds, nil, extra, names...)
			if err != nil {
				return nil, err
			}
			step()
			return out[want], nil
		}
		want := lossOutput
		if a.effect != LossEffect {
			want = a.rows
			extra["learn/reference"] = ort.FromFloat32(make([]float32, a.width), 1, int64(a.width))
		}
		first, err := run(full, want)
		if err != nil {
			return nil, nil, 0, err
		}
		if a.effect == LossEffect {
			if before, err = first.Float64s(); err != nil {
				return nil, nil, 0, err
			}
			w, err := batch.Weight.Float64s()
			if err != nil {
				return nil, nil, 0, err
			}
			for s := range before {
				n := 0.0
				for _, x := range w[s*len(w)/len(before) : (s+1)*len(w)/len(before)] {
					n += x
				}
				weights = append(weights, n)
			}
			baseLoss = append(baseLoss, before...)
		} else {
			extra["learn/reference"] = first
			energy += a.matrix(energySum)[0]
			rows += a.matrix(countSum)[0]
			want = ""
		}
		for i, r := range removals {
			name := a.gates[r.block]
			out, err := run(map[string]*ort.Tensor{name: gateOf(a.heads[r.block], r.heads)}, want)
			if err != nil {
				return nil, nil, 0, err
			}
			extra[name] = full[name]
			if a.effect != LossEffect {
				distance[i] += a.matrix(distanceSum)[0]
				continue
			}
			after, err := out.Float64s()
			if err != nil {
				return nil, nil, 0, err
			}
			for s := range after {
				increase[i] = append(increase[i], after[s]-before[s])
			}
		}
	}
	if a.effect == LossEffect {
		total := sum(weights)
		base = sum(baseLoss) / total
		for _, d := range increase {
			m, e := ratio(d, weights)
			effect, deviation = append(effect, m), append(deviation, e)
		}
		if total == 0 || math.IsNaN(base) || math.IsInf(base, 0) {
			return nil, nil, 0, fmt.Errorf("the loss is %v over %g tokens: the model overflows on the data, or none of their positions counts", base, total)
		}
		return effect, deviation, base, nil
	}
	for _, d := range distance {
		x := d / rows
		if a.effect == ChangeEffect {
			x = math.Sqrt(d / energy)
		}
		if math.IsNaN(x) {
			return nil, nil, 0, fmt.Errorf("the change of the outputs is not a number: the model overflows on the data, or none of their positions counts")
		}
		effect, deviation = append(effect, x), append(deviation, math.NaN())
	}
	return effect, deviation, math.NaN(), nil
}

// gateOf is 1 for each of n heads but those that are removed.
func gateOf(n int, removed []int) *ort.Tensor {
	x := slices.Repeat([]float32{1}, n)
	for _, h := range removed {
		x[h] = 0
	}
	return ort.FromFloat32(x, int64(n))
}

func sum(x []float64) float64 {
	s := 0.0
	for _, v := range x {
		s += v
	}
	return s
}

// ratio returns Σx / Σw and its standard error, that of a ratio estimator over independent pairs (x, w); NaN for a
// single pair.
func ratio(x, w []float64) (mean, deviation float64) {
	total, n := sum(w), float64(len(x))
	mean = sum(x) / total
	squares := 0.0
	for i := range x {
		d := x[i] - mean*w[i]
		squares += d * d
	}
	return mean, math.Sqrt(squares*n/(n-1)) / total
}
