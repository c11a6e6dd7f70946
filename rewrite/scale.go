package rewrite

import (
	"slices"

	"onnx-dha/graph"
)

// factor is a node that multiplies its input data by a number.
type factor struct {
	node  *graph.Node
	data  int
	value float64
}

// foldScale takes constant factors off the keys, the scores and the queries and puts them into the query projection,
//
//	(s₁·Q)(s₂·K)ᵀ·s₃ = Q'Kᵀ with W_Q' = s₁s₂s₃·W_Q and b_Q' = s₁s₂s₃·b_Q,
//
// where everything between the projection and the product is linear in the queries. Otherwise keys and scores, which are
// as long as the cache, are relieved of their factors and the queries multiplied by them. (The runtime makes a factor on
// scores or queries an alpha of the product, which then takes a slower kernel; one on keys passes over the whole cache.)
func (c *core) foldScale() error {
	q := c.b.QK.In[0]
	queries := c.factorsBehind(q)
	scores, choices := c.factorsAfter(c.b.QK.Out[0])
	all := slices.Concat(c.factorsBehind(c.b.QK.In[1]), scores)
	fold := c.linear()
	if fold || c.fused {
		all = append(all, queries...)
	} else if slices.ContainsFunc(q.Users(), func(u graph.Use) bool { return u.Node != c.b.QK && !u.Node.Is("Shape") }) {
		return nil
	}
	total := 1.0
	c.gone = map[*graph.Value]*graph.Value{}
	for _, f := range all {
		total *= f.value
		c.gone[f.node.Out[0]] = f.node.In[f.data]
	}
	for _, f := range all {
		v := f.node.In[f.data]
		for c.gone[v] != nil { // a factor on a factor, as under a soft-cap
			v = c.gone[v]
		}
		c.e.p.Replace(f.node.Out[0], v)
	}
	for _, ch := range choices {
		x, _ := c.e.facts.Scalar(ch.node.In[ch.other])
		for _, f := range scores[ch.before:] {
			x *= f.value
		}
		t, err := graph.FromFloat64s(ch.node.In[ch.other].Name+"/scaled", c.e.facts.Elem(ch.node.In[ch.other]), nil, []float64{x})
		if err != nil {
			return err
		}
		c.e.setInput(ch.node, ch.other, c.e.p.Init(t))
	}
	switch {
	case total == 1:
	case fold:
		c.factor = total
	case c.fused:
		c.scale = total
	default:
		t, err := graph.FromFloat64s(q.Name+"/factor", c.e.facts.Elem(q), nil, []float64{total})
		if err != nil {
			return err
		}
		x := c.e.p.Op("Mul", q.Name+"/scaled", []*graph.Value{q, c.e.p.Init(t)})
		c.e.p.Replace(q, x, x.Producer)
	}
	return nil
}

// formOnly are operators that move elements about, with their data in input 0.
var formOnly = map[string]bool{
	"Identity": true, "Cast": true, "Reshape": true, "Transpose": true, "Unsqueeze": true, "Squeeze": true, "Flatten": true, "Expand": true, "Tile": true,
}

// scaling returns n as a factor on one of its inputs; ok is false when it is none, or something else reads the product.
func (c *core) scaling(n *graph.Node) (f factor, ok bool) {
	if !n.Is("Mul") && !n.Is("Div") || len(n.In) != 2 || len(n.Out) != 1 || n.Graph != c.b.QK.Graph || len(n.Out[0].Users()) != 1 || n.Out[0].IsOutput() {
		return f, false
	}
	for data, x := range n.In {
		v, known := c.e.facts.Scalar(n.In[1-data])
		shape, ranked := c.e.facts.Shape(n.In[1-data])
		out, _ := c.e.facts.Shape(x)
		switch {
		case !known || !ranked || v == 0 || len(shape) > len(out):
		case n.Is("Mul"):
			return factor{n, data, v}, true
		case data == 0:
			return factor{n, data, 1 / v}, true
		}
	}
	return f, false
}

// factorsBehind lists the factors met on the way back from v, as far as nothing but the form changes in between.
func (c *core) factorsBehind(v *graph.Value) []factor {
	var out []factor
	for v.Producer != nil && v.Const() == nil && v != c.b.Query.Projection.Output && v != c.b.Key.Projection.Output {
		n := v.Producer
		if f, ok := c.scaling(n); ok {
			out = append(out, f)
			v = n.In[f.data]
			continue
		}
		if !formOnly[n.OpType] || !n.Is(n.OpType) || n.Graph != c.b.QK.Graph {
			break
		}
		v = n.In[0]
	}
	return out
}

// choice is a Where between scores and a number, its input other; before is how many factors come before it.
type choice struct {
	node          *graph.Node
	other, before int
}

// factorsAfter lists the factors on scores before anything is added to them, and the choices on the way, whose numbers have
// the factors that come after.
func (c *core) factorsAfter(v *graph.Value) (out []factor, choices []choice) {
	for {
		var next *graph.Node
		for _, u := range v.Users() {
			if u.Node != nil && u.Node.Is("Shape") {
				continue
			}
			if next != nil || u.Node == nil {
				return out, choices[:leading(choices, len(out))]
			}
			next = u.Node
		}
		if next == nil {
			return out, choices[:leading(choices, len(out))]
		}
		f, ok := c.scaling(next)
		switch {
		case ok && next.In[f.data] == v:
			out = append(out, f)
		case c.chosen(next, v) > 0:
			choices = append(choices, choice{next, c.chosen(next, v), len(out)})
		case !formOnly[next.OpType] || !next.Is(next.OpType) || next.In[0] != v || next.Graph != c.b.QK.Graph:
			return out, choices[:leading(choices, len(out))]
		}
		v = next.Out[0]
	}
}

// leading counts the choices that have a factor after them.
func leading(choices []choice, factors int) int {
	n := 0
	for n < len(choices) && choices[n].before < factors {
		n++
	}
	return n
}

// chosen is the input of n that holds a number, when n chooses between that and the scores v; 0 when it does not.
func (c *core) chosen(n *graph.Node, v *graph.Value) int {
	if !n.Is("Where") || n.Graph != c.b.QK.Graph || n.In[0] == v {
		return 0
	}
	other := 1
	if n.In[1] == v {
		other = 2
	}
	if _, ok := c.e.facts.Scalar(n.In[other]); !ok {
		return 0
	}
	return other
}

// linear reports whether a factor on the query projection comes out on the queries: everything in between is linear, what
// is added is part of the projection, and nobody else sees the queries or their weight, of which no other block takes a part.
func (c *core) linear() bool {
	p := c.b.Query
	proj := p.Projection
	if _, float := codecs[proj.Tensor.DType()]; !c.owns(proj) || !float || proj.Code != nil || len(proj.Weight.Users()) > 1 || len(p.Readers) > 0 {
		return false
	}
	if proj.GemmBias != nil && (proj.BiasTensor == nil || proj.BiasTensor.Len() != int64(proj.Columns)) {
		return false
	}
	on := func(v *graph.Value) bool {
		_, ok := p.Wires[v]
		return v != nil && ok
	}
	for _, n := range p.Nodes {
		if n == proj.Node {
			continue
		}
		sides := 0
		for i, x := range n.In {
			bias := false
			for _, b := range p.Biases {
				bias = bias || b.Node == n && b.Input == i
			}
			if x != nil && !on(x) && !bias {
				sides++
			}
		}
		switch n.OpType {
		case "Slice", "Split", "Gather", "Neg":
		case "Concat", "Add", "Sub", "Sum":
			if sides > 0 {
				return false
			}
		case "Mul":
			if sides != 1 {
				return false
			}
		case "Div":
			if sides != 1 || on(n.In[1]) {
				return false
			}
		default:
			if !formOnly[n.OpType] {
				return false
			}
		}
		if !n.Is(n.OpType) || !c.alone(n) {
			return false
		}
	}
	return true
}

// alone reports whether what n makes of the queries is read on their way to the product only.
func (c *core) alone(n *graph.Node) bool {
	p := c.b.Query
	for _, o := range n.Out {
		l, ok := p.Wires[o]
		if o == nil || !ok || !l.Pure {
			continue
		}
		for _, u := range o.Users() {
			if u.Node == nil || u.Node != c.b.QK && !u.Node.Is("Shape") && !slices.Contains(p.Nodes, u.Node) {
				return false
			}
		}
	}
	return true
}
