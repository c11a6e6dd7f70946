package attention_test

import (
	"testing"

	"onnx-dha/graph/attention"
	"onnx-dha/testmodels"
)

// BenchmarkFind describes graphs as deep and with heads as many and wide as those of Llama 2 7B. The width of the model,
// which is small here, does not matter to it.
func BenchmarkFind(b *testing.B) {
	for _, family := range []string{"llama", "gpt-neox", "llama-dynamo"} {
		b.Run(family, func(b *testing.B) {
			f, err := testmodels.Get(family)
			if err != nil {
				b.Fatal(err)
			}
			m, err := f.Build(testmodels.Options{Layers: 32, Heads: 32, HeadDim: 128, ModelDim: 8, FFN: 8, Cache: true})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if r := attention.Find(m); len(r.Blocks) != 32 {
					b.Fatalf("%d blocks, want 32", len(r.Blocks))
				}
			}
		})
	}
}
