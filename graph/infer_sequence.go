package graph

import "onnx-dha/graph/onnxpb"

// This file infers the operators of sequences. What is known of a sequence is what holds of every tensor in it, written
// as the fact of one; of a sequence that is certainly empty nothing holds, and the first tensor that is put in says all.

// emptySequence is SequenceEmpty.
func emptySequence(c *call) {
	c.setFact(0, fact{elem: elemType(c.Int("dtype", int64(floatType))), empty: true})
}

// sequenceOf is SequenceConstruct.
func sequenceOf(c *call) {
	out := fact{empty: true}
	for i := range c.In {
		out = c.f.agree(out, c.fact(i))
	}
	c.setFact(0, out)
}

// insertion is SequenceInsert.
func insertion(c *call) { c.setFact(0, c.f.agree(c.fact(0), c.fact(1))) }

// element is SequenceAt: a dimension without a name may be another one at each place.
func element(c *call) { c.setFact(0, c.f.everyTime(c.fact(0))) }

// splitSequence is SplitToSequence: pieces of one axis, of size 1 when no sizes are given.
func splitSequence(c *call) {
	s, ok := c.shape(0)
	c.setElem(0, c.elem(0))
	if !ok {
		return
	}
	a, ok := axis(c.Int("axis", 0), len(s))
	if !ok {
		return
	}
	out := append([]Dim(nil), s...)
	switch {
	case c.Input(1) == nil && c.Int("keepdims", 1) == 0:
		out = append(out[:a], out[a+1:]...)
	case c.Input(1) == nil || c.ones(1):
		out[a] = Int(1)
	default:
		out[a] = c.f.newDim()
	}
	c.setShape(0, out)
}

// ones reports whether every element of input i is 1, however many there are.
func (c *call) ones(i int) bool {
	if x, ok := c.ints(i); ok {
		for _, n := range x {
			if n != 1 {
				return false
			}
		}
		return true
	}
	v := c.Input(i)
	if v == nil || !v.Producer.Is("ConstantOfShape") {
		return false
	}
	fill := v.Producer.Attr("value").GetT()
	if fill == nil {
		return false
	}
	n, err := (&Tensor{Proto: fill}).Int64s()
	return err == nil && len(n) == 1 && n[0] == 1
}

// joinedSequence is ConcatFromSequence: all tensors along one axis, or along a new one.
func joinedSequence(c *call) {
	s, ok := c.shape(0)
	c.setElem(0, c.elem(0))
	if !ok {
		return
	}
	inserted := c.Int("new_axis", 0) != 0
	rank := len(s)
	if inserted {
		rank++
	}
	a, ok := axis(c.Int("axis", 0), rank)
	if !ok {
		return
	}
	out := append([]Dim(nil), s[:a]...)
	out = append(out, c.f.newDim())
	if inserted {
		out = append(out, s[a:]...)
	} else {
		out = append(out, s[a+1:]...)
	}
	c.setShape(0, out)
}

// sequenceLength is a number.
func sequenceLength(c *call) { c.setOut(0, onnxpb.TensorProto_INT64, nil) }
