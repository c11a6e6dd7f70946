package graph_test

import (
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// BenchmarkInfer collects the facts of a decoder of 32 layers.
func BenchmarkInfer(b *testing.B) {
	f, err := testmodels.Get("llama-gqa")
	if err != nil {
		b.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Layers: 32, Cache: true})
	if err != nil {
		b.Fatal(err)
	}
	logits := m.Graph.Outputs[0]
	b.ReportAllocs()
	for b.Loop() {
		if shape, ok := graph.Infer(m.Graph).Shape(logits); !ok || len(shape) != 3 {
			b.Fatalf("the logits have shape %v", shape)
		}
	}
	b.ReportMetric(float64(len(m.Graph.Nodes)), "nodes")
}
