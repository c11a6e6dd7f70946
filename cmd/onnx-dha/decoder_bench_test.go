//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// BenchmarkDecoder measures a whole decoder with the command bench: 8 layers, 16 heads of 64 channels, an MLP of four
// times the width, float32, random weights; as exported, with static caches and all heads (the best full-head graph), and
// with static and growing caches of a quarter of the heads. docs/benchmarks.md has the figures.
func BenchmarkDecoder(b *testing.B) {
	w := open(b)
	model := w.path("model.onnx")
	f, err := testmodels.Get("gpt2")
	if err != nil {
		b.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Layers: 8, Heads: 16, HeadDim: 64, FFN: 4096, Vocab: 1000, MaxSeq: 8448, Cache: true})
	if err != nil {
		b.Fatal(err)
	}
	if err := m.Save(model, graph.SaveOptions{External: "file"}); err != nil {
		b.Fatal(err)
	}
	m.Close()
	models := []string{model}
	for _, x := range []struct{ share, lowering string }{{"100%", "static-cache"}, {"25%", "static-cache"}, {"25%", "grouped"}} {
		config, out := w.path("dha.yaml"), w.path(x.share+x.lowering+".onnx")
		w.run(w.program, "init", model, "--kv", x.share, "-o", config)
		w.run(w.program, "rewrite", model, "--config", config, "--lowering", x.lowering, "--weights", "share", "-o", out)
		if err := os.Remove(config); err != nil {
			b.Fatal(err)
		}
		models = append(models, out)
	}
	for _, c := range []struct{ batch, length int }{{1, 8192}, {4, 2048}, {4, 8192}} {
		b.Run(fmt.Sprintf("T%d/B%d", c.length, c.batch), func(b *testing.B) {
			w := workshop{b, w.dir, w.program}
			report := w.path("report.json")
			args := append([]string{"bench"}, models...)
			args = append(args, "--lengths", fmt.Sprint(c.length), "--batches", fmt.Sprint(c.batch), "--prompt", "0", "--fill", "100%,25%",
				"--steps", "4", "--warmup", "1", "--rounds", "5", "--json", "-o", report)
			for i := 0; b.Loop(); i++ {
				if i == 0 { // the command has rounds of its own
					w.run(w.program, args...)
				}
			}
			data, err := os.ReadFile(report)
			if err != nil {
				b.Fatal(err)
			}
			var r measurements
			if err := json.Unmarshal(data, &r); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(0, "ns/op") // of loading and measuring: says nothing
			for _, x := range r.Cases {
				for i, name := range map[int]string{1: "full", 2: "static", 3: "grouped"} {
					res := x.Results[i]
					if res.Skipped != "" || x.Fill < 1 && i == 3 {
						continue
					}
					name = fmt.Sprintf("%s-%.0f%%", name, 100*x.Fill)
					b.ReportMetric(res.Tokens, name+"-tokens/s")
					b.ReportMetric(res.Original.Speedup, name+"/exported")
					b.ReportMetric(res.Original.Share, name+"/exported-of-allowed")
					if res.Full != nil {
						b.ReportMetric(res.Full.Speedup, name+"/full")
						b.ReportMetric(res.Full.Share, name+"/full-of-allowed")
					}
				}
			}
		})
	}
}
