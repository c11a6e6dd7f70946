package verify

import (
	"slices"
	"strings"

	"onnx-dha/ort"
)

// limit reports whether a run failed because of what the runtime's GroupQueryAttention does not do on CPU.
func limit(err error) bool {
	return err != nil && strings.Contains(err.Error(), "batch_size must be 1 when sequence_length > 1")
}

// axisOf is the axis of positions of a present output.
func (s *Signature) axisOf(present string) int {
	i := slices.IndexFunc(s.Caches, func(c CachePair) bool { return c.Present == present })
	if i < 0 {
		return -1
	}
	return s.Caches[i].SeqAxis
}

// blanked returns a cache, batch first, with zeros at the positions that are padding.
func blanked(t *ort.Tensor, axis int, real [][]bool) *ort.Tensor {
	if axis < 1 || axis >= len(t.Shape) || int(t.Shape[0]) != len(real) || len(t.Raw) == 0 {
		return t
	}
	out := *t
	out.Raw = slices.Clone(t.Raw)
	length := int(t.Shape[axis])
	outer := 1
	for _, d := range t.Shape[:axis] {
		outer *= int(d)
	}
	size := len(t.Raw) / outer / length
	for o := range outer {
		row := real[o*len(real)/outer]
		for p := range min(length, len(row)) {
			if !row[p] {
				clear(out.Raw[(o*length+p)*size:][:size])
			}
		}
	}
	return &out
}
