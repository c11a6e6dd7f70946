package shapes

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// repeatable are the operators that give the same bits whenever they are given the same, and that shapes, positions and
// masks are made with.
var repeatable = func() map[string]bool {
	ops := map[string]bool{}
	for _, op := range strings.Fields("Abs Add And Cast Ceil Clip Concat ConstantOfShape Cos CumSum Div Equal Expand Flatten Floor Gather " +
		"GatherElements GatherND Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceMax ReduceMin " +
		"ReduceProd ReduceSum Reshape Shape Sin Size Slice Split Squeeze Sub Tile Transpose Trilu Unsqueeze Where Xor") {
		ops[op] = true
	}
	return ops
}()

// repeated lets the results of an earlier node that does the same stand for those of n. Activations are left out: a model
// that computes them twice does so on purpose.
func (r *reducer) repeated(n *graph.Node, s *scope) {
	if !n.Is(n.OpType) || !repeatable[n.OpType] {
		return
	}
	derived := true
	for _, v := range n.In {
		derived = derived && (v == nil || r.derived[v] || countable(r.facts.Elem(v)) || v.Const() != nil)
	}
	for _, v := range n.Out {
		if v == nil || !derived && !countable(r.facts.Elem(v)) {
			return
		}
	}
	for _, v := range n.Out {
		r.derived[v] = true
	}
	key, ok := r.key(n)
	if !ok {
		return
	}
	earlier := s.resultsOf(key)
	if earlier == nil {
		s.results[key] = n.Out
		return
	}
	for i, v := range n.Out {
		r.stand(v, r.current(earlier[i]))
	}
	r.res.Shared += len(n.Out)
}

// key spells a node's operator, attributes and operands.
func (r *reducer) key(n *graph.Node) (string, bool) {
	var b strings.Builder
	fmt.Fprint(&b, n.OpType, " ", len(n.Out))
	attrs := slices.Clone(n.Proto.Attribute)
	slices.SortFunc(attrs, func(x, y *onnxpb.AttributeProto) int { return cmp.Compare(x.GetName(), y.GetName()) })
	for _, a := range attrs {
		if a.T != nil {
			t, ok := spelled(n.TensorAttr(a.GetName()))
			if !ok {
				return "", false
			}
			fmt.Fprintf(&b, " %s=%s", a.GetName(), t)
			continue
		}
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
		if err != nil || a.RefAttrName != nil {
			return "", false
		}
		fmt.Fprintf(&b, " %q", text)
	}
	for _, v := range n.In {
		if t := v.Const(); t != nil {
			if text, ok := spelled(t); ok {
				fmt.Fprintf(&b, " (%s)", text)
				continue
			}
		}
		fmt.Fprintf(&b, " %p", r.current(v))
	}
	return b.String(), true
}

// spelled is a tensor's type, shape and bytes, false for a large one.
func spelled(t *graph.Tensor) (string, bool) {
	if n := t.Len(); n < 0 || n > maxElements || graph.ElementBits(t.DType()) == 0 {
		return "", false
	}
	data, err := t.Bytes()
	if err != nil {
		return "", false
	}
	return fmt.Sprintf("%d%v%x", int32(t.DType()), t.Dims(), data), true
}
