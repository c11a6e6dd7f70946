package rewrite

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"onnx-dha/graph"
)

// fusing returns the rows that fuse groups of heads, channel by channel.
func fusing(groups [][]int, weights [][]float64, channels int) rows {
	var r rows
	for g, group := range groups {
		for c := range channels {
			var ts []term
			for j, h := range group {
				ts = append(ts, term{at: h*channels + c, weight: weights[g][j]})
			}
			r = append(r, ts)
		}
	}
	return r
}

// Runs say the same as the rows that they were cut from, and heads make as few as there are groups.
func TestRunsAreTheRows(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	written := func(runs []run) rows {
		var r rows
		for _, x := range runs {
			if x.first != len(r) {
				t.Fatalf("a run starts at row %d after %d rows", x.first, len(r))
			}
			for k := range x.length {
				var ts []term
				for _, y := range x.terms {
					y.at += k
					ts = append(ts, y)
				}
				r = append(r, ts)
			}
		}
		return r
	}
	for range 200 {
		var r rows
		for range rng.IntN(20) {
			var ts []term
			if len(r) > 0 && rng.IntN(2) == 0 { // often the row before, one further
				for _, x := range r[len(r)-1] {
					x.at++
					ts = append(ts, x)
				}
			} else {
				for range rng.IntN(3) {
					ts = append(ts, term{at: rng.IntN(3), weight: float64(rng.IntN(3))})
				}
			}
			r = append(r, ts)
		}
		if got := written(r.runs()); !reflect.DeepEqual(got, r) {
			t.Fatalf("%v becomes %v", r, got)
		}
	}
	fused := fusing([][]int{{0, 3}, {1, 2}}, [][]float64{{0.5, 0.5}, {0.25, 0.75}}, 64)
	if n := len(fused.runs()); n != 2 {
		t.Errorf("two groups of heads make %d runs", n)
	}
}

// BenchmarkMix fuses 32 key heads of 128 channels into 8, as in a model 4096 wide: along the last axis, where a MatMul
// has its columns, and along the first, where a transposed Gemm has them. Bytes are those that are read.
func BenchmarkMix(b *testing.B) {
	const model, heads, channels, groups = 4096, 32, 128, 8
	data := make([]float32, model*heads*channels)
	for i := range data {
		data[i] = float32(i%1000) / 1000
	}
	var members [][]int
	var weights [][]float64
	for g := range groups {
		members = append(members, []int{g, g + groups, g + 2*groups, g + 3*groups})
		weights = append(weights, []float64{0.1, 0.2, 0.3, 0.4})
	}
	r := fusing(members, weights, channels)
	for _, c := range []struct {
		name string
		axis int
		dims []int64
	}{{"columns", 1, []int64{model, heads * channels}}, {"rows", 0, []int64{heads * channels, model}}} {
		b.Run(c.name, func(b *testing.B) {
			t, err := mix(graph.NewTensor("w", c.dims, data), c.axis, r)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(4 * len(data)))
			for b.Loop() {
				if _, err := t.Bytes(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
