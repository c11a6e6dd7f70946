package rewrite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"onnx-dha/bench"
	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/shapes"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// The lowerings are measured on what they change: layers of attention with the projections and MLPs of a narrow model, so
// that caches are nearly all that a step moves, and a whole decoder. All models of a case take turns, on two threads.

// variant is a model made from the one that was exported.
type variant struct {
	name     string
	lowering fusion.Lowering // empty: as exported
	key, val func(n int) [][]int
}

func every(size int) func(n int) [][]int {
	return func(n int) [][]int {
		var g [][]int
		for h := 0; h < n; h += size {
			g = append(g, span(h, h+size))
		}
		return g
	}
}

// dealt makes groups of the given sizes, heads dealt out in steps of stride so that no two neighbours are together.
func dealt(stride int, size ...int) func(n int) [][]int {
	return func(n int) [][]int {
		var g [][]int
		h := 0
		for _, s := range size {
			var group []int
			for range s {
				group = append(group, h*stride%n)
				h++
			}
			g = append(g, group)
		}
		return g
	}
}

var (
	unequalKeys   = dealt(5, 6, 5, 4, 3, 3, 2, 2, 2, 2, 1, 1, 1) // 12 of 32
	unequalValues = dealt(11, 10, 8, 6, 4, 3, 1)                 // 6 of 32
)

// build writes a variant and returns its path.
func (v variant) build(b *testing.B, original string) string {
	if v.lowering == "" {
		return original
	}
	m, err := graph.Load(original)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	plan := &fusion.Plan{Lowering: v.lowering}
	for _, block := range attention.Find(m).Blocks {
		plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: block, Key: fusion.Mean(v.key(block.KVHeads)), Value: fusion.Mean(v.val(block.ValueHeads))})
	}
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		b.Fatal(v.name, err)
	}
	if got := res.Blocks[0].Lowering; got != v.lowering {
		b.Fatalf("%s is lowered to %s: %s", v.name, got, res.Blocks[0].Why)
	}
	if _, err := shapes.Reduce(m.Graph); err != nil { // as the command does
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	return path
}

// measure runs variants side by side, the first being the base, and reports of each how many times as fast as the base it
// is, and as far as bytes moved allow.
func measure(b *testing.B, family string, o testmodels.Options, variants []variant, q bench.Request) {
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		b.Skip(err)
	}
	f, err := testmodels.Get(family)
	if err != nil {
		b.Fatal(err)
	}
	o.Seed, o.Cache = 3, true
	m, err := f.Build(o)
	if err != nil {
		b.Fatal(err)
	}
	original := filepath.Join(b.TempDir(), "original.onnx")
	if err := m.Save(original, graph.SaveOptions{External: "file"}); err != nil {
		b.Fatal(err)
	}
	for _, v := range variants {
		q.Models = append(q.Models, v.build(b, original))
	}
	q.Session.Threads = 2
	b.ResetTimer()
	for range b.N {
		r, err := bench.Run(context.Background(), q)
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range r.Cases {
			base := &c.Results[0]
			for i, v := range variants {
				res := &c.Results[i]
				if res.Skipped != "" {
					b.Logf("%v %s: %s", c.String(), v.name, res.Skipped)
					continue
				}
				t, x := res.Time(), res.Speedup(base)
				b.Logf("%-24s %-28s %8.2f ms  %5.2f x (%.2f to %.2f)  bytes allow %.2f x", c.String(), v.name, 1000*t.Median, x.Median, x.Low, x.High, res.Bound(base))
				b.ReportMetric(x.Median, fmt.Sprintf("%s×", v.name))
			}
		}
	}
}

var coreOptions = testmodels.Options{Layers: 4, Heads: 32, KVHeads: 32, HeadDim: 64, ModelDim: 64, FFN: 64, Vocab: 64, MaxSeq: 8704}

// BenchmarkCore decodes one token after 8192 cached ones with a quarter of the heads, and with 12 key and 6 value heads in
// unequal, decoupled groups.
func BenchmarkCore(b *testing.B) {
	measure(b, "llama", coreOptions, []variant{
		{"as-exported", "", nil, nil},
		{"in-place-32-heads", fusion.StaticCache, single, single},
		{"expand", fusion.Expand, every(4), every(4)},
		{"grouped", fusion.Grouped, every(4), every(4)},
		{"static-cache", fusion.StaticCache, every(4), every(4)},
		{"gqa", fusion.GQA, every(4), every(4)},
		{"attention", fusion.OpAttention, every(4), every(4)},
		{"grouped-unequal", fusion.Grouped, unequalKeys, unequalValues},
		{"static-cache-unequal", fusion.StaticCache, unequalKeys, unequalValues},
	}, bench.Request{Lengths: []int{8192}, Rounds: 5, Steps: 4, Warmup: 1})
}

// BenchmarkCorePrefill reads 512 tokens without a past.
func BenchmarkCorePrefill(b *testing.B) {
	measure(b, "llama", coreOptions, []variant{
		{"as-exported", "", nil, nil},
		{"expand", fusion.Expand, every(4), every(4)},
		{"grouped", fusion.Grouped, every(4), every(4)},
		{"static-cache", fusion.StaticCache, every(4), every(4)},
		{"gqa", fusion.GQA, every(4), every(4)},
		{"attention", fusion.OpAttention, every(4), every(4)},
		{"grouped-unequal", fusion.Grouped, unequalKeys, unequalValues},
		{"static-cache-unequal", fusion.StaticCache, unequalKeys, unequalValues},
	}, bench.Request{Prompt: 512, Rounds: 7})
}

// BenchmarkDecoder decodes with a whole decoder, 8 layers of 1024 channels with 16 heads of 64 and MLPs of 4096, and with a
// quarter of its key and value heads.
func BenchmarkDecoder(b *testing.B) {
	for _, c := range []struct{ length, batch int }{{8192, 1}, {2048, 4}, {8192, 4}} {
		b.Run(fmt.Sprintf("T%d-B%d", c.length, c.batch), func(b *testing.B) {
			measure(b, "gpt2-matmul", testmodels.Options{Layers: 8, Heads: 16, HeadDim: 64, ModelDim: 1024, FFN: 4096, Vocab: 64, MaxSeq: 8704}, []variant{
				{"as-exported", "", nil, nil},
				{"in-place-16-heads", fusion.StaticCache, single, single},
				{"grouped", fusion.Grouped, every(4), every(4)},
				{"static-cache", fusion.StaticCache, every(4), every(4)},
				{"gqa", fusion.GQA, every(4), every(4)},
			}, bench.Request{Lengths: []int{c.length}, Batches: []int{c.batch}, Rounds: 3, Steps: 3, Warmup: 1})
		})
	}
}
