package verify

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// WriteText writes the report for people: a table for each section with a verdict on every line, what breaks a limit
// in words, and the verdict on the whole.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s → %s   (ONNX Runtime %s, %s, seed %d)\n", r.Original, r.Rewritten, r.Runtime, r.Provider, r.Seed)
	b.WriteString("cases: B sequences of S new tokens after T cached ones; decode: S tokens + single steps\n")
	said := reasons{}
	if r.Exact != nil {
		b.WriteString(r.Exact.text("Rewrite error: against the tied reference", said))
	}
	if r.Drift != nil {
		b.WriteString(r.Drift.text("Drift: against the original", said))
	}
	if r.Golden != nil {
		b.WriteString(r.OriginalGolden.text("Expected outputs: against the original", said))
		b.WriteString(r.Golden.text("Expected outputs: against the rewritten model", said))
	}
	if r.Layers != nil {
		b.WriteString(r.Layers.String())
	}
	if r.Bisection != nil {
		b.WriteString(r.Bisection.String())
	}
	for _, p := range r.Providers {
		b.WriteString(p.String())
	}
	for _, p := range r.Placement {
		b.WriteString(p.String())
	}
	if r.Text != nil {
		b.WriteString(r.Text.String())
	}
	if r.Generated != nil {
		b.WriteString(r.Generated.String())
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nnote: %s\n", n)
	}
	b.WriteByte('\n')
	for _, g := range r.Gates {
		if !g.Passed || g.missing() {
			fmt.Fprintf(&b, "gate %v\n", g)
		}
	}
	if r.Exact != nil {
		fmt.Fprintf(&b, "rewrite error  %s  %s\n", verdict(r.RewritePassed()), r.Exact.Tolerance)
	}
	if r.Drift != nil {
		fmt.Fprintf(&b, "drift          %s  %s\n", verdict(r.DriftPassed()), r.Drift.Tolerance)
	}
	if len(r.Providers) > 0 {
		fmt.Fprintf(&b, "providers      %s\n", verdict(r.ProvidersPassed()))
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

// text is the section for people, in a report that has given some reasons already.
func (s *Section) text(title string, said reasons) string {
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
	lines := s.condensed()
	for _, l := range lines {
		row := table.Row{l.Case, l.Output, l.Steps}
		for _, m := range columns {
			cell := ""
			if x, ok := l.Metrics.Value(m.name); ok && !l.failed() {
				cell = fmt.Sprintf(m.format, x)
			}
			row = append(row, cell)
		}
		judged := ""
		if l.Limits > 0 || !l.Passed() {
			judged = verdict(l.Passed())
		}
		t.AppendRow(append(row, judged))
	}
	if len(s.Lines) == 0 {
		return fmt.Sprintf("\n%s\nnothing was compared\n", title)
	}
	return fmt.Sprintf("\n%s\n%s%s", title, trimmed(t), said.text(lines))
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

// condensed puts the caches of a case that pass into one line, that of the worst of them, and those that cannot be compared
// into another, that of the first: a model of many layers has too many to read.
func (s *Section) condensed() []Line {
	type group struct {
		name   string // of the case
		failed bool
	}
	var out []Line
	at := map[group]int{} // place of its line in out
	count := map[group]int{}
	for _, l := range s.Lines {
		if l.Kind != CacheOutput || !l.Passed() && !l.failed() {
			out = append(out, l)
			continue
		}
		g := group{l.Case, l.failed()}
		count[g]++
		i, ok := at[g]
		if !ok {
			at[g] = len(out)
			out = append(out, l)
		} else if l.Metrics.MaxRel > out[i].Metrics.MaxRel {
			out[i] = l
		}
	}
	for g, i := range at {
		which := "worst"
		if g.failed {
			which = "first"
		}
		if n := count[g]; n > 1 {
			out[i].Output = fmt.Sprintf("%d caches, %s %s", n, which, out[i].Output)
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
