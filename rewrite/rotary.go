package rewrite

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// This file finds the rotary embedding (Su et al., arXiv 2104.09864, §3.4) of queries and keys in a graph, however it is
// spelled: it works out every element between the product and the projection, at small sizes, as a sum of elements of
// what is turned, each with an entry of a table. How those entries are computed is followed as far as is needed to see
// that two of them are the same.

// rotation is a rotary embedding of x: for channels a and b of a pair
//
//	(xₐ·cos − x_b·sin, xₐ·sin + x_b·cos)
//
// with pairs (i, i+half) or, interleaved, (2i, 2i+1); channels from 2·half on stay as they are.
type rotation struct {
	x           wire
	half        int
	interleaved bool
	cos, sin    turnTable
	between     []*graph.Value // wires after x, the last one included
}

// turnTable is a table [S, half] in a value: axes of positions and columns, the first column and the way to the next.
type turnTable struct {
	v                 *graph.Value
	key               string // the same for the same entries
	seq, column       int
	first, step, half int
}

// turnTerm is one element of what is turned with its factor, an entry of a table or 0 for the number 1.
type turnTerm struct {
	x, by int
	minus bool
}

// cell is an element of a wire: a sum of parts, or an entry of a table where there are none.
type cell struct {
	parts []turnTerm
	entry int
}

// array is a wire at small sizes, row-major.
type array struct {
	shape []int
	at    []cell
}

// turning evaluates the wires between x and what comes of it.
type turning struct {
	c       *core
	entries *entries
	x       *graph.Value
	env     map[string]int64 // sizes of batch and step
	gone    map[*graph.Node]factor
	made    map[*graph.Value]*array
	tables  []*graph.Value // that elements were multiplied by
}

// notTurned says that a block has no rotary embedding.
const notTurned = "nothing is turned"

// rotationOf finds what y, [batch, heads, step, channels] in the order of its wire, is turned from, or says why it is not
// known to be turned.
func (c *core) rotationOf(y wire, path *attention.Path) (r rotation, misfit string) {
	shape, ok := c.e.facts.Shape(y.v)
	if !ok || len(shape) != 4 {
		return r, fmt.Sprintf("the shape of %q is not known", y.v.Name)
	}
	t := &turning{c: c, entries: c.e.fusedOps().entries, env: map[string]int64{}, gone: map[*graph.Node]factor{}}
	for i, axis := range []int{0, y.seq} {
		if _, fixed := shape[axis].Const(); !fixed {
			t.env[shape[axis].String()] = int64(i + 2)
		}
	}
	for _, v := range []*graph.Value{c.b.QK.In[0], c.b.QK.In[1]} {
		for _, f := range c.factorsBehind(v) {
			t.gone[f.node] = f
		}
	}
	at := map[*graph.Node]int{}
	for i, n := range y.v.Producer.Graph.Nodes {
		at[n] = i
	}
	// Go back from y, the latest node first; where a single wire is left, all of y comes from it.
	front, between, turned := []*graph.Value{y.v}, []*graph.Value(nil), false
	for tries := 0; tries < 4; {
		last := slices.MaxFunc(front, func(a, b *graph.Value) int { return at[a.Producer] - at[b.Producer] })
		n := last.Producer
		if n == nil || last == path.Projection.Output || len(n.Subgraphs) > 0 {
			break
		}
		front = slices.DeleteFunc(front, func(v *graph.Value) bool {
			if v.Producer == n {
				between = append(between, v)
			}
			return v.Producer == n
		})
		sides := 0
		for _, x := range n.In {
			if _, on := path.Wires[x]; on && !slices.Contains(front, x) {
				front = append(front, x)
			} else if _, scalar := c.e.facts.Scalar(x); x != nil && !on && !scalar && c.e.facts.Const(x) == nil {
				sides++
			}
		}
		turned = turned || n.Is("Mul") && sides > 0
		if len(front) == 0 {
			break
		}
		if len(front) > 1 || !turned {
			continue
		}
		tries++
		t.x, t.made, t.tables = front[0], map[*graph.Value]*array{}, nil
		r, why := t.rotation(y, shape)
		if why == "" || strings.Contains(why, "sequence to sequence") {
			r.between = between
			return r, why
		}
		misfit = why
	}
	if misfit == "" {
		misfit = notTurned
	}
	return r, misfit
}

// size is a dimension at small sizes; ok is false when it depends on others than batch and step.
func (t *turning) size(v *graph.Value) (out []int, ok bool) {
	shape, ok := t.c.e.facts.Shape(v)
	if !ok {
		return nil, false
	}
	n := 1
	for _, d := range shape {
		x, ok := d.Eval(t.env)
		if !ok || x < 1 || x > 1<<16 {
			return nil, false
		}
		out = append(out, int(x))
		n *= int(x)
	}
	return out, n <= 1<<18
}

// rotation reads the pairs and tables off the elements of y.
func (t *turning) rotation(y wire, dims []graph.Dim) (r rotation, misfit string) {
	out, from := t.wire(y.v), t.wire(t.x)
	const unknown = "what is done to queries or keys is not known to be a rotary embedding"
	if out == nil || from == nil || len(out.shape) != 4 || len(from.shape) != 4 {
		return r, unknown
	}
	axes := [4]int{0, y.heads, y.seq, y.channel}
	element := func(i [4]int) cell {
		var at [4]int
		for a, axis := range axes {
			at[axis] = i[a]
		}
		return out.at[place(out.shape, at[:])]
	}
	// own is the element of x with the same indices: the one that has no sign and comes first or second.
	size := [4]int{out.shape[0], out.shape[y.heads], out.shape[y.seq], out.shape[y.channel]}
	perm, ok := sameAxes(element, size, from.shape)
	if !ok {
		return r, unknown
	}
	own := func(i [4]int) int {
		var at [4]int
		for a, axis := range perm {
			at[axis] = i[a]
		}
		return place(from.shape, at[:])
	}
	turned := 0
	for turned < size[3] && len(element([4]int{0, 0, 0, turned}).parts) == 2 {
		turned++
	}
	r.half = turned / 2
	if r.half == 0 || turned%2 != 0 {
		return r, unknown
	}
	first := element([4]int{})
	r.interleaved = slices.ContainsFunc(first.parts, func(p turnTerm) bool { return p.x == own([4]int{0, 0, 0, 1}) }) && r.half > 1
	cos, sin := make([][]int, size[2]), make([][]int, size[2])
	for s := range cos {
		cos[s], sin[s] = make([]int, r.half), make([]int, r.half)
	}
	for b := range size[0] {
		for h := range size[1] {
			for s := range size[2] {
				for ch := range size[3] {
					e := element([4]int{b, h, s, ch})
					self := own([4]int{b, h, s, ch})
					if ch >= turned {
						if len(e.parts) != 1 || e.parts[0] != (turnTerm{x: self}) {
							return r, unknown
						}
						continue
					}
					pair, other, upper := ch%r.half, (ch+r.half)%turned, ch >= r.half
					if r.interleaved {
						pair, other, upper = ch/2, ch^1, ch%2 == 1
					}
					if len(e.parts) != 2 {
						return r, unknown
					}
					p, q := e.parts[0], e.parts[1]
					if p.x != self {
						p, q = q, p
					}
					if p.x != self || q.x != own([4]int{b, h, s, other}) || p.minus || q.minus == upper || p.by == 0 || q.by == 0 {
						return r, unknown
					}
					if b == 0 && h == 0 && !upper {
						cos[s][pair], sin[s][pair] = p.by, q.by
					}
				}
				for ch := range turned {
					e := element([4]int{b, h, s, ch})
					pair := ch % r.half
					if r.interleaved {
						pair = ch / 2
					}
					for _, p := range e.parts {
						want := cos[s][pair]
						if p.x != own([4]int{b, h, s, ch}) {
							want = sin[s][pair]
						}
						switch {
						case p.by == want:
						case b > 0:
							return r, "positions may differ from sequence to sequence of a batch, and the operator turns a prompt by those of the first"
						default:
							return r, unknown
						}
					}
				}
			}
		}
	}
	if perm[0] != 0 {
		return r, unknown
	}
	r.x = wire{t.x, perm[1], perm[2], perm[3], y.n}
	for _, s := range []struct {
		table *turnTable
		want  [][]int
	}{{&r.cos, cos}, {&r.sin, sin}} {
		if *s.table, ok = t.locate(s.want, dims[y.seq]); !ok {
			return r, "the tables of cos and sin lie on no pair of axes"
		}
	}
	return r, ""
}

// sameAxes returns the axis of x that each axis of batch, heads, step and channels lies on.
func sameAxes(element func([4]int) cell, size [4]int, shape []int) (perm [4]int, ok bool) {
	// An element is made of itself and of its partner, which has another channel: the axes but that of the channels are
	// where both move; whichever part is looked at, it is the same place in a neighbour.
	base := element([4]int{})
	if len(base.parts) == 0 {
		return perm, false
	}
	where := func(c cell) [][]int {
		var out [][]int
		for _, p := range c.parts {
			out = append(out, index(shape, p.x))
		}
		return out
	}
	from := where(base)
	left := []int{0, 1, 2, 3}
	for a := range 3 {
		perm[a] = -1
		if size[a] == 1 {
			continue
		}
		var i [4]int
		i[a] = 1
		to := where(element(i))
		if len(to) != len(from) {
			return perm, false
		}
		for axis := range 4 {
			if to[0][axis] != from[0][axis] {
				perm[a] = axis
				break
			}
		}
		if perm[a] < 0 {
			return perm, false
		}
		left = slices.DeleteFunc(left, func(x int) bool { return x == perm[a] })
	}
	// The channels lie on the last axis of their size, what has one entry anywhere.
	perm[3] = -1
	for i, axis := range slices.Backward(left) {
		if shape[axis] == size[3] {
			perm[3] = axis
			left = slices.Delete(left, i, i+1)
			break
		}
	}
	for a := range 3 {
		if perm[a] < 0 && len(left) > 0 {
			perm[a], left = left[0], left[1:]
		}
	}
	for a, axis := range perm {
		if axis < 0 || shape[axis] != size[a] {
			return perm, false
		}
	}
	return perm, len(left) == 0
}

// follows reports whether v is computed from what is turned.
func (t *turning) follows(v *graph.Value, seen map[*graph.Value]bool) bool {
	if v == t.x {
		return true
	}
	if v == nil || v.Producer == nil || seen[v] {
		return false
	}
	seen[v] = true
	return slices.ContainsFunc(v.Producer.In, func(x *graph.Value) bool { return t.follows(x, seen) })
}

// locate finds entries [S, half] in one of the tables.
func (t *turning) locate(want [][]int, seq graph.Dim) (r turnTable, ok bool) {
	half := len(want[0])
	for _, v := range t.tables {
		if t.follows(v, map[*graph.Value]bool{}) {
			continue
		}
		m := t.made[v]
		shape, _ := t.c.e.facts.Shape(v)
		for s := range m.shape {
			if !shape[s].Equal(seq) {
				continue
			}
			for column := range m.shape {
				for first := range m.shape[column] {
					for _, step := range []int{1, 2} {
						if column == s || first+step*(half-1) >= m.shape[column] {
							continue
						}
						at := make([]int, len(m.shape))
						same := true
						for i := range want {
							for j := range half {
								at[s], at[column] = i, first+step*j
								same = same && m.at[place(m.shape, at)].entry == want[i][j]
							}
						}
						if same {
							return turnTable{v, fmt.Sprint(want, seq, t.env), s, column, first, step, half}, true
						}
					}
				}
			}
		}
	}
	return r, false
}

func place(shape, at []int) int {
	x := 0
	for a, n := range shape {
		x = x*n + at[a]
	}
	return x
}

func index(shape []int, x int) []int {
	at := make([]int, len(shape))
	for a := len(shape) - 1; a >= 0; a-- {
		at[a], x = x%shape[a], x/shape[a]
	}
	return at
}
