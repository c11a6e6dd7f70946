package verify_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// BenchmarkVerify compares a decoder of 8 layers, 512 channels and a vocabulary of 32000 (60 million parameters, float32)
// with a rewrite to half the key and value heads, as the command does by default. "×both" is the time of it all, loading
// included, divided by that of loading, one after the other, and running the original and the rewritten model on the same
// inputs; the median of the rounds.
func BenchmarkVerify(b *testing.B) {
	if err := ort.OpenDefault(); err != nil {
		b.Skip(err)
	}
	dir := b.TempDir()
	q := verify.Request{Original: filepath.Join(dir, "model.onnx"), Rewritten: filepath.Join(dir, "small.onnx"), Tied: filepath.Join(dir, "tied.onnx"), Seed: 1}
	f, err := testmodels.Get("llama")
	if err != nil {
		b.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Layers: 8, Heads: 8, HeadDim: 64, FFN: 1536, Vocab: 32000, MaxSeq: 128, Cache: true})
	if err == nil {
		err = m.Save(q.Original, graph.SaveOptions{})
	}
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range []string{q.Tied, q.Rewritten} {
		m, err := graph.Load(q.Original)
		if err != nil {
			b.Fatal(err)
		}
		defer m.Close()
		plan := &fusion.Plan{Lowering: fusion.Auto}
		for _, block := range attention.Find(m).Blocks {
			half := fusion.Fusion{}
			for h := 0; h < 8; h += 2 {
				half.Groups, half.Weights = append(half.Groups, []int{h, h + 1}), append(half.Weights, []float64{0.5, 0.5})
			}
			plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: block, Key: half, Value: half})
		}
		if path == q.Tied {
			err = rewrite.Tie(m, plan)
		} else {
			var res *rewrite.Result
			if res, err = rewrite.Apply(m, plan); err == nil {
				q.Caches = res.Caches
			}
		}
		if err == nil {
			err = m.Save(path, graph.SaveOptions{})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var ratios []float64
	for b.Loop() {
		r, err := verify.Run(context.Background(), q)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for _, path := range []string{q.Original, q.Rewritten} {
			m, err := verify.Open(path, q.Session)
			if err != nil {
				b.Fatal(err)
			}
			m.Close()
		}
		both := time.Since(start).Seconds() + r.Timing.Run["original"] + r.Timing.Run["rewritten"]
		ratios = append(ratios, r.Timing.Total/both)
		b.Logf("%.3f of %.2f s: %+v", r.Timing.Total/both, both, *r.Timing)
	}
	slices.Sort(ratios)
	b.ReportMetric(ratios[len(ratios)/2], "×both")
}
