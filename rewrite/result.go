// Package rewrite applies a fusion plan to a graph: fused projections, lowered attention cores, smaller caches.
package rewrite

// Result says what a rewrite changed, for reports and for verify.
type Result struct {
	Blocks []BlockChange
	Caches []CacheChange
	// Parameters of the whole model (elements of all initializers) before and after.
	ParamsBefore, ParamsAfter int64
	NodesBefore, NodesAfter   int
}

// BlockChange is one rewritten block.
type BlockChange struct {
	Block                       string
	Heads, KVHeads              int
	KeyHeads, ValueHeads        int   // after
	KVBytesBefore, KVBytesAfter int64 // bytes of cache per token
}

// CacheChange maps the heads of one cache tensor (a graph input, output, or both) of the original model to those of the
// rewritten one: original head h along Axis is head Map[h].
type CacheChange struct {
	Block         string
	Past, Present string // value names; empty when absent
	Axis          int
	Map           []int
}
