package verify

// LayerReport says how a rewritten model departs from its references layer by layer, in the order of the graph.
type LayerReport struct {
	Layers []LayerDrift `json:"layers"`
	// Error is the first point at which the rewritten model does not equal its tied reference, and Drift the first at
	// which it is not the original any more; nil where there is none.
	Error *LayerPlace `json:"first_error,omitempty"`
	Drift *LayerPlace `json:"first_drift,omitempty"`
	// Untapped are blocks whose values could not be compared, and why.
	Untapped []string `json:"untapped,omitempty"`
}

// LayerDrift is one attention block and what follows it.
type LayerDrift struct {
	Layer  int          `json:"layer"` // counted from 0
	Block  string       `json:"block"`
	Points []LayerPoint `json:"points"`
}

// LayerPoint is one value of a layer, over all cases.
type LayerPoint struct {
	Point Point  `json:"point"`
	Value string `json:"value"` // the name of the wire, or of the graph output
	// Exact compares with the tied reference, Drift with the original. A cache drifts from the original's after its heads
	// are mapped: the fused head against each head that it stands for.
	Exact *Line `json:"rewrite_error,omitempty"`
	Drift *Line `json:"drift,omitempty"`
}

// Point is what a tapped value is.
type Point string

// Points of a layer, in the order in which a graph computes them.
const (
	KeyCachePoint   Point = "key cache"
	ValueCachePoint Point = "value cache"
	AttentionPoint  Point = "attention" // the output of the block, after its projection
	ResidualPoint   Point = "residual"  // the stream that the output is added to
)

// LayerPlace is a point of a layer.
type LayerPlace struct {
	Layer int    `json:"layer"`
	Block string `json:"block"`
	Point Point  `json:"point"`
}
