package main

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"onnx-dha/testmodels"
)

// TestCompareReports makes one comparison with everything that it can write, and holds its forms against each other.
func TestCompareReports(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "llama", testmodels.Options{Cache: true}, "")
	line := []string{"compare", model, "--data", tokenLines(t, 10, 12), "--held-out", "0.3", "--kv", "50%,0.75", "--strategies", "gqa, dha", "--threads", "1"}
	chart, html := filepath.Join(dir, "c.svg"), filepath.Join(dir, "c.html")
	d := decode(t, must(t, append(line, "--json", "--plot", chart)...))
	text := must(t, append(line, "--plot", html)...)
	rows, err := csv.NewReader(strings.NewReader(must(t, append(line, "--csv")...))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	markdown := must(t, append(line, "--markdown")...)

	list := at(t, d, "rows").([]any)
	var order []string
	for i, row := range list {
		order = append(order, fmt.Sprint(at(t, row, "strategy"), " ", at(t, row, "kv")))
		share, bytes := at(t, row, "kv_share").(float64), at(t, row, "kv_bytes_per_token").(float64)
		if whole := at(t, list[0], "kv_bytes_per_token").(float64); share != bytes/whole || share > at(t, row, "kv").(float64) {
			t.Errorf("row %d: a share of %v, %v of %v bytes, %v asked for", i, share, bytes, whole, at(t, row, "kv"))
		}
		loss, kl := at(t, row, "loss").(float64), at(t, row, "kl").(float64)
		cells := []string{
			fmt.Sprintf("%.1f %%", 100*share), fmt.Sprintf("%.4f", loss), fmt.Sprintf("× %.3f", at(t, row, "perplexity_ratio")),
			fmt.Sprintf("%.4f", kl), fmt.Sprintf("%.1f %%", 100*at(t, row, "top1").(float64)),
		}
		for form, report := range map[string]string{"table": text, "Markdown": markdown} {
			if !slices.ContainsFunc(strings.Split(report, "\n"), func(l string) bool {
				return strings.HasPrefix(strings.TrimLeft(l, "| "), at(t, row, "strategy").(string)) &&
					!slices.ContainsFunc(cells, func(cell string) bool { return !strings.Contains(l, cell) })
			}) {
				t.Errorf("no line of the %s has %v %v:\n%s", form, at(t, row, "strategy"), cells, report)
			}
		}
		for column, key := range map[int]string{0: "strategy", 1: "kv", 2: "kv_share", 5: "loss", 6: "perplexity", 7: "perplexity_ratio", 8: "kl", 9: "top1"} {
			if want := fmt.Sprint(at(t, row, key)); rows[i+1][column] != want {
				t.Errorf("row %d: %s is %s in CSV, %s in JSON", i, key, rows[i+1][column], want)
			}
		}
	}
	if want := []string{"original 1", "gqa 0.5", "dha 0.5", "gqa 0.75", "dha 0.75"}; !slices.Equal(order, want) {
		t.Errorf("rows %v, want %v", order, want)
	}
	if len(rows) != len(list)+1 {
		t.Errorf("%d lines of CSV for %d rows", len(rows), len(list))
	}
	if at(t, list[0], "top1") != 1.0 || at(t, list[0], "perplexity_ratio") != 1.0 || at(t, list[0], "kl").(float64) > 1e-6 {
		t.Errorf("the original is not itself: %v", list[0])
	}
	drawn, err := os.ReadFile(chart)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"gqa", "dha"} {
		checkLine(t, drawn, s, 2)
	}
	page, err := os.ReadFile(html)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(page, []byte("<svg")); n != 2 || bytes.Count(page, []byte("<tr>")) != len(list)+1 {
		t.Errorf("a page of %d drawings and %d lines", n, bytes.Count(page, []byte("<tr>")))
	}
	for _, outside := range []string{"src=", "href=", "<script", "@import"} {
		if bytes.Contains(page, []byte(outside)) {
			t.Errorf("the page has %q: it is not complete by itself", outside)
		}
	}
}

// checkLine makes sure that an SVG is well-formed, names a strategy and has one line in its colour, through so many points,
// beside the sample of two points in the legend.
func checkLine(t *testing.T, svg []byte, strategy string, points int) {
	t.Helper()
	c := palette[slices.Index(strategyNames(), strategy)]
	stroke := fmt.Sprintf("stroke:#%02X%02X%02X", c.R, c.G, c.B)
	named, lines := false, []int{}
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the drawing is no XML: %v", err)
		}
		switch e := token.(type) {
		case xml.CharData:
			named = named || strings.TrimSpace(string(e)) == strategy
		case xml.StartElement:
			attrs := map[string]string{}
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			if e.Name.Local == "path" && strings.Contains(attrs["style"], "fill:none") && strings.Contains(strings.ToUpper(attrs["style"]), strings.ToUpper(stroke)) {
				lines = append(lines, len(regexp.MustCompile("[ML]").FindAllString(attrs["d"], -1)))
			}
		}
	}
	want := []int{2}
	if points > 1 { // one point is a mark without a line
		want = []int{points, 2}
	}
	slices.Sort(want)
	slices.Sort(lines)
	if !slices.Equal(lines, want) || !named {
		t.Errorf("%s: lines of %v points, want %v; named %v", strategy, lines, want, named)
	}
}

func number[T any](x T) *T { return &x }

// TestCompareRefusals: a strategy that cannot do a model has its row, its reason and no line.
func TestCompareRefusals(t *testing.T) {
	c := &comparison{Model: "m.onnx", Data: "d", Samples: 2, HeldOut: 1, Positions: 9, Unsupported: 1, Staying: []string{"b.1 stays as it is: its keys are shared"}}
	row := func(strategy string, share, kl float64) compared {
		return compared{
			Strategy: strategy, KV: share, Share: &share, KeyHeads: []int{2, 4}, ValueHeads: []int{1, 1}, Loss: number(1 + kl),
			Perplexity: number(3 * (1 + kl)), Ratio: number(1 + kl), KL: &kl, Top1: number(0.5), Bytes: number(int64(1000 * share)), Seconds: number(2.0),
		}
	}
	c.Rows = []compared{row(originalRow, 1, 0), row("gqa", 0.5, 0.02), {Strategy: "svd", KV: 0.5, Refused: "keys are <turned>"}, row("optimal", 0.5, 0)}
	c.Rows[3].Notes = []string{"norms of heads stay"}
	var text, markdown, lines strings.Builder
	if err := errors.Join(c.print(&text, false), c.markdown(&markdown, false), c.csv(&lines, false)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nsvd        50.0 %  refused\n", "\nsvd at 50 %: refused: keys are <turned>\n", "\noptimal: norms of heads stay\n", "2 4", "b.1 stays as it is: its keys are shared",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	if !strings.Contains(markdown.String(), "| svd | 50.0 % | refused |") || !strings.Contains(lines.String(), "\nsvd,0.5,,,,,,,,,,,,keys are <turned>\n") {
		t.Errorf("%s\n%s", markdown.String(), lines.String())
	}
	drawn, err := c.draw("svg", klMetric)
	if err != nil {
		t.Fatal(err)
	}
	checkLine(t, drawn, "gqa", 1)
	if bytes.Contains(drawn, []byte(">svd<")) {
		t.Error("a refused strategy is in the drawing")
	}
	if html, err := c.draw("html", ""); err != nil || bytes.Contains(html, []byte("<turned>")) || !bytes.Contains(html, []byte("&lt;turned&gt;")) {
		t.Errorf("%v, %s", err, html)
	}
	for i := range c.Rows {
		c.Rows[i].Perplexity = nil
	}
	if _, err := c.draw("svg", perplexityMetric); err == nil || !strings.Contains(err.Error(), "no row has a perplexity") {
		t.Errorf("a model without perplexity: %v", err)
	}
}

func TestCompareUsage(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "llama", testmodels.Options{}, "")
	ids := tokenLines(t, 10, 12)
	line := "compare " + model + " --data " + ids + " "
	for in, want := range map[string]string{
		"compare " + model + " --kv 50%":        "--data is missing",
		line:                                    "--kv is missing; want shares of the cache such as 50%,25%",
		line + "--kv 50%,,25%":                  "--kv ; want a share such as 50%",
		line + "--kv 150%":                      "--kv 150%; want a share",
		line + "--kv 50% --strategies gqa,best": `--strategies: strategy "best"; want one of gqa, `,
		line + "--kv 50% --held-out 0":          "--held-out 0; want more than 0",
		line + "--kv 50% --trials -1":           "--trials -1; want 0 or more",
		line + "--kv 50% --layout wide":         `--layout "wide"`,
		line + "--kv 50% --json --csv":          "--json, --csv and --markdown are forms of one report",
		line + "--kv 50% --metric loss":         `--metric "loss"; want one of kl, perplexity`,
		line + "--kv 50% --plot x.png":          "--plot x.png; want a name that ends in .svg or .html",
		line + "--kv 50% --plot x.svg -o x.svg": "--plot and --output are one file",
		line + "--kv 50% --csv -o " + ids:       "is the input",
	} {
		if code, out, errs := invoke(strings.Fields(in)...); code != exitUsage || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q; want %q", in, code, out, errs, want)
		}
	}
	needRuntime(t)
	out := filepath.Join(dir, "c.svg")
	code, _, errs := invoke(strings.Fields(line + "--kv 5% --held-out 0.3 --plot " + out)...)
	if _, err := os.Stat(out); code != exitUsage || err == nil || !strings.Contains(errs, "5 % of the cache is less than one key head and one value head") {
		t.Errorf("exit code %d, %q; file: %v", code, errs, err)
	}
}

// TestCompareWithoutLoss: a model that predicts no next token has neither loss nor perplexity, in no form.
func TestCompareWithoutLoss(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "bert", testmodels.Options{}, "")
	chart := filepath.Join(dir, "c.html")
	text := must(t, "compare", model, "--data", tokenLines(t, 8, 9), "--held-out", "0.3", "--kv", "50%", "--strategies", "svd,gqa", "--plot", chart)
	header := strings.Split(text, "\n")[2]
	if !strings.HasPrefix(header, "strategy") || strings.Contains(header, "loss") || strings.Contains(header, "perplexity") || strings.Contains(header, "ratio") {
		t.Errorf("columns %q", header)
	}
	page, err := os.ReadFile(chart)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(page, []byte("<svg")); n != 1 {
		t.Errorf("%d drawings, want the divergence alone", n)
	}
	code, out, errs := invoke("compare", model, "--data", tokenLines(t, 8, 9), "--held-out", "0.3", "--kv", "50%", "--strategies", "gqa", "--plot", filepath.Join(dir, "c.svg"), "--metric", "perplexity")
	if code != exitUsage || !strings.HasPrefix(out, model) || !strings.Contains(errs, "no row has a perplexity to draw") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errs)
	}
}
