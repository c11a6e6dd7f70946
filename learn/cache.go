package learn

import (
	"math"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph/attention"
)

// headBytes is what heads take in the cache of a block at one position.
func (l *Lab) headBytes(i, keys, values int) int64 {
	b := l.Blocks[i]
	if n := fusion.CacheBytes(b, l.Facts, keys, values); n > 0 {
		return n
	}
	return int64(4 * (keys*b.HeadDim + values*b.ValueDim))
}

// cache is what the blocks take in the cache at one position, in bytes.
type cache struct {
	whole int64 // of the model as it is
	fixed int64 // the part of blocks that stay as they are
	least int64 // the rest with one key and one value head in every layer
}

func (l *Lab) cache() (c cache) {
	for i, b := range l.Blocks {
		if l.borrows(i) {
			continue
		}
		keys, values := fusion.CachedHeads(b)
		n := l.headBytes(i, keys, values)
		c.whole += n
		if b.Fixed != "" {
			c.fixed += n
		} else {
			c.least += l.headBytes(i, 1, 1)
		}
	}
	return c
}

// borrows reports whether a block reads the keys and values of an earlier one, which are cached once.
func (l *Lab) borrows(i int) bool {
	b := l.Blocks[i]
	return b.Fixed != "" && slices.ContainsFunc(l.Blocks[:i], func(o *attention.Block) bool {
		return o.Key.Projection.Node == b.Key.Projection.Node && o.Value.Projection.Node == b.Value.Projection.Node
	})
}

// bytesWith is what the whole cache takes when the layers have the chosen heads.
func (l *Lab) bytesWith(choices []fusion.Choice) int64 {
	n := l.cache().fixed
	for at, i := range l.Open() {
		n += l.headBytes(i, choices[at].Key, choices[at].Value)
	}
	return n
}

// original are the heads that the layers have.
func (l *Lab) original() (out []fusion.Choice) {
	for _, i := range l.Open() {
		out = append(out, fusion.Choice{Key: l.Blocks[i].KVHeads, Value: l.Blocks[i].ValueHeads})
	}
	return out
}

// budget is what a share of the cache leaves to the layers that can be changed.
func (c cache) budget(share float64) int64 {
	return int64(math.Floor(share*float64(c.whole)+1e-9)) - c.fixed
}

// pairs says which numbers of key and of value heads go together in block i; nil when all do.
func (r *run) pairs(i int) func(key, value int) bool {
	b := r.lab.Blocks[i]
	equal, one := r.q.Groups == fusion.EqualGroups, fusion.SharedCache(b)
	switch {
	case one || r.q.Layout != fusion.FreeLayout:
		return func(key, value int) bool { return key == value }
	case r.q.Nested && equal && b.KVHeads == b.ValueHeads:
		return func(key, value int) bool { return key%value == 0 || value%key == 0 }
	}
	return nil
}

// table is the table of block i before anything is measured: what is not to be had costs +Inf, all else nothing.
func (r *run) table(i int) fusion.Table {
	b := r.lab.Blocks[i]
	side := func(n int) []float64 {
		out := make([]float64, n)
		for c := range out {
			if r.q.Groups == fusion.EqualGroups && n%(c+1) != 0 {
				out[c] = math.Inf(1)
			}
		}
		return out
	}
	return fusion.Table{
		Block: b.Name, Key: side(b.KVHeads), Value: side(b.ValueHeads), Pairs: r.pairs(i),
		KeyBytes: r.lab.headBytes(i, 1, 0), ValueBytes: r.lab.headBytes(i, 0, 1),
	}
}

// reaches refuses a share of the cache that no numbers of heads come down to, before anything is measured.
func (r *run) reaches(share float64) error {
	if !(share > 0 && share <= 1) {
		return unfit("%.3g %% of the cache; want more than 0 %% and at most 100 %%", 100*share)
	}
	c := r.lab.cache()
	if least := 100 * float64(c.least+c.fixed) / float64(c.whole); c.budget(share) < c.least {
		if c.least+c.fixed >= c.whole {
			return unfit("every layer has one key head and one value head already; there is nothing to share")
		}
		return unfit("%.3g %% of the cache is less than one key head and one value head in every layer; want %.3g %% and more", 100*share, math.Ceil(10*least)/10)
	}
	var tables []fusion.Table
	for _, i := range r.lab.Open() {
		tables = append(tables, r.table(i))
	}
	if _, err := fusion.Allocate(tables, c.budget(share), r.q.Layout); err != nil {
		return unfit("%.3g %% of the cache: %w", 100*share, err)
	}
	return nil
}

// only returns the choices for a budget that leaves nothing to choose, one head of each kind in every layer, else nil.
func (r *run) only(share float64) []fusion.Choice {
	c := r.lab.cache()
	var out []fusion.Choice
	for _, i := range r.lab.Open() {
		if c.budget(share)-c.least >= min(r.lab.headBytes(i, 1, 0), r.lab.headBytes(i, 0, 1)) {
			return nil
		}
		out = append(out, fusion.Choice{Key: 1, Value: 1})
	}
	return out
}

// given are the numbers of heads that the request names, as far as a layer has them.
func (r *run) given() ([]fusion.Choice, error) {
	out := r.lab.original()
	for n, i := range r.lab.Open() {
		b := r.lab.Blocks[i]
		if r.q.Key > 0 {
			out[n].Key = min(r.q.Key, b.KVHeads)
		}
		if r.q.Value > 0 {
			out[n].Value = min(r.q.Value, b.ValueHeads)
		}
		t, c := r.table(i), out[n]
		switch {
		case math.IsInf(t.Key[c.Key-1], 1):
			return nil, unfit("the %d key heads of block %q do not make %d equal groups; want a divisor, or groups of any size", b.KVHeads, b.Name, c.Key)
		case math.IsInf(t.Value[c.Value-1], 1):
			return nil, unfit("the %d value heads of block %q do not make %d equal groups; want a divisor, or groups of any size", b.ValueHeads, b.Name, c.Value)
		case t.Pairs != nil && !t.Pairs(c.Key, c.Value):
			why := "the layout and the nesting of groups do not allow that"
			if fusion.SharedCache(b) {
				why = "its cache keeps both in one tensor, so their numbers must be equal"
			}
			return nil, unfit("block %q cannot have %d key heads and %d value heads: %s", b.Name, c.Key, c.Value, why)
		}
	}
	return out, nil
}
