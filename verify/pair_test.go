package verify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// compress is a rewrite of the tiny model to two heads, and what verify is told of it.
func compress(t testing.TB) Request {
	openRuntime(t)
	groups := []int{0, 1, 1, 0}
	return Request{
		Original:  tiny{}.path(t),
		Tied:      tiny{groups: groups, tied: true}.path(t),
		Rewritten: tiny{groups: groups}.path(t),
		Caches: []rewrite.CacheChange{
			{Block: "layer 0", Past: "past_key", Present: "present_key", Axis: 1, Map: groups},
			{Block: "layer 0", Past: "past_value", Present: "present_value", Axis: 1, Map: groups},
		},
		Seed:    7,
		Session: ort.Options{Threads: 1},
	}
}

func run(t testing.TB, q Request) *Report {
	t.Helper()
	q.Session.Threads = 1 // the models are small and the machine may be busy
	r, err := Run(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestExactRewriteWithDrift(t *testing.T) {
	r := run(t, compress(t))
	if !r.RewritePassed() {
		t.Errorf("an exact rewrite fails:\n%v", r)
	}
	if r.DriftPassed() {
		t.Errorf("random heads were fused and nothing drifted:\n%v", r)
	}
	if err := r.Err(); !errors.Is(err, ErrDrift) || errors.Is(err, ErrRewrite) {
		t.Errorf("Err: %v, want drift alone", err)
	}
	if len(r.Notes) > 0 {
		t.Errorf("notes: %q", r.Notes)
	}
	seen := map[string]int{}
	for _, l := range r.Exact.Lines {
		seen[l.Case]++
		if l.Steps == 0 || l.Metrics.Elements == 0 {
			t.Errorf("nothing was compared in %s, %s", l.Case, l.Output)
		}
	}
	for _, name := range []string{"B1 S1 T0", "B3 S16 T0 padded", "B2 S4 T6", "B3 S1 T9 padded", "decode B1 S8+20", "decode B2 S8+20 padded"} {
		if seen[name] != 3 {
			t.Errorf("case %s: %d outputs, want 3 (there are %v)", name, seen[name], seen)
		}
	}
	// Exactness holds for padding too; for drift it does not count: of 3 sequences of 16 tokens 1 and 2 are padding.
	for s, want := range map[*Section]int64{r.Exact: 3 * 16, r.Drift: 3*16 - 3} {
		for _, l := range s.Lines {
			if l.Case == "B3 S16 T0 padded" && l.Output == "logits" && l.Metrics.Logits.Positions != want {
				t.Errorf("against the %s %d positions were compared, want %d", s.Reference, l.Metrics.Logits.Positions, want)
			}
		}
	}
	for _, l := range r.Drift.Lines {
		if strings.Contains(l.Case, "T3") || strings.HasPrefix(l.Output, "present") {
			t.Errorf("drift of %s in %s: caches of other heads say nothing", l.Output, l.Case)
		}
	}
	loose := Tolerance{Name: "loose", Limits: []Limit{{"kl", 100}}}
	q := compress(t)
	q.Drift = &loose
	if r := run(t, q); !r.Passed() || r.Err() != nil {
		t.Errorf("within a loose tolerance: %v\n%v", r.Err(), r)
	}
}

func TestModelAgainstItselfIsIdentical(t *testing.T) {
	openRuntime(t)
	path := tiny{}.path(t)
	id := Identical()
	r := run(t, Request{Original: path, Rewritten: path, Tied: path, Exact: &id, Drift: &id, Steps: 3})
	if !r.Passed() {
		t.Errorf("%v", r)
	}
	drifted := map[string]bool{}
	for _, l := range r.Drift.Lines {
		drifted[l.Case+" "+l.Output] = true
	}
	if !drifted["B2 S4 T6 present_key"] {
		t.Error("without changed caches drift covers them and starts from them too")
	}
}

func TestEveryBugInARewriteFails(t *testing.T) {
	groups := []int{0, 1, 1, 0}
	swapped := []int{1, 0, 0, 1}
	for name, c := range map[string]struct {
		change func(q *Request)
		want   string
	}{
		"another model":                   {func(q *Request) { q.Rewritten = tiny{groups: groups, seed: 1}.path(t) }, "max rel"},
		"heads expanded by the wrong map": {func(q *Request) { q.Rewritten = tiny{groups: groups, wrong: swapped}.path(t) }, "max rel"},
		"a permuted cache map": {func(q *Request) {
			for i := range q.Caches {
				q.Caches[i].Map = swapped
			}
		}, "max rel"},
		"one permuted cache map":            {func(q *Request) { q.Caches[0].Map = swapped }, "max rel"},
		"a map to heads that are not there": {func(q *Request) { q.Rewritten = tiny{groups: groups, wrong: []int{0, 1, 2, 0}}.path(t) }, "ONNX Runtime failed"},
		"NaN":                               {func(q *Request) { q.Rewritten = tiny{groups: groups, poison: nan32}.path(t) }, "NaN or infinite in one model"},
		"an infinity":                       {func(q *Request) { q.Rewritten = tiny{groups: groups, poison: float32(math.Inf(1))}.path(t) }, "NaN or infinite in one model"},
		"a small error":                     {func(q *Request) { q.Rewritten = tiny{groups: groups, poison: 0.1}.path(t) }, "max rel"},
		"a missing output":                  {func(q *Request) { q.Rewritten = tiny{groups: groups, drop: "present_value"}.path(t) }, ""},
		"presents without pasts":            {func(q *Request) { q.Rewritten = tiny{groups: groups, newOnly: true}.path(t) }, "want float[1,4,4,4]"},
	} {
		t.Run(name, func(t *testing.T) {
			q := compress(t)
			q.Steps = 3
			c.change(&q)
			r, err := Run(context.Background(), q)
			if err != nil {
				t.Fatal(err)
			}
			if r.RewritePassed() || !errors.Is(r.Err(), ErrRewrite) {
				t.Errorf("passes:\n%v", r)
			}
			if text := r.String(); !strings.Contains(text, c.want) || !strings.Contains(text, "rewrite error  FAIL") {
				t.Errorf("the report does not say %q:\n%s", c.want, text)
			}
		})
	}
}

func TestModelsThatGiveNothingFiniteFail(t *testing.T) {
	openRuntime(t)
	path := tiny{poison: nan32}.path(t)
	r := run(t, Request{Original: path, Rewritten: path, Steps: -1})
	if r.DriftPassed() {
		t.Errorf("NaN equals NaN:\n%v", r)
	}
}

func TestDriftOfAnotherModelFails(t *testing.T) {
	openRuntime(t)
	r := run(t, Request{Original: tiny{}.path(t), Rewritten: tiny{seed: 1}.path(t), Steps: 3})
	if r.DriftPassed() || r.Exact != nil {
		t.Errorf("%v", r)
	}
}

func TestUnusableRequests(t *testing.T) {
	openRuntime(t)
	path := tiny{}.path(t)
	for name, c := range map[string]struct {
		q    Request
		want []string
	}{
		"no original":   {Request{Original: path + "x", Rewritten: path}, []string{"original", "model.onnxx"}},
		"no rewritten":  {Request{Original: path, Rewritten: path + "x"}, []string{"rewritten", "model.onnxx"}},
		"no tied":       {Request{Original: path, Rewritten: path, Tied: path + "x"}, []string{"tied reference", "model.onnxx"}},
		"other inputs":  {Request{Original: path, Rewritten: tiny{extra: "position_bias"}.path(t)}, []string{`input "position_bias"`, "lacks", "input_ids"}},
		"unknown size":  {Request{Original: path, Rewritten: path, Sizes: map[string]int{"sequenze": 3}}, []string{`"sequenze"`, "sequence"}},
		"map too large": {Request{Original: path, Rewritten: path, Tied: path, Caches: []rewrite.CacheChange{{Block: "b", Past: "past_key", Axis: 1, Map: []int{4}}}}, []string{`cache "past_key" of b`, "head 0 maps to head 4"}},
		"map too small": {Request{Original: path, Rewritten: path, Tied: path, Caches: []rewrite.CacheChange{{Block: "b", Past: "past_key", Axis: 1, Map: []int{0, 1, 2, 2}}}}, []string{`cache "past_key" of b`, "has 4"}},
		"no such axis":  {Request{Original: path, Rewritten: path, Tied: path, Caches: []rewrite.CacheChange{{Block: "b", Past: "past_key", Axis: 4, Map: []int{0}}}}, []string{"axis 4"}},
		"a feed of the wrong shape": {Request{Original: path, Rewritten: path, Steps: -1, Feeds: map[string]*ort.Tensor{"input_ids": ort.FromInt64([]int64{1}, 1)}},
			[]string{"nothing could be compared", "input_ids int64[1]"}},
		"no such logits":             {Request{Original: path, Rewritten: path, Logits: "scores"}, []string{`no output "scores"`, "present_key"}},
		"a metric that is not there": {Request{Original: path, Rewritten: path, Drift: &Tolerance{Limits: []Limit{{"klx", 1}}}}, []string{`"klx"`}},
	} {
		_, err := Run(context.Background(), c.q)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
}

func TestCancelledRun(t *testing.T) {
	q := compress(t)
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	q.Progress = func(done, total int, what string) {
		if calls++; calls == 2 {
			cancel()
		}
	}
	if _, err := Run(ctx, q); !errors.Is(err, context.Canceled) || calls != 2 {
		t.Errorf("got %v after %d pieces of work", err, calls)
	}
}

func TestProgressAndDeterminism(t *testing.T) {
	q := compress(t)
	q.Steps = 2
	var last, total int
	q.Progress = func(done, of int, what string) {
		if done != last+1 || what == "" {
			t.Errorf("piece %d after %d, %q", done, last, what)
		}
		last, total = done, of
	}
	var out [3]bytes.Buffer
	for i := range out {
		last = 0
		if i == 2 {
			q.Seed++
		}
		r := run(t, q)
		if r.Timing == nil || r.Timing.Total <= 0 || r.Timing.Run["rewritten"] <= 0 || r.Timing.Load["tied reference"] <= 0 {
			t.Errorf("times: %+v", r.Timing)
		}
		r.Timing = nil // all that may differ
		if err := r.WriteJSON(&out[i]); err != nil {
			t.Fatal(err)
		}
		if last != total {
			t.Errorf("%d of %d", last, total)
		}
	}
	if !bytes.Equal(out[0].Bytes(), out[1].Bytes()) {
		t.Error("two runs with one seed differ")
	}
	if bytes.Equal(out[0].Bytes(), out[2].Bytes()) {
		t.Error("the seed changes nothing")
	}
}

// The caller's sizes and values go before those that are made up.
func TestSizesFeedsAndText(t *testing.T) {
	m := load(t, tiny{}.path(t))
	in, err := m.feed(batch{Case: m.settle(Case{Batch: 2, Seq: 3, Past: 4, Sizes: map[string]int{"total_sequence": 9}})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := in["attention_mask"].Shape; !slices.Equal(s, []int64{2, 9}) {
		t.Errorf("mask %v", s)
	}
	own := ort.FromInt64([]int64{1, 2, 3}, 1, 3)
	in, err = m.feed(batch{Case: m.settle(Case{Batch: 1, Seq: 3, Feeds: map[string]*ort.Tensor{"input_ids": own}})}, nil)
	if err != nil || in["input_ids"] != own {
		t.Errorf("the fed tokens became %v (%v)", in["input_ids"], err)
	}
	r := &pairRun{Request: Request{Text: []int64{4, 5, 6, 7, 8}}, original: m}
	for _, row := range r.prompt(3, 2) {
		if row[1] != row[0]+1 || row[0] < 4 {
			t.Errorf("prompt %v is not a piece of the text", row)
		}
	}
	if _, err := m.feed(batch{Case: m.settle(Case{Batch: 1, Seq: 1}), tokens: [][]int64{{11}}}, nil); err == nil || !strings.Contains(err.Error(), "vocabulary of 11") {
		t.Errorf("a token outside of the vocabulary: %v", err)
	}
}

// A model that fixes its batch is run at that alone, and dimensions of sloppy names by their places.
func TestModelsThatFixOrMisnameSizes(t *testing.T) {
	openRuntime(t)
	id := Identical()
	fixed := tiny{batch: 2}.path(t)
	r := run(t, Request{Original: fixed, Rewritten: fixed, Drift: &id, Steps: 2})
	for _, l := range r.Drift.Lines {
		if !strings.Contains(l.Case, "B2") {
			t.Errorf("case %s on a model of batch 2", l.Case)
		}
	}
	sloppy := tiny{symbols: map[string]string{"batch": "d0", "sequence": "d1", "total_sequence": "d1", "past_sequence": "d1"}}.path(t)
	if r := run(t, Request{Original: sloppy, Rewritten: sloppy, Drift: &id, Steps: 2}); len(r.Notes) > 0 || !r.Passed() {
		t.Errorf("one name for three lengths: %v", r)
	}
	sum := tiny{symbols: map[string]string{"sequence": "s", "past_sequence": "p", "total_sequence": "p + s"}}.path(t)
	if r := run(t, Request{Original: sum, Rewritten: sum, Drift: &id, Steps: 2}); len(r.Notes) > 0 || !r.Passed() {
		t.Errorf("a sum of lengths: %v", r)
	}
}

// Keys and values that the caller must append give what a model gives that appends them itself.
func TestPresentsThatHoldNewPositionsAlone(t *testing.T) {
	ctx := context.Background()
	var logits [2][]float64
	for i, c := range []tiny{{}, {newOnly: true}} {
		m := load(t, c.path(t))
		d, err := m.NewDecoder(1, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, tokens := range [][]int64{{1, 2, 3}, {4}, {5}} {
			out, err := d.Step(ctx, [][]int64{tokens}, nil)
			if err != nil {
				t.Fatal(err)
			}
			l, _ := out["logits"].Float64s()
			logits[i] = append(logits[i], l...)
		}
	}
	if !slices.Equal(logits[0], logits[1]) {
		t.Error("the two differ")
	}
}

func TestGatherHeads(t *testing.T) {
	x := ort.FromFloat32([]float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 2, 2, 3)
	for _, c := range []struct {
		axis  int
		heads []int
		want  []float32
	}{
		{1, []int{1, 0, 1}, []float32{3, 4, 5, 0, 1, 2, 3, 4, 5, 9, 10, 11, 6, 7, 8, 9, 10, 11}},
		{0, []int{1, 0}, []float32{6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5}},
		{2, []int{2, 0, 1, 2}, []float32{2, 0, 1, 2, 5, 3, 4, 5, 8, 6, 7, 8, 11, 9, 10, 11}},
	} {
		got, err := GatherHeads(x, c.axis, c.heads)
		if err != nil {
			t.Fatal(err)
		}
		if f, _ := got.Float32s(); !slices.Equal(f, c.want) || got.Shape[c.axis] != int64(len(c.heads)) {
			t.Errorf("axis %d, heads %v: got %v %v, want %v", c.axis, c.heads, got, f, c.want)
		}
	}
	empty, _ := ort.New(onnxpb.TensorProto_FLOAT16, 1, 2, 0, 4)
	if got, err := GatherHeads(empty, 1, []int{0, 1, 1}); err != nil || !slices.Equal(got.Shape, []int64{1, 3, 0, 4}) {
		t.Errorf("an empty cache: %v, %v", got, err)
	}
}

func TestReportForPeople(t *testing.T) {
	q := compress(t)
	q.Steps = 2
	text := run(t, q).String()
	for _, want := range []string{
		"model.onnx → model.onnx", "Rewrite error: against the tied reference", "Drift: against the original",
		"max abs", "max rel", "mean abs", "cosine", "SQNR dB", "KL nats", "top-1", "top-5",
		"2 caches, worst present_", "all cases", "FAIL all cases logits: KL nats",
		"rewrite error  PASS  max rel ≤ 0.0001", "drift          FAIL", "overall        FAIL",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q", want)
		}
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.TrimRight(line, " ") != line {
			t.Errorf("line %q ends in spaces", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// Programs read these names.
func TestReportForPrograms(t *testing.T) {
	q := compress(t)
	q.Steps = 2
	r := run(t, q)
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Schema                                         int
		Original, Rewritten, Runtime, Provider, Inputs string
		Gates                                          []map[string]any
		Timing                                         map[string]any
		Seed                                           *uint64
		Passed                                         *bool
		RewritePassed                                  *bool `json:"rewrite_passed"`
		DriftPassed                                    *bool `json:"drift_passed"`
		RewriteError, Drift                            *struct {
			Reference string
			Tolerance struct {
				Name   string
				Limits map[string]float64
			}
			Lines []struct {
				Case, Output, Kind string
				Steps              int
				WorstStep          *int `json:"worst_step"`
				Limits             int
				Passed             *bool
				Broken             []string
				Metrics            map[string]any
				PerStep            map[string][]any `json:"per_step"`
				Histogram          map[string]any
				Diverges           *int `json:"first_diverging_step"`
			}
		}
	}
	d := json.NewDecoder(bytes.NewReader(bytes.Replace(b.Bytes(), []byte("rewrite_error"), []byte("RewriteError"), 1)))
	d.DisallowUnknownFields()
	if err := d.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Runtime != ort.Version() || got.Provider != "cpu" || *got.Seed != 7 || *got.Passed || !*got.RewritePassed || *got.DriftPassed {
		t.Errorf("%+v", got)
	}
	if got.RewriteError.Tolerance.Limits["max_rel"] != 1e-4 || got.Drift.Tolerance.Limits["kl"] != 0.05 {
		t.Errorf("tolerances %v and %v", got.RewriteError.Tolerance, got.Drift.Tolerance)
	}
	last := got.Drift.Lines[len(got.Drift.Lines)-1]
	if last.Case != "all cases" || last.Kind != "logits" || *last.Passed || len(last.Broken) == 0 || last.Metrics["kl"].(float64) < 0.05 {
		t.Errorf("%+v", last)
	}
	for _, l := range got.RewriteError.Lines {
		if !*l.Passed || l.Limits != 1 || l.Metrics["max_rel"] == nil {
			t.Errorf("%+v", l)
		}
	}
	if s := r.Drift.Lines[len(r.Drift.Lines)-1].String(); !strings.HasPrefix(s, "all cases logits: max abs ") || !strings.Contains(s, "FAIL: KL nats") {
		t.Errorf("the line says %q", s)
	}
}
