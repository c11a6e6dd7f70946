package attention

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// A cross attention can be spread over graphs: one projects keys and values of the encoder's states and gives them out
// (the encoder itself, or the decoder's first step), another takes them as inputs. Such a block has bare paths; what
// fills them is found by the cache's name, or by the operator whose bodies pass it on.

// Fill is the way from a projection to a cache that blocks of other graphs read.
type Fill struct {
	Path  *Path
	Cache *Cache // Present is where the path ends
}

// PastWords and PresentWords mark the two ends of a cache in the names of inputs and outputs, longest first.
var (
	PastWords    = []string{"past_key_values", "past_key_value", "pasts", "past", "cache_in", "state_in", "cache", "mems"}
	PresentWords = []string{"present_key_values", "present_key_value", "presents", "present", "cache_out", "state_out", "new_cache", "new_mems", "updated"}
)

// CacheName is what the names of a past and its present have in common: past_key_values.0.key and present.0.key are both
// *.0.key. It is the name itself where none of the words is in it.
func CacheName(name string, words []string) string {
	for _, w := range words {
		if before, after, ok := strings.Cut(name, w); ok {
			return before + "*" + after
		}
	}
	return name
}

// Projected returns the paths that project the keys and the values of a block: its own, or those that fill its caches. Each
// is nil where another block of the same layer does.
func (b *Block) Projected() (key, value *Path) {
	of := func(p *Path, fills []*Fill) *Path {
		switch {
		case p.Bare == "":
			return p
		case len(fills) > 0:
			return fills[0].Path
		}
		return nil
	}
	return of(b.Key, b.KeyFills), of(b.Value, b.ValueFills)
}

// fed lists the bare sides of a block that come from a cache: an input of a graph with heads, while its queries are
// projected.
func (b *Block) fed() []*[]*Fill {
	if b.Query.Bare != "" {
		return nil
	}
	var out []*[]*Fill
	for _, s := range []struct {
		p     *Path
		c     *Cache
		fills *[]*Fill
	}{{b.Key, b.KeyCache, &b.KeyFills}, {b.Value, b.ValCache, &b.ValueFills}} {
		switch {
		case s.p.Bare == "":
		case s.c == nil || s.c.Past != s.p.Projection.Output:
			return nil
		default:
			out = append(out, s.fills)
		}
	}
	return out
}

// feed finds what fills the caches of blocks that project no keys and values themselves, in any of the models.
func feed(all []*search) {
	given := map[*graph.Value]bool{} // by blocks that project
	for _, s := range all {
		for _, b := range s.report.Blocks {
			for _, side := range []struct {
				p *Path
				c *Cache
			}{{b.Key, b.KeyCache}, {b.Value, b.ValCache}} {
				if side.p.Bare == "" {
					for _, v := range side.c.values() {
						given[v] = true
					}
				}
			}
		}
	}
	fills := map[*graph.Value]*Fill{}
	for _, s := range all {
		for _, b := range s.report.Blocks {
			sides := b.fed()
			known := len(sides) > 0
			for _, side := range sides {
				c, p := b.KeyCache, b.Key
				if side == &b.ValueFills {
					c, p = b.ValCache, b.Value
				}
				ok := false
				for _, g := range c.givers(all) {
					if given[g.v] {
						ok = true
						continue
					}
					fill, tried := fills[g.v]
					if !tried {
						fill = g.in.fill(g.v, p, c)
						fills[g.v] = fill
					}
					if fill != nil {
						*side, ok = append(*side, fill), true
					}
				}
				known = known && ok
			}
			switch {
			case known:
				b.Fixed = b.apart
			case len(sides) > 0:
				b.Fixed = fmt.Sprintf("its keys and values come from the caches %q and %q, which another model fills: give that model too",
					b.Key.Projection.Output.Name, b.Value.Projection.Output.Name)
			}
		}
	}
}

// giver is a value that may be given to a cache.
type giver struct {
	v  *graph.Value
	in *search
}

// givers lists the values that become a cache: what bodies of the same node give, and outputs of the models whose names
// match that of the input.
func (c *Cache) givers(all []*search) []giver {
	var out []giver
	for v := range c.Links {
		if !v.IsInput {
			for _, s := range all {
				if s.model == v.Graph.Model {
					out = append(out, giver{v, s})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b giver) int { return strings.Compare(a.v.Name, b.v.Name) })
	past, _ := c.Interface()
	if past == nil || past.Graph.Outer != nil {
		return out
	}
	for _, s := range all {
		for _, o := range s.model.Graph.Outputs {
			if o.Name == past.Name && s.model != past.Graph.Model || CacheName(o.Name, PresentWords) == CacheName(past.Name, PastWords) && o.Name != past.Name {
				out = append(out, giver{o, s})
			}
		}
	}
	return out
}

// fill describes the way from a projection to o, which becomes a cache of the form that p reads; nil when it is not of
// that form.
func (s *search) fill(o *graph.Value, p *Path, c *Cache) *Fill {
	f := s.survey
	found, _ := origins(f, o)
	if len(found) != 1 {
		return nil
	}
	t, err := newTracer(f, found[0].Output, -1, false)
	if err != nil {
		return nil
	}
	labels := t.at(o)
	axis := c.PastAxis
	if labels == nil || axis < 0 || axis >= len(labels.shape) || labels.shape[axis] != c.Heads {
		return nil
	}
	var others []int
	for a := range labels.shape {
		if a != axis {
			others = append(others, a)
		}
	}
	stored := slices.Repeat([]int{1}, len(labels.shape))
	stored[axis] = c.Heads
	_, columns, why := headColumns(t.labels, t.labels.reduce(labels, others, true).spread(stored))
	if why != "" || len(columns) != len(p.Columns) || len(columns[0]) != len(p.Columns[0]) {
		return nil
	}
	fill := &Fill{Path: &Path{Projection: found[0], Operand: o, Nodes: t.nodes}}
	if st := fill.Path.place(t, columns); st != nil || len(fill.Path.PerHead) > 0 {
		return nil
	}
	own := map[*graph.Node]bool{}
	for _, n := range fill.Path.Nodes {
		own[n] = true
	}
	var st *stop
	if fill.Cache, st = fill.Path.cache(f, t, own, "keys and values"); st != nil || fill.Cache == nil {
		return nil
	}
	return fill
}
