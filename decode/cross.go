package decode

import (
	"fmt"

	"onnx-dha/ort"
	"onnx-dha/verify"
)

// cross is a cache of cross attention: the first step makes it of the encoder's states, the next ones take it.
type cross struct {
	verify.CachePair
	kept *ort.Tensor // what the first step has made
}

// crossPast makes the past of a cache of cross attention: without a position before the first step.
func (l *Loop) crossPast(c *cross) source {
	return source{c.Past, func(l *Loop, _ [][]int64, _ int) (*ort.Tensor, error) {
		if c.kept != nil {
			return c.kept, nil
		}
		in := l.m.input(c.Past)
		shape, err := l.m.Shape(in, verify.Case{Name: "decode", Batch: l.batch, Seq: 1, Encoder: 1})
		if err != nil {
			return nil, err
		}
		if c.SeqAxis >= len(shape) {
			return nil, fmt.Errorf("it has shape %v, and no axis %d of positions", shape, c.SeqAxis)
		}
		if _, fixed := in.Dims[c.SeqAxis].Const(); !fixed {
			shape[c.SeqAxis] = 0
		}
		return ort.New(in.DType, shape...)
	}}
}

// placeCross leaves what a step says of cross attention to the runtime.
func (l *Loop) placeCross() error {
	for _, c := range l.cross {
		if err := l.bind.PlaceHost(c.Present); err != nil {
			return err
		}
	}
	return nil
}

// keepCross keeps what the first step has made; later ones give it back, or nothing in its place.
func (l *Loop) keepCross() error {
	for _, c := range l.cross {
		if c.kept != nil {
			continue
		}
		t, err := l.bind.Fetch(c.Present)
		if err != nil {
			return err
		}
		if t.Len() == 0 {
			return fmt.Errorf("model %q: the first step has left %q, a cache of cross attention, empty", l.m.Path, c.Present)
		}
		c.kept = t
	}
	return nil
}
