package testmodels

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// The graph inputs and outputs carry the names that Optimum gives them.

// cacheNames returns the names of layer i's past inputs and present outputs, key first.
func cacheNames(a *arch, i int) (past, present [2]string) {
	side := ""
	if a.cross {
		side = "decoder."
	}
	for n, kv := range [2]string{"key", "value"} {
		past[n] = fmt.Sprintf("past_key_values.%d.%s%s", i, side, kv)
		present[n] = fmt.Sprintf("present.%d.%s%s", i, side, kv)
	}
	return past, present
}

// crossNames returns the names of layer i's cross-attention caches, key first.
func crossNames(i int) (past, present [2]string) {
	for n, kv := range [2]string{"key", "value"} {
		past[n] = fmt.Sprintf("past_key_values.%d.encoder.%s", i, kv)
		present[n] = fmt.Sprintf("present.%d.encoder.%s", i, kv)
	}
	return past, present
}

// dims of inputs and outputs: names, or numbers when the model is static.
func (e *emitter) batchDim() any { return e.either(e.o.Batch, "batch_size") }
func (e *emitter) seqDim() any   { return e.either(e.o.Seq, "sequence_length") }
func (e *emitter) pastDim() any  { return e.either(e.o.Past, "past_sequence_length") }

// totalDim is the length that attention runs over.
func (e *emitter) totalDim() any {
	if !e.o.Cache {
		return e.seqDim()
	}
	return e.either(e.o.Past+e.o.Seq, "past_sequence_length + sequence_length")
}

func (e *emitter) either(static int, symbolic string) any {
	if e.o.Static {
		return static
	}
	return symbolic
}

func intType(dims ...any) *onnxpb.TypeProto {
	return graph.TensorType(onnxpb.TensorProto_INT64, dims...)
}

// tokens declares an int64 input [batch, seq].
func (e *emitter) tokens(name string) wire {
	return e.g.AddInput(name, intType(e.batchDim(), e.seqDim()))
}

// attentionMask declares attention_mask [batch, past + seq].
func (e *emitter) attentionMask() wire {
	return e.g.AddInput("attention_mask", intType(e.batchDim(), e.totalDim()))
}

// float declares an input of the model's float type.
func (e *emitter) float(name string, dims ...any) wire {
	return e.g.AddInput(name, graph.TensorType(e.o.DType, dims...))
}

// pasts declares the cache inputs and returns them per layer, key first; nil without a cache.
func (e *emitter) pasts() [][2]wire {
	if !e.o.Cache {
		return nil
	}
	out := make([][2]wire, e.a.layers)
	for i := range out {
		past, _ := cacheNames(e.a, i)
		for n, name := range past {
			out[i][n] = e.float(name, e.batchDim(), e.a.kvHeads, e.pastDim(), e.a.headDim)
		}
	}
	return out
}

// append joins the past of layer i and the new keys and values on axis, under the names of the present outputs. Without
// a cache it returns what it was given, under these names where it is the beginning of one.
func (e *emitter) append(pasts [][2]wire, i, axis int, k, v wire) (wire, wire) {
	_, present := cacheNames(e.a, i)
	switch {
	case e.o.Stage == First:
		return e.to(present[0]).op("Identity", k), e.to(present[1]).op("Identity", v)
	case pasts == nil:
		return k, v
	}
	k = e.to(present[0]).concat(axis, pasts[i][0], k)
	v = e.to(present[1]).concat(axis, pasts[i][1], v)
	return k, v
}

// outputs declares the model's outputs, whose values exist under their names.
func (e *emitter) outputs() {
	switch {
	case e.a.hidden:
		length := e.seqDim()
		if n := e.a.tokens(); n > 0 {
			length = n
		}
		e.output("last_hidden_state", e.batchDim(), length, e.a.model)
	case e.a.patch > 0:
		e.output("logits", e.batchDim(), e.a.vocab)
	default:
		e.output("logits", e.batchDim(), e.seqDim(), e.a.vocab)
	}
	if !e.o.Cache && e.o.Stage != First {
		return
	}
	for i := range e.a.layers {
		_, present := cacheNames(e.a, i)
		for _, name := range present {
			e.output(name, e.batchDim(), e.a.kvHeads, e.totalDim(), e.a.headDim)
		}
		if e.a.cross && e.o.Stage == First {
			_, present = crossNames(i)
			for _, name := range present {
				e.output(name, e.batchDim(), e.a.kvHeads, e.encoderDim(), e.a.headDim)
			}
		}
	}
}

// encoderDim is the length of the encoder's states, unlike the decoder's.
func (e *emitter) encoderDim() any { return e.either(e.encoderSeq(), "encoder_sequence_length") }

// crossPasts declares the cache inputs of layer i's cross attention.
func (e *emitter) crossPasts(i int) (k, v wire) {
	past, _ := crossNames(i)
	input := func(name string) wire {
		return e.float(name, e.batchDim(), e.a.kvHeads, e.encoderDim(), e.a.headDim)
	}
	return input(past[0]), input(past[1])
}

// crossed names what the first step gives to the cache of layer i's cross attention.
func (e *emitter) crossed(i int, k, v wire) (wire, wire) {
	if e.o.Stage != First {
		return k, v
	}
	_, present := crossNames(i)
	return e.to(present[0]).op("Identity", k), e.to(present[1]).op("Identity", v)
}

func (e *emitter) output(name string, dims ...any) {
	e.g.AddOutput(e.g.Value(name), graph.TensorType(e.o.DType, dims...))
}

// pastSize is the number of cached positions, as traced from the first cache input.
func (e *emitter) pastSize(pasts [][2]wire) size {
	if pasts == nil {
		return num(0)
	}
	return e.dim(pasts[0][0], 2, e.o.Past)
}
