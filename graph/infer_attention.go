package graph

import "slices"

// This file infers the fused operators of transformers. Letters: B batch, S query length, L length of the new keys, P
// length of the past, T = P + L, N query heads, G key/value heads, H channels of a head, D channels of all heads.

// dim returns dimension i (from the end when negative) of input in, a new symbol when it is not known.
func (c *call) dim(in, i int) Dim {
	s, ok := c.shape(in)
	if j, in := axis(int64(i), len(s)); ok && in {
		return s[j]
	}
	return c.f.newDim()
}

// div returns a/b for head counts, a new symbol when b does not divide a.
func (c *call) div(a Dim, b int64) Dim {
	if q, ok := a.Div(Int(b)); ok {
		return q
	}
	return c.f.newDim()
}

// rank returns the rank of input i, -1 when it is not known.
func (c *call) rank(i int) int {
	if s, ok := c.shape(i); ok {
		return len(s)
	}
	return -1
}

// grown returns past (input p) with n more positions on axis 2: [B, G, P, H] → [B, G, P + n, H]; without a past, first.
func (c *call) grown(p int, n Dim, first []Dim) []Dim {
	if c.Input(p) == nil {
		return first
	}
	s, ok := c.shape(p)
	if !ok || len(s) != 4 {
		return c.f.newDims(4)
	}
	return []Dim{s[0], s[1], s[2].Add(n), s[3]}
}

// attention is ai.onnx Attention (opset 23): Q, K, V are [B, N, S, H] or [B, S, N·H].
func attention(c *call) {
	y, ok := c.shape(0)
	for i := range 4 {
		c.setElem(i, c.elem(i%3)) // the result and the scores are of Q's type, the presents of K's and V's
	}
	if !ok || c.rank(1) < 0 || c.rank(2) < 0 {
		return
	}
	var heads, kv, s, length, hk, hv Dim
	switch {
	case len(y) == 4 && c.rank(1) == 4 && c.rank(2) == 4:
		heads, kv, s, length = y[1], c.dim(1, 1), y[2], c.dim(1, 2)
		hk, hv = c.dim(1, 3), c.dim(2, 3)
		c.setShape(0, []Dim{y[0], heads, s, hv})
	case len(y) == 3 && c.rank(1) == 3 && c.rank(2) == 3:
		n, g := c.Int("q_num_heads", 0), c.Int("kv_num_heads", 0)
		heads, kv, s, length = Int(n), Int(g), y[1], c.dim(1, 1)
		hk, hv = c.div(c.dim(1, 2), g), c.div(c.dim(2, 2), g)
		c.setShape(0, []Dim{y[0], s, heads.Mul(hv)})
	default:
		return
	}
	key := c.grown(4, length, []Dim{y[0], kv, length, hk})
	c.setShape(1, key)
	c.setShape(2, c.grown(5, length, []Dim{y[0], kv, length, hv}))
	c.setShape(3, []Dim{y[0], heads, s, key[2]})
}

// packedAttention is com.microsoft.Attention: input [B, S, D], weight [D, Dq + Dk + Dv], past and present
// [2, B, N, P, H].
func packedAttention(c *call) {
	c.setElem(0, c.elem(0))
	c.setElem(1, c.elem(0))
	n := c.Int("num_heads", 0)
	if n <= 0 {
		return
	}
	var out Dim
	if sizes, ok := c.Ints("qkv_hidden_sizes"); ok && len(sizes) == 3 {
		out = Int(sizes[2])
	} else if c.Input(2) != nil && c.rank(2) == 1 {
		out = c.div(c.dim(2, 0), 3)
	} else {
		out = c.div(c.dim(1, -1), 3)
	}
	c.setShape(0, []Dim{c.dim(0, 0), c.dim(0, 1), c.f.size(out)})
	present := []Dim{Int(2), c.dim(0, 0), Int(n), c.dim(0, 1), c.div(out, n)}
	if c.Input(4) != nil {
		past, ok := c.shape(4)
		if present = c.f.newDims(5); ok && len(past) == 5 {
			present = slices.Clone(past)
			if c.Int("past_present_share_buffer", 0) == 0 {
				present[3] = past[3].Add(c.dim(0, 1))
			}
		}
	}
	c.setShape(1, present)
}

// multiHead is com.microsoft.MultiHeadAttention and DecoderMaskedMultiHeadAttention: query [B, S, N·H] or all packed as
// [B, S, N, 3, H]; key and value [B, L, N·H], [B, N, L, H] (of cross attention), or both packed as [B, L, N, 2, H].
// past is the input that holds the past keys; the past values follow.
func multiHead(past int) func(*call) {
	return func(c *call) {
		for i := range 4 {
			c.setElem(i, c.elem(0))
		}
		n := c.Int("num_heads", 0)
		q, ok := c.shape(0)
		if !ok || len(q) < 3 || n <= 0 {
			return
		}
		heads, length := Int(n), c.f.newDim()
		hk, hv := c.f.newDim(), c.f.newDim()
		cross := false // keys that are not projected here come with all their positions
		switch {
		case len(q) == 5:
			length, hk, hv = q[1], q[4], q[4]
		case c.rank(1) == 5:
			length, hk, hv = c.dim(1, 1), c.dim(1, 4), c.dim(1, 4)
		case c.rank(1) == 3 && c.rank(2) == 3:
			length, hk, hv = c.dim(1, 1), c.div(c.dim(1, 2), n), c.div(c.dim(2, 2), n)
		case c.rank(1) == 4 && c.rank(2) == 4:
			length, hk, hv, cross = c.dim(1, 2), c.dim(1, 3), c.dim(2, 3), true
		}
		c.setShape(0, []Dim{q[0], q[1], heads.Mul(hv)})
		fresh := []Dim{q[0], heads, length, hk}
		freshValue := []Dim{q[0], heads, length, hv}
		switch {
		case cross:
			c.setShape(1, fresh)
			c.setShape(2, freshValue)
		case c.Int("past_present_share_buffer", 0) != 0 || c.Input(past+2) != nil && past == 6:
			// The present is the past's buffer, written in place.
			for i := range 2 {
				if s, ok := c.shape(past + i); ok {
					c.setShape(1+i, s)
				}
			}
		default:
			c.setShape(1, c.grown(past, length, fresh))
			c.setShape(2, c.grown(past+1, length, freshValue))
		}
		if len(c.out) > 1 && c.out[1].ranked && len(c.out[1].shape) == 4 {
			c.setShape(3, []Dim{q[0], heads, q[1], c.out[1].shape[2]})
		}
	}
}

// groupQuery is com.microsoft.GroupQueryAttention: query [B, S, N·H], or [B, S, (N + 2G)·H] without key and value;
// present [B, G, T, H] with a T that the operator takes from its inputs' values.
func groupQuery(c *call) {
	for i := range 3 {
		c.setElem(i, c.elem(0))
	}
	n, g := c.Int("num_heads", 0), c.Int("kv_num_heads", 0)
	q, ok := c.shape(0)
	if !ok || len(q) != 3 || n <= 0 || g <= 0 || n > 1<<20 || g > 1<<20 {
		return
	}
	width := q[2]
	head := c.div(width, n)
	if c.Input(1) == nil {
		head = c.div(width, n+2*g)
		width = head.Mul(Int(n))
	}
	c.setShape(0, []Dim{q[0], q[1], width})
	for i := range 2 {
		if c.Input(3+i) != nil {
			c.setElem(1+i, c.elem(3+i))
		}
		c.setShape(1+i, []Dim{q[0], Int(g), c.f.newDim(), head})
	}
	if len(c.out) > 2 && c.out[1].ranked && c.out[2].ranked {
		c.out[2].shape[2] = c.out[1].shape[2]
	}
}

// embedLayerNorm is com.microsoft.EmbedLayerNormalization: [B, S] ids → [B, S, D], mask index [B], embedding sum.
func embedLayerNorm(c *call) {
	out := []Dim{c.dim(0, 0), c.dim(0, 1), c.dim(2, 1)}
	c.setOut(0, c.elem(2), out)
	c.setOut(1, int32Type, out[:1])
	c.setOut(2, c.elem(2), out)
}

// skipNorm sets the optional outputs of com.microsoft.SkipLayerNormalization and its simplified form: statistics, and
// the sum of input and skip.
func skipNorm(c *call) {
	reducedStatistics(1)(c)
	if s, ok := c.shape(0); ok {
		c.setOut(3, c.elem(0), s)
	}
}
