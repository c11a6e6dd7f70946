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
// turned keys, so that only N_i = Y_iᵀ K is taken over the keys and the query comes in afterwards, channel by channel.
const (
	sketchColumns = 4   // directions of the output
	signColumns   = 2   // sets of random signs
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
	each := H * keys * (float64(seq) + keys) * float64(sketchColumns+signColumns+1)
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
	spread := func(at string, x *graph.Value, axis int64) *graph.Value {
		if b.m.Opset("") < 13 {
			return op("Unsqueeze", at, []*graph.Value{x}, graph.IntsAttr("axes", axis))
		}
		return op("Unsqueeze", at, []*graph.Value{x, b.ints(name+"/"+at+"/axes", axis)})
	}
	pick := func(at string, x *graph.Value, axis int64, of []int64) *graph.Value {
		return op("Gather", at, []*graph.Value{x, b.ints(name+"/"+at+"/of", of...)}, graph.IntAttr("axis", axis))
	}
	part := func(at string, x *graph.Value, axis, from, to int64) *graph.Value {
		return op("Slice", at, []*graph.Value{x, b.ints(name+"/from", from), b.ints(name+"/to", to), b.ints(name+"/axis", axis)})
	}
	// The axes of what is sampled are [batch, heads, queries, ...].
	start := b.input(rowInput(l.scores), onnxpb.TensorProto_INT64, 1)
	every := func(at string, x *graph.Value) *graph.Value {
		return op("Slice", at, []*graph.Value{x, start, b.ints(name+"/end", math.MaxInt64), b.ints(name+"/axis", 2), b.ints(name+"/stride", int64(l.scores))})
	}
	p, q = every("sampled_p", p), every("sampled_q", q)

	shape := op("Shape", "shape", []*graph.Value{p})
	dim := func(at ...int64) *graph.Value {
		return op("Gather", "dim", []*graph.Value{shape, b.ints(name+"/at", at...)}, graph.IntAttr("axis", 0))
	}
	concat := func(of ...*graph.Value) *graph.Value { return op("Concat", "dims", of, graph.IntAttr("axis", 0)) }
	one, all := b.ints(name+"/1", 1), b.ints(name+"/all", -1)
	if c.tokens != nil { // what padding holds may be NaN
		zero := b.floats(name+"/zero", nil, 0)
		show := func(at string, mask, x *graph.Value) *graph.Value {
			return op("Where", at, []*graph.Value{mask, x, zero})
		}
		k = show("shown_k", two("Reshape", "keys_seen", c.tokens, concat(dim(0), one, one, dim(3))), k)
		v = show("shown_v", two("Reshape", "values_seen", c.tokens, concat(dim(0), one, dim(3), one)), v)
		rows := every("rows", two("Reshape", "row_mask", c.tokens, concat(dim(0), one, all, one)))
		p, q = show("shown_p", rows, p), show("shown_q", rows, q)
		b.total(l.name("score_rows"), b.cast(rows, onnxpb.TensorProto_FLOAT))
	} else {
		b.total(l.name("score_rows"), op("ConstantOfShape", "rows", []*graph.Value{dim(0, 2)}, graph.TensorAttr("value", graph.NewTensor("", []int64{1}, []float32{1}))))
	}

	// Rows over the keys, [batch, heads, queries, rows, keys]: A ∘ v·O for directions of the output, √A ∘ ξ, and A itself,
	// from which all of them are centred.
	if w.ValueHeads != w.Heads {
		ofQuery := make([]int64, H)
		for h := range ofQuery {
			ofQuery[h] = int64(w.ValueOf[h])
		}
		v = pick("v_by_query", v, 1, ofQuery)
	}
	roots := b.floats(name+"/output_root", []int64{H, dv, dv}, outputRoots(w)...) // symmetric
	directions := two("MatMul", "directions", b.input(sketchInput(int(dv)), onnxpb.TensorProto_FLOAT, columns, dv), roots)
	vt := op("Transpose", "v_transposed", []*graph.Value{v}, graph.IntsAttr("perm", 0, 1, 3, 2))
	weights := spread("weights", p, 3)
	outputs := two("Mul", "y_outputs", weights, spread("values", two("MatMul", "vo", directions, vt), 2))
	signed := two("Mul", "y_scores", op("Sqrt", "root", []*graph.Value{weights}), b.input(signsInput, onnxpb.TensorProto_FLOAT, signs, nil))
	y := op("Concat", "y", []*graph.Value{outputs, signed, weights}, graph.IntAttr("axis", 3))
	rows := columns + signs + 1

	// Over the keys: [batch, heads, queries, rows, K·d], all first channels of the pairs before all second ones.
	order := pairOrder(w)
	merged := op("Reshape", "merged_k", []*graph.Value{k, concat(dim(0), b.ints(name+"/Kd", K*d), dim(3))})
	keys := op("Transpose", "k_transposed", []*graph.Value{pick("k_ordered", merged, 1, order)}, graph.IntsAttr("perm", 0, 2, 1))
	n := two("MatMul", "n", two("Reshape", "y_rows", y, concat(dim(0), all, dim(3))), keys)
	n = two("Reshape", "n_split", n, concat(dim(0, 1), all, b.ints(name+"/row_shape", rows, K*d)))
	n = two("Sub", "centred", n, two("Mul", "means", b.reduce("ReduceSum", name+"/sums", y, 4), part("mean_k", n, 3, rows-1, rows)))

	// turned into rows of φ by the query: channel a is q_a n_a + q_b n_b, channel b is q_b n_a − q_a n_b
	half := K * d / 2
	var nn, qq [2]*graph.Value
	for i, at := range []string{"a", "b"} {
		nn[i] = part("n_"+at, n, 4, int64(i)*half, int64(i+1)*half)
		of := make([]int64, half)
		for j := range of {
			of[j] = order[int64(i)*half+int64(j)] % d
		}
		qq[i] = spread("queries_"+at, pick("q_"+at, q, 3, of), 3)
	}
	first := two("Add", "m_a", two("Mul", "aa", nn[0], qq[0]), two("Mul", "bb", nn[1], qq[1]))
	second := two("Sub", "m_b", two("Mul", "ab", nn[0], qq[1]), two("Mul", "ba", nn[1], qq[0]))
	m := op("Concat", "m", []*graph.Value{first, second}, graph.IntAttr("axis", 4))

	// Gram matrices over [batch, queries, rows] of each head.
	byHead := op("Transpose", "by_head", []*graph.Value{m}, graph.IntsAttr("perm", 1, 0, 2, 3, 4))
	for _, g := range []struct {
		what     string
		from, to int64
	}{{"outputs", 0, columns}, {"scores", columns, columns + signs}} {
		x := reshape(g.what+"_rows", part(g.what+"_part", byHead, 3, g.from, g.to), H, -1, K*d)
		b.sum(l.name(g.what), b.gram(name+"/"+g.what, x, 3), H, K*d, K*d)
	}
	return nil
}

// pairOrder lists the channels of all key heads, m·d + channel, first the first of every pair by head and frequency, then
// the second.
func pairOrder(w *fusion.Weights) []int64 {
	pairs, _, _ := fusion.Channels(w.Rotary, w.HeadDim) // collector.scored has seen to it that there is no error
	var order []int64
	for i := range 2 {
		for m := range w.KVHeads {
			for _, p := range pairs {
				order = append(order, int64(m*w.HeadDim+p[i]))
			}
		}
	}
	return order
}

// outputRoots returns, per query head, the symmetric root of O_h O_hᵀ.
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
		var v, scaled, root mat.Dense
		e.VectorsTo(&v)
		scaled.Apply(func(_, j int, x float64) float64 { return x * math.Sqrt(max(values[j], 0)) }, &v)
		root.Mul(&scaled, v.T())
		for _, x := range root.RawMatrix().Data {
			out = append(out, float32(x))
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
	for j := range columns {
		for i := range d {
			sketch = append(sketch, float32(o.At(i, j)*math.Sqrt(float64(d)/float64(columns))))
		}
	}
	return map[string]*ort.Tensor{
		rowInput(l.scores): ort.FromInt64([]int64{firstRow(batch, l.scores, length)}, 1),
		signsInput:         ort.FromFloat32(signs, signColumns, int64(length)),
		sketchInput(d):     ort.FromFloat32(sketch, int64(columns), int64(d)),
	}
}

// scoreStats reads the sums.
func (p *pass) scoreStats(l layout, w *fusion.Weights, s *fusion.Stats) error {
	if l.scores == 0 {
		return nil
	}
	n, order := w.KVHeads*w.HeadDim, pairOrder(w)
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
			ordered, err := symmetric(all[h*n*n:(h+1)*n*n], n, rows)
			if err != nil {
				return err
			}
			m := mat.NewSymDense(n, nil)
			for i, a := range order {
				for j, b := range order[i:] {
					m.SetSym(int(a), int(b), ordered.At(i, i+j))
				}
			}
			*part.to = append(*part.to, m)
		}
	}
	return nil
}
