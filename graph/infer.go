package graph

import (
	"slices"
	"strings"

	"onnx-dha/graph/onnxpb"
)

// Limits that keep the facts of a hostile file small; real models stay far below them.
const (
	foldBudget  = 1 << 21 // elements, and products of polynomial terms, that one Infer reads and computes
	maxInvented = 8       // elements up to which unknown integers become symbols
	maxName     = 1024    // bytes of a dimension's name
)

// Infer collects the facts of g, which is a main graph, and of the bodies inside it. It never fails: what an operator
// does to its inputs when they are malformed, or when it is not known here, is unknown.
//
// Declared types are taken for true for graph inputs. For anything else what is inferred comes first, since exporters
// write names such as "past_sequence_length + 1" for what is another length; a declaration fills in what is unknown: a
// whole type, or a dimension that it states as a number.
func Infer(g *Graph) *Facts { return infer(g, false) }

func infer(g *Graph, proven bool) *Facts {
	f := &Facts{
		of:        map[*Value]*fact{},
		functions: map[opKey]bool{},
		signed:    map[string]bool{},
		budget:    foldBudget,

		proven:      proven,
		spreads:     map[string][]string{},
		spreadNames: map[string]string{},
	}
	for _, fn := range g.Model.Proto.Functions {
		f.functions[opKey{canonicalDomain(fn.GetDomain()), fn.GetName()}] = true
	}
	for _, v := range g.Inputs {
		f.set(v, fact{}, true)
	}
	f.nodes(g)
	return f
}

// nodes infers the nodes of one scope in order.
func (f *Facts) nodes(g *Graph) {
	for _, n := range g.Nodes {
		f.node(n)
	}
}

// node infers the outputs of n and everything in its bodies.
func (f *Facts) node(n *Node) {
	c := &call{Node: n, f: f, out: make([]fact, len(n.Out))}
	key := opKey{canonicalDomain(n.Domain), n.OpType}
	r, ok := rules[key]
	if f.functions[key] || f.proven && !provableOps[key] {
		ok = false
	}
	if ok && f.proven {
		r = r.cautious(c)
	}
	if ok {
		r.apply(c)
		if f.proven {
			c.prune()
		}
	} else {
		for _, body := range n.bodies() {
			f.body(body, nil)
		}
	}
	for i, v := range n.Out {
		if v != nil {
			f.set(v, c.out[i], n.Graph.Outer == nil)
		}
	}
}

// body infers the body of a control-flow node, whose inputs are known as in (shorter: not known). Declared names say no
// more in there than that a dimension varies: each iteration may bring another one.
func (f *Facts) body(g *Graph, in []fact) {
	for i, v := range g.Inputs {
		var fa fact
		if i < len(in) {
			fa = in[i]
		}
		f.set(v, fa, false)
	}
	f.nodes(g)
}

// set records what is known of v, completed by its declaration; names says whether declared names are symbols.
func (f *Facts) set(v *Value, fa fact, names bool) {
	if v.Const() != nil {
		return
	}
	if f.proven {
		if v.IsInput {
			fa = f.checked(v)
		}
	} else if tt := v.Info.GetType().GetTensorType(); tt != nil {
		if fa.elem == onnxpb.TensorProto_UNDEFINED {
			fa.elem = elemType(tt.GetElemType())
		}
		if tt.Shape != nil && len(tt.Shape.Dim) <= maxRank {
			f.fill(&fa, tt.Shape.Dim, names)
		}
	}
	for i, d := range fa.shape {
		if hi, ok := f.upper(d); d.lost || ok && hi < 0 { // the latter is an error at run time
			fa.shape = slices.Clone(fa.shape)
			fa.shape[i] = f.newDim()
		}
	}
	if fa.known == nil && (fa.elem == onnxpb.TensorProto_INT64 || fa.elem == onnxpb.TensorProto_INT32) && fa.ranked && len(fa.shape) <= 1 {
		fa.known = f.invent(fa.shape)
	}
	f.of[v] = &fa
}

// fill completes a shape with declared dimensions.
func (f *Facts) fill(fa *fact, declared []*onnxpb.TensorShapeProto_Dimension, names bool) {
	if !fa.ranked {
		fa.ranked = true
		fa.shape = make([]Dim, len(declared))
		for i, d := range declared {
			fa.shape[i] = f.declared(d, names)
		}
		return
	}
	if len(fa.shape) != len(declared) {
		return
	}
	shape := make([]Dim, len(declared)) // the inferred one may be another value's too
	for i, d := range declared {
		shape[i] = fa.shape[i]
		if x, ok := d.Value.(*onnxpb.TensorShapeProto_Dimension_DimValue); ok && x.DimValue >= 0 && shape[i].Unknown() {
			shape[i] = Int(x.DimValue)
		}
	}
	fa.shape = shape
}

// declared returns a dimension as the file states it.
func (f *Facts) declared(d *onnxpb.TensorShapeProto_Dimension, names bool) Dim {
	switch x := d.GetValue().(type) {
	case *onnxpb.TensorShapeProto_Dimension_DimValue:
		if x.DimValue >= 0 {
			return Int(x.DimValue)
		}
	case *onnxpb.TensorShapeProto_Dimension_DimParam:
		if names && x.DimParam != "" && len(x.DimParam) <= maxName && !strings.HasPrefix(x.DimParam, "?") {
			return ParseDim(x.DimParam)
		}
	}
	return f.newDim()
}

// invent gives the unknown elements of a short integer vector names, so that what is computed from them can be compared.
func (f *Facts) invent(shape []Dim) *Known {
	dims, ok := constants(shape)
	n, small := product(dims)
	if !ok || !small || n > maxInvented {
		return nil
	}
	k := &Known{Shape: dims, Ints: make([]Dim, n)}
	for i := range k.Ints {
		k.Ints[i] = f.newInt()
	}
	return k
}

// opKey names an operator.
type opKey struct{ domain, op string }

// rule says how to infer the outputs of an operator; each function may be nil.
type rule struct {
	elem  func(*call) elemType                                   // of the first output; nil: that of the first input
	shape func(*call) ([]Dim, bool)                              // of the first output; false: unknown
	rest  func(*call)                                            // sets other outputs; without elem and shape the first too
	fold  func(c *call, out int, shape []int64) ([]number, bool) // the elements of an output whose shape is known and small
}

// call is a node under inference.
type call struct {
	*Node
	f   *Facts
	out []fact
}

// apply infers the outputs of c.
func (r rule) apply(c *call) {
	if r.elem != nil {
		c.setElem(0, r.elem(c))
	} else if r.shape != nil {
		c.setElem(0, c.elem(0))
	}
	if r.shape != nil {
		if s, ok := r.shape(c); ok {
			c.setShape(0, s)
		}
	}
	if r.rest != nil {
		r.rest(c)
	}
	if r.fold == nil || c.f.budget == 0 {
		return
	}
	for i := range c.out {
		fa := &c.out[i]
		shape, ok := constants(fa.shape)
		n, small := product(shape)
		if !fa.ranked || !ok || !small || n > maxFold {
			continue
		}
		var nums []number // an empty tensor needs no folding
		if n > 0 {
			if nums, ok = r.fold(c, i, shape); !ok || len(nums) != n {
				continue
			}
		}
		fa.known = c.f.pack(fa.elem, shape, nums)
	}
}

// elem returns the element type of input i, UNDEFINED when it is omitted or unknown.
func (c *call) elem(i int) elemType { return c.f.Elem(c.Input(i)) }

// shape returns the dimensions of input i, false when it is omitted or of unknown rank.
func (c *call) shape(i int) ([]Dim, bool) { return c.f.Shape(c.Input(i)) }

// fact returns what is known of input i.
func (c *call) fact(i int) fact {
	fa := fact{elem: c.elem(i)}
	fa.shape, fa.ranked = c.shape(i)
	if have := c.f.of[c.Input(i)]; have != nil {
		fa.empty = have.empty
	}
	return fa
}

// setElem sets the type of output i, if the node has one.
func (c *call) setElem(i int, e elemType) {
	if i < len(c.out) {
		c.out[i].elem = e
	}
}

// setShape sets the shape of output i, if the node has one.
func (c *call) setShape(i int, shape []Dim) {
	if i < len(c.out) && len(shape) <= maxRank {
		c.out[i].shape, c.out[i].ranked = shape, true
	}
}

// setOut sets type and shape of output i.
func (c *call) setOut(i int, e elemType, shape []Dim) {
	c.setElem(i, e)
	c.setShape(i, shape)
}

// setFact sets what is known of output i.
func (c *call) setFact(i int, fa fact) {
	if i < len(c.out) {
		c.out[i] = fa
	}
}

// dims returns the elements of input i, an integer tensor, symbolic or not.
func (c *call) dims(i int) ([]Dim, bool) {
	k, ok := c.known(i)
	if !ok || k.Floats != nil || isFloat(c.elem(i)) {
		return nil, false
	}
	return k.Ints, true
}

// ints returns the elements of input i when all are known integers.
func (c *call) ints(i int) ([]int64, bool) {
	d, ok := c.dims(i)
	if !ok {
		return nil, false
	}
	return constants(d)
}

// list returns a list of integers that is an attribute in some opsets and input i in others. given is false when the
// node has neither, ok is false when it has one whose elements are not known.
func (c *call) list(attr string, i int) (list []int64, given, ok bool) {
	if v, has := c.Ints(attr); has {
		return v, true, true
	}
	return c.inputList(i)
}

// inputList is list for what is an input in all opsets.
func (c *call) inputList(i int) (list []int64, given, ok bool) {
	if c.Input(i) == nil {
		return nil, false, true
	}
	list, ok = c.ints(i)
	return list, true, ok
}

// length returns the number of elements of input i, a vector with one for each axis of something.
func (c *call) length(i int) (int, bool) {
	s, ok := c.shape(i)
	if !ok || len(s) != 1 {
		return 0, false
	}
	n, ok := s[0].Const()
	if !ok || n < 0 || n > maxRank {
		return 0, false
	}
	return int(n), true
}

// axis turns an axis, which counts from the end when negative, into an index below rank.
func axis(a int64, rank int) (int, bool) {
	if a < 0 {
		a += int64(rank)
	}
	return int(a), a >= 0 && a < int64(rank)
}

// axisSet returns which of rank axes are listed, false when one is out of range.
func axisSet(axes []int64, rank int) ([]bool, bool) {
	set := make([]bool, rank)
	for _, a := range axes {
		i, ok := axis(a, rank)
		if !ok {
			return nil, false
		}
		set[i] = true
	}
	return set, true
}
