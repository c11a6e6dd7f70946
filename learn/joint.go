package learn

import (
	"context"
	"errors"
	"fmt"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/ort"
)

// joint fits the value projection and the output projection of one block together, for the attention that its shared
// keys have by now: the least squares of y − Σ_h A_h x · V_g(h) · O_h, which is linear in each of the two with the other
// held. Unlike the closed form of a group by itself it lets heads make up for each other's errors. z is the A_h x of all
// heads side by side, y as in refit.
type joint struct {
	*pass
	block, n, stride, out int
	one, bias             bool // x ends with 1; the output projection has a bias, for which z ends with 1
}

// jointLimit bounds the length of z: its moments are a dense matrix, and each step of the solver multiplies by it.
const jointLimit = 2048

// errAlone says that values and output of a block cannot be fitted together: attention of a form that is not followed, or
// too many channels.
var errAlone = errors.New("only the output can be fitted")

// joint sets up block i.
func (l *Lab) joint(i, seq int) (*joint, error) {
	block, w := l.Blocks[i], l.Weights[i]
	n, _ := w.Value.Dims()
	if block.Output == nil || block.Heads*(n+1) > jointLimit {
		return nil, errAlone
	}
	b, err := l.bench()
	if err != nil {
		return nil, err
	}
	j, err := b.joint(i, seq)
	if err != nil {
		b.m.Close()
		return nil, err
	}
	if j.pass, err = b.pass(); err != nil {
		return nil, err
	}
	return j, nil
}

// jointStride is the stride over queries of a fit.
func jointStride(heads, n, seq int) int { return max(1, strideFor(heads, n, seq)/2) }

func (b *bench) joint(i, seq int) (*joint, error) {
	b.fork(i + 1)
	block, w := b.blocks[i], b.lab.Weights[i]
	j := &joint{block: i, one: biased(w), bias: block.Output.Bias != nil, out: block.Output.Columns}
	c := newCollector(b)
	p, err := c.probabilities("joint", block)
	if err != nil {
		return nil, err
	}
	if p == nil || c.sequenceFirst(block.Key.Projection.Input) {
		return nil, errAlone
	}
	x, n, err := c.inputRows("joint/x", block.Value.Projection, c.keys(block), j.one)
	if err != nil {
		return nil, err
	}
	j.n, j.stride = n, jointStride(block.Heads, n, seq)
	y, err := b.wanted(block.Output)
	if err != nil {
		return nil, err
	}
	s := c.sample("joint", p, x, n, j.stride)
	m := block.Heads * n
	z := b.op("Transpose", "joint/by_query", []*graph.Value{s.ax}, graph.IntsAttr("perm", 0, 2, 1, 3))
	z = b.rows(z, m)
	if j.bias {
		z = c.withOne("joint/z", z)
		m++
	}
	y = s.every(y, j.out)
	z, y = c.show("joint/z", z, s.shown), c.show("joint/y", y, s.shown)
	t := b.op("Transpose", "joint/transposed", []*graph.Value{z}, graph.IntsAttr("perm", 1, 0))
	b.sum("gram", b.op("MatMul", "joint/gram", []*graph.Value{t, z}), int64(m), int64(m))
	b.sum("cross", b.op("MatMul", "joint/cross", []*graph.Value{t, y}), int64(m), int64(j.out))
	b.total("rows", s.counted)
	return j, nil
}

// solve runs the batches and fits both projections, from those that the block has by its plan.
func (j *joint) solve(ctx context.Context, batches []Batch, sweeps int, slots Slots, plan *fusion.BlockPlan, e effort, step func()) (*fusion.Learned, error) {
	j.reset()
	for at := range min(sweeps, j.stride) * len(batches) {
		b := batches[at%len(batches)]
		row := ort.FromInt64([]int64{firstRow(at, j.stride, b.Length)}, 1)
		if _, err := j.run(ctx, b.Feeds, slots, map[string]*ort.Tensor{rowInput(j.stride): row}); err != nil {
			return nil, err
		}
		step()
	}
	w := j.lab.Weights[j.block]
	fail := func(err error) (*fusion.Learned, error) {
		return nil, fmt.Errorf("block %q: fit of values and output: %w", j.lab.Blocks[j.block].Name, err)
	}
	m := w.Heads * j.n
	if j.bias {
		m++
	}
	gram, err := symmetric(j.matrix("gram"), m, j.matrix("rows")[0])
	if err != nil {
		return fail(err)
	}
	cross := mat.NewDense(m, j.out, j.matrix("cross"))
	cross.Scale(1/j.matrix("rows")[0], cross)

	learned := fusion.Learned{}
	if plan.Learned != nil {
		learned = *plan.Learned
	}
	a := &alternation{
		heads: w.Heads, n: j.n, d: w.ValueDim, bias: j.bias, gram: mat.DenseCopyOf(gram), sym: gram, cross: cross,
		groups: make([]int, w.Heads), free: j.n, effort: e,
	}
	of := plan.Value.Map()
	for h, v := range w.ValueOf {
		a.groups[h] = of[v]
	}
	inputs, _ := w.Value.Dims()
	if j.one && w.ValueBias == nil {
		a.free = inputs // there is no bias to be had: the entry for it stays zero
	}
	value, valueBias := learned.Value, learned.ValueBias
	if value == nil {
		value, valueBias = fuse(plan.Value, w.Value, w.ValueDim), w.ValueBias
		if valueBias != nil {
			valueBias = fuse(plan.Value, mat.NewDense(1, len(w.ValueBias), w.ValueBias), w.ValueDim).RawRowView(0)
		}
	}
	for g := range plan.Value.Heads() {
		v := mat.NewDense(j.n, a.d, nil)
		v.Slice(0, inputs, 0, a.d).(*mat.Dense).Copy(value.Slice(0, inputs, g*a.d, (g+1)*a.d))
		if a.free > inputs && valueBias != nil {
			v.SetRow(inputs, valueBias[g*a.d:(g+1)*a.d])
		}
		a.values = append(a.values, v)
	}
	output, outputBias := learned.Output, learned.OutputBias
	if output == nil {
		output = w.Output
	}
	if outputBias == nil {
		outputBias = w.OutputBias
	}
	channels := w.Heads * a.d
	if j.bias {
		a.output = mat.NewDense(channels+1, j.out, nil)
		a.output.SetRow(channels, outputBias)
	} else {
		a.output = mat.NewDense(channels, j.out, nil)
	}
	a.output.Slice(0, channels, 0, j.out).(*mat.Dense).Copy(output)
	if err := a.run(ctx); err != nil {
		return fail(err)
	}
	learned.Output = mat.DenseCopyOf(a.output.Slice(0, channels, 0, j.out))
	if j.bias {
		learned.OutputBias = append([]float64(nil), a.output.RawRowView(channels)...)
	}
	learned.Value = mat.NewDense(inputs, len(a.values)*a.d, nil)
	if a.free > inputs {
		learned.ValueBias = make([]float64, len(a.values)*a.d)
	}
	for g, v := range a.values {
		learned.Value.Slice(0, inputs, g*a.d, (g+1)*a.d).(*mat.Dense).Copy(v.Slice(0, inputs, 0, a.d))
		if a.free > inputs {
			copy(learned.ValueBias[g*a.d:], v.RawRowView(inputs))
		}
	}
	return &learned, nil
}

// fuse applies a fusion to the heads of a projection [in, heads·d].
func fuse(f fusion.Fusion, w *mat.Dense, d int) *mat.Dense {
	in, _ := w.Dims()
	out := mat.NewDense(in, f.Heads()*d, nil)
	for g, group := range f.Groups {
		to := out.Slice(0, in, g*d, (g+1)*d).(*mat.Dense)
		for k, h := range group {
			var part mat.Dense
			part.Scale(f.Weights[g][k], w.Slice(0, in, h*d, (h+1)*d))
			to.Add(to, &part)
		}
	}
	return out
}

// alternation is the least-squares problem min E‖y − Σ_h z_h V_g(h) O_h‖² in its moments.
type alternation struct {
	effort
	heads, n, d int
	free        int  // rows of V that are free; the others are zero
	bias        bool // z and output have an entry for the bias at their end
	groups      []int
	gram        *mat.Dense // E[zᵀz]
	sym         *mat.SymDense
	cross       *mat.Dense   // E[zᵀy]
	values      []*mat.Dense // V_g, [n, d]
	output      *mat.Dense   // O, [heads·d (+1), out]
}

// effort says how far an alternation goes.
type effort struct {
	rounds int
	steps  int     // of the value fit in a round, which goes on in the next
	enough float64 // ends it when a round brings less than this share of what all before it brought
}

// Efforts: to compare allocations, and for the weights that are kept.
var (
	coarse = effort{rounds: 16, steps: 6, enough: 0.03}
	fine   = effort{rounds: 60, steps: 12, enough: 0.001}
)

// valueRidge is the ridge of the value fit, as a share of the mean curvature.
const valueRidge = 1e-4

// run alternates between the two fits; the error falls in every round.
func (a *alternation) run(ctx context.Context) error {
	first, last := 0.0, 0.0
	for round := 0; ; round++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := a.through(a.values)
		gram, cross := a.moments(t)
		if round == 0 {
			first = a.error(gram, cross)
			last = first
		}
		o, err := fusion.RefitOutput(gram, cross, a.output, fusion.RefitRidge(gram))
		if err != nil {
			return err
		}
		a.output = o
		now := a.error(gram, cross)
		if round > 0 && last-now <= a.enough*(first-last) || round == a.rounds {
			return nil
		}
		last = now
		if err := a.fitValues(t); err != nil {
			return err
		}
	}
}

// error is E‖y − ŷ‖² less E‖y‖².
func (a *alternation) error(gram *mat.SymDense, cross *mat.Dense) float64 {
	var fitted mat.Dense
	fitted.Mul(gram, a.output)
	sum := 0.0
	for i, o := range a.output.RawMatrix().Data {
		sum += o * (fitted.RawMatrix().Data[i] - 2*cross.RawMatrix().Data[i])
	}
	return sum
}

// through returns E[zᵀf] for the contexts f_h = z_h v_g(h), [m, heads·d (+1)].
func (a *alternation) through(values []*mat.Dense) *mat.Dense {
	m, _ := a.gram.Dims()
	out, _ := a.output.Dims()
	t := mat.NewDense(m, out, nil)
	for h, g := range a.groups {
		t.Slice(0, m, h*a.d, (h+1)*a.d).(*mat.Dense).Mul(a.gram.Slice(0, m, h*a.n, (h+1)*a.n), values[g])
	}
	if a.bias {
		t.Slice(0, m, out-1, out).(*mat.Dense).Copy(a.gram.Slice(0, m, m-1, m))
	}
	return t
}

// moments returns E[fᵀf] and E[fᵀy].
func (a *alternation) moments(t *mat.Dense) (*mat.SymDense, *mat.Dense) {
	size, out := a.output.Dims()
	gram, cross := mat.NewDense(size, size, nil), mat.NewDense(size, out, nil)
	for h, g := range a.groups {
		v := a.values[g].T()
		gram.Slice(h*a.d, (h+1)*a.d, 0, size).(*mat.Dense).Mul(v, t.Slice(h*a.n, (h+1)*a.n, 0, size))
		cross.Slice(h*a.d, (h+1)*a.d, 0, out).(*mat.Dense).Mul(v, a.cross.Slice(h*a.n, (h+1)*a.n, 0, out))
	}
	if a.bias {
		m, _ := a.gram.Dims()
		gram.SetRow(size-1, t.RawRowView(m-1))
		cross.SetRow(size-1, a.cross.RawRowView(m-1))
	}
	sym := mat.NewSymDense(size, nil)
	for i := range size {
		for j := i; j < size; j++ {
			sym.SetSym(i, j, (gram.At(i, j)+gram.At(j, i))/2)
		}
	}
	return sym, cross
}

// fitValues improves the values for the output projection by conjugate gradients on the normal equations, preconditioned
// with the mean of the heads' moments on one side and of O_h O_hᵀ on the other. t is through(values).
func (a *alternation) fitValues(t *mat.Dense) error {
	_, out := a.output.Dims()
	channels := a.heads * a.d
	heads := a.output.Slice(0, channels, 0, out)
	var oo mat.Dense // O O_hᵀ side by side
	oo.Mul(heads, heads.T())
	mean := mat.NewSymDense(a.free, nil)
	for h := range a.heads {
		for i := range a.free {
			for j := i; j < a.free; j++ {
				mean.SetSym(i, j, mean.At(i, j)+a.sym.At(h*a.n+i, h*a.n+j)/float64(a.heads))
			}
		}
	}
	curvature := mat.Trace(mean) / float64(a.free) * mat.Trace(&oo) / float64(len(a.values)*a.d)
	ridge := valueRidge * curvature
	left, err := inverse(mean)
	if err != nil {
		return err
	}
	right := make([]*mat.Dense, len(a.values))
	for g := range right {
		b := mat.NewSymDense(a.d, nil)
		for h, of := range a.groups {
			if of != g {
				continue
			}
			for i := range a.d {
				for j := i; j < a.d; j++ {
					b.SetSym(i, j, b.At(i, j)+oo.At(h*a.d+i, h*a.d+j))
				}
			}
		}
		if right[g], err = inverse(b); err != nil {
			return err
		}
	}
	zero := func() []*mat.Dense {
		v := make([]*mat.Dense, len(a.values))
		for g := range v {
			v[g] = mat.NewDense(a.n, a.d, nil)
		}
		return v
	}
	// gather sums f(h) over the heads of each group.
	gather := func(f func(h int) mat.Matrix) []*mat.Dense {
		v := zero()
		for h, g := range a.groups {
			v[g].Add(v[g], f(h))
		}
		for g := range v {
			for i := a.free; i < a.n; i++ {
				for c := range a.d {
					v[g].Set(i, c, 0)
				}
			}
		}
		return v
	}
	apply := func(v []*mat.Dense) []*mat.Dense {
		t := a.through(v)
		u := gather(func(h int) mat.Matrix {
			var part mat.Dense
			part.Mul(t.Slice(h*a.n, (h+1)*a.n, 0, channels), oo.Slice(0, channels, h*a.d, (h+1)*a.d))
			return &part
		})
		for g := range u {
			var r mat.Dense
			r.Scale(ridge, v[g])
			u[g].Add(u[g], &r)
		}
		return u
	}
	precondition := func(v []*mat.Dense) []*mat.Dense {
		u := zero()
		for g := range v {
			var half mat.Dense
			half.Mul(left, v[g].Slice(0, a.free, 0, a.d))
			u[g].Slice(0, a.free, 0, a.d).(*mat.Dense).Mul(&half, right[g])
		}
		return u
	}
	var miss mat.Dense // E[zᵀ(y − what is given)]
	miss.Mul(t, a.output)
	miss.Sub(a.cross, &miss)
	residual := gather(func(h int) mat.Matrix {
		var part mat.Dense
		part.Mul(miss.Slice(h*a.n, (h+1)*a.n, 0, out), a.output.Slice(h*a.d, (h+1)*a.d, 0, out).T())
		return &part
	})
	direction := precondition(residual)
	rz := inner(residual, direction)
	for range a.steps {
		if !(rz > 0) {
			break
		}
		ap := apply(direction)
		curve := inner(direction, ap)
		if !(curve > 0) {
			break
		}
		alpha := rz / curve
		for g := range direction {
			add(a.values[g], alpha, direction[g])
			add(residual[g], -alpha, ap[g])
		}
		z := precondition(residual)
		next := inner(residual, z)
		beta := next / rz
		rz = next
		for g := range direction {
			direction[g].Scale(beta, direction[g])
			direction[g].Add(direction[g], z[g])
		}
	}
	return nil
}

// inverse returns the inverse of a positive matrix, with a little of its mean diagonal added.
func inverse(m *mat.SymDense) (*mat.Dense, error) {
	n := m.SymmetricDim()
	r := mat.NewSymDense(n, nil)
	r.CopySym(m)
	ridge := 1e-4*mat.Trace(m)/float64(n) + 1e-30
	for i := range n {
		r.SetSym(i, i, r.At(i, i)+ridge)
	}
	var chol mat.Cholesky
	if !chol.Factorize(r) {
		return nil, fmt.Errorf("moments of %d channels are not positive; want finite statistics of more tokens", n)
	}
	var inv mat.SymDense
	if err := chol.InverseTo(&inv); err != nil {
		if _, ok := err.(mat.Condition); !ok {
			return nil, err
		}
	}
	return mat.DenseCopyOf(&inv), nil
}

func add(to *mat.Dense, f float64, v *mat.Dense) {
	x, y := to.RawMatrix().Data, v.RawMatrix().Data
	for i := range x {
		x[i] += f * y[i]
	}
}

func inner(a, b []*mat.Dense) (sum float64) {
	for g := range a {
		x, y := a[g].RawMatrix().Data, b[g].RawMatrix().Data
		for i := range x {
			sum += x[i] * y[i]
		}
	}
	return sum
}
