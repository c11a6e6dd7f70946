package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"math"
	"slices"
	"strings"

	"onnx-dha/internal/chart"
	"onnx-dha/verify"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"title": title, "heading": verify.Heading, "format": verify.Format, "bound": bound, "value": value, "state": state, "place": place,
	"verdict": verdict, "percent": func(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) },
	"prob": func(x float64) string { return fmt.Sprintf("%.3f", x) },
	"nats": func(x float64) string { return fmt.Sprintf("%.3f", x) },
	"show": visible, "bisected": func(b *verify.Bisection) string { return bisected(b, func(s string) string { return s }) },
}).Parse(pageText))

// document is what the page shows.
type document struct {
	*verify.Report
	Pair     string
	Tiles    []tile
	Charts   []figure
	Maps     []headMap
	Sections []table
	Said     []continuation
	Colours  [colours]struct{} // of groups
}

// tile is a number that a reader looks for first.
type tile struct{ Value, Label, Note string }

// figure is a chart with what there is to say of it.
type figure struct {
	Title, Caption string
	SVG            template.HTML
}

// HTML writes the report as one page that needs nothing from elsewhere, dark or light as the reader's system is.
func HTML(w io.Writer, r *verify.Report) error {
	d := document{Report: r, Pair: pair(r), Tiles: tiles(r)}
	for _, draw := range []func(*verify.Report) (figure, chart.Chart){layerDrift, layerError, stepDrift, budgets, histograms} {
		f, c := draw(r)
		svg, err := c.SVG()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Title, err)
		}
		if svg == "" {
			continue
		}
		f.SVG = template.HTML(label(svg, f.Title))
		d.Charts = append(d.Charts, f)
	}
	for _, b := range r.Blocks {
		d.Maps = append(d.Maps, mapHeads(b))
	}
	for _, n := range sectionsOf(r) {
		d.Sections = append(d.Sections, tabulate(n))
	}
	if t := r.Text; t != nil && t.Generations[0]+t.Generations[1] != "" {
		for i, who := range []string{"original", "rewritten"} {
			d.Said = append(d.Said, parted(who, t.Prompt, t.Generations[i], t.Generations[1-i]))
		}
	}
	return page.Execute(w, d)
}

// label names an SVG for people who do not see it.
func label(svg, name string) string {
	return strings.Replace(svg, "<svg", fmt.Sprintf(`<svg role="img" aria-label="%s"`, template.HTMLEscapeString(name)), 1)
}

func tiles(r *verify.Report) []tile {
	var out []tile
	if before, after := cacheBytes(r); before > 0 {
		out = append(out, tile{fmt.Sprintf("−%.1f %%", 100*(1-float64(after)/float64(before))), "KV cache", fmt.Sprintf("%d → %d bytes per token", before, after)})
	}
	if t := r.Text; t != nil {
		out = append(out,
			tile{fmt.Sprintf("× %.4f", t.Rewritten.Perplexity/t.Original.Perplexity), "perplexity", fmt.Sprintf("%.3f → %.3f on %d tokens", t.Original.Perplexity, t.Rewritten.Perplexity, t.Original.Tokens)},
			tile{fmt.Sprintf("%.4f", t.KL), "KL, nats a token", fmt.Sprintf("same most likely token at %.1f %%", 100*t.Top1)})
	}
	for _, n := range []named{{"rewrite_error", r.Exact}, {"drift", r.Drift}} {
		if n.section == nil {
			continue
		}
		worst := math.Inf(-1)
		for _, l := range n.section.Lines {
			if x, ok := l.Metrics.Value("max_rel"); ok && l.Output != "" {
				worst = max(worst, x)
			}
		}
		if !math.IsInf(worst, -1) {
			out = append(out, tile{verify.Format("max_rel", worst), title(n.name), "largest, of the output's largest value"})
		}
	}
	return out
}

// series of the points of all layers; get is empty where a point was not compared.
func byLayer(r *verify.Report, get func(verify.LayerPoint) *verify.Line) []chart.Series {
	if r.Layers == nil {
		return nil
	}
	var out []chart.Series
	for _, p := range points {
		s := chart.Series{Name: string(p)}
		any := false
		for _, d := range r.Layers.Layers {
			y := math.NaN()
			if x := at(d, p); x != nil && get(*x) != nil {
				y, any = get(*x).Metrics.MaxRel, true
			}
			s.X, s.Y = append(s.X, float64(d.Layer)), append(s.Y, y)
		}
		if any {
			out = append(out, s)
		}
	}
	return out
}

func layerDrift(r *verify.Report) (figure, chart.Chart) {
	return figure{
			Title:   "Drift by layer",
			Caption: "The rewritten model against the original at each attention block: where drift starts, and how it grows along the residual stream. Caches are compared after their heads are mapped.",
		}, chart.Chart{
			X: "layer", Y: "largest error / largest value", LogY: true,
			Series: byLayer(r, func(p verify.LayerPoint) *verify.Line { return p.Drift }),
		}
}

func layerError(r *verify.Report) (figure, chart.Chart) {
	c := chart.Chart{
		X: "layer", Y: "largest error / largest value", LogY: true,
		Series: byLayer(r, func(p verify.LayerPoint) *verify.Line { return p.Exact }),
	}
	if r.Exact != nil {
		for _, l := range r.Exact.Tolerance.Limits {
			if l.Metric == "max_rel" {
				c.Bound, c.BoundName = l.Bound, "limit"
			}
		}
	}
	return figure{
		Title:   "Rewrite error by layer",
		Caption: "The rewritten model against its tied reference: rounding, unless the rewrite is wrong. Where the two are equal nothing is drawn.",
	}, c
}

// stepMetrics are what is drawn over the steps of a decode, the first that there is.
var stepMetrics = []string{"kl", "mean_rel", "max_rel"}

func stepDrift(r *verify.Report) (figure, chart.Chart) {
	f := figure{Title: "Drift by step", Caption: "Each model decodes through its own cache; step 0 is the prefill."}
	c := chart.Chart{X: "step", LogY: true}
	if r.Drift == nil {
		return f, c
	}
	for _, name := range stepMetrics {
		for _, l := range r.Drift.Lines {
			if len(l.PerStep) < 2 || l.Kind == verify.CacheOutput {
				continue
			}
			s := chart.Series{Name: strings.TrimSpace(l.Case)}
			any := false
			for i, m := range l.PerStep {
				y, ok := m.Value(name)
				if !ok {
					y = math.NaN()
				}
				any = any || ok
				s.X, s.Y = append(s.X, float64(l.StepOf[i])), append(s.Y, y)
			}
			if any {
				c.Series = append(c.Series, s)
			}
		}
		if len(c.Series) > 0 {
			c.Y = verify.Heading(name)
			break
		}
	}
	return f, c
}

func budgets(r *verify.Report) (figure, chart.Chart) {
	c := chart.Chart{X: "block", Y: "heads in the cache"}
	key, value := chart.Series{Name: "key heads", Steps: true}, chart.Series{Name: "value heads", Steps: true}
	before := chart.Series{Name: "before", Steps: true}
	for i, b := range r.Blocks {
		for _, s := range []struct {
			to *chart.Series
			n  int
		}{{&key, b.Key.After}, {&value, b.Value.After}, {&before, b.Key.Before}} {
			s.to.X, s.to.Y = append(s.to.X, float64(i)), append(s.to.Y, float64(s.n))
		}
	}
	if n := len(r.Blocks); n > 0 { // the outline of the last column
		for _, s := range []*chart.Series{&key, &value, &before} {
			s.X, s.Y = append(s.X, float64(n)), append(s.Y, s.Y[n-1])
		}
		c.Series = []chart.Series{before, key, value}
		c.Ticks = map[float64]string{}
		for i := range n {
			c.Ticks[float64(i)+0.5] = fmt.Sprint(i)
		}
	}
	return figure{Title: "Budget by block", Caption: "How many key and value heads each block keeps."}, c
}

func histograms(r *verify.Report) (figure, chart.Chart) {
	c := chart.Chart{X: "|error|", Y: "% of the elements"}
	for _, n := range sectionsOf(r) {
		sum := map[int]float64{} // by octave
		total := 0.0
		for _, l := range n.section.Lines {
			h := l.Histogram
			if h == nil {
				continue
			}
			total += float64(h.Zeros)
			for i, k := range h.Counts {
				total += float64(k)
				if k > 0 {
					sum[int(math.Round(math.Log2(h.Low)))+i] += float64(k)
				}
			}
		}
		if len(sum) == 0 {
			continue
		}
		s := chart.Series{Name: title(n.name), Steps: true}
		first, last := slices.Min(slices.Collect(maps.Keys(sum))), slices.Max(slices.Collect(maps.Keys(sum)))
		for o := first; o <= last+1; o++ {
			s.X, s.Y = append(s.X, float64(o)), append(s.Y, 100*sum[o]/total)
		}
		c.Series = append(c.Series, s)
	}
	c.Ticks = octaves(c.Series)
	return figure{Title: "Errors", Caption: "How large the errors of single elements are, over all outputs. Elements without any error are counted and not drawn."}, c
}

// octaves names every second power of ten among powers of two.
func octaves(series []chart.Series) map[float64]string {
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range series {
		low, high = min(low, slices.Min(s.X)), max(high, slices.Max(s.X))
	}
	out := map[float64]string{}
	for e := math.Ceil(low * math.Log10(2)); e <= high*math.Log10(2); e++ {
		if math.Mod(e, 2) == 0 {
			out[e/math.Log10(2)] = fmt.Sprintf("1e%g", e)
		}
	}
	return out
}

// continuation is how a model goes on after a prompt: what both say, and what it alone does.
type continuation struct{ Who, Prompt, Same, Own string }

func parted(who, prompt, own, other string) continuation {
	a, b := []rune(own), []rune(other)
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return continuation{who, prompt, string(a[:n]), string(a[n:])}
}

// visible shows white space that a token is made of.
func visible(s string) string {
	if strings.TrimSpace(s) != "" {
		return s
	}
	return strings.NewReplacer("\n", "⏎", "\t", "⇥", " ", "␣").Replace(s)
}

// table is a section's lines.
type table struct {
	Title, Reference, Tolerance string
	Passed                      bool
	Columns                     []string
	Rows                        []row
}

type row struct {
	Case, Output string
	Runs         int
	Cells        []string
	Diverges     string
	Judged       string
	Broken       []string
}

// listed are the metrics that tables show where some line has them.
var listed = []string{"max_abs", "max_rel", "mean_abs", "p99_rel", "cosine", "sqnr_db", "psnr_db", "kl", "js", "top1", "top5", "ppl", "ppl_ratio", "exact_match", "agreed_tokens"}

func tabulate(n named) table {
	t := table{Title: title(n.name), Reference: n.section.Reference, Tolerance: n.section.Tolerance.String(), Passed: n.section.Passed()}
	var names []string
	for _, name := range listed {
		if slices.ContainsFunc(n.section.Lines, func(l verify.Line) bool { _, ok := l.Metrics.Value(name); return ok && l.Output != "" }) {
			names = append(names, name)
			t.Columns = append(t.Columns, verify.Heading(name))
		}
	}
	for _, l := range n.section.Lines {
		r := row{Case: l.Case, Output: l.Output, Runs: l.Steps, Broken: l.Broken}
		for _, name := range names {
			text := ""
			if x, ok := l.Metrics.Value(name); ok && l.Output != "" {
				text = verify.Format(name, x)
			}
			r.Cells = append(r.Cells, text)
		}
		if l.Diverges != nil {
			r.Diverges = fmt.Sprint(*l.Diverges)
		}
		if l.Limits > 0 || !l.Passed() {
			r.Judged = verdict(l.Passed())
		}
		t.Rows = append(t.Rows, r)
	}
	return t
}
