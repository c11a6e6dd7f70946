package decode

import (
	"fmt"
	"slices"

	"onnx-dha/ort"
	"onnx-dha/verify"
)

// cache is the memory of one pair of past and present.
type cache struct {
	verify.CachePair
	past *ort.Tensor
	// Of a cache that the model joins: the memory that past does not lie in, for the next present.
	spare []byte
	slab  []byte // that past lies in
}

// reserve makes room in static caches for n positions, of which the first filled are kept.
func (l *Loop) reserve(n, filled int) error {
	if n <= l.capacity {
		return nil
	}
	capacity := (n + l.chunk - 1) / l.chunk * l.chunk
	for _, c := range l.caches {
		shape, err := l.m.cacheShape(c.CachePair, l.batch, capacity)
		if err != nil {
			return err
		}
		grown, err := ort.New(l.m.input(c.Past).DType, shape...)
		if err != nil {
			return fmt.Errorf("model %q: cache %q: %w", l.m.Path, c.Past, err)
		}
		if filled > 0 {
			copyPositions(grown, c.past, c.SeqAxis, filled)
		}
		c.past = grown
		if err := l.bind.Input(c.Past, grown); err != nil {
			return err
		}
		if err := l.bind.Output(c.Present, grown); err != nil {
			return err
		}
	}
	l.capacity = capacity
	return nil
}

// copyPositions copies the first n positions along an axis. The tensors differ in the length of the axis alone.
func copyPositions(to, from *ort.Tensor, axis, n int) {
	outer := 1
	for _, d := range from.Shape[:axis] {
		outer *= int(d)
	}
	if outer == 0 || len(from.Raw) == 0 {
		return
	}
	a, b := len(to.Raw)/outer, len(from.Raw)/outer
	bytes := b / int(from.Shape[axis]) * n
	for o := range outer {
		copy(to.Raw[o*a:][:bytes], from.Raw[o*b:][:bytes])
	}
}

// joined prepares a step that takes caches of l.filled positions to presents of n more: each present is bound to memory
// that its past does not lie in.
func (l *Loop) joined(n int) error {
	for _, c := range l.caches {
		if !l.m.host {
			// The presents of the last step were passed on; the first has empty pasts.
			if l.filled == 0 {
				if err := l.viewPast(c, 0); err != nil {
					return err
				}
			}
			if err := l.bind.Place(c.Present); err != nil {
				return err
			}
			continue
		}
		shape, err := l.m.cacheShape(c.CachePair, l.batch, l.filled+n)
		if err != nil {
			return err
		}
		present, err := l.view(&c.spare, c, shape)
		if err != nil {
			return err
		}
		if err := l.bind.Input(c.Past, c.past); err != nil {
			return err
		}
		if err := l.bind.Output(c.Present, present); err != nil {
			return err
		}
		c.past, c.slab, c.spare = present, c.spare, c.slab
	}
	return nil
}

// viewPast makes a past of n positions over the slab that it lies in.
func (l *Loop) viewPast(c *cache, n int) error {
	shape, err := l.m.cacheShape(c.CachePair, l.batch, n)
	if err != nil {
		return err
	}
	if c.past, err = l.view(&c.slab, c, shape); err != nil {
		return err
	}
	return l.bind.Input(c.Past, c.past)
}

// view makes a tensor at the beginning of a slab, which is replaced with a longer one when it is too short.
func (l *Loop) view(slab *[]byte, c *cache, shape []int64) (*ort.Tensor, error) {
	dtype := l.m.input(c.Past).DType
	size, err := ort.Bytes(dtype, shape)
	if err != nil {
		return nil, fmt.Errorf("model %q: cache %q: %w", l.m.Path, c.Past, err)
	}
	if size > int64(len(*slab)) {
		room := slices.Clone(shape)
		room[c.SeqAxis] = (shape[c.SeqAxis] + int64(l.chunk)) / int64(l.chunk) * int64(l.chunk)
		bytes, err := ort.Bytes(dtype, room)
		if err != nil {
			return nil, fmt.Errorf("model %q: cache %q: %w", l.m.Path, c.Past, err)
		}
		*slab = make([]byte, bytes)
	}
	return &ort.Tensor{DType: dtype, Shape: shape, Raw: (*slab)[:size]}, nil
}
