package learn

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/data"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// runtime skips a test where ONNX Runtime is not installed.
func runtime(t *testing.T) {
	t.Helper()
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		t.Skip(err)
	}
}

// lab opens a model of a family; inputs come as one sample.
func familyLab(t *testing.T, family string, o testmodels.Options) (*Lab, testmodels.Family) {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLab(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, f
}

// familySample makes random inputs of a family; the last sequence has pad hidden positions.
func familySample(t *testing.T, f testmodels.Family, o testmodels.Options, batch, seq, pad int, seed uint64) data.Sample {
	t.Helper()
	in, err := f.Inputs(o, testmodels.Shape{Batch: batch, Seq: seq, Pad: pad}, seed)
	if err != nil {
		t.Fatal(err)
	}
	s := data.Sample{Source: fmt.Sprint("seed ", seed), Tensors: map[string]*ort.Tensor{}}
	for name, a := range in {
		dims := make([]int64, len(a.Dims))
		for i, d := range a.Dims {
			dims[i] = int64(d)
		}
		if a.I != nil {
			s.Tensors[name] = ort.FromInt64(a.I, dims...)
			continue
		}
		x := make([]float32, len(a.F))
		for i := range x {
			x[i] = float32(a.F[i])
		}
		s.Tensors[name] = ort.FromFloat32(x, dims...)
	}
	return s
}

// tapped runs the untouched graph and returns values inside it.
func tapped(t *testing.T, l *Lab, batches []Batch, pick func(g *graph.Graph, blocks []*attention.Block) []*graph.Value) [][]*ort.Tensor {
	t.Helper()
	m, err := graph.Load(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var names []string
	for _, v := range pick(m.Graph, attention.Find(m).Blocks) {
		names = append(names, v.Name)
		if !v.IsOutput() {
			float := int32(1)
			m.Graph.AddOutput(v, &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: &float}}})
		}
	}
	path := filepath.Join(t.TempDir(), "tapped.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all [][]*ort.Tensor
	for _, b := range batches {
		in := map[string]*ort.Tensor{}
		for _, io := range s.Inputs() {
			in[io.Name] = b.Feeds[io.Name]
		}
		out, err := s.RunOutputs(context.Background(), in, names...)
		if err != nil {
			t.Fatal(err)
		}
		var row []*ort.Tensor
		for _, name := range names {
			row = append(row, out[name])
		}
		all = append(all, row)
	}
	return all
}

// TestStatistics compares the statistics that the runtime accumulates with the definition, computed here in double
// precision from the values that the untouched graph has.
func TestStatistics(t *testing.T) {
	runtime(t)
	for _, tc := range []struct {
		family string
		o      testmodels.Options
		pad    int
	}{
		{"llama", testmodels.Options{}, 0},
		{"llama", testmodels.Options{Cache: true}, 3},
		{"llama-gqa", testmodels.Options{Cache: true, Bias: true}, 2},
		{"llama-interleaved", testmodels.Options{}, 0},
		{"qwen2", testmodels.Options{}, 1},
		{"qwen3", testmodels.Options{}, 0},
		{"gpt2", testmodels.Options{Cache: true}, 2},
		{"gpt2-matmul", testmodels.Options{}, 2},
		{"gpt2-dynamo", testmodels.Options{}, 0},
		{"gpt-neox", testmodels.Options{}, 0},
		{"opt", testmodels.Options{}, 1},
		{"bert", testmodels.Options{}, 3},
		{"vit", testmodels.Options{}, 0},
		{"t5-decoder", testmodels.Options{}, 2},
		{"mha", testmodels.Options{}, 1},
	} {
		t.Run(fmt.Sprint(tc.family, tc.o.Cache, tc.pad), func(t *testing.T) {
			l, f := familyLab(t, tc.family, tc.o)
			var samples []data.Sample
			for seed := range uint64(3) {
				samples = append(samples, familySample(t, f, tc.o, 2, 7, tc.pad, seed))
			}
			batches, err := l.Batches(samples, 1)
			if err != nil {
				t.Fatal(err)
			}
			last := len(l.Blocks) - 1
			k, err := l.calibration(0, 7, 0, last)
			if err != nil {
				t.Fatal(err)
			}
			defer k.close()
			var want []*referenceStats
			for n, block := range []int{0, last} {
				want = append(want, newReferenceStats(t, l, block, k.layouts[n], batches))
			}
			for range 2 { // the second time from zero again
				got, err := k.collect(context.Background(), batches, 1, nil, func() {})
				if err != nil {
					t.Fatal(err)
				}
				for n, block := range []int{0, last} {
					s, w, r := got[n], l.Weights[block], want[n]
					if s.Tokens != r.tokens {
						t.Errorf("block %d: %g tokens, want %g", block, s.Tokens, r.tokens)
					}
					for i, x := range r.mean {
						if math.Abs(s.Mean[i]-x) > 1e-5*math.Sqrt(r.input[i*len(r.mean)+i]) {
							t.Fatalf("block %d mean %d: %g, want %g", block, i, s.Mean[i], x)
						}
					}
					same(t, fmt.Sprintf("block %d input", block), s.Input.RawSymmetric().Data, r.input, k.layouts[n].n)
					if len(s.Query) != w.Heads || len(s.Attended) != w.Heads {
						t.Fatalf("%d query and %d attended statistics for %d heads", len(s.Query), len(s.Attended), w.Heads)
					}
					for h := range w.Heads {
						same(t, fmt.Sprintf("block %d query %d", block, h), s.Query[h].RawSymmetric().Data, r.query[h], w.HeadDim)
						same(t, fmt.Sprintf("block %d attended %d", block, h), s.Attended[h].RawSymmetric().Data, r.attended[h], k.layouts[n].n)
					}
				}
			}
		})
	}
}

// same compares the upper triangles of two n × n matrices, to 1e-5 of the largest entry.
func same(t *testing.T, what string, got, want []float64, n int) {
	t.Helper()
	scale := 0.0
	for _, x := range want {
		scale = max(scale, math.Abs(x))
	}
	for i := range n {
		for j := i; j < n; j++ {
			if d := math.Abs(got[i*n+j] - want[i*n+j]); !(d <= 1e-5*scale) {
				t.Fatalf("%s [%d, %d]: %g, want %g (scale %g)", what, i, j, got[i*n+j], want[i*n+j], scale)
			}
		}
	}
}

type referenceStats struct {
	tokens          float64
	input, mean     []float64
	query, attended [][]float64
}

// newReferenceStats follows the definition of fusion.Stats token by token.
func newReferenceStats(t *testing.T, l *Lab, block int, lay layout, batches []Batch) *referenceStats {
	w, n := l.Weights[block], lay.n
	mask, keyMask := "attention_mask", "attention_mask"
	if l.Blocks[block].Kind == attention.Cross {
		keyMask = "encoder_attention_mask"
	}
	r := &referenceStats{input: make([]float64, n*n), mean: make([]float64, n)}
	for range w.Heads {
		r.query = append(r.query, make([]float64, w.HeadDim*w.HeadDim))
		r.attended = append(r.attended, make([]float64, n*n))
	}
	outer := func(to, x []float64) {
		for i := range x {
			for j := range x {
				to[i*len(x)+j] += x[i] * x[j]
			}
		}
	}
	rows, queries := 0.0, 0.0
	inside := tapped(t, l, batches, func(_ *graph.Graph, blocks []*attention.Block) []*graph.Value {
		b := blocks[block]
		return []*graph.Value{b.Key.Projection.Input, b.PV.In[0], b.Query.Projection.Input}
	})
	for i, batch := range batches {
		xt, pt := inside[i][0], inside[i][1]
		xs, _ := xt.Float64s()
		ps, _ := pt.Float64s()
		qs, _ := inside[i][2].Float64s()
		S, T := int(pt.Shape[len(pt.Shape)-2]), int(pt.Shape[len(pt.Shape)-1])
		B := int(pt.Len()) / S / T / w.Heads
		width := int(xt.Shape[len(xt.Shape)-1])
		if len(xt.Shape) == 3 && int(xt.Shape[0]) != B { // [sequence, batch, channels]
			moved := make([]float64, len(xs))
			for s := range T {
				for e := range B {
					copy(moved[(e*T+s)*width:(e*T+s+1)*width], xs[(s*B+e)*width:])
				}
			}
			xs, qs = moved, moved
		}
		x := func(e, s int) []float64 {
			v := slices.Clone(xs[(e*T+s)*width : (e*T+s+1)*width])
			if n > width {
				v = append(v, 1)
			}
			return v
		}
		shown := func(mask string, e, s, length int) bool {
			m := batch.Feeds[mask]
			if m == nil {
				return true
			}
			v, _ := m.Int64s()
			return v[e*length+s] != 0
		}
		for e := range B {
			for s := range T {
				if shown(keyMask, e, s, T) {
					r.tokens++
					outer(r.input, x(e, s))
					for d, y := range x(e, s) {
						r.mean[d] += y
					}
				}
			}
			for s := range S {
				if !shown(mask, e, s, S) {
					continue
				}
				queries++
				v := qs[(e*S+s)*width : (e*S+s+1)*width]
				for h := range w.Heads {
					q := make([]float64, w.HeadDim)
					for c := range q {
						for d := range width {
							q[c] += v[d] * w.Query.At(d, h*w.HeadDim+c)
						}
						if w.QueryBias != nil {
							q[c] += w.QueryBias[h*w.HeadDim+c]
						}
					}
					outer(r.query[h], q)
				}
				if s%lay.stride != int(firstRow(i, lay.stride, batch.Length)) {
					continue
				}
				rows++
				for h := range w.Heads {
					ax := make([]float64, n)
					for to := range T {
						p := ps[((e*w.Heads+h)*S+s)*T+to]
						if !shown(keyMask, e, to, T) {
							continue
						}
						for d, y := range x(e, to) {
							ax[d] += p * y
						}
					}
					outer(r.attended[h], ax)
				}
			}
		}
	}
	divide := func(x []float64, by float64) {
		for i := range x {
			x[i] /= by
		}
	}
	divide(r.input, r.tokens)
	divide(r.mean, r.tokens)
	for h := range w.Heads {
		divide(r.query[h], queries)
		divide(r.attended[h], rows)
	}
	return r
}
