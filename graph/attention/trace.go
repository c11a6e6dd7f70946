package attention

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"onnx-dha/graph"
)

// sampleSize is the value that every symbolic dimension takes in a sample. It is 2, the smallest size that tells the
// order of the factors of a merged axis (batch·heads from heads·batch).
const sampleSize = 2

// tracer carries labels forward from one source wire. It is asked for a wire and walks back to the source through the
// operators of the table below; what it cannot walk through carries no labels.
type tracer struct {
	facts  *survey
	source *graph.Value
	labels *labels
	// mixing also follows the statistics of normalisations (every column of a head influences its norm). Without it
	// labels follow the data itself, which is what tells where a column went.
	mixing bool

	memo  map[*graph.Value]*sample
	nodes []*graph.Node // those that carry labels, in the order in which they were reached: inputs first
	stops []stop
}

// stop is a place where a walk ended, and why.
type stop struct {
	node *graph.Node
	wire *graph.Value
	why  string
}

// newTracer starts labels at start: label c+1 for column c along axis.
func newTracer(f *survey, start *graph.Value, axis int, mixing bool) (*tracer, error) {
	shape, ok := concreteShape(f, start)
	if !ok {
		return nil, fmt.Errorf("the shape of %q is not known", start.Name)
	}
	if axis < 0 {
		axis += len(shape)
	}
	if axis < 0 || axis >= len(shape) {
		return nil, fmt.Errorf("%q has no axis %d", start.Name, axis)
	}
	return axesTracer(f, start, shape, []int{axis}, mixing), nil
}

// axesTracer starts labels at start, of the given sampled shape: one for every place on the axes together, numbered in
// row-major order.
func axesTracer(f *survey, start *graph.Value, shape, axes []int, mixing bool) *tracer {
	key := appendInts(appendInts([]byte{'c', byte(len(axes))}, axes...), shape...)
	src := remember(f.sources, string(key), func() source {
		s := &sample{shape: shape, stored: make([]int, len(shape)), scale: 1}
		for i := range s.stored {
			s.stored[i] = 1
		}
		n := 1
		for _, a := range axes {
			s.stored[a] = shape[a]
			n *= shape[a]
		}
		s.data = make([]int32, n)
		for c := range s.data {
			s.data[c] = int32(c) + 1
		}
		return source{s, newLabels(n)}
	})
	return &tracer{facts: f, source: start, labels: src.labels, mixing: mixing, memo: map[*graph.Value]*sample{start: src.sample}}
}

// maxColumns bounds the columns of a projection, so that a hostile file cannot ask for a huge sample.
const maxColumns = 1 << 24

// concreteShape samples the shape of a value.
func concreteShape(f *survey, v *graph.Value) ([]int, bool) {
	dims, ok := f.Shape(v)
	if !ok {
		return nil, false
	}
	out := make([]int, len(dims))
	for i, d := range dims {
		n, ok := d.Sample(sampleSize)
		if !ok || n < 0 || n > maxColumns {
			return nil, false
		}
		out[i] = int(max(n, 1))
	}
	return out, true
}

// at returns the labels of v, nil when it carries none.
func (t *tracer) at(v *graph.Value) *sample {
	if v == nil {
		return nil
	}
	if s, ok := t.memo[v]; ok {
		return s
	}
	t.memo[v] = nil // a value is not its own ancestor; this also ends walks through damaged graphs
	if v.Const() != nil || !encloses(t.source.Graph, v.Graph) {
		return nil
	}
	n := v.Producer
	if n == nil || len(n.Subgraphs) > 0 {
		s := t.across(v)
		t.memo[v] = s
		return s
	}
	row, ok := movers[n.OpType]
	if !ok || !isDefaultDomain(n) && !row.anyDomain {
		t.noteUnknown(n)
		return nil
	}
	in := make([]*sample, len(n.In))
	carried := false
	for i, x := range n.In {
		if row.data == nil || row.data(i) {
			in[i] = t.at(x)
			carried = carried || in[i] != nil
		}
	}
	if !carried {
		return nil
	}
	if !slices.Contains(t.nodes, n) {
		t.nodes = append(t.nodes, n)
	}
	out, err := t.facts.move(t, n, row, in)
	if err != nil {
		t.stops = append(t.stops, stop{n, v, err.Error()})
		return nil
	}
	for i, o := range n.Out {
		if o != nil && i < len(out) {
			t.memo[o] = out[i]
		}
	}
	return t.memo[v]
}

// noteUnknown records a node outside the table if labels reach it: the walk lost the heads there.
func (t *tracer) noteUnknown(n *graph.Node) {
	if silent[n.OpType] {
		return
	}
	for _, x := range n.In {
		if t.at(x) != nil {
			t.stops = append(t.stops, stop{n, x, fmt.Sprintf("operator %s is not one the walk can follow heads through", opName(n))})
			return
		}
	}
}

// silent operators end a walk without anything being lost: what they give is not a function of the data, or nothing
// that moves it.
var silent = map[string]bool{"Shape": true, "Size": true, "Range": true, "ConstantOfShape": true, "Cos": true, "Sin": true}

func isDefaultDomain(n *graph.Node) bool { return n.Domain == "" || n.Domain == "ai.onnx" }

func opName(n *graph.Node) string {
	if isDefaultDomain(n) {
		return n.OpType
	}
	return n.Domain + "." + n.OpType
}

// mover says how an operator moves labels from inputs to outputs.
type mover struct {
	data      func(input int) bool // which inputs carry data; nil: all
	move      func(t *tracer, n *graph.Node, in []*sample) ([]*sample, error)
	anyDomain bool // also under a contrib domain
}

func only(k int) func(int) bool { return func(i int) bool { return i == k } }

// movers is the table of operators that labels can be followed through. A new operator is a row.
var movers = map[string]mover{}

func init() {
	for _, op := range []string{"Identity", "Cast", "Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Tanh", "Sigmoid", "Relu", "Erf", "Floor", "Ceil", "IsNaN", "Not", "Elu", "Gelu"} {
		movers[op] = mover{only(0), moveSame, false}
	}
	for _, op := range []string{"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mod"} {
		movers[op] = mover{nil, moveElementwise, false}
	}
	for _, op := range []string{"Clip", "Dropout", "Trilu"} {
		movers[op] = mover{only(0), moveFirst, false}
	}
	for _, op := range []string{"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare"} {
		movers[op] = mover{only(0), moveReduce, false}
	}
	for _, op := range []string{"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "LpNormalization"} {
		movers[op] = mover{only(0), moveNormalize, true}
	}
	for op, m := range map[string]mover{
		"Where":     {func(i int) bool { return i > 0 }, moveElementwise, false},
		"Reshape":   {only(0), moveReshape, false},
		"Flatten":   {only(0), moveFlatten, false},
		"Transpose": {only(0), moveTranspose, false},
		"Unsqueeze": {only(0), moveUnsqueeze, false},
		"Squeeze":   {only(0), moveSqueeze, false},
		"Split":     {only(0), moveSplit, false},
		"Slice":     {only(0), moveSlice, false},
		"Gather":    {only(0), moveGather, false},
		"Concat":    {nil, moveConcat, false},
		"Expand":    {only(0), moveExpand, false},
		"Tile":      {only(0), moveTile, false},
		"CastLike":  {only(0), moveFirst, false},
	} {
		movers[op] = m
	}
}

func moveSame(_ *tracer, _ *graph.Node, in []*sample) ([]*sample, error) {
	return []*sample{in[0]}, nil
}

func moveFirst(_ *tracer, _ *graph.Node, in []*sample) ([]*sample, error) {
	return []*sample{in[0]}, nil
}

// moveElementwise joins labels position by position and multiplies constant factors into the scale.
func moveElementwise(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	var carrying []*sample
	var sides [][]int
	factor := 1.0
	for i, s := range in {
		if s != nil {
			carrying = append(carrying, s)
			continue
		}
		v := n.Input(i)
		if v == nil {
			continue
		}
		if shape, ok := concreteShape(t.facts, v); ok {
			sides = append(sides, shape)
		}
		c, known := t.facts.Scalar(v)
		switch {
		case n.OpType == "Mul":
			factor = c
			if !known {
				factor = 1 // a vector or something computed (a norm's weight, cos and sin): not part of the scale
			}
		case n.OpType == "Div" && i == 1 && known:
			factor = 1 / c
		}
	}
	out, err := t.labels.merge(carrying, sides)
	if err != nil {
		return nil, err
	}
	if factor != 1 {
		scaled := *out
		scaled.scale *= factor
		out = &scaled
	}
	return []*sample{out}, nil
}

func sameScale(a, b float64) float64 {
	if math.Abs(a-b) <= 1e-6*math.Max(math.Abs(a), math.Abs(b)) {
		return a
	}
	return math.NaN()
}

func moveReshape(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	target, err := reshapeTarget(t.facts, n, in[0].shape)
	if err != nil {
		return nil, err
	}
	out, err := in[0].reshape(target)
	return []*sample{out}, err
}

// reshapeTarget samples the target of a Reshape whose input has the given size.
func reshapeTarget(f *survey, n *graph.Node, in []int) ([]int, error) {
	var target []graph.Dim
	if k, ok := f.Known(n.Input(1)); ok && n.Input(1) != nil && k.Floats == nil {
		target = k.Ints
	} else if ints, ok := n.Ints("shape"); ok { // opset < 5
		for _, d := range ints {
			target = append(target, graph.Int(d))
		}
	} else {
		dims, ok := f.Shape(n.Out[0])
		if !ok {
			return nil, errors.New("its target shape is computed in a way that cannot be followed")
		}
		target = dims
	}
	// One size follows from the others: that of -1, or else of a dimension that nothing is known of.
	infer := slices.IndexFunc(target, func(d graph.Dim) bool { return d.Equal(graph.Int(-1)) })
	out, err := sampleTarget(n, target, in, infer)
	if infer < 0 && (err != nil || product(out) != product(in)) {
		infer = slices.IndexFunc(target, func(d graph.Dim) bool { return d.Unknown() })
		out, err = sampleTarget(n, target, in, infer)
	}
	if err != nil {
		return nil, err
	}
	if product(out) != product(in) {
		return nil, errShape
	}
	return out, nil
}

// sampleTarget samples the entries of a target; entry infer is what is left of the input's size.
func sampleTarget(n *graph.Node, target []graph.Dim, in []int, infer int) ([]int, error) {
	out := make([]int, len(target))
	known := 1
	for i, d := range target {
		if i == infer {
			continue
		}
		if c, isConst := d.Const(); isConst && c == 0 && n.Int("allowzero", 0) == 0 {
			if i >= len(in) {
				return nil, errShape
			}
			out[i] = in[i]
		} else {
			s, ok := d.Sample(sampleSize)
			if !ok || s < 1 || s > maxColumns {
				return nil, errShape
			}
			out[i] = int(s)
		}
		known *= out[i]
	}
	if infer >= 0 {
		if known == 0 || product(in)%known != 0 {
			return nil, errShape
		}
		out[infer] = product(in) / known
	}
	return out, nil
}

func moveFlatten(_ *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	axis, err := normAxis(n.Int("axis", 1), len(in[0].shape)+1)
	if err != nil {
		return nil, err
	}
	out, err := in[0].reshape([]int{product(in[0].shape[:axis]), product(in[0].shape[axis:])})
	return []*sample{out}, err
}

func moveTranspose(_ *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	out, err := in[0].transpose(transposePerm(n, len(in[0].shape)))
	return []*sample{out}, err
}

// transposePerm returns the permutation of a Transpose of the given rank.
func transposePerm(n *graph.Node, rank int) []int {
	perm := make([]int, rank)
	for i := range perm {
		perm[i] = rank - 1 - i
	}
	if ints, ok := n.Ints("perm"); ok {
		perm = perm[:0]
		for _, p := range ints {
			perm = append(perm, int(p))
		}
	}
	return perm
}

func normAxis(axis int64, rank int) (int, error) {
	if axis < 0 {
		axis += int64(rank)
	}
	if axis < 0 || axis >= int64(rank) {
		return 0, fmt.Errorf("axis %d is out of range", axis)
	}
	return int(axis), nil
}

// axesOf reads the axes of Unsqueeze, Squeeze and Reduce: an attribute in old opsets, input 1 in new ones.
func axesOf(f *survey, n *graph.Node, rank int) ([]int, bool, error) {
	raw, given := n.Ints("axes")
	if v := n.Input(1); v != nil {
		if raw, given = f.Ints(v); !given {
			return nil, false, errors.New("its axes are not constant")
		}
	}
	if !given {
		return nil, false, nil
	}
	axes := make([]int, len(raw))
	for i, a := range raw {
		x, err := normAxis(a, rank)
		if err != nil {
			return nil, false, err
		}
		axes[i] = x
	}
	slices.Sort(axes)
	return slices.Compact(axes), true, nil
}

func moveUnsqueeze(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	raw, ok := n.Ints("axes")
	if v := n.Input(1); v != nil {
		raw, ok = t.facts.Ints(v)
	}
	if !ok || len(raw) > 8 {
		return nil, errors.New("its axes are not constant")
	}
	axes, _, err := axesOf(t.facts, n, len(in[0].shape)+len(raw))
	if err != nil {
		return nil, err
	}
	s := in[0]
	for _, a := range axes {
		s = s.insert(a)
	}
	return []*sample{s}, nil
}

func moveSqueeze(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[0]
	axes, given, err := axesOf(t.facts, n, len(s.shape))
	if err != nil {
		return nil, err
	}
	for a := len(s.shape) - 1; a >= 0; a-- {
		if given && slices.Contains(axes, a) || !given && s.shape[a] == 1 {
			if s.shape[a] != 1 {
				return nil, errShape
			}
			s = s.drop(a)
		}
	}
	return []*sample{s}, nil
}

func moveSplit(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[0]
	axis, err := normAxis(n.Int("axis", 0), len(s.shape))
	if err != nil {
		return nil, err
	}
	sizes, err := splitSizes(t.facts, n, s.shape[axis])
	if err != nil {
		return nil, err
	}
	out := make([]*sample, len(n.Out))
	from := 0
	for i := range out {
		if i >= len(sizes) {
			return nil, errShape
		}
		out[i] = s.pick(axis, span(from, from+sizes[i], 1))
		from += sizes[i]
	}
	return out, nil
}

// splitSizes returns the sizes that a Split of an axis of the given length gives its outputs.
func splitSizes(f *survey, n *graph.Node, length int) ([]int, error) {
	raw, ok := n.Ints("split")
	if v := n.Input(1); v != nil {
		if raw, ok = f.Ints(v); !ok {
			return nil, errors.New("its sizes are not constant")
		}
	}
	var sizes []int
	total := 0
	if ok {
		for _, r := range raw {
			if r < 0 || r > int64(length) {
				return nil, errShape
			}
			sizes = append(sizes, int(r))
			total += int(r)
		}
	} else {
		count := len(n.Out)
		if count == 0 {
			return nil, errShape
		}
		each := (length + count - 1) / count
		for range count {
			sizes = append(sizes, min(each, length-total))
			total += sizes[len(sizes)-1]
		}
	}
	if total != length {
		return nil, errShape
	}
	return sizes, nil
}

func span(from, to, step int) []int {
	var out []int
	for i := from; step > 0 && i < to || step < 0 && i > to; i += step {
		out = append(out, i)
	}
	return out
}

func moveSlice(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[0]
	bounds, err := sliceBounds(t.facts, n, s.shape)
	if err != nil {
		return nil, err
	}
	for _, b := range bounds {
		if !b.known {
			if s.stored[b.axis] > 1 {
				return nil, errors.New("its bounds are not constant")
			}
			c := *s
			c.shape = slices.Clone(s.shape)
			c.shape[b.axis] = min(sampleSize, s.shape[b.axis])
			s = &c
			continue
		}
		idx := span(b.start, b.end, b.step)
		if len(idx) == 0 {
			if s.stored[b.axis] > 1 {
				return nil, errShape
			}
			idx = []int{0} // an axis of positions whose sampled length came out empty
		}
		s = s.pick(b.axis, idx)
	}
	return []*sample{s}, nil
}

// bound is a Slice along one axis, normalised to the axis: element indices from start towards end.
type bound struct {
	axis, start, end, step int
	known                  bool
}

// sliceBounds reads the bounds of a Slice in any opset's form.
func sliceBounds(f *survey, n *graph.Node, shape []int) ([]bound, error) {
	list := func(input int, attr string) ([]graph.Dim, bool) {
		if v := n.Input(input); v != nil {
			k, ok := f.Known(v)
			if !ok {
				return nil, true
			}
			return k.Ints, true
		}
		ints, ok := n.Ints(attr)
		var out []graph.Dim
		for _, i := range ints {
			out = append(out, graph.Int(i))
		}
		return out, ok
	}
	starts, _ := list(1, "starts")
	ends, _ := list(2, "ends")
	axes, haveAxes := list(3, "axes")
	steps, haveSteps := list(4, "steps")
	count := max(len(starts), len(ends), len(axes))
	if count == 0 || haveAxes && len(axes) != count {
		return nil, errors.New("its bounds are not constant")
	}
	var out []bound
	for i := range count {
		a := int64(i)
		if haveAxes {
			c, ok := axes[i].Const()
			if !ok {
				return nil, errors.New("its axes are not constant")
			}
			a = c
		}
		axis, err := normAxis(a, len(shape))
		if err != nil {
			return nil, err
		}
		b := bound{axis: axis, step: 1}
		length := int64(shape[axis])
		step := int64(1)
		if haveSteps {
			if i >= len(steps) {
				return nil, errors.New("its steps are not constant")
			}
			step, _ = steps[i].Const()
			if step == 0 {
				return nil, errors.New("its step is not a constant")
			}
		}
		b.step = int(step)
		if i < len(starts) && i < len(ends) {
			lo, ok1 := starts[i].Sample(sampleSize)
			hi, ok2 := ends[i].Sample(sampleSize)
			_, c1 := starts[i].Const()
			_, c2 := ends[i].Const()
			whole := c1 && lo == 0 && hi >= length
			b.known = ok1 && ok2 && (c1 && c2 || whole || !starts[i].Unknown() && !ends[i].Unknown())
			if lo < 0 {
				lo += length
			}
			if hi < 0 && (step > 0 || hi >= -length) {
				hi += length
			}
			if step > 0 {
				b.start, b.end = int(min(max(lo, 0), length)), int(min(max(hi, 0), length))
			} else {
				b.start, b.end = int(min(max(lo, 0), length-1)), int(min(max(hi, -1), length-1))
			}
		}
		out = append(out, b)
	}
	return out, nil
}

func moveGather(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[0]
	axis, err := normAxis(n.Int("axis", 0), len(s.shape))
	if err != nil {
		return nil, err
	}
	known, ok := t.facts.Known(n.Input(1))
	if !ok {
		if s.stored[axis] > 1 {
			return nil, errors.New("its indices are not constant")
		}
		dims, ok := concreteShape(t.facts, n.Input(1))
		if !ok {
			return nil, errors.New("the shape of its indices is not known")
		}
		out := s.drop1(axis)
		for i := len(dims) - 1; i >= 0; i-- {
			out = out.insert(axis)
			out.shape[axis] = dims[i]
		}
		return []*sample{out}, nil
	}
	idx := make([]int, len(known.Ints))
	for i, d := range known.Ints {
		c, ok := d.Sample(sampleSize)
		if _, isConst := d.Const(); !ok || !isConst && s.stored[axis] > 1 {
			return nil, errors.New("its indices are not constant")
		}
		if c < 0 {
			c += int64(s.shape[axis])
		}
		if c < 0 || c >= int64(s.shape[axis]) {
			if s.stored[axis] > 1 {
				return nil, fmt.Errorf("its index %d is out of range", c)
			}
			c = 0
		}
		idx[i] = int(c)
	}
	if len(idx) == 0 {
		return nil, errShape
	}
	out := s.pick(axis, idx)
	shape := slices.Clone(out.shape[:axis])
	for _, d := range known.Shape {
		shape = append(shape, int(d))
	}
	shape = append(shape, out.shape[axis+1:]...)
	out, err = out.reshape(shape)
	return []*sample{out}, err
}

// drop1 removes an axis along which labels do not change.
func (s *sample) drop1(axis int) *sample {
	c := *s
	c.shape = slices.Clone(s.shape)
	c.shape[axis] = 1
	return c.drop(axis)
}

func moveConcat(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	var rank int
	for _, s := range in {
		if s != nil {
			rank = len(s.shape)
		}
	}
	axis, err := normAxis(n.Int("axis", 0), rank)
	if err != nil {
		return nil, err
	}
	sizes := make([]int, len(in))
	parts := slices.Clone(in)
	for i, s := range in {
		if dims, ok := t.facts.Shape(n.In[i]); ok && axis < len(dims) && dims[axis].Equal(graph.Int(0)) {
			parts[i] = nil // what a rotation of all channels leaves as it is
			continue
		}
		if s != nil && len(s.shape) != rank {
			return nil, errShape
		}
		if s != nil {
			sizes[i] = s.shape[axis]
			continue
		}
		shape, ok := concreteShape(t.facts, n.In[i])
		if !ok || len(shape) != rank {
			return nil, fmt.Errorf("the shape of its input %q is not known", n.In[i])
		}
		sizes[i] = shape[axis]
	}
	out, err := t.labels.concat(axis, parts, sizes)
	return []*sample{out}, err
}

func moveExpand(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	known, ok := t.facts.Known(n.Input(1))
	var target []int
	if ok {
		for _, d := range known.Ints {
			s, ok := d.Sample(sampleSize)
			if !ok || s > maxColumns {
				return nil, errors.New("its target shape is not known")
			}
			target = append(target, int(max(s, 1)))
		}
	} else if target, ok = concreteShape(t.facts, n.Out[0]); !ok {
		return nil, errors.New("its target shape is not known")
	}
	shape, err := broadcast(in[0].shape, target)
	if err != nil {
		return nil, err
	}
	return []*sample{in[0].expand(shape)}, nil
}

func moveTile(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	reps, ok := t.facts.Ints(n.Input(1))
	s := in[0]
	if !ok || len(reps) != len(s.shape) {
		return nil, errors.New("its repeats are not constant")
	}
	for a, r := range reps {
		if r < 1 || r > 1<<16 {
			return nil, errShape
		}
		idx := make([]int, 0, s.shape[a]*int(r))
		for range r {
			idx = append(idx, span(0, s.shape[a], 1)...)
		}
		s = s.pick(a, idx)
	}
	return []*sample{s}, nil
}

// moveReduce follows a statistic over some axes, which only the mixing walk does.
func moveReduce(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	if !t.mixing {
		return []*sample{nil}, nil
	}
	s := in[0]
	axes, given, err := axesOf(t.facts, n, len(s.shape))
	if err != nil {
		return nil, err
	}
	if !given {
		axes = span(0, len(s.shape), 1)
	}
	out := t.labels.reduce(s, axes, true)
	if n.Int("keepdims", 1) == 0 {
		for i := len(axes) - 1; i >= 0; i-- {
			out = out.drop(axes[i])
		}
	}
	return []*sample{out}, nil
}

// moveNormalize follows an operator that normalises over its last axes.
func moveNormalize(t *tracer, n *graph.Node, in []*sample) ([]*sample, error) {
	s := in[0]
	if !t.mixing {
		return []*sample{s}, nil
	}
	axis, err := normAxis(n.Int("axis", -1), len(s.shape))
	if err != nil {
		return nil, err
	}
	axes := span(axis, len(s.shape), 1)
	if n.OpType == "LpNormalization" {
		axes = []int{axis}
	}
	return []*sample{t.labels.reduce(s, axes, false)}, nil
}
