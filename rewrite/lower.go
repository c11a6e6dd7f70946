package rewrite

import (
	"fmt"
	"strings"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// A core is one attention block on its way to a lowered form. After the fusion of heads the key and value operands of
// the two products carry fewer heads than the queries; a lowering makes the products fit.
type core struct {
	e    *editor
	b    *attention.Block
	k, v change
	// order is the query head at each place between the products, the natural order unless queries were re-ordered, and
	// context the one at each place of the output projection's input.
	order, context []int
	buffered       bool                          // the products cover a buffer, filled or not
	factor         float64                       // on the query projection; 0 stands for 1
	scale          float64                       // left to a fused operator; 0 stands for 1
	fused          bool                          // the core becomes one operator
	gone           map[*graph.Value]*graph.Value // what stands in the place of factors that were taken off
	kept           bool                          // the operator that the core was expanded from stays
	rotary         string                        // whether the operator turns queries and keys, or why not
	target         fusion.Runtime
}

// lowering is one form of an attention core.
type lowering struct {
	// misfit says why the form cannot hold the block, "" where it can; expand holds every block.
	misfit func(*core) string
	// single says that repeated key/value heads are bypassed even where no head is fused.
	single bool
	// reorder lets query heads be re-ordered offline so that the members of a group are neighbours.
	reorder bool
	// fused says that the form is one operator, which has a scale of its own.
	fused bool
	apply func(*core) error
}

// lowerings is the table of forms. A new lowering is a row.
var lowerings map[fusion.Lowering]lowering

func init() {
	holds := func(*core) string { return "" }
	lowerings = map[fusion.Lowering]lowering{
		fusion.Grouped:     {(*core).misfitGrouped, true, true, false, (*core).grouped},
		fusion.StaticCache: {(*core).misfitInPlace, true, true, false, (*core).inPlace},
		fusion.Expand:      {holds, false, false, false, (*core).expand},
		fusion.GQA:         {(*core).misfitGQA, true, true, true, (*core).gqa},
		fusion.OpAttention: {(*core).misfitAttention, true, true, true, (*core).standard},
	}
}

// preference is what auto tries for a target, in order, with the reason for each.
type preference struct {
	form fusion.Lowering
	why  string
}

// targets is the table of what auto prefers. The measurements are in docs/benchmarks.md.
var targets = map[fusion.Runtime][]preference{
	fusion.TargetCPU: {
		{fusion.Grouped, "fastest on CPU of the forms that keep a growing cache"},
	},
	fusion.TargetCUDA: {
		{fusion.GQA, "the runtime's fused kernel"},
		{fusion.Grouped, "queries of a group share one product"},
	},
	fusion.TargetGenAI: {
		{fusion.GQA, "the runtime binds past and present to one buffer"},
		{fusion.Grouped, "queries of a group share one product"},
	},
	fusion.TargetTransformersJS: {
		{fusion.Grouped, "operators that all of its backends have"},
	},
	fusion.TargetPortable: {
		{fusion.OpAttention, "an operator of the standard, which runtimes may fuse"},
		{fusion.Grouped, "plain ai.onnx operators of the model's own opset"},
	},
}

// choose picks the form of a block: the one that is asked for, or what its target prefers of those that can hold the
// block. why says what led to it.
func (c *core) choose(asked fusion.Lowering) (form fusion.Lowering, why string, err error) {
	if own, misfit := c.keeps(); misfit == "" && (asked == own || asked == fusion.Auto || asked == "") {
		c.kept = true
		return own, fmt.Sprintf("the model's %s is kept", c.b.Origin.Node.OpType), nil
	}
	if asked != fusion.Auto && asked != "" {
		low, ok := lowerings[asked]
		if !ok {
			return "", "", fmt.Errorf("lowering %q is not known", asked)
		}
		misfit := low.misfit(c)
		if misfit == "" {
			return asked, "asked for", nil
		}
		why = fmt.Sprintf("not %s: %s", asked, misfit)
		if asked != fusion.Grouped && c.misfitGrouped() == "" {
			return fusion.Grouped, why, nil
		}
		return fusion.Expand, why, nil
	}
	prefer, ok := targets[c.target]
	if !ok {
		return "", "", fmt.Errorf("target %q is not known", c.target)
	}
	var passed []string
	for _, p := range prefer {
		misfit := lowerings[p.form].misfit(c)
		if p.form == fusion.OpAttention {
			misfit = c.currentAttention() // an upgrade has to be asked for
		}
		if misfit == "" {
			return p.form, strings.Join(append(passed, fmt.Sprintf("%s: %s", c.target, p.why)), "; "), nil
		}
		passed = append(passed, fmt.Sprintf("not %s: %s", p.form, misfit))
	}
	return fusion.Expand, strings.Join(passed, "; "), nil
}

// readers returns, for each query head, the fused head it reads.
func readers(of []int, c change) []int {
	m := c.Map()
	out := make([]int, len(of))
	for h, kv := range of {
		out[h] = m[kv]
	}
	return out
}
