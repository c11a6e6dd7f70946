package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Report is what a comparison found. Its JSON field names are stable.
type Report struct {
	Original  string    `json:"original"`
	Rewritten string    `json:"rewritten"`
	Runtime   string    `json:"runtime"` // version of ONNX Runtime
	Provider  string    `json:"provider"`
	Seed      uint64    `json:"seed"`
	Exact     *Section  `json:"rewrite_error,omitempty"` // against the tied reference; nil without one
	Drift     *Section  `json:"drift"`                   // against the original
	Text      *TextPair `json:"text,omitempty"`          // for information: it has no limits
	Notes     []string  `json:"notes,omitempty"`         // what was left out, and why
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
	WorstStep int      `json:"worst_step"`
	Metrics   Metrics  `json:"metrics"`
	Limits    int      `json:"limits"`           // how many limits the line is held to
	Broken    []string `json:"broken,omitempty"` // why it fails; empty when it passes
}

// Kind is what an output is to the comparison.
type Kind string

// Kinds of output.
const (
	LogitsOutput Kind = "logits"
	CacheOutput  Kind = "cache"
	OtherOutput  Kind = "output"
)

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

// DriftPassed reports whether the drift is within tolerance.
func (r *Report) DriftPassed() bool { return r.Drift.Passed() }

// Passed reports whether everything passes.
func (r *Report) Passed() bool { return r.RewritePassed() && r.DriftPassed() }

// MarshalJSON adds the verdicts.
func (r *Report) MarshalJSON() ([]byte, error) {
	type plain Report
	return json.Marshal(struct {
		Passed        bool `json:"passed"`
		RewritePassed bool `json:"rewrite_passed"`
		DriftPassed   bool `json:"drift_passed"`
		*plain
	}{r.Passed(), r.RewritePassed(), r.DriftPassed(), (*plain)(r)})
}

// MarshalJSON adds the verdict.
func (l Line) MarshalJSON() ([]byte, error) {
	type plain Line
	return json.Marshal(struct {
		plain
		Passed bool `json:"passed"`
	}{plain(l), l.Passed()})
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

// section gathers the lines of a comparison under way.
type section struct {
	reference *Model
	tolerance Tolerance
	lines     []*line
}

type line struct {
	name, output  string
	logits, cache bool
	steps         int
	err           string
	meter         Meter
}

// line returns the line of an output of a case, a new one at first.
func (s *section) line(name, output string, logits, cache bool) *line {
	for _, l := range s.lines {
		if l.name == name && l.output == output {
			return l
		}
	}
	l := &line{name: name, output: output, logits: logits, cache: cache, meter: Meter{Logits: logits}}
	s.lines = append(s.lines, l)
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

// judged returns the line's result under a tolerance.
func (l *line) judged(t Tolerance) Line {
	r := Line{
		Case: l.name, Output: l.output, Kind: OtherOutput,
		Steps: l.steps, WorstStep: l.meter.WorstAdd(), Metrics: l.meter.Metrics(),
	}
	switch {
	case l.logits:
		r.Kind = LogitsOutput
	case l.cache:
		r.Kind = CacheOutput
	}
	r.Limits = len(t.applying(r.Metrics))
	if l.err != "" {
		r.Broken = []string{l.err}
	} else {
		r.Broken = t.Judge(r.Metrics)
	}
	return r
}

// WriteText writes the report for people: a table for each section with a verdict on every line, what breaks a limit
// in words, and the verdict on the whole.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s → %s   (ONNX Runtime %s, %s, seed %d)\n", r.Original, r.Rewritten, r.Runtime, r.Provider, r.Seed)
	b.WriteString("cases: B sequences of S new tokens after T cached ones; decode: S tokens + single steps\n")
	if r.Exact != nil {
		b.WriteString(r.Exact.text("Rewrite error: against the tied reference"))
	}
	if r.Drift != nil {
		b.WriteString(r.Drift.text("Drift: against the original"))
	}
	if r.Text != nil {
		b.WriteString(r.Text.String())
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nnote: %s\n", n)
	}
	b.WriteByte('\n')
	if r.Exact != nil {
		fmt.Fprintf(&b, "rewrite error  %s  %s\n", verdict(r.RewritePassed()), r.Exact.Tolerance)
	}
	if r.Drift != nil {
		fmt.Fprintf(&b, "drift          %s  %s\n", verdict(r.DriftPassed()), r.Drift.Tolerance)
	}
	fmt.Fprintf(&b, "overall        %s\n", verdict(r.Passed()))
	_, err := io.WriteString(w, b.String())
	return err
}

// String is the report for people.
func (r *Report) String() string {
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		return err.Error()
	}
	return b.String()
}

func verdict(passed bool) string {
	if passed {
		return "PASS"
	}
	return "FAIL"
}

func (s *Section) text(title string) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options = table.Options{SeparateHeader: true}
	t.Style().Format.Header = text.FormatDefault
	t.Style().Box.PaddingLeft, t.Style().Box.PaddingRight = "", "  "
	header := table.Row{"case", "output", "runs"}
	configs := []table.ColumnConfig{{Number: 3, Align: text.AlignRight, AlignHeader: text.AlignRight}}
	columns := s.columns()
	for _, m := range columns {
		header = append(header, m.heading)
		configs = append(configs, table.ColumnConfig{Number: len(header), Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.AppendHeader(append(header, ""))
	t.SetColumnConfigs(configs)
	var broken strings.Builder
	for _, l := range s.condensed() {
		row := table.Row{l.Case, l.Output, l.Steps}
		for _, m := range columns {
			cell := ""
			if x, ok := l.Metrics.Value(m.name); ok && l.Output != "" {
				cell = fmt.Sprintf(m.format, x)
			}
			row = append(row, cell)
		}
		judged := ""
		if l.Limits > 0 || !l.Passed() {
			judged = verdict(l.Passed())
		}
		t.AppendRow(append(row, judged))
		for _, why := range l.Broken {
			step := ""
			if l.Steps > 1 && l.Case != allCases {
				step = fmt.Sprintf(" (worst at step %d)", l.WorstStep)
			}
			fmt.Fprintf(&broken, "FAIL %s%s: %s\n", strings.TrimSpace(l.Case+" "+l.Output), step, why)
		}
	}
	if len(s.Lines) == 0 {
		return fmt.Sprintf("\n%s\nnothing was compared\n", title)
	}
	lines := strings.Split(t.Render(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return fmt.Sprintf("\n%s\n%s\n%s", title, strings.Join(lines, "\n"), broken.String())
}

// columns lists the metrics that some line has.
func (s *Section) columns() []metric {
	var out []metric
	for _, m := range metrics {
		if !m.column {
			continue
		}
		for _, l := range s.Lines {
			if _, ok := l.Metrics.Value(m.name); ok {
				out = append(out, m)
				break
			}
		}
	}
	return out
}

// condensed puts the caches of a case that pass into one line, that of the worst of them: a model of many layers has
// too many to read.
func (s *Section) condensed() []Line {
	var out []Line
	at := map[string]int{} // case → place of its line of caches in out
	count := map[string]int{}
	for _, l := range s.Lines {
		if l.Kind != CacheOutput || !l.Passed() {
			out = append(out, l)
			continue
		}
		count[l.Case]++
		i, ok := at[l.Case]
		if !ok {
			at[l.Case] = len(out)
			out = append(out, l)
		} else if l.Metrics.MaxRel > out[i].Metrics.MaxRel {
			out[i] = l
		}
	}
	for name, i := range at {
		if n := count[name]; n > 1 {
			out[i].Output = fmt.Sprintf("%d caches, worst %s", n, out[i].Output)
		}
	}
	return out
}

// String shows losses and both continuations.
func (p *TextPair) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nText: %d tokens\n", p.Original.Tokens)
	ratio := p.Rewritten.Perplexity / p.Original.Perplexity
	fmt.Fprintf(&b, "perplexity   original %.4f, rewritten %.4f (×%.4f)\n", p.Original.Perplexity, p.Rewritten.Perplexity, ratio)
	fmt.Fprintf(&b, "nats/token   original %.4f, rewritten %.4f\n", p.Original.NLL, p.Rewritten.NLL)
	fmt.Fprintf(&b, "KL %.4f nats, top-1 agreement %.1f %%\n", p.KL, 100*p.Top1)
	b.WriteString(sideBySide(
		[2]string{"original", "rewritten"},
		[2]string{p.Prompt + p.Generations[0], p.Prompt + p.Generations[1]},
	))
	if p.Agree < 0 {
		b.WriteString("the continuations are the same\n")
	} else {
		fmt.Fprintf(&b, "the continuations part after %d tokens\n", p.Agree)
	}
	return b.String()
}

// halfWidth is the width of one of two columns of text.
const halfWidth = 56

func sideBySide(heads, texts [2]string) string {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options = table.Options{SeparateHeader: true, SeparateColumns: true}
	t.Style().Format.Header = text.FormatDefault
	t.AppendHeader(table.Row{heads[0], heads[1]})
	t.AppendRow(table.Row{texts[0], texts[1]})
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 1, WidthMax: halfWidth}, {Number: 2, WidthMax: halfWidth}})
	lines := strings.Split(t.Render(), "\n")
	for i := range lines {
		_, margin := utf8.DecodeRuneInString(lines[i])
		lines[i] = strings.TrimRight(lines[i][margin:], " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// Err returns what a program that wants an error would say: nil when everything passes, ErrRewrite or ErrDrift or
// both otherwise.
func (r *Report) Err() error {
	var errs []error
	if !r.RewritePassed() {
		errs = append(errs, ErrRewrite)
	}
	if !r.DriftPassed() {
		errs = append(errs, ErrDrift)
	}
	return errors.Join(errs...)
}

// The two kinds of failure: the first is a bug in the rewrite, the second the price of the compression.
var (
	ErrRewrite = errors.New("the rewritten model does not equal its tied reference")
	ErrDrift   = errors.New("the drift from the original is beyond tolerance")
)
