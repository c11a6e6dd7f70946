package fusion

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// Target chooses the numbers of key and value heads for a block.
type Target func(b *attention.Block) (key, value int, err error)

// HeadCounts is the target of the same numbers everywhere; 0 keeps the heads of that side, as does a number that a block
// does not exceed anyway.
func HeadCounts(keyHeads, valueHeads int) Target {
	return func(b *attention.Block) (key, value int, err error) {
		key, value = keyHeads, valueHeads
		for _, side := range []struct {
			what string
			n    *int
			have int
		}{{"key", &key, b.KVHeads}, {"value", &value, b.ValueHeads}} {
			switch n := *side.n; {
			case n < 0:
				return 0, 0, fmt.Errorf("%d %s heads; want at least 1", n, side.what)
			case n == 0 || n >= side.have:
				*side.n = side.have
			case side.have%n != 0:
				return 0, 0, fmt.Errorf("the %d %s heads of block %q do not make %d equal groups; want one of %s",
					side.have, side.what, b.Name, n, divisors(side.have))
			}
		}
		return key, value, nil
	}
}

// CacheShare is the target of at most the given fraction of a block's cache bytes, 0 < fraction ≤ 1, made of groups of
// equal size: of all that fit, the pair of head counts that uses most of the budget, the more balanced of two equal
// ones, and then the one with more key heads (values are the more redundant of the two in trained models, DHA §3).
func CacheShare(fraction float64) Target {
	return func(b *attention.Block) (key, value int, err error) {
		if !(fraction > 0 && fraction <= 1) {
			return 0, 0, fmt.Errorf("a share of %g of the cache; want more than 0 and at most 1", fraction)
		}
		size := func(k, v int) int { return k*b.HeadDim + v*b.ValueDim }
		whole := size(b.KVHeads, b.ValueHeads)
		for k := b.KVHeads; k >= 1; k-- {
			for v := b.ValueHeads; v >= 1; v-- {
				if b.KVHeads%k != 0 || b.ValueHeads%v != 0 || k != v && SharedCache(b) || float64(size(k, v)) > fraction*float64(whole) {
					continue
				}
				used, best := size(k, v), size(key, value)
				if used > best || used == best && abs(k-v) < abs(key-value) {
					key, value = k, v
				}
			}
		}
		if key == 0 {
			return 0, 0, fmt.Errorf("%.3g %% of the cache of block %q is less than one key head and one value head, which take %.3g %%",
				100*fraction, b.Name, 100*float64(size(1, 1))/float64(whole))
		}
		return key, value, nil
	}
}

// CachedHeads returns how many key and value heads the cache of a block holds: more than are projected where the graph
// caches heads that it has repeated for grouped queries. Without a cache they are those that are projected.
func CachedHeads(b *attention.Block) (key, value int) {
	key, value = b.KVHeads, b.ValueHeads
	if c := b.KeyCache; c != nil {
		key = max(key, c.Heads)
	}
	if c := b.ValCache; c != nil {
		value = max(value, c.Heads)
	}
	return key, value
}

// SharedCache reports whether a block keeps keys and values in one tensor, past [2, batch, heads, seq, dim], whose shape
// both must fit: the groups of keys and of values are then the same.
func SharedCache(b *attention.Block) bool {
	k, v := b.KeyCache, b.ValCache
	return k != nil && k.Stacked || v != nil && v.Stacked || k != nil && v != nil && k.Past != nil && k.Past == v.Past
}

// CacheBytes returns the bytes that one position of one sequence takes in the cache of a block with the given numbers
// of key and value heads. The element type is that of the block's cache, or of its projected keys and values when the
// graph has none; what has no known type counts as nothing.
func CacheBytes(b *attention.Block, facts *graph.Facts, keyHeads, valueHeads int) int64 {
	side := func(p *attention.Path, c *attention.Cache, channels int) int64 {
		stored := p.Projection.Output
		if c != nil && c.Past != nil {
			stored = c.Past
		} else if c != nil && c.Present != nil {
			stored = c.Present
		}
		return int64(channels) * int64(graph.ElementBits(facts.Elem(stored))) / 8
	}
	return side(b.Key, b.KeyCache, keyHeads*b.HeadDim) + side(b.Value, b.ValCache, valueHeads*b.ValueDim)
}

func abs(x int) int { return max(x, -x) }
