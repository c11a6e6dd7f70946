//go:build linux

package main

import (
	"encoding/json"
	"os"
	"slices"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// BenchmarkShapes measures a step of decoding with and without the shape arithmetic of exporters, which a rewrite leaves
// out: decoders of 8 layers and width 1024, as TorchScript exports them, and the small trained ones; a quarter of the heads,
// one sequence. docs/benchmarks.md has the figures.
func BenchmarkShapes(b *testing.B) {
	w := open(b)
	large := func(family string) func(b *testing.B) string {
		return func(b *testing.B) string {
			f, err := testmodels.Get(family)
			if err != nil {
				b.Fatal(err)
			}
			m, err := f.Build(testmodels.Options{Layers: 8, Heads: 16, HeadDim: 64, FFN: 4096, Vocab: 1000, MaxSeq: 2048, Cache: true})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			path := w.path(family + ".onnx")
			if err := m.Save(path, graph.SaveOptions{External: "file"}); err != nil {
				b.Fatal(err)
			}
			return path
		}
	}
	file := func(path string) func(b *testing.B) string {
		return func(b *testing.B) string {
			if _, err := os.Stat(path); err != nil {
				b.Skip(err)
			}
			return path
		}
	}
	lowerings := []string{"grouped", "static-cache"}
	for _, c := range []struct {
		name   string
		model  func(b *testing.B) string
		length string // cached positions
	}{
		{"gpt2", large("gpt2"), "128"},
		{"llama", large("llama"), "128"},
		{"char-llama", file("../../testmodels/char-llama/model.onnx"), "128"},
		{"capp-gpt", file("../../../shared/models/capp-gpt/model.onnx"), "64"},
	} {
		b.Run(c.name, func(b *testing.B) {
			model := c.model(b)
			w := workshop{b, w.dir, w.program}
			config := w.path(c.name + ".yaml")
			w.run(w.program, "init", model, "--kv", "25%", "-o", config)
			var runs [][]string // of the command, by lowering
			for _, lowering := range lowerings {
				without, kept := w.path(c.name+"."+lowering+".onnx"), w.path(c.name+"."+lowering+".kept.onnx")
				rewrite := []string{"rewrite", model, "--config", config, "--lowering", lowering, "-o"}
				w.run(w.program, append(slices.Clone(rewrite), without)...)
				w.run(w.program, append(slices.Clone(rewrite), kept, "--keep-shapes")...)
				// Back and forth: what comes first after another model pays for what that left in the processor's caches.
				runs = append(runs, []string{"bench", model, without, kept, kept, without,
					"--lengths", c.length, "--prompt", "0", "--steps", "16", "--rounds", "9", "--json", "-o", w.path(lowering + ".json")})
			}
			for i := 0; b.Loop(); i++ {
				if i == 0 { // the command has rounds of its own
					for _, args := range runs {
						w.run(w.program, args...)
					}
				}
			}
			b.ReportMetric(0, "ns/op") // of loading and measuring: says nothing
			for _, lowering := range lowerings {
				data, err := os.ReadFile(w.path(lowering + ".json"))
				if err != nil {
					b.Fatal(err)
				}
				var r measurements
				if err := json.Unmarshal(data, &r); err != nil {
					b.Fatal(err)
				}
				results := r.Cases[0].Results
				b.ReportMetric(1000*results[0].Median, "exported-ms/step")
				b.ReportMetric(500*(results[1].Median+results[4].Median), lowering+"-ms/step")
				b.ReportMetric(500*(results[2].Median+results[3].Median), lowering+"-kept-ms/step")
				var gains []float64
				for round := range results[1].Seconds {
					gains = append(gains, (results[2].Seconds[round]+results[3].Seconds[round])/(results[1].Seconds[round]+results[4].Seconds[round]))
				}
				slices.Sort(gains)
				b.ReportMetric(gains[len(gains)/4], lowering+"-gain-quartile1")
				b.ReportMetric(gains[len(gains)/2], lowering+"-gain")
				b.ReportMetric(gains[3*len(gains)/4], lowering+"-gain-quartile3")
			}
		})
	}
}
