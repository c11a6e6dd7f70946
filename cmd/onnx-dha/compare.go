package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/learn"
)

func compareCommand() *cli.Command {
	return &cli.Command{
		Name:      "compare",
		Usage:     "compare strategies of sharing heads at several sizes of cache",
		ArgsUsage: "MODEL",
		Description: "Learns a configuration with every strategy for every size of cache, on the same data, and measures what each\n" +
			"does to the model on data kept apart. Nothing is trained, and no model is written: learn does that with the\n" +
			"strategy of your choice.",
		Flags: common(reportOutput, append(sampleFlags(128), searchFlags(0,
			&cli.StringFlag{Name: "kv", Usage: "let at most these `SHARES` of the cache stay: 50%,25%"},
			&cli.StringFlag{Name: "strategies", Usage: "compare these `NAMES`, with commas between (default: all: " + strings.Join(strategyNames(), ", ") + ")"},
			&cli.StringFlag{Name: "plot", Usage: "draw quality over size of cache to `FILE`: an .svg, or an .html with the table", TakesFile: true},
			&cli.StringFlag{Name: "metric", Value: klMetric, Usage: "draw this `METRIC` in an .svg: kl or perplexity; an .html has both"},
			&cli.BoolFlag{Name: "csv", Usage: "print CSV"},
			&cli.BoolFlag{Name: "markdown", Usage: "print the table as Markdown"})...)...),
		Action: runCompare,
	}
}

func strategyNames() (names []string) {
	for _, s := range fusion.Strategies {
		names = append(names, s.Name)
	}
	return names
}

// comparisonRequest reads what is to be compared from the options.
func comparisonRequest(c *cli.Context) (q learn.Comparison, err error) {
	if q.Request, err = searchRequest(c); err != nil {
		return q, err
	}
	if c.String("kv") == "" {
		return q, usageError("--kv is missing; want shares of the cache such as 50%%,25%%")
	}
	for text := range strings.SplitSeq(c.String("kv"), ",") {
		share, err := readShare("kv", text)
		if err != nil {
			return q, err
		}
		if !slices.Contains(q.Shares, share) {
			q.Shares = append(q.Shares, share)
		}
	}
	q.Strategies = fusion.Strategies
	if c.IsSet("strategies") {
		q.Strategies = nil
		for name := range strings.SplitSeq(c.String("strategies"), ",") {
			s, err := fusion.FindStrategy(strings.TrimSpace(name))
			if err != nil {
				return q, usageError("--strategies: %w", err)
			}
			if !slices.ContainsFunc(q.Strategies, func(have fusion.Strategy) bool { return have.Name == s.Name }) {
				q.Strategies = append(q.Strategies, s)
			}
		}
	}
	if path := c.String("output"); path != "" {
		q.State = path + ".compare-state"
	} else if q.Resume {
		return q, usageError("--resume needs --output: what is finished is kept beside the report")
	}
	return q, nil
}

func runCompare(c *cli.Context) (err error) {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	provider, err := oneOf(c, "provider")
	if err != nil {
		return err
	}
	q, err := comparisonRequest(c)
	if err != nil {
		return err
	}
	forms := 0
	for _, name := range []string{"json", "csv", "markdown"} {
		if c.Bool(name) {
			forms++
		}
	}
	if forms > 1 {
		return usageError("--json, --csv and --markdown are forms of one report; want one of them")
	}
	if err := checkSamples(c); err != nil {
		return err
	}
	metric, err := oneOf(c, "metric")
	if err != nil {
		return err
	}
	inputs := []string{args[0], c.String("data"), c.String("tokenizer"), importanceFile(c)}
	chart := c.String("plot")
	if chart != "" {
		if plotForm(chart) == "" {
			return usageError("--plot %s; want a name that ends in .svg or .html", chart)
		}
		if chart == c.String("output") {
			return usageError("--plot and --output are one file, %s; want two", chart)
		}
	}
	for _, path := range []string{c.String("output"), chart, q.State} {
		if err := writable(path, inputs...); err != nil {
			return err
		}
	}
	m, found, err := openModel(args[0])
	if err != nil {
		return err
	}
	m.Close()
	if err := needBlocks(m, found); err != nil {
		return err
	}
	lab, err := openLab(c, args[0], provider)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	set, err := openSamples(c, lab, c.Float64("held-out"), c.Int("held-out-samples"))
	if err != nil {
		return err
	}
	q.Train, q.HeldOut = set.Train(), set.HeldOut()
	bar := newProgress(c)
	if err := addImportance(c, lab, &q.Request, bar); err != nil {
		bar.clear()
		return err
	}
	q.Progress = withTimeLeft(bar.step)
	rows, err := lab.Compare(c.Context, q)
	bar.clear()
	if err != nil {
		return labError(args[0], err)
	}
	out := &comparison{
		Model: args[0], Data: c.String("data"), Samples: len(q.Train), HeldOut: len(q.HeldOut), Positions: rows[0].Quality.Positions,
		Layout: string(q.Layout), Groups: string(q.Groups), Trials: q.Trials, Refit: !q.NoRefit, Unsupported: len(lab.Blocks) - len(lab.Open()), Staying: staying(lab),
	}
	for _, r := range rows {
		out.Rows = append(out.Rows, comparedRow(r, rows[0]))
	}
	print := out.print
	switch {
	case c.Bool("csv"):
		print = out.csv
	case c.Bool("markdown"):
		print = out.markdown
	}
	// The report comes first: a drawing that cannot be written does not lose it.
	if err := emit(c, c.String("output"), out, print, inputs...); err != nil {
		return err
	}
	if q.State != "" {
		if err := os.Remove(q.State); err != nil && !errors.Is(err, os.ErrNotExist) {
			return coded(exitUsage, err)
		}
	}
	if chart == "" {
		return nil
	}
	data, err := out.draw(plotForm(chart), metric)
	if err != nil {
		return coded(exitUsage, fmt.Errorf("--plot %s: %w", chart, err))
	}
	return writeFile(chart, data, inputs...)
}

// comparison is what the command prints.
type comparison struct {
	Model       string     `json:"model"`
	Data        string     `json:"data"`
	Samples     int        `json:"samples"`
	HeldOut     int        `json:"held_out_samples"`
	Positions   int        `json:"positions"` // that were compared
	Layout      string     `json:"layout"`
	Groups      string     `json:"groups"`
	Trials      int        `json:"trials"`
	Refit       bool       `json:"refit"`
	Unsupported int        `json:"unsupported"`
	Staying     []string   `json:"staying,omitempty"` // which blocks that is, and why
	Rows        []compared `json:"rows"`
}

// compared is a row; what was not measured is left out.
type compared struct {
	Strategy   string   `json:"strategy"`       // "original" in the first row
	KV         float64  `json:"kv"`             // share of the cache asked for
	Share      *float64 `json:"kv_share"`       // and reached
	KeyHeads   []int    `json:"key_heads"`      // of each block
	ValueHeads []int    `json:"value_heads"`    // likewise
	Loss       *float64 `json:"loss,omitempty"` // nats a token
	Perplexity *float64 `json:"perplexity,omitempty"`
	Ratio      *float64 `json:"perplexity_ratio,omitempty"` // to the original's
	KL         *float64 `json:"kl,omitempty"`
	Top1       *float64 `json:"top1,omitempty"`
	Bytes      *int64   `json:"kv_bytes_per_token,omitempty"`
	Seconds    *float64 `json:"seconds,omitempty"`
	Notes      []string `json:"notes,omitempty"`
	Refused    string   `json:"refused,omitempty"`
}

const originalRow = "original"

func comparedRow(r, original learn.Row) compared {
	out := compared{Strategy: r.Strategy, KV: r.Share, Notes: r.Notes}
	if r.Refused != nil {
		out.Refused = r.Refused.Error()
		return out
	}
	for _, c := range r.Choices {
		out.KeyHeads, out.ValueHeads = append(out.KeyHeads, c.Key), append(out.ValueHeads, c.Value)
	}
	q := measuredOf(r.Quality)
	out.Loss, out.Perplexity, out.KL, out.Top1 = q.Loss, q.Perplexity, &q.KL, q.Top1
	if q.Perplexity != nil {
		ratio := r.Quality.Perplexity / original.Quality.Perplexity
		out.Ratio = &ratio
	}
	share := float64(r.Bytes) / float64(original.Bytes)
	out.Bytes, out.Share = &r.Bytes, &share
	if r.Strategy == "" {
		out.Strategy = originalRow
		return out
	}
	seconds := math.Round(100*r.Elapsed.Seconds()) / 100
	out.Seconds = &seconds
	return out
}

// table has a row for each strategy and budget. What the model has no number of is a column less.
func (c *comparison) table(color bool) table.Writer {
	difference := "KL"
	if c.Rows[0].Top1 == nil {
		difference = "error" // of an output that is no distribution
	}
	t := newTable(color, table.Row{"strategy", "KV", "K heads", "V heads", "loss", "perplexity", "ratio", difference, "top-1", "bytes/token", "seconds"},
		2, 5, 6, 7, 8, 9, 10, 11)
	t.SuppressEmptyColumns()
	number := func(format string, x *float64, scale float64) string {
		if x == nil {
			return ""
		}
		y := scale * *x
		if math.Abs(y) < 5e-5 { // rounding may leave a sign on nothing
			y = 0
		}
		return fmt.Sprintf(format, y)
	}
	for _, r := range c.Rows {
		if r.Refused != "" {
			t.AppendRow(table.Row{r.Strategy, number("%.1f %%", &r.KV, 100), "refused", "", "", "", "", "", "", "", ""})
			continue
		}
		perplexity := ""
		if r.Perplexity != nil {
			perplexity = fmt.Sprintf("%.*f", decimals(*r.Perplexity), *r.Perplexity)
		}
		t.AppendRow(table.Row{
			r.Strategy, number("%.1f %%", r.Share, 100), headCounts(r.KeyHeads), headCounts(r.ValueHeads), number("%.4f", r.Loss, 1),
			perplexity, number("× %.3f", r.Ratio, 1), number("%.4f", r.KL, 1), number("%.1f %%", r.Top1, 100),
			count(*r.Bytes), number("%.1f", r.Seconds, 1),
		})
	}
	return t
}

// headCounts writes numbers of heads of layers: one number when all have it, each of a few, or their mean.
func headCounts(n []int) string {
	if len(n) == 0 {
		return ""
	}
	if low, high := slices.Min(n), slices.Max(n); low == high {
		return strconv.Itoa(low)
	} else if len(n) > 8 {
		sum := 0
		for _, x := range n {
			sum += x
		}
		return fmt.Sprintf("%d-%d, mean %.1f", low, high, float64(sum)/float64(len(n)))
	}
	return strings.Trim(fmt.Sprint(n), "[]")
}

// head says what was measured, remarks what the table has no room for.
func (c *comparison) head() string {
	return fmt.Sprintf("%s: learned from %s of %s, measured on %s, %s", c.Model, plural(c.Samples, "sample"), c.Data,
		plural(c.HeldOut, "held-out sample"), plural(c.Positions, "position"))
}

func (c *comparison) remarks() (out []string) {
	type remark struct{ strategy, text string }
	seen := map[remark]bool{}
	for _, r := range c.Rows {
		if r.Refused != "" {
			out = append(out, fmt.Sprintf("%s at %.3g %%: refused: %s", r.Strategy, 100*r.KV, r.Refused))
		}
		for _, note := range r.Notes {
			if x := (remark{r.Strategy, note}); !seen[x] {
				seen[x] = true
				out = append(out, r.Strategy+": "+note)
			}
		}
	}
	return append(out, c.Staying...)
}

func (c *comparison) print(w io.Writer, color bool) error {
	fmt.Fprintf(w, "%s\n\n%s", c.head(), render(c.table(color)))
	for i, remark := range c.remarks() {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, remark)
	}
	return nil
}

func (c *comparison) markdown(w io.Writer, _ bool) error {
	fmt.Fprintln(w, c.table(false).RenderMarkdown())
	for _, remark := range c.remarks() {
		fmt.Fprintf(w, "\n%s\n", remark)
	}
	return nil
}

// csv writes a line for each row; what was not measured is empty.
func (c *comparison) csv(w io.Writer, _ bool) error {
	out := csv.NewWriter(w)
	out.Write([]string{"strategy", "kv", "kv_share", "key_heads", "value_heads", "loss", "perplexity", "perplexity_ratio", "kl", "top1", "kv_bytes_per_token", "seconds", "notes", "refused"})
	number := func(x *float64) string {
		if x == nil {
			return ""
		}
		return strconv.FormatFloat(*x, 'g', -1, 64)
	}
	heads := func(n []int) string { return strings.Trim(fmt.Sprint(n), "[]") }
	for _, r := range c.Rows {
		bytes := ""
		if r.Bytes != nil {
			bytes = strconv.FormatInt(*r.Bytes, 10)
		}
		out.Write([]string{
			r.Strategy, number(&r.KV), number(r.Share), heads(r.KeyHeads), heads(r.ValueHeads), number(r.Loss), number(r.Perplexity), number(r.Ratio),
			number(r.KL), number(r.Top1), bytes, number(r.Seconds), strings.Join(r.Notes, "; "), r.Refused,
		})
	}
	out.Flush()
	return out.Error()
}
