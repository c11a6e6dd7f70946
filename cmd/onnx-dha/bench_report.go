package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"

	"onnx-dha/bench"
	"onnx-dha/internal/chart"
	"onnx-dha/ort"
)

// measurements is what bench prints.
type measurements struct {
	Runtime  string        `json:"onnxruntime"`
	Machine  string        `json:"machine"`
	Provider string        `json:"provider"`
	Threads  int           `json:"threads"` // 0: the runtime chooses
	Rounds   int           `json:"rounds"`
	Steps    int           `json:"steps"`
	Models   []benchModel  `json:"models"`
	Cases    []benchCase   `json:"cases"`
	cases    []*bench.Case // of the report
}

type benchModel struct {
	Model    string `json:"model"`
	Cache    string `json:"cache"`                       // static, growing or none
	Position int64  `json:"kv_bytes_per_position"`       // of one sequence
	Weights  int64  `json:"weight_bytes_per_step"`       // that a step reads
	Peak     int64  `json:"peak_memory_bytes,omitempty"` // of the largest case, beyond what the program takes by itself
}

type benchCase struct {
	Batch   int           `json:"batch"`
	Prompt  int           `json:"prompt,omitempty"` // tokens of a prefill
	Length  int           `json:"length,omitempty"` // positions cached before a step
	Fill    float64       `json:"fill"`             // of static caches
	Results []benchResult `json:"results"`          // by model
}

type benchResult struct {
	Model    string    `json:"model"`
	Skipped  string    `json:"skipped,omitempty"`
	Seconds  []float64 `json:"seconds,omitempty"` // of each round
	Median   float64   `json:"median_seconds,omitempty"`
	Tokens   float64   `json:"tokens_per_second,omitempty"` // of all sequences
	Cache    int64     `json:"kv_bytes,omitempty"`          // of all sequences at this length
	Bytes    int64     `json:"bytes_moved,omitempty"`       // by a step
	Original *against  `json:"against_original,omitempty"`
	Full     *against  `json:"against_best_full,omitempty"` // the fastest other model that caches as much as the original
}

// against holds a result against another's.
type against struct {
	Model   string  `json:"model"`
	Speedup float64 `json:"speedup"` // median over the rounds
	Low     float64 `json:"speedup_low"`
	High    float64 `json:"speedup_high"`
	Allowed float64 `json:"allowed,omitempty"` // by the bytes moved
	Share   float64 `json:"share_of_allowed,omitempty"`
}

func hold(r, base *bench.Result, model string, step bool) *against {
	s := r.Speedup(base)
	a := &against{Model: model, Speedup: round(s.Median), Low: round(s.Low), High: round(s.High)}
	if step {
		a.Allowed = round(r.Bound(base))
		a.Share = round(s.Median / r.Bound(base))
	}
	return a
}

// round keeps what can be measured.
func round(x float64) float64 { return math.Round(1e4*x) / 1e4 }

func describeBench(r *bench.Report, q bench.Request) *measurements {
	m := &measurements{
		Runtime: ort.Version(), Machine: processor(), Provider: q.Session.Provider, Threads: q.Session.Threads,
		Rounds: q.Rounds, Steps: q.Steps,
	}
	for _, x := range r.Models {
		cache := "growing"
		switch {
		case !x.Cached:
			cache = "none"
		case x.Static:
			cache = "static"
		}
		m.Models = append(m.Models, benchModel{x.Path, cache, x.Position, x.Weights, x.Peak})
	}
	for i := range r.Cases {
		c := &r.Cases[i]
		full := r.BestFull(c)
		out := benchCase{Batch: c.Batch, Prompt: c.Prompt, Length: c.Length, Fill: c.Fill}
		for j := range c.Results {
			x := &c.Results[j]
			res := benchResult{Model: r.Models[j].Path, Skipped: x.Skipped, Seconds: x.Seconds}
			if x.Skipped == "" {
				res.Median = x.Time().Median
				res.Tokens = round(float64(c.Batch*max(c.Prompt, 1)) / res.Median)
				res.Cache = r.Models[j].Position * int64(c.Batch) * int64(c.Length+c.Prompt)
				if !c.Prefill() {
					res.Bytes = x.Bytes
				}
				if j > 0 && c.Results[0].Skipped == "" {
					res.Original = hold(x, &c.Results[0], r.Models[0].Path, !c.Prefill())
				}
				if full >= 0 && full != j && j > 0 {
					res.Full = hold(x, &c.Results[full], r.Models[full].Path, !c.Prefill())
				}
			}
			out.Results = append(out.Results, res)
		}
		m.Cases, m.cases = append(m.Cases, out), append(m.cases, c)
	}
	return m
}

// dropUnasked leaves out context lengths that nobody asked for and no model has positions for.
func (m *measurements) dropUnasked(asked bool) {
	for i := len(m.Cases) - 1; i >= 0 && !asked; i-- {
		c := m.Cases[i]
		if c.Prompt == 0 && !slices.ContainsFunc(c.Results, func(r benchResult) bool { return r.Skipped == "" || !strings.Contains(r.Skipped, "positions") }) {
			m.Cases, m.cases = slices.Delete(m.Cases, i, i+1), slices.Delete(m.cases, i, i+1)
		}
	}
}

// label is how a table calls a model: as short as tells it apart.
func (m *measurements) label(i int) string {
	base := filepath.Base(m.Models[i].Model)
	for j, x := range m.Models {
		if j != i && filepath.Base(x.Model) == base {
			return m.Models[i].Model
		}
	}
	return base
}

func (m *measurements) print(w io.Writer, color bool) error {
	t := newTable(color, table.Row{"model", "cache", "KV bytes/position", "weights read", "peak memory"}, 3, 4, 5)
	for i, x := range m.Models {
		peak := ""
		if x.Peak > 0 {
			peak = size(x.Peak)
		}
		t.AppendRow(table.Row{m.label(i), x.Cache, count(x.Position), size(x.Weights), peak})
	}
	fmt.Fprint(w, render(t))
	for _, prefill := range []bool{true, false} {
		m.printCases(w, color, prefill)
	}
	threads := "threads chosen by the runtime"
	if m.Threads > 0 {
		threads = plural(m.Threads, "thread")
	}
	_, err := fmt.Fprintf(w, "\nONNX Runtime %s on %s, %s; %s; medians of %s, ± half the distance of the quartiles\n", m.Runtime, m.Provider, m.Machine, threads, plural(m.Rounds, "round"))
	return err
}

func (m *measurements) printCases(w io.Writer, color, prefill bool) {
	header := table.Row{"batch", "cached", "filled", "model", "ms/step", "±", "tokens/s", "KV cache", "speed", "±", "bytes allow", "of that", "against full heads", "bytes allow", "of that"}
	if prefill {
		header = table.Row{"batch", "prompt", "", "model", "ms", "±", "tokens/s", "", "speed", "±", "", "", "against full heads", "", ""}
	}
	t := newTable(color, header, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
	t.SuppressEmptyColumns()
	rows, filled := 0, slices.ContainsFunc(m.Cases, func(c benchCase) bool { return c.Fill < 1 })
	for i, c := range m.Cases {
		if (c.Prompt > 0) != prefill {
			continue
		}
		for j, r := range c.Results {
			rows++
			fill := ""
			if filled && !prefill && m.Models[j].Cache == "static" {
				fill = fmt.Sprintf("%.3g %%", 100*c.Fill)
			}
			if r.Skipped != "" {
				t.AppendRow(table.Row{c.Batch, c.Length + c.Prompt, fill, m.label(j), "–", "", "", "", "", "", "", "", "", "", ""})
				continue
			}
			s := m.cases[i].Results[j].Time()
			row := table.Row{c.Batch, c.Length + c.Prompt, fill, m.label(j), milliseconds(s.Median), milliseconds((s.High - s.Low) / 2), digits(r.Tokens), "", "", "", "", "", "", "", ""}
			if !prefill {
				row[7] = size(r.Cache)
			}
			if a := r.Original; a != nil {
				row[8], row[9] = fmt.Sprintf("× %.2f", a.Speedup), fmt.Sprintf("%.2f", (a.High-a.Low)/2)
				if a.Allowed > 0 {
					row[10], row[11] = fmt.Sprintf("× %.2f", a.Allowed), fmt.Sprintf("%.0f %%", 100*a.Share)
				}
			}
			if a := r.Full; a != nil {
				row[12] = fmt.Sprintf("× %.2f", a.Speedup)
				if a.Allowed > 0 {
					row[13], row[14] = fmt.Sprintf("× %.2f", a.Allowed), fmt.Sprintf("%.0f %%", 100*a.Share)
				}
			}
			t.AppendRow(row)
		}
	}
	if rows == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s\n%s", map[bool]string{true: "Prefill", false: "Decode"}[prefill], render(t))
	seen := map[string]bool{}
	for _, c := range m.Cases {
		for j, r := range c.Results {
			if note := fmt.Sprintf("– %s: %s", m.label(j), r.Skipped); r.Skipped != "" && (c.Prompt > 0) == prefill && !seen[note] {
				seen[note] = true
				fmt.Fprintln(w, note)
			}
		}
	}
}

func milliseconds(s float64) string { return digits(1e3 * s) }

// digits writes three of them.
func digits(x float64) string {
	switch {
	case x >= 100:
		return count(int64(math.Round(x)))
	case x >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case x >= 1:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
	return strconv.FormatFloat(x, 'f', 3, 64)
}

// draw shows tokens a second over the context length, a line for each model and batch.
func (m *measurements) draw() (string, error) {
	c := chart.Chart{X: "positions cached", Y: "tokens a second", LogY: true, Ticks: map[float64]string{}}
	batches := map[int]bool{}
	for _, x := range m.Cases {
		batches[x.Batch] = true
	}
	at := map[string]int{}
	for _, x := range m.Cases {
		for j, r := range x.Results {
			if x.Prompt > 0 || x.Fill < 1 || r.Skipped != "" {
				continue
			}
			name := m.label(j)
			if len(batches) > 1 {
				name += fmt.Sprintf(", batch %d", x.Batch)
			}
			i, ok := at[name]
			if !ok {
				i, at[name] = len(c.Series), len(c.Series)
				c.Series = append(c.Series, chart.Series{Name: name})
			}
			place := math.Log2(float64(x.Length))
			c.Ticks[place] = strconv.Itoa(x.Length)
			c.Series[i].X, c.Series[i].Y = append(c.Series[i].X, place), append(c.Series[i].Y, r.Tokens)
		}
	}
	svg, err := c.SVG()
	if err == nil && svg == "" {
		err = errors.New("nothing was decoded, so there is nothing to draw")
	}
	return svg, err
}
