package verify

import "onnx-dha/ort"

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

// compareTaps adds one run to the layers.
func (r *pairRun) compareTaps(s *section, ref, got map[string]*ort.Tensor, real [][]bool) {
	for _, t := range r.taps {
		to := &t.drift
		if s == r.exact {
			to, real = &t.exact, nil
		}
		a, b := ref[t.value], got[t.value]
		if a == nil || b == nil {
			continue // steps of a model without a cache are compared by their logits alone
		}
		if *to == nil {
			*to = &line{name: allCases, output: t.value, cache: t.Point == KeyCachePoint || t.Point == ValueCachePoint, meter: Meter{trace: true}}
		}
		l := *to
		l.steps++
		l.at = append(l.at, r.step)
		b, err := r.maps.expand(t.value, b)
		if err == nil {
			err = l.meter.Add(a, b, real)
		}
		if err != nil {
			l.err = err.Error()
		}
	}
}

// layers sums up what was compared at the taps.
func (r *pairRun) layers() *LayerReport {
	if len(r.Taps) == 0 {
		return nil
	}
	out := &LayerReport{Layers: []LayerDrift{}, Untapped: r.untapped}
	exact := Tolerance{}
	if r.exact != nil {
		exact = r.exact.tolerance
	}
	for _, t := range r.taps {
		if n := len(out.Layers); n == 0 || out.Layers[n-1].Layer != t.Layer {
			out.Layers = append(out.Layers, LayerDrift{Layer: t.Layer, Block: t.Block})
		}
		layer := &out.Layers[len(out.Layers)-1]
		p := LayerPoint{Point: t.Point, Value: t.value}
		place := &LayerPlace{t.Layer, t.Block, t.Point}
		if t.exact != nil {
			l := t.exact.judged(exact)
			p.Exact = &l
			if !l.Passed() && out.Error == nil {
				out.Error = place
			}
		}
		if t.drift != nil {
			l := t.drift.judged(Tolerance{})
			p.Drift = &l
			if out.Drift == nil && !(l.Passed() && l.Metrics.MaxRel <= Exact().For(r.original.Precision).Limits[0].Bound) {
				out.Drift = place
			}
		}
		layer.Points = append(layer.Points, p)
	}
	return out
}
