package learn

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/data"
	"onnx-dha/data/tokenizer"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// families of all dresses of attention and of output projections.
var importanceCases = []struct {
	family string
	o      testmodels.Options
	pad    int
}{
	{"llama", testmodels.Options{}, 0},
	{"llama", testmodels.Options{Cache: true}, 3},
	{"llama-gqa", testmodels.Options{Cache: true, Bias: true}, 2},
	{"qwen2", testmodels.Options{}, 1},
	{"gpt2", testmodels.Options{Cache: true}, 2},
	{"gpt2-dynamo", testmodels.Options{}, 0},
	{"gpt-neox", testmodels.Options{}, 0},
	{"falcon", testmodels.Options{}, 0},
	{"bert", testmodels.Options{}, 3},
	{"vit", testmodels.Options{}, 0},
	{"t5-decoder", testmodels.Options{}, 2},
	{"mha", testmodels.Options{}, 1},
}

func familyBatches(t *testing.T, l *Lab, f testmodels.Family, o testmodels.Options, pad int) []Batch {
	t.Helper()
	var samples []data.Sample
	for seed := range uint64(2) {
		samples = append(samples, familySample(t, f, o, 2, 7, pad, seed))
	}
	batches, err := l.Batches(samples, 1)
	if err != nil {
		t.Fatal(err)
	}
	return batches
}

func importance(t *testing.T, l *Lab, batches []Batch, r Removal) *Importance {
	t.Helper()
	imp, err := l.Importance(context.Background(), batches, r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return imp
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s: %g, want %g", what, got, want)
	}
}

// TestHeadStatistics compares what the runtime reduces with the definitions, followed here in double precision on
// attention weights, contexts and block outputs of the untouched graph.
func TestHeadStatistics(t *testing.T) {
	runtime(t)
	for _, tc := range importanceCases {
		t.Run(fmt.Sprint(tc.family, tc.o.Cache, tc.pad), func(t *testing.T) {
			l, f := familyLab(t, tc.family, tc.o)
			batches := familyBatches(t, l, f, tc.o, tc.pad)
			imp := importance(t, l, batches, RemoveNone)
			for i := range l.Blocks {
				want := newReferenceHeads(t, l, i, batches)
				got := imp.Blocks[i]
				if len(got.Missing) > 0 {
					t.Fatalf("not measured: %s", got.Missing)
				}
				check := func(kind HeadKind, n int, h *Head) {
					what := fmt.Sprintf("block %d %s head %d", i, kind, n)
					var magnitude, peak, entropy float64
					c := 0.0
					for _, q := range h.QueryHeads {
						k := float64(len(h.QueryHeads))
						magnitude += want.magnitude[q] / k
						peak += want.peak[q] / k
						entropy += want.entropy[q] / k
					}
					shared := 0.0
					for _, token := range want.contributions {
						for d := range token.whole {
							x := 0.0
							for _, q := range h.QueryHeads {
								x += token.heads[q][d]
							}
							c += x * x
							shared += x * token.whole[d]
						}
					}
					near(t, what+" magnitude", h.Attention.Magnitude, magnitude, 1e-5)
					near(t, what+" peak", h.Attention.Peak, peak, 1e-5)
					near(t, what+" entropy", h.Attention.Entropy, entropy, 1e-5)
					near(t, what+" relative entropy", h.Attention.Relative, entropy/want.uniform, 1e-5)
					rms := math.Sqrt(c / float64(len(want.contributions)))
					near(t, what+" contribution", h.Output.RMS, rms, 1e-5*rms)
					near(t, what+" relative contribution", h.Output.Relative, math.Sqrt(c/want.energy), 1e-5)
					near(t, what+" share", h.Output.Share, shared/want.energy, 1e-5)
				}
				got.Each(check)
				total := 0.0
				for _, h := range got.Queries {
					total += h.Output.Share
				}
				near(t, "sum of shares", total, 1, 1e-5)
				near(t, "share of the layer", got.Layer.Output.Share, 1, 1e-5)
			}
		})
	}
}

type tokenContributions struct {
	heads [][]float64 // what each head adds
	whole []float64   // the block's output, its bias left out
}

type referenceHeads struct {
	magnitude, peak, entropy []float64 // means
	uniform                  float64
	contributions            []tokenContributions
	energy                   float64 // Σ‖whole‖²
}

func newReferenceHeads(t *testing.T, l *Lab, block int, batches []Batch) *referenceHeads {
	b, w := l.Blocks[block], l.Weights[block]
	keyMask := "attention_mask"
	if b.Kind == attention.Cross {
		keyMask = "encoder_attention_mask"
	}
	inside := tapped(t, l, batches, func(_ *graph.Graph, blocks []*attention.Block) []*graph.Value {
		b := blocks[block]
		return []*graph.Value{b.PV.In[0], b.Output.Input, b.Output.Output}
	})
	r := &referenceHeads{magnitude: make([]float64, b.Heads), peak: make([]float64, b.Heads), entropy: make([]float64, b.Heads)}
	queries := 0.0
	_, out := w.Output.Dims()
	for i, batch := range batches {
		pt, ct := inside[i][0], inside[i][1]
		ps, _ := pt.Float64s()
		cs, _ := ct.Float64s()
		ys, _ := inside[i][2].Float64s()
		S, T := int(pt.Shape[len(pt.Shape)-2]), int(pt.Shape[len(pt.Shape)-1])
		B := int(pt.Len()) / S / T / b.Heads
		swapped := len(ct.Shape) == 3 && int(ct.Shape[0]) != B // [sequence, batch, channels]
		shown := func(mask string, e, s, length int) bool {
			m := batch.Feeds[mask]
			if m == nil {
				return true
			}
			v, _ := m.Int64s()
			return v[e*length+s] != 0
		}
		for e := range B {
			for s := range S {
				if !shown("attention_mask", e, s, S) {
					continue
				}
				queries++
				visible := 0
				for to := range T {
					if shown(keyMask, e, to, T) && (!b.Causal || to <= s) {
						visible++
					}
				}
				r.uniform += math.Log(float64(visible))
				for h := range b.Heads {
					square, largest := 0.0, 0.0
					for _, a := range ps[((e*b.Heads+h)*S+s)*T:][:T] {
						square += a * a
						largest = max(largest, a)
						if a > 0 {
							r.entropy[h] -= a * math.Log(a)
						}
					}
					r.magnitude[h] += math.Sqrt(square)
					r.peak[h] += largest
				}
				at := e*S + s
				if swapped {
					at = s*B + e
				}
				token := tokenContributions{whole: make([]float64, out)}
				for h := range b.Heads {
					c := make([]float64, out)
					for k, row := range b.Output.Rows[h] {
						for d := range c {
							c[d] += cs[at*b.Heads*b.ValueDim+row] * w.Output.At(h*b.ValueDim+k, d)
						}
					}
					for d := range c {
						token.whole[d] += c[d]
					}
					token.heads = append(token.heads, c)
				}
				for d, sum := range token.whole {
					y := ys[at*out+d]
					if b.Output.GemmBias != nil {
						y -= w.OutputBias[d]
					}
					if math.Abs(y-sum) > 1e-4 {
						t.Fatalf("block %d: the contributions of all heads add up to %g in channel %d, the block's output is %g", block, sum, d, y)
					}
					r.energy += sum * sum
				}
				r.contributions = append(r.contributions, token)
			}
		}
	}
	r.uniform /= queries
	for h := range b.Heads {
		r.magnitude[h] /= queries
		r.peak[h] /= queries
		r.entropy[h] /= queries
	}
	return r
}

// TestUniformAttention makes all scores equal: a head that cannot tell positions apart has the entropy ln T.
func TestUniformAttention(t *testing.T) {
	runtime(t)
	o := testmodels.Options{}
	l, f := familyLab(t, "bert", o)
	changed := change(t, l, func(g *graph.Graph, blocks []*attention.Block) {
		for _, b := range blocks {
			zero(t, g, b.Query.Projection.Weight)
			for _, s := range b.Query.Biases {
				zero(t, g, s.Value)
			}
			if v := b.Query.Projection.GemmBias; v != nil {
				zero(t, g, v)
			}
		}
	})
	batches := familyBatches(t, changed, f, o, 0)
	for _, b := range importance(t, changed, batches, RemoveNone).Blocks {
		for h, head := range b.Queries {
			what := fmt.Sprintf("%s head %d", b.Block, h)
			near(t, what+" entropy", head.Attention.Entropy, math.Log(7), 1e-6)
			near(t, what+" relative entropy", head.Attention.Relative, 1, 1e-6)
			near(t, what+" peak", head.Attention.Peak, 1.0/7, 1e-6)
			near(t, what+" magnitude", head.Attention.Magnitude, 1/math.Sqrt(7), 1e-6)
		}
	}
}

// change opens a copy of a model whose weights edit changes.
func change(t *testing.T, l *Lab, edit func(g *graph.Graph, blocks []*attention.Block)) *Lab {
	t.Helper()
	m, err := graph.Load(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	edit(m.Graph, attention.Find(m).Blocks)
	path := filepath.Join(t.TempDir(), "changed.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	out, err := OpenLab(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	return out
}

// setZero puts zeros into elements of a weight for which hit says so.
func setZero(t *testing.T, g *graph.Graph, v *graph.Value, hit func(i, j int) bool) {
	t.Helper()
	w := v.Const()
	x, err := w.Float64s()
	if err != nil {
		t.Fatal(err)
	}
	columns := int(w.Dims()[len(w.Dims())-1])
	for i := range x {
		if hit(i/columns, i%columns) {
			x[i] = 0
		}
	}
	changed, err := graph.FromFloat64s(v.Name, w.DType(), w.Dims(), x)
	if err != nil {
		t.Fatal(err)
	}
	p := graph.NewPatch(g)
	p.SetTensor(v, changed)
	if _, err := p.Apply(); err != nil {
		t.Fatal(err)
	}
}

func zero(t *testing.T, g *graph.Graph, v *graph.Value) {
	t.Helper()
	setZero(t, g, v, func(int, int) bool { return true })
}

// cut removes heads of a block by hand: their rows of the output projection are zeros.
func cut(t *testing.T, l *Lab, block int, heads ...int) *Lab {
	t.Helper()
	return change(t, l, func(g *graph.Graph, blocks []*attention.Block) {
		o := blocks[block].Output
		gone := map[int]bool{}
		for _, h := range heads {
			for _, r := range o.Rows[h] {
				gone[r] = true
			}
		}
		setZero(t, g, o.Weight, func(i, j int) bool { return gone[[]int{i, j}[o.RowAxis]] })
	})
}

// TestRemovedHeads compares the effect of gates with models whose output projections have zeros, for each kind of
// effect, measured on the outputs here.
func TestRemovedHeads(t *testing.T) {
	runtime(t)
	for _, tc := range importanceCases {
		t.Run(fmt.Sprint(tc.family, tc.o.Cache, tc.pad), func(t *testing.T) {
			l, f := familyLab(t, tc.family, tc.o)
			batches := familyBatches(t, l, f, tc.o, tc.pad)
			imp := importance(t, l, batches, RemoveHeads)
			before := outputsOf(t, l, batches)
			for _, i := range []int{len(imp.Blocks) - 1} {
				block := imp.Blocks[i]
				key := block.Keys[len(block.Keys)-1]
				for what, h := range map[string]Head{"first head": block.Queries[0], "last key head": key, "layer": block.Layer} {
					after := outputsOf(t, cut(t, l, i, h.QueryHeads...), batches)
					want := effectOf(t, imp.Effect, batches, before, after)
					near(t, fmt.Sprintf("block %d without %s: %s", i, what, imp.Effect), h.Removed.Effect, want, 1e-6+1e-4*math.Abs(want))
				}
			}
			if tc.family == "vit" && imp.Effect != KLEffect || tc.family == "bert" && imp.Effect != ChangeEffect || strings.HasPrefix(tc.family, "llama") && imp.Effect != LossEffect {
				t.Errorf("the effect is measured as %s", imp.Effect)
			}
		})
	}
}

// outputsOf runs the model and returns the output that is compared, for each batch.
func outputsOf(t *testing.T, l *Lab, batches []Batch) []*ort.Tensor {
	t.Helper()
	s, err := ort.NewSession(l.Path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out []*ort.Tensor
	for _, b := range batches {
		name := s.Outputs()[0].Name
		got, err := s.RunOutputs(context.Background(), b.Feeds, name)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, got[name])
	}
	return out
}

// effectOf follows the definition of an effect position by position.
func effectOf(t *testing.T, e Effect, batches []Batch, before, after []*ort.Tensor) float64 {
	t.Helper()
	top, bottom := 0.0, 0.0
	for i, b := range batches {
		x, _ := before[i].Float64s()
		y, _ := after[i].Float64s()
		n := int(before[i].Shape[len(before[i].Shape)-1])
		positions := len(x) / n
		var mask, next []int64
		if m := b.Feeds["attention_mask"]; m != nil && int(m.Len()) == positions {
			mask, _ = m.Int64s()
		}
		var weight []float64
		if e == LossEffect {
			next, _ = b.Next.Int64s()
			weight, _ = b.Weight.Float64s()
		}
		for p := range positions {
			u, v := x[p*n:(p+1)*n], y[p*n:(p+1)*n]
			switch {
			case e == LossEffect:
				if weight[p] != 0 {
					top += logSoftmax(u)[next[p]] - logSoftmax(v)[next[p]]
					bottom++
				}
			case mask != nil && mask[p] == 0:
			case e == KLEffect:
				lu, lv := logSoftmax(u), logSoftmax(v)
				for k := range lu {
					top += math.Exp(lu[k]) * (lu[k] - lv[k])
				}
				bottom++
			default:
				for k := range u {
					top += (u[k] - v[k]) * (u[k] - v[k])
					bottom += u[k] * u[k]
				}
			}
		}
	}
	if e == ChangeEffect {
		return math.Sqrt(top / bottom)
	}
	return top / bottom
}

func logSoftmax(x []float64) []float64 {
	top, sum := slices.Max(x), 0.0
	for _, v := range x {
		sum += math.Exp(v - top)
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v - top - math.Log(sum)
	}
	return out
}

// TestHeadsWithoutOutputProjection reads the contexts of one block outside the graph, so that nothing tells what becomes
// of its heads: they are removed where they are made, and their contributions are the contexts themselves.
func TestHeadsWithoutOutputProjection(t *testing.T) {
	runtime(t)
	o := testmodels.Options{}
	l, f := familyLab(t, "llama", o)
	open := change(t, l, func(g *graph.Graph, blocks []*attention.Block) { g.AddOutput(blocks[0].PV.Out[0], nil) })
	if open.Blocks[0].Output != nil || open.Blocks[1].Output == nil {
		t.Fatal("the first block alone should have no output projection")
	}
	batches := familyBatches(t, l, f, o, 0)
	want, got := importance(t, l, batches, RemoveHeads), importance(t, open, batches, RemoveHeads)
	energy, tokens := make([]float64, 4), 0.0
	for _, row := range tapped(t, l, batches, func(_ *graph.Graph, blocks []*attention.Block) []*graph.Value {
		return []*graph.Value{blocks[0].PV.Out[0]}
	}) {
		x, _ := row[0].Float64s()
		d := row[0].Shape
		tokens += float64(d[0] * d[2])
		for i, v := range x {
			energy[i/int(d[2]*d[3])%4] += v * v
		}
	}
	for h, head := range got.Blocks[0].Queries {
		near(t, fmt.Sprint("effect of head ", h), head.Removed.Effect, want.Blocks[0].Queries[h].Removed.Effect, 1e-6)
		near(t, fmt.Sprint("contribution of head ", h), head.Output.RMS, math.Sqrt(energy[h]/tokens), 1e-6)
		near(t, fmt.Sprint("share of head ", h), head.Output.Share, energy[h]/sum(energy), 1e-6)
	}
	near(t, "effect of the layer", got.Blocks[0].Layer.Removed.Effect, want.Blocks[0].Layer.Removed.Effect, 1e-6)
}

// TestHalfPrecisionHeads measures a model in half precision, which should tell the same as in single precision.
func TestHalfPrecisionHeads(t *testing.T) {
	runtime(t)
	l, f := familyLab(t, "llama", testmodels.Options{})
	half, _ := familyLab(t, "llama", testmodels.Options{DType: onnxpb.TensorProto_FLOAT16})
	batches := familyBatches(t, l, f, testmodels.Options{}, 0)
	want, got := importance(t, l, batches, RemoveHeads), importance(t, half, batches, RemoveHeads)
	for i := range want.Blocks {
		for h, w := range want.Blocks[i].Queries {
			g := got.Blocks[i].Queries[h]
			what := fmt.Sprintf("block %d head %d", i, h)
			near(t, what+" entropy", g.Attention.Entropy, w.Attention.Entropy, 5e-3)
			near(t, what+" contribution", g.Output.RMS, w.Output.RMS, 5e-3*w.Output.RMS)
			near(t, what+" effect", g.Removed.Effect, w.Removed.Effect, 5e-3)
		}
	}
}

// charLlama opens the trained model with windows of held-out text.
func charLlama(t *testing.T, window int) (*Lab, []int64, []data.Sample) {
	t.Helper()
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "sonnets.txt"))
	if err != nil {
		t.Fatal(err)
	}
	vocab, err := tokenizer.Open(filepath.Join(dir, "vocab.json"))
	if err != nil {
		t.Fatal(err)
	}
	ids, err := vocab.Encode(string(text))
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLab(filepath.Join(dir, "model.onnx"), ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var samples []data.Sample
	for at := 0; at+window <= len(ids); at += window {
		samples = append(samples, data.Sample{Source: fmt.Sprint("token ", at), Tokens: ids[at : at+window]})
	}
	return l, ids, samples
}

// TestImportanceOfTrainedModel holds losses against verify's perplexity of models that were cut by hand, and asks whether
// two texts agree on which heads matter.
func TestImportanceOfTrainedModel(t *testing.T) {
	runtime(t)
	const window, windows = 128, 6
	l, ids, samples := charLlama(t, window)
	measure := func(samples []data.Sample) *Importance {
		batches, err := l.Batches(samples, 1)
		if err != nil {
			t.Fatal(err)
		}
		return importance(t, l, batches, RemoveHeads)
	}
	first := measure(samples[:windows])
	loss := func(path string) float64 {
		m, err := verify.Open(path, ort.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		x, err := verify.Perplexity(context.Background(), m, ids, window, windows)
		if err != nil {
			t.Fatal(err)
		}
		return x.NLL
	}
	base := loss(l.Path)
	near(t, "loss", *first.Loss, base, 1e-6)
	for _, at := range [][2]int{{0, 0}, {1, 5}, {3, 7}} {
		got := first.Blocks[at[0]].Queries[at[1]].Removed.Effect
		near(t, fmt.Sprintf("loss without head %d of block %d", at[1], at[0]), got, loss(cut(t, l, at[0], at[1]).Path)-base, 1e-6)
	}
	near(t, "loss without block 2", first.Blocks[2].Layer.Removed.Effect, loss(cut(t, l, 2, 0, 1, 2, 3, 4, 5, 6, 7).Path)-base, 1e-5)

	second := measure(samples[windows : 2*windows])
	var a, b []float64
	for i := range first.Blocks {
		for h := range first.Blocks[i].Queries {
			a = append(a, first.Blocks[i].Queries[h].Removed.Effect)
			b = append(b, second.Blocks[i].Queries[h].Removed.Effect)
		}
	}
	rho := rankCorrelation(a, b)
	t.Logf("rank correlation of %d heads between two texts: %.3f", len(a), rho)
	if rho < 0.9 {
		t.Errorf("two texts rank the heads differently: correlation %.3f", rho)
	}
}

// rankCorrelation is Spearman's.
func rankCorrelation(a, b []float64) float64 {
	rank := func(x []float64) []float64 {
		out := make([]float64, len(x))
		for i := range x {
			for j := range x {
				if x[j] < x[i] {
					out[i]++
				}
			}
		}
		return out
	}
	ra, rb := rank(a), rank(b)
	n, squares := float64(len(a)), 0.0
	for i := range ra {
		squares += (ra[i] - rb[i]) * (ra[i] - rb[i])
	}
	return 1 - 6*squares/(n*(n*n-1))
}

// TestRemovals checks which sets of heads take a pass.
func TestRemovals(t *testing.T) {
	runtime(t)
	l, f := familyLab(t, "llama-gqa", testmodels.Options{})
	batches := familyBatches(t, l, f, testmodels.Options{}, 0)
	for _, tc := range []struct {
		r     Removal
		sets  int // of each block: 4 query heads, 2 key and value heads that are read by the same, and the layer
		kinds map[HeadKind]bool
	}{
		{RemoveHeads, 7, map[HeadKind]bool{"query": true, "key": true, "value": true, "layer": true}},
		{RemoveKV, 3, map[HeadKind]bool{"key": true, "value": true, "layer": true}},
		{RemoveLayers, 1, map[HeadKind]bool{"layer": true}},
		{RemoveNone, 0, map[HeadKind]bool{}},
	} {
		runs, told := 0, 0
		imp, err := l.Importance(context.Background(), batches, tc.r, func(done, total int, what string) {
			runs++
			told = total
			if done != runs || what == "" {
				t.Errorf("%s: run %d is told as %d, %q", tc.r, runs, done, what)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		want := len(batches)
		if tc.sets > 0 {
			want += len(batches) * (1 + tc.sets*len(l.Blocks))
		}
		if runs != want || told != want {
			t.Errorf("%s: %d runs, %d announced, want %d", tc.r, runs, told, want)
		}
		for _, b := range imp.Blocks {
			b.Each(func(kind HeadKind, n int, h *Head) {
				if (h.Removed != nil) != tc.kinds[kind] {
					t.Errorf("%s: %s head %d: %v", tc.r, kind, n, h.Removed)
				}
			})
		}
		if _, err := json.Marshal(imp); err != nil {
			t.Errorf("%s: %v", tc.r, err)
		}
	}
}

func TestImportanceWeights(t *testing.T) {
	head := func(effect float64) Head { return Head{Removed: &RemovedHeads{Effect: effect}} }
	imp := &Importance{Blocks: []BlockImportance{
		{Queries: []Head{head(3), head(-1)}}, {Queries: []Head{{}, {}}}, {Queries: []Head{head(1), head(4)}},
	}}
	w, err := imp.Weights("effect")
	if err != nil {
		t.Fatal(err)
	}
	want := [][]float64{{1.5, 0}, nil, {0.5, 2}}
	for i := range want {
		if !slices.Equal(w[i], want[i]) {
			t.Errorf("block %d: %v, want %v", i, w[i], want[i])
		}
	}
	for by, want := range map[string]string{"peak": "no head has its peak measured", "loss": "no importance by \"loss\"; want one of effect, "} {
		if _, err := imp.Weights(by); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("by %s: %v", by, err)
		}
	}
	if _, err := (&Importance{Blocks: []BlockImportance{{Queries: []Head{head(-1), head(0)}}}}).Weights("effect"); err == nil {
		t.Error("weights of heads that weigh nothing")
	}
}

// TestCancelledImportance stops between runs.
func TestCancelledImportance(t *testing.T) {
	runtime(t)
	l, f := familyLab(t, "llama", testmodels.Options{})
	batches := familyBatches(t, l, f, testmodels.Options{}, 0)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := l.Importance(ctx, batches, RemoveHeads, func(done, _ int, _ string) {
		if done == 5 {
			cancel()
		}
	})
	if err == nil || ctx.Err() == nil {
		t.Errorf("error %v, context %v", err, ctx.Err())
	}
}
