package attention

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// newHeadTracer starts a walk at the output of a product, [batch…, rows, cols]: at every batch position (and row, when id
// has one entry for each) the label of head id[position], or of head and column together when columns are channels to be
// told apart.
func newHeadTracer(f *survey, start *graph.Value, batch, id []int, rows, cols int, channels bool) *tracer {
	key := appendInts([]byte{'h'}, rows, cols, len(batch))
	key = appendInts(appendInts(appendFlags(key, channels), batch...), id...)
	src := remember(f.sources, string(key), func() source {
		s := &sample{shape: append(slices.Clone(batch), rows, cols), stored: append(slices.Clone(batch), 1, 1), scale: 1}
		if len(id) > product(batch) {
			s.stored[len(batch)] = rows
		}
		each := 1
		if channels {
			each = cols
			s.stored[len(batch)+1] = cols
		}
		for _, h := range id {
			for c := range each {
				s.data = append(s.data, int32(h*each+c)+1)
			}
		}
		return source{s.compact(), newLabels((slices.Max(id) + 1) * each)}
	})
	return &tracer{facts: f, source: start, labels: src.labels, memo: map[*graph.Value]*sample{start: src.sample}}
}

// scores follows the query heads from the first product to the second: where they lie on every wire, how the mask
// enters, which inputs differ from head to head. It returns the probabilities' labels at the second product.
func (b *Block) scores(f *survey, qid []int, batch []int, rows, cols int) (*sample, *labels, *stop) {
	b.Scores = map[*graph.Value]Layout{}
	b.Mask = NoMask
	walk := func(t *tracer, to *graph.Value, before bool) *stop {
		s := t.at(to)
		if s == nil {
			if len(t.stops) > 0 {
				return &t.stops[0]
			}
			return &stop{to.Producer, to, "the scores lose their heads on the way to the second product"}
		}
		owners := t.blocks(b.Heads, 1)
		note := func(v *graph.Value, n *graph.Node) *stop {
			l, ok := owners.layout(t.memo[v])
			if !ok || !l.Pure {
				return &stop{n, v, "query heads are mixed there"}
			}
			b.Scores[v] = l
			return nil
		}
		if st := note(t.source, t.source.Producer); st != nil {
			return st
		}
		for _, n := range t.nodes {
			out := n.Out[0]
			if out == nil || t.memo[out] == nil {
				continue
			}
			if st := note(out, n); st != nil {
				return st
			}
			if st := b.between(t, n, before); st != nil {
				return st
			}
		}
		return nil
	}
	// The sample of a product is made of the operands' sizes: its own shape need not be known.
	t := newHeadTracer(f, b.QK.Out[0], batch, qid, rows, cols, false)
	if st := walk(t, b.Softmax.Input(0), true); st != nil {
		return nil, nil, st
	}
	at := t.memo[b.Softmax.Input(0)]
	b.Scale = at.scale
	after := &tracer{facts: f, source: b.Softmax.Out[0], labels: t.labels, memo: map[*graph.Value]*sample{b.Softmax.Out[0]: at}}
	if st := walk(after, b.PV.In[0], false); st != nil {
		return nil, nil, st
	}
	return after.memo[b.PV.In[0]], after.labels, nil
}

// between looks at a node between the products: masks, and inputs that differ from head to head.
func (b *Block) between(t *tracer, n *graph.Node, before bool) *stop {
	out := t.memo[n.Out[0]]
	l := b.Scores[n.Out[0]]
	if data, ok := betweenProducts[n.OpType]; ok && data != nil && !n.Is("Where") {
		return nil // shapes, bounds
	}
	for i, v := range n.In {
		if v == nil || t.memo[v] != nil {
			continue
		}
		if _, scalar := t.facts.Scalar(v); scalar {
			if n.Is("Where") && before && b.Mask == NoMask {
				b.Mask = WhereMsk
			}
			continue
		}
		shape, ok := concreteShape(t.facts, v)
		if !ok {
			return &stop{n, v, fmt.Sprintf("the shape of %q, which meets the scores at %v, is not known", v.Name, n)}
		}
		if overKeys := len(shape) > 0 && shape[len(shape)-1] != 1; before && !n.Is("Concat") && (overKeys || n.Is("Where")) {
			if n.Is("Where") {
				b.Mask = WhereMsk
			} else if b.Mask == NoMask {
				b.Mask = AddMask
			}
			b.Causal = b.Causal || causal(v)
		}
		axis := l.Axis - (len(out.shape) - len(shape))
		if l.Axis >= 0 && axis >= 0 && shape[axis] != 1 {
			switch {
			case shape[axis] == l.Len():
				b.PerHead = append(b.PerHead, Side{Node: n, Input: i, Value: v, Axis: axis})
			default:
				return &stop{n, v, fmt.Sprintf("%q does not fit the heads of the scores", v.Name)}
			}
		}
	}
	return nil
}

// causal reports whether a mask is built by comparing positions or from a triangle.
func causal(v *graph.Value) bool {
	seen := map[*graph.Value]bool{}
	budget := 400
	var up func(v *graph.Value) bool
	up = func(v *graph.Value) bool {
		if v == nil || seen[v] || budget == 0 {
			return false
		}
		seen[v] = true
		budget--
		if c := v.Const(); c != nil {
			return triangle(c)
		}
		n := v.Producer
		if n == nil {
			return false
		}
		switch n.OpType {
		case "Trilu":
			return true
		case "MatMul", "Gemm", "Softmax", "LayerNormalization", "Conv":
			return false
		case "Gather": // a table looked up by position is not a mask, whatever its indices are made of
			return up(n.Input(0))
		case "Less", "LessOrEqual", "Greater", "GreaterOrEqual":
			if positions(n.Input(0)) && positions(n.Input(1)) {
				return true
			}
		}
		return slices.ContainsFunc(n.In, up)
	}
	return up(v)
}

// positions reports whether a value is made of counted positions.
func positions(v *graph.Value) bool {
	for range 12 {
		if v == nil || v.Producer == nil {
			return v != nil && v.Const() == nil && strings.Contains(v.Name, "position")
		}
		if v.Producer.Is("Range") {
			return true
		}
		if v.Producer.Is("Add") || v.Producer.Is("Sub") {
			if positions(v.Producer.Input(1)) {
				return true
			}
		}
		v = v.Producer.Input(0)
	}
	return false
}

// triangle reports whether a constant hides later positions: above a diagonal of the last two axes that ends in the last
// column (rows are the last positions of the columns) stands one value, or nothing but numbers that hide, and on it
// another. Below, anything may stand: a window hides early positions too.
func triangle(c *graph.Tensor) bool {
	d := c.Dims()
	if len(d) < 2 || d[len(d)-2] < 2 || d[len(d)-1] < d[len(d)-2] || c.Len() > 1<<24 {
		return false
	}
	rows, cols := int(d[len(d)-2]), int(d[len(d)-1])
	x, err := c.Float64s()
	if err != nil || len(x) < rows*cols {
		return false
	}
	past := cols - rows
	same := func(a, b float64) bool { return a == b || a <= hides && b <= hides }
	hidden, seen := x[past+1], x[past]
	if same(hidden, seen) {
		return false
	}
	for i := range rows {
		row := x[i*cols : (i+1)*cols]
		if !same(row[i+past], seen) && (hidden > hides || row[i+past] <= hides) { // a bias may stand on the diagonal
			return false
		}
		for _, v := range row[i+past+1:] {
			if !same(v, hidden) {
				return false
			}
		}
	}
	return true
}

// hides is a number so low that scores it is added to vanish in the softmax.
const hides = -1e4

// output follows the context heads from the second product to the output projection. It stays nil when something else
// reads them, when they go elsewhere, or when constants on the way differ from head to head.
func (b *Block) output(f *survey, pid, batch []int, rowCount int) {
	t := newHeadTracer(f, b.PV.Out[0], batch, pid, rowCount, b.ValueDim, true)
	var found *Projection
	wires := []*graph.Value{b.PV.Out[0]}
	for i := 0; i < len(wires); i++ {
		for _, u := range wires[i].Users() {
			n := u.Node
			if n == nil {
				return // a graph output: callers see the heads in their order
			}
			if silent[n.OpType] {
				continue
			}
			if p, ok := reading(f, u); ok {
				if found != nil && found.Node != p.Node {
					return
				}
				found = p
				continue
			}
			row, ok := movers[n.OpType]
			if !ok || !isDefaultDomain(n) || row.data != nil && !row.data(u.Index) || n.Out[0] == nil || t.at(n.Out[0]) == nil {
				return
			}
			if !slices.Contains(wires, n.Out[0]) {
				wires = append(wires, n.Out[0])
			}
		}
	}
	if found == nil {
		return
	}
	s := t.at(found.Input)
	if s == nil {
		return
	}
	last := len(s.shape) - 1
	for a := range last {
		if s.stored[a] > 1 {
			return
		}
	}
	rows := make([][]int, b.Heads)
	for h := range rows {
		rows[h] = make([]int, b.ValueDim)
	}
	if len(s.data) != b.Heads*b.ValueDim {
		return
	}
	for r, id := range s.data {
		set := t.labels.set(id)
		if len(set) != 1 {
			return
		}
		rows[int(set[0])/b.ValueDim][int(set[0])%b.ValueDim] = r
	}
	owners := t.blocks(b.Heads, b.ValueDim)
	o := &Output{Bias: outputBias(f, found), Projection: found, Rows: rows, RowAxis: 1 - found.Axis, Nodes: t.nodes, Wires: map[*graph.Value]Layout{}}
	for _, w := range wires {
		l, ok := owners.layout(t.memo[w])
		if !ok || !l.Pure {
			return
		}
		o.Wires[w] = l
		n := w.Producer
		if n == b.PV || betweenProducts[n.OpType] != nil {
			continue
		}
		for _, v := range n.In {
			if v == nil || t.memo[v] != nil || n.Is("Slice") || n.Is("Split") || n.Is("Gather") {
				continue
			}
			shape, ok := concreteShape(f, v)
			axis := l.Axis - (len(t.memo[w].shape) - len(shape))
			if !ok || axis >= 0 && l.Axis >= 0 && shape[axis] != 1 {
				return
			}
		}
	}
	b.Output = o
}

// outputBias finds the bias of the output projection: the C operand of a Gemm, or a vector that the only reader adds.
func outputBias(f *survey, p *Projection) *Side {
	side := func(n *graph.Node, i int) *Side {
		v := n.Input(i)
		t := f.Const(v)
		if t == nil || t.Len() != int64(p.Columns) {
			return nil
		}
		return &Side{Node: n, Input: i, Value: v, Tensor: t, Axis: len(t.Dims()) - 1}
	}
	if p.GemmBias != nil {
		return side(p.Node, 2)
	}
	if users := p.Output.Users(); len(users) == 1 && users[0].Node.Is("Add") {
		return side(users[0].Node, 1-users[0].Index)
	}
	return nil
}
