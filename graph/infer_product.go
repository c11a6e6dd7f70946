package graph

import (
	"slices"
	"strings"
)

// This file infers products: matrices, Einsum and convolutions.

// matmulShape multiplies the last two dimensions of inputs a and b and broadcasts the others; a vector on the left is a
// row, on the right a column, and its 1 is dropped from the result.
func matmulShape(a, b int) func(*call) ([]Dim, bool) {
	return func(c *call) ([]Dim, bool) {
		x, ok := c.shape(a)
		y, ok2 := c.shape(b)
		if !ok || !ok2 {
			return nil, false
		}
		return c.f.matmul(x, y)
	}
}

func (f *Facts) matmul(x, y []Dim) ([]Dim, bool) {
	if len(x) == 0 || len(y) == 0 {
		return nil, false
	}
	var rows, cols []Dim
	if len(x) > 1 {
		x, rows = x[:len(x)-2], x[len(x)-2:len(x)-1]
	} else {
		x = nil
	}
	if len(y) > 1 {
		y, cols = y[:len(y)-2], y[len(y)-1:]
	} else {
		y = nil
	}
	batch, _ := f.broadcast(x, y)
	return slices.Concat(batch, rows, cols), true
}

// fusedMatmulShape is com.microsoft.FusedMatMul: a MatMul that may transpose its operands.
func fusedMatmulShape(c *call) ([]Dim, bool) {
	x, ok := c.shape(0)
	y, ok2 := c.shape(1)
	if !ok || !ok2 {
		return nil, false
	}
	for i, s := range []*[]Dim{&x, &y} {
		// transBatchA moves the first dimension before the last; transA swaps the last two.
		n := len(*s)
		if c.Int([]string{"transBatchA", "transBatchB"}[i], 0) != 0 && n > 2 {
			*s = slices.Concat((*s)[1:n-1], (*s)[:1], (*s)[n-1:])
		}
		if c.Int([]string{"transA", "transB"}[i], 0) != 0 && n > 1 {
			*s = slices.Concat((*s)[:n-2], (*s)[n-1:], (*s)[n-2:n-1])
		}
	}
	return c.f.matmul(x, y)
}

// gemmShape multiplies two matrices, either of which may be transposed.
func gemmShape(c *call) ([]Dim, bool) {
	out := c.f.newDims(2)
	for i, flag := range []string{"transA", "transB"} {
		at := i // rows of the first, columns of the second
		if c.Int(flag, 0) != 0 {
			at = 1 - i
		}
		if s, ok := c.shape(i); ok && len(s) == 2 {
			out[i] = s[at]
		}
	}
	return out, true
}

// nbitsShape is com.microsoft.MatMulNBits: [.., K] times a packed weight [K, N].
func nbitsShape(c *call) ([]Dim, bool) {
	s, ok := c.shape(0)
	n := c.Int("N", -1)
	if !ok || len(s) == 0 || n < 0 {
		return nil, false
	}
	return slices.Concat(s[:len(s)-1], []Dim{Int(n)}), true
}

// einsumShape reads the dimensions off the equation; "..." is any number of dimensions that broadcast.
func einsumShape(c *call) ([]Dim, bool) {
	equation := strings.ReplaceAll(c.Str("equation", ""), " ", "")
	left, right, explicit := strings.Cut(equation, "->")
	terms := strings.Split(left, ",")
	if len(terms) != len(c.In) {
		return nil, false
	}
	dims := map[byte]Dim{}
	count := map[byte]int{}
	var ellipsis []Dim
	for i, term := range terms {
		s, ok := c.shape(i)
		if !ok {
			return nil, false
		}
		head, tail, dots := strings.Cut(term, "...")
		free := len(s) - len(head) - len(tail)
		if free < 0 || !dots && free > 0 {
			return nil, false
		}
		ellipsis, _ = c.f.broadcast(ellipsis, s[len(head):len(head)+free])
		letters := head + tail
		for j, d := range slices.Concat(s[:len(head)], s[len(s)-len(tail):]) {
			l := letters[j]
			if count[l]++; count[l] > 1 {
				d = c.f.broadcastDim(dims[l], d)
			}
			dims[l] = d
		}
	}
	if !explicit {
		right = "..."
		for l := byte(0); l < 128; l++ {
			if count[l] == 1 {
				right += string(rune(l))
			}
		}
	}
	head, tail, dots := strings.Cut(right, "...")
	var out []Dim
	for _, l := range []byte(head) {
		if count[l] == 0 {
			return nil, false
		}
		out = append(out, dims[l])
	}
	if dots {
		out = append(out, ellipsis...)
	}
	for _, l := range []byte(tail) {
		if count[l] == 0 {
			return nil, false
		}
		out = append(out, dims[l])
	}
	return out, len(out) <= maxRank
}

// convShape is [batch, output channels, positions of the kernel…] for a weight [output channels, channels / group,
// kernel…]; weight is its input.
func convShape(weight int) func(*call) ([]Dim, bool) {
	return func(c *call) ([]Dim, bool) {
		x, ok := c.shape(0)
		w, ok2 := c.shape(weight)
		switch {
		case !ok && ok2:
			x = c.f.newDims(len(w))
		case !ok:
			return nil, false
		case !ok2:
			w = c.f.newDims(len(x))
		}
		if len(x) < 3 || len(w) != len(x) {
			return nil, false
		}
		return slices.Concat(x[:1], w[:1], c.positions(x[2:], w[2:])), true
	}
}

// poolShape is [batch, channels, positions of the window…].
func poolShape(c *call) ([]Dim, bool) {
	x, ok := c.shape(0)
	kernel, ok2 := c.Ints("kernel_shape")
	if !ok || !ok2 || len(x) < 3 || len(kernel) != len(x)-2 {
		return nil, false
	}
	return slices.Concat(x[:2], c.positions(x[2:], ints(kernel))), true
}

// globalPoolShape leaves one position.
func globalPoolShape(c *call) ([]Dim, bool) {
	x, ok := c.shape(0)
	if !ok || len(x) < 2 {
		return nil, false
	}
	out := slices.Clone(x)
	for i := 2; i < len(out); i++ {
		out[i] = Int(1)
	}
	return out, true
}

// positions returns in how many places a kernel fits along each spatial axis.
func (c *call) positions(in, kernel []Dim) []Dim {
	out := c.f.newDims(len(in))
	list := func(name string, n int, def int64) ([]int64, bool) {
		if l, ok := c.Ints(name); ok {
			return l, len(l) == n
		}
		return slices.Repeat([]int64{def}, n), true
	}
	strides, ok := list("strides", len(in), 1)
	dilations, ok2 := list("dilations", len(in), 1)
	pads, ok3 := list("pads", 2*len(in), 0)
	if !ok || !ok2 || !ok3 {
		return out
	}
	for i := range in {
		if strides[i] < 1 || dilations[i] < 1 {
			continue
		}
		reach := kernel[i].Sub(Int(1)).Mul(Int(dilations[i])).Add(Int(1))
		room := in[i].Add(Int(pads[i])).Add(Int(pads[i+len(in)]))
		switch c.Str("auto_pad", "NOTSET") {
		case "SAME_UPPER", "SAME_LOWER":
			out[i] = c.f.ceilDiv(in[i], strides[i])
			continue
		case "VALID":
			room = in[i]
		}
		room = room.Sub(reach)
		steps := c.f.floorDiv(room, strides[i])
		if c.Int("ceil_mode", 0) != 0 {
			// A last window that would start in the padding at the end is dropped.
			steps = c.f.ceilDiv(room, strides[i])
			last := in[i].Add(Int(pads[i])).Sub(Int(1))
			if !c.f.atMost(steps.Mul(Int(strides[i])), last) {
				if n, ok := steps.Const(); !ok || n < 1 {
					continue
				}
				steps = steps.Sub(Int(1))
			}
		}
		out[i] = c.f.size(steps.Add(Int(1)))
	}
	return out
}
