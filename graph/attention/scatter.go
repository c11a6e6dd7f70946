package attention

import (
	"errors"

	"onnx-dha/graph"
)

// A cache that is written in place takes new keys or values into a buffer, at positions that the caller gives:
//
//	buffer [.., C, ..], new [.., S, ..] → [.., C, ..]
//
// written names the operators that do so, with the input that holds what is new; the buffer is input 0.
var written = map[string]int{"TensorScatter": 1, "ScatterND": 2, "ScatterElements": 2}

func init() {
	for op, update := range written {
		movers[op] = mover{only(update), moveWrite, false}
	}
}

// moveWrite carries labels from what is written to the buffer, where the two differ in length on one axis alone, along
// which all labels are the same. Where a buffer's axis has a name for a length, of batch and heads together say, it is as long as what
// is written there.
func moveWrite(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[written[n.OpType]]
	shape, ok := concreteShape(t.facts, n.Out[0])
	if s == nil || !ok || len(shape) != len(s.shape) {
		return nil, errors.New("what it writes is not of the buffer's form")
	}
	differ := 0
	dims, _ := t.facts.Shape(n.Out[0])
	for a, d := range shape {
		if d != s.shape[a] {
			if _, number := dims[a].Const(); !number && s.stored[a] > 1 {
				shape[a] = s.shape[a]
				continue
			}
			differ++
			if s.stored[a] > 1 {
				return nil, errors.New("it writes some of the heads")
			}
		}
	}
	if differ > 1 {
		return nil, errors.New("it writes into a part of more than one axis")
	}
	out := *s
	out.shape = shape
	return []*sample{&out}, nil
}

// writeAxis is the axis of positions of a node that writes in place, which is another than that of heads; -1 when it cannot
// be told.
func writeAxis(f *survey, n *graph.Node, heads int) int {
	buffer, ok1 := f.Shape(n.In[0])
	update, ok2 := f.Shape(n.In[written[n.OpType]])
	if !ok1 || !ok2 || len(buffer) != len(update) {
		return -1
	}
	for a, d := range buffer {
		if a != heads && !d.Equal(update[a]) {
			return a
		}
	}
	return -1
}

// joins reports whether n puts cached and new positions together.
func joins(n *graph.Node) bool {
	_, ok := written[n.OpType]
	return n.Is("Concat") || ok && isDefaultDomain(n)
}
