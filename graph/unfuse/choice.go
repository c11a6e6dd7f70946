package unfuse

import (
	"fmt"
	"slices"

	"onnx-dha/graph"
)

func init() {
	rows["If"] = row{
		attrs: []string{"then_branch", "else_branch"}, required: 1, inputs: 1, outputs: 1, expand: otherwise, applies: choosesForm, anyOpset: true,
	}
}

// choosesForm reports whether an If takes one of two forms of a product: either branch cuts, moves, repeats and multiplies the
// same two operands and reads nothing else that is computed, and the second does it in one product. Whether both give the
// same is seen when it is expanded.
func choosesForm(n *graph.Node) bool {
	then, els := branch(n, "then_branch"), branch(n, "else_branch")
	if then == nil || els == nil || len(n.Out) != 1 {
		return false
	}
	few, _ := factors(then)
	many, products := factors(els)
	return len(many) == 2 && products == 1 && len(few) == 2 && slices.Contains(few, many[0]) && slices.Contains(few, many[1])
}

// branch returns a body of an If with one output and no nodes that have bodies, nil when it is another.
func branch(n *graph.Node, attr string) *graph.Graph {
	if !n.Is("If") || len(n.Subgraphs[attr]) != 1 {
		return nil
	}
	g := n.Subgraphs[attr][0]
	if len(g.Outputs) != 1 || g.Outputs[0] == nil || len(g.Inputs) > 0 || slices.ContainsFunc(g.Nodes, func(n *graph.Node) bool { return len(n.Subgraphs) > 0 }) {
		return nil
	}
	return g
}

// factors lists the computed values from outside that a body's output is made of, and counts the products on the way;
// none where an operator on the way is not one of steps.
func factors(body *graph.Graph) (from []*graph.Value, products int) {
	seen := map[*graph.Value]bool{}
	queue := []*graph.Value{body.Outputs[0]}
	for i := 0; i < len(queue); i++ {
		v := queue[i]
		switch {
		case v == nil || v.Const() != nil:
			return nil, 0
		case seen[v]:
			continue
		}
		seen[v] = true
		if v.Graph != body {
			from = append(from, v)
			continue
		}
		n := v.Producer
		if n == nil || !n.Is(n.OpType) || steps[n.OpType].take == nil {
			return nil, 0
		}
		if n.OpType == "MatMul" {
			products++
		}
		for j, x := range n.In {
			if steps[n.OpType].data(j) {
				queue = append(queue, x)
			}
		}
	}
	return from, products
}

// otherwise puts the second branch of an If, which is right for every length, in its place.
func otherwise(w *writer) error {
	if err := w.sameProduct(branch(w.n, "then_branch"), branch(w.n, "else_branch")); err != nil {
		return err
	}
	body := branch(w.n, "else_branch")
	values := map[*graph.Value]*graph.Value{nil: nil}
	take := func(v *graph.Value) (*graph.Value, error) {
		x, ok := values[v]
		switch {
		case ok:
			return x, nil
		case v.Graph != body:
			return v, nil
		case v.Init == nil:
			return nil, fmt.Errorf("its branch reads %q, which is no plain constant", v.Name)
		}
		t, err := clone(v.Init, w.base+"/"+v.Name)
		if err != nil {
			return nil, err
		}
		values[v] = w.p.Init(t)
		return values[v], nil
	}
	for _, n := range body.Nodes {
		if len(n.Out) == 0 {
			continue
		}
		var in []*graph.Value
		for _, v := range n.In {
			x, err := take(v)
			if err != nil {
				return err
			}
			in = append(in, x)
		}
		out := w.p.Node(n.OpType, n.Domain, w.base+"/"+n.OpType, len(n.Out), in, n.Proto.Attribute...)
		node := out[0].Producer
		w.exp.Nodes = append(w.exp.Nodes, node)
		for i, v := range n.Out {
			if v == nil {
				node.Out[i] = nil
				continue
			}
			values[v] = out[i]
		}
	}
	w.result(0, values[body.Outputs[0]])
	w.exp.fixed = "an If chooses between two forms of one of its products, as a rewrite leaves them"
	return nil
}

// Fixed says why what the given nodes are part of cannot be rewritten, because of the expansions that hold them; empty
// when they do not stand in the way.
func Fixed(expansions []Expansion, nodes ...*graph.Node) string {
	for i := range expansions {
		e := &expansions[i]
		if e.fixed != "" && slices.ContainsFunc(nodes, func(n *graph.Node) bool { return slices.Contains(e.Nodes, n) }) {
			return e.fixed
		}
	}
	return ""
}
