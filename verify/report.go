package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// SchemaVersion is the version of the report's JSON form, which docs/report.schema.json describes. It counts up when a
// field goes or changes its meaning; new fields leave it as it is.
const SchemaVersion = 1

// Report is what a comparison found. Its JSON field names are stable.
type Report struct {
	Schema            int    `json:"schema"`
	Original          string `json:"original"`
	Rewritten         string `json:"rewritten"`
	Runtime           string `json:"runtime"` // version of ONNX Runtime
	Provider          string `json:"provider"`
	ReferenceProvider string `json:"reference_provider,omitempty"` // where it is another than Provider
	Seed              uint64 `json:"seed"`
	Inputs            string `json:"inputs"` // where the inputs come from: "generated", or a source's name

	Exact *Section `json:"rewrite_error,omitempty"` // against the tied reference; nil without one
	Drift *Section `json:"drift"`                   // against the original, or what was recorded of it
	// Golden compares with outputs that came with the inputs, OriginalGolden the original with them.
	Golden         *Section `json:"golden,omitempty"`
	OriginalGolden *Section `json:"original_golden,omitempty"`
	// Gates are all limits, each with its worst value: which one is broken, by how much, where first.
	Gates []Gate `json:"gates"`

	Layers    *LayerReport      `json:"layers,omitempty"`    // drift by layer
	Bisection *Bisection        `json:"bisection,omitempty"` // which layers to leave alone
	Text      *TextPair         `json:"text,omitempty"`
	Generated *GenerationPair   `json:"generated,omitempty"`
	Blocks    []BlockSummary    `json:"blocks,omitempty"`    // what the rewrite changed
	Placement []Placement       `json:"placement,omitempty"` // which provider runs which nodes
	Providers []ProviderSection `json:"providers,omitempty"` // providers against one another
	Notes     []string          `json:"notes,omitempty"`     // what was left out, and why
	Timing    *Timing           `json:"timing,omitempty"`    // all that differs from run to run
}

// Section is the rewritten model against one reference.
type Section struct {
	Reference string    `json:"reference"`
	Tolerance Tolerance `json:"tolerance"`
	Lines     []Line    `json:"lines"`
}

// Line is one output over one case, or over all steps of a decode. Limits on distributions (KL divergence, agreement)
// are for means over many positions, which a case need not have: they judge a last line over all cases, not each case.
type Line struct {
	Case   string `json:"case"`
	Output string `json:"output,omitempty"` // empty when the model did not run
	Kind   Kind   `json:"kind"`
	Steps  int    `json:"steps"` // runs that were compared
	// WorstStep is the run with the largest relative error, counted from 0 (the prefill of a decode).
	WorstStep int `json:"worst_step"`
	// Diverges is the first run with a position whose most likely token differs, nil when there is none.
	Diverges  *int       `json:"first_diverging_step,omitempty"`
	Metrics   Metrics    `json:"metrics"`
	PerStep   []Metrics  `json:"-"` // of each run, when there are several
	StepOf    []int      `json:"-"` // the step of each of PerStep
	Histogram *Histogram `json:"histogram,omitempty"`
	Limits    int        `json:"limits"`           // how many limits the line is held to
	Broken    []string   `json:"broken,omitempty"` // why it fails; empty when it passes
}

// Kind is what an output is to the comparison.
type Kind string

// Kinds of output.
const (
	LogitsOutput     Kind = "logits"
	CacheOutput      Kind = "cache"
	OtherOutput      Kind = "output"
	TextOutput       Kind = "text"       // the losses on a text
	GenerationOutput Kind = "generation" // greedy continuations
)

// BlockSummary is what a rewrite made of one attention block.
type BlockSummary struct {
	Block    string  `json:"block"`
	Lowering string  `json:"lowering"`
	Heads    int     `json:"heads"` // query heads
	Key      HeadMap `json:"key"`
	Value    HeadMap `json:"value"`
	// Bytes of cache per token; 0 for a block without a cache.
	CacheBefore int64 `json:"cache_bytes_before"`
	CacheAfter  int64 `json:"cache_bytes_after"`
}

// HeadMap says which heads were fused, and how: new head g is Σ Weights[g][j] · head Groups[g][j].
type HeadMap struct {
	Before  int         `json:"before"`
	After   int         `json:"after"`
	Groups  [][]int     `json:"groups"`
	Weights [][]float64 `json:"weights,omitempty"`
	Learned bool        `json:"learned,omitempty"` // weights of their own take the place of the mix
}

// Placement says on which execution providers the nodes of a model run.
type Placement struct {
	Model    string         `json:"model"` // "original", "rewritten" or "tied reference"
	Provider string         `json:"provider"`
	Nodes    map[string]int `json:"nodes"` // by provider
	// Fallback are nodes that the provider asked for does not run.
	Fallback []PlacedNode `json:"fallback,omitempty"`
}

// PlacedNode is one node of an optimised graph.
type PlacedNode struct {
	Node     string `json:"node"`
	Op       string `json:"op"`
	Provider string `json:"provider"`
}

// ProviderSection is one model on a provider against the same model on another.
type ProviderSection struct {
	Model     string   `json:"model"` // "original" or "rewritten"
	Provider  string   `json:"provider"`
	Reference string   `json:"reference_provider"`
	Result    *Section `json:"result,omitempty"`
	// Unavailable says why the provider did not run; empty when it did.
	Unavailable string `json:"unavailable,omitempty"`
}

// Timing says how long what took, in seconds. It is the one part of a report that differs between two runs.
type Timing struct {
	Load  map[string]float64 `json:"load_seconds"` // by model
	Run   map[string]float64 `json:"run_seconds"`
	Total float64            `json:"total_seconds"`
}

// Passed reports whether the line keeps its section's tolerance.
func (l Line) Passed() bool { return len(l.Broken) == 0 }

// String is the line in words: "decode B1 S8+20 logits: max abs 1.2e-06, …: PASS".
func (l Line) String() string {
	s := strings.TrimSpace(l.Case+" "+l.Output) + ": "
	for _, m := range metrics {
		if x, ok := l.Metrics.Value(m.name); ok && l.Output != "" {
			s += fmt.Sprintf("%s "+m.format+", ", m.heading, x)
		}
	}
	return s + strings.Join(append([]string{verdict(l.Passed())}, l.Broken...), ": ")
}

// Passed reports whether all lines pass. A section that compared nothing does: it found no failure.
func (s *Section) Passed() bool {
	if s == nil {
		return true
	}
	for _, l := range s.Lines {
		if !l.Passed() {
			return false
		}
	}
	return true
}

// RewritePassed reports whether the rewrite is exact, as far as it was checked.
func (r *Report) RewritePassed() bool { return r.Exact.Passed() }

// DriftPassed reports whether the drift is within tolerance, from the original and from outputs that came with the inputs.
func (r *Report) DriftPassed() bool {
	return r.Drift.Passed() && r.Golden.Passed() && r.OriginalGolden.Passed()
}

// ProvidersPassed reports whether providers agree, as far as they were compared.
func (r *Report) ProvidersPassed() bool {
	for _, p := range r.Providers {
		if !p.Result.Passed() {
			return false
		}
	}
	return true
}

// Passed reports whether everything passes.
func (r *Report) Passed() bool { return r.RewritePassed() && r.DriftPassed() && r.ProvidersPassed() }

// MarshalJSON adds the verdicts.
func (r *Report) MarshalJSON() ([]byte, error) {
	type plain Report
	return json.Marshal(struct {
		Passed          bool  `json:"passed"`
		RewritePassed   bool  `json:"rewrite_passed"`
		DriftPassed     bool  `json:"drift_passed"`
		ProvidersPassed *bool `json:"providers_passed,omitempty"`
		*plain
	}{r.Passed(), r.RewritePassed(), r.DriftPassed(), r.comparedProviders(), (*plain)(r)})
}

func (r *Report) comparedProviders() *bool {
	if len(r.Providers) == 0 {
		return nil
	}
	passed := r.ProvidersPassed()
	return &passed
}

// stepColumns are the metrics of single runs that reports hold.
var stepColumns = []string{"max_abs", "max_rel", "mean_rel", "cosine", "sqnr_db", "kl", "top1"}

// MarshalJSON adds the verdict, and the metrics of each run as one list for each metric.
func (l Line) MarshalJSON() ([]byte, error) {
	type plain Line
	return json.Marshal(struct {
		plain
		PerStep map[string][]any `json:"per_step,omitempty"`
		Passed  bool             `json:"passed"`
	}{plain(l), stepLists(l.PerStep, l.StepOf), l.Passed()})
}

func stepLists(steps []Metrics, numbers []int) map[string][]any {
	if len(steps) == 0 {
		return nil
	}
	out := map[string][]any{}
	for _, n := range numbers {
		out["step"] = append(out["step"], n)
	}
	for _, name := range stepColumns {
		for _, m := range steps {
			if x, ok := m.Value(name); ok {
				out[name] = append(out[name], number(x))
			}
		}
	}
	return out
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// Err returns what a program that wants an error would say: nil when everything passes, ErrRewrite, ErrDrift and
// ErrProviders, as many as apply, otherwise.
func (r *Report) Err() error {
	var errs []error
	for _, c := range []struct {
		passed bool
		err    error
	}{{r.RewritePassed(), ErrRewrite}, {r.DriftPassed(), ErrDrift}, {r.ProvidersPassed(), ErrProviders}} {
		if !c.passed {
			errs = append(errs, c.err)
		}
	}
	return errors.Join(errs...)
}

// The kinds of failure: the first is a bug in the rewrite, the second the price of the compression, the third a
// difference between execution providers.
var (
	ErrRewrite   = errors.New("the rewritten model does not equal its tied reference")
	ErrDrift     = errors.New("the drift from the original is beyond tolerance")
	ErrProviders = errors.New("execution providers differ beyond tolerance")
)

// section gathers the lines of a comparison under way.
type section struct {
	reference *Model
	tolerance Tolerance
	lines     []*line
	index     map[[2]string]*line
}

type line struct {
	name, output  string
	logits, cache bool
	steps         int
	at            []int // the step of each
	err           string
	meter         Meter
}

// line returns the line of an output of a case, a new one at first.
func (s *section) line(name, output string, logits, cache bool) *line {
	key := [2]string{name, output}
	if l := s.index[key]; l != nil {
		return l
	}
	l := &line{name: name, output: output, logits: logits, cache: cache, meter: Meter{Logits: logits, trace: true}}
	s.lines = append(s.lines, l)
	if s.index == nil {
		s.index = map[[2]string]*line{}
	}
	s.index[key] = l
	return l
}

// fail records that the rewritten model did not run where its reference did.
func (s *section) fail(name string, err error) {
	s.lines = append(s.lines, &line{name: name, err: err.Error()})
}

// allCases is the case of the line over all cases.
const allCases = "all cases"

func (s *section) result(reference string) *Section {
	out := &Section{Reference: reference, Tolerance: s.tolerance, Lines: []Line{}}
	var total *line
	for _, l := range s.lines {
		t := s.tolerance.elementwise(l.meter.Metrics())
		out.Lines = append(out.Lines, l.judged(t))
		if l.logits && s.tolerance.distributions() {
			if total == nil {
				total = &line{name: allCases, output: l.output, logits: true, meter: Meter{Logits: true}}
			}
			total.steps += l.steps
			total.meter.Merge(&l.meter)
		}
	}
	if total != nil {
		out.Lines = append(out.Lines, total.judged(s.tolerance))
	}
	return out
}

// stepOf is the step of the n-th comparison.
func (l *line) stepOf(n int) int {
	if n < len(l.at) {
		return l.at[n]
	}
	return n
}

// judged returns the line's result under a tolerance.
func (l *line) judged(t Tolerance) Line {
	r := Line{
		Case: l.name, Output: l.output, Kind: OtherOutput,
		Steps: l.steps, WorstStep: l.stepOf(l.meter.WorstAdd()), Metrics: l.meter.Metrics(),
	}
	switch {
	case l.logits:
		r.Kind = LogitsOutput
	case l.cache:
		r.Kind = CacheOutput
	}
	if at, ok := l.meter.Diverged(); ok && l.logits && l.name != allCases {
		at = l.stepOf(at)
		r.Diverges = &at
	}
	if r.Metrics.Bad != nil {
		r.Metrics.Bad.Step = l.stepOf(r.Metrics.Bad.Step)
	}
	if len(l.meter.steps) > 1 && len(l.meter.steps) == len(l.at) {
		r.PerStep, r.StepOf = l.meter.steps, l.at
	}
	if l.meter.elements > 0 {
		r.Histogram = l.meter.abs.histogram()
	}
	r.Limits = len(t.applying(r.Metrics))
	if l.err != "" {
		r.Broken = []string{l.err}
	} else {
		r.Broken = t.Judge(r.Metrics)
	}
	return r
}
