package shapes_test

import (
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph/shapes"
	"onnx-dha/testmodels"
)

// BenchmarkReduce takes the shape arithmetic out of rewritten decoders of 80 layers.
func BenchmarkReduce(b *testing.B) {
	for _, family := range []string{"gpt2", "llama", "llama-dynamo"} {
		b.Run(family, func(b *testing.B) {
			f, err := testmodels.Get(family)
			if err != nil {
				b.Fatal(err)
			}
			var res shapes.Result
			for b.Loop() {
				b.StopTimer()
				m, err := f.Build(testmodels.Options{Layers: 80, Cache: true, Seed: 3})
				if err != nil {
					b.Fatal(err)
				}
				halve(b, m, fusion.Grouped)
				b.StartTimer()
				if res, err = shapes.Reduce(m.Graph); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(res.Before), "nodes")
			b.ReportMetric(float64(res.Removed()), "removed")
		})
	}
}
