package fusion

import (
	"fmt"

	"onnx-dha/graph/attention"
)

// Target chooses the numbers of key and value heads for a block.
type Target func(b *attention.Block) (key, value int, err error)

// HeadCounts is the target of the same numbers everywhere; 0 keeps the heads of that side, as does a number that a block
// does not exceed anyway.
func HeadCounts(key, value int) Target {
	return func(b *attention.Block) (int, int, error) {
		counts := [2]int{key, value}
		for i, what := range []string{"key", "value"} {
			switch n := counts[i]; {
			case n < 0:
				return 0, 0, fmt.Errorf("%d %s heads; want at least 1", n, what)
			case n == 0 || n >= b.KVHeads:
				counts[i] = b.KVHeads
			case b.KVHeads%n != 0:
				return 0, 0, fmt.Errorf("the %d KV heads of block %q do not make %d equal groups of %s heads; want one of %s",
					b.KVHeads, b.Name, n, what, divisors(b.KVHeads))
			}
		}
		return counts[0], counts[1], nil
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
		whole := size(b.KVHeads, b.KVHeads)
		for k := b.KVHeads; k >= 1; k-- {
			for v := b.KVHeads; v >= 1; v-- {
				if b.KVHeads%k != 0 || b.KVHeads%v != 0 || float64(size(k, v)) > fraction*float64(whole) {
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

func abs(x int) int { return max(x, -x) }
