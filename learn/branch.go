package learn

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// A copy of the model can hold two branches: the original, and one in which some blocks have other weights, which are
// inputs of the graph. Heads that share weights have equal ones there (the tied reference of a rewrite), so that one
// graph serves every configuration. What no such weight changes is computed once for both.

// constant is an operand with what it reads, which need not be an initializer: constants may be cut out of others by nodes.
type constant struct {
	operand
	tensor *graph.Tensor
}

// operands lists the inputs through which a block reads its projections' weights and biases.
func operands(b *attention.Block) []constant {
	var out []constant
	seen := map[operand]bool{}
	add := func(n *graph.Node, input int, t *graph.Tensor) {
		if o := (operand{n, input}); !seen[o] {
			seen[o] = true
			out = append(out, constant{o, t})
		}
	}
	projection := func(p *attention.Projection) {
		add(p.Reader, p.Operand, p.Tensor)
		if p.BiasTensor != nil {
			add(p.Node, p.BiasInput, p.BiasTensor)
		}
	}
	for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
		projection(p.Projection)
		for _, s := range p.Biases {
			add(s.Node, s.Input, s.Tensor)
		}
		for _, a := range p.Adapters {
			projection(a.Projection)
		}
	}
	if b.Output != nil {
		projection(b.Output.Projection)
		if s := b.Output.Bias; s != nil {
			add(s.Node, s.Input, s.Tensor)
		}
	}
	return out
}

// slotName names the input of a weight operand; it is the same in every copy of the model.
func slotName(o operand) string {
	return fmt.Sprintf("learn/weight/%s/%d", o.node.Out[0].Name, o.input)
}

// fork prepares the second branch: the weights of the first n blocks that can be rewritten become inputs of the graph.
func (b *bench) fork(n int) {
	mark := func(v *graph.Value) {
		for queue := []*graph.Value{v}; len(queue) > 0; queue = queue[1:] {
			for _, u := range queue[0].Users() {
				node := u.Node
				for node != nil && node.Graph != b.g {
					node = node.Graph.Owner
				}
				if node == nil {
					continue
				}
				for _, o := range node.Out {
					if o != nil && !b.depend[o] {
						b.depend[o] = true
						queue = append(queue, o)
					}
				}
			}
		}
	}
	for _, block := range b.blocks[:n] {
		if block.Fixed != "" {
			continue
		}
		for _, o := range operands(block) {
			dims := make([]any, len(o.tensor.Dims()))
			for i, d := range o.tensor.Dims() {
				dims[i] = d
			}
			b.slots[o.operand] = b.input(slotName(o.operand), o.tensor.DType(), dims...)
			for _, out := range o.node.Out {
				if out != nil && !b.depend[out] {
					b.depend[out] = true
					mark(out)
				}
			}
		}
	}
}

// now returns what v is in the second branch; v itself where both agree. Nodes are cloned as far as they are needed.
func (b *bench) now(v *graph.Value) (*graph.Value, error) {
	if v == nil || !b.depend[v] {
		return v, nil
	}
	if c, ok := b.clones[v]; ok {
		return c, nil
	}
	n := v.Producer
	if len(n.Subgraphs) > 0 {
		return nil, fmt.Errorf("%v has a body, and what it computes depends on the attention weights; that is not supported by learning", n)
	}
	in := make([]*graph.Value, len(n.In))
	for i, x := range n.In {
		if slot, ok := b.slots[operand{n, i}]; ok {
			in[i] = slot
			continue
		}
		c, err := b.now(x)
		if err != nil {
			return nil, err
		}
		in[i] = c
	}
	outs := make([]string, len(n.Out))
	for i, o := range n.Out {
		if o != nil {
			outs[i] = b.g.FreshName("learn/now/" + o.Name)
		}
	}
	name := n.Name
	if name != "" {
		name = "learn/now/" + name
	}
	c := b.g.AddNode(n.OpType, n.Domain, name, in, outs, n.Proto.Attribute...)
	for i, o := range n.Out {
		if o != nil {
			b.clones[o], b.origin[c.Out[i]] = c.Out[i], o
		}
	}
	return b.clones[v], nil
}
