package testmodels

import (
	"fmt"
	"math"

	"onnx-dha/graph"
)

// dynamo names things as torch.onnx.export(dynamo=True) does: nodes by a running number, values by the ATen operator
// they come from or val_123, constants lifted into initializers and shared.
type dynamo struct {
	nodes, vals int
	named       map[string]int
	constants   map[string]wire
	aten        string // ATen name of the next value; empty for one that has none
}

// newDynamo gives an emitter the dynamo exporter's habits.
func newDynamo(e *emitter) *dynamo {
	d := &dynamo{named: map[string]int{}, constants: map[string]wire{}}
	e.habits = d
	return d
}

// as gives the next value the name of an ATen operator.
func (d *dynamo) as(aten string) { d.aten = aten }

func (d *dynamo) node(_, op string) string {
	d.nodes++
	return fmt.Sprintf("node_%s_%d", op, d.nodes-1)
}

func (d *dynamo) value(_, op string, _ int) string {
	aten := d.aten
	d.aten = ""
	if aten == "" {
		aten = map[string]string{
			"Add": "add", "Mul": "mul", "Neg": "neg", "Concat": "cat", "Transpose": "transpose", "Slice": "slice", "Softmax": "softmax",
			"Split": "split", "Sigmoid": "sigmoid", "Tanh": "tanh", "Cos": "cos", "Sin": "sin", "Unsqueeze": "unsqueeze",
		}[op]
	}
	if aten == "" {
		return d.val()
	}
	n := d.named[aten]
	d.named[aten]++
	if n == 0 {
		return aten
	}
	return fmt.Sprintf("%s_%d", aten, n)
}

func (d *dynamo) val() string {
	d.vals++
	return fmt.Sprintf("val_%d", d.vals-1)
}

// constant is an initializer; equal constants share one.
func (d *dynamo) constant(e *emitter, _ string, t *graph.Tensor) wire {
	key := fmt.Sprint(t.Proto.GetDataType(), t.Dims(), t.Proto.RawData)
	if v, ok := d.constants[key]; ok {
		return v
	}
	name := d.val()
	t.Proto.Name = &name
	d.constants[key] = e.g.AddInit(t)
	return d.constants[key]
}

func (d *dynamo) weight(string) string { return d.val() }

func (d *dynamo) vector(e *emitter, s wire) wire { return e.reshape(s, e.is(-1)) }

// symbol is a symbolic size: Shape with bounds, then Squeeze.
func (d *dynamo) symbol(e *emitter, x wire, axis, static int) size {
	if e.o.Static {
		return num(static)
	}
	one := e.node("Shape", []wire{x}, graph.IntAttr("end", int64(axis+1)), graph.IntAttr("start", int64(axis)))
	d.as("sym_size_int")
	return size{wire: e.op("Squeeze", one)}
}

// symbols are the sizes that a decoder works with.
type symbols struct{ batch, seq, past, total size }

func (d *dynamo) symbols(e *emitter, ids wire, pasts [][2]wire) symbols {
	s := symbols{batch: d.symbol(e, ids, 0, e.o.Batch), seq: d.symbol(e, ids, 1, e.o.Seq)}
	s.total = s.seq
	if pasts != nil {
		s.past = d.symbol(e, pasts[0][0], 2, e.o.Past)
		s.total = e.plus(s.past, s.seq)
	}
	return s
}

// visible is the boolean causal and padding mask [B, 1, S, T].
func (d *dynamo) visible(e *emitter, mask wire, s symbols) wire {
	keys := d.arange(e, num(0), s.total)
	queries := e.unsqueeze(d.arange(e, s.past, s.total), 1)
	causal := e.unsqueeze(e.lessOrEqual(keys, queries), 0, 1)
	padding := e.unsqueeze(e.castBool(mask), 1, 2)
	return e.op("And", causal, padding)
}

func (d *dynamo) arange(e *emitter, start, stop size) wire {
	first, last, step := e.scalar(start), e.scalar(stop), e.i(1)
	d.as("arange")
	return e.op("Range", first, last, step)
}

// linear is aten.linear on three dims: MatMul with the transpose of the weight, folded unless Options say otherwise.
func (d *dynamo) linear(e *emitter, module, w string, x wire, out, in int) wire {
	return e.module(module, func() wire {
		var weight wire
		if e.o.Unfolded {
			weight = e.weights(e.param("weight"), w+".weight", out, in)
			d.as("t")
			weight = e.transpose(weight, 1, 0)
		} else {
			weight = e.init(d.val(), transposed(e.w[w+".weight"], out, in), in, out)
		}
		bias := e.w[w+".bias"]
		if bias == nil {
			d.as("linear")
			return e.op("MatMul", x, weight)
		}
		y := e.op("MatMul", x, weight)
		d.as("linear")
		return e.op("Add", y, e.init(e.param("bias"), bias, out))
	})
}

// view is aten.view.
func (d *dynamo) view(e *emitter, x wire, sizes ...size) wire {
	shape := e.shape(sizes...)
	d.as("view")
	return e.reshape(x, shape)
}

// heads makes [B, S, n·d] into [B, n, S, d].
func (d *dynamo) heads(e *emitter, x wire, s symbols, n int) wire {
	return e.transpose(d.view(e, x, s.batch, s.seq, num(n), num(e.a.headDim)), 0, 2, 1, 3)
}

// sdpa is scaled_dot_product_attention as torchlib decomposes it: K transposed through three dims so that the
// permutation is fixed, the fourth root of 1/d on both operands, and for a boolean mask -Inf at hidden places and a
// guard against the NaN that a row of them gives.
func (d *dynamo) sdpa(e *emitter, q, k, v, mask wire, boolean bool) wire {
	a := e.a
	var flat, back wire // shapes [B·H, T, d] and [B, H, d, T]
	if e.o.Static {
		flat = e.is(e.o.Batch*a.heads, e.totalStatic(), a.headDim)
		back = e.is(e.o.Batch, a.heads, a.headDim, e.totalStatic())
	} else {
		last := e.is(a.headDim)
		rows := e.node("Shape", []wire{k}, graph.IntAttr("end", -1), graph.IntAttr("start", -2))
		lead := e.node("Shape", []wire{k}, graph.IntAttr("end", -2), graph.IntAttr("start", 0))
		flat, back = e.concat(0, e.is(-1), rows, last), e.concat(0, lead, last, rows)
	}
	kt := e.reshape(e.transpose(e.reshape(k, flat), 0, 2, 1), back)
	root := e.fs([]float32{float32(math.Sqrt(a.scale))}, 1)
	scores := e.op("MatMul", e.op("Mul", q, root), e.op("Mul", kt, root))
	if boolean {
		mask = e.op("Where", mask, e.f(0), e.f(math.Inf(-1)))
	}
	p := e.softmax(e.op("Add", scores, mask), -1)
	if boolean {
		p = e.op("Where", e.op("IsNaN", p), e.f(0), p)
	}
	d.as("scaled_dot_product_attention")
	return e.op("MatMul", p, v)
}
