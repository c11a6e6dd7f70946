package verify

import (
	"context"
	"slices"
	"time"

	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// spare is how much longer than what is in it a buffer is made, so that a model that looks behind the filled positions
// shows.
const spare = 3

// run is one run of the session for callers to whom every cache is one that grows: pasts go into buffers with room behind
// them where the model wants buffers, and of the presents only what is filled comes back.
func (m *Model) run(ctx context.Context, in map[string]*ort.Tensor) (map[string]*ort.Tensor, error) {
	given, err := m.buffered(in)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	out, err := m.session.Run(ctx, given)
	m.spent += time.Since(start)
	if err != nil {
		return nil, err
	}
	for _, c := range m.Caches {
		if t := out[c.Present]; m.buffers[c.Past] && t != nil {
			if out[c.Present], err = resized(t, c.SeqAxis, int(in[c.Past].Shape[c.SeqAxis])+m.filled(in)); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// filled is how many positions a run fills.
func (m *Model) filled(in map[string]*ort.Tensor) int {
	n := 0
	if t := in[m.Tokens]; t != nil && len(t.Shape) > 0 { // an operator that counts them itself
		n = int(t.Shape[len(t.Shape)-1])
	}
	for _, i := range m.Inputs {
		if i.Role == Places {
			n = int(in[i.Name].Len())
		}
	}
	return n
}

// buffered puts pasts into buffers where the model wants them.
func (m *Model) buffered(in map[string]*ort.Tensor) (map[string]*ort.Tensor, error) {
	given := merge(in, nil)
	for _, c := range m.Caches {
		if !m.buffers[c.Past] {
			continue
		}
		past := in[c.Past]
		capacity := int(past.Shape[c.SeqAxis]) + m.filled(in) + spare
		if capacity%2 == 0 { // every other step of a decoding has whole pieces, for which models have a form of their own
			capacity = (capacity + rewrite.PieceLength - 1) / rewrite.PieceLength * rewrite.PieceLength
		}
		buffer, err := resized(past, c.SeqAxis, capacity)
		if err != nil {
			return nil, err
		}
		given[c.Past] = buffer
	}
	return given, nil
}

// resized returns t with n entries on axis: the first of them, or all and then ones in the new places.
func resized(t *ort.Tensor, axis, n int) (*ort.Tensor, error) {
	shape := slices.Clone(t.Shape)
	shape[axis] = int64(n)
	have := int(t.Shape[axis])
	if n > have {
		shape[axis] = int64(n - have)
		count := 1
		for _, d := range shape {
			count *= int(d)
		}
		rest, err := ort.FromFloat64s(t.DType, slices.Repeat([]float64{1}, count), shape...)
		if err != nil {
			return nil, err
		}
		return appendAlong(axis, t, rest)
	}
	out, err := ort.New(t.DType, shape...)
	if err != nil || len(out.Raw) == 0 {
		return out, err
	}
	outer := 1
	for _, d := range t.Shape[:axis] {
		outer *= int(d)
	}
	from, to := len(t.Raw)/outer, len(out.Raw)/outer
	for o := range outer {
		copy(out.Raw[o*to:(o+1)*to], t.Raw[o*from:])
	}
	return out, nil
}
