package attention

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// fused names the operators that hold a whole attention core.
var fused = map[string]bool{
	"com.microsoft.Attention": true, "com.microsoft.MultiHeadAttention": true, "com.microsoft.GroupQueryAttention": true,
	"com.microsoft.DecoderMaskedMultiHeadAttention": true, "com.microsoft.DecoderMaskedSelfAttention": true,
	"com.microsoft.PackedAttention": true, "com.microsoft.PackedMultiHeadAttention": true, "com.microsoft.QAttention": true,
	"com.microsoft.DecoderAttention": true, "com.microsoft.LongformerAttention": true, "com.microsoft.SparseAttention": true,
	"com.microsoft.PagedAttention": true, "com.microsoft.QOrderedAttention": true, "com.microsoft.MultiHeadAttentionQK": true,
	"com.microsoft.QOrderedLongformerAttention": true, "com.microsoft.TorchScaleAttention": true, "Attention": true, "FlexAttention": true,
	"com.microsoft.LinearAttention": true, "LinearAttention": true,
}

// Find describes every attention block of a model. A softmax or attention operator that it cannot describe fully is in
// Report.Unsupported with the place and the reason; none is guessed at and none is left out.
func Find(m *graph.Model) *Report { return FindAll(m)[0] }

// FindAll is Find for models that pass caches to one another: an encoder and its decoder, or the first step of a decoder
// and the next ones. Blocks that are one layer in several of them share a name.
func FindAll(models ...*graph.Model) []*Report {
	var all []*search
	var reports []*Report
	var blocks []*Block
	for _, m := range models {
		s := find(m)
		all, reports, blocks = append(all, s), append(reports, s.report), append(blocks, s.report.Blocks...)
	}
	feed(all)
	name(blocks)
	for _, r := range reports {
		borrowed(r.Blocks)
	}
	return reports
}

// search is what was found in one model.
type search struct {
	model  *graph.Model
	survey *survey
	report *Report
}

func find(m *graph.Model) *search {
	r := &Report{Facts: graph.Infer(m.Graph)}
	f := newSurvey(r.Facts, m.Graph)
	m.Graph.All(func(n *graph.Node) bool {
		switch {
		case fused[opName(n)]:
			r.Unsupported = append(r.Unsupported, Unsupported{n, n, firstOutput(n), fmt.Sprintf("the fused operator %s is not supported yet", opName(n)), true})
		case n.Is("Softmax"):
			b, st, attention := core(f, n)
			if st == nil {
				b.Body = where(n.Graph)
				r.Blocks = append(r.Blocks, b)
				break
			}
			u := Unsupported{Node: n, At: st.node, Why: st.why, Attention: attention}
			if st.wire != nil {
				u.Wire = st.wire.Name
			}
			if u.At == nil {
				u.At = n
			}
			r.Unsupported = append(r.Unsupported, u)
		case n.Is("Div") && spelledSoftmax(n):
			r.Unsupported = append(r.Unsupported, Unsupported{n, n, firstOutput(n), "a softmax written out as Exp, ReduceSum and Div is not supported yet", true})
		}
		return true
	})
	for _, fn := range m.Proto.Functions {
		for _, pb := range fn.Node {
			if name := pb.GetOpType(); name == "Softmax" || fused[strings.TrimPrefix(pb.GetDomain()+"."+name, ".")] {
				r.Unsupported = append(r.Unsupported, Unsupported{Wire: strings.Join(pb.Output, ", "), Attention: true,
					Why: fmt.Sprintf("%s is inside the model's function %q; functions are not supported yet", name, fn.GetName())})
			}
		}
	}
	return &search{m, f, r}
}

func firstOutput(n *graph.Node) string {
	if len(n.Out) > 0 && n.Out[0] != nil {
		return n.Out[0].Name
	}
	return ""
}

// spelledSoftmax recognises Exp(x) / ReduceSum(Exp(x)).
func spelledSoftmax(n *graph.Node) bool {
	e, s := n.Input(0), n.Input(1)
	return e != nil && s != nil && e.Producer.Is("Exp") && s.Producer.Is("ReduceSum") && s.Producer.Input(0) == e
}

// core describes the attention block around a softmax. attention is false when the softmax is certainly no attention.
func core(f *survey, sm *graph.Node) (b *Block, st *stop, attention bool) {
	x := sm.Input(0)
	if x == nil || len(sm.Out) == 0 || sm.Out[0] == nil {
		return nil, &stop{sm, nil, "the softmax has no input or output"}, false
	}
	products := productsAbove(f, x)
	pv, through := productBelow(sm.Out[0])
	if len(products) == 0 || pv == nil {
		st, attention := incomplete(f, sm, products, pv, through)
		return nil, st, attention
	}
	if shape, ok := f.Shape(x); ok {
		def := int64(-1)
		if sm.Graph.Model.Opset("") < 13 {
			def = 1
		}
		if axis, err := normAxis(sm.Int("axis", def), len(shape)); err != nil || axis != len(shape)-1 {
			return nil, &stop{sm, x, "the softmax is not over the last axis"}, true
		}
	}
	var first *stop
	var blocks []*Block
	for _, qk := range products {
		b, st := describe(f, qk, sm, pv)
		if st == nil {
			blocks = append(blocks, b)
		} else if first == nil {
			first = st
		}
	}
	if len(blocks) == 0 {
		return nil, first, true
	}
	b = content(blocks)
	if b.loose() {
		return nil, &stop{b.QK, b.QK.Out[0], "what is multiplied is not split into heads, and none of it comes from a projection in this graph"}, false
	}
	return b, nil, true
}

// content returns the block of the product of queries and keys where scores are a sum of several products with heads:
// the one whose keys are made of what the values are made of. The others are made of positions (relative positions of
// Transformer-XL and the Conformer, disentangled attention) and count as inputs of the scores that differ from head to
// head.
func content(blocks []*Block) *Block {
	if len(blocks) == 1 {
		return blocks[0]
	}
	same := slices.DeleteFunc(slices.Clone(blocks), func(b *Block) bool {
		return base(b.Key.Projection.Input) != base(b.Value.Projection.Input)
	})
	if len(same) == 1 {
		return same[0]
	}
	b := blocks[0]
	b.fix("the scores are a sum of several products with heads, %v and %v, and which of them is that of queries and keys cannot be told", b.QK, blocks[1].QK)
	return b
}

// fix notes why a block cannot be rewritten; the first reason stays.
func (b *Block) fix(format string, args ...any) {
	if b.Fixed == "" {
		b.Fixed = fmt.Sprintf(format, args...)
	}
}

// stop notes where the description of a block ended whose heads are known.
func (b *Block) stop(st *stop) {
	switch {
	case st == nil:
	case st.wire != nil:
		b.fix("%s (at %v, value %q)", st.why, st.node, st.wire.Name)
	default:
		b.fix("%s (at %v)", st.why, st.node)
	}
}

// betweenProducts are operators that may stand between the products, with the inputs that scores take.
var betweenProducts = map[string]func(int) bool{
	"Add": nil, "Sub": nil, "Mul": nil, "Div": nil, "Max": nil, "Min": nil, "Where": func(i int) bool { return i > 0 },
	"Cast": only(0), "Identity": only(0), "Reshape": only(0), "Unsqueeze": only(0), "Squeeze": only(0), "Clip": only(0),
	"Tanh": only(0), "Dropout": only(0), "Transpose": only(0), "Gather": only(0), "Slice": only(0), "Concat": nil, "Expand": only(0), "Neg": only(0), "Softcap": only(0),
}

// productsAbove lists products of two computed operands from which v comes by operators that may stand between scores
// and softmax.
func productsAbove(f *survey, v *graph.Value) []*graph.Node {
	var out []*graph.Node
	climb(v, func(n *graph.Node) {
		if n.Is("MatMul") && len(n.In) == 2 && n.In[0] != nil && n.In[1] != nil && n.In[0].Const() == nil {
			if w, _, _, _ := constantBehind(f, n, 1); w == nil {
				out = append(out, n)
			}
		}
	})
	return out
}

// climb walks back from v through operators that may stand between scores and softmax and calls at for what it ends on.
func climb(v *graph.Value, at func(*graph.Node)) {
	seen := map[*graph.Value]bool{}
	var up func(v *graph.Value)
	up = func(v *graph.Value) {
		if v == nil || seen[v] || v.Const() != nil || v.Producer == nil {
			return
		}
		seen[v] = true
		n := v.Producer
		data, ok := betweenProducts[n.OpType]
		if !ok || !isDefaultDomain(n) {
			at(n)
			return
		}
		for i, x := range n.In {
			if data == nil || data(i) {
				up(x)
			}
		}
	}
	up(v)
}

// productBelow follows probabilities to the product with values. When there is none, it returns the first node that
// the walk could not pass.
func productBelow(v *graph.Value) (pv, through *graph.Node) {
	seen := map[*graph.Value]bool{}
	queue := []*graph.Value{v}
	for len(queue) > 0 {
		v, queue = queue[0], queue[1:]
		if seen[v] {
			continue
		}
		seen[v] = true
		for _, u := range v.Users() {
			n := u.Node
			switch {
			case n == nil || silent[n.OpType] || n.Is("IsNaN"):
			case n.Is("MatMul") && u.Index == 0 && n.Input(1) != nil:
				return n, nil
			default:
				data, ok := betweenProducts[n.OpType]
				if ok && isDefaultDomain(n) && (data == nil || data(u.Index)) && len(n.Out) > 0 && n.Out[0] != nil {
					queue = append(queue, n.Out[0])
				} else if through == nil {
					through = n
				}
			}
		}
	}
	return nil, through
}

// describe follows the head axis from the two products to the projections.
func describe(f *survey, qk, sm, pv *graph.Node) (*Block, *stop) {
	b := &Block{QK: qk, Softmax: sm, PV: pv, Scale: math.NaN()}
	q, qt, qs, st := follow(f, qk.In[0], "queries", false)
	if st != nil {
		return nil, st
	}
	k, kt, ks, st := follow(f, qk.In[1], "keys", true)
	if st != nil {
		return nil, st
	}
	v, vt, vs, st := follow(f, pv.In[1], "values", false)
	if st != nil {
		return nil, st
	}
	b.Query, b.Key, b.Value = q, k, v

	// Heads on the batch axes of the first product.
	batch, err := broadcast(qs.shape[:len(qs.shape)-2], ks.shape[:len(ks.shape)-2])
	if err != nil {
		return nil, &stop{qk, qk.Out[0], "queries and keys differ in their batch axes"}
	}
	rows := 0
	if r := len(qs.shape) - 2; qs.stored[r] > 1 {
		rows = qs.shape[r]
		b.fix(stackedAlready)
	}
	qid, qcols, why := qt.heads(qs, batch, rows)
	if why != "" {
		return nil, &stop{qk, qk.In[0], "queries: " + why}
	}
	kid, kcols, why := kt.heads(ks, batch, 0)
	if why != "" {
		return nil, &stop{qk, qk.In[1], "keys: " + why}
	}
	b.Heads, b.KVHeads, b.HeadDim = len(qcols), len(kcols), len(kcols[0])
	if b.Heads < 1 || len(qcols[0]) != b.HeadDim {
		return nil, &stop{qk, qk.In[0], fmt.Sprintf("query heads have %d channels and key heads %d", len(qcols[0]), b.HeadDim)}
	}
	if b.KeyOf, why = readers(qid, kid, b.Heads); why != "" {
		return nil, &stop{qk, qk.In[1], "keys: " + why}
	}
	ps, pl, st := b.scores(f, qid, batch, qs.shape[len(qs.shape)-2], ks.shape[len(ks.shape)-1])
	if st != nil {
		return nil, st
	}
	// Heads on the batch axes of the second product.
	vbatch, err := broadcast(ps.shape[:len(ps.shape)-2], vs.shape[:len(vs.shape)-2])
	if err != nil {
		return nil, &stop{pv, pv.Out[0], "probabilities and values differ in their batch axes"}
	}
	rows = 0
	if r := len(ps.shape) - 2; ps.stored[r] > 1 {
		rows = ps.shape[r]
		b.fix(stackedAlready)
	}
	var pid []int
	for _, id := range headSets(&tracer{labels: pl}, ps, vbatch, rows) {
		if id == 0 || int(id) > b.Heads {
			return nil, &stop{pv, pv.In[0], "probabilities of several heads are mixed"}
		}
		pid = append(pid, int(id)-1)
	}
	vid, vcols, why := vt.heads(vs, vbatch, 0)
	if why != "" {
		return nil, &stop{pv, pv.In[1], "values: " + why}
	}
	b.ValueHeads, b.ValueDim = len(vcols), len(vcols[0])
	if b.ValueOf, why = readers(pid, vid, b.Heads); why != "" {
		return nil, &stop{pv, pv.In[1], "values: " + why}
	}
	for _, p := range []struct {
		path *Path
		t    *tracer
		cols [][]int
		what string
	}{{q, qt, qcols, "queries"}, {k, kt, kcols, "keys"}, {v, vt, vcols, "values"}} {
		if st := p.path.place(p.t, p.cols); st != nil {
			st.why = p.what + ": " + st.why
			b.stop(st)
		}
		if st := p.path.mixes(f, p.what); p.path != q { // queries keep their heads, whatever looks at all of them
			b.stop(st)
		}
	}
	if overlap(q, k) || overlap(q, v) || overlap(k, v) {
		b.fix("queries, keys and values share columns of the projection %q", k.Projection.Output.Name)
	}
	b.output(f, pid, vbatch, ps.shape[len(ps.shape)-2])
	b.stop(b.caches(f, kt, vt))
	for _, p := range []*Path{k, v} {
		if p.Projection.GemmBias != nil && p.Projection.BiasTensor == nil {
			b.fix("the bias %q of %v is computed, want a constant", p.Projection.GemmBias.Name, p.Projection.Node)
		}
		if len(p.PerHead) > 0 {
			b.fix("%q differs from head to head at %v, so heads cannot be fused", p.PerHead[0].Value.Name, p.PerHead[0].Node)
		}
		for _, n := range p.Nodes {
			for _, o := range n.Out {
				if l, ok := p.Wires[o]; ok && l.Spread {
					b.fix("its key/value heads lie in no regular order on %q", o.Name)
				}
			}
		}
	}
	for _, p := range []struct {
		n    *graph.Node
		q    Layout
		path *Path
	}{{qk, q.Wires[qk.In[0]], k}, {pv, b.Scores[pv.In[0]], v}} {
		left, _ := f.Shape(p.n.In[0])
		right, _ := f.Shape(p.n.In[1])
		if l := p.path.Wires[p.path.Operand]; l.Axis >= 0 && (p.q.Spread && p.q.Pair == 0 || l.Spread || p.q.Axis != l.Axis || len(left) != len(right)) {
			b.fix("the operands of %v have their heads on different axes", p.n)
		}
	}
	b.Rotary = rotary(kt, ks, kcols)
	b.Scale = qs.scale * ks.scale * b.Scale
	b.Kind = b.crossing(f)
	if why := b.bareWhy(); why != "" {
		b.apart, b.Fixed = b.Fixed, why
	}
	return b, nil
}

// stackedAlready is why a block in the form of the grouped lowering is not rewritten again.
const stackedAlready = "the queries of one group are stacked on the rows of a product already"

// readers matches query heads, one for every batch position or for every row there, with the key or value heads at the
// same batch positions.
func readers(qid, kid []int, heads int) ([]int, string) {
	rows := len(qid) / len(kid)
	of := make([]int, heads)
	for i := range of {
		of[i] = -1
	}
	for p, h := range qid {
		switch {
		case of[h] < 0:
			of[h] = kid[p/rows]
		case of[h] != kid[p/rows]:
			return nil, fmt.Sprintf("query head %d meets heads %d and %d", h, of[h], kid[p/rows])
		}
	}
	return of, ""
}

// overlap reports whether two paths begin at columns of the same projection.
func overlap(a, b *Path) bool {
	if a.Projection.Output != b.Projection.Output {
		return false
	}
	in := make([]bool, a.Projection.Columns)
	for _, cols := range a.Columns {
		for _, c := range cols {
			in[c] = true
		}
	}
	return slices.ContainsFunc(b.Columns, func(cols []int) bool {
		return slices.ContainsFunc(cols, func(c int) bool { return in[c] })
	})
}

// mixes looks at the statistics of normalisations on the path, which the plain walk does not follow: a norm of each head
// by itself is fine, one that looks at several heads would change with them.
func (p *Path) mixes(f *survey, what string) *stop {
	if p.Bare != "" {
		return nil
	}
	t, err := newTracer(f, p.Projection.Output, -1, true)
	if err != nil {
		return &stop{p.Projection.Output.Producer, p.Projection.Output, err.Error()}
	}
	normalised := slices.ContainsFunc(p.Nodes, func(n *graph.Node) bool { return strings.HasSuffix(n.OpType, "Normalization") })
	p.PerHead = slices.DeleteFunc(p.PerHead, func(s Side) bool {
		own := s.Value.Const() == nil && t.at(s.Value) != nil // made of the heads themselves
		normalised = normalised || own
		return own
	})
	if !normalised && !p.reduced() {
		return nil
	}
	s := t.at(p.Operand)
	if s == nil {
		return &stop{p.Operand.Producer, p.Operand, what + " lose their heads in a normalisation"}
	}
	owners := t.owners(p.Projection.Columns, p.Columns)
	if _, ok := owners.layout(s); !ok {
		return &stop{p.Operand.Producer, p.Operand, what + " pass a normalisation that looks at all heads together, which no fusion of heads leaves exact"}
	}
	// The statistics have heads too: their sizes follow those of what they are taken of.
	for _, n := range t.nodes {
		if slices.Contains(p.Nodes, n) {
			continue
		}
		for _, o := range n.Out {
			if s := t.memo[o]; o != nil && s != nil {
				if l, ok := owners.layout(s); ok {
					p.Wires[o] = l
				}
			}
		}
		p.Nodes = append(p.Nodes, n)
	}
	return nil
}

// reduced reports whether a statistic over something on the path is taken on the path.
func (p *Path) reduced() bool {
	return slices.ContainsFunc(p.Nodes, func(n *graph.Node) bool { return strings.HasPrefix(n.OpType, "Reduce") })
}

// rotary reads the pairing of channels off the labels of the key operand: a rotated channel depends on two columns.
func rotary(t *tracer, s *sample, columns [][]int) Rotary {
	return remember(t.facts.rotaries, rotaryKey{s, &columns[0]}, func() Rotary { return pairing(t.labels, s, columns[0]) })
}

// rotaryKey is what rotary reads the pairing off.
type rotaryKey struct {
	*sample
	columns *[]int
}

func pairing(l *labels, s *sample, columns []int) Rotary {
	rank := map[int32]int{}
	for c, col := range columns {
		rank[int32(col)] = c
	}
	r := Rotary{Kind: NoRotary}
	partners := map[int]int{}
	for _, id := range s.data {
		set := l.set(id)
		if len(set) != 2 {
			continue
		}
		a, ok1 := rank[set[0]]
		b, ok2 := rank[set[1]]
		if ok1 && ok2 {
			partners[a] = b - a
		}
	}
	if len(partners) == 0 {
		return r
	}
	r.Dims = 2 * len(partners)
	r.Kind = HalfSplit
	if d, ok := partners[0]; ok && d == 1 && r.Dims > 2 {
		r.Kind = Interleaved
	}
	return r
}

// name gives every block the scope that its nodes or weights share, or a number where they share none. The blocks of one
// layer share a name.
func name(blocks []*Block) {
	layer := twins(blocks)
	named := map[int]string{} // by layer
	used := map[string]int{}
	for i, b := range blocks {
		if _, ok := named[layer[i]]; ok {
			continue
		}
		nodes := []string{b.QK.Name, b.Softmax.Name, b.PV.Name}
		for _, p := range []*Path{b.Query, b.Key, b.Value} {
			if p.Bare == "" {
				nodes = append(nodes, p.Projection.Node.Name)
			}
		}
		name := scope("/", nodes...)
		if name == "" {
			weights := []string{b.Query.Projection.Weight.Name, b.Key.Projection.Weight.Name, b.Value.Projection.Weight.Name}
			if b.Output != nil {
				weights = append(weights, b.Output.Weight.Name)
			}
			name = scope(".", weights...)
		}
		named[layer[i]] = name
		used[name]++
	}
	for i, b := range blocks {
		if b.Name = named[layer[i]]; b.Name == "" || used[b.Name] > 1 {
			b.Name = fmt.Sprintf("attention.%d", layer[i])
		}
	}
}

// scope returns the longest common prefix of names in whole parts, "" when it is empty. With one distinct name (a packed
// weight) the last part is dropped.
func scope(sep string, names ...string) string {
	var common []string
	for i, n := range names {
		parts := strings.Split(n, sep)
		parts = parts[:len(parts)-1]
		if i == 0 {
			common = parts
			continue
		}
		k := 0
		for k < len(common) && k < len(parts) && common[k] == parts[k] {
			k++
		}
		common = common[:k]
	}
	return strings.TrimRight(strings.Join(common, sep), sep)
}
