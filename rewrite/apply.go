package rewrite

import (
	"cmp"
	"fmt"
	"slices"

	"gonum.org/v1/gonum/mat"
	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/quant"
)

// Apply rewrites the blocks of a plan in m: their keys and values are projected, cached and multiplied with fewer heads.
// Blocks that the plan does not name stay as they are; those that it names in other models count where m fills their caches.
// On an error m is unchanged.
func Apply(m *graph.Model, plan *fusion.Plan) (*Result, error) {
	res := &Result{NodesBefore: len(m.Graph.Nodes), ParamsBefore: Parameters(m.Graph)}
	keep := m.Graph.Dead()
	releaseOrigins(keep, plan)
	e := newEditor(m.Graph, graph.Infer(m.Graph))
	for _, bp := range plan.Blocks {
		b := bp.Block
		all := []*attention.Projection{b.Query.Projection, b.Key.Projection, b.Value.Projection}
		if b.Output != nil {
			all = append(all, b.Output.Projection)
		}
		for _, p := range all {
			if p.Node != nil && !slices.Contains(e.projected[p.Node], b) {
				e.projected[p.Node] = append(e.projected[p.Node], b)
			}
		}
	}
	for _, bp := range plan.Blocks {
		if bp.Block.QK.Graph.Model == m {
			if err := e.block(bp, plan, res); err != nil {
				return nil, fmt.Errorf("block %q: %w", bp.Block.Name, err)
			}
		}
		if err := e.fill(bp, res); err != nil {
			return nil, fmt.Errorf("block %q: what fills its cache: %w", bp.Block.Name, err)
		}
	}
	if err := e.search(); err != nil {
		return nil, err
	}
	if err := e.settle(); err != nil {
		return nil, err
	}
	imports := m.Proto.OpsetImport
	e.addImports()
	facts, err := e.p.Apply()
	if err != nil {
		m.Proto.OpsetImport = imports
		return nil, fmt.Errorf("the rewritten graph is not consistent, nothing was changed: %w", err)
	}
	m.Graph.RemoveDead(keep)
	for _, v := range e.replaced {
		v.Graph.RemoveWeight(v)
	}
	redeclare(m.Graph, facts)
	if e.upgrade > 0 {
		from := m.Opset("")
		if err := upgradeTo(m, e.upgrade); err != nil {
			return nil, err
		}
		e.note(fmt.Sprintf("the model imports opset %d of ai.onnx now, before %d", e.upgrade, from))
	}
	res.Requantised = e.requantised
	if err := m.Check(); err != nil {
		return nil, err
	}
	res.Notes = e.notes
	res.NodesAfter, res.ParamsAfter = len(m.Graph.Nodes), Parameters(m.Graph)
	return res, nil
}

// block prepares the rewrite of one block.
func (e *editor) block(bp fusion.BlockPlan, plan *fusion.Plan, res *Result) error {
	b := bp.Block
	e.of = b
	if b.Fixed != "" {
		return fmt.Errorf("%s; rewrite the original model instead", b.Fixed)
	}
	defer e.p.In(b.QK.Graph)()
	all := changes(bp, natural(b.Heads))
	c := &core{e: e, b: b, k: all[1], v: all[2], order: natural(b.Heads), context: natural(b.Heads), target: cmp.Or(plan.Target, fusion.TargetCPU)}
	form, why, err := c.choose(plan.Lowering)
	if err != nil {
		return err
	}
	if b.Body != "" && form != fusion.Grouped && form != fusion.Expand {
		// The other forms share nodes between blocks, which bodies hide from one another.
		if form == fusion.StaticCache {
			return fmt.Errorf("it lies in %s, where its cache cannot be written in place; --lowering %s keeps a cache that grows", b.Body, fusion.Grouped)
		}
		if form, why, err = c.choose(fusion.Grouped); err != nil {
			return err
		}
	}
	low := lowerings[form]
	for _, s := range []*change{&c.k, &c.v} {
		s.touched = s.alters() || low.single && s.path.Repeat != nil
		s.single = s.touched && s.path.Repeat != nil
		if s.touched && len(s.path.PerHead) > 0 {
			p := s.path.PerHead[0]
			return fmt.Errorf("%q differs from head to head at %v, so heads cannot be fused", p.Value.Name, p.Node)
		}
	}
	if low.reorder && c.misfitGrouped() == "" {
		if err := c.reorderQueries(); err != nil {
			return err
		}
	}
	c.fused = low.fused
	if !c.kept {
		if err := c.foldScale(); err != nil {
			return err
		}
	}
	q := changes(bp, c.order)[0]
	q.factor = c.factor
	q.touched = q.alters()

	// Changes by projection, in the order query, key, value.
	byProjection := map[*graph.Node][]change{}
	var order []*graph.Node
	for _, s := range []change{q, c.k, c.v} {
		n := s.path.Projection.Node
		if byProjection[n] == nil {
			order = append(order, n)
		}
		byProjection[n] = append(byProjection[n], s)
	}
	for _, n := range order {
		changes := byProjection[n]
		if !slices.ContainsFunc(changes, func(s change) bool { return s.touched }) {
			continue
		}
		if err := e.projection(changes); err != nil {
			return err
		}
	}
	for _, s := range []change{q, c.k, c.v} {
		if err := e.adapters(s); err != nil {
			return err
		}
	}
	for _, s := range []change{c.k, c.v} {
		if s.single {
			e.p.Replace(s.path.Repeat, e.singleHeads(s.path))
		}
	}
	apply := low.apply
	if c.kept {
		apply = (*core).keep
	}
	if err := apply(c); err != nil {
		return err
	}
	if err := e.output(b, c.context, bp.Learned); err != nil {
		return err
	}
	if c.rotary != "" {
		why += "; " + c.rotary
	}
	return e.report(c, form, why, res)
}

// changes lists what a plan does to the query, key and value heads of a block, the query heads being brought into the
// given order.
func changes(bp fusion.BlockPlan, order []int) []change {
	b := bp.Block
	q := change{path: b.Query, column: order}
	for _, h := range order {
		q.Groups = append(q.Groups, []int{h})
		q.Weights = append(q.Weights, []float64{1})
	}
	all := []change{q, {path: b.Key, Fusion: bp.Key}, {path: b.Value, Fusion: bp.Value}}
	if l := bp.Learned; l != nil {
		all[0].learned, all[0].learnedBias = l.Query, asRow(l.QueryBias)
		all[1].learned, all[1].learnedBias = l.Key, asRow(l.KeyBias)
		all[2].learned, all[2].learnedBias = l.Value, asRow(l.ValueBias)
	}
	return all
}

func asRow(x []float64) *mat.Dense {
	if x == nil {
		return nil
	}
	return mat.NewDense(1, len(x), x)
}

// output gives the output projection learned weights, and its rows the order in which context heads come out.
func (e *editor) output(b *attention.Block, order []int, l *fusion.Learned) error {
	var learned *mat.Dense
	if l != nil && l.Output != nil {
		learned = mat.DenseCopyOf(l.Output.T())
	}
	if learned == nil && identity(order) {
		return nil
	}
	o := b.Output
	if o == nil {
		return fmt.Errorf("it has learned output weights, but no output projection was found")
	}
	if others := e.projected[o.Projection.Node]; len(others) > 1 {
		return fmt.Errorf("its output projection %v takes heads of block %q too, so it cannot be changed for one", o.Projection.Node, others[0].Name)
	}
	r := keep(int(o.Tensor.Dims()[o.RowAxis]))
	for i, h := range order {
		for ch, row := range o.Rows[i] {
			r[row] = []term{{at: o.Rows[h][ch], weight: 1}}
			if learned != nil {
				r[row] = []term{{at: h*b.ValueDim + ch, weight: 1, from: learned}}
			}
		}
	}
	if err := e.setWeight(o.Projection, o.RowAxis, r); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if l == nil || l.OutputBias == nil {
		return nil
	}
	if o.Bias == nil {
		return fmt.Errorf("it has a learned output bias, but its output projection has no bias")
	}
	t := o.Bias.Tensor
	m, err := graph.FromFloat64s(t.Name(), t.DType(), t.Dims(), l.OutputBias)
	if err != nil {
		return fmt.Errorf("output bias: %w", err)
	}
	e.setConstant(o.Bias.Value, m, o.Bias.Node, o.Bias.Input, o.Bias.Node, o.Bias.Input)
	return nil
}

// projection changes the heads of the paths that share a projection.
func (e *editor) projection(changes []change) error {
	p := changes[0].path
	fused := slices.ContainsFunc(changes, func(s change) bool { return s.touched && s.alters() })
	if n := p.Projection.Node; fused && n != nil {
		if o := e.altered[n]; o != nil && o != e.of {
			return fmt.Errorf("%v projects heads of block %q too, which the configuration changes; change one of the two", n, o.Name)
		}
		e.altered[n] = e.of
	}
	switch {
	case !fused, p.Bare != "": // repeated heads are bypassed, or fused elsewhere
		for _, s := range changes {
			if err := e.wires(s); err != nil {
				return err
			}
		}
		return nil
	case len(changes) > 1 || p.Entry != p.Projection.Output:
		return e.packed(changes)
	}
	return e.narrow(changes[0])
}

// report adds a block to the result and changes its caches.
func (e *editor) report(c *core, form fusion.Lowering, why string, res *Result) error {
	b := c.b
	keys, values := fusion.CachedHeads(b)
	before := fusion.CacheBytes(b, e.facts, keys, values)
	if c.k.touched {
		keys = c.k.Heads()
	}
	if c.v.touched {
		values = c.v.Heads()
	}
	res.addBlock(BlockChange{
		Block: b.Name, Lowering: form, Why: why, Heads: b.Heads, KVHeads: b.KVHeads, ValueHeadsBefore: b.ValueHeads,
		KeyHeads: c.k.Heads(), ValueHeads: c.v.Heads(),
		KVBytesBefore: before, KVBytesAfter: fusion.CacheBytes(b, e.facts, keys, values),
		Cached: b.KeyCache != nil || b.ValCache != nil,
	})
	for _, s := range []struct {
		change
		cache *attention.Cache
	}{{c.k, b.KeyCache}, {c.v, b.ValCache}} {
		if s.cache == nil || !s.touched {
			continue
		}
		if s.cache.Stacked || b.KeyCache != nil && b.ValCache != nil && b.KeyCache.Past != nil && b.KeyCache.Past == b.ValCache.Past {
			if c.k.Heads() != c.v.Heads() || c.k.single != c.v.single {
				return fmt.Errorf("keys and values share the cache tensor %q, so they need the same number of heads, not %d and %d", cacheName(s.cache), c.k.Heads(), c.v.Heads())
			}
			s.cache.Stacked = true
		}
		cc, err := e.cache(s.change, s.cache, b.Name)
		if err != nil {
			return err
		}
		if s.cache.Stacked && s.path == b.Value && !slices.Equal(cc.Map, c.k.Map()) {
			return fmt.Errorf("keys and values share the cache tensor %q, so they need the same groups", cacheName(s.cache))
		}
		cc.Block = b.Name
		if identity(cc.Map) {
			continue // other weights, the same heads
		}
		res.add(*cc)
	}
	return nil
}

func cacheName(c *attention.Cache) string {
	if c.Past != nil {
		return c.Past.Name
	}
	return c.Present.Name
}

// Parameters counts the elements of all floating-point constants with more than one element, and the numbers that the
// codes of quantised weights stand for.
func Parameters(g *graph.Graph) int64 {
	var n int64
	coded := map[*graph.Value]bool{} // what holds quantised weights, which count as the numbers that they stand for
	g.All(func(nd *graph.Node) bool {
		numbers, codes, rest := quant.Weights(nd)
		if codes != nil && !coded[codes] && numbers > 1 {
			n += numbers
		}
		for _, v := range append(rest, codes) {
			coded[v] = true
		}
		return true
	})
	count := func(t *graph.Tensor) {
		if t != nil && t.Len() > 1 {
			if _, ok := codecs[t.DType()]; ok {
				n += t.Len()
			}
		}
	}
	weights := func(g *graph.Graph) {
		for _, v := range g.Inits {
			if !coded[v] {
				count(v.Init)
			}
		}
	}
	weights(g)
	g.All(func(nd *graph.Node) bool {
		if nd.Is("Constant") && !coded[nd.Out[0]] {
			count(nd.ConstantTensor())
		}
		for _, bodies := range nd.Subgraphs {
			for _, b := range bodies {
				weights(b)
			}
		}
		return true
	})
	return n
}

// redeclare brings the declared types of values into agreement with what inference finds: sizes that became other
// constants are changed, declarations of another rank are dropped (those of outputs are made anew). Symbolic names stay.
func redeclare(g *graph.Graph, f *graph.Facts) {
	g.All(func(n *graph.Node) bool {
		for _, v := range n.Out {
			if v == nil || v.Info.GetType().GetTensorType().GetShape() == nil {
				continue
			}
			shape, ok := f.Shape(v)
			if !ok {
				continue
			}
			typ := proto.Clone(v.Info.Type).(*onnxpb.TypeProto)
			declared := typ.GetTensorType().Shape
			if len(declared.Dim) != len(shape) {
				if !v.IsOutput() {
					v.Info = nil
					continue
				}
				declared.Dim = make([]*onnxpb.TensorShapeProto_Dimension, len(shape))
				for i := range declared.Dim {
					declared.Dim[i] = &onnxpb.TensorShapeProto_Dimension{}
				}
			}
			changed := false
			for i, d := range declared.Dim {
				c, ok := shape[i].Const()
				switch x := d.Value.(type) {
				case *onnxpb.TensorShapeProto_Dimension_DimValue:
					if ok && x.DimValue != c {
						d.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: c}
						changed = true
					} else if !ok && !shape[i].Unknown() {
						d.Value = nil // what was a number depends on the caller now
						changed = true
					}
				case *onnxpb.TensorShapeProto_Dimension_DimParam:
				default:
					if ok {
						d.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: c}
						changed = true
					}
				}
			}
			if changed {
				info := proto.Clone(v.Info).(*onnxpb.ValueInfoProto)
				info.Type = typ
				v.Info = info
			}
		}
		return true
	})
}
