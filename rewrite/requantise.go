package rewrite

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/quant"
)

// Requantised is a quantised weight of which a rewrite made other numbers.
type Requantised struct {
	Block  string
	Part   string // what it projects: query, key, value, output, joined by "+" where a weight is packed
	Weight string // the initializer of the codes
	Scheme string // how it is stored, before and after
	code   *quant.Recoded
}

// part names what a projection of a block is for.
func part(p *attention.Projection, b *attention.Block) string {
	var parts []string
	for _, x := range []struct {
		name string
		path *attention.Path
	}{{"query", b.Query}, {"key", b.Key}, {"value", b.Value}} {
		if x.path.Projection.Node == p.Node {
			parts = append(parts, x.name)
		}
		for _, a := range x.path.Adapters {
			if a.Projection.Node == p.Node {
				parts = append(parts, x.name+" adapter")
			}
		}
	}
	if len(parts) == 0 {
		return "output"
	}
	return strings.Join(parts, "+")
}

// Rounding is what quantising the weight again changed. Numbers that are copied keep their codes and are not counted.
func (r Requantised) Rounding() (quant.Rounding, error) { return r.code.Rounding() }

// known is the constant behind v, also one that is dequantised.
func (e *editor) known(v *graph.Value) *graph.Tensor {
	if t := e.facts.Const(v); t != nil {
		return t
	}
	return quant.Numbers(e.facts, v)
}

// origins returns, for every row, the old one that it is a copy of, -1 for others.
func (r rows) origins() []int {
	out := make([]int, len(r))
	for i, ts := range r {
		if out[i] = -1; len(ts) == 1 && ts[0].weight == 1 && ts[0].from == nil {
			out[i] = ts[0].at
		}
	}
	return out
}

// unit returns the largest number of neighbouring columns of a projection that stay together whatever becomes of its
// heads: each head of the block's paths is made of stretches of as many that begin at multiples of it. It depends on
// where heads lie and not on what is done to them, so that a rewrite and its tied reference agree on it.
func unit(p *attention.Projection, b *attention.Block) int {
	n := 0
	for _, path := range []*attention.Path{b.Query, b.Key, b.Value} {
		for _, x := range append([]*attention.Path{path}, path.Adapters...) {
			if x.Projection.Node == p.Node {
				n = stretch(n, path.Columns)
			}
		}
	}
	return n
}

// stretch is the largest divisor of n (of everything when n is 0) such that heads are made of neighbours in stretches of
// as many that begin at multiples of it.
func stretch(n int, heads [][]int) int {
	gcd := func(a, b int) int {
		for b != 0 {
			a, b = b, a%b
		}
		return a
	}
	for _, head := range heads {
		for i, c := range head {
			if i == 0 || c != head[i-1]+1 { // a stretch begins
				n = gcd(gcd(n, c), i)
			}
		}
		n = gcd(n, len(head))
	}
	return n
}

// distinct returns the columns that a projection's weight has after all changes, each once: those of no changed path as
// they are, then those of the new heads. The rewritten model and its tied reference hold these, however they are packed.
func distinct(proj *attention.Projection, changes []change) rows {
	altered := make([]bool, proj.Columns)
	var r rows
	for _, c := range changes {
		if !c.alters() {
			continue
		}
		for _, head := range c.path.Columns {
			for _, col := range head {
				altered[col] = true
			}
		}
		for g := range c.Groups {
			for ch := range c.path.Columns[0] {
				r = append(r, c.columns(g, ch, c.learned))
			}
		}
	}
	for col, done := range altered {
		if !done {
			r = append(r, []term{{at: col, weight: 1}})
		}
	}
	return r
}

// recode makes the stored form of a quantised weight whose columns (or rows: axis 0) are r. all are those of everything
// that the projection becomes when r is a part of it, nil otherwise.
func (e *editor) recode(p *attention.Projection, axis int, r, all rows) (*quant.Recoded, error) {
	t, err := mix(p.Tensor, axis, r)
	if err != nil {
		return nil, err
	}
	c := quant.Change{Axis: axis, From: r.origins(), Mixed: t, Unit: unit(p, e.of)}
	if axis == 0 {
		c.Unit = stretch(0, e.of.Output.Rows)
	}
	if axis == 0 && !p.Code.Movable(0, 1) && !slices.ContainsFunc(c.From, func(f int) bool { return f >= 0 }) {
		// Rows that are all new are as many new columns, which take no heed of where rows lie.
		c.Axis, c.From, c.Unit = 1, slices.Repeat([]int{-1}, p.Columns), 0
	}
	if all != nil {
		if c.All, err = mix(p.Tensor, axis, all); err != nil {
			return nil, err
		}
		c.Kept = slices.ContainsFunc(all.origins(), func(f int) bool { return f >= 0 })
	}
	code, err := p.Code.Recode(c)
	if err != nil {
		return nil, err
	}
	for i := range code.Constants { // what is made of the same weights in the same way is made once
		switch {
		case t.Recipe == "" || c.All != nil && c.All.Recipe == "":
		case c.All != nil:
			code.Constants[i].Recipe = fmt.Sprintf("%s %d %d %d %s of %s", p.Weight.Name, i, c.Axis, c.Unit, t.Recipe, c.All.Recipe)
		default:
			code.Constants[i].Recipe = fmt.Sprintf("%s %d %d %d %s", p.Weight.Name, i, c.Axis, c.Unit, t.Recipe)
		}
	}
	e.requantised = append(e.requantised, Requantised{Block: e.of.Name, Part: part(p, e.of), Weight: p.Weight.Name, Scheme: p.Code.String(), code: code})
	return code, nil
}

// setCode gives a projection with a quantised weight other columns, or rows. What something else reads too is left alone
// and made a second time for this projection.
func (e *editor) setCode(p *attention.Projection, axis int, r rows) error {
	code, err := e.recode(p, axis, r, nil)
	if err != nil {
		return err
	}
	last := len(p.Nodes) - 1
	reader := p.Code.Stored[0].Node
	alone := reader == p.Nodes[last] || len(changedAttrs(reader, code.Attrs)) == 0
	for _, n := range p.Nodes[:last] {
		for _, u := range n.Out[0].Users() {
			alone = alone && u.Node != nil && slices.Contains(p.Nodes, u.Node)
		}
	}
	constants := e.stored(p, code)
	if alone {
		for _, c := range p.Code.Stored {
			e.p.SetInput(c.Node, c.Input, constants[graph.Use{Node: c.Node, Index: c.Input}])
		}
		for _, a := range changedAttrs(reader, code.Attrs) {
			e.p.SetAttr(reader, a)
		}
		return nil
	}
	made := e.again(p.Nodes[:last], constants, reader, code.Attrs)
	for i, v := range p.Nodes[last].In {
		if x := made[v]; x != nil {
			e.p.SetInput(p.Nodes[last], i, x)
		} else if x := constants[graph.Use{Node: p.Nodes[last], Index: i}]; x != nil {
			e.p.SetInput(p.Nodes[last], i, x)
		}
	}
	return nil
}

// stored makes initializers of a recoded weight, by the inputs that read them.
func (e *editor) stored(p *attention.Projection, code *quant.Recoded) map[graph.Use]*graph.Value {
	out := map[graph.Use]*graph.Value{}
	for i, c := range p.Code.Stored {
		out[graph.Use{Node: c.Node, Index: c.Input}] = e.constant(c.Value(), code.Constants[i])
	}
	return out
}

// changedAttrs are those that n has with another value.
func changedAttrs(n *graph.Node, attrs []*onnxpb.AttributeProto) []*onnxpb.AttributeProto {
	return slices.DeleteFunc(slices.Clone(attrs), func(a *onnxpb.AttributeProto) bool { return n.Int(a.GetName(), -1) == a.GetI() })
}

// again makes nodes a second time with other constants, reader with other attributes too. It returns the new values by the
// old ones.
func (e *editor) again(nodes []*graph.Node, constants map[graph.Use]*graph.Value, reader *graph.Node, attrs []*onnxpb.AttributeProto) map[*graph.Value]*graph.Value {
	made := map[*graph.Value]*graph.Value{}
	if len(nodes) > 0 {
		defer e.p.In(nodes[len(nodes)-1].Graph)()
	}
	for _, n := range nodes {
		in := slices.Clone(n.In)
		for i, v := range in {
			if x := constants[graph.Use{Node: n, Index: i}]; x != nil {
				in[i] = x
			} else if x := made[v]; x != nil {
				in[i] = x
			}
		}
		own := slices.Clone(n.Proto.Attribute)
		if n == reader {
			for _, a := range attrs {
				own = slices.DeleteFunc(own, func(b *onnxpb.AttributeProto) bool { return b.GetName() == a.GetName() })
				own = append(own, a)
			}
		}
		for i, v := range e.p.Node(n.OpType, n.Domain, n.Name, len(n.Out), in, own...) {
			made[n.Out[i]] = v
		}
	}
	return made
}

// ownCode makes a projection with a quantised weight a second time, with columns r of all that the projection becomes,
// and biases of its own.
func (e *editor) ownCode(p *attention.Projection, r, biases, all rows) (*graph.Value, error) {
	code, err := e.recode(p, p.Axis, r, all)
	if err != nil {
		return nil, err
	}
	constants := e.stored(p, code)
	if b := p.GemmBias; b != nil {
		t := p.BiasTensor
		if t == nil {
			return nil, fmt.Errorf("its bias is computed")
		}
		if d := t.Dims(); len(d) > 0 && d[len(d)-1] == int64(p.Columns) {
			m, err := mix(t, len(d)-1, biases)
			if err != nil {
				return nil, err
			}
			constants[graph.Use{Node: p.Node, Index: p.BiasInput}] = e.p.Init(named(m, b.Name))
		}
	}
	return e.again(p.Nodes, constants, p.Code.Stored[0].Node, code.Attrs)[p.Output], nil
}

// rowsMove reports whether the rows of the output projection can be brought into another order, head by head, without
// quantising them again.
func rowsMove(b *attention.Block) bool {
	o := b.Output
	if o == nil || o.Code == nil {
		return o != nil
	}
	return o.Code.Movable(0, stretch(0, o.Rows))
}
