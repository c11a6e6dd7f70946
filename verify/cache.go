package verify

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// pairCaches finds the inputs that hold the state of earlier steps and the outputs that replace them: by the operator
// that extends the one into the other, else by their names.
func (s *Signature) pairCaches(g *graph.Graph) {
	taken := map[string]bool{}
	add := func(past, present *graph.Value, axis int, grows bool) {
		if axis < 0 {
			axis = bufferAxis(past)
		}
		if axis < 0 {
			axis = seqAxis(s.input(past.Name).Dims)
		}
		taken[past.Name], taken[present.Name] = true, true
		s.Caches = append(s.Caches, CachePair{past.Name, present.Name, axis, grows})
		s.buffers[past.Name] = isBuffer(past, present, axis)
	}
	for _, out := range g.Outputs {
		past, axis, grows := extends(out)
		if past == nil || past == out || taken[past.Name] || taken[out.Name] {
			continue
		}
		in := s.input(past.Name)
		if in == nil || !sameKind(in, out) {
			continue
		}
		// Appending to an input of lower rank may be anything, unless the names speak of a cache.
		if len(in.Dims) >= 4 || attention.CacheName(in.Name, attention.PastWords) != in.Name {
			add(past, out, axis, grows)
		}
	}
	byName := map[string]*graph.Value{}
	for _, out := range g.Outputs {
		if !taken[out.Name] {
			byName[attention.CacheName(out.Name, attention.PresentWords)] = out
		}
	}
	for _, in := range s.Inputs {
		key := attention.CacheName(in.Name, attention.PastWords)
		out := byName[key]
		if out == nil || key == in.Name || key == out.Name || taken[in.Name] || taken[out.Name] || !sameKind(&in, out) {
			continue
		}
		// A cross attention's keys come out as long as they went in; its names say what they belong to.
		cross := strings.Contains(in.Name, "encoder") && !strings.Contains(in.Name, "decoder") || strings.Contains(in.Name, "cross")
		add(g.Value(in.Name), out, -1, !cross)
	}
	// The order of the inputs is the order everywhere.
	place := map[string]int{}
	for i, in := range s.Inputs {
		place[in.Name] = i
	}
	slices.SortFunc(s.Caches, func(a, b CachePair) int { return place[a.Past] - place[b.Past] })
}

// isBuffer reports whether past and present are one buffer that the model writes into: both declare the same symbol for
// their positions.
func isBuffer(past, present *graph.Value, axis int) bool {
	return axis >= 0 && bufferAxis(past) == axis && bufferAxis(present) == axis
}

// bufferAxis is the axis that a value declares to be the positions of a buffer, -1 when there is none.
func bufferAxis(v *graph.Value) int {
	return slices.IndexFunc(v.Info.GetType().GetTensorType().GetShape().GetDim(), func(d *onnxpb.TensorShapeProto_Dimension) bool {
		return d.GetDimParam() == rewrite.CacheLength
	})
}

// SharesBuffer reports whether a cache goes through an operator that takes past and present from one buffer of any length and
// is told how much of it is filled: com.microsoft.GroupQueryAttention. Where the model counts what is filled by the length of a
// past, that cannot be a buffer.
func (s *Signature) SharesBuffer(g *graph.Graph, c CachePair) bool {
	n := g.Value(c.Present).Producer
	if n == nil || operator(n) != "com.microsoft GroupQueryAttention" {
		return false
	}
	if past := g.Value(c.Past); n.Input(3) != past && n.Input(4) != past {
		return false
	}
	seen, queue := map[*graph.Value]bool{}, []*graph.Value{n.Input(5), n.Input(6)}
	for len(queue) > 0 {
		var v *graph.Value
		v, queue = queue[0], queue[1:]
		switch {
		case v == nil || seen[v]:
		case s.cacheOf(v.Name) != nil:
			return false
		case v.Producer != nil:
			queue = append(queue, v.Producer.In...)
		}
		seen[v] = true
	}
	return true
}

// sameKind reports whether an output could take the place of an input: same type, same rank, as far as declared.
func sameKind(in *Input, out *graph.Value) bool {
	if len(in.Dims) < 3 {
		return false
	}
	t := out.Info.GetType().GetTensorType()
	if t == nil {
		return true
	}
	return onnxpb.TensorProto_DataType(t.GetElemType()) == in.DType && (t.Shape == nil || len(t.Shape.Dim) == len(in.Dims))
}

// fusedCaches says which input of a fused attention operator an output extends.
var fusedCaches = map[string]map[int]int{ // operator → output → input
	"Attention":                                     {1: 4, 2: 5},
	"com.microsoft Attention":                       {1: 4},
	"com.microsoft GroupQueryAttention":             {1: 3, 2: 4},
	"com.microsoft MultiHeadAttention":              {1: 6, 2: 7},
	"com.microsoft DecoderMaskedMultiHeadAttention": {1: 5, 2: 6},
}

// extends follows an output back to the graph input that it is made from by appending to it or writing into it, with
// the axis it is longer on (-1 when the operator does not say).
func extends(out *graph.Value) (past *graph.Value, axis int, grows bool) {
	v, axis := out, -1
	for depth := 0; v != nil && depth < 16; depth++ {
		if v.IsInput {
			return v, axis, grows
		}
		n := v.Producer
		if n == nil {
			return nil, 0, false
		}
		switch {
		case n.Is("Identity") || n.Is("Cast"):
			v = n.Input(0)
		case n.Is("Concat"):
			axis, grows = int(n.Int("axis", 0)), true
			if rank := len(out.Info.GetType().GetTensorType().GetShape().GetDim()); axis < 0 && rank > 0 {
				axis += rank
			}
			v = n.Input(0)
		case n.Is("TensorScatter") || n.Is("ScatterND") || n.Is("ScatterElements"):
			grows = true
			v = n.Input(0)
		default:
			in, ok := fusedCaches[operator(n)][v.Index]
			if !ok {
				return nil, 0, false
			}
			grows = true
			v = n.Input(in)
		}
	}
	return nil, 0, false
}

// appended are the first inputs that may hold what a node adds to a cache, by its operator.
var appended = map[string]int{"Concat": 0, "TensorScatter": 1, "ScatterND": 2}

// mergedBatch finds caches whose first axis is batch·heads: what is added to such a cache has k·batch there, for a fixed k.
// The symbols of these axes are given k as their multiple of the batch.
func (s *Signature) mergedBatch(g *graph.Graph) {
	var facts *graph.Facts
	for i := range s.Inputs {
		in := &s.Inputs[i]
		if in.Role != PastCache || len(in.Dims) == 0 {
			continue
		}
		sym, sole := soleSymbol(in.Dims[0])
		if !sole || s.quantity[sym] != Batch {
			continue
		}
		for _, u := range g.Value(in.Name).Users() {
			if u.Node == nil {
				continue
			}
			first, adds := appended[u.Node.OpType]
			if !adds || !u.Node.Is(u.Node.OpType) {
				continue
			}
			if facts == nil {
				facts = graph.Infer(g)
			}
			for _, x := range u.Node.In[first:] {
				shape, ok := facts.Shape(x)
				if !ok || len(shape) != len(in.Dims) || shape[0].Equal(in.Dims[0]) {
					continue
				}
				for _, other := range shape[0].Symbols() {
					if k, ok := shape[0].Div(graph.Sym(other)); ok && other != sym {
						if n, fixed := k.Const(); fixed && n > 1 {
							s.multiple[sym] = n
						}
					}
				}
			}
		}
	}
}

// seqAxis guesses the axis that counts positions: the last but the first that is not a fixed size.
func seqAxis(dims []graph.Dim) int {
	for axis := len(dims) - 1; axis > 0; axis-- {
		if _, fixed := dims[axis].Const(); !fixed {
			return axis
		}
	}
	return max(len(dims)-2, 0)
}

// headMaps holds the head maps of a rewrite by the name of a cache's past or present.
type headMaps map[string]rewrite.CacheChange

func mapsByName(changes []rewrite.CacheChange) headMaps {
	m := headMaps{}
	for _, c := range changes {
		if c.Past != "" {
			m[c.Past] = c
		}
		if c.Present != "" {
			m[c.Present] = c
		}
	}
	return m
}

// expand gives a cache tensor of the rewritten model the heads of the original: head h along the change's axis is
// head Map[h] of t. A tensor without a change is returned as it is.
func (m headMaps) expand(name string, t *ort.Tensor) (*ort.Tensor, error) {
	c, ok := m[name]
	if !ok {
		return t, nil
	}
	heads := c.Map
	if c.Axis >= 0 && c.Axis < len(t.Shape) {
		heads = repeated(c.Map, int(t.Shape[c.Axis]))
	}
	out, err := GatherHeads(t, c.Axis, heads)
	if err != nil {
		return nil, fmt.Errorf("cache %q of %s: %w", name, c.Block, err)
	}
	return out, nil
}

// repeated extends a map of heads to an axis on which the batch is merged with the heads, batch·heads: of an axis of
// length n every run of as many heads as the map leads to is mapped alike.
func repeated(heads []int, n int) []int {
	fused := slices.Max(heads) + 1
	if n <= fused || n%fused != 0 {
		return heads
	}
	var out []int
	for at := 0; at < n; at += fused {
		for _, g := range heads {
			out = append(out, at+g)
		}
	}
	return out
}

// GatherHeads returns t with index i of the axis taken from index heads[i].
func GatherHeads(t *ort.Tensor, axis int, heads []int) (*ort.Tensor, error) {
	if axis < 0 || axis >= len(t.Shape) {
		return nil, fmt.Errorf("axis %d does not exist in %v", axis, t)
	}
	have := int(t.Shape[axis])
	for h, g := range heads {
		if g < 0 || g >= have {
			return nil, fmt.Errorf("head %d maps to head %d, but %v has %d on axis %d", h, g, t, have, axis)
		}
	}
	if have > 0 && len(heads) > 0 && slices.Max(heads) != have-1 {
		return nil, fmt.Errorf("the map uses heads up to %d, but %v has %d on axis %d", slices.Max(heads), t, have, axis)
	}
	shape := slices.Clone(t.Shape)
	shape[axis] = int64(len(heads))
	out, err := ort.New(t.DType, shape...)
	if err != nil {
		return nil, err
	}
	if len(out.Raw) == 0 {
		return out, nil
	}
	outer := 1
	for _, d := range t.Shape[:axis] {
		outer *= int(d)
	}
	inner := len(t.Raw) / outer / have
	for o := range outer {
		for h, g := range heads {
			copy(out.Raw[(o*len(heads)+h)*inner:][:inner], t.Raw[(o*have+g)*inner:])
		}
	}
	return out, nil
}

// appendAlong joins two tensors on an axis.
func appendAlong(axis int, a, b *ort.Tensor) (*ort.Tensor, error) {
	if a.DType != b.DType || len(a.Shape) != len(b.Shape) || axis >= len(a.Shape) {
		return nil, fmt.Errorf("cannot append %v to %v on axis %d", b, a, axis)
	}
	outer := 1
	for i, d := range a.Shape {
		if i != axis && d != b.Shape[i] {
			return nil, fmt.Errorf("cannot append %v to %v on axis %d", b, a, axis)
		}
		if i < axis {
			outer *= int(d)
		}
	}
	shape := slices.Clone(a.Shape)
	shape[axis] += b.Shape[axis]
	out, err := ort.New(a.DType, shape...)
	if err != nil || outer == 0 {
		return out, err
	}
	na, nb := len(a.Raw)/outer, len(b.Raw)/outer
	for o := range outer {
		copy(out.Raw[o*(na+nb):], a.Raw[o*na:(o+1)*na])
		copy(out.Raw[o*(na+nb)+na:], b.Raw[o*nb:(o+1)*nb])
	}
	return out, nil
}
