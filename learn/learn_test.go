package learn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/data"
	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

func optimal(t *testing.T) fusion.Strategy {
	t.Helper()
	s, err := fusion.FindStrategy("optimal")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tokens makes samples of random token ids.
func tokens(n, length, vocab int, seed uint64) []data.Sample {
	r := rand.New(rand.NewPCG(seed, 7))
	var out []data.Sample
	for i := range n {
		s := data.Sample{Source: fmt.Sprint("sample ", i)}
		for range length {
			s.Tokens = append(s.Tokens, r.Int64N(int64(vocab)))
		}
		out = append(out, s)
	}
	return out
}

// TestRefitOfAnUntouchedBlock: where nothing has changed yet, the block gives what it should, and both fits must find the
// projections that it has.
func TestRefitOfAnUntouchedBlock(t *testing.T) {
	runtime(t)
	for _, tc := range []struct {
		family string
		o      testmodels.Options
		pad    int
	}{
		{"llama", testmodels.Options{Cache: true}, 2}, {"llama-gqa", testmodels.Options{}, 0}, {"gpt2", testmodels.Options{Cache: true}, 1},
		{"gpt2-matmul", testmodels.Options{}, 0}, {"bert", testmodels.Options{}, 2}, {"gptj", testmodels.Options{}, 0}, {"gpt-neox", testmodels.Options{}, 0},
		{"qwen3", testmodels.Options{}, 0}, {"opt", testmodels.Options{}, 1}, {"mha", testmodels.Options{}, 1}, {"vit", testmodels.Options{}, 0}, {"t5-decoder", testmodels.Options{}, 1},
	} {
		t.Run(tc.family, func(t *testing.T) {
			l, f := familyLab(t, tc.family, tc.o)
			var samples []data.Sample
			for seed := range uint64(6) {
				samples = append(samples, familySample(t, f, tc.o, 2, 9, tc.pad, seed))
			}
			batches, err := l.Batches(samples, 1)
			if err != nil {
				t.Fatal(err)
			}
			s := &Sequence{Lab: l, Batches: batches, Refit: true}
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, i := range l.Open() {
				for _, joint := range []bool{false, true} {
					b, w := l.Blocks[i], l.Weights[i]
					layer := &Layer{Plan: &fusion.BlockPlan{Block: b, Key: fusion.Identity(b.KVHeads), Value: fusion.Identity(b.ValueHeads)}, Slots: s.own[i]}
					s.Joint = joint
					if err := s.refit(context.Background(), i, layer, nil); err != nil {
						t.Fatal(err)
					}
					got := layer.Plan.Learned
					if r, c := w.Output.Dims(); r*c != len(got.Output.RawMatrix().Data) {
						t.Fatalf("output of %d elements, want %d × %d", len(got.Output.RawMatrix().Data), r, c)
					}
					nearMatrix(t, fmt.Sprintf("block %d output, joint %v", i, joint), got.Output, w.Output, 3e-4)
					if w.OutputBias != nil {
						nearMatrix(t, "output bias", mat.NewDense(1, len(got.OutputBias), got.OutputBias), mat.NewDense(1, len(w.OutputBias), w.OutputBias), 1e-3)
					}
					if got.Value != nil {
						// A hundred tokens leave directions of x that nothing but rounding decides.
						nearMatrix(t, fmt.Sprintf("block %d values", i), got.Value, w.Value, 2e-2)
					}
				}
			}
		})
	}
}

// nearMatrix compares matrices by their largest absolute row sums.
func nearMatrix(t *testing.T, what string, got, want *mat.Dense, tolerance float64) {
	t.Helper()
	var d mat.Dense
	d.Sub(got, want)
	if worst, scale := mat.Norm(&d, math.Inf(1)), mat.Norm(want, math.Inf(1)); !(worst <= tolerance*(scale+1)) {
		t.Errorf("%s is off by %g (of %g)", what, worst, scale)
	}
}

// TestAlternation compares the joint fit with brute force: the error of its end cannot be lowered by a least-squares
// step in either factor, computed from the tokens themselves.
func TestAlternation(t *testing.T) {
	const tokens, heads, n, d, out = 400, 4, 5, 2, 6
	r := rand.New(rand.NewPCG(1, 2))
	random := func(rows, cols int) *mat.Dense {
		m := mat.NewDense(rows, cols, nil)
		for i := range rows {
			for j := range cols {
				m.Set(i, j, r.NormFloat64())
			}
		}
		return m
	}
	z, y := random(tokens, heads*n+1), mat.NewDense(tokens, out, nil)
	for i := range tokens {
		z.Set(i, heads*n, 1)
	}
	y.Mul(z, random(heads*n+1, out))
	var gram, cross mat.Dense
	gram.Mul(z.T(), z)
	gram.Scale(1./tokens, &gram)
	cross.Mul(z.T(), y)
	cross.Scale(1./tokens, &cross)
	sym := mat.NewSymDense(heads*n+1, gram.RawMatrix().Data)
	a := &alternation{
		effort: fine, heads: heads, n: n, d: d, free: n, bias: true, groups: []int{0, 1, 0, 1}, gram: &gram, sym: sym, cross: &cross,
		values: []*mat.Dense{random(n, d), random(n, d)}, output: random(heads*d+1, out),
	}
	// contexts are those of the tokens, computed without moments.
	contexts := func(values []*mat.Dense) *mat.Dense {
		f := mat.NewDense(tokens, heads*d+1, nil)
		for h, g := range a.groups {
			f.Slice(0, tokens, h*d, (h+1)*d).(*mat.Dense).Mul(z.Slice(0, tokens, h*n, (h+1)*n), values[g])
		}
		for i := range tokens {
			f.Set(i, heads*d, 1)
		}
		return f
	}
	loss := func() float64 {
		var e mat.Dense
		e.Mul(contexts(a.values), a.output)
		e.Sub(y, &e)
		return math.Pow(mat.Norm(&e, 2), 2) / tokens
	}
	before := loss()
	for range 8 { // rounds enough to end on
		if err := a.run(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	end := loss()
	if !(end < before/2) {
		t.Fatalf("the error went from %g to %g", before, end)
	}
	// The best output for these values, by a QR factorisation of the contexts.
	var best mat.Dense
	if err := best.Solve(contexts(a.values), y); err != nil {
		t.Fatal(err)
	}
	var e mat.Dense
	e.Mul(contexts(a.values), &best)
	e.Sub(y, &e)
	if least := math.Pow(mat.Norm(&e, 2), 2) / tokens; end > least*1.001 {
		t.Errorf("the error is %g; with these values the best output has %g", end, least)
	}
	// The best values for this output: y minus the bias is linear in the entries of V.
	x := mat.NewDense(tokens*out, 2*n*d, nil)
	rest := mat.NewDense(tokens*out, 1, nil)
	for i := range tokens {
		for c := range out {
			rest.Set(i*out+c, 0, y.At(i, c)-a.output.At(heads*d, c))
			for h, g := range a.groups {
				for p := range n {
					for q := range d {
						at := (g*n+p)*d + q
						x.Set(i*out+c, at, x.At(i*out+c, at)+z.At(i, h*n+p)*a.output.At(h*d+q, c))
					}
				}
			}
		}
	}
	var v, fit mat.Dense
	if err := v.Solve(x, rest); err != nil {
		t.Fatal(err)
	}
	fit.Mul(x, &v)
	fit.Sub(rest, &fit)
	if least := math.Pow(mat.Norm(&fit, 2), 2) / tokens; end > least*1.001 {
		t.Errorf("the error is %g; with this output the best values have %g", end, least)
	}
}

// TestMeter compares the quality that the runtime sums up with the one computed here from the logits of the original and
// of the tied model.
func TestMeter(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	batches, err := l.Batches(tokens(5, 12, 64, 3), 1)
	if err != nil {
		t.Fatal(err)
	}
	plans := map[int]*fusion.BlockPlan{}
	for _, i := range l.Open() {
		plans[i] = &fusion.BlockPlan{Key: fusion.Adjacent(4, 2), Value: fusion.Adjacent(4, 1)}
	}
	slots, err := l.slots(plans)
	if err != nil {
		t.Fatal(err)
	}
	all := Slots{}
	for _, s := range slots {
		for name, v := range s {
			all[name] = v
		}
	}
	logits := func(_ *graph.Graph, blocks []*attention.Block) []*graph.Value {
		return []*graph.Value{blocks[0].QK.Graph.Value("logits")}
	}
	original := tapped(t, l, batches, logits)
	tied, _ := fusedLab(t, l)
	compressed := tapped(t, tied, batches, logits)
	var want [2]float64 // losses
	kl, same, n := 0.0, 0.0, 0.0
	for i, b := range batches {
		x, _ := original[i][0].Float64s()
		y, _ := compressed[i][0].Float64s()
		next, _ := b.Next.Int64s()
		weight, _ := b.Weight.Float64s()
		v := len(x) / len(next)
		for r, to := range next {
			if weight[r] == 0 {
				continue
			}
			p, q := softmax(x[r*v:(r+1)*v]), softmax(y[r*v:(r+1)*v])
			n++
			best := [2]int{}
			for c := range v {
				kl += p[c] * math.Log(p[c]/q[c])
				if p[c] > p[best[0]] {
					best[0] = c
				}
				if q[c] > q[best[1]] {
					best[1] = c
				}
			}
			want[0] -= math.Log(p[to])
			want[1] -= math.Log(q[to])
			if best[0] == best[1] {
				same++
			}
		}
	}
	if int(n) != 5*11 {
		t.Fatalf("%g positions count, want 11 of each sample", n)
	}
	for _, reference := range []bool{true, false} {
		var refs []*ort.Tensor
		if reference {
			if refs, err = l.references(context.Background(), batches); err != nil || refs == nil {
				t.Fatal(refs, err)
			}
		}
		m, err := l.meter(batches[0], reference)
		if err != nil {
			t.Fatal(err)
		}
		before, after, err := m.measure(context.Background(), batches, all, refs, func() {})
		m.close()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			what      string
			got, want float64
		}{
			{"loss of the original", before.Loss, want[0] / n}, {"loss", after.Loss, want[1] / n}, {"KL", after.KL, kl / n}, {"top-1", after.Top1, same / n},
			{"perplexity", after.Perplexity, math.Exp(want[1] / n)}, {"positions", float64(after.Positions), n},
		} {
			if math.Abs(c.got-c.want) > 1e-5*(1+math.Abs(c.want)) {
				t.Errorf("reference %v: %s is %g, want %g", reference, c.what, c.got, c.want)
			}
		}
	}
}

// fusedLab opens the model of a lab with all keys fused in two groups and all values in one, tied.
func fusedLab(t *testing.T, l *Lab) (*Lab, *fusion.Config) {
	t.Helper()
	c, err := fusion.Draft(l.Blocks, fusion.HeadCounts(2, 1))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tied.onnx")
	tieTo(t, l.Path, path, c)
	tied, err := OpenLab(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tied.Close() })
	return tied, c
}

func softmax(x []float64) []float64 {
	top, sum := slices.Max(x), 0.0
	out := make([]float64, len(x))
	for i := range x {
		out[i] = math.Exp(x[i] - top)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

// TestLearn learns, writes, rewrites and runs: the rewritten model must give the outputs that learn measured, within the
// budget, for models of several kinds.
func TestLearn(t *testing.T) {
	runtime(t)
	for _, tc := range []struct {
		family string
		o      testmodels.Options
		q      Request
	}{
		{"llama", testmodels.Options{Cache: true}, Request{KV: 0.5, Trials: 3}},
		{"gpt2", testmodels.Options{Cache: true}, Request{KV: 0.25}},
		{"llama-gqa", testmodels.Options{Heads: 8, KVHeads: 4, Cache: true, Bias: true}, Request{KV: 0.5, Layout: fusion.CoupledLayout}},
		{"gpt-neox", testmodels.Options{Cache: true}, Request{KV: 0.5, Layout: fusion.UniformLayout, Groups: fusion.EqualGroups}},
		{"opt", testmodels.Options{Cache: true}, Request{Key: 2}},
		{"qwen3", testmodels.Options{Cache: true}, Request{Key: 1, Value: 1}},
		{"llama", testmodels.Options{Cache: true}, Request{MaxKL: 0.02}},
	} {
		t.Run(fmt.Sprintf("%s %g %d %g %s", tc.family, tc.q.KV, tc.q.Key, tc.q.MaxKL, tc.q.Layout), func(t *testing.T) {
			l, _ := familyLab(t, tc.family, tc.o)
			q := tc.q
			q.Strategy, q.Train, q.HeldOut = optimal(t), tokens(12, 16, 64, 1), tokens(4, 16, 64, 2)
			r, err := l.Learn(context.Background(), q)
			if err != nil {
				t.Fatal(err)
			}
			if q.KV > 0 && float64(r.BytesAfter) > q.KV*float64(r.BytesBefore) {
				t.Errorf("%d bytes of %d are over %g", r.BytesAfter, r.BytesBefore, q.KV)
			}
			if q.MaxKL > 0 && !(r.Searched <= q.MaxKL) {
				t.Errorf("KL %g, want at most %g", r.Searched, q.MaxKL)
			}
			for n, c := range r.Choices {
				p := r.Layers[n].Plan
				if p.Key.Heads() != c.Key || p.Value.Heads() != c.Value || q.Key > 0 && c.Key != q.Key {
					t.Errorf("layer %d: %d and %d heads for the choice %+v", n, p.Key.Heads(), p.Value.Heads(), c)
				}
				if q.Layout == fusion.CoupledLayout && (c.Key != c.Value || fmt.Sprint(p.Key.Groups) != fmt.Sprint(p.Value.Groups)) {
					t.Errorf("layer %d is not coupled: %v, %v", n, p.Key.Groups, p.Value.Groups)
				}
			}
			held, err := l.Batches(q.HeldOut, q.Seed)
			if err != nil {
				t.Fatal(err)
			}
			model, err := verify.Open(rewritten(t, l, r), ort.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer model.Close()
			var ids []int64
			for _, s := range q.HeldOut {
				ids = append(ids, s.Tokens...)
			}
			got, err := verify.Perplexity(context.Background(), model, ids, held[0].Length, 0)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(got.NLL-r.After.Loss) > 1e-4 {
				t.Errorf("the rewritten model has a loss of %g, learn measured %g", got.NLL, r.After.Loss)
			}
		})
	}
}

// TestProgress: how often the model is going to run is known from the first run on.
func TestProgress(t *testing.T) {
	runtime(t)
	for _, tc := range []struct {
		family string
		q      Request
	}{
		{"llama", Request{KV: 0.5, Nested: true, Groups: fusion.EqualGroups}}, {"llama", Request{KV: 0.5, Layout: fusion.UniformLayout, NoRefit: true}},
		{"gpt2", Request{Key: 2, Value: 1}},
	} {
		l, _ := familyLab(t, tc.family, testmodels.Options{Cache: true})
		q := tc.q
		q.Strategy, q.Train, q.HeldOut = optimal(t), tokens(6, 12, 64, 1), tokens(3, 12, 64, 2)
		first, last := 0, 0
		q.Progress = func(done, total int, _ string) {
			if first == 0 {
				first = total
			}
			if last = done; done > total {
				t.Errorf("%s: run %d of %d", tc.family, done, total)
			}
		}
		r, err := l.Learn(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(float64(first-last)) > 0.05*float64(last) { // a layer that keeps all its heads needs no fit
			t.Errorf("%s %+v: %d runs announced, %d needed", tc.family, tc.q.Layout, first, last)
		}
		if q.Nested {
			for n, layer := range r.Layers {
				if c := r.Choices[n]; c.Key%c.Value != 0 && c.Value%c.Key != 0 {
					t.Errorf("layer %d: %+v do not nest", n, c)
				}
				fine, coarse := layer.Plan.Key, layer.Plan.Value
				if fine.Heads() < coarse.Heads() {
					fine, coarse = coarse, fine
				}
				of := coarse.Map()
				for _, g := range fine.Groups {
					for _, h := range g {
						if of[h] != of[g[0]] {
							t.Errorf("layer %d: %v is not within one group of %v", n, g, coarse.Groups)
						}
					}
				}
			}
		}
	}
}

// TestImportanceInTheSearch: the shared heads of a layer turn to the query head that counts most, measured or given.
func TestImportanceInTheSearch(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	q := Request{Strategy: optimal(t), Key: 1, Value: 1, NoRefit: true, Train: tokens(12, 16, 64, 1), HeldOut: tokens(4, 16, 64, 2)}
	plain, err := l.Learn(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	for h := range 4 {
		q.Importance = [][]float64{{1, 1, 1, 1}, {1, 1, 1, 1}}
		q.Importance[0][h] = 1e3
		r, err := l.Learn(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		for what, p := range map[string][2]fusion.Fusion{"key": {plain.Layers[0].Plan.Key, r.Layers[0].Plan.Key}, "value": {plain.Layers[0].Plan.Value, r.Layers[0].Plan.Value}} {
			before, after := p[0].Weights[0][h], p[1].Weights[0][h]
			if !(after > before && after > 0.9) {
				t.Errorf("head %d counts most, and its share of the %s goes from %g to %g", h, what, before, after)
			}
		}
	}
	batches, err := l.Batches(q.Train, 1)
	if err != nil {
		t.Fatal(err)
	}
	imp := importance(t, l, batches, RemoveQueries)
	w, err := l.HeadWeights(imp, "effect")
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range imp.Blocks {
		if b.Keys[0].Removed != nil || b.Layer.Removed != nil {
			t.Error("more than query heads was removed")
		}
		for h := range w[i] {
			for g := range w[i] {
				if more := b.Queries[h].Removed.Effect > b.Queries[g].Removed.Effect; more && w[i][h] < w[i][g] || w[i][h] < leastImportance {
					t.Errorf("block %d: weights %v", i, w[i])
				}
			}
		}
	}
	imp.Blocks[1].Block = "elsewhere"
	if _, err := l.HeadWeights(imp, "effect"); err == nil || !strings.Contains(err.Error(), `importance of block "elsewhere" with 4 query heads; block 1 of `) {
		t.Error(err)
	}
}

// TestResume: a run that is stopped and resumed ends like one in one piece.
func TestResume(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	state := filepath.Join(t.TempDir(), "state")
	q := Request{Strategy: optimal(t), KV: 0.5, Trials: 2, Train: tokens(12, 16, 64, 1), HeldOut: tokens(4, 16, 64, 2), State: state}
	whole, err := l.Learn(context.Background(), Request{Strategy: q.Strategy, KV: q.KV, Trials: 2, Train: q.Train, HeldOut: q.HeldOut})
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	// Stopped again and again after a few runs of the model more, it ends where the run in one piece does.
	for stop := 5; ; stop *= 4 {
		ctx, cancel := context.WithCancel(context.Background())
		steps := 0
		q.Progress = func(int, int, string) {
			if steps++; steps == stop {
				cancel()
			}
		}
		r, err := l.Learn(ctx, q)
		cancel()
		ran++
		q.Resume = true
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			continue
		}
		if !slices.Equal(r.Choices, whole.Choices) {
			t.Fatalf("resumed %v, in one piece %v", r.Choices, whole.Choices)
		}
		for n := range r.Layers {
			a, b := r.Layers[n].Plan, whole.Layers[n].Plan
			if fmt.Sprint(a.Key, a.Value) != fmt.Sprint(b.Key, b.Value) || !mat.EqualApprox(a.Learned.Output, b.Learned.Output, 1e-9) {
				t.Errorf("layer %d differs when it was resumed", n)
			}
		}
		if !r.Resumed {
			t.Error("the last run does not say that it was resumed")
		}
		break
	}
	if ran < 3 {
		t.Fatalf("it was stopped %d times only", ran-1)
	}
	before, _ := os.ReadFile(state)
	q.Progress, q.KV = nil, 0.75 // another request leaves the state of this one unused
	if r, err := l.Learn(context.Background(), q); err != nil || r.Resumed {
		t.Fatalf("another request: resumed %v, %v", r.Resumed, err)
	}
	if after, _ := os.ReadFile(state); bytes.Equal(before, after) {
		t.Error("the other request kept no state")
	}
	if err := os.WriteFile(state, []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Learn(context.Background(), q); err == nil || !strings.Contains(err.Error(), "is no state that this version") {
		t.Errorf("a file that is no state: %v", err)
	}
}

func TestBadInput(t *testing.T) {
	runtime(t)
	l, _ := familyLab(t, "llama", testmodels.Options{Cache: true})
	train := tokens(4, 16, 64, 1)
	for _, tc := range []struct {
		q    Request
		want string
	}{
		{Request{KV: 0.2, Train: train, HeldOut: train}, "20 % of the cache is less than one key head and one value head in every layer; want 25 %"},
		{Request{KV: 0.5, Train: nil, HeldOut: train}, "0 samples do not fill a batch"},
		{Request{KV: 0.5, Train: train, HeldOut: nil}, "held-out samples: 0 samples"},
		{Request{KV: 0.5, Train: []data.Sample{{Source: "here", Tensors: map[string]*ort.Tensor{"x": ort.FromInt64([]int64{1}, 1)}}}, HeldOut: train}, `here has no tensor for input "input_ids"`},
		{Request{MaxKL: 1e-30, Train: train, HeldOut: train}, "no smaller cache keeps the divergence at 1e-30"},
		{Request{Key: 3, Groups: fusion.EqualGroups, Train: train, HeldOut: train}, "the 4 key heads of block \"/model/layers.0/self_attn\" do not make 3 equal groups"},
	} {
		tc.q.Strategy = optimal(t)
		_, err := l.Learn(context.Background(), tc.q)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v; want %q", tc.q.KV, err, tc.want)
		}
	}
}

func TestCarry(t *testing.T) {
	inf := math.Inf(1)
	for _, tc := range []struct {
		errors []float64
		known  map[int]float64
		want   []float64
	}{
		{[]float64{8, 4, 2, 0}, map[int]float64{1: 0.8, 2: 0.1, 4: 0}, []float64{0.8, 0.1, 0.05, 0}}, // above the last known: its unit
		{[]float64{9, 4, 1, 0}, map[int]float64{1: 0.9, 3: 0.001, 4: 0}, []float64{0.9, 4 * math.Sqrt(0.1*0.001), 0.001, 0}},
		{[]float64{8, inf, inf, 0}, map[int]float64{1: 0.5, 4: 0}, []float64{0.5, inf, inf, 0}},
		{[]float64{3, 0}, map[int]float64{2: 0}, []float64{3, 0}},                                   // nothing measured: the errors
		{[]float64{4, 2, 1, 0}, map[int]float64{1: 0.1, 2: 0.2, 4: 0}, []float64{0.2, 0.2, 0.1, 0}}, // noise: fewer heads are no better
	} {
		got := carry(tc.errors, tc.known)
		for n := range tc.want {
			if !(got[n] == tc.want[n] || math.Abs(got[n]-tc.want[n]) < 1e-12) {
				t.Errorf("%v, %v: %v, want %v", tc.errors, tc.known, got, tc.want)
				break
			}
		}
	}
}

func TestMovesKeepTheBudget(t *testing.T) {
	table := func(x ...float64) fusion.Table {
		return fusion.Table{Key: x, Value: x, KeyBytes: 2, ValueBytes: 1}
	}
	s := &search{tables: []fusion.Table{table(4, 2, 1, 0), table(8, math.Inf(1), 1, 0)}}
	from := []fusion.Choice{{Key: 2, Value: 3}, {Key: 3, Value: 1}}
	budget := s.bytes(from)
	moves := s.moves(from, budget)
	if len(moves) == 0 {
		t.Fatal("no moves")
	}
	for i, m := range moves {
		if s.bytes(m.choices) > budget {
			t.Errorf("%v takes %d bytes of %d", m.choices, s.bytes(m.choices), budget)
		}
		for l, c := range m.choices {
			if math.IsInf(s.tables[l].Key[c.Key-1]+s.tables[l].Value[c.Value-1], 1) {
				t.Errorf("%v has a number of heads that is not to be had", m.choices)
			}
		}
		if i > 0 && m.gain > moves[i-1].gain {
			t.Errorf("move %d promises more than the one before", i)
		}
	}
}

// tieTo writes the tied reference of a configuration.
func tieTo(t *testing.T, from, to string, c *fusion.Config) {
	t.Helper()
	m, err := graph.Load(from)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plan, err := c.Resolve(attention.Find(m).Blocks)
	if err != nil {
		t.Fatal(err)
	}
	if err := rewrite.Tie(m, plan); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(to, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
}
