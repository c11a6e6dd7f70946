package learn

import (
	"fmt"
	"math"
	"math/rand/v2"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// Statistics of what errors of keys do (fusion.Stats.Scores and Outputs), for blocks whose rotary embedding turns all
// channels.
//
// Both are Gram matrices of rows Σ_j y_ij φ_ij for a sampled query i: with y_ij = A_ij (v_j − v̄_i) O_h, one row per channel
// of the output, for Outputs; with y_ij = √A_ij ξ_j − A_ij Σ_l √A_il ξ_l for Scores, where ξ are random signs: the mean of
// such rows' squares is the covariance that the definition asks for, without a row for every key. Likewise the output's
// directions are sketched, by a random set of sketchColumns of them that differs from batch to batch. φ_ij is linear in the
// turned keys, so that only N_i = Kᵀ Y_i is taken over the keys and the query comes in afterwards, channel by channel.
const (
	sketchColumns = 8   // directions of the output
	signColumns   = 4   // sets of random signs
	scoresShare   = .15 // of the block's forward pass, at most, where it affords leastPositions
	// leastPositions are the query positions of one sample that are used at least.
	leastPositions = 3
	// scoresLimit bounds the elements of one of the two statistics of a block; above it they are left out.
	scoresLimit = 32 << 20
)

// Inputs that collect feeds anew for each batch.
const signsInput = "learn/signs"

func sketchInput(d int) string { return fmt.Sprintf("learn/sketch/%d", d) }

// scoreStride returns the stride over queries.
func scoreStride(w *fusion.Weights, n, seq int) int {
	keys, H := float64(w.KVHeads*w.HeadDim), float64(w.Heads)
	each := H * keys * (float64(seq) + keys) * float64(sketchColumns+signColumns)
	positions := max(leastPositions, scoresShare*12*float64(n)*float64(n)*float64(seq)/each)
	return max(1, int(float64(seq)/positions))
}

// scored reports whether the statistics can be taken of a block.
func (c *collector) scored(block *attention.Block, w *fusion.Weights) bool {
	r := block.Rotary
	size := w.KVHeads * w.HeadDim
	return (r.Kind == attention.HalfSplit || r.Kind == attention.Interleaved) && (r.Dims == 0 || r.Dims == w.HeadDim) &&
		w.Output != nil && w.HeadDim%2 == 0 && w.Heads*size*size <= scoresLimit &&
		block.Kind == attention.Self && block.QK != nil && block.QK.Is("MatMul") && block.PV != nil && block.PV.Is("MatMul") &&
		block.QK.In[0] == block.Query.Operand && block.QK.In[1] == block.Key.Operand && block.PV.In[1] == block.Value.Operand
}

// byHead taps the operand of a product as [batch, heads, rows, columns], each head once; nil when it has another form.
func (c *collector) byHead(name string, p *attention.Path, heads int) (*graph.Value, error) {
	b := c.b
	l, ok := p.Wires[p.Operand]
	shape, ranked := b.facts.Shape(p.Operand)
	if !ok || !ranked {
		return nil, nil
	}
	merged := len(shape) == 3 && l.Axis == 0 && l.Pure && l.Heads == heads && l.Repeat == 1 && l.Inner == 1
	five := len(shape) == 5 && shape[1].Mul(shape[2]).Equal(graph.Int(int64(heads)))
	four := len(shape) == 4 && l.Axis == 1 && l.Pure && l.Outer == 1 && l.Heads == heads && l.Inner == 1
	if !merged && !five && !four {
		return nil, nil
	}
	v, err := b.tap(p.Operand)
	if err != nil {
		return nil, err
	}
	switch {
	case merged, five:
		at := []int64{1, 2}
		if five {
			at = []int64{3, 4}
		}
		dims := b.op("Shape", name+"/shape", []*graph.Value{v})
		dims = b.op("Gather", name+"/rest", []*graph.Value{dims, b.ints(name+"/rest_at", at...)}, graph.IntAttr("axis", 0))
		dims = b.op("Concat", name+"/dims", []*graph.Value{b.ints(name+"/heads", -1, int64(heads)), dims}, graph.IntAttr("axis", 0))
		return b.op("Reshape", name, []*graph.Value{v, dims}), nil
	case l.Repeat > 1:
		at := make([]int64, heads)
		for h := range at {
			at[h] = int64(h * l.Repeat)
		}
		return b.op("Gather", name, []*graph.Value{v, b.ints(name+"/first", at...)}, graph.IntAttr("axis", 1)), nil
	}
	return v, nil
}

// scores sets up both statistics of block l.block; a block that cannot have them is left as it is.
func (c *collector) scores(l *layout, seq int) error {
	b, block, w := c.b, c.b.blocks[l.block], c.b.lab.Weights[l.block]
	if !c.scored(block, w) {
		return nil
	}
	name := l.name("scores")
	var q, k, v *graph.Value
	for _, part := range []struct {
		to    **graph.Value
		what  string
		path  *attention.Path
		heads int
	}{{&q, "/q", block.Query, w.Heads}, {&k, "/k", block.Key, w.KVHeads}, {&v, "/v", block.Value, w.ValueHeads}} {
		var err error
		if *part.to, err = c.byHead(name+part.what, part.path, part.heads); err != nil || *part.to == nil {
			return err
		}
	}
	p, err := c.probabilities(name+"/p", block)
	if err != nil || p == nil {
		return err
	}
	l.scores = scoreStride(w, l.n, seq)
	H, K, d, dv := int64(w.Heads), int64(w.KVHeads), int64(w.HeadDim), int64(w.ValueDim)
	columns := min(dv, sketchColumns)
	const signs = int64(signColumns)

	op := func(op, at string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		return b.op(op, name+"/"+at, in, attrs...)
	}
	two := func(o, at string, x, y *graph.Value) *graph.Value { return op(o, at, []*graph.Value{x, y}) }
	reshape := func(at string, x *graph.Value, dims ...int64) *graph.Value {
		return two("Reshape", at, x, b.ints(name+"/"+at+"/dims", dims...))
	}
	// The axes of what is sampled are [batch, heads, queries, ...].
	start := b.input(rowInput(l.scores), onnxpb.TensorProto_INT64, 1)
	every := func(at string, x *graph.Value) *graph.Value {
		return op("Slice", at, []*graph.Value{x, start, b.ints(name+"/end", math.MaxInt64), b.ints(name+"/axis", 2), b.ints(name+"/stride", int64(l.scores))})
	}
	p, q = every("sampled_p", p), every("sampled_q", q)

	shape := op("Shape", "shape", []*graph.Value{p})
	dim := func(at int64) *graph.Value {
		return op("Gather", "dim", []*graph.Value{shape, b.ints(name+"/at", at)}, graph.IntAttr("axis", 0))
	}
	concat := func(of ...*graph.Value) *graph.Value { return op("Concat", "dims", of, graph.IntAttr("axis", 0)) }
	one, zero := b.ints(name+"/1", 1), b.floats(name+"/zero", nil, 0)
	if c.tokens != nil { // what padding holds may be NaN
		seen := two("Reshape", "keys_seen", c.tokens, concat(dim(0), one, one, dim(3)))
		k = op("Where", "shown_k", []*graph.Value{seen, k, zero})
		seen = two("Reshape", "values_seen", c.tokens, concat(dim(0), one, dim(3), one))
		v = op("Where", "shown_v", []*graph.Value{seen, v, zero})
	}

	// y [batch, heads, queries, keys, columns]
	projected := b.floats(name+"/output_root", []int64{H, dv, dv}, outputRoots(w)...)
	ofQuery := make([]int64, H)
	for h := range ofQuery {
		ofQuery[h] = int64(w.ValueOf[h])
	}
	if w.ValueHeads != w.Heads {
		v = op("Gather", "v_by_query", []*graph.Value{v, b.ints(name+"/value_of", ofQuery...)}, graph.IntAttr("axis", 1))
	}
	sketch := b.input(sketchInput(int(dv)), onnxpb.TensorProto_FLOAT, dv, columns)
	vo := two("MatMul", "vo", v, two("MatMul", "sketched_root", projected, sketch)) // [batch, heads, keys, columns]
	mean := two("MatMul", "mean", p, vo)                                            // [batch, heads, queries, columns]
	spread := func(at string, x *graph.Value, axis int64) *graph.Value {
		if b.m.Opset("") < 13 {
			return op("Unsqueeze", at, []*graph.Value{x}, graph.IntsAttr("axes", axis))
		}
		return op("Unsqueeze", at, []*graph.Value{x, b.ints(name+"/"+at+"/axes", axis)})
	}
	weights := spread("weights", p, 4)
	outputs := two("Mul", "y_outputs", weights, two("Sub", "centred", spread("values", vo, 2), spread("means", mean, 3)))
	root := op("Sqrt", "root", []*graph.Value{p})
	xi := b.input(signsInput, onnxpb.TensorProto_FLOAT, nil, signs) // [keys, signs]
	drift := two("MatMul", "drift", root, xi)                       // [batch, heads, queries, signs]
	sketched := two("Sub", "y_scores", two("Mul", "signed", spread("roots", root, 4), xi), two("Mul", "drifted", weights, spread("drifts", drift, 3)))
	y := op("Concat", "y", []*graph.Value{outputs, sketched}, graph.IntAttr("axis", 4))
	var rows *graph.Value
	if c.tokens != nil {
		rows = every("rows", two("Reshape", "row_mask", c.tokens, concat(dim(0), one, b.ints(name+"/all", -1), one)))
		b.total(l.name("score_rows"), b.cast(rows, onnxpb.TensorProto_FLOAT))
	} else {
		b.total(l.name("score_rows"), op("ConstantOfShape", "rows", []*graph.Value{concat(dim(0), dim(2))}, graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []float32{1}))))
	}

	// n = keys over their positions, [batch, heads, queries, K·d, columns]; turned into rows of φ by the query.
	merged := op("Reshape", "merged_k", []*graph.Value{k, concat(dim(0), one, one, b.ints(name+"/Kd", K*d), dim(3))})
	n := two("MatMul", "n", merged, y)
	pairs := partners(block.Rotary.Kind, int(d))
	same, other, partner := make([]int64, 0, K*d), make([]int64, 0, K*d), make([]int64, 0, K*d)
	var sign []float32
	for m := range K {
		for ch := range d {
			first := ch < pairs[ch]
			a, o := ch, pairs[ch]
			if !first {
				a, o = o, ch
			}
			// channel a: q_a n_a + q_b n_b; channel b: −q_a n_b + q_b n_a
			same, other, partner = append(same, a), append(other, o), append(partner, m*d+pairs[ch])
			if first {
				sign = append(sign, 1)
			} else {
				sign = append(sign, -1)
			}
		}
	}
	pick := func(at string, x *graph.Value, axis int64, of []int64) *graph.Value {
		return op("Gather", at, []*graph.Value{x, b.ints(name+"/"+at+"/of", of...)}, graph.IntAttr("axis", axis))
	}
	u := spread("u", two("Mul", "signed_q", pick("q_same", q, 3, same), b.floats(name+"/sign", []int64{K * d}, sign...)), 4)
	o := spread("o", pick("q_other", q, 3, other), 4)
	m := two("Add", "m", two("Mul", "own", n, u), two("Mul", "crossed", pick("n_partner", n, 3, partner), o))

	if rows != nil {
		m = op("Where", "shown", []*graph.Value{spread("rows_shown", rows, 4), m, zero})
	}

	// Gram matrices over [batch, queries, columns] of each head.
	byHead := op("Transpose", "by_head", []*graph.Value{m}, graph.IntsAttr("perm", 1, 3, 0, 2, 4)) // [heads, K·d, batch, queries, columns]
	for _, part := range []struct {
		what     string
		from, to int64
	}{{"outputs", 0, columns}, {"scores", columns, columns + signs}} {
		x := op("Slice", part.what+"_columns", []*graph.Value{byHead, b.ints(name+"/from", part.from), b.ints(name+"/to", part.to), b.ints(name+"/last", 4)})
		x = reshape(part.what+"_rows", x, H, K*d, -1)
		t := op("Transpose", part.what+"_transposed", []*graph.Value{x}, graph.IntsAttr("perm", 0, 2, 1))
		b.sum(l.name(part.what), two("MatMul", part.what, x, t), H, K*d, K*d)
	}
	return nil
}

// partners gives the channel that each is turned with.
func partners(kind attention.RotaryKind, d int) []int64 {
	out := make([]int64, d)
	for c := range out {
		if kind == attention.Interleaved {
			out[c] = int64(c ^ 1)
		} else {
			out[c] = int64((c + d/2) % d)
		}
	}
	return out
}

// outputRoots returns, per query head, a root of O_h O_hᵀ: R Rᵀ.
func outputRoots(w *fusion.Weights) []float32 {
	d := w.ValueDim
	var out []float32
	for h := range w.Heads {
		_, cols := w.Output.Dims()
		var oo mat.SymDense
		oo.SymOuterK(1, w.Output.Slice(h*d, (h+1)*d, 0, cols))
		var e mat.EigenSym
		e.Factorize(&oo, true) // of a finite matrix; what is not gives NaN, which stats refuses
		values := e.Values(nil)
		var vectors mat.Dense
		e.VectorsTo(&vectors)
		for i := range d {
			for j := range d {
				out = append(out, float32(vectors.At(i, j)*math.Sqrt(max(values[j], 0))))
			}
		}
	}
	return out
}

// sketches are the random inputs of one batch: signs for every key, and directions of the output. All directions are used
// where they are few.
func sketches(l layout, w *fusion.Weights, batch, length int) map[string]*ort.Tensor {
	rng := rand.New(rand.NewPCG(uint64(batch), 0x5c0e5))
	signs := make([]float32, length*signColumns)
	for i := range signs {
		// scaled so that the sum over the sets is the covariance
		signs[i] = float32(1-2*rng.IntN(2)) / float32(math.Sqrt(signColumns))
	}
	d := w.ValueDim
	columns := min(d, sketchColumns)
	g := mat.NewDense(d, d, nil)
	for i := range d {
		for j := range d {
			g.Set(i, j, rng.NormFloat64())
		}
	}
	var qr mat.QR
	qr.Factorize(g)
	var o mat.Dense
	qr.QTo(&o)
	sketch := make([]float32, 0, d*columns)
	for i := range d {
		for j := range columns {
			sketch = append(sketch, float32(o.At(i, j)*math.Sqrt(float64(d)/float64(columns))))
		}
	}
	return map[string]*ort.Tensor{
		rowInput(l.scores): ort.FromInt64([]int64{firstRow(batch, l.scores, length)}, 1),
		signsInput:         ort.FromFloat32(signs, int64(length), signColumns),
		sketchInput(d):     ort.FromFloat32(sketch, int64(d), int64(columns)),
	}
}

// scoreStats reads the sums.
func (p *pass) scoreStats(l layout, w *fusion.Weights, s *fusion.Stats) error {
	if l.scores == 0 {
		return nil
	}
	n := w.KVHeads * w.HeadDim
	rows := p.matrix(l.name("score_rows"))[0]
	if rows == 0 {
		return nil
	}
	for _, part := range []struct {
		what string
		to   *[]*mat.SymDense
	}{{"outputs", &s.Outputs}, {"scores", &s.Scores}} {
		all := p.matrix(l.name(part.what))
		for h := range w.Heads {
			m, err := symmetric(all[h*n*n:(h+1)*n*n], n, rows)
			if err != nil {
				return err
			}
			*part.to = append(*part.to, m)
		}
	}
	return nil
}
