package rewrite

import (
	"fmt"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
)

// NoteOrigins tells blocks which fused operator they were expanded from, so that a rewrite can keep it.
func NoteOrigins(blocks []*attention.Block, expansions []unfuse.Expansion) {
	for _, b := range blocks {
		for i := range expansions {
			e := &expansions[i]
			if slices.Contains(e.Nodes, b.QK) && slices.Contains(e.Nodes, b.PV) {
				n, inputs, results := e.Original()
				b.Origin = &attention.Origin{Node: n, Inputs: inputs, Results: results}
			}
		}
	}
}

// releaseOrigins lets what only the operators that blocks were expanded from read fall away unless they come back.
func releaseOrigins(keep map[any]bool, plan *fusion.Plan) {
	var release func(v *graph.Value)
	release = func(v *graph.Value) {
		switch {
		case v == nil:
		case v.Producer == nil:
			delete(keep, v)
		case keep[v.Producer]:
			delete(keep, v.Producer)
			for _, x := range v.Producer.In {
				release(x)
			}
		}
	}
	for _, bp := range plan.Blocks {
		if o := bp.Block.Origin; o != nil {
			for _, v := range o.Inputs {
				release(v)
			}
		}
	}
}

// keepers are the fused operators that can say how many key/value heads they have: the lowering that they are, and the
// attribute (absent where the shape of the keys says it).
var keepers = map[string]struct {
	form fusion.Lowering
	attr string
}{
	"com.microsoft.GroupQueryAttention": {fusion.GQA, "kv_num_heads"},
	"ai.onnx.Attention":                 {fusion.OpAttention, "kv_num_heads"},
}

func keeper(n *graph.Node) string {
	if n.Is(n.OpType) {
		return "ai.onnx." + n.OpType
	}
	return n.Domain + "." + n.OpType
}

// keeps returns the lowering that the model's own operator is, when it can hold the block after the rewrite; else why not.
func (c *core) keeps() (form fusion.Lowering, misfit string) {
	o := c.b.Origin
	if o == nil {
		return "", "the block is no fused operator"
	}
	k, ok := keepers[keeper(o.Node)]
	if !ok {
		return "", fmt.Sprintf("%s has as many key/value heads as query heads", o.Node.OpType)
	}
	keys, values := readers(c.b.KeyOf, c.k), readers(c.b.ValueOf, c.v)
	order := c.neighbours()
	switch {
	case !slices.Equal(keys, values):
		return k.form, "keys and values have different groups"
	case !equal(sizes(keys, c.k.Heads())):
		return k.form, "groups are of different sizes"
	case !identity(order) && (!c.canReorder() || len(c.b.PerHead) > 0 || !rowsMove(c.b)):
		return k.form, "query heads cannot be re-ordered"
	case len(o.Results) == 0 || o.Results[0] == nil:
		return k.form, "nothing reads what it gives"
	}
	return k.form, ""
}

// keep puts the operator that the block was expanded from back in its place, with fewer key/value heads.
func (c *core) keep() error {
	e, o := c.e, c.b.Origin
	k := keepers[keeper(o.Node)]
	var attrs []*onnxpb.AttributeProto
	for _, a := range o.Node.Proto.Attribute {
		if a.GetName() == k.attr {
			a = graph.IntAttr(k.attr, int64(c.k.Heads()))
		}
		attrs = append(attrs, a)
	}
	outs := len(o.Results)
	for outs > 1 && o.Results[outs-1] == nil {
		outs--
	}
	out := e.p.Node(o.Node.OpType, o.Node.Domain, o.Node.Name, outs, o.Inputs, attrs...)
	for i, v := range o.Results[:outs] {
		if v != nil {
			e.p.Replace(v, out[i])
		}
	}
	if !identity(c.order) && !c.reorderOutput(c.order) {
		return fmt.Errorf("%v: its heads cannot be re-ordered", o.Node)
	}
	return nil
}
