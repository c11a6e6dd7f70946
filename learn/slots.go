package learn

import (
	"fmt"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// Slots are the weights of blocks as the second branch of a copy takes them, by input name.
type Slots map[string]*ort.Tensor

// slots returns the tied weights of some blocks under their plans: each head has the weights of its group, as
// rewrite.Tie makes them. A block without a plan has its own.
func (l *Lab) slots(plans map[int]*fusion.BlockPlan) (map[int]Slots, error) {
	m, report, err := l.load()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	blocks := report.Blocks
	plan := &fusion.Plan{}
	inputs := map[int][]constant{}
	var order []int
	for i := range plans {
		order = append(order, i)
	}
	slices.Sort(order)
	for _, i := range order {
		inputs[i] = operands(blocks[i])
		if p := plans[i]; p != nil {
			plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: blocks[i], Key: p.Key, Value: p.Value, Learned: p.Learned})
		}
	}
	if len(plan.Blocks) > 0 {
		if err := rewrite.Tie(m, plan); err != nil {
			return nil, err
		}
	}
	out := map[int]Slots{}
	for _, i := range order {
		out[i] = Slots{}
		for _, o := range inputs[i] {
			t := o.node.In[o.input].Const()
			if t == nil { // it is cut out of a constant, and the plan leaves it as it was
				t = o.tensor
			}
			raw, err := t.Bytes()
			if err != nil {
				return nil, fmt.Errorf("block %q: %w", blocks[i].Name, err)
			}
			out[i][slotName(o.operand)] = &ort.Tensor{DType: t.DType(), Shape: slices.Clone(t.Dims()), Raw: slices.Clone(raw)}
		}
	}
	return out, nil
}
