package unfuse

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// Whether two bodies compute the same product is found by computing both, on small whole numbers, which float64 adds and
// multiplies exactly: bilinear forms that differ anywhere agree on random operands by bad luck alone.

// sameProduct reports an error unless the branches of an If give the same wherever the first is taken, as far as its condition
// tells: a form may ask for one row, say, or for a whole number of pieces.
func (w *writer) sameProduct(then, els *graph.Graph) error {
	c := comparison{facts: w.facts, cond: w.in(0), then: then, els: els, readers: w.n.Out[0].Users()}
	c.from, _ = factors(els)
	for _, v := range c.from {
		shape, ok := w.facts.Shape(v)
		if !ok {
			return fmt.Errorf("the shape of %q, which it multiplies, is not known", v.Name)
		}
		c.shapes = append(c.shapes, shape)
	}
	id := c.signature()
	if done, ok := w.compared[id]; ok {
		return done
	}
	err := c.run(&w.work)
	w.compared[id] = err
	return err
}

// maxWork bounds the elements that all comparisons of a model compute, so that a hostile file cannot ask for more.
const maxWork = 1 << 31

// comparison is of two bodies that multiply the same operands.
type comparison struct {
	facts     *graph.Facts
	cond      *graph.Value
	then, els *graph.Graph
	readers   []graph.Use // of what they give
	from      []*graph.Value
	shapes    [][]graph.Dim // of the operands
}

// enough sizes at which two bodies agree tell that they compute the same.
const enough = 4

// run spends what it computes of work.
func (c *comparison) run(work *int64) error {
	agreed := 0
	for sizes := range trials(c.shapes, c.lengths()) {
		if *work < 0 {
			return errors.New("whether its branches give the same takes too long to tell")
		}
		e := &evaluation{c.facts, sizes, work}
		if taken, ok := e.number(c.cond, maxCondition); ok && taken == 0 {
			continue
		}
		given, ok := e.operands(c.from, c.shapes)
		if !ok {
			continue
		}
		x, err := e.compute(c.then, given)
		if err != nil {
			continue
		}
		y, err := e.compute(c.els, given)
		switch {
		case err != nil:
			continue
		case !slices.Equal(x.data, y.data) || !slices.Equal(x.shape, y.shape) && !e.reshaped(c.readers, x, y):
			return errors.New("its branches multiply the same values and give different results")
		}
		if agreed++; agreed == enough {
			break
		}
	}
	if agreed == 0 {
		return errors.New("its branches multiply the same values, and whether they give the same could not be told")
	}
	return nil
}

// reshaped reports whether all who read x or y give it a shape that is the same for both.
func (e *evaluation) reshaped(readers []graph.Use, x, y *array) bool {
	return !slices.ContainsFunc(readers, func(u graph.Use) bool {
		if !u.Node.Is("Reshape") || u.Index != 0 {
			return true
		}
		a, err := reshapeArray(e, u.Node, x)
		if err != nil {
			return true
		}
		b, err := reshapeArray(e, u.Node, y)
		return err != nil || !slices.Equal(a.shape, b.shape)
	})
}

// operands makes values of the given shapes of small whole numbers; ok is false where there would be too many.
func (e *evaluation) operands(from []*graph.Value, shapes [][]graph.Dim) (given map[*graph.Value]*array, ok bool) {
	given = map[*graph.Value]*array{}
	r := rand.New(rand.NewPCG(1, 2))
	for i, v := range from {
		var shape []int
		for _, d := range shapes[i] {
			n, ok := d.Eval(e.sizes)
			if !ok || n < 0 || n > maxElements {
				return nil, false
			}
			shape = append(shape, int(n))
		}
		x, err := newArray(shape)
		if err != nil {
			return nil, false
		}
		e.spend(len(x.data))
		for j := range x.data {
			x.data[j] = float64(r.IntN(9) - 4)
		}
		given[v] = x
	}
	return given, true
}

// trials are sizes for the symbols of shapes: 2 for all, or 1 for all but one or two, which have one of the given lengths.
func trials(shapes [][]graph.Dim, lengths []int64) iter.Seq[map[string]int64] {
	var names []string
	for _, d := range slices.Concat(shapes...) {
		names = append(names, d.Symbols()...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	sized := func(rest, long int64, of ...string) map[string]int64 {
		sizes := map[string]int64{}
		for _, n := range names {
			sizes[n] = rest
			if slices.Contains(of, n) {
				sizes[n] = long
			}
		}
		return sizes
	}
	return func(yield func(map[string]int64) bool) {
		if !yield(sized(2, 2)) {
			return
		}
		for _, long := range lengths {
			for i, n := range names {
				if !yield(sized(1, long, n)) {
					return
				}
				for _, m := range names[:i] {
					if !yield(sized(1, long, n, m)) {
						return
					}
				}
			}
		}
	}
}

// maxLengths bounds how many lengths are tried.
const maxLengths = 8

// lengths are those of which bodies that cut a dimension into pieces get two, whatever number that they reshape to is
// the length of a piece; ascending.
func (c *comparison) lengths() []int64 {
	var out []int64
	for _, g := range []*graph.Graph{c.then, c.els} {
		for _, n := range g.Nodes {
			target, ok := c.facts.Known(n.Input(1))
			if !n.Is("Reshape") || !ok {
				continue
			}
			for _, d := range target.Ints {
				if n, ok := d.Const(); ok && n > 1 && n <= maxElements && !slices.Contains(out, 2*n) && len(out) < maxLengths {
					out = append(out, 2*n)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// compute computes what a body gives.
func (e *evaluation) compute(g *graph.Graph, given map[*graph.Value]*array) (*array, error) {
	known := maps.Clone(given)
	for _, n := range g.Nodes {
		step, ok := steps[n.OpType]
		if !ok {
			continue // on no way to the output
		}
		var in []*array
		for i, v := range n.In {
			if step.data(i) {
				in = append(in, known[v])
			}
		}
		if len(in) == 0 || slices.Contains(in, nil) {
			continue
		}
		out, err := step.take(e, n, in)
		if err != nil {
			return nil, err
		}
		for i, v := range n.Out {
			if i < len(out) && v != nil {
				known[v] = out[i]
				e.spend(len(out[i].data))
			}
		}
		if *e.work < 0 {
			return nil, errForm
		}
	}
	if y := known[g.Outputs[0]]; y != nil {
		return y, nil
	}
	return nil, errForm
}

// nameless are symbols that facts made up for what nobody named.
var nameless = regexp.MustCompile(`\?[0-9]+`)

// signature is the same for comparisons that look at the same.
func (c *comparison) signature() string {
	var out strings.Builder
	number := map[*graph.Value]int{nil: -1}
	note := func(v *graph.Value) {
		number[v] = len(number)
		if known, ok := c.facts.Known(v); ok {
			fmt.Fprint(&out, " is ", *known)
		} else if v.Const() != nil {
			fmt.Fprintf(&out, " is %p", v)
		}
	}
	node := func(n *graph.Node) {
		for _, v := range n.In {
			if _, ok := number[v]; !ok {
				note(v)
			}
		}
		fmt.Fprint(&out, " ", n.OpType, n.Proto.Attribute)
		for _, v := range n.In {
			fmt.Fprint(&out, " ", number[v])
		}
		for _, v := range n.Out {
			if v != nil {
				note(v)
			}
		}
	}
	fmt.Fprintf(&out, "%p", c.cond)
	for i, v := range c.from {
		number[v] = len(number)
		fmt.Fprint(&out, c.shapes[i])
	}
	for _, g := range []*graph.Graph{c.then, c.els} {
		for _, n := range g.Nodes {
			node(n)
		}
		fmt.Fprint(&out, " gives ", number[g.Outputs[0]])
	}
	for _, u := range c.readers {
		fmt.Fprint(&out, " read ", u.Index)
		if u.Node.Is("Reshape") {
			number[u.Node.In[0]] = -2
			node(u.Node)
		}
	}
	order := map[string]int{}
	return nameless.ReplaceAllStringFunc(out.String(), func(name string) string {
		if _, ok := order[name]; !ok {
			order[name] = len(order)
		}
		return fmt.Sprint("?", order[name])
	})
}
