package bench

import (
	"math"
	"slices"
)

// Median returns the middle of some numbers, NaN of none.
func Median(x []float64) float64 { return quantile(x, 0.5) }

// quantile interpolates between the numbers in order.
func quantile(x []float64, p float64) float64 {
	if len(x) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(x))
	at := p * float64(len(s)-1)
	i := int(at)
	if i+1 == len(s) {
		return s[i]
	}
	return s[i] + (at-float64(i))*(s[i+1]-s[i])
}

// Spread is a middle with the quartiles around it.
type Spread struct{ Low, Median, High float64 }

// SpreadOf returns the quartiles of some numbers.
func SpreadOf(x []float64) Spread {
	return Spread{quantile(x, 0.25), quantile(x, 0.5), quantile(x, 0.75)}
}

// Time is the seconds of a prefill or a step.
func (r *Result) Time() Spread { return SpreadOf(r.Seconds) }

// Speedup is how many times as fast a result is as a base, by the rounds that both have.
func (r *Result) Speedup(base *Result) Spread {
	var ratios []float64
	for i := range min(len(r.Seconds), len(base.Seconds)) {
		ratios = append(ratios, base.Seconds[i]/r.Seconds[i])
	}
	return SpreadOf(ratios)
}

// Bound is the speedup that the bytes moved allow: where moving them is all that a step costs.
func (r *Result) Bound(base *Result) float64 { return float64(base.Bytes) / float64(r.Bytes) }

// BestFull returns the model that is fastest in a case among those that cache as much as the original, other than the
// original itself; -1 when there is none. It is what a rewrite has to be held against to see what fewer heads alone buy.
func (r *Report) BestFull(c *Case) int {
	best := -1
	for i := 1; i < len(r.Models); i++ {
		if r.Models[i].Position != r.Models[0].Position || c.Results[i].Skipped != "" {
			continue
		}
		if best < 0 || c.Results[i].Time().Median < c.Results[best].Time().Median {
			best = i
		}
	}
	return best
}
