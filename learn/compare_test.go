package learn

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/testmodels"
)

// TestCompareIsLearn: a row is what Learn gives for its strategy and share by itself, whatever ran before it in the same
// comparison.
func TestCompareIsLearn(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	q := Comparison{Shares: []float64{0.75, 0.5, 0.25}, Request: Request{Train: tokens(6, 12, 64, 1), HeldOut: tokens(3, 12, 64, 2), Seed: 3, Trials: 2}}
	for _, name := range []string{"optimal", "gqa"} {
		s, err := fusion.FindStrategy(name)
		if err != nil {
			t.Fatal(err)
		}
		q.Strategies = append(q.Strategies, s)
	}
	last := 0
	q.Progress = func(done, total int, what string) {
		if done != last+1 || done > total || what == "" {
			t.Errorf("step %d of %d, %q, after %d", done, total, what, last)
		}
		last = done
	}
	rows, err := l.Compare(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 7 || last == 0 {
		t.Fatalf("%d rows, %d steps", len(rows), last)
	}
	if o := rows[0]; o.Strategy != "" || o.Share != 1 || math.Abs(o.Quality.KL) > 1e-6 || o.Quality.Top1 != 1 {
		t.Errorf("the original: %+v", o)
	}
	for i, row := range rows[1:] {
		share, strategy := q.Shares[i/2], q.Strategies[i%2]
		if row.Strategy != strategy.Name || row.Share != share || row.Refused != nil {
			t.Fatalf("row %d: %s at %g, %v; want %s at %g", i+1, row.Strategy, row.Share, row.Refused, strategy.Name, share)
		}
		alone := q.Request
		alone.Progress, alone.Strategy, alone.KV = nil, strategy, share
		want, err := l.Learn(context.Background(), alone)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(row.Choices, want.Choices) || row.Bytes != want.BytesAfter || rows[0].Bytes != want.BytesBefore {
			t.Errorf("%s at %g: %v in %d bytes; Learn has %v in %d", row.Strategy, share, row.Choices, row.Bytes, want.Choices, want.BytesAfter)
		}
		for _, x := range [][2]float64{{row.Quality.KL, want.After.KL}, {row.Quality.Loss, want.After.Loss}, {rows[0].Quality.Loss, want.Before.Loss}} {
			if !(math.Abs(x[0]-x[1]) <= 1e-5*(1+math.Abs(x[1]))) {
				t.Errorf("%s at %g: %g, Learn has %g", row.Strategy, share, x[0], x[1])
			}
		}
		if row.Elapsed <= 0 {
			t.Errorf("%s at %g took %v", row.Strategy, share, row.Elapsed)
		}
	}
}

// TestCompareResume: a comparison that is stopped and resumed, with a strategy more, ends like one in one piece.
func TestCompareResume(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	state := filepath.Join(t.TempDir(), "state")
	q := Comparison{Shares: []float64{0.5, 0.25}, Strategies: fusion.Strategies[:2], Request: Request{Train: tokens(6, 12, 64, 1), HeldOut: tokens(3, 12, 64, 2)}}
	whole, err := l.Compare(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	run := func(stop int) (rows []Row, steps int, err error) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		q.Progress = func(int, int, string) {
			if steps++; steps == stop {
				cancel()
			}
		}
		rows, err = l.Compare(ctx, q)
		return rows, steps, err
	}
	q.State = state
	_, all, err := run(-1)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(state)
	q.Strategies = fusion.Strategies[:1]
	if _, _, err := run(all / 3); !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped: %v", err)
	}
	q.Strategies, q.Resume = fusion.Strategies[:2], true
	rows, steps, err := run(-1)
	if err != nil {
		t.Fatal(err)
	}
	if steps >= all {
		t.Errorf("%d runs of the model after resuming, %d in one piece", steps, all)
	}
	for i, r := range rows {
		if r.Strategy != whole[i].Strategy || !slices.Equal(r.Choices, whole[i].Choices) || r.Bytes != whole[i].Bytes || math.Abs(r.Quality.KL-whole[i].Quality.KL) > 1e-6 {
			t.Errorf("row %d: %+v, in one piece %+v", i, r, whole[i])
		}
	}
	if _, again, err := run(-1); err != nil || again > 10 {
		t.Errorf("a finished comparison runs the model %d times, %v", again, err)
	}
}

// TestCompareRefuses: what concerns every row is an error, and what it is tells whether the request was wrong.
func TestCompareRefuses(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{})
	ok := Comparison{Shares: []float64{0.5}, Strategies: fusion.Strategies[:2], Request: Request{Train: tokens(4, 8, 64, 1), HeldOut: tokens(2, 8, 64, 2)}}
	var unfit *RequestError
	for want, change := range map[string]func(*Comparison){
		"0 strategies at 1 budgets":                     func(q *Comparison) { q.Strategies = nil },
		"2 strategies at 0 budgets":                     func(q *Comparison) { q.Shares = nil },
		"5 % of the cache is less than one key head":    func(q *Comparison) { q.Shares = []float64{0.5, 0.05} },
		"120 % of the cache; want more than 0 %":        func(q *Comparison) { q.Shares = []float64{1.2} },
		"NaN % of the cache; want":                      func(q *Comparison) { q.Shares = []float64{math.NaN()} },
		"held-out samples: ":                            func(q *Comparison) { q.HeldOut = nil },
		`50 % of the cache: layout "wide"; want one of`: func(q *Comparison) { q.Layout = "wide" },
	} {
		q := ok
		change(&q)
		rows, err := l.Compare(context.Background(), q)
		if err == nil || rows != nil || !strings.Contains(err.Error(), want) || !errors.As(err, &unfit) {
			t.Errorf("%d rows, %v; want %q", len(rows), err, want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	steps := 0
	ok.Progress = func(int, int, string) {
		if steps++; steps == 5 {
			cancel()
		}
	}
	if _, err := l.Compare(ctx, ok); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}
