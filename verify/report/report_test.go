package report

import (
	"bytes"
	"encoding/xml"
	"math"
	"regexp"
	"strings"
	"testing"

	"onnx-dha/verify"
)

// full is a report with everything in it that a report can hold, one gate broken and names that try to be markup.
func full() *verify.Report {
	logits := func(maxRel, kl float64) verify.Metrics {
		return verify.Metrics{
			Elements: 100, Scale: 10, MaxAbs: 10 * maxRel, MaxRel: maxRel, MeanAbs: maxRel, MeanRel: maxRel / 10, P99Rel: maxRel, Cosine: 0.99, SQNR: 20, PSNR: 30,
			Logits: &verify.LogitMetrics{Positions: 10, KL: kl, KLMax: 2 * kl, Top1: 0.9, Top5: 0.95, Top10: 0.96},
		}
	}
	line := func(m verify.Metrics) *verify.Line {
		return &verify.Line{Case: "all cases", Output: "wire", Kind: verify.OtherOutput, Metrics: m}
	}
	diverges := 2
	exact := verify.Exact()
	r := &verify.Report{
		Original: "a|<b>.onnx", Rewritten: "a.dha.onnx", Runtime: "1.29.0", Provider: "cpu", Seed: 1, Inputs: "generated",
		Exact: &verify.Section{Reference: "tied reference", Tolerance: exact, Lines: []verify.Line{{
			Case: "B1 S5 T0", Output: "logits", Kind: verify.LogitsOutput, Steps: 1, Metrics: logits(1e-7, 0), Limits: 1,
			Histogram: &verify.Histogram{Zeros: 4, Low: 1.0 / (1 << 20), Counts: []int64{3, 0, 9}},
		}}},
		Drift: &verify.Section{Reference: "original", Tolerance: verify.Tolerance{Name: "drift", Limits: []verify.Limit{{Metric: "kl", Bound: 0.05}, {Metric: "ppl_ratio", Bound: 1.1}}}, Lines: []verify.Line{
			{
				Case: "decode B1 S8+2", Output: "logits", Kind: verify.LogitsOutput, Steps: 3, WorstStep: 2, Diverges: &diverges, Metrics: logits(0.2, 0.1),
				PerStep: []verify.Metrics{logits(0.1, 0.01), logits(0.15, 0.04), logits(0.2, 0.25)}, StepOf: []int{0, 1, 2},
				Histogram: &verify.Histogram{Low: 1.0 / (1 << 10), Counts: []int64{1, 5, 2}},
			},
			{Case: "all cases", Output: "logits", Kind: verify.LogitsOutput, Steps: 3, Metrics: logits(0.2, 0.1), Limits: 1, Broken: []string{"KL nats 1.00e-01 > 0.05"}},
		}},
		Layers: &verify.LayerReport{
			Layers: []verify.LayerDrift{
				{Layer: 0, Block: "/layers.0/<attn>", Points: []verify.LayerPoint{
					{Point: verify.KeyCachePoint, Drift: line(logits(0.01, 0)), Exact: line(logits(1e-7, 0))},
					{Point: verify.AttentionPoint, Drift: line(logits(0.1, 0)), Exact: line(logits(1e-6, 0))},
				}},
				{Layer: 1, Block: "/layers.1/attn", Points: []verify.LayerPoint{
					{Point: verify.AttentionPoint, Drift: line(logits(0.3, 0)), Exact: line(logits(2e-6, 0))},
					{Point: verify.ResidualPoint, Drift: line(logits(0.2, 0))},
				}},
			},
			Drift:    &verify.LayerPlace{Layer: 0, Block: "/layers.0/<attn>", Point: verify.KeyCachePoint},
			Untapped: []string{"/layers.9: it is fused"},
		},
		Bisection: &verify.Bisection{Blocks: []string{"a", "b", "c"}, LeaveAlone: []string{"b"}, Passed: true, Smallest: true, Trials: []verify.Trial{{Passed: false, Excess: 2}, {LeftAlone: []string{"b"}, Passed: true}}},
		Text: &verify.TextPair{
			Original: verify.TextLoss{Tokens: 99, NLL: 1.5, Perplexity: math.Exp(1.5)}, Rewritten: verify.TextLoss{Tokens: 99, NLL: 1.6, Perplexity: math.Exp(1.6)},
			KL: 0.1, Top1: 0.9, Prompt: "Shall I ", Generations: [2]string{"compare <thee>", "compare thou"}, Agree: 8,
			Worst: []verify.WorstToken{{Position: 4, Before: "to be or ", Token: "\n", KL: 1.25, Original: "not", Rewritten: "</td>", POriginal: 0.5, PRewritten: 0.01}},
		},
		Blocks: []verify.BlockSummary{
			{Block: "/layers.0/<attn>", Lowering: "grouped", Heads: 4, CacheBefore: 128, CacheAfter: 48,
				Key:   verify.HeadMap{Before: 4, After: 2, Groups: [][]int{{0, 3}, {1, 2}}, Weights: [][]float64{{0.75, 0.25}, {0.5, -0.5}}},
				Value: verify.HeadMap{Before: 4, After: 1, Groups: [][]int{{0, 1, 2, 3}}, Learned: true}},
			{Block: "/layers.1/attn", Lowering: "grouped", Heads: 4, CacheBefore: 128, CacheAfter: 96,
				Key:   verify.HeadMap{Before: 4, After: 4, Groups: [][]int{{0}, {1}, {2}, {3}}},
				Value: verify.HeadMap{Before: 4, After: 2, Groups: [][]int{{0, 1}, {2, 3}}}},
		},
		Notes: []string{"a note with | and <script>alert(1)</script>"},
	}
	r.Judge()
	return r
}

func TestMarkdown(t *testing.T) {
	var b bytes.Buffer
	if err := Markdown(&b, full()); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"## onnx-dha verify: FAIL", "| drift | KL nats | ≤ 0.05 | 1.00e-01 | **FAIL** | decode B1 S8+2 logits, step 2 |",
		"not measured", "KV cache per token: 256 bytes → 144 bytes (-43.8 %)", "| 1 | `/layers.1/attn` |", "1 of 3 blocks stay as they are, the fewest that are enough: `b`",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "<script>") {
		t.Error("a note becomes markup")
	}
	// Every row of a table has as many cells as its head.
	cells := regexp.MustCompile(`(^|[^\\])\|`)
	width := 0
	for _, l := range strings.Split(text, "\n") {
		if !strings.HasPrefix(l, "|") {
			width = 0
			continue
		}
		n := len(cells.FindAllString(l, -1))
		if width == 0 {
			width = n
		}
		if n != width {
			t.Errorf("a row has %d bars, its head %d: %s", n, width, l)
		}
	}
}

func TestJUnit(t *testing.T) {
	r := full()
	var b bytes.Buffer
	if err := JUnit(&b, r); err != nil {
		t.Fatal(err)
	}
	var got junitSuites
	if err := xml.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	tests, failures, skipped := len(r.Exact.Lines)+len(r.Drift.Lines)+len(r.Gates), 0, 0
	for _, g := range r.Gates {
		switch {
		case g.Unmeasured != "":
			skipped++
		case !g.Passed:
			failures++
		}
	}
	failures++ // the broken line
	if got.Tests != tests || got.Failures != failures || got.Skipped != skipped || failures != 2 || skipped != 1 {
		t.Errorf("%d tests, %d failures, %d skipped; want %d, %d, %d", got.Tests, got.Failures, got.Skipped, tests, failures, skipped)
	}
	n := 0
	for _, s := range got.Suites {
		for _, c := range s.Cases {
			if c.Failure != nil {
				n++
				if !strings.Contains(c.Failure.Message, "KL") {
					t.Errorf("failure %q does not name its metric", c.Failure.Message)
				}
			}
		}
	}
	if n != failures {
		t.Errorf("%d failures are written, %d counted", n, failures)
	}
}

func TestAnnotations(t *testing.T) {
	r := full()
	r.Gates[len(r.Gates)-2].First.Case = "a 100 %\ncase"
	var b bytes.Buffer
	if err := Annotations(&b, r); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("want an error and a warning, got\n%s", b.String())
	}
	if want := "::error title=onnx-dha%3A drift::drift: KL nats 1.00e-01, want ≤ 0.05: over by 5.00e-02; first in a 100 %25%0Acase logits, step 2"; lines[0] != want {
		t.Errorf("got  %s\nwant %s", lines[0], want)
	}
	if !strings.HasPrefix(lines[1], "::warning ") {
		t.Errorf("want a warning of what was not measured: %s", lines[1])
	}
}

// Two writings are the same, and a report without anything optional has a page too.
func TestHTML(t *testing.T) {
	var a, b bytes.Buffer
	if err := HTML(&a, full()); err != nil {
		t.Fatal(err)
	}
	if err := HTML(&b, full()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same report gives two pages")
	}
	text := a.String()
	for _, want := range []string{
		"Drift by layer", "Rewrite error by layer", "Drift by step", "Budget by block", "Errors", "Worst tokens", "⏎", `title="head 3 → 0, weight 0.25"`,
		"/layers.0/&lt;attn&gt;", `<span class="own">&lt;thee&gt;</span>`, "−43.8 %",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, bad := range []string{"<script", "ZgotmplZ", "src=", "@import", "url("} {
		if strings.Contains(text, bad) {
			t.Errorf("%q in the page", bad)
		}
	}
	if err := HTML(&b, &verify.Report{Drift: &verify.Section{}}); err != nil {
		t.Fatal(err)
	}
}
