// Package rewrite applies a fusion plan to a graph: fused projections, lowered attention cores, smaller caches.
package rewrite

import (
	"slices"

	"onnx-dha/fusion"
)

// Result says what a rewrite changed, for reports and for verify.
type Result struct {
	Blocks []BlockChange
	Caches []CacheChange
	// Requantised are the quantised weights with other numbers, in the order in which they were made; a packed one that is
	// taken apart is there once for each part.
	Requantised []Requantised
	// Notes are limits of the rewritten model that callers should know.
	Notes []string
	// Elements of all weights of the model before and after (see Parameters).
	ParamsBefore, ParamsAfter int64
	NodesBefore, NodesAfter   int
}

// BlockChange is one rewritten block.
type BlockChange struct {
	Block    string
	Lowering fusion.Lowering // what the block was lowered to; expand where the form asked for does not fit
	Why      string          // the lowering was chosen
	Heads    int             // query heads
	// Key and value heads before (KVHeads, ValueHeadsBefore) and after.
	KVHeads, ValueHeadsBefore   int
	KeyHeads, ValueHeads        int
	KVBytesBefore, KVBytesAfter int64 // bytes that the keys and values of a token take
	Cached                      bool  // whether a cache holds them
}

// addBlock adds a rewritten block, once for a layer that is in several bodies.
func (r *Result) addBlock(b BlockChange) {
	if !slices.ContainsFunc(r.Blocks, func(o BlockChange) bool { return o.Block == b.Block }) {
		r.Blocks = append(r.Blocks, b)
	}
}

// add adds the change of a cache, once for each tensor: one body may take it and another begin it.
func (r *Result) add(c CacheChange) {
	for i, o := range r.Caches {
		if o.Past == c.Past && o.Present == c.Present || o.Present != "" && o.Present == c.Present && (o.Past == "" || c.Past == "") {
			if o.Past == "" {
				r.Caches[i] = c
			}
			return
		}
	}
	r.Caches = append(r.Caches, c)
}

// CacheChange maps the heads of one cache tensor (a graph input, output, or both) of the original model to those of the
// rewritten one: original head h along Axis is head Map[h].
type CacheChange struct {
	Block         string
	Past, Present string // value names; empty when absent
	Axis          int
	Map           []int
}
