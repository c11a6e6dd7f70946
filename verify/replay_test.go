package verify

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/data"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// recorded runs a comparison and writes what was recorded.
func recorded(t *testing.T, q Request, bytes int64) (*Report, string) {
	t.Helper()
	q.Record = &Recorder{Bytes: bytes}
	r := run(t, q)
	dir := filepath.Join(t.TempDir(), "golden")
	if err := q.Record.Write(dir, r, "sha256:x"); err != nil {
		t.Fatal(err)
	}
	return r, dir
}

func replay(t *testing.T, dir string, q Request) *Report {
	t.Helper()
	g, err := OpenGolden(dir)
	if err != nil {
		t.Fatal(err)
	}
	q.Session.Threads = 1
	r, err := g.Replay(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, r)
	return r
}

// A recording says of a rewritten model what the original said of it, and does without the original.
func TestReplayEqualsTheComparison(t *testing.T) {
	q := compress(t)
	q.Steps = 3
	want, dir := recorded(t, q, 0)
	if err := os.Remove(q.Original); err != nil {
		t.Fatal(err)
	}
	got := replay(t, dir, q)
	if got.Passed() != want.DriftPassed() || got.Exact != nil || !strings.Contains(got.Notes[0], "did not run") {
		t.Errorf("%v", got)
	}
	lines := map[string]Metrics{}
	for _, l := range got.Drift.Lines {
		lines[l.Case+l.Output] = l.Metrics
	}
	for _, l := range want.Drift.Lines {
		m := lines[l.Case+l.Output]
		for _, name := range []string{"max_abs", "mean_abs", "cosine", "kl", "kl_max", "top1", "top5"} {
			a, _ := l.Metrics.Value(name)
			b, ok := m.Value(name)
			if !ok || math.Abs(a-b) > 1e-6*max(1, math.Abs(a)) {
				t.Errorf("%s %s: %s is %v, replayed %v", l.Case, l.Output, name, a, b)
			}
		}
		if m.Logits == nil || m.Logits.Positions != l.Metrics.Logits.Positions {
			t.Errorf("%s: %+v positions, want %d", l.Case, m.Logits, l.Metrics.Logits.Positions)
		}
	}
	// The tied reference is another model again, and a model of other heads and weights is far off.
	q.Rewritten = tiny{groups: []int{0, 1, 1, 0}, seed: 1}.path(t)
	loose := Tolerance{Name: "loose", Limits: []Limit{{"kl", 1e-3}}}
	q.Drift = &loose
	if r := replay(t, dir, q); r.Passed() || len(r.Gates) != 2 || r.Gates[1].Passed || r.Gates[1].First == nil {
		t.Errorf("another model passes: %v", r)
	}
}

// With little room rows are chosen evenly, the last one among them, and they are enough to see another model.
func TestRecordingsKeepTheirBounds(t *testing.T) {
	q := compress(t)
	q.Steps = 3
	_, dir := recorded(t, q, 1)
	g, err := OpenGolden(dir)
	if err != nil {
		t.Fatal(err)
	}
	for n, run := range g.Runs {
		for output, rows := range run.Rows {
			if len(rows) > 4 || len(rows) == 0 {
				t.Errorf("run %d keeps %v of %s", n, rows, output)
			}
		}
	}
	if r := replay(t, dir, q); len(r.Drift.Lines) == 0 {
		t.Error("nothing was compared")
	}
	for _, c := range []struct {
		n, k int
		want []int
	}{{5, 9, []int{0, 1, 2, 3, 4}}, {10, 2, []int{4, 9}}, {7, 3, []int{1, 3, 6}}, {0, 3, []int{}}} {
		got := evenly(c.n, c.k)
		if len(got) != len(c.want) || len(got) > 0 && (got[0] != c.want[0] || got[len(got)-1] != c.n-1) {
			t.Errorf("%d of %d: %v, want %v", c.k, c.n, got, c.want)
		}
	}
}

func TestRecordingsThatCannotBeRead(t *testing.T) {
	q := compress(t)
	q.Steps = -1
	_, dir := recorded(t, q, 0)
	change := func(edit func(m map[string]any)) string {
		to := t.TempDir()
		b, err := os.ReadFile(filepath.Join(dir, goldenArrays))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, goldenArrays), b, 0o644); err != nil {
			t.Fatal(err)
		}
		if b, err = os.ReadFile(filepath.Join(dir, goldenRecord)); err != nil {
			t.Fatal(err)
		}
		m := map[string]any{}
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		edit(m)
		if b, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, goldenRecord), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return to
	}
	first := func(m map[string]any) map[string]any { return m["runs"].([]any)[0].(map[string]any) }
	for name, c := range map[string]struct{ dir, want string }{
		"nothing":          {t.TempDir(), "want a folder that verify --save-golden has written"},
		"another version":  {change(func(m map[string]any) { m["version"] = 9 }), "version 9 is not known"},
		"no runs":          {change(func(m map[string]any) { m["runs"] = []any{} }), "has no runs"},
		"a missing input":  {change(func(m map[string]any) { first(m)["inputs"] = []string{"zzz"} }), `input "zzz"`},
		"too few rows":     {change(func(m map[string]any) { first(m)["rows"] = map[string]any{"logits": []int{0, 1, 2, 3, 4, 5, 6}} }), "want 7 rows"},
		"no batch":         {change(func(m map[string]any) { first(m)["batch"] = -1 }), "batch of -1"},
		"ragged sequences": {change(func(m map[string]any) { first(m)["steps"] = [][][]int64{{}} }), "not 1 sequences of one length"},
		"a wrong type":     {change(func(m map[string]any) { m["runs"] = 3 }), "want what verify --save-golden has written"},
	} {
		if _, err := OpenGolden(c.dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
	}
}

// What was saved as inputs is read back as samples, and gives the same drift.
func TestSavedInputsAreSamples(t *testing.T) {
	q := compress(t)
	q.Steps = -1
	q.Record = &Recorder{}
	want := run(t, q)
	dir := t.TempDir()
	if err := q.Record.WriteInputs(dir); err != nil {
		t.Fatal(err)
	}
	m := load(t, q.Original)
	var inputs []ort.IO
	for _, in := range m.Inputs {
		shape := make([]int64, len(in.Dims))
		for i, d := range in.Dims {
			if n, ok := d.Const(); ok {
				shape[i] = n
			} else {
				shape[i] = -1
			}
		}
		inputs = append(inputs, ort.IO{Name: in.Name, DType: in.DType, Shape: shape})
	}
	set, err := data.Open(dir, data.Options{Inputs: inputs})
	if err != nil {
		t.Fatal(err)
	}
	cases, left := SampleCases(m.Signature, set.Train(), func(past string) bool { return strings.HasPrefix(past, "past") })
	if len(cases) != 4 || len(left) != 0 {
		t.Fatalf("%d cases, left out %q", len(cases), left)
	}
	q.Cases, q.Record, q.Inputs = cases, nil, "saved"
	got := run(t, q)
	if got.Inputs != "saved" {
		t.Errorf("inputs %q", got.Inputs)
	}
	// Padding counts here, since nobody says which positions are: only the cases without it agree.
	for i := range 3 {
		a, b := want.Drift.Lines[i].Metrics, got.Drift.Lines[i].Metrics
		if a.MaxAbs != b.MaxAbs || a.Logits.KL != b.Logits.KL {
			t.Errorf("case %d: %v and %v", i, want.Drift.Lines[i], got.Drift.Lines[i])
		}
	}
	// Filled caches have heads that the rewritten model has not.
	filled := set.Train()[0]
	filled.Tensors["past_key"] = ort.FromFloat32(make([]float32, 4*2*4), 1, 4, 2, 4)
	if cases, left := SampleCases(m.Signature, []data.Sample{filled}, func(past string) bool { return past == "past_key" }); len(cases) != 0 || len(left) != 1 {
		t.Errorf("a sample with filled caches: %v, %q", cases, left)
	}
}

// Outputs that come with the inputs are compared with both models: the original's own must be right, those of the
// rewritten one drift.
func TestExpectedOutputs(t *testing.T) {
	q := compress(t)
	q.Steps = -1
	m := load(t, q.Original)
	c := m.settle(Case{Batch: 1, Seq: 4})
	in, err := m.feed(batch{Case: c, seed: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.run(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	delete(in, "past_key")
	delete(in, "past_value")
	q.Cases = []Case{{Name: "sample", Batch: 1, Seq: 4, Feeds: in, Expected: out}}
	r := run(t, q)
	validate(t, r)
	if !r.OriginalGolden.Passed() || len(r.OriginalGolden.Lines) != 3 {
		t.Errorf("the original against its own outputs: %+v", r.OriginalGolden.Lines)
	}
	if r.Golden.Passed() || r.DriftPassed() {
		t.Errorf("random heads were fused and the outputs are as expected: %v", r)
	}
	text := r.String()
	for _, want := range []string{"Expected outputs: against the original", "gate golden: KL nats"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q:\n%s", want, text)
		}
	}
	wrong := out["logits"].Clone()
	wrong.Raw[3] ^= 0x40
	q.Cases[0].Expected = map[string]*ort.Tensor{"logits": wrong}
	if r := run(t, q); r.OriginalGolden.Passed() {
		t.Error("outputs of another model are the original's")
	}
}

// Greedy continuations of a batch are those of each prompt alone, and where two models part is counted.
func TestGenerationsAreCompared(t *testing.T) {
	ctx := context.Background()
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	var models [2]*Model
	for i := range models {
		built, err := f.Build(testmodels.Options{Cache: true, Layers: 1, Seed: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		models[i] = load(t, save(t, built))
	}
	prompts := models[0].Prompts(nil, 5, 3, 4)
	got, err := GenerateBatch(ctx, models[0], prompts, 6)
	if err != nil {
		t.Fatal(err)
	}
	for b, p := range prompts {
		alone, err := Generate(ctx, models[0], p, 6)
		if err != nil || agreement(alone, got[b]) >= 0 {
			t.Errorf("prompt %d: %v in the batch, alone %v (%v)", b, got[b], alone, err)
		}
	}
	same, other := &Report{Drift: &Section{}}, &Report{Drift: &Section{Tolerance: Tolerance{Limits: []Limit{{"exact_match", 1}, {"agreed_tokens", 6}, {"ppl_ratio", 1.1}}}}}
	if err := same.CompareGenerations(ctx, models[0], models[0], prompts, 6); err != nil {
		t.Fatal(err)
	}
	if err := other.CompareGenerations(ctx, models[0], models[1], prompts, 6); err != nil {
		t.Fatal(err)
	}
	g := same.Drift.Lines[0].Metrics.Generation
	if g.Exact != 1 || g.Agreed != 6 || !same.Passed() {
		t.Errorf("a model and itself: %+v", g)
	}
	l := other.Drift.Lines[0]
	if l.Passed() || l.Limits != 2 || other.Passed() || l.Metrics.Generation.Exact == 1 {
		t.Errorf("two models: %v", l)
	}
	if len(other.Gates) != 4 || other.Gates[3].Unmeasured == "" || !strings.Contains(other.Gates[1].String(), "under by") {
		t.Errorf("gates: %v", other.Gates)
	}
}
