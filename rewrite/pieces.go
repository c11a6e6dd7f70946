package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
)

// For one row the runtime's CPU kernel multiplies the right operand where it lies, for several it packs it into a buffer of
// its own first. So the queries of a group can also be multiplied one by one with a piece of the cache that stays in the
// processor's own memory from the first query to the last: the cache is read once and packed never.
//
//	keys     Q [G, 1, r, 1, d] × K [G, C/L, 1, L, d]ᵀ → [G, C/L, r, 1, L]
//	values   P [G, C/L, r, 1, L] × V [G, C/L, 1, L, d] → [G, C/L, r, 1, d], the sum over C/L is [G, r, d]
//
// It takes a step of one token, and buffers that are a whole number of pieces long. Other kernels than the CPU's are given
// the product as it is.

// PieceLength is L, the positions of a piece: 128 positions of 64 float32 channels are 32 KiB. Decoding is faster in buffers
// whose length is a multiple of it.
const PieceLength = 128

// pieces is a product of groups that have the same number of queries with a buffer.
type pieces struct {
	*product
	queries, channels int64
	whole             *graph.Value // whether pieces can be used
	joined            *graph.Value // Reshape target for the result, [.., H, S, cols]
}

// inPieces returns the product in pieces for groups of the given number of queries; nil where it would not pay, or does not
// fit. What products share is made here, outside of branches.
func (p *product) inPieces(queries int) *pieces {
	e := p.c.e
	left, ok := e.facts.Shape(p.n.In[0])
	channels, fits := p.rowsOfCache()
	if !p.c.buffered || p.c.target != fusion.TargetCPU || queries < 2 || p.piecesCost(queries) > p.rowsCost(queries) || !ok || !fits {
		return nil
	}
	f := &pieces{product: p, queries: int64(queries), channels: channels, whole: e.wholePieces(p.n.In[0], len(left))}
	heads := append(make([]int64, p.right.axis), int64(queries*len(p.members)), -1)
	if !p.first {
		f.joined = e.p.Ints(p.name()+"/joined_shape", append(heads, channels)...)
		return f
	}
	f.joined = e.static.share(fmt.Sprint("joined ", heads), func() *graph.Value {
		return e.p.Op("Concat", "/cache/joined", []*graph.Value{e.p.Ints("/cache/joined_heads", heads...), e.static.capacity}, graph.IntAttr("axis", 0))
	})
	return f
}

// rowsOfCache reports whether the right operand is [.., G, positions, channels] before its Transpose, which swaps the last
// two axes of keys and none of values, and how many channels that are.
func (p *product) rowsOfCache() (channels int64, ok bool) {
	rank := len(p.right.shape)
	if rank == 0 || p.right.axis != rank-3 {
		return 0, false
	}
	want := natural(rank)
	if p.first {
		want[rank-2], want[rank-1] = rank-1, rank-2
	}
	channels, ok = p.right.shape[rank-1].Const()
	return channels, ok && slices.Equal(p.right.order, want)
}

// wholePieces is whether the left operand of a product has one row and the buffers are a whole number of pieces long.
func (e *editor) wholePieces(left *graph.Value, rank int) *graph.Value {
	one := e.fewRows(left, rank, 1)
	key := "pieces " + one.Name
	if e.short[key] == nil {
		s := e.static
		rest := s.op("Mod", "rest", s.capacity, s.ints("piece", PieceLength))
		e.short[key] = s.op("And", "in_pieces", one, s.op("Equal", "whole_pieces", rest, s.ints("none", 0)))
	}
	return e.short[key]
}

// multiply takes queries [.., G, r·S, cols] and returns [.., H, S, cols].
func (f *pieces) multiply(x *graph.Value) *graph.Value {
	e, name := f.c.e, f.name()
	y := e.p.If(name+"/by_length", e.facts.Elem(f.n.In[0]), f.whole,
		func() *graph.Value { return f.oneByOne(x) },
		func() *graph.Value { return f.product.multiply(x, f.right.v) })
	// Scores are joined out here: as the last node of a branch Reshape would copy them.
	return e.p.Op("Reshape", name+"/heads", []*graph.Value{y, f.joined})
}

// oneByOne returns scores [.., G, r, C/L, 1, L], or sums [.., G, 1, r, 1, d].
func (f *pieces) oneByOne(x *graph.Value) *graph.Value {
	p, name, at := f.c.e.p, f.name(), f.right.axis+1
	reshape := func(v *graph.Value, what string, behind ...int64) *graph.Value {
		target := append(make([]int64, at), behind...) // the axes up to the heads are copied
		return p.Op("Reshape", name+"/"+what, []*graph.Value{v, p.Ints(name+"/"+what+"_shape", target...)})
	}
	transpose := func(v *graph.Value, what string, behind ...int) *graph.Value {
		perm := natural(at)
		for _, a := range behind {
			perm = append(perm, at+a)
		}
		return p.Op("Transpose", name+"/"+what, []*graph.Value{v}, graph.IntsAttr("perm", ints(perm)...))
	}
	multiply := func(x, y *graph.Value) *graph.Value {
		return p.Op("MatMul", name+"/product", []*graph.Value{x, y})
	}
	cache := reshape(f.right.v, "pieces", -1, 1, PieceLength, f.channels)
	if f.first {
		y := multiply(reshape(x, "one_by_one", 1, f.queries, 1, f.channels), transpose(cache, "pieces_transposed", 0, 1, 3, 2))
		return transpose(y, "by_query", 1, 0, 2, 3)
	}
	x = transpose(reshape(x, "one_by_one", f.queries, -1, 1, PieceLength), "by_piece", 1, 0, 2, 3)
	return f.c.e.withAxes("ReduceSum", multiply(x, cache), name+"/sum", at)
}
