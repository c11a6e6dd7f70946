package verify

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// Gate is one limit of one section with the worst value that was measured against it.
type Gate struct {
	Section string // "rewrite_error", "drift", "golden" or "original_golden"
	Metric  string // its name in limits
	AtMost  bool   // whether the bound is an upper one
	Bound   float64
	Value   float64 // the worst; NaN when nothing was measured
	Passed  bool
	// Unmeasured says why nothing was, such as a perplexity without a text; empty when something was.
	Unmeasured string
	Excess     float64 // |Value - Bound| of a gate that is not passed, else 0
	// First is where the limit is broken first, in the order of the run; nil when it is kept.
	First *Where
	// Others counts the further lines that break it.
	Others int
}

// Where is a place in the order of a run.
type Where struct {
	Case   string `json:"case"`
	Output string `json:"output,omitempty"`
	Step   int    `json:"step"` // of a decode, counted from 0 (the prefill)
}

// String is the place in words.
func (w Where) String() string {
	s := strings.TrimSpace(w.Case + " " + w.Output)
	if w.Step > 0 {
		s += fmt.Sprintf(", step %d", w.Step)
	}
	return s
}

// finiteMetric is the gate that every section has: no element is NaN or infinite in one model alone, and both run.
const finiteMetric = "non_finite"

// Judge lists the limits of a report's sections in Gates, for a caller that added lines to them.
func (r *Report) Judge() {
	out := []Gate{}
	for _, s := range []struct {
		name    string
		section *Section
	}{{"rewrite_error", r.Exact}, {"drift", r.Drift}, {"golden", r.Golden}, {"original_golden", r.OriginalGolden}} {
		if s.section != nil {
			out = append(out, s.section.gates(s.name)...)
		}
	}
	r.Gates = out
}

func (s *Section) gates(name string) []Gate {
	out := []Gate{s.sound(name)}
	for _, l := range s.Tolerance.Limits {
		row := l.row()
		g := Gate{Section: name, Metric: l.Metric, AtMost: !row.lessIsWorse, Bound: l.Bound, Value: math.NaN(), Passed: true}
		distributions := row.scope == ofLogits
		for _, line := range s.Lines {
			x, ok := line.Metrics.Value(l.Metric)
			// What a section judges over all cases is not judged in each, nor is the cosine where distributions are.
			if !ok || distributions && line.Kind == LogitsOutput && line.Case != allCases || !s.Tolerance.holds(l, line.Metrics) {
				continue
			}
			if math.IsNaN(g.Value) || row.worse(x, g.Value) {
				g.Value = x
			}
			if row.keeps(x, l.Bound) {
				continue
			}
			if g.Passed {
				g.Passed = false
				g.First = s.first(l, row, line)
			} else {
				g.Others++
			}
		}
		switch {
		case math.IsNaN(g.Value) && g.Passed:
			g.Unmeasured = unmeasured[row.scope]
		case !g.Passed:
			g.Excess = math.Abs(g.Value - g.Bound)
		}
		out = append(out, g)
	}
	return out
}

// unmeasured says what a metric of a scope needs.
var unmeasured = map[scope]string{
	ofElements:   "no output is held to it (scores of tokens have the limits on distributions)",
	ofLogits:     "no output scores tokens",
	ofText:       "it needs a text (--text, --vocab)",
	ofGeneration: "it needs a decoder and --generate",
}

// missing reports whether what a gate needs was not given. A limit on outputs that a model has none of is no loss.
func (g Gate) missing() bool {
	s := Limit{Metric: g.Metric}.row().scope
	return g.Unmeasured != "" && (s == ofText || s == ofGeneration)
}

// sound is the gate on models that fail or give what is no number.
func (s *Section) sound(name string) Gate {
	g := Gate{Section: name, Metric: finiteMetric, AtMost: true, Passed: true}
	for _, l := range s.Lines {
		if l.Case == allCases {
			continue
		}
		g.Value += float64(l.Metrics.NonFinite)
		none := l.Metrics.Elements == 0 && l.Metrics.LeftOut > 0
		if l.Metrics.NonFinite == 0 && !none && !(l.Limits == 0 && len(l.Broken) > 0) && !l.failed() {
			continue
		}
		if !g.Passed {
			g.Others++
			continue
		}
		g.Passed = false
		g.First = &Where{Case: l.Case, Output: l.Output}
		if l.Metrics.Bad != nil {
			g.First.Step = l.Metrics.Bad.Step
		}
	}
	if !g.Passed {
		g.Excess = g.Value
	}
	return g
}

// failed reports whether the model did not run, or lacks the output.
func (l Line) failed() bool {
	return len(l.Broken) > 0 && (l.Output == "" || l.Metrics.Elements+l.Metrics.NonFinite+l.Metrics.LeftOut == 0 && ofElements.measured(l.Metrics))
}

// first finds the run in which a line breaks a limit first; where the limit is on a mean over all cases, the first run
// that is beyond it by itself.
func (s *Section) first(l Limit, row metric, broken Line) *Where {
	beyond := func(m Metrics) bool {
		x, ok := m.Value(l.Metric)
		return ok && !row.keeps(x, l.Bound)
	}
	for _, line := range s.Lines {
		if line.Case == allCases || broken.Case != allCases && (line.Case != broken.Case || line.Output != broken.Output) || line.Kind != broken.Kind {
			continue
		}
		for step, m := range line.PerStep {
			if beyond(m) {
				return &Where{line.Case, line.Output, line.StepOf[step]}
			}
		}
		if len(line.PerStep) == 0 && beyond(line.Metrics) {
			return &Where{Case: line.Case, Output: line.Output}
		}
	}
	return &Where{Case: broken.Case, Output: broken.Output, Step: broken.WorstStep}
}

// String says whether the gate is passed, and if not by how much, where first.
func (g Gate) String() string {
	row := Limit{Metric: g.Metric}.row()
	sign := "≤"
	if !g.AtMost {
		sign = "≥"
	}
	heading, format := row.heading, row.format
	if row.get == nil {
		heading, format = "elements that are not finite", "%.0f"
	}
	switch {
	case g.Unmeasured != "":
		return fmt.Sprintf("%s: %s %s %v was not measured: %s", g.Section, heading, sign, g.Bound, g.Unmeasured)
	case g.Passed:
		return fmt.Sprintf("%s: %s "+format+" %s %v", g.Section, heading, g.Value, sign, g.Bound)
	case row.get == nil && g.Value == 0:
		return fmt.Sprintf("%s: the model fails; first in %v", g.Section, g.First)
	}
	s := fmt.Sprintf("%s: %s "+format+", want %s %v: %s by "+format, g.Section, heading, g.Value, sign, g.Bound, beyond(g.AtMost), g.Excess)
	if g.First != nil {
		s += fmt.Sprintf("; first in %v", g.First)
	}
	if g.Others > 0 {
		s += fmt.Sprintf(" and %d more", g.Others)
	}
	return s
}

func beyond(atMost bool) string {
	if atMost {
		return "over"
	}
	return "under"
}

// MarshalJSON writes the gate; numbers that JSON has not are strings.
func (g Gate) MarshalJSON() ([]byte, error) {
	out := struct {
		Section    string `json:"section"`
		Metric     string `json:"metric"`
		AtMost     bool   `json:"at_most"`
		Bound      any    `json:"bound"`
		Value      any    `json:"value"`
		Passed     bool   `json:"passed"`
		Unmeasured string `json:"unmeasured,omitempty"`
		Excess     any    `json:"excess,omitempty"`
		First      *Where `json:"first,omitempty"`
		Others     int    `json:"others,omitempty"`
	}{g.Section, g.Metric, g.AtMost, number(g.Bound), number(g.Value), g.Passed, g.Unmeasured, nil, g.First, g.Others}
	if !g.Passed {
		out.Excess = number(g.Excess)
	}
	return json.Marshal(out)
}
