package attention

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// Blocks may lie in the bodies of If, Loop and Scan nodes and of generation operators. Everything that describes one
// works within a scope and sees the values of the graphs around it; this file is about the boundaries between them.

// jointsOf lists, for every value that crosses the boundary of a body in g, how it does.
func jointsOf(g *graph.Graph) map[*graph.Value][]*graph.Joint {
	out := map[*graph.Value][]*graph.Joint{}
	g.All(func(n *graph.Node) bool {
		for _, j := range n.Joints() {
			for _, v := range j.Values() {
				if !slices.Contains(out[v], j) {
					out[v] = append(out[v], j)
				}
			}
		}
		return true
	})
	return out
}

// encloses reports whether values of outer can be seen in inner: they are one graph, or inner is a body inside outer.
func encloses(outer, inner *graph.Graph) bool {
	for ; inner != nil; inner = inner.Outer {
		if inner == outer {
			return true
		}
	}
	return false
}

// behind lists what v is computed from or stands for: the inputs of its producer, what the bodies of its producer give for
// it, and, of a body's input, what it is at first.
func (s *survey) behind(v *graph.Value) []*graph.Value {
	for _, j := range s.joints[v] {
		switch {
		case j.Out == v:
			return j.Results
		case slices.Contains(j.Inputs, v) && j.Initial != nil:
			return []*graph.Value{j.Initial}
		}
	}
	if v.Producer == nil {
		return nil
	}
	return v.Producer.In
}

// across returns the labels that v has on the other side of the boundary that it lies on: those of a result that comes out
// as v, or of what a body's input is at first. Results that carry labels must carry the same.
func (t *tracer) across(v *graph.Value) *sample {
	if len(t.facts.joints[v]) == 0 || v.Producer != nil && len(v.Producer.Subgraphs) == 0 {
		return nil
	}
	var out *sample
	for _, x := range t.facts.behind(v) {
		s := t.at(x)
		switch {
		case s == nil:
		case out == nil:
			out = s
		case !slices.Equal(out.stored, s.stored) || !slices.Equal(out.data, s.data):
			t.stops = append(t.stops, stop{v.Producer, v, "heads come in another form out of each branch"})
			return nil
		}
	}
	return out
}

// where names the body that a graph is, with those around it; empty for a main graph.
func where(g *graph.Graph) string {
	var parts []string
	for ; g != nil && g.Owner != nil; g = g.Outer {
		for attr, bodies := range g.Owner.Subgraphs {
			if i := slices.Index(bodies, g); i > 0 {
				parts = append(parts, fmt.Sprintf("%s %d of %v", attr, i, g.Owner))
			} else if i == 0 {
				parts = append(parts, fmt.Sprintf("%s of %v", attr, g.Owner))
			}
		}
	}
	return strings.Join(parts, " in ")
}

// twins finds blocks that are one layer of the model in several bodies: they read the same weights, or one takes the cache
// that the other gives. It returns the number of a layer for every block, in the order in which layers occur.
func twins(blocks []*Block) []int {
	parent := make([]int, len(blocks))
	for i := range parent {
		parent[i] = i
	}
	var root func(i int) int
	root = func(i int) int {
		if parent[i] != i {
			parent[i] = root(parent[i])
		}
		return parent[i]
	}
	// Layers of one body can share weights or a cache; then the first of them in one body is the first in another.
	type place struct {
		what any
		nth  int
	}
	type inBody struct {
		what any
		body *graph.Graph
	}
	first := map[place]int{}
	count := map[inBody]int{}
	join := func(i int, what any) {
		body := inBody{what, blocks[i].QK.Graph}
		at := place{what, count[body]}
		count[body]++
		if other, ok := first[at]; ok {
			parent[max(root(i), root(other))] = min(root(i), root(other))
		} else {
			first[at] = i
		}
	}
	for i, b := range blocks {
		join(i, [3]*graph.Value{b.Query.Projection.Weight, b.Key.Projection.Weight, b.Value.Projection.Weight})
		caches := map[any]bool{}
		for _, c := range []*Cache{b.KeyCache, b.ValCache} {
			for _, v := range c.values() {
				caches[v] = true
			}
			if c == nil {
				continue
			}
			past, present := c.Interface()
			if past != nil && past.Graph.Outer == nil {
				caches[CacheName(past.Name, PastWords)] = true
			}
			if present != nil && present.Graph.Outer == nil {
				caches[CacheName(present.Name, PresentWords)] = true
			}
		}
		for v := range caches {
			join(i, v)
		}
	}
	layer := make([]int, len(blocks))
	number := map[int]int{}
	for i := range blocks {
		r := root(i)
		if _, ok := number[r]; !ok {
			number[r] = len(number)
		}
		layer[i] = number[r]
	}
	return layer
}

// Layers returns one block for each layer of the model: of those in several bodies the first that projects its keys, and
// of these the first that takes a cache.
func Layers(blocks []*Block) []*Block {
	var out []*Block
	at := map[string]int{}
	rank := func(b *Block) int {
		switch {
		case b.Key.Bare != "" || b.Value.Bare != "":
			return 0
		case b.KeyCache == nil || b.KeyCache.Past == nil:
			return 1
		}
		return 2
	}
	for _, b := range blocks {
		i, ok := at[b.Name]
		switch {
		case !ok:
			at[b.Name] = len(out)
			out = append(out, b)
		case rank(b) > rank(out[i]):
			out[i] = b
		}
	}
	return out
}

// values lists all names of a cache.
func (c *Cache) values() []*graph.Value {
	if c == nil {
		return nil
	}
	var out []*graph.Value
	for _, v := range []*graph.Value{c.Past, c.Present} {
		if v != nil {
			out = append(out, v)
		}
	}
	for v := range c.Links {
		out = append(out, v)
	}
	return out
}

// Interface returns the names under which the caller of the model passes the cache and gets it back: the past and the present,
// or what they are called outside the bodies that they lie in. Each is nil where the cache has none.
func (c *Cache) Interface() (past, present *graph.Value) {
	past, present = c.Past, c.Present
	// The first by name, should there be several.
	better := func(v, than *graph.Value) bool {
		return than == nil || than.Graph.Outer != nil || than != c.Past && than != c.Present && v.Name < than.Name
	}
	for v := range c.Links {
		switch {
		case v.Graph.Outer != nil:
		case v.IsInput && better(v, past):
			past = v
		case !v.IsInput && v.IsOutput() && better(v, present):
			present = v
		}
	}
	return past, present
}

// link notes what else a cache is called that is v on one side of a boundary, its heads being on axis there and everywhere.
// What a loop starts from need not be a cache: one empty constant may be the beginning of many.
func (c *Cache) link(f *survey, v *graph.Value, axis int) {
	if c.Links == nil {
		c.Links = map[*graph.Value]int{}
	}
	for _, j := range f.joints[v] {
		for _, x := range j.Values() {
			if _, ok := c.Links[x]; ok {
				continue
			}
			c.Links[x] = axis
			if j.Initial != x || x.IsInput || x.Producer != nil && len(x.Producer.Subgraphs) > 0 {
				c.link(f, x, axis)
			}
		}
	}
}
