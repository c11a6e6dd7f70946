package verify

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph/onnxpb"
)

// Limit bounds one metric: from above, or from below where less is worse (cosine, SQNR, agreements).
type Limit struct {
	Metric string
	Bound  float64
}

// Tolerance is a named set of limits. An output passes when it keeps all that apply to it: limits on distributions
// apply to logits, and when there are some, they stand in for a limit on the cosine of logits. Elements that are finite
// in one model alone never pass, nor does an output without a finite element.
type Tolerance struct {
	Name   string
	Limits []Limit
}

// Exact is the tolerance for a rewrite against its tied reference: the two compute the same sums in another order.
// max_rel is the largest error against the largest magnitude of the output, for 32-bit floats.
func Exact() Tolerance {
	return Tolerance{Name: "exact to rounding", Limits: []Limit{{"max_rel", 1e-4}}}
}

// DefaultDrift is the tolerance for a rewritten model against the original when a configuration states none.
func DefaultDrift() Tolerance {
	return Tolerance{Name: "drift", Limits: []Limit{{"kl", 0.05}, {"top1", 0.97}, {"cosine", 0.99}}}
}

// Identical is the tolerance for models that should be the same.
func Identical() Tolerance {
	return Tolerance{Name: "identical", Limits: []Limit{{"max_abs", 0}}}
}

// roundings is how many units in the last place of a model's coarsest float type two orders of the same sums may
// differ by.
const roundings = 10

// For returns the tolerance for a model that computes in t: no limit on max_rel is tighter than ten times the
// rounding of t, which for float16 is 1e-2 and for bfloat16 8e-2.
func (t Tolerance) For(dtype onnxpb.TensorProto_DataType) Tolerance {
	out := Tolerance{Name: t.Name, Limits: slices.Clone(t.Limits)}
	for i, l := range out.Limits {
		if l.Metric == "max_rel" {
			out.Limits[i].Bound = max(l.Bound, roundings*epsilon(dtype))
		}
	}
	return out
}

// Check verifies that every limit names a metric.
func (t Tolerance) Check() error {
	for _, l := range t.Limits {
		if !slices.ContainsFunc(metrics, func(m metric) bool { return m.name == l.Metric }) {
			return fmt.Errorf("tolerance %q: there is no metric %q; want one of %s", t.Name, l.Metric, strings.Join(MetricNames(), ", "))
		}
	}
	return nil
}

// Judge returns what m breaks, in words; nothing when it passes.
func (t Tolerance) Judge(m Metrics) []string {
	var broken []string
	if m.NonFinite > 0 {
		why := fmt.Sprintf("%d elements are NaN or infinite in one model alone", m.NonFinite)
		if m.Bad != nil {
			why += fmt.Sprintf(", the first at %v: %v, want %v", m.Bad.Index, m.Bad.Got, m.Bad.Reference)
		}
		broken = append(broken, why)
	}
	if m.Elements == 0 && m.LeftOut > 0 {
		broken = append(broken, "both models give only NaN and infinities")
	}
	for _, l := range t.applying(m) {
		row := l.row()
		x := row.get(m)
		if row.keeps(x, l.Bound) {
			continue
		}
		sign := ">"
		if row.lessIsWorse {
			sign = "<"
		}
		broken = append(broken, fmt.Sprintf("%s "+row.format+" %s %v", row.heading, x, sign, l.Bound))
	}
	return broken
}

// applying returns the limits that m can be held to.
func (t Tolerance) applying(m Metrics) []Limit {
	var out []Limit
	for _, l := range t.Limits {
		if t.holds(l, m) {
			out = append(out, l)
		}
	}
	return out
}

// holds reports whether m is held to a limit: where distributions are limited, the cosine of logits is not.
func (t Tolerance) holds(l Limit, m Metrics) bool {
	row := l.row()
	return row.get != nil && row.scope.measured(m) && !(m.Logits != nil && l.Metric == "cosine" && t.distributions())
}

// distributions reports whether t limits a metric of distributions.
func (t Tolerance) distributions() bool {
	return slices.ContainsFunc(t.Limits, func(l Limit) bool { return l.row().scope == ofLogits })
}

// elementwise returns t without the limits on distributions; they still stand in for the cosine of logits.
func (t Tolerance) elementwise(m Metrics) Tolerance {
	out := Tolerance{Name: t.Name}
	for _, l := range t.applying(m) {
		if l.row().scope != ofLogits {
			out.Limits = append(out.Limits, l)
		}
	}
	return out
}

// keeps reports whether x is within a bound; a NaN never is.
func (row metric) keeps(x, bound float64) bool {
	if row.lessIsWorse {
		return x >= bound
	}
	return x <= bound
}

// worse reports whether x is farther off than y.
func (row metric) worse(x, y float64) bool {
	return !row.keeps(x, y)
}

func (l Limit) row() metric {
	for _, m := range metrics {
		if m.name == l.Metric {
			return m
		}
	}
	return metric{}
}

// String writes the limits, such as "KL nats ≤ 0.05, top-1 ≥ 0.97".
func (t Tolerance) String() string {
	var parts []string
	for _, l := range t.Limits {
		row, sign := l.row(), "≤"
		if row.lessIsWorse {
			sign = "≥"
		}
		parts = append(parts, fmt.Sprintf("%s %s %v", row.heading, sign, l.Bound))
	}
	if len(parts) == 0 {
		return "no limits"
	}
	return strings.Join(parts, ", ")
}

// MarshalJSON writes the name and the bounds by metric.
func (t Tolerance) MarshalJSON() ([]byte, error) {
	limits := map[string]any{}
	for _, l := range t.Limits {
		limits[l.Metric] = number(l.Bound)
	}
	return json.Marshal(map[string]any{"name": t.Name, "limits": limits})
}
