package rewrite

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// attentionOpset is the first opset with ai.onnx Attention.
const attentionOpset = 23

// misfitAttention says why ai.onnx Attention cannot hold the core.
func (c *core) misfitAttention() string {
	if _, misfit := c.fusedOperands(); misfit != "" {
		return misfit
	}
	if c.e.opset < attentionOpset {
		if err := upgradable(c.e.g.Model, attentionOpset); err != nil {
			return fmt.Sprintf("it needs opset %d: %v", attentionOpset, err)
		}
	}
	return ""
}

// currentAttention is misfitAttention for a model that has the operator without an upgrade.
func (c *core) currentAttention() string {
	if c.e.opset < attentionOpset {
		return fmt.Sprintf("the model imports opset %d, the operator is in opset %d", c.e.opset, attentionOpset)
	}
	return c.misfitAttention()
}

// standard makes the core one ai.onnx Attention:
//
//	Q [B, H, S, d], K and V [B, G, S, d], mask [1 or B, 1 or H, S, T], pasts [B, G, P, d] → [B, H, S, d], presents [B, G, T, d]
func (c *core) standard() error {
	e, b := c.e, c.b
	f, _ := c.fusedOperands()
	total, _, err := c.grown(f)
	if err != nil {
		return err
	}
	mask, err := c.bias(f, total)
	if err != nil {
		return err
	}
	name := b.QK.Name + "/attention"
	in := []*graph.Value{f.q.v, c.headsFirst(f.k, name+"/key"), c.headsFirst(f.v, name+"/value"), mask}
	outs := 1
	if b.KeyCache != nil {
		in, outs = append(in, b.KeyCache.Past, b.ValCache.Past), 3
	} else if mask == nil {
		in = in[:3]
	}
	attrs := []*onnxpb.AttributeProto{graph.FloatAttr("scale", float32(c.operatorScale(f)))}
	if f.softcap > 0 {
		attrs = append(attrs, graph.FloatAttr("softcap", float32(f.softcap)))
	}
	out := e.p.Node("Attention", "", name, outs, in, attrs...)
	if err := c.seen(c.shadowed(), f, total); err != nil {
		return err
	}
	if outs == 3 {
		e.p.Replace(b.KeyCache.Present, out[1])
		e.p.Replace(b.ValCache.Present, out[2])
	}
	x := out[0]
	if !identity(c.order) && !c.reorderOutput(c.order) {
		x = e.p.Op("Gather", name+"/ungroup", []*graph.Value{x, e.p.Ints(name+"/ungroup_index", ints(inverse(c.order))...)}, graph.IntAttr("axis", 1))
	}
	e.p.Replace(b.PV.Out[0], x)
	if e.opset < attentionOpset {
		e.upgrade = attentionOpset
	}
	return nil
}

// grown is total for a cache that grows.
func (c *core) grown(f fusedInputs) (total *graph.Value, buffers bool, err error) {
	s := c.e.fusedOps()
	seq := s.sameSize(f.k.v, f.k.seq)
	if c.b.KeyCache == nil {
		return seq, false, nil
	}
	return s.once("grown", func() *graph.Value {
		return s.op("Add", "total", []*graph.Value{s.size(c.b.KeyCache.Past, 2), seq})
	}), false, nil
}

// headsFirst brings a wire into the form [batch, heads, sequence, channels].
func (c *core) headsFirst(w wire, name string) *graph.Value {
	perm := []int{0, w.heads, w.seq, w.channel}
	if identity(perm) {
		return w.v
	}
	return c.e.p.Op("Transpose", name, []*graph.Value{w.v}, graph.IntsAttr("perm", ints(perm)...))
}
