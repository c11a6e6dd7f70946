package learn

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/data"
	"onnx-dha/fusion"
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
			for range 2 { // the second time from zero again
				got, err := k.collect(context.Background(), batches, 1, nil, func() {})
				if err != nil {
					t.Fatal(err)
				}
				for n, block := range []int{0, last} {
					want := newReferenceStats(t, l, block, k.layouts[n], batches)
					if got[n].Tokens != want.Tokens {
						t.Errorf("block %d: %g tokens, want %g", block, got[n].Tokens, want.Tokens)
					}
					fixed := func(s *fusion.Stats) []*mat.SymDense {
						if s.Fixed == nil {
							return nil
						}
						return []*mat.SymDense{s.Fixed}
					}
					for _, m := range []struct {
						what      string
						got, want []*mat.SymDense
					}{
						{"query", got[n].Query, want.Query},
						{"turned", got[n].Turned, want.Turned},
						{"fixed", fixed(got[n]), fixed(want)},
						{"value", []*mat.SymDense{got[n].Value}, []*mat.SymDense{want.Value}},
						{"attended", got[n].Attended, want.Attended},
						{"spread", got[n].Spread, want.Spread},
					} {
						if len(m.got) != len(m.want) {
							t.Fatalf("block %d: %d matrices of %s, want %d", block, len(m.got), m.what, len(m.want))
						}
						for h, x := range m.want {
							same(t, fmt.Sprintf("block %d %s %d", block, m.what, h), m.got[h].RawSymmetric().Data, x.RawSymmetric().Data, x.SymmetricDim())
						}
					}
					means(t, fmt.Sprintf("block %d fixed", block), got[n].FixedMean, want.FixedMean)
					for h, x := range want.AttendedMean {
						means(t, fmt.Sprintf("block %d attended %d", block, h), got[n].AttendedMean[h], x)
					}
				}
			}
		})
	}
}

func means(t *testing.T, what string, got, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d means, want %d", what, len(got), len(want))
	}
	scale := 0.0
	for _, x := range want {
		scale = max(scale, math.Abs(x))
	}
	for i, x := range want {
		if math.Abs(got[i]-x) > 1e-5*max(scale, 0.01) {
			t.Fatalf("%s: mean %d is %g, want %g", what, i, got[i], x)
		}
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

// tally adds up outer products and rows.
type tally struct {
	product *mat.SymDense
	sum     []float64
	rows    float64
}

func (y *tally) add(x []float64) {
	if y.product == nil {
		y.product, y.sum = mat.NewSymDense(len(x), nil), make([]float64, len(x))
	}
	y.product.SymRankOne(y.product, 1, mat.NewVecDense(len(x), x))
	for i, v := range x {
		y.sum[i] += v
	}
	y.rows++
}

func (y *tally) moments() *mat.SymDense {
	y.product.ScaleSym(1/y.rows, y.product)
	return y.product
}

func (y *tally) mean() []float64 {
	for i := range y.sum {
		y.sum[i] /= y.rows
	}
	return y.sum
}

// newReferenceStats follows the definition of fusion.Stats token by token.
func newReferenceStats(t *testing.T, l *Lab, block int, lay layout, batches []Batch) *fusion.Stats {
	w := l.Weights[block]
	mask, keyMask := "attention_mask", "attention_mask"
	if l.Blocks[block].Kind == attention.Cross {
		keyMask = "encoder_attention_mask"
	}
	pairs, rest, err := fusion.Channels(w.Rotary, w.HeadDim)
	if err != nil {
		t.Fatal(err)
	}
	query, turned, attended := make([]tally, w.Heads), make([]tally, len(pairs)), make([]tally, w.Heads)
	var fixed, value tally
	spread := make([]tally, w.Heads)
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
		// heads gives all heads of a projection at a place
		heads := func(x []float64, at int, weight *mat.Dense, bias []float64) []float64 {
			var y mat.Dense
			y.Mul(mat.NewDense(1, width, x[at*width:(at+1)*width]), weight)
			if bias != nil {
				y.Add(&y, mat.NewDense(1, len(bias), bias))
			}
			return y.RawRowView(0)
		}
		shown := func(mask string, e, s, length int) bool {
			m := batch.Feeds[mask]
			if m == nil {
				return true
			}
			v, _ := m.Int64s()
			return v[e*length+s] != 0
		}
		still := func(at int) (r []float64) { // channels of keys that are not turned
			k := heads(xs, at, w.Key, w.KeyBias)
			for h := range w.KVHeads {
				for _, c := range rest {
					r = append(r, k[h*w.HeadDim+c])
				}
			}
			return r
		}
		signs, _ := spreadSigns(i).Float64s()
		for e := range B {
			for s := range T {
				if !shown(keyMask, e, s, T) {
					continue
				}
				k := heads(xs, e*T+s, w.Key, w.KeyBias)
				for f, p := range pairs {
					var z []float64
					for _, c := range p {
						for h := range w.KVHeads {
							z = append(z, k[h*w.HeadDim+c])
						}
					}
					turned[f].add(z)
				}
				if len(rest) > 0 {
					fixed.add(still(e*T + s))
				}
				value.add(heads(xs, e*T+s, w.Value, w.ValueBias))
			}
			for s := range S {
				if !shown(mask, e, s, S) {
					continue
				}
				q := heads(qs, e*S+s, w.Query, w.QueryBias)
				for h := range w.Heads {
					query[h].add(q[h*w.HeadDim : (h+1)*w.HeadDim])
				}
				if s%lay.stride != int(firstRow(i, lay.stride, batch.Length)) {
					continue
				}
				for h := range w.Heads {
					var row, mean mat.VecDense
					if n := w.KVHeads * len(rest); n > 0 {
						row, mean = *mat.NewVecDense(n, nil), *mat.NewVecDense(n, nil)
					}
					drift := 0.0
					av := make([]float64, w.ValueHeads*w.ValueDim)
					for to := range T {
						if shown(keyMask, e, to, T) {
							p := ps[((e*w.Heads+h)*S+s)*T+to]
							for d, y := range heads(xs, e*T+to, w.Value, w.ValueBias) {
								av[d] += p * y
							}
							if len(rest) > 0 {
								k := mat.NewVecDense(row.Len(), still(e*T+to))
								row.AddScaledVec(&row, signs[to]*math.Sqrt(p), k)
								mean.AddScaledVec(&mean, p, k)
								drift += signs[to] * math.Sqrt(p)
							}
						}
					}
					attended[h].add(av)
					if len(rest) > 0 {
						row.AddScaledVec(&row, -drift, &mean)
						spread[h].add(row.RawVector().Data)
					}
				}
			}
		}
	}
	s := &fusion.Stats{Tokens: value.rows, Value: value.moments()}
	for h := range w.Heads {
		s.Query = append(s.Query, query[h].moments())
		s.Attended = append(s.Attended, attended[h].moments())
		s.AttendedMean = append(s.AttendedMean, attended[h].mean())
	}
	for f := range pairs {
		s.Turned = append(s.Turned, turned[f].moments())
	}
	if fixed.rows > 0 {
		for h := range w.Heads {
			s.Spread = append(s.Spread, spread[h].moments())
		}
		s.Fixed, s.FixedMean = fixed.moments(), fixed.mean()
	}
	return s
}
