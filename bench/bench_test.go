package bench

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph/attention"
	"onnx-dha/internal/trial"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// all gives every block as many key and value heads.
func all(heads int) func(*attention.Block) (int, int) {
	return func(*attention.Block) (int, int) { return heads, heads }
}

func openRuntime(t testing.TB) {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	openRuntime(t)
	o := testmodels.Options{Layers: 2, Heads: 4, HeadDim: 8, Vocab: 64, FFN: 64, Cache: true}
	original := trial.Model(t, "llama", o)
	plain := trial.Model(t, "llama", testmodels.Options{Layers: 2, Heads: 4, HeadDim: 8, Vocab: 64, FFN: 64})
	table := trial.Model(t, "gpt2", testmodels.Options{Cache: true, MaxSeq: 20})
	done := 0
	r, err := Run(context.Background(), Request{
		Models:  []string{original, trial.Rewrite(t, original, fusion.StaticCache, all(4)), trial.Rewrite(t, original, fusion.Grouped, all(1)), plain, table},
		Lengths: []int{4, 30}, Batches: []int{1, 3}, Prompt: 5, Fills: []float64{1, 0.25}, Rounds: 2, Steps: 2, Warmup: 1,
		Session:  ort.Options{Threads: 1},
		Progress: func(n, total int, what string) { done = max(done, n+1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		static, cached bool
		position       int64
	}{{false, true, 2 * 2 * 4 * 8 * 4}, {true, true, 2 * 2 * 4 * 8 * 4}, {false, true, 2 * 2 * 8 * 4}, {false, false, 0}, {false, true, 2 * 2 * 4 * 8 * 4}} {
		if m := r.Models[i]; m.Static != want.static || m.Cached != want.cached || m.Position != want.position {
			t.Errorf("model %d: static %v, cached %v, %d bytes a position; want %+v", i, m.Static, m.Cached, m.Position, want)
		}
	}
	if len(r.Cases) != 2+2*2*2 {
		t.Fatalf("%d cases, want 2 prefills and 8 decodes", len(r.Cases))
	}
	if total := 5 + len(r.Cases)*2; done != total {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	for _, c := range r.Cases {
		for i, x := range c.Results {
			reason := ""
			switch {
			case i == 3 && !c.Prefill():
				reason = "no cache"
			case i == 4 && c.Length == 30:
				reason = "table of 20 positions"
			}
			if !strings.Contains(x.Skipped, reason) || (reason == "") != (x.Skipped == "") {
				t.Errorf("%v, model %d: skipped %q, want %q", &c, i, x.Skipped, reason)
			}
			if x.Skipped != "" {
				continue
			}
			if len(x.Seconds) != 2 || !(x.Time().Low > 0) {
				t.Errorf("%v, model %d: took %v", &c, i, x.Seconds)
			}
		}
		if c.Prefill() {
			continue
		}
		if full := r.BestFull(&c); full != 1 && full != 4 {
			t.Errorf("%v: the best model with all heads is %d", &c, full)
		}
		// The caches of the second are read once, wherever they end; those of the original are read, written and read.
		weights, position := r.Models[0].Weights, r.Models[0].Position
		capacity := int64(c.Length)
		if c.Fill < 1 {
			capacity = max(4*capacity, int64(c.Length)+3)
		}
		if got, want := c.Results[0].Bytes, weights+3*position*int64(c.Batch*c.Length); got != want {
			t.Errorf("%v: the original moves %d bytes, want %d", &c, got, want)
		}
		if got, want := c.Results[1].Bytes-r.Models[1].Weights, position*int64(c.Batch)*capacity; got != want {
			t.Errorf("%v: the static caches are %d bytes, want %d", &c, got, want)
		}
	}
}

// A llama reads all of its weights but the embedding, of which one row is picked.
func TestWeightsReadPerStep(t *testing.T) {
	const layers, d, ffn, vocab = 2, 32, 64, 50
	got, err := readPerStep(trial.Model(t, "llama", testmodels.Options{Layers: layers, Heads: 4, HeadDim: 8, Vocab: vocab, FFN: ffn, Cache: true}))
	want := int64(4 * (layers*(4*d*d+3*d*ffn+2*d) + d + d*vocab))
	// Rotary frequencies, shapes and the like are a thousand bytes more.
	if err != nil || got < want || got > want+2000 {
		t.Errorf("got %d bytes (%v), want %d and a little", got, err, want)
	}
}

func TestModelsThatCannotBeMeasured(t *testing.T) {
	openRuntime(t)
	_, err := Run(context.Background(), Request{Models: []string{trial.Model(t, "bert", testmodels.Options{})}, Prompt: 4})
	var unfit *ModelError
	if !errors.As(err, &unfit) || !strings.Contains(err.Error(), "no decoder") {
		t.Errorf("an encoder: %v", err)
	}
	if _, err := Run(context.Background(), Request{}); err == nil {
		t.Error("no model: no error")
	}
	c, r := &Case{Batch: 1 << 20, Length: 1 << 20, Fill: 1}, &Report{Models: []Model{{Position: 1 << 20}}}
	if why := r.shortage(c, Request{}); kilobytes("/proc/meminfo", "MemAvailable") > 0 && !strings.Contains(why, "GB of memory are free") {
		t.Errorf("an exabyte of caches: %q", why)
	}
}

func TestSpread(t *testing.T) {
	if got, want := SpreadOf([]float64{4, 1, 3, 2, 5}), (Spread{2, 3, 4}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := SpreadOf([]float64{1, 2}), (Spread{1.25, 1.5, 1.75}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("nothing has a median")
	}
	// Ratios are of rounds: what slows both down in one round is not seen.
	a, b := &Result{Seconds: []float64{2, 20, 2}, Bytes: 300}, &Result{Seconds: []float64{1, 10, 1}, Bytes: 100}
	if got := b.Speedup(a); got != (Spread{2, 2, 2}) || b.Bound(a) != 3 {
		t.Errorf("speedup %v, bound %v; want 2 and 3", got, b.Bound(a))
	}
}
