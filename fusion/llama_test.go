package fusion

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/testmodels"
)

// llama is a trained model in float64 with gonum, to measure what strategies reach where there is no runtime.
type llama struct {
	embed, head *mat.Dense // [vocab, model], [model, vocab]
	norm        []float64
	layers      []llamaLayer
	theta       []float64
}

type llamaLayer struct {
	w                  *Weights
	attnNorm, mlpNorm  []float64
	gate, up, down     *mat.Dense
	key, value, output *mat.Dense // as they are now
	query              *mat.Dense
	keyOf, valueOf     []int
}

// readLlama takes a decoder apart: attention by its blocks, everything else in the order of the graph.
func readLlama(m *graph.Model) (*llama, error) {
	report := attention.Find(m)
	dense := func(v *graph.Value) (*mat.Dense, error) {
		x, err := v.Const().Float64s()
		if err != nil {
			return nil, err
		}
		d := v.Const().Dims()
		return mat.NewDense(int(d[0]), int(d[1]), x), nil
	}
	l := &llama{}
	projections := map[*graph.Node]bool{}
	for _, b := range report.Blocks {
		w, err := ReadWeights(b)
		if err != nil {
			return nil, err
		}
		l.layers = append(l.layers, llamaLayer{w: w, query: w.Query, key: w.Key, value: w.Value, output: w.Output, keyOf: w.KeyOf, valueOf: w.ValueOf})
		for _, p := range []*attention.Projection{b.Query.Projection, b.Key.Projection, b.Value.Projection, b.Output.Projection} {
			projections[p.Node] = true
		}
	}
	var mlp []*mat.Dense
	var norms [][]float64
	var failed error
	m.Graph.All(func(n *graph.Node) bool {
		for _, in := range n.In {
			if in == nil || in.Const() == nil || in.Const().Len() < 64 {
				continue
			}
			x, err := dense2(in, dense)
			if err != nil {
				failed = err
				return false
			}
			switch {
			case n.Is("Gather") && l.embed == nil:
				l.embed = x
			case n.Is("MatMul") && !projections[n]:
				mlp = append(mlp, x)
			case n.Is("Mul"):
				norms = append(norms, x.RawMatrix().Data)
			}
		}
		return true
	})
	if failed != nil {
		return nil, failed
	}
	if len(norms) != 2*len(l.layers)+1 || len(mlp) < 3*len(l.layers) {
		return nil, fmt.Errorf("%d norms and %d products for %d layers", len(norms), len(mlp), len(l.layers))
	}
	for i := range l.layers {
		y := &l.layers[i]
		y.attnNorm, y.mlpNorm = norms[2*i], norms[2*i+1]
		y.gate, y.up, y.down = mlp[3*i], mlp[3*i+1], mlp[3*i+2]
	}
	l.norm = norms[len(norms)-1]
	if l.head = mat.DenseCopyOf(l.embed.T()); len(mlp) > 3*len(l.layers) {
		l.head = mlp[len(mlp)-1]
	}
	d := l.layers[0].w.HeadDim
	for f := range d / 2 {
		l.theta = append(l.theta, math.Pow(10000, -2*float64(f)/float64(d)))
	}
	return l, nil
}

func dense2(v *graph.Value, dense func(*graph.Value) (*mat.Dense, error)) (*mat.Dense, error) {
	if d := v.Const().Dims(); len(d) == 1 {
		x, err := v.Const().Float64s()
		return mat.NewDense(1, len(x), x), err
	}
	return dense(v)
}

// normed is x/rms(x)·g.
func normed(x *mat.Dense, g []float64) *mat.Dense {
	t, n := x.Dims()
	out := mat.NewDense(t, n, nil)
	for i := range t {
		from, to := x.RawRowView(i), out.RawRowView(i)
		s := 0.0
		for _, v := range from {
			s += v * v
		}
		s = 1 / math.Sqrt(s/float64(n)+1e-5)
		for j, v := range from {
			to[j] = v * s * g[j]
		}
	}
	return out
}

// cols is head h of a product.
func cols(x *mat.Dense, h, d int) *mat.Dense {
	t, _ := x.Dims()
	return x.Slice(0, t, h*d, (h+1)*d).(*mat.Dense)
}

// turned rotates heads of d channels by position.
func (l *llama) turned(x *mat.Dense, r attention.Rotary, d int) *mat.Dense {
	pairs, _, _ := Channels(r, d)
	out := mat.DenseCopyOf(x)
	t, n := x.Dims()
	for i := range t {
		row := out.RawRowView(i)
		for f, p := range pairs {
			sin, cos := math.Sincos(float64(i) * l.theta[f])
			for h := 0; h < n; h += d {
				a, b := row[h+p[0]], row[h+p[1]]
				row[h+p[0]], row[h+p[1]] = a*cos-b*sin, a*sin+b*cos
			}
		}
	}
	return out
}

// probabilities are those of each head for the given queries and keys (not yet turned).
func (l *llama) probabilities(w *Weights, q, k *mat.Dense, keyOf []int) []*mat.Dense {
	d := w.HeadDim
	q, k = l.turned(q, w.Rotary, d), l.turned(k, w.Rotary, d)
	t, _ := q.Dims()
	out := make([]*mat.Dense, w.Heads)
	scale := 1 / math.Sqrt(float64(d))
	for h := range out {
		s := mat.NewDense(t, t, nil)
		s.Mul(cols(q, h, d), cols(k, keyOf[h], d).T())
		for i := range t {
			row := s.RawRowView(i)
			top := math.Inf(-1)
			for j := range i + 1 {
				row[j] *= scale
				top = max(top, row[j])
			}
			sum := 0.0
			for j := range row {
				if j > i {
					row[j] = 0
					continue
				}
				row[j] = math.Exp(row[j] - top)
				sum += row[j]
			}
			for j := range i + 1 {
				row[j] /= sum
			}
		}
		out[h] = s
	}
	return out
}

// context is the heads' outputs side by side.
func context(w *Weights, a []*mat.Dense, v *mat.Dense, valueOf []int) *mat.Dense {
	t, _ := v.Dims()
	d := w.ValueDim
	out := mat.NewDense(t, w.Heads*d, nil)
	for h := range a {
		cols(out, h, d).Mul(a[h], cols(v, valueOf[h], d))
	}
	return out
}

func times(x, w *mat.Dense) *mat.Dense {
	var y mat.Dense
	y.Mul(x, w)
	return &y
}

// mlp adds the feed-forward part to x in place.
func (y *llamaLayer) mlp(x *mat.Dense) {
	n := normed(x, y.mlpNorm)
	g, u := times(n, y.gate), times(n, y.up)
	t, c := g.Dims()
	for i := range t {
		a, b := g.RawRowView(i), u.RawRowView(i)
		for j := range c {
			a[j] *= b[j] / (1 + math.Exp(-a[j]))
		}
	}
	x.Add(x, times(g, y.down))
}

func (l *llama) attend(y *llamaLayer, n *mat.Dense) (ctx *mat.Dense) {
	a := l.probabilities(y.w, times(n, y.query), times(n, y.key), y.keyOf)
	return context(y.w, a, times(n, y.value), y.valueOf)
}

func (l *llama) embedded(ids []int) *mat.Dense {
	_, n := l.embed.Dims()
	x := mat.NewDense(len(ids), n, nil)
	for t, id := range ids {
		x.SetRow(t, l.embed.RawRowView(id))
	}
	return x
}

// parallel calls f for 0 … n−1 on all cores.
func parallel(n int, f func(i int)) {
	var wg sync.WaitGroup
	jobs := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range jobs {
				f(i)
			}
		}()
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	wg.Wait()
}

// loss is nats per token over positions 1 on.
func (l *llama) loss(seqs [][]int) float64 {
	var mu sync.Mutex
	total, count := 0.0, 0
	parallel(len(seqs), func(s int) {
		x := l.embedded(seqs[s])
		for i := range l.layers {
			y := &l.layers[i]
			x.Add(x, times(l.attend(y, normed(x, y.attnNorm)), y.output))
			y.mlp(x)
		}
		logits := times(normed(x, l.norm), l.head)
		nll := 0.0
		for t := range len(seqs[s]) - 1 {
			row := logits.RawRowView(t)
			top := math.Inf(-1)
			for _, v := range row {
				top = max(top, v)
			}
			sum := 0.0
			for _, v := range row {
				sum += math.Exp(v - top)
			}
			nll += top + math.Log(sum) - row[seqs[s][t+1]]
		}
		mu.Lock()
		total += nll
		count += len(seqs[s]) - 1
		mu.Unlock()
	})
	return total / float64(count)
}

// gather adds up moments from several cores.
type gather struct {
	mu sync.Mutex
	m  map[string]*mat.SymDense
}

func (g *gather) add(name string, x mat.Matrix) {
	_, n := x.Dims()
	part := mat.NewSymDense(n, nil)
	part.SymOuterK(1, x.T())
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m[name] == nil {
		g.m[name] = mat.NewSymDense(n, nil)
	}
	g.m[name].AddSym(g.m[name], part)
}

func (g *gather) mean(name string, tokens float64) *mat.SymDense {
	g.m[name].ScaleSym(1/tokens, g.m[name])
	return g.m[name]
}

// statistics of layer i at the given inputs, with the weights that it had.
func (l *llama) statistics(i int, xs []*mat.Dense, attended bool) *Stats {
	y := &l.layers[i]
	w, g := y.w, &gather{m: map[string]*mat.SymDense{}}
	var all [3]*mat.Dense // queries, keys, values of all sequences
	for j, p := range []*mat.Dense{w.Query, w.Key, w.Value} {
		all[j] = new(mat.Dense)
		for _, x := range xs {
			part := times(normed(x, y.attnNorm), p)
			if all[j].IsEmpty() {
				all[j] = part
				continue
			}
			var both mat.Dense
			both.Stack(all[j], part)
			all[j] = &both
		}
	}
	s := headMoments(w, all[0], all[1], all[2])
	if !attended {
		return s
	}
	parallel(len(xs), func(at int) {
		n := normed(xs[at], y.attnNorm)
		v := times(n, w.Value)
		for h, a := range l.probabilities(w, times(n, w.Query), times(n, w.Key), w.KeyOf) {
			g.add(fmt.Sprint("a", h), times(a, v))
		}
	})
	for h := range w.Heads {
		s.Attended = append(s.Attended, g.mean(fmt.Sprint("a", h), s.Tokens))
	}
	return s
}

// use puts a solution in the place of the layer's weights.
func (y *llamaLayer) use(sol *Solution) {
	w := y.w
	y.query, y.output = w.Query, w.Output
	fused := func(x *mat.Dense, d int, f Fusion) *mat.Dense {
		var list []*mixture
		for _, weights := range f.Weights {
			list = append(list, scalarMixture(weights))
		}
		return mixed(x, d, f.Groups, list)
	}
	if l := sol.Learned; l != nil && l.Key != nil {
		y.key, y.query = l.Key, l.Query
	} else {
		y.key = fused(w.Key, w.HeadDim, sol.Key)
	}
	if l := sol.Learned; l != nil && l.Value != nil {
		y.value, y.output = l.Value, l.Output
	} else {
		y.value = fused(w.Value, w.ValueDim, sol.Value)
	}
	km, vm := sol.Key.Map(), sol.Value.Map()
	y.keyOf, y.valueOf = nil, nil
	for h := range w.Heads {
		y.keyOf = append(y.keyOf, km[w.KeyOf[h]])
		y.valueOf = append(y.valueOf, vm[w.ValueOf[h]])
	}
}

// learning says how a model is compressed.
type learning struct {
	strategy          string
	counts            func(layer int) (k, v int)
	attended          bool
	sequential, refit bool
	accumulated       bool
	options           SolveOptions
	solve             func(l *llama, layer int, p *Problem, xs []*mat.Dense, k, v int) (*Solution, error)
}

// learn compresses a copy of the model on the calibration sequences.
func (l *llama) learn(seqs [][]int, o learning) (*llama, error) {
	st, err := FindStrategy(o.strategy)
	if err != nil {
		return nil, err
	}
	out := *l
	out.layers = append([]llamaLayer(nil), l.layers...)
	was, now := make([]*mat.Dense, len(seqs)), make([]*mat.Dense, len(seqs))
	for s, ids := range seqs {
		was[s], now[s] = l.embedded(ids), l.embedded(ids)
	}
	for i := range out.layers {
		y := &out.layers[i]
		from := now
		if !o.sequential {
			from = was
		}
		p := &Problem{W: y.w, S: l.statistics(i, from, o.attended)}
		k, v := o.counts(i)
		var sol *Solution
		if o.solve != nil {
			sol, err = o.solve(l, i, p, from, k, v)
		} else {
			sol, err = st.Solve(p, k, v, o.options)
		}
		if err != nil {
			return nil, err
		}
		y.use(sol)
		ctx, target := make([]*mat.Dense, len(seqs)), make([]*mat.Dense, len(seqs))
		original := &l.layers[i]
		parallel(len(seqs), func(s int) {
			ctx[s] = out.attend(y, normed(now[s], y.attnNorm))
			target[s] = times(l.attend(original, normed(was[s], y.attnNorm)), original.output)
		})
		if o.refit {
			m, c := y.output.Dims()
			gram, cross := mat.NewSymDense(m, nil), mat.NewDense(m, c, nil)
			for s := range seqs {
				want := mat.DenseCopyOf(target[s])
				if o.accumulated {
					want.Add(want, was[s])
					want.Sub(want, now[s])
				}
				n := 1 / p.S.Tokens
				gram.SymRankK(gram, n, ctx[s].T())
				var part mat.Dense
				part.Mul(ctx[s].T(), want)
				part.Scale(n, &part)
				cross.Add(cross, &part)
			}
			if y.output, err = RefitOutput(gram, cross, y.output, RefitRidge(gram)); err != nil {
				return nil, err
			}
		}
		parallel(len(seqs), func(s int) {
			now[s].Add(now[s], times(ctx[s], y.output))
			y.mlp(now[s])
			was[s].Add(was[s], target[s])
			original.mlp(was[s])
		})
	}
	return &out, nil
}

// stories260K is that model with its text: calibration and evaluation sequences of 256 tokens.
func stories260K(t testing.TB) (m *llama, calibration, evaluation [][]int) {
	t.Helper()
	dir := filepath.Join("..", "..", "shared", "models", "stories260K")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("stories260K is not here: %v", err)
	}
	g, err := testmodels.FromLlama2C(filepath.Join(dir, "stories260K.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if m, err = readLlama(g); err != nil {
		t.Fatal(err)
	}
	tok, err := testmodels.LoadLlama2CTokenizer(filepath.Join(dir, "tok512.bin"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join("..", "..", "shared", "text", "tinystories_v2_sample_2MiB.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var seqs [][]int
	for _, story := range strings.Split(string(raw), "<|endoftext|>") {
		ids := tok.Encode(strings.TrimSpace(story))
		if len(ids) >= 256 {
			seqs = append(seqs, ids[:256])
		}
		if len(seqs) == 110 {
			break
		}
	}
	return m, seqs[60:], seqs[:60]
}

// On a trained model, nothing trained: half of the cache. Adjacent means destroy it; closed forms keep most, metrics that
// know the attention more, refitted outputs more still.
func TestTrainedModel(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a model")
	}
	m, calibration, evaluation := stories260K(t)
	calibration, evaluation = calibration[:12], evaluation[:6]
	base := m.loss(evaluation)
	two := func(int) (int, int) { return 2, 2 }
	last := math.Inf(1)
	for _, o := range []learning{
		{strategy: "gqa", counts: two},
		{strategy: "optimal", counts: two},
		{strategy: "optimal", counts: two, attended: true},
		{strategy: "optimal", counts: two, attended: true, sequential: true, refit: true, accumulated: true},
	} {
		small, err := m.learn(calibration, o)
		if err != nil {
			t.Fatal(err)
		}
		rise := small.loss(evaluation) - base
		t.Logf("%s, attended inputs %v, refit %v: %.3f nats over %.3f", o.strategy, o.attended, o.refit, rise, base)
		if rise > last {
			t.Errorf("%+v: %.3f nats over the original, more than %.3f of the simpler one before", o, rise, last)
		}
		last = rise
	}
	if last > 0.7 {
		t.Errorf("half of the cache costs %.3f nats", last)
	}
}
