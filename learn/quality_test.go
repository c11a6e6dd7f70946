package learn

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/data"
	"onnx-dha/data/tokenizer"
	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// BenchmarkQuality learns configurations for trained models and measures them on held-out data against the targets that
// docs/quality.md lists; one that is missed fails. `make quality` runs it. The models and texts lie beside the
// repository; what is not there is skipped.
func BenchmarkQuality(b *testing.B) {
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		b.Skip(err)
	}
	for _, tc := range []struct {
		name   string
		task   func(b *testing.B) task
		kv     float64
		metric string
		value  func(r *Result) float64
		most   float64
	}{
		{"stories260K/kv=50%", storiesTask, 0.50, "nats", loss, 1.85},
		{"stories260K/kv=25%", storiesTask, 0.25, "nats", loss, 2.35},
		{"char-llama/kv=50%", shakespeareTask, 0.50, "×ppl", perplexity, 1.015},
		{"char-llama/kv=25%", shakespeareTask, 0.25, "×ppl", perplexity, 1.18},
	} {
		b.Run(tc.name, func(b *testing.B) {
			t := tc.task(b)
			for b.Loop() {
				r := t.learn(b, tc.kv)
				b.ReportMetric(tc.value(r), tc.metric)
				b.ReportMetric(r.After.KL, "KL")
				b.ReportMetric(100*float64(r.BytesAfter)/float64(r.BytesBefore), "%cache")
				b.Logf("%s: heads %v, loss %.4f (original %.4f), perplexity × %.4f, KL %.4f, top-1 %.4f", tc.name,
					r.Choices, r.After.Loss, r.Before.Loss, perplexity(r), r.After.KL, r.After.Top1)
				if x := tc.value(r); x > tc.most {
					b.Errorf("%.4f %s, want at most %g", x, tc.metric, tc.most)
				}
			}
		})
	}
	for _, kv := range []float64{0.5, 0.25} {
		b.Run(fmt.Sprintf("capp-gpt/kv=%g%%", 100*kv), func(b *testing.B) {
			for b.Loop() {
				same, of := cappGPT(b, kv)
				b.ReportMetric(float64(same), "unchanged")
				b.Logf("%d of %d golden continuations are unchanged", same, of)
			}
		})
	}
}

func loss(r *Result) float64       { return r.After.Loss }
func perplexity(r *Result) float64 { return r.After.Perplexity / r.Before.Perplexity }

// task is a model with data to learn from and to report on.
type task struct {
	lab            *Lab
	train, heldOut []data.Sample
}

func (t task) learn(b *testing.B, kv float64) *Result {
	b.Helper()
	s, err := fusion.FindStrategy("optimal")
	if err != nil {
		b.Fatal(err)
	}
	r, err := t.lab.Learn(context.Background(), Request{Strategy: s, KV: kv, Train: t.train, HeldOut: t.heldOut, Trials: 4, Seed: 1})
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// beside returns a path in the folder of models and texts beside the repository.
func beside(b *testing.B, elem ...string) string {
	path := filepath.Join(append([]string{"..", "..", "shared"}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		b.Skip(err)
	}
	return path
}

func openTask(b *testing.B, path string) *Lab {
	l, err := OpenLab(path, ort.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	return l
}

// windows cuts ids into n samples of a length, every stride-th window of them.
func windows(ids []int64, length, n, stride int) []data.Sample {
	var out []data.Sample
	for i := range n {
		at := i * stride * length
		out = append(out, data.Sample{Source: fmt.Sprintf("token %d", at), Tokens: ids[at : at+length]})
	}
	return out
}

// storiesTask is the model and the splits of algorithms note §14.1: stories one after the other, each with BOS, cut into
// sequences of 256 predictions; the first 50 to calibrate on and the next 60 to report on.
func storiesTask(b *testing.B) task {
	m, err := testmodels.FromLlama2C(beside(b, "models", "stories260K", "stories260K.bin"))
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "stories.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	tok, err := testmodels.LoadLlama2CTokenizer(beside(b, "models", "stories260K", "tok512.bin"))
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(beside(b, "text", "tinystories_v2_sample_2MiB.txt"))
	if err != nil {
		b.Fatal(err)
	}
	const length = 257
	var ids []int64
	for story := range strings.SplitSeq(string(text), "<|endoftext|>") {
		for _, x := range tok.Encode(strings.TrimSpace(story)) {
			ids = append(ids, int64(x))
		}
		if len(ids) >= 110*length {
			break
		}
	}
	return task{openTask(b, path), windows(ids, length, 50, 1), windows(ids[50*length:], length, 60, 1)}
}

// shakespeareTask is evaluated as its golden.json says, on the first 100 windows of 256 characters of the last tenth, and
// calibrated on 48 windows spread over the rest.
func shakespeareTask(b *testing.B) task {
	dir, err := testmodels.CharLlama()
	if err != nil {
		b.Skip(err)
	}
	vocab, err := tokenizer.Open(filepath.Join(dir, "vocab.json"))
	if err != nil {
		b.Fatal(err)
	}
	text, err := os.ReadFile(beside(b, "text", "tinyshakespeare.txt"))
	if err != nil {
		b.Fatal(err)
	}
	ids, err := vocab.Encode(string(text))
	if err != nil {
		b.Fatal(err)
	}
	at := int(0.9 * float64(len(ids)))
	const length = 256
	return task{openTask(b, filepath.Join(dir, "model.onnx")), windows(ids[:at], length, 48, at/length/48), windows(ids[at:], length, 100, 1)}
}

// cappGPT learns from the golden prompts with their continuations, and counts the prompts that the rewritten model
// continues as the original does.
func cappGPT(b *testing.B, kv float64) (same, of int) {
	text, err := os.ReadFile(beside(b, "models", "capp-gpt", "golden.json"))
	if err != nil {
		b.Fatal(err)
	}
	var golden struct {
		Cases []struct{ Prompt, Greedy []int64 }
	}
	if err := json.Unmarshal(text, &golden); err != nil {
		b.Fatal(err)
	}
	var samples []data.Sample
	for i, c := range golden.Cases {
		samples = append(samples, data.Sample{Source: fmt.Sprintf("case %d", i), Tokens: slices.Concat(c.Prompt, c.Greedy)})
	}
	t := task{openTask(b, beside(b, "models", "capp-gpt", "model.onnx")), samples, samples}
	r := t.learn(b, kv)
	path := rewritten(b, t.lab, r)
	model, err := verify.Open(path, ort.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer model.Close()
	const end = 51
	for _, c := range golden.Cases {
		got, err := verify.Generate(context.Background(), model, c.Prompt, len(c.Greedy), end)
		if err != nil {
			b.Fatal(err)
		}
		if slices.Equal(got, c.Greedy) {
			same++
		}
	}
	b.Logf("heads %v, KL %.4g", r.Choices, r.After.KL)
	return same, len(golden.Cases)
}

// rewritten applies what was learned, by way of the files that learn writes, and returns the path of the model.
func rewritten(t testing.TB, l *Lab, r *Result) string {
	t.Helper()
	dir := t.TempDir()
	cfg, learned, err := l.Config(r, fusion.Strategy{Name: "optimal"}, "dha.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	text, err := cfg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dha.yaml"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if len(learned) > 0 {
		if _, err := fusion.WriteLearned(filepath.Join(dir, "dha.safetensors"), learned); err != nil {
			t.Fatal(err)
		}
	}
	if cfg, err = fusion.Load(filepath.Join(dir, "dha.yaml")); err != nil {
		t.Fatal(err)
	}
	m, err := graph.Load(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plan, err := cfg.Resolve(attention.Find(m).Blocks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rewrite.Apply(m, plan); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}
