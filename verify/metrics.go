package verify

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// Metrics says how far a tensor is from a reference. Elements that are NaN or the same infinity in both are counted in
// LeftOut and in nothing else, those that are not finite in one alone in NonFinite.
type Metrics struct {
	Elements  int64 // compared
	NonFinite int64
	LeftOut   int64
	Scale     float64 // max |ref|
	MaxAbs    float64 // max |ref - got|
	MaxRel    float64 // max |ref - got| / max |ref|, the worst of the steps when several were added
	MeanAbs   float64 // mean |ref - got|
	Cosine    float64 // ref·got / (|ref| |got|)
	SQNR      float64 // signal to quantisation noise ratio in dB, 10 log10(|ref|² / |ref - got|²)
	Logits    *LogitMetrics
}

// LogitMetrics compares the next-token distributions p = softmax(ref) and q = softmax(got) of all positions.
type LogitMetrics struct {
	Positions int64
	KL        float64 // mean of KL(p‖q) = Σ p ln(p/q), in nats
	KLMax     float64 // over the positions
	Top1      float64 // share of positions with the same most likely token
	Top5      float64 // mean share of p's five most likely tokens that are among q's five
}

// metric is one number of Metrics: its name in limits and JSON, its name for people, whether less of it is worse,
// whether it is of distributions, and whether tables have a column for it.
type metric struct {
	name, heading string
	lessIsWorse   bool
	logits        bool
	column        bool
	format        string
	get           func(Metrics) float64
}

// metrics lists what can be limited and printed, in the order of the columns.
var metrics = []metric{
	{"max_abs", "max abs", false, false, true, "%.2e", func(m Metrics) float64 { return m.MaxAbs }},
	{"max_rel", "max rel", false, false, true, "%.2e", func(m Metrics) float64 { return m.MaxRel }},
	{"mean_abs", "mean abs", false, false, true, "%.2e", func(m Metrics) float64 { return m.MeanAbs }},
	{"cosine", "cosine", true, false, true, "%.6f", func(m Metrics) float64 { return m.Cosine }},
	{"sqnr_db", "SQNR dB", true, false, true, "%.1f", func(m Metrics) float64 { return m.SQNR }},
	{"kl", "KL nats", false, true, true, "%.2e", func(m Metrics) float64 { return m.Logits.KL }},
	{"kl_max", "KL max", false, true, false, "%.2e", func(m Metrics) float64 { return m.Logits.KLMax }},
	{"top1", "top-1", true, true, true, "%.3f", func(m Metrics) float64 { return m.Logits.Top1 }},
	{"top5", "top-5", true, true, true, "%.3f", func(m Metrics) float64 { return m.Logits.Top5 }},
}

// Value returns a metric by its name in limits and JSON; false when there is none or it does not apply.
func (m Metrics) Value(name string) (float64, bool) {
	for _, row := range metrics {
		if row.name == name && (!row.logits || m.Logits != nil) {
			return row.get(m), true
		}
	}
	return 0, false
}

// MarshalJSON writes the metrics under their names in limits. Numbers that JSON has not are strings: "+Inf", "NaN".
func (m Metrics) MarshalJSON() ([]byte, error) {
	out := map[string]any{"elements": m.Elements, "non_finite": m.NonFinite, "left_out": m.LeftOut, "scale": number(m.Scale)}
	if m.Logits != nil {
		out["positions"] = m.Logits.Positions
	}
	for _, row := range metrics {
		if x, ok := m.Value(row.name); ok {
			out[row.name] = number(x)
		}
	}
	return json.Marshal(out)
}

// number is a float that JSON can hold.
func number(x float64) any {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Sprintf("%+v", x)
	}
	return x
}

// Meter accumulates Metrics over several tensors: steps of a decode, cases, windows of a text.
type Meter struct {
	// Logits makes the last axis a vocabulary.
	Logits bool

	elements, nonFinite, leftOut  int64
	scale, maxAbs, maxRel, sumAbs float64
	dot, ref2, got2, err2         float64
	positions                     int64
	kl, klMax, top1, top5         float64
	adds, worstAdd                int
}

// Add compares got with ref. keep, when not nil, says for [batch, sequence] which positions of tensors that begin with
// these axes count (padding does not). Different shapes or types are an error.
func (m *Meter) Add(ref, got *ort.Tensor, keep [][]bool) error {
	if ref.DType != got.DType || !slices.Equal(ref.Shape, got.Shape) {
		return fmt.Errorf("it is %v, want %v", got, ref)
	}
	a, err := ref.Float64s()
	if err != nil {
		return err
	}
	b, err := got.Float64s()
	if err != nil {
		return err
	}
	row := len(a) // elements that are kept or left out together
	if keep != nil && len(ref.Shape) >= 2 && int(ref.Shape[0]) == len(keep) && int(ref.Shape[1]) == len(keep[0]) && len(a) > 0 {
		row = len(a) / (len(keep) * len(keep[0]))
	} else {
		keep = nil
	}
	width := row
	if m.Logits && len(ref.Shape) > 0 {
		width = int(ref.Shape[len(ref.Shape)-1])
	}
	var scale, worst float64
	for at := 0; at < len(a); at += row {
		if keep != nil {
			i := at / row
			if !keep[i/len(keep[0])][i%len(keep[0])] {
				continue
			}
		}
		s, w := m.elementwise(a[at:at+row], b[at:at+row])
		scale, worst = max(scale, s), max(worst, w)
		if m.Logits {
			for p := at; p < at+row; p += width {
				m.distributions(a[p:p+width], b[p:p+width])
			}
		}
	}
	m.scale, m.maxAbs = max(m.scale, scale), max(m.maxAbs, worst)
	rel := 0.0
	if worst > 0 {
		rel = worst / scale // +Inf when the reference is all zero
	}
	if rel > m.maxRel {
		m.maxRel, m.worstAdd = rel, m.adds
	}
	m.adds++
	return nil
}

// elementwise adds to the sums over elements and returns max |ref| and max |ref - got|.
func (m *Meter) elementwise(ref, got []float64) (scale, worst float64) {
	for i, r := range ref {
		g := got[i]
		if !finite(r) || !finite(g) {
			if r == g || math.IsNaN(r) && math.IsNaN(g) {
				m.leftOut++
			} else {
				m.nonFinite++
			}
			continue
		}
		d := math.Abs(r - g)
		scale, worst = max(scale, math.Abs(r)), max(worst, d)
		m.elements++
		m.sumAbs += d
		m.dot += r * g
		m.ref2 += r * r
		m.got2 += g * g
		m.err2 += d * d
	}
	return scale, worst
}

// distributions adds one position of logits.
func (m *Meter) distributions(ref, got []float64) {
	if slices.ContainsFunc(ref, math.IsNaN) || slices.ContainsFunc(got, math.IsNaN) || len(ref) == 0 {
		return // counted among the elements
	}
	lp, lq := logSoftmax(ref), logSoftmax(got)
	kl := 0.0
	for i, p := range lp {
		if w := math.Exp(p); w > 0 { // 0·ln 0 is 0
			kl += w * (p - lq[i])
		}
	}
	kl = max(kl, 0) // rounding can leave a tiny negative sum for equal distributions
	k := min(5, len(ref))
	a, b := largest(ref, k), largest(got, k)
	common := 0
	for _, t := range a {
		if slices.Contains(b, t) {
			common++
		}
	}
	m.positions++
	m.kl += kl
	m.klMax = max(m.klMax, kl)
	if a[0] == b[0] {
		m.top1++
	}
	m.top5 += float64(common) / float64(k)
}

// Merge adds all that another meter has seen.
func (m *Meter) Merge(o *Meter) {
	if o.maxRel > m.maxRel {
		m.maxRel, m.worstAdd = o.maxRel, m.adds+o.worstAdd
	}
	m.adds += o.adds
	m.scale, m.maxAbs, m.klMax = max(m.scale, o.scale), max(m.maxAbs, o.maxAbs), max(m.klMax, o.klMax)
	for _, sum := range []struct {
		to   *float64
		from float64
	}{
		{&m.sumAbs, o.sumAbs}, {&m.dot, o.dot}, {&m.ref2, o.ref2}, {&m.got2, o.got2}, {&m.err2, o.err2},
		{&m.kl, o.kl}, {&m.top1, o.top1}, {&m.top5, o.top5},
	} {
		*sum.to += sum.from
	}
	m.elements += o.elements
	m.nonFinite += o.nonFinite
	m.leftOut += o.leftOut
	m.positions += o.positions
}

// Metrics returns what has been added so far.
func (m *Meter) Metrics() Metrics {
	out := Metrics{
		Elements: m.elements, NonFinite: m.nonFinite, LeftOut: m.leftOut, Scale: m.scale,
		MaxAbs: m.maxAbs, MaxRel: m.maxRel, Cosine: 1, SQNR: math.Inf(1),
	}
	if m.elements > 0 {
		out.MeanAbs = m.sumAbs / float64(m.elements)
	}
	switch {
	case m.ref2 > 0 && m.got2 > 0:
		out.Cosine = min(1, m.dot/math.Sqrt(m.ref2)/math.Sqrt(m.got2))
	case m.ref2 != m.got2:
		out.Cosine = 0 // one is zero, the other is not
	}
	if m.err2 > 0 {
		out.SQNR = 10 * math.Log10(m.ref2/m.err2)
	}
	if m.Logits {
		n := max(float64(m.positions), 1)
		out.Logits = &LogitMetrics{Positions: m.positions, KL: m.kl / n, KLMax: m.klMax, Top1: m.top1 / n, Top5: m.top5 / n}
	}
	return out
}

// WorstAdd returns which call of Add, counted from 0, had the largest relative error.
func (m *Meter) WorstAdd() int { return m.worstAdd }

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// logSoftmax returns x - ln Σ exp x, shifted by the maximum so that nothing overflows.
func logSoftmax(x []float64) []float64 {
	top := slices.Max(x)
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(v - top)
	}
	lse := top + math.Log(sum)
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v - lse
	}
	return out
}

// largest returns the indices of the k largest elements, largest first, the lower index first among equals.
func largest(x []float64, k int) []int {
	out := make([]int, 0, k+1)
	for i, v := range x {
		at := len(out)
		for at > 0 && v > x[out[at-1]] {
			at--
		}
		if at < k {
			out = slices.Insert(out, at, i)
			out = out[:min(len(out), k)]
		}
	}
	return out
}

// epsilon is the distance from 1 to the next number of a float type, 0 for other types.
func epsilon(t onnxpb.TensorProto_DataType) float64 {
	switch t {
	case onnxpb.TensorProto_FLOAT:
		return 0x1p-23
	case onnxpb.TensorProto_FLOAT16:
		return 0x1p-10
	case onnxpb.TensorProto_BFLOAT16:
		return 0x1p-7
	case onnxpb.TensorProto_DOUBLE:
		return 0x1p-52
	}
	return 0
}
