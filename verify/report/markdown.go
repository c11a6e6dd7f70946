// Package report writes what a verification found for machines and people elsewhere: Markdown for the summary of a CI job,
// JUnit XML, annotations of GitHub, and a page for a browser.
package report

import (
	"fmt"
	"io"
	"strings"

	"onnx-dha/verify"
)

// sections names the sections of a report for people, by their names in gates.
var sections = map[string]string{
	"rewrite_error": "rewrite error",
	"drift":         "drift",
	"golden":        "golden outputs",
}

// named is a section with its name.
type named struct {
	name    string
	section *verify.Section
}

func sectionsOf(r *verify.Report) []named {
	var out []named
	for _, s := range []named{{"rewrite_error", r.Exact}, {"drift", r.Drift}, {"golden", r.Golden}} {
		if s.section != nil {
			out = append(out, s)
		}
	}
	for _, p := range r.Providers {
		if p.Result != nil {
			out = append(out, named{fmt.Sprintf("%s on %s, reference %s", p.Model, p.Provider, p.Reference), p.Result})
		}
	}
	return out
}

func title(section string) string {
	if t, ok := sections[section]; ok {
		return t
	}
	return section
}

// pair names both models: "model.onnx → model.dha.onnx".
func pair(r *verify.Report) string {
	if r.Original == "" {
		return r.Rewritten
	}
	return r.Original + " → " + r.Rewritten
}

func verdict(passed bool) string {
	if passed {
		return "PASS"
	}
	return "FAIL"
}

// bound is a gate's limit: "≤ 0.05".
func bound(g verify.Gate) string {
	if g.AtMost {
		return fmt.Sprintf("≤ %v", g.Bound)
	}
	return fmt.Sprintf("≥ %v", g.Bound)
}

// value is what a gate measured, empty when nothing was.
func value(g verify.Gate) string {
	if g.Unmeasured != "" {
		return ""
	}
	return verify.Format(g.Metric, g.Value)
}

// state is a gate's verdict in a word.
func state(g verify.Gate) string {
	if g.Unmeasured != "" {
		return "not measured"
	}
	return verdict(g.Passed)
}

// place says where a gate is broken first, or why it was not measured.
func place(g verify.Gate) string {
	switch {
	case g.Unmeasured != "":
		return g.Unmeasured
	case g.First == nil:
		return ""
	case g.Others > 0:
		return fmt.Sprintf("%v and %d more", g.First, g.Others)
	}
	return g.First.String()
}

// Markdown writes the report as the summary of a CI job: the gates, what the compression saves and costs, and where drift
// begins. It is short: GitHub keeps a megabyte of a summary.
func Markdown(w io.Writer, r *verify.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "## onnx-dha verify: %s\n\n", verdict(r.Passed()))
	provider := r.Provider
	if r.ReferenceProvider != "" {
		provider += ", reference " + r.ReferenceProvider
	}
	fmt.Fprintf(&b, "%s (ONNX Runtime %s, %s, seed %d)\n\n", code(pair(r)), cell(r.Runtime), cell(provider), r.Seed)

	rows := [][]string{}
	for _, g := range r.Gates {
		rows = append(rows, []string{title(g.Section), verify.Heading(g.Metric), bound(g), value(g), bold(state(g), !g.Passed), place(g)})
	}
	markdownTable(&b, []string{"", "gate", "limit", "worst", "", "first"}, "llrrll", rows)

	if before, after := cacheBytes(r); before > 0 {
		fmt.Fprintf(&b, "KV cache per token: %d bytes → %d bytes (%+.1f %%)\n\n", before, after, 100*(float64(after)/float64(before)-1))
	}
	if t := r.Text; t != nil {
		fmt.Fprintf(&b, "Perplexity on %d tokens: %.4f → %.4f (× %.4f); KL %.4f nats; same most likely token at %.1f %%\n\n",
			t.Original.Tokens, t.Original.Perplexity, t.Rewritten.Perplexity, t.Rewritten.Perplexity/t.Original.Perplexity, t.KL, 100*t.Top1)
	}
	if l := r.Layers; l != nil {
		if l.Error != nil {
			fmt.Fprintf(&b, "The rewrite errs first in layer %d, %s (%s).\n\n", l.Error.Layer, cell(string(l.Error.Point)), code(l.Error.Block))
		}
		rows := [][]string{}
		for _, d := range l.Layers {
			row := []string{fmt.Sprint(d.Layer), code(d.Block)}
			for _, p := range points {
				row = append(row, drifted(d, p))
			}
			rows = append(rows, row)
		}
		head := []string{"layer", "block"}
		for _, p := range points {
			head = append(head, string(p))
		}
		b.WriteString("Drift by layer, largest error against the largest value:\n\n")
		markdownTable(&b, head, "rlrrrr", rows)
	}
	if bi := r.Bisection; bi != nil {
		b.WriteString(bisected(bi, code) + "\n\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "- %s\n", cell(n))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// points of a layer, in the order of a graph.
var points = []verify.Point{verify.KeyCachePoint, verify.ValueCachePoint, verify.AttentionPoint, verify.ResidualPoint}

// at finds a point of a layer, nil when it was not tapped.
func at(d verify.LayerDrift, p verify.Point) *verify.LayerPoint {
	for i := range d.Points {
		if d.Points[i].Point == p {
			return &d.Points[i]
		}
	}
	return nil
}

func drifted(d verify.LayerDrift, p verify.Point) string {
	x := at(d, p)
	if x == nil || x.Drift == nil {
		return ""
	}
	return verify.Format("max_rel", x.Drift.Metrics.MaxRel)
}

// bisected says what a bisection found; name writes the name of a block.
func bisected(b *verify.Bisection, name func(string) string) string {
	switch {
	case !b.Passed:
		return "No block can be rewritten within the limits."
	case len(b.LeaveAlone) == 0:
		return "All blocks can be rewritten within the limits."
	}
	var names []string
	for _, n := range b.LeaveAlone {
		names = append(names, name(n))
	}
	least := ""
	if b.Smallest {
		least = ", the fewest that are enough"
	}
	return fmt.Sprintf("The limits are kept when %d of %d blocks stay as they are%s: %s.", len(b.LeaveAlone), len(b.Blocks), least, strings.Join(names, ", "))
}

func cacheBytes(r *verify.Report) (before, after int64) {
	for _, b := range r.Blocks {
		before += b.CacheBefore
		after += b.CacheAfter
	}
	return before, after
}

// markdownTable writes a table; align has one letter for each column, l or r.
func markdownTable(b *strings.Builder, head []string, align string, rows [][]string) {
	line := func(cells []string) { fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | ")) }
	line(head)
	rule := make([]string, len(head))
	for i := range rule {
		rule[i] = map[byte]string{'l': ":--", 'r': "--:"}[align[i]]
	}
	line(rule)
	for _, row := range rows {
		for i, c := range row {
			if !strings.HasPrefix(c, "`") {
				row[i] = cell(c)
			}
		}
		line(row)
	}
	b.WriteByte('\n')
}

// cell keeps text from ending a cell or a line, or becoming markup.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", "`", "\\`").Replace(s)
}

// code writes a name that may hold anything as code.
func code(s string) string {
	return "`" + strings.NewReplacer("`", "'", "|", "\\|", "\n", " ", "\r", " ").Replace(s) + "`"
}

func bold(s string, on bool) string {
	if on {
		return "**" + s + "**"
	}
	return s
}
