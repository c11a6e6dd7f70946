package verify

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"onnx-dha/data"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// Golden is a recording that was read back.
type Golden struct {
	Recording
	folder string
	arrays map[string]*ort.Tensor
}

// maxRecord bounds the description of a recording in bytes.
const maxRecord = 256 << 20

// OpenGolden reads a folder that Recorder.Write has written.
func OpenGolden(folder string) (*Golden, error) {
	path := filepath.Join(folder, goldenRecord)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("golden outputs: %w; want a folder that verify --save-golden has written", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return nil, err
	}
	g := &Golden{folder: folder}
	if err := json.Unmarshal(b, &g.Recording); err != nil {
		return nil, fmt.Errorf("%s: %w; want what verify --save-golden has written", path, err)
	}
	if g.Version != RecordingVersion {
		return nil, fmt.Errorf("%s: version %d is not known; this program reads version %d: record it anew", path, g.Version, RecordingVersion)
	}
	if g.arrays, err = data.ReadArrays(filepath.Join(folder, goldenArrays)); err != nil {
		return nil, err
	}
	return g, g.check()
}

// check verifies that every array is there and has the rows that the description names.
func (g *Golden) check() error {
	if len(g.Runs) == 0 {
		return fmt.Errorf("%s has no runs", g.folder)
	}
	for n, run := range g.Runs {
		for _, name := range run.Inputs {
			if g.arrays[fmt.Sprintf("%d/in/%s", n, name)] == nil {
				return fmt.Errorf("%s: input %q of %s is missing", g.folder, name, run.Case)
			}
		}
		for output, rows := range run.Rows {
			t := g.arrays[fmt.Sprintf("%d/out/%s", n, output)]
			if t == nil || t.DType != onnxpb.TensorProto_FLOAT || len(t.Shape) != 2 || int(t.Shape[0]) != len(rows) {
				return fmt.Errorf("%s: output %q of %s is %v, want %d rows", g.folder, output, run.Case, t, len(rows))
			}
		}
		if run.Batch < 1 || run.Batch > 1<<16 {
			return fmt.Errorf("%s: %s has a batch of %d", g.folder, run.Case, run.Batch)
		}
		for _, step := range run.Steps {
			if len(step) != run.Batch || len(step[0]) == 0 || slices.ContainsFunc(step, func(row []int64) bool { return len(row) != len(step[0]) }) {
				return fmt.Errorf("%s: a step of %s is not %d sequences of one length", g.folder, run.Case, run.Batch)
			}
		}
	}
	return nil
}

// Replay runs a rewritten model on recorded inputs and compares it with what the original gave. Of the request it reads
// Rewritten, Drift, Session and Progress.
func (g *Golden) Replay(ctx context.Context, q Request) (*Report, error) {
	start := time.Now()
	m, err := Open(q.Rewritten, q.Session)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	loaded := time.Since(start)
	if g.Logits != "" && slices.Contains(m.Outputs, g.Logits) {
		m.Logits = g.Logits
	}
	drift := DefaultDrift()
	if q.Drift != nil {
		drift = *q.Drift
	}
	if err := drift.Check(); err != nil {
		return nil, err
	}
	precision := onnxpb.TensorProto_DataType(onnxpb.TensorProto_DataType_value[g.Precision])
	if epsilon(precision) < epsilon(m.Precision) {
		precision = m.Precision
	}
	s := &section{reference: m, tolerance: drift.For(precision)}
	for n := range g.Runs {
		if err := g.run(ctx, m, s, n); err != nil {
			return nil, err
		}
		if q.Progress != nil {
			q.Progress(n+1, len(g.Runs), g.Runs[n].Case)
		}
	}
	rep := &Report{
		Schema: SchemaVersion, Original: g.Original, Rewritten: filepath.Base(q.Rewritten), Runtime: ort.Version(),
		Provider: cmp.Or(q.Session.Provider, "cpu"), Seed: g.Seed, Inputs: "golden outputs in " + filepath.Base(g.folder),
		Drift: s.result("original, as recorded"),
		Notes: []string{fmt.Sprintf("the original did not run: it was recorded with ONNX Runtime %s on %s", g.Runtime, g.Provider)},
	}
	if g.Provider != rep.Provider {
		rep.ReferenceProvider = g.Provider
	}
	rep.Judge()
	if err := g.text(ctx, m, rep); err != nil {
		return nil, err
	}
	if t := g.Generated; t != nil {
		if err := rep.compareGenerations(ctx, m, &GenerationPair{Prompts: t.Prompts, Tokens: t.Tokens, Original: t.Got}); err != nil {
			return nil, err
		}
	}
	rep.Timing = &Timing{
		Load: map[string]float64{"rewritten": loaded.Seconds()}, Run: map[string]float64{"rewritten": m.spent.Seconds()},
		Total: time.Since(start).Seconds(),
	}
	return rep, nil
}

// run replays one recorded run.
func (g *Golden) run(ctx context.Context, m *Model, s *section, n int) error {
	run := g.Runs[n]
	given := map[string]*ort.Tensor{}
	for _, name := range run.Inputs {
		in := m.input(name)
		if in == nil {
			return fmt.Errorf("model %q has no input %q, which was recorded; is it a rewrite of %s?", m.Path, name, g.Original)
		}
		t := g.arrays[fmt.Sprintf("%d/in/%s", n, name)]
		if t.DType != in.DType {
			x, err := t.Float64s()
			if err == nil {
				t, err = ort.FromFloat64s(in.DType, x, t.Shape...)
			}
			if err != nil {
				return fmt.Errorf("input %q: %w", name, err)
			}
		}
		given[name] = t
	}
	outs, err := g.outputs(ctx, m, run, given)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		s.fail(run.Case, err)
		return nil
	}
	for _, output := range slices.Sorted(maps.Keys(run.Rows)) {
		l := s.line(run.Case, output, m.Logits == output, false)
		l.steps += len(outs)
		l.meter.trace = false // rows of several steps are compared at once
		if err := g.compare(l, n, output, outs); err != nil {
			l.err = err.Error()
		}
	}
	return nil
}

// outputs runs the model on what was recorded: once, or step by step.
func (g *Golden) outputs(ctx context.Context, m *Model, run RecordedRun, given map[string]*ort.Tensor) ([]map[string]*ort.Tensor, error) {
	if run.Steps == nil {
		c := m.settle(Case{Name: run.Case, Batch: run.Batch, Seq: run.Seq, Sizes: m.sizesOf(given)})
		in, err := m.feed(batch{Case: c, seed: g.Seed}, given)
		if err != nil {
			return nil, err
		}
		out, err := m.run(ctx, in)
		return []map[string]*ort.Tensor{out}, err
	}
	d, err := m.NewDecoder(run.Batch, g.Seed, given)
	if err != nil {
		return nil, err
	}
	d.sizes = m.sizesOf(given)
	var outs []map[string]*ort.Tensor
	for i, tokens := range run.Steps {
		var real [][]bool
		if i == 0 {
			real = run.Real
		}
		out, err := d.Step(ctx, tokens, real)
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", i, err)
		}
		outs = append(outs, map[string]*ort.Tensor{m.Logits: out[m.Logits]})
	}
	return outs, nil
}

// compare holds the recorded rows of an output against those of the model.
func (g *Golden) compare(l *line, n int, output string, outs []map[string]*ort.Tensor) error {
	run := g.Runs[n]
	ref := g.arrays[fmt.Sprintf("%d/out/%s", n, output)]
	var runs []*ort.Tensor
	for _, out := range outs {
		t := out[output]
		if t == nil {
			return fmt.Errorf("the rewritten model has no output %q", output)
		}
		runs = append(runs, t)
	}
	rows, width, err := flatRows(runs, run.Real)
	if err != nil {
		return err
	}
	if int64(width) != ref.Shape[1] {
		return fmt.Errorf("its rows have %d elements, want %d", width, ref.Shape[1])
	}
	var got []float32
	for _, i := range run.Rows[output] {
		if i < 0 || i >= len(rows) {
			return fmt.Errorf("it has %d rows, row %d was recorded", len(rows), i)
		}
		for _, x := range rows[i] {
			got = append(got, float32(x))
		}
	}
	return l.meter.Add(ref, ort.FromFloat32(got, ref.Shape...), nil)
}

// text measures the model on the recorded text.
func (g *Golden) text(ctx context.Context, m *Model, rep *Report) error {
	if g.Text == nil {
		return nil
	}
	var loss lossSum
	for _, w := range g.Text.Windows {
		if len(w) < 2 {
			return fmt.Errorf("%s: a window of the text has %d tokens, want 2 and more", g.folder, len(w))
		}
		logits, err := m.score(ctx, w)
		if err == nil {
			err = loss.add(m, logits, w)
		}
		if err != nil {
			return err
		}
	}
	if loss.tokens == 0 {
		return nil
	}
	now := loss.mean()
	rep.addLine(Line{Case: "text", Output: "perplexity", Kind: TextOutput, Steps: len(g.Text.Windows), Metrics: Metrics{Text: &TextMetrics{
		Tokens: now.Tokens, Original: g.Text.Loss.Perplexity, Perplexity: now.Perplexity, Ratio: now.Perplexity / g.Text.Loss.Perplexity,
	}}})
	return nil
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
