package testmodels

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// torchscript names things as torch.onnx.export has done since torch 1.13: nodes and values by module path, constants
// as nodes, folded parameters as onnx::MatMul_123.
type torchscript struct {
	used   map[string]int
	serial int // the trace's running number of anonymous values
}

func (t *torchscript) node(scope, op string) string {
	name := scope + "/" + op
	n := t.used[name]
	t.used[name]++
	if n > 0 {
		name = fmt.Sprintf("%s_%d", name, n)
	}
	return name
}

func (t *torchscript) value(node, _ string, i int) string {
	return fmt.Sprintf("%s_output_%d", node, i)
}

// constant is a Constant node. Axes that the exporter itself adds for Unsqueeze on shapes are anonymous values.
func (t *torchscript) constant(e *emitter, user string, v *graph.Tensor) wire {
	name := t.node(e.scope, "Constant")
	out := t.value(name, "Constant", 0)
	if user == "Unsqueeze" {
		out = t.weight(user)
	}
	return e.g.AddNode("Constant", "", name, nil, []string{out}, graph.TensorAttr("value", v)).Out[0]
}

func (t *torchscript) vector(e *emitter, s wire) wire { return e.unsqueeze(s, 0) }

func (t *torchscript) weight(op string) string {
	t.serial += 7
	return fmt.Sprintf("onnx::%s_%d", op, t.serial)
}

// transposed returns the [in, out] form of a linear weight [out, in].
func transposed(data []float32, out, in int) []float32 {
	t := make([]float32, len(data))
	for o := range out {
		for i := range in {
			t[i*out+o] = data[o*in+i]
		}
	}
	return t
}

// linear is torch.nn.Linear on three or more dims: MatMul with a folded transpose, then the bias, written first.
// The architecture's tensor w is [out, in].
func (e *emitter) linear(module, w string, x wire, out, in int) wire {
	return e.linearData(module, x, e.w[w+".weight"], e.w[w+".bias"], out, in)
}

// linearData is linear with given data; bias may be nil.
func (e *emitter) linearData(module string, x wire, weight, bias []float32, out, in int) wire {
	return e.module(module, func() wire {
		y := e.op("MatMul", x, e.init(e.habits.weight("MatMul"), transposed(weight, out, in), in, out))
		if bias == nil {
			return y
		}
		return e.op("Add", e.init(e.param("bias"), bias, out), y)
	})
}

// conv1D is transformers' Conv1D: a Gemm with an [in, out] weight between reshapes to and from two dims, all of whose
// sizes are traced. weight is [out, in].
func (e *emitter) conv1D(module string, x wire, weight, bias []float32, out, in int) wire {
	return e.module(module, func() wire {
		batch, seq := e.dim(x, 0, e.o.Batch), e.dim(x, 1, e.o.Seq)
		last := num(in)
		if !e.o.Static {
			tail := e.op("Slice", e.op("Shape", x), e.is(-1), e.is(int(end.n)), e.is(0))
			last = size{wire: e.squeeze(tail, 0)}
		}
		flat := e.view(x, num(-1), last)
		y := e.gemm(flat, e.init(e.param("weight"), transposed(weight, out, in), in, out), e.init(e.param("bias"), bias, out), false)
		return e.view(y, batch, seq, num(out))
	})
}

// gemm multiplies two-dimensional operands.
func (e *emitter) gemm(x, w, bias wire, transB bool) wire {
	attrs := []*onnxpb.AttributeProto{graph.FloatAttr("alpha", 1), graph.FloatAttr("beta", 1)}
	if transB {
		attrs = append(attrs, graph.IntAttr("transB", 1))
	}
	return e.node("Gemm", []wire{x, w, bias}, attrs...)
}

// embedding is torch.nn.Embedding.
func (e *emitter) embedding(module, w string, ids wire, rows, width int) wire {
	return e.module(module, func() wire {
		return e.op("Gather", e.weights(e.param("weight"), w, rows, width), ids)
	})
}

// counted is 0, 1, … for as many tokens as ids [B, S] has, [1, S]: a slice of the buffer of position ids.
func (e *emitter) counted(ids wire) wire {
	buffer := make([]int64, e.a.maxSeq)
	for i := range buffer {
		buffer[i] = int64(i)
	}
	table := e.habits.constant(e, "", graph.NewTensor("", []int64{1, int64(len(buffer))}, buffer))
	return e.slice(table, 1, num(0), e.dim(ids, 1, e.o.Seq))
}

// norm is the architecture's norm called w: LayerNormalization from opset 17 on, its parts before; RMS norms are always
// in parts. A name given by to goes to the result.
func (e *emitter) norm(module, w string, x wire, width int) wire {
	name := e.rename
	e.to("")
	return e.module(module, func() wire {
		weight := e.weights(e.param("weight"), w+".weight", width)
		if e.a.rms {
			square := e.op("Pow", x, e.f(2))
			root := e.op("Sqrt", e.op("Add", e.mean(square), e.f(e.a.eps)))
			x = e.op("Mul", x, e.op("Div", e.f(1), root))
			return e.to(name).op("Mul", weight, x)
		}
		bias := e.weights(e.param("bias"), w+".bias", width)
		if e.o.Opset >= 17 {
			return e.to(name).node("LayerNormalization", []wire{x, weight, bias},
				graph.IntAttr("axis", -1), graph.FloatAttr("epsilon", float32(e.a.eps)))
		}
		centred := e.op("Sub", x, e.mean(x))
		variance := e.mean(e.op("Pow", centred, e.f(2)))
		unit := e.op("Div", centred, e.op("Sqrt", e.op("Add", variance, e.f(e.a.eps))))
		unit = e.op("Mul", unit, weight)
		return e.to(name).op("Add", unit, bias)
	})
}

// activate is the architecture's activation in the parts that TorchScript writes.
func (e *emitter) activate(module string, x wire) wire {
	return e.module(module, func() wire { return e.activation(x) })
}

func (e *emitter) activation(x wire) wire {
	switch e.a.act {
	case relu:
		return e.op("Relu", x)
	case silu:
		return e.op("Mul", x, e.op("Sigmoid", x))
	case gelu:
		erf := e.op("Erf", e.op("Div", x, e.f(1.4142135623730951)))
		return e.op("Mul", e.op("Mul", x, e.op("Add", erf, e.f(1))), e.f(0.5))
	}
	half := e.op("Mul", x, e.f(0.5))
	cubic := e.op("Add", x, e.op("Mul", e.op("Pow", x, e.f(3)), e.f(0.044715)))
	tanh := e.op("Tanh", e.op("Mul", cubic, e.f(0.7978845608028654)))
	return e.op("Mul", half, e.op("Add", tanh, e.f(1)))
}

// tied is a classifier that shares the embedding: TorchScript folds the transpose into a second tensor.
func (e *emitter) tied(module string, x wire) { e.classify(module, x, e.w["embed.weight"], nil) }

// head is a classifier of its own.
func (e *emitter) head(module string, x wire) {
	e.classify(module, x, e.w["head.weight"], e.w["head.bias"])
}

func (e *emitter) classify(module string, x wire, weight, bias []float32) {
	e.in(module, func() {
		w := e.init(e.habits.weight("MatMul"), transposed(weight, e.a.vocab, e.a.model), e.a.model, e.a.vocab)
		if bias == nil {
			e.to("logits").op("MatMul", x, w)
			return
		}
		y := e.op("MatMul", x, w)
		e.to("logits").op("Add", e.init(e.param("bias"), bias, e.a.vocab), y)
	})
}
