// Package shapes takes shape arithmetic out of a graph that need not be done: exporters compute the shapes of every layer
// from the wires of that layer, although they are those of the layer before, or constants.
//
// What is changed follows from what operators enforce (graph.Prove) and not from what a file declares, so that the graph
// computes the same bits from any inputs. (Where a runtime has no kernels for float16 it casts to float32 and back, and ONNX
// Runtime drops pairs of these casts, and their rounding with them, by who else reads a value: there it is equal to rounding.)
package shapes

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// Result says what Reduce did. Counts are of nodes, those in bodies included.
type Result struct {
	Before, After int
	Targets       int // of Reshape and Expand that became constants
	Constants     int // other values that became constants
	Shared        int // values that are taken from where they were computed before
}

// Removed is the number of nodes that went.
func (r Result) Removed() int { return r.Before - r.After }

// minOpset is the version of ai.onnx from which on the operators have the meaning that is relied on here.
const minOpset = 11

// Reduce changes g, a main graph, so that shapes, positions and masks are computed once, and those not at all that are known,
// as far as what the graph enforces tells:
//
//   - an integer or truth value of the same type, shape and elements as an earlier one is taken from there, as is the
//     result of the same operator on the same operands;
//   - one whose elements are numbers becomes a constant;
//   - the target of a Reshape becomes a constant where its elements are numbers or the dimensions of what is reshaped, that
//     of an Expand likewise.
//
// Nodes that nobody reads then are removed; those that nobody read before stay. On an error g is unchanged.
func Reduce(g *graph.Graph) (Result, error) {
	res := Result{Before: count(g)}
	res.After = res.Before
	if g.Model.Opset("") < minOpset || overridable(g) || redefined(g.Model) {
		return res, nil
	}
	keep := g.Dead()
	r := &reducer{facts: graph.Prove(g), p: graph.NewPatch(g), now: map[*graph.Value]*graph.Value{}, derived: map[*graph.Value]bool{}, placed: map[*graph.Value]bool{}, res: &res}
	r.nodes(g, &scope{home: g, content: map[string]*graph.Value{}, results: map[string][]*graph.Value{}})
	if !r.changed {
		return res, nil
	}
	if err := r.p.Commit(); err != nil {
		return res, fmt.Errorf("shape arithmetic: the graph would not be consistent, nothing was changed: %w", err)
	}
	g.RemoveDead(keep)
	res.After = count(g)
	return res, nil
}

func count(g *graph.Graph) int {
	n := 0
	g.All(func(*graph.Node) bool { n++; return true })
	return n
}

// overridable reports whether a caller may pass a constant of which more than its type and shape matters: from IR version
// 4 on an initializer that is listed as an input is a default.
func overridable(g *graph.Graph) bool {
	if g.Model.Proto.GetIrVersion() < 4 {
		return false
	}
	for _, v := range g.Inits {
		if !v.IsInput {
			continue
		}
		if countable(v.Init.DType()) || v.Init.Len() <= maxElements { // one whose elements are looked at
			return true
		}
		declared := v.Info.GetType().GetTensorType().GetShape().GetDim()
		if len(declared) != len(v.Init.Dims()) {
			return true
		}
		for i, d := range declared {
			if x, ok := d.Value.(*onnxpb.TensorShapeProto_Dimension_DimValue); !ok || x.DimValue != v.Init.Dims()[i] {
				return true
			}
		}
	}
	return false
}

// redefined reports whether operators of ai.onnx may be functions of the model's own.
func redefined(m *graph.Model) bool {
	return slices.ContainsFunc(m.Proto.Functions, func(f *onnxpb.FunctionProto) bool { return f.GetDomain() == "" || f.GetDomain() == "ai.onnx" })
}

// countable reports whether values of type e are shape arithmetic or may lead to it.
func countable(e onnxpb.TensorProto_DataType) bool {
	return e == onnxpb.TensorProto_INT64 || e == onnxpb.TensorProto_INT32 || e == onnxpb.TensorProto_BOOL
}

// reducer prepares the change of a graph.
type reducer struct {
	facts   *graph.Facts
	p       *graph.Patch
	now     map[*graph.Value]*graph.Value // what readers of a value get in its place
	derived map[*graph.Value]bool         // floats that are made of integers and constants only, as masks are
	placed  map[*graph.Value]bool         // made of the places of elements, as masks are
	changed bool
	res     *Result
}

// scope holds the values that a graph can take: its own so far, and those of the graphs around it.
type scope struct {
	outer   *scope
	home    *graph.Graph              // where constants go
	content map[string]*graph.Value   // by type, shape and elements
	results map[string][]*graph.Value // by operator and operands
}

// inside is the scope of a body of n. The operators of control flow see what is around them; others may not.
func (s *scope) inside(n *graph.Node, body *graph.Graph) *scope {
	in := &scope{home: body, content: map[string]*graph.Value{}, results: map[string][]*graph.Value{}}
	if n.Is("If") || n.Is("Loop") || n.Is("Scan") {
		in.outer, in.home = s, s.home
	}
	return in
}

func (s *scope) valueOf(content string) *graph.Value {
	for ; s != nil; s = s.outer {
		if v := s.content[content]; v != nil {
			return v
		}
	}
	return nil
}

func (s *scope) resultsOf(key string) []*graph.Value {
	for ; s != nil; s = s.outer {
		if out := s.results[key]; out != nil {
			return out
		}
	}
	return nil
}

// nodes goes through a graph in order. What stands for a value was met before, so it is there when it is read.
func (r *reducer) nodes(g *graph.Graph, s *scope) {
	for _, n := range g.Nodes {
		for i, v := range n.In {
			if w := r.now[v]; w != nil {
				r.p.SetInput(n, i, w)
				r.changed = true
			}
		}
		bodies := 0
		for _, a := range n.Proto.Attribute {
			for _, b := range n.Subgraphs[a.GetName()] {
				r.nodes(b, s.inside(n, b))
				bodies++
			}
		}
		if bodies > 0 {
			continue
		}
		r.place(n)
		r.target(n, s)
		r.repeated(n, s)
		for _, v := range n.Out {
			if v != nil && r.now[v] == nil {
				r.elements(v, s)
			}
		}
	}
}

// stand lets w stand for v.
func (r *reducer) stand(v, w *graph.Value) { r.now[v] = w }

// current is what stands for v.
func (r *reducer) current(v *graph.Value) *graph.Value {
	if w := r.now[v]; w != nil {
		return w
	}
	return v
}

// placing are the operators that make numbers out of the places of elements.
var placing = map[string]bool{"CumSum": true, "EyeLike": true, "NonZero": true, "Range": true, "Trilu": true}

// place notes whether the results of n are made of the places of elements.
func (r *reducer) place(n *graph.Node) {
	placed := placing[n.OpType] || slices.ContainsFunc(n.In, func(v *graph.Value) bool { return r.placed[v] })
	if placed && !n.Is("Shape") && !n.Is("Size") {
		for _, v := range n.Out {
			r.placed[v] = true
		}
	}
}

// elements finds an earlier value with the elements of v, or makes it a constant.
func (r *reducer) elements(v *graph.Value, s *scope) {
	elem := r.facts.Elem(v)
	if !countable(elem) || v.Producer.Is("Constant") {
		return
	}
	k, ok := r.facts.Known(v)
	if !ok || len(k.Ints) > maxElements {
		return
	}
	key, numbers, ok := describe(elem, k)
	switch {
	case !ok:
	case numbers != nil && r.placed[v]: // the runtime folds it, and readers of the graph see what it means
	case numbers != nil && elem != onnxpb.TensorProto_BOOL:
		r.stand(v, r.constant(s, elem, k.Shape, numbers))
		r.res.Constants++
	case s.valueOf(key) != nil:
		r.stand(v, s.valueOf(key))
		r.res.Shared++
	default:
		s.content[key] = v
	}
}

// maxElements is the size of a tensor up to which its elements are compared.
const maxElements = 64

// describe spells a value's type, shape and elements; numbers holds the latter where none is a symbol. False when an
// element equals nothing.
func describe(elem onnxpb.TensorProto_DataType, k *graph.Known) (key string, numbers []int64, ok bool) {
	var b strings.Builder
	fmt.Fprint(&b, int32(elem), k.Shape)
	numbers = make([]int64, 0, len(k.Ints))
	for _, d := range k.Ints {
		if !d.Equal(d) {
			return "", nil, false
		}
		if n, constant := d.Const(); constant && numbers != nil {
			numbers = append(numbers, n)
		} else {
			numbers = nil
		}
		b.WriteString(" ; " + d.String())
	}
	return b.String(), numbers, true
}

// constant is the one constant with the given elements that a scope has.
func (r *reducer) constant(s *scope, elem onnxpb.TensorProto_DataType, shape, x []int64) *graph.Value {
	for s.outer != nil {
		s = s.outer
	}
	key := fmt.Sprint("constant ", int32(elem), shape, x)
	if v := s.content[key]; v != nil {
		return v
	}
	defer r.p.In(s.home)()
	v := r.p.Init(tensor(elem, shape, x))
	s.content[key] = v
	return v
}

func tensor(elem onnxpb.TensorProto_DataType, shape, x []int64) *graph.Tensor {
	const name = "/shapes/constant"
	switch elem {
	case onnxpb.TensorProto_INT32:
		return graph.NewTensor(name, shape, converted(x, func(n int64) int32 { return int32(n) }))
	case onnxpb.TensorProto_BOOL:
		return graph.NewTensor(name, shape, converted(x, func(n int64) bool { return n != 0 }))
	}
	return graph.NewTensor(name, shape, x)
}

func converted[T any](x []int64, to func(int64) T) []T {
	out := make([]T, len(x))
	for i, n := range x {
		out[i] = to(n)
	}
	return out
}
