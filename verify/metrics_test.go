package verify

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

func tensor64(values []float64, shape ...int64) *ort.Tensor { return ort.From(values, shape...) }

func measure(t *testing.T, logits bool, ref, got *ort.Tensor, keep [][]bool) Metrics {
	t.Helper()
	m := Meter{Logits: logits}
	if err := m.Add(ref, got, keep); err != nil {
		t.Fatal(err)
	}
	return m.Metrics()
}

func near(a, b float64) bool {
	return a == b || math.Abs(a-b) <= 1e-12*max(1, math.Abs(a), math.Abs(b))
}

// naive computes every metric from its definition, one at a time.
func naive(ref, got []float64) map[string]float64 {
	out := map[string]float64{}
	n := float64(len(ref))
	top := 0.0
	for _, r := range ref {
		top = math.Max(top, math.Abs(r))
	}
	for i := range ref {
		out["max_abs"] = math.Max(out["max_abs"], math.Abs(ref[i]-got[i]))
		out["mean_abs"] += math.Abs(ref[i]-got[i]) / n
	}
	out["max_rel"], out["mean_rel"] = out["max_abs"]/top, out["mean_abs"]/top
	norm := func(x []float64) float64 {
		s := 0.0
		for _, v := range x {
			s += v * v
		}
		return math.Sqrt(s)
	}
	dot, diff := 0.0, make([]float64, len(ref))
	for i := range ref {
		dot += ref[i] * got[i]
		diff[i] = ref[i] - got[i]
	}
	out["cosine"] = dot / (norm(ref) * norm(got))
	out["sqnr_db"] = 20 * math.Log10(norm(ref)/norm(diff))
	out["psnr_db"] = 20*math.Log10(top) - 10*math.Log10(norm(diff)*norm(diff)/n)
	return out
}

// naiveLogits computes the metrics of distributions by sorting and without any shift.
func naiveLogits(ref, got []float64, width int) map[string]float64 {
	out := map[string]float64{}
	positions := float64(len(ref) / width)
	softmax := func(x []float64) []float64 {
		p, sum := make([]float64, len(x)), 0.0
		for i, v := range x {
			p[i] = math.Exp(v)
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	rank := func(x []float64) []int {
		order := make([]int, len(x))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			if x[a] > x[b] {
				return -1
			}
			if x[a] < x[b] {
				return 1
			}
			return 0
		})
		return order
	}
	for at := 0; at < len(ref); at += width {
		p, q := softmax(ref[at:at+width]), softmax(got[at:at+width])
		kl := 0.0
		for i := range p {
			kl += p[i] * math.Log(p[i]/q[i])
			m := (p[i] + q[i]) / 2
			out["js"] += (p[i]*math.Log(p[i]/m) + q[i]*math.Log(q[i]/m)) / 2 / positions
		}
		out["kl"] += kl / positions
		out["kl_max"] = math.Max(out["kl_max"], kl)
		a, b := rank(p), rank(q)
		if a[0] == b[0] {
			out["top1"] += 1 / positions
		}
		for name, k := range map[string]int{"top5": 5, "top10": 10} {
			k = min(k, width)
			for _, i := range a[:k] {
				if slices.Contains(b[:k], i) {
					out[name] += 1 / float64(k) / positions
				}
			}
		}
	}
	return out
}

func TestMetricsAgainstDefinitions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const positions, width = 12, 13
	ref, got := make([]float64, positions*width), make([]float64, positions*width)
	for i := range ref {
		ref[i] = 3 * r.NormFloat64()
		got[i] = ref[i] + r.NormFloat64()
	}
	m := measure(t, true, tensor64(ref, 3, 4, width), tensor64(got, 3, 4, width), nil)
	want := naive(ref, got)
	for k, v := range naiveLogits(ref, got, width) {
		want[k] = v
	}
	for _, row := range metrics {
		_, checked := want[row.name]
		quantile := strings.HasPrefix(row.name, "p99") // see TestQuantiles
		if here := row.scope == ofElements || row.scope == ofLogits; here && !quantile && !checked {
			t.Errorf("%s is not checked", row.name)
		}
	}
	for name, w := range want {
		if g, ok := m.Value(name); !ok || !near(g, w) {
			t.Errorf("%s: got %v, want %v", name, g, w)
		}
	}
	if w := naive(ref, ref)["max_abs"]; w != 0 || m.Elements != positions*width || m.Logits.Positions != positions {
		t.Errorf("%d elements and %d positions", m.Elements, m.Logits.Positions)
	}
}

// A quantile is the number that sorting finds, or up to a sixteenth more; a histogram counts what comparing does.
func TestQuantiles(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for _, n := range []int{1, 2, 99, 100, 101, 5000} {
		ref, got, d := make([]float64, n), make([]float64, n), make([]float64, n)
		for i := range ref {
			ref[i] = r.NormFloat64()
			if i%3 > 0 {
				d[i] = math.Exp(4 * r.NormFloat64())
			}
			got[i] = ref[i] + d[i]
			d[i] = math.Abs(ref[i] - got[i])
		}
		m := Meter{}
		if err := m.Add(tensor64(ref, int64(n)), tensor64(got, int64(n)), nil); err != nil {
			t.Fatal(err)
		}
		h := m.abs.histogram()
		slices.Sort(d)
		want := d[(99*n+99)/100-1]
		if p := m.Metrics().P99Abs; p < want || p > want*(1+1.0/16) {
			t.Errorf("%d numbers: p99 %v, sorted %v", n, p, want)
		}
		counted := h.Zeros
		for i, c := range h.Counts {
			lo, hi := math.Ldexp(h.Low, i), math.Ldexp(h.Low, i+1)
			for _, x := range d {
				if x >= lo && x < hi {
					c--
				}
			}
			if c != 0 {
				t.Errorf("%d numbers: bin %d is off by %d", n, i, c)
			}
			counted += h.Counts[i]
		}
		if counted != int64(n) {
			t.Errorf("the histogram has %d of %d numbers", counted, n)
		}
	}
}

// Numbers that can be worked out on paper.
func TestMetricsClosedForms(t *testing.T) {
	m := measure(t, false, tensor64([]float64{1, -1, 1, -1}, 4), tensor64([]float64{1.1, -1.1, 0.9, -0.9}, 4), nil)
	if math.Abs(m.SQNR-20) > 1e-9 { // signal power 1, noise power 0.01
		t.Errorf("SQNR %v, want 20 dB", m.SQNR)
	}
	m = measure(t, false, tensor64([]float64{3, 0}, 2), tensor64([]float64{0, 4}, 2), nil)
	if m.Cosine != 0 || m.MaxAbs != 4 || !near(m.MaxRel, 4.0/3) || m.MeanAbs != 3.5 {
		t.Errorf("orthogonal vectors: %+v", m)
	}
	// p = (3/4, 1/4), q = (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2.
	m = measure(t, true, tensor64([]float64{math.Log(3), 0}, 1, 2), tensor64([]float64{5, 5}, 1, 2), nil)
	if want := 0.75*math.Log(1.5) + 0.25*math.Log(0.5); !near(m.Logits.KL, want) || m.Logits.Top1 != 1 {
		t.Errorf("KL %v, want %v; top-1 %v", m.Logits.KL, want, m.Logits.Top1)
	}
	// Adding a constant to all scores does not change a distribution, however large they are.
	m = measure(t, true, tensor64([]float64{1000, 1001, 999}, 1, 3), tensor64([]float64{0, 1, -1}, 1, 3), nil)
	if m.Logits.KL > 1e-12 || m.Logits.Top5 != 1 {
		t.Errorf("shifted scores: %+v", m.Logits)
	}
	// A token that both exclude contributes nothing, one that q alone excludes everything.
	inf := math.Inf(-1)
	m = measure(t, true, tensor64([]float64{0, 0, inf}, 1, 3), tensor64([]float64{0, 0, inf}, 1, 3), nil)
	if m.Logits.KL != 0 || m.NonFinite != 0 {
		t.Errorf("a token excluded by both: %+v %+v", m, m.Logits)
	}
	m = measure(t, true, tensor64([]float64{0, 0}, 1, 2), tensor64([]float64{0, inf}, 1, 2), nil)
	if !math.IsInf(m.Logits.KL, 1) {
		t.Errorf("a token excluded by q alone: KL %v", m.Logits.KL)
	}
	if m = measure(t, false, tensor64(nil, 0, 3), tensor64(nil, 0, 3), nil); m.Elements != 0 || m.Cosine != 1 || len(Exact().Judge(m)) != 0 {
		t.Errorf("empty tensors: %+v", m)
	}
	if m = measure(t, false, tensor64([]float64{0, 0}, 2), tensor64([]float64{0, 1e-9}, 2), nil); !math.IsInf(m.MaxRel, 1) || m.Cosine != 0 {
		t.Errorf("an error on a reference of zeros: %+v", m)
	}
}

func TestNonFiniteElementsFail(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	loose := Tolerance{Name: "anything", Limits: []Limit{{"max_abs", inf}}}
	for _, c := range []struct {
		name     string
		ref, got []float64
		fails    bool
	}{
		{"NaN in the rewritten", []float64{1, 2}, []float64{1, nan}, true},
		{"NaN in the reference", []float64{nan, 2}, []float64{1, 2}, true},
		{"infinity in one", []float64{1, 2}, []float64{1, inf}, true},
		{"infinities of opposite signs", []float64{1, inf}, []float64{1, -inf}, true},
		{"NaN against infinity", []float64{1, nan}, []float64{1, inf}, true},
		{"the same infinity", []float64{1, -inf}, []float64{1, -inf}, false},
		{"NaN in both at one place", []float64{1, nan}, []float64{1, nan}, false},
		{"NaN everywhere", []float64{nan, nan}, []float64{nan, nan}, true},
	} {
		for _, logits := range []bool{false, true} {
			m := measure(t, logits, tensor64(c.ref, 1, 2), tensor64(c.got, 1, 2), nil)
			if broken := loose.Judge(m); (len(broken) > 0) != c.fails {
				t.Errorf("%s (logits %v): %q, want failure %v", c.name, logits, broken, c.fails)
			}
			if bad := m.Bad; (bad != nil) != (m.NonFinite > 0) || bad != nil && c.ref[bad.Index[1]] == c.got[bad.Index[1]] {
				t.Errorf("%s: the place of it is %+v", c.name, bad)
			}
		}
	}
}

func TestPaddingIsLeftOut(t *testing.T) {
	ref := tensor64([]float64{1, 2, 3, 4, 5, 6, 7, 8}, 2, 2, 2)
	got := tensor64([]float64{1, 2, 3, 4, 99, 99, 7, 8}, 2, 2, 2)
	keep := [][]bool{{true, true}, {false, true}}
	if m := measure(t, true, ref, got, keep); m.MaxAbs != 0 || m.Elements != 6 || m.Logits.Positions != 3 {
		t.Errorf("with the padding left out: %+v %+v", m, m.Logits)
	}
	if m := measure(t, true, ref, got, nil); m.MaxAbs != 94 || m.Logits.Positions != 4 {
		t.Errorf("all of it: %+v", m)
	}
	// A tensor that has no axis of positions is compared whole.
	if m := measure(t, false, ref.Reshape(4, 2), got.Reshape(4, 2), keep); m.MaxAbs != 94 {
		t.Errorf("another shape: %+v", m)
	}
}

// Adding in parts is adding the whole; relative errors are against each part's own scale.
func TestMeterMerges(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var whole, left, right Meter
	whole.Logits, left.Logits, right.Logits = true, true, true
	worst := 0.0
	for i := range 6 {
		ref, got := make([]float64, 14), make([]float64, 14)
		for j := range ref {
			ref[j], got[j] = r.NormFloat64()*float64(i+1), r.NormFloat64()
		}
		worst = max(worst, naive(ref, got)["max_rel"])
		part := &left
		if i >= 3 {
			part = &right
		}
		for _, m := range []*Meter{&whole, part} {
			if err := m.Add(tensor64(ref, 1, 2, 7), tensor64(got, 1, 2, 7), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	at := whole.WorstAdd()
	left.Merge(&right)
	a, b := whole.Metrics(), left.Metrics()
	for _, row := range metrics {
		if row.scope.measured(a) && !near(row.get(a), row.get(b)) {
			t.Errorf("%s: whole %v, in parts %v", row.name, row.get(a), row.get(b))
		}
	}
	if a.MaxRel != worst || left.WorstAdd() != at {
		t.Errorf("max rel %v, want %v; worst %d and %d", a.MaxRel, worst, at, left.WorstAdd())
	}
}

func TestMeterRefusesOtherShapes(t *testing.T) {
	var m Meter
	x := tensor64([]float64{1, 2}, 2)
	if err := m.Add(x, x.Reshape(1, 2), nil); err == nil || !strings.Contains(err.Error(), "double[1,2], want double[2]") {
		t.Errorf("shapes: %v", err)
	}
	if err := m.Add(x, ort.FromFloat32([]float32{1, 2}, 2), nil); err == nil {
		t.Error("types: no error")
	}
}

func TestToleranceFollowsPrecision(t *testing.T) {
	half := Exact().For(onnxpb.TensorProto_FLOAT16).Limits[0].Bound
	brain := Exact().For(onnxpb.TensorProto_BFLOAT16).Limits[0].Bound
	if single := Exact().For(onnxpb.TensorProto_FLOAT).Limits[0].Bound; single != 1e-4 || half != 10.0/1024 || brain != 10.0/128 {
		t.Errorf("float %v, float16 %v, bfloat16 %v", single, half, brain)
	}
	if Exact().Limits[0].Bound != 1e-4 {
		t.Error("For changed the tolerance it was called on")
	}
}

func TestToleranceJudges(t *testing.T) {
	logits := Metrics{Elements: 1, MaxRel: 2e-3, Cosine: 0.5, SQNR: 30, Logits: &LogitMetrics{Positions: 10, KL: 0.1, Top1: 0.9, Top5: 1}}
	plain := logits
	plain.Logits = nil
	for _, c := range []struct {
		limits []Limit
		m      Metrics
		want   []string
	}{
		{nil, logits, nil},
		{[]Limit{{"max_rel", 1e-2}}, logits, nil},
		{[]Limit{{"max_rel", 1e-3}}, logits, []string{"max rel 2.00e-03 > 0.001"}},
		{[]Limit{{"sqnr_db", 40}, {"sqnr_db", 20}}, plain, []string{"SQNR dB 30.0 < 40"}},
		{[]Limit{{"kl", 0.05}, {"top1", 0.95}, {"cosine", 0.9}}, logits, []string{"KL nats 1.00e-01 > 0.05", "top-1 0.900 < 0.95"}},
		{[]Limit{{"kl", 0.05}, {"top1", 0.95}, {"cosine", 0.9}}, plain, []string{"cosine 0.500000 < 0.9"}},
		{[]Limit{{"cosine", 0.9}}, logits, []string{"cosine 0.500000 < 0.9"}},
		{[]Limit{{"kl", 0.2}}, Metrics{Elements: 1, Logits: &LogitMetrics{KL: math.NaN()}}, []string{"KL nats NaN > 0.2"}},
	} {
		if got := (Tolerance{Limits: c.limits}).Judge(c.m); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %q, want %q", c.limits, got, c.want)
		}
	}
	err := Tolerance{Name: "mine", Limits: []Limit{{"klx", 1}}}.Check()
	if err == nil || !strings.Contains(err.Error(), `"klx"`) || !strings.Contains(err.Error(), "max_abs, max_rel") {
		t.Errorf("an unknown metric: %v", err)
	}
	if s := DefaultDrift().String(); s != "KL nats ≤ 0.05, top-1 ≥ 0.97, cosine ≥ 0.99" {
		t.Errorf("got %q", s)
	}
}

func TestMetricsJSONHoldsInfinities(t *testing.T) {
	b, err := json.Marshal(measure(t, true, tensor64([]float64{1, 2}, 1, 2), tensor64([]float64{1, 2}, 1, 2), nil))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got["sqnr_db"] != "+Inf" || got["kl"] != 0.0 || got["elements"] != 2.0 {
		t.Errorf("got %s", b)
	}
}

func TestLargest(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		x := make([]float64, 1+r.IntN(9))
		for i := range x {
			x[i] = float64(r.IntN(4)) // many equal ones
		}
		order := make([]int, len(x))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return int(x[b] - x[a]) })
		k := 1 + r.IntN(len(x))
		if got := largest(x, k); !slices.Equal(got, order[:k]) {
			t.Fatalf("%v: got %v, want %v", x, got, order[:k])
		}
	}
}
