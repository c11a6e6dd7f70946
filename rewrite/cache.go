package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// cache changes the number of heads of a cache input and of what leads from it to the Concat, and says how heads map.
// The present output follows from the path.
func (e *editor) cache(c change, cache *attention.Cache, block string) (*CacheChange, error) {
	repeat := cache.Repeat
	if c.single {
		repeat = 1
	}
	old := attention.Layout{Outer: 1, Heads: heads(c.path), Repeat: cache.Repeat, Inner: 1, Pure: true}
	next := attention.Layout{Outer: 1, Heads: c.Heads(), Repeat: repeat, Inner: 1, Pure: true}
	m := c.Map()
	change := &CacheChange{Axis: cache.PresentAxis, Map: make([]int, old.Len())}
	for i := range change.Map {
		change.Map[i] = m[i/cache.Repeat] * repeat
	}
	past, present := cache.Interface()
	if present != nil {
		change.Present = present.Name
	}
	e.link(cache, block, old, next, change.Map)
	if cache.Past == nil {
		return change, nil
	}
	change.Past, change.Axis = past.Name, cache.PastAxis
	if cache.Present != nil && cache.PresentAxis != cache.PastAxis {
		return nil, fmt.Errorf("the cache %q has its heads on axis %d and %q on axis %d", cache.Past.Name, cache.PastAxis, cache.Present.Name, cache.PresentAxis)
	}
	if old.Len() == next.Len() {
		return change, nil
	}
	for _, n := range cache.PastNodes {
		if axis, ok := cache.PastWires[n.Out[0]]; ok && n.Is("Reshape") {
			l, r := old, next
			l.Axis, r.Axis = axis, axis
			if err := e.retarget(n, l, r); err != nil {
				return nil, err
			}
		}
	}
	for w, axis := range cache.PastWires {
		for _, u := range w.Users() {
			if n := u.Node; n != nil && n != cache.Concat && !slices.Contains(cache.PastNodes, n) && !n.Is("Shape") && !n.Is("Size") && !cache.Stacked {
				return nil, fmt.Errorf("the cache %q is also read by %v", cache.Past.Name, n)
			}
		}
		l, r := old, next
		l.Axis = axis
		e.correctShapes(w, axis, l, r)
		e.settled[w] = true
	}
	typ, err := e.resize(cache.Past, cache.PastAxis, int64(old.Len()), int64(next.Len()), cache.Outer > 1)
	if err != nil {
		return nil, err
	}
	e.setType(cache.Past, typ)
	if cache.Outer > 1 && cache.Present != nil && cache.Present.Info != nil {
		if typ, err = e.resize(cache.Present, cache.PresentAxis, int64(old.Len()), int64(next.Len()), true); err != nil {
			return nil, err
		}
		e.setType(cache.Present, typ)
	}
	return change, nil
}

// resize returns the declared type of a value with to heads in place of from on one axis. Where the axis is merged with
// the batch a symbolic size gets another name: it counts something else now.
func (e *editor) resize(v *graph.Value, axis int, from, to int64, merged bool) (*onnxpb.TypeProto, error) {
	typ := e.typeOf(v)
	dims := typ.GetTensorType().GetShape().GetDim()
	if axis >= len(dims) {
		return nil, fmt.Errorf("%q is declared with %d axes, want more than %d", v.Name, len(dims), axis)
	}
	old, isConst := dims[axis].Value.(*onnxpb.TensorShapeProto_Dimension_DimValue)
	switch {
	case !merged:
		dims[axis].Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: to}
	case dims[axis].GetDimParam() != "":
		dims[axis].Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: fmt.Sprintf("%s_%d_heads", dims[axis].GetDimParam(), to)}
	case isConst:
		dims[axis].Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: old.DimValue / from * to}
	}
	return typ, nil
}
