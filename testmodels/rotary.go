package testmodels

import "math"

// rotation is the pair of tables cos and sin at the tokens' positions.
type rotation struct{ cos, sin wire }

// angles computes the tables [B, S, rotary] from position_ids as transformers does since 4.36: inverse frequencies
// times positions by a MatMul, written twice over for half-split pairs.
func (e *emitter) angles(positions wire) (r rotation) {
	n := e.a.rotary / 2
	e.in("rotary_emb", func() {
		freq := e.expand(e.fs(e.frequencies(), 1, n, 1), e.dim(positions, 0, e.o.Batch), num(-1), num(1))
		at := e.castFloat(e.unsqueeze(positions, 1))
		turn := e.transpose(e.op("MatMul", e.castFloat(freq), at), 0, 2, 1)
		turn = e.concat(-1, turn, turn)
		r = rotation{e.castFloat(e.op("Cos", turn)), e.castFloat(e.op("Sin", turn))}
	})
	return r
}

func (e *emitter) frequencies() []float32 {
	f := make([]float32, e.a.rotary/2)
	for i := range f {
		f[i] = float32(e.a.frequency(i))
	}
	return f
}

// tables are cos and sin for every position up to MaxSeq, width columns that column maps to rotary pairs.
func (e *emitter) tables(width int, column func(i int) int) (cos, sin []float32) {
	for p := range e.o.MaxSeq {
		for i := range width {
			c, s := e.turn(p, column(i))
			cos, sin = append(cos, c), append(sin, s)
		}
	}
	return cos, sin
}

// turn returns cos and sin of rotary pair i at position p.
func (e *emitter) turn(p, i int) (cos, sin float32) {
	s, c := math.Sincos(float64(p) * e.a.frequency(i))
	return float32(c), float32(s)
}

// gathered looks up precomputed tables [MaxSeq, width] at position_ids: [B, S, width].
func (e *emitter) gathered(positions wire, width int, column func(i int) int) (r rotation) {
	e.in("rotary_emb", func() {
		cos, sin := e.tables(width, column)
		r.cos = e.gather(e.init(e.param("cos_cached"), cos, e.o.MaxSeq, width), positions, 0)
		r.sin = e.gather(e.init(e.param("sin_cached"), sin, e.o.MaxSeq, width), positions, 0)
	})
	return r
}

// unsqueezed inserts an axis into both tables.
func (e *emitter) unsqueezed(r rotation, axis int) rotation {
	return rotation{e.unsqueeze(r.cos, axis), e.unsqueeze(r.sin, axis)}
}

// middle is half of x's last axis (number axis, of size n) as TorchScript traces x.shape[-1] // 2.
func (e *emitter) middle(x wire, axis, n int) size {
	if e.o.Static {
		return num(n / 2)
	}
	half := e.op("Div", e.dim(x, axis, n).wire, e.i(2))
	return size{wire: e.castInt(e.castInt(half))}
}

// rotateHalf turns x [B, H, S, d] by tables that broadcast against it: x·cos + cat(-x[middle:], x[:middle])·sin.
func (e *emitter) rotateHalf(x wire, r rotation, middle size) wire {
	back := e.op("Neg", e.slice(x, 3, middle, end))
	front := e.slice(x, 3, num(0), middle)
	rotated := e.concat(-1, back, front)
	return e.op("Add", e.op("Mul", x, r.cos), e.op("Mul", rotated, r.sin))
}

// rotatePartial rotates the first n channels of heads [B, H, S, d] and passes on the rest.
func (e *emitter) rotatePartial(x wire, r rotation, n int) wire {
	turn := e.slice(x, 3, num(0), num(n))
	pass := e.slice(x, 3, num(n), end)
	return e.concat(-1, e.rotateHalf(turn, r, e.middle(turn, 3, n)), pass)
}

// rotatePairs rotates channel pairs (2i, 2i+1) of x [B, S, n, d] as llama2.c's model does: split the pairs off into an
// axis of their own, turn, stack, flatten. The tables are [B, S, 1, d/2].
func (e *emitter) rotatePairs(x wire, r rotation, batch, seq size, n int) wire {
	d := e.a.headDim
	pairs := e.view(x, batch, seq, num(n), num(d/2), num(2))
	re, im := e.gather(pairs, e.i(0), 4), e.gather(pairs, e.i(1), 4)
	a := e.op("Sub", e.op("Mul", re, r.cos), e.op("Mul", im, r.sin))
	b := e.op("Add", e.op("Mul", re, r.sin), e.op("Mul", im, r.cos))
	stacked := e.concat(-1, e.unsqueeze(a, -1), e.unsqueeze(b, -1))
	return e.view(stacked, batch, seq, num(n), num(-1))
}

// rotateEveryTwo is GPT-J's form for x [B, S, n, d]: x·cos + stack(-x[1::2], x[::2])·sin, the tables [B, S, 1, d] with
// every angle written twice in a row.
func (e *emitter) rotateEveryTwo(x wire, r rotation) wire {
	back := e.unsqueeze(e.op("Neg", e.every(x, 3, 1)), -1)
	front := e.unsqueeze(e.every(x, 3, 0), -1)
	stacked := e.concat(-1, back, front)
	var shape wire
	if e.o.Static {
		shape = e.is(e.o.Batch, e.o.Seq, e.a.heads, e.a.rotary)
	} else { // flatten(-2): the leading sizes are read from the tensor
		shape = e.concat(0, e.op("Slice", e.op("Shape", stacked), e.is(0), e.is(3), e.is(0)), e.is(-1))
	}
	return e.op("Add", e.op("Mul", x, r.cos), e.op("Mul", e.reshape(stacked, shape), r.sin))
}
