package unfuse

import (
	"fmt"
	"math"

	"onnx-dha/graph"
)

// core is softmax(cap(Q·Kᵀ·scale) + bias)·V, cap(x) = c·tanh(x/c).
type core struct {
	q, k, v   *graph.Value // [B, N, S, H], [B, G, T, H], [B, G, T, Hv]
	heads, kv int64        // N and G
	elem      elemType
	soft      elemType // of scores after the product, until the probabilities are multiplied
	scale     float64
	softcap   float64 // 0: none
	biases    []*graph.Value
	// sink is a score [1, N or 1, 1, 1] that stands beside those of the keys in the softmax and leads to no value; nil
	// without one.
	sink *graph.Value
	// blind marks queries [.., S, 1] whose probabilities, and context, are 0; nil: none.
	blind *graph.Value
}

// scores are the stages between the two products, all [B, N, S, T].
type scores struct{ product, capped, masked, probabilities *graph.Value }

// wide is the type in which contrib operators mask and normalise scores.
func wide(elem elemType) elemType {
	if elem == float16Type || elem == bfloat16Type {
		return float32Type
	}
	return elem
}

// attend writes the core and returns the context [B, N, S, Hv].
func (w *writer) attend(c core) (*graph.Value, scores, error) {
	var s scores
	// Scaled queries keep the product in range. What a scale has beyond a power of two would be rounded there in a 16-bit
	// type, so it follows in the wider one.
	first, second := c.scale, 1.0
	if c.soft != c.elem && c.scale > 0 {
		first = math.Exp2(math.Floor(math.Log2(c.scale)))
		second = c.scale / first
	}
	q, err := w.times(c.q, c.elem, first)
	if err != nil {
		return nil, s, err
	}
	k, v := w.repeat(c.k, c.heads, c.kv), w.repeat(c.v, c.heads, c.kv)
	x := w.as(w.op("MatMul", q, w.transpose(k, 0, 1, 3, 2)), c.elem, c.soft)
	if x, err = w.times(x, c.soft, second); err != nil {
		return nil, s, err
	}
	s.product = x
	if c.softcap > 0 {
		bound, err := w.number(c.soft, c.softcap)
		if err != nil {
			return nil, s, err
		}
		x = w.op("Mul", w.op("Tanh", w.op("Div", x, bound)), bound)
	}
	s.capped = x
	var bias *graph.Value
	for _, b := range c.biases {
		switch {
		case b == nil:
		case bias == nil:
			bias = b
		default:
			bias = w.op("Add", bias, b)
		}
	}
	if bias != nil {
		x = w.op("Add", x, bias)
	}
	s.masked = x
	if c.sink != nil {
		column := w.op("Expand", c.sink, w.concat(0, w.slice(w.op("Shape", x), 0, 0, 3, 1), w.ints(1)))
		x = w.concat(3, x, column)
	}
	p := w.nodes("Softmax", 1, []*graph.Value{x}, graph.IntAttr("axis", 3))[0]
	if c.sink != nil {
		p = w.slice(p, 3, 0, -1, 1)
	}
	if c.blind != nil {
		zero, err := w.number(c.soft, 0)
		if err != nil {
			return nil, s, err
		}
		p = w.op("Where", c.blind, zero, p)
	}
	s.probabilities = p
	return w.op("MatMul", w.as(p, c.soft, c.elem), v), s, nil
}

func (w *writer) times(v *graph.Value, elem elemType, x float64) (*graph.Value, error) {
	if x == 1 {
		return v, nil
	}
	c, err := w.number(elem, x)
	if err != nil {
		return nil, err
	}
	return w.op("Mul", v, c), nil
}

// repeat gives each of n query heads its key or value head: [B, G, T, H] → [B, N, T, H].
func (w *writer) repeat(v *graph.Value, n, g int64) *graph.Value {
	if n == g {
		return v
	}
	each := w.op("Expand", w.unsqueeze(v, 2), w.ints(1, 1, n/g, 1, 1))
	// A head's channels keep their number: [B, G, N/G, T, H] → [B, N, T, H].
	shape := w.op("Shape", v)
	return w.op("Reshape", each, w.concat(0, w.ints(0, n), w.slice(shape, 0, 2, 4, 1)))
}

// scaleOr is a scale attribute, where 0 asks for 1/√H.
func (w *writer) scaleOr(h int64) float64 {
	if s := w.n.Float("scale", 0); s != 0 {
		return float64(s)
	}
	return 1 / math.Sqrt(float64(h))
}

// span is what the positions of queries and keys are counted from: q [.., S, ..] and k [.., T, ..] with the axes of S
// and T, and the number of positions before the first query (nil: none).
type span struct {
	q, k         *graph.Value
	qAxis, kAxis int64
	past         *graph.Value
	id           string // S, T and past in the key of what is shared
}

// rowsAndColumns are the positions of queries [S, 1] and keys [1, T].
func (w *writer) rowsAndColumns(s span) (rows, columns *graph.Value) {
	rows = w.memo("rows "+s.id, func() *graph.Value {
		r := w.count(w.length(s.q, s.qAxis))
		if s.past != nil {
			r = w.op("Add", r, s.past)
		}
		return w.unsqueeze(r, 1)
	})
	return rows, w.columns(s)
}

func (w *writer) columns(s span) *graph.Value {
	return w.memo("columns "+s.id, func() *graph.Value { return w.unsqueeze(w.count(w.length(s.k, s.kAxis)), 0) })
}

// memo makes a value once for all expansions of the session.
func (w *writer) memo(id string, f func() *graph.Value) *graph.Value {
	id = fmt.Sprintf("%p %s", w.n.Graph, id) // bodies hide theirs from one another
	if w.shared[id] == nil {
		w.shared[id] = f()
	}
	return w.shared[id]
}

// later marks the keys that come after a query: [S, T], bool.
func (w *writer) later(s span) *graph.Value {
	return w.memo("later "+s.id, func() *graph.Value {
		rows, columns := w.rowsAndColumns(s)
		return w.op("Less", rows, columns)
	})
}

// outside marks the keys that a query with a window of n positions does not see, those after it included.
func (w *writer) outside(s span, n int64) *graph.Value {
	return w.memo(fmt.Sprint("outside ", n, s.id), func() *graph.Value {
		rows, columns := w.rowsAndColumns(s)
		before := w.op("Less", columns, w.op("Sub", rows, w.int(n-1)))
		return w.op("Or", w.later(s), before)
	})
}

// lowest is the finite number that the runtime hides keys with.
func lowest(elem elemType) float64 {
	switch elem {
	case float16Type:
		return -65504
	case bfloat16Type:
		return -3.3895313892515355e38
	case doubleType:
		return -math.MaxFloat64
	}
	return -math.MaxFloat32
}

// padding is the mask input of the contrib operators as numbers to add: filter where a key is hidden, broadcast to
// [B, 1, S, T]. nil without one. Kinds (dims of the mask): [B] lengths, [2·B] ends and starts, [B, T], [B, S, T].
func (w *writer) padding(mask *graph.Value, batch graph.Dim, s span, elem elemType, filter float64) (*graph.Value, error) {
	if mask == nil {
		return nil, nil
	}
	shape, ok := w.facts.Shape(mask)
	if !ok {
		return nil, fmt.Errorf("the rank of the mask %q is not known", mask.Name)
	}
	hide, err := w.number(elem, filter)
	if err != nil {
		return nil, err
	}
	zero, err := w.number(elem, 0)
	if err != nil {
		return nil, err
	}
	id := fmt.Sprint("padding ", mask.Name, elem, filter, s.id)
	from := w.facts.Elem(mask)
	number := func(v *graph.Value) *graph.Value { return w.as(v, from, int64Type) }
	switch {
	case len(shape) == 1 && shape[0].Equal(batch):
		return w.memo(id, func() *graph.Value {
			seen := w.op("Less", w.columns(s), w.unsqueeze(number(mask), 1))
			return w.unsqueeze(w.op("Where", seen, zero, hide), 1, 2)
		}), nil
	case len(shape) == 1 && shape[0].Equal(batch.Mul(graph.Int(2))):
		return w.memo(id, func() *graph.Value {
			ends := w.reshape(number(mask), 2, -1, 1)
			seen := w.op("Less", w.columns(s), w.pick(ends, 0, 0))
			before := w.op("Less", w.columns(s), w.pick(ends, 0, 1))
			return w.unsqueeze(w.op("Where", w.op("And", seen, w.op("Not", before)), zero, hide), 1, 2)
		}), nil
	case len(shape) == 1:
		return nil, fmt.Errorf("the mask %q has %v entries for a batch of %v; lengths [B] and ends with starts [2·B] are expanded", mask.Name, shape[0], batch)
	case len(shape) == 2, len(shape) == 3:
		return w.memo(id, func() *graph.Value {
			v := w.op("Where", w.op("Greater", number(mask), w.int(0)), zero, hide)
			if len(shape) == 2 {
				return w.unsqueeze(v, 1, 2)
			}
			return w.unsqueeze(v, 1)
		}), nil
	}
	return nil, fmt.Errorf("the mask %q has %d axes; masks of up to 3 are expanded", mask.Name, len(shape))
}

// causal puts the lowest number where a query does not see a key and otherwise what padding says (nil: 0).
func (w *writer) causal(hidden, padding *graph.Value, elem elemType) (*graph.Value, error) {
	low, err := w.number(elem, lowest(elem))
	if err != nil {
		return nil, err
	}
	id := fmt.Sprint("causal ", hidden.Name, " ", elem, " ", padding)
	if padding == nil {
		if padding, err = w.number(elem, 0); err != nil {
			return nil, err
		}
	}
	return w.memo(id, func() *graph.Value { return w.op("Where", hidden, low, padding) }), nil
}

// joined is past [B, G, P, H] with new keys or values after it.
func (w *writer) joined(past, now *graph.Value) *graph.Value {
	if past == nil {
		return now
	}
	return w.concat(2, past, now)
}

// pastLength is the number of cached positions, nil without a cache.
func (w *writer) pastLength(past *graph.Value, axis int64) *graph.Value {
	if past == nil {
		return nil
	}
	return w.length(past, axis)
}
