package rewrite

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// misfitGQA says why com.microsoft.GroupQueryAttention cannot hold the core.
func (c *core) misfitGQA() string {
	f, misfit := c.fusedOperands()
	elem := c.e.facts.Elem(f.q.v)
	switch {
	case misfit != "":
		return misfit
	case !c.b.Causal:
		return "queries may see later positions, which the operator hides"
	case c.b.HeadDim != c.b.ValueDim:
		return "keys and values have different numbers of channels"
	case c.b.HeadDim%8 != 0:
		return fmt.Sprintf("the operator takes heads of 8, 16, … channels, and these have %d", c.b.HeadDim)
	case elem != onnxpb.TensorProto_FLOAT && elem != onnxpb.TensorProto_FLOAT16 && elem != onnxpb.TensorProto_BFLOAT16:
		return "the operator has no kernel for " + elem.String()
	}
	return ""
}

// gqa makes the core one com.microsoft.GroupQueryAttention:
//
//	query [B, S, H·d], key and value [B, S, G·d], past [B, G, P or C, d], seqlens_k [B], total [1], bias [B, 1, S, T]
//
// What the model masks, the causal part included, is given as the bias; the operator is causal by itself. The past may be
// a buffer where the model has a mask whose length says how much of it is filled.
func (c *core) gqa() error {
	e, b := c.e, c.b
	f, _ := c.fusedOperands()
	s := e.fusedOps()
	turn := c.foldRotary(&f)
	total, buffers, err := c.total(f)
	if err != nil {
		return err
	}
	bias, err := c.bias(f, total)
	if err != nil {
		return err
	}
	name := b.QK.Name + "/group_query"
	in := make([]*graph.Value, 11)
	in[0], in[1], in[2] = c.flat(f.q, b.Heads, name+"/query"), c.flat(f.k, c.k.Heads(), name+"/key"), c.flat(f.v, c.v.Heads(), name+"/value")
	int32s := func(name string, v *graph.Value) *graph.Value {
		return s.op("Cast", name, []*graph.Value{v}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT32)))
	}
	one := s.once("one", func() *graph.Value { return e.p.Ints("/attention/one", 1) })
	in[5] = s.once("seqlens", func() *graph.Value {
		last := s.op("Sub", "last_position", []*graph.Value{total, one})
		return int32s("seqlens_k", s.op("Expand", "last_positions", []*graph.Value{last, s.sameSize(f.q.v, 0)}))
	})
	in[6] = s.once("total32", func() *graph.Value {
		// What the runtime works out of fixed sizes by itself is int64, which it does not take here.
		if scores, _ := e.facts.Shape(b.QK.Out[0]); len(scores) == 4 {
			if n, fixed := scores[3].Const(); fixed {
				return e.p.Init(graph.NewTensor("/attention/total_sequence_length", []int64{1}, []int32{int32(n)}))
			}
		}
		return int32s("total_sequence_length", total)
	})
	in[10] = bias
	if turn != nil {
		past := s.once("past", func() *graph.Value {
			return s.op("Sub", "past", []*graph.Value{total, s.sameSize(f.k.v, f.k.seq)})
		})
		in[7], in[8] = c.operatorTable(turn.cos, past), c.operatorTable(turn.sin, past)
	}
	outs := 1
	if b.KeyCache != nil {
		in[3], in[4], outs = b.KeyCache.Past, b.ValCache.Past, 3
	}
	for len(in) > 7 && in[len(in)-1] == nil {
		in = in[:len(in)-1]
	}
	attrs := []*onnxpb.AttributeProto{
		graph.IntAttr("num_heads", int64(b.Heads)), graph.IntAttr("kv_num_heads", int64(c.k.Heads())), graph.FloatAttr("scale", float32(c.operatorScale(f))),
	}
	if f.softcap > 0 {
		attrs = append(attrs, graph.FloatAttr("softcap", float32(f.softcap)))
	}
	wires := c.shadowed()
	if turn != nil {
		attrs = append(attrs, graph.IntAttr("do_rotary", 1))
		if turn.interleaved {
			attrs = append(attrs, graph.IntAttr("rotary_interleaved", 1))
		}
		wires = append(wires, turn.between...)
	}
	e.needs("com.microsoft", 1)
	out := e.p.Node("GroupQueryAttention", "com.microsoft", name, outs, in, attrs...)
	if err := c.seen(wires, f, total); err != nil {
		return err
	}
	if outs == 3 {
		e.p.Replace(b.KeyCache.Present, out[1])
		e.p.Replace(b.ValCache.Present, out[2])
		if buffers {
			seq := s.sameSize(f.k.v, f.k.seq)
			past := s.once("past", func() *graph.Value { return s.op("Sub", "past", []*graph.Value{total, seq}) })
			for _, cache := range []*attention.Cache{b.KeyCache, b.ValCache} {
				if err := e.begun().lengths(cache.Past, 2, past); err != nil {
					return err
				}
				e.declareBuffer(cache.Past, 2)
				e.declareBuffer(cache.Present, 2)
			}
		}
		e.note("GroupQueryAttention on CPU takes several tokens after a past for one sequence at a time: with a batch, prefill is one step and then tokens come singly")
	}
	c.contextFrom(out[0], name)
	return nil
}

// operatorScale is the scale attribute: what is left of the factors on the scores, and what a soft-cap divides by.
func (c *core) operatorScale(f fusedInputs) float64 {
	scale := 1.0
	if c.scale != 0 {
		scale = c.scale
	}
	if f.softcap > 0 {
		scale *= f.softcap
	}
	return scale
}
