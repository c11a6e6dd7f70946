package rewrite

import (
	"fmt"
	"math"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
)

// Names of the interface of a model whose caches are written in place (docs/static-cache.md).
const (
	// CachePosition is the input that says where in the buffers the tokens of a step go: int64 [sequence], positions that
	// follow each other. It is called as in the static-cache exports of transformers.
	CachePosition = "cache_position"
	// CacheLength is the symbol that pasts and presents declare as their number of positions.
	CacheLength = "max_cache_len"
)

// static holds what the blocks of a model with caches in place share.
//
//	past     [1]  positions filled before the step
//	total    [1]  positions filled after it
//	capacity [1]  positions of the buffers
type static struct {
	e                     *editor
	position, past, total *graph.Value
	capacity              *graph.Value
	made                  map[string]*graph.Value
	seen                  map[*graph.Value]bool // wires whose shape's readers see the filled positions
}

// misfitInPlace says why there is nothing to write in place, "" where there is.
func (c *core) misfitInPlace() string {
	for _, cache := range []*attention.Cache{c.b.KeyCache, c.b.ValCache} {
		if cache != nil && cache.Concat != nil {
			return ""
		}
	}
	return "it takes no cache that grows"
}

// inPlace is the lowering static-cache: the products as grouped has them, or expand where that does not fit, and caches
// that are written where they lie:
//
//	past [B, G, C, d], new keys [B, G, S, d] → present [B, G, C, d]
//
// The products cover all C positions of the buffer; those that are not filled are hidden.
func (c *core) inPlace() error {
	caches := []struct {
		change
		cache   *attention.Cache
		product *graph.Node
	}{{c.k, c.b.KeyCache, c.b.QK}, {c.v, c.b.ValCache, c.b.PV}}
	refuse := func(err error) error {
		return fmt.Errorf("its cache cannot be written in place: %w; --lowering %s keeps a cache that grows", err, fusion.Grouped)
	}
	grows := 0
	for _, s := range caches {
		if s.cache == nil || s.cache.Concat == nil {
			continue
		}
		grows++
		if err := c.e.scatter(s.change, s.cache, s.product); err != nil {
			return refuse(err)
		}
	}
	switch grows {
	case 1:
		return refuse(fmt.Errorf("only one of keys and values is cached"))
	case 2:
		c.buffered = true
		if err := c.hide(); err != nil {
			return refuse(err)
		}
	}
	if c.misfitGrouped() == "" {
		return c.grouped()
	}
	return c.expand()
}

// begin makes what blocks share, at the first cache.
func (e *editor) begin(update *graph.Value, axis int, past *graph.Value, pastAxis int) *static {
	s := e.begun()
	if s.position != nil {
		return s
	}
	length := any("sequence_length")
	if shape, ok := e.facts.Shape(update); ok && !shape[axis].Unknown() {
		length = shape[axis].String()
		if n, ok := shape[axis].Const(); ok {
			length = n
		}
	}
	s.position = e.p.Input(CachePosition, graph.TensorType(onnxpb.TensorProto_INT64, length))
	s.past = s.pick(s.position, "first", 0)
	s.total = s.op("Add", "total", s.pick(s.position, "last", -1), s.ints("one", 1))
	s.capacity = s.pick(s.op("Shape", "buffer", past), "capacity", int64(pastAxis))
	return s
}

func (e *editor) begun() *static {
	if e.static == nil {
		e.static = &static{e: e, made: map[string]*graph.Value{}, seen: map[*graph.Value]bool{}}
	}
	return e.static
}

func (s *static) op(op, name string, in ...*graph.Value) *graph.Value {
	return s.e.p.Op(op, "/cache/"+name, in)
}

func (s *static) ints(name string, x ...int64) *graph.Value {
	return s.share("ints "+fmt.Sprint(x), func() *graph.Value { return s.e.p.Ints("/cache/"+name, x...) })
}

// pick takes one entry of a vector, as a vector.
func (s *static) pick(v *graph.Value, name string, at int64) *graph.Value {
	return s.e.p.Op("Gather", "/cache/"+name, []*graph.Value{v, s.ints("entry", at)}, graph.IntAttr("axis", 0))
}

// once makes a value that several places read.
func (s *static) once(key string, f func() (*graph.Value, error)) (*graph.Value, error) {
	if v := s.made[key]; v != nil {
		return v, nil
	}
	v, err := f()
	if err == nil {
		s.made[key] = v
	}
	return v, err
}

// share is once for what cannot fail.
func (s *static) share(key string, f func() *graph.Value) *graph.Value {
	v, _ := s.once(key, func() (*graph.Value, error) { return f(), nil })
	return v
}

// scatter puts a write into the buffer in the place of the Concat of a cache, and lets everything that looks at lengths see
// those of a cache that grows.
func (e *editor) scatter(c change, cache *attention.Cache, product *graph.Node) error {
	concat := cache.Concat
	present := concat.Out[0]
	switch {
	case cache.Past == nil || cache.Present == nil:
		return fmt.Errorf("it has no pair of past and present")
	case cache.Stacked:
		return fmt.Errorf("%q holds keys and values in one tensor", cache.Past.Name)
	case len(cache.PastNodes) > 0 || len(concat.In) != 2 || concat.In[0] != cache.Past:
		return fmt.Errorf("%q reaches %v in another form", cache.Past.Name, concat)
	case e.unchanged(cache.Present) != present:
		return fmt.Errorf("the present %q is not what %v gives", cache.Present.Name, concat)
	}
	past, ok1 := e.facts.Shape(cache.Past)
	joined, ok2 := e.facts.Shape(present)
	update := concat.In[1]
	if !ok1 || !ok2 {
		return fmt.Errorf("the shape of %q is not known", cache.Past.Name)
	}
	axis := int(concat.Int("axis", 0))
	if axis < 0 {
		axis += len(joined)
	}
	if n, fixed := past[axis].Const(); fixed {
		return fmt.Errorf("%q holds %d positions by its declaration, want an open length", cache.Past.Name, n)
	}
	for _, u := range cache.Past.Users() {
		if n := u.Node; n != nil && n != concat && !n.Is("Shape") {
			return fmt.Errorf("%q is also read by %v", cache.Past.Name, n)
		}
	}
	way, err := e.follow(present, axis, product)
	if err != nil {
		return err
	}
	way.given = cache.Present
	for _, side := range way.sides {
		return fmt.Errorf("%v has an operand of its own for every cached position", side.node)
	}
	s := e.begin(update, axis, cache.Past, axis)
	name := concat.Name
	if name == "" {
		name = present.Name
	}
	var out *graph.Value
	if e.opset >= 24 {
		first := s.share("first positions "+joined[0].String(), func() *graph.Value {
			batch := s.op("Shape", "sequences", update)
			return s.op("Expand", "write_indices", s.past, s.pick(batch, "batch", 0))
		})
		out = e.p.Op("TensorScatter", name+"/write", []*graph.Value{cache.Past, update, first}, graph.IntAttr("axis", int64(axis)))
	} else {
		out = e.p.Op("ScatterND", name+"/write", []*graph.Value{cache.Past, s.indices(c, cache, update, axis), update})
	}
	e.p.Replace(present, out)
	if present != cache.Present {
		e.p.Replace(cache.Present, out) // itself, so that it can be the buffer
	}
	e.declareBuffer(cache.Past, axis)
	e.declareBuffer(cache.Present, axis)
	if err := s.lengths(cache.Past, axis, s.past); err != nil {
		return err
	}
	return s.settle(way, c)
}

// unchanged is what v is under another name: behind Identity, and Cast to the type that it has (GPT-J casts what it caches).
func (e *editor) unchanged(v *graph.Value) *graph.Value {
	for v.Producer.Is("Identity") || v.Producer.Is("Cast") && e.facts.Elem(v) == e.facts.Elem(v.Producer.In[0]) {
		v = v.Producer.In[0]
	}
	return v
}

// declareBuffer declares the positions of a past or present to be those of a buffer.
func (e *editor) declareBuffer(v *graph.Value, axis int) {
	typ := e.typeOf(v)
	if dims := typ.GetTensorType().GetShape().GetDim(); axis < len(dims) {
		dims[axis].Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: CacheLength}
		e.setType(v, typ)
	}
}

// indices are the places of new positions for ScatterND: [axes up to that of positions…, as many coordinates].
func (s *static) indices(c change, cache *attention.Cache, update *graph.Value, axis int) *graph.Value {
	shape, _ := s.e.facts.Shape(update)
	key := "indices"
	for a, d := range shape[:axis] {
		if a == cache.PastAxis {
			d = graph.Int(int64(c.Heads())) // of the rewritten model
		}
		if d.Unknown() {
			key += " " + update.Name
		}
		key += " " + d.String()
	}
	return s.share(key, func() *graph.Value {
		size := s.op("Shape", "new", update)
		var grid []*graph.Value
		target := s.op("Slice", "places", size, s.ints("from", 0), s.ints("to", int64(axis+1)))
		target = s.e.p.Op("Concat", "/cache/grid", []*graph.Value{target, s.ints("one", 1)}, graph.IntAttr("axis", 0))
		for a := range axis + 1 {
			at := s.position
			if a < axis {
				scalar := s.e.p.Op("Gather", "/cache/count", []*graph.Value{size, s.scalar(int64(a))}, graph.IntAttr("axis", 0))
				at = s.op("Range", "index", s.scalar(0), scalar, s.scalar(1))
			}
			form := slices.Repeat([]int64{1}, axis+2)
			form[a] = -1
			column := s.op("Reshape", "column", at, s.ints("form", form...))
			grid = append(grid, s.op("Expand", "coordinate", column, target))
		}
		return s.e.p.Op("Concat", "/cache/indices", grid, graph.IntAttr("axis", int64(axis+1)))
	})
}

func (s *static) scalar(x int64) *graph.Value {
	return s.share(fmt.Sprint("scalar ", x), func() *graph.Value { return s.e.scalar("/cache/scalar", x) })
}

// lengths shows the readers of a wire's shape the given length on axis.
func (s *static) lengths(w *graph.Value, axis int, length *graph.Value) error {
	if s.seen[w] {
		return nil
	}
	s.seen[w] = true
	e := s.e
	for _, u := range w.Users() {
		n := u.Node
		switch {
		case n == nil || !n.Is("Shape") && !n.Is("Size"):
			continue
		case n.Graph != e.g:
			return fmt.Errorf("%v looks at positions inside a subgraph", n)
		case n.Is("Size"):
			return fmt.Errorf("%v counts cached elements", n)
		}
		shape, ok := e.facts.Shape(w)
		if !ok {
			return fmt.Errorf("the shape of %q is not known", w.Name)
		}
		at, size := shapeEntry(n, axis, len(shape))
		if at < 0 || n.Out[0] == nil || !readsEntry(e.facts, n.Out[0], int64(at)) {
			continue
		}
		e.correct(n.Out[0], func(now *graph.Value) (*graph.Value, []*graph.Node) {
			return e.replaceEntry(now, size, at, length, n.Out[0].Name+"/filled")
		})
	}
	return nil
}

// settle brings the wires that have positions into agreement with buffers: their shapes' readers see the filled positions,
// and targets that hold their number get that of the buffer. c.path may be nil.
func (s *static) settle(way *positions, c change) error {
	bypassed := map[*graph.Node]bool{}
	if c.path != nil {
		bypassed = bypass(c)
	}
	for _, w := range way.wires {
		axis := way.axis[w]
		if err := s.lengths(w, axis, s.total); err != nil {
			return err
		}
		if w.IsOutput() && w != way.wires[0] && w != way.given {
			return fmt.Errorf("%q is given out and would have the length of the buffer", w.Name)
		}
		n := w.Producer
		if w == way.wires[0] || bypassed[n] || !n.Is("Reshape") && !n.Is("Expand") {
			continue
		}
		known, ok := s.e.facts.Known(n.Input(1))
		if !ok {
			return fmt.Errorf("the target of %v is computed in a way that cannot be followed", n)
		}
		shape, _ := s.e.facts.Shape(w)
		at := axis - (len(shape) - len(known.Ints))
		if at < 0 {
			continue
		}
		if d, fixed := known.Ints[at].Const(); fixed && (d == 1 && n.Is("Expand") || d <= 0 && n.Is("Reshape")) {
			continue // follows from the input
		}
		v, _ := s.e.replaceEntry(s.e.target(n), len(known.Ints), at, s.capacity, n.Name+"/buffer")
		s.e.setTarget(n, v)
	}
	return nil
}

// hide keeps the positions behind the filled ones out of the softmax: what meets the scores along the positions is made
// as long as the buffer, and the last of it hides them. A row whose filled positions are all hidden is as it was.
func (c *core) hide() error {
	s, b := c.e.static, c.b
	if !b.Softmax.Is("Softmax") {
		return fmt.Errorf("the softmax is spelled out, at %v", b.Softmax)
	}
	scores := b.QK.Out[0]
	shape, ok := c.e.facts.Shape(scores)
	if !ok {
		return fmt.Errorf("the shape of %q is not known", scores.Name)
	}
	way, err := c.e.follow(scores, len(shape)-1, b.PV)
	if err != nil {
		return err
	}
	if err := s.settle(way, change{}); err != nil {
		return err
	}
	last, input := lastStep(way, b.Softmax.Input(0))
	done := false
	longer := map[graph.Use]*graph.Value{}
	for _, side := range way.sides {
		fill := 0.0
		if side.node == last {
			switch {
			case last.Is("Add"):
				fill, done = math.Inf(-1), true
			case last.Is("Sub") && input == 0:
				fill, done = math.Inf(1), true
			}
		}
		x, err := s.pad(c.e.input(side.node, side.input), side.node.In[side.input], side.axis, fill)
		if err != nil {
			return err
		}
		longer[graph.Use{Node: side.node, Index: side.input}] = x
	}
	if !done && last.Is("Where") && input > 0 {
		if done, err = s.hideChoice(way, last, input, longer); err != nil {
			return err
		}
	}
	for _, side := range way.sides {
		u := graph.Use{Node: side.node, Index: side.input}
		c.e.setInput(u.Node, u.Index, longer[u])
	}
	if done {
		return nil
	}
	elem := c.e.facts.Elem(scores)
	bias, err := s.filled(elem, 0)
	if err != nil {
		return err
	}
	x := b.Softmax.In[0]
	c.e.p.SetInput(b.Softmax, 0, c.e.p.Op("Add", b.Softmax.Name+"/filled", []*graph.Value{x, bias}))
	return nil
}

// lastStep is the last node before v that does more than change the form of scores, and the input that they take.
func lastStep(way *positions, v *graph.Value) (*graph.Node, int) {
	for v.Producer != nil {
		n := v.Producer
		at := slices.IndexFunc(n.In, func(x *graph.Value) bool {
			_, ok := way.axis[x]
			return x != nil && ok
		})
		if !n.Is("Cast") && !n.Is("Identity") && !n.Is("Dropout") || at < 0 {
			return n, at
		}
		v = n.In[at]
	}
	return nil, -1
}

// hideChoice hides by the Where that chooses between scores and a number: where that is chosen, it becomes -∞ behind the
// filled positions. It reports whether the node is of that form.
func (s *static) hideChoice(way *positions, n *graph.Node, input int, longer map[graph.Use]*graph.Value) (bool, error) {
	other := 3 - input
	number, scalar := s.e.facts.Scalar(n.In[other])
	at := slices.IndexFunc(way.sides, func(x positionSide) bool { return x.node == n && x.input == 0 })
	if !scalar || at < 0 {
		return false, nil
	}
	fill, err := s.filled(s.e.facts.Elem(n.In[other]), number)
	if err != nil {
		return false, err
	}
	chosen := 0.0
	if other == 1 {
		chosen = 1
	}
	x, err := s.pad(s.e.input(n, 0), n.In[0], way.sides[at].axis, chosen)
	if err != nil {
		return false, err
	}
	longer[graph.Use{Node: n}] = x
	s.e.setInput(n, other, fill)
	return true, nil
}

// filled is x for filled positions and -∞ behind them: [C].
func (s *static) filled(elem onnxpb.TensorProto_DataType, x float64) (*graph.Value, error) {
	return s.once(fmt.Sprint("filled ", elem, x), func() (*graph.Value, error) {
		front, err := constant("/cache/front", elem, x)
		if err != nil {
			return nil, err
		}
		return s.longer(s.op("Expand", "filled", s.e.p.Init(front), s.total), elem, 1, 0, math.Inf(-1))
	})
}

// pad makes a tensor as long as the buffer on axis, with x behind what it holds. like has the tensor's type and rank.
func (s *static) pad(v, like *graph.Value, axis int, x float64) (*graph.Value, error) {
	shape, ok := s.e.facts.Shape(like)
	if !ok {
		return nil, fmt.Errorf("the shape of %q, which meets the scores, is not known", like.Name)
	}
	return s.longer(v, s.e.facts.Elem(like), len(shape), axis, x)
}

func (s *static) longer(v *graph.Value, elem onnxpb.TensorProto_DataType, rank, axis int, x float64) (*graph.Value, error) {
	return s.once(fmt.Sprintf("longer %p %d %v", v, axis, x), func() (*graph.Value, error) {
		fill, err := constant("/cache/fill", elem, x)
		if err != nil {
			return nil, fmt.Errorf("%q, which meets the scores: %w", v.Name, err)
		}
		length := s.pick(s.op("Shape", "given", v), "length", int64(axis))
		target, _ := s.e.replaceEntry(length.Producer.In[0], rank, axis, s.op("Sub", "missing", s.capacity, length), "/cache/rest_shape")
		rest := s.op("Expand", "rest", s.e.p.Init(fill), target)
		return s.e.p.Op("Concat", v.Name+"/buffer", []*graph.Value{v, rest}, graph.IntAttr("axis", int64(axis))), nil
	})
}

// constant is a tensor [1].
func constant(name string, elem onnxpb.TensorProto_DataType, x float64) (*graph.Tensor, error) {
	if elem == onnxpb.TensorProto_BOOL {
		return graph.NewTensor(name, []int64{1}, []bool{x != 0}), nil
	}
	return graph.FromFloat64s(name, elem, []int64{1}, []float64{x})
}
