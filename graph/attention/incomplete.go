package attention

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

// incomplete says why a softmax is not between two products, and whether it is attention all the same, which the walk
// does not understand. It is not where its scores come from one projection or none (a classifier, a router or gate,
// pooling with a learned query) and where nothing like a product with values follows; scores with heads always are.
func incomplete(f *survey, sm *graph.Node, products []*graph.Node, pv, through *graph.Node) (st *stop, attention bool) {
	x := sm.Input(0)
	headed := slices.ContainsFunc(products, func(n *graph.Node) bool { return headed(f, n) })
	if len(products) > 0 {
		if through != nil {
			return &stop{through, sm.Out[0], fmt.Sprintf("%v after the softmax is not one the walk can follow heads through", through)}, headed
		}
		return &stop{sm, sm.Out[0], "no product with values follows the softmax"}, headed
	}
	why := "no product of queries and keys leads to the softmax"
	st = &stop{sm, x, why}
	climb(x, func(n *graph.Node) {
		switch {
		case attention:
		case pv != nil && multipliesInside(f, n):
			st, attention = &stop{n, x, fmt.Sprintf("the product of queries and keys lies in the branches of %v, in a form for each", n)}, true
		case pv != nil && opaqueProduct(n):
			st, attention = &stop{n, x, fmt.Sprintf("%v before the softmax is a product that the walk cannot read", n)}, true
		case isProjection(f, n) && pv != nil && mixesHeads(f, n):
			st, attention = &stop{n, n.Out[0], fmt.Sprintf("the scores of all heads are mixed by %v (talking heads), so no head stands alone", n)}, true
		case isProjection(f, n):
			st = &stop{n, n.Out[0], why + fmt.Sprintf(": its scores are those of the projection %v", n)}
		case st.node == sm:
			st = &stop{n, n.Out[0], why + fmt.Sprintf(": they come from %v", n)}
		}
	})
	return st, attention
}

// multipliesInside reports whether a node with bodies gives what one of them makes by a product of two computed operands.
// Where the branches of an If are two forms of one product, as the grouped lowering leaves them, package unfuse has put one in its place.
func multipliesInside(f *survey, n *graph.Node) bool {
	for _, bodies := range n.Subgraphs {
		for _, g := range bodies {
			if slices.ContainsFunc(g.Outputs, func(v *graph.Value) bool { return len(productsAbove(f, v)) > 0 }) {
				return true
			}
		}
	}
	return false
}

// opaque are products in a form that the walk does not know, unless they were expanded.
var opaque = map[string]bool{"Einsum": true, "FusedMatMul": true, "TransposeMatMul": true, "MatMulInteger": true, "MatMulIntegerToFloat": true, "QLinearMatMul": true}

// opaqueProduct reports whether n multiplies two computed operands in such a form.
func opaqueProduct(n *graph.Node) bool {
	computed := 0
	for _, v := range n.In {
		if v != nil && v.Const() == nil {
			computed++
		}
	}
	return opaque[n.OpType] && computed > 1
}

// headed reports whether the operands of a product are split into heads.
func headed(f *survey, n *graph.Node) bool {
	_, t, s, st := follow(f, n.In[0], "queries", false)
	if st != nil {
		return false
	}
	_, columns, why := t.heads(s, s.shape[:len(s.shape)-2], 0)
	return why == "" && len(columns) > 1
}

// mixesHeads reports whether a projection with a square weight takes in scores, the product of queries and keys.
func mixesHeads(f *survey, n *graph.Node) bool {
	p, ok := projectionOf(f, n)
	if !ok || p.Tensor.Dims()[0] != p.Tensor.Dims()[1] {
		return false
	}
	return slices.ContainsFunc(productsAbove(f, p.Input), func(n *graph.Node) bool { return headed(f, n) })
}

func isProjection(f *survey, n *graph.Node) bool {
	_, ok := projectionOf(f, n)
	return ok
}
