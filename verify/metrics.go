package verify

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// Metrics says how far a tensor is from a reference. Elements that are NaN or the same infinity in both are counted in
// LeftOut and in nothing else, those that are not finite in one alone in NonFinite. Relative errors are against the
// largest magnitude of the reference tensor that the element is of: an element's own magnitude may be near zero by
// chance, and an error there harms nobody.
type Metrics struct {
	Elements  int64 // compared
	NonFinite int64
	LeftOut   int64
	// Bad is the first element that is not finite in one alone, nil when there is none.
	Bad     *Place
	Scale   float64 // max |ref|
	MaxAbs  float64 // max |ref - got|
	MeanAbs float64 // mean |ref - got|
	P99Abs  float64 // what 99 % of |ref - got| do not exceed, up to 1/16 more than that
	MaxRel  float64 // the same of |ref - got| / max |ref|, each tensor that was added by its own scale
	MeanRel float64
	P99Rel  float64 // up to 1/8 more
	Cosine  float64 // ref·got / (|ref| |got|)
	SQNR    float64 // signal to quantisation noise ratio in dB, 10 log10(|ref|² / |ref - got|²)
	PSNR    float64 // peak signal to noise ratio in dB, 10 log10(n max|ref|² / |ref - got|²)

	// What else there is depends on what is compared; nil otherwise.
	Logits     *LogitMetrics
	Text       *TextMetrics
	Generation *GenerationMetrics
}

// Place is one element of a comparison.
type Place struct {
	Step      int     // of a decode, counted from 0
	Index     []int64 // in the tensor
	Reference float64
	Got       float64
}

// LogitMetrics compares the next-token distributions p = softmax(ref) and q = softmax(got) of all positions.
type LogitMetrics struct {
	Positions int64
	KL        float64 // mean of KL(p‖q) = Σ p ln(p/q), in nats
	KLMax     float64 // over the positions
	JS        float64 // mean of the Jensen-Shannon divergence ½ KL(p‖m) + ½ KL(q‖m), m = ½ (p + q), in nats (Lin 1991)
	Top1      float64 // share of positions with the same most likely token
	Top5      float64 // mean share of p's five most likely tokens that are among q's five
	Top10     float64
}

// TextMetrics compares how well two models predict a text.
type TextMetrics struct {
	Tokens     int     // that were predicted
	Perplexity float64 // of the rewritten model: e to its mean -ln p(token | tokens before)
	Original   float64 // of the original
	Ratio      float64 // Perplexity / Original
}

// GenerationMetrics compares greedy continuations of the same prompts.
type GenerationMetrics struct {
	Sequences int
	Tokens    int     // asked for in each
	Exact     float64 // share of the sequences that are the same to the end
	Agreed    float64 // the least number of tokens before the two part
}

// scope is what a metric is of, which decides what it can be measured on.
type scope int

const (
	ofElements   scope = iota // any two tensors
	ofLogits                  // scores of tokens
	ofText                    // a text with a tokenizer
	ofGeneration              // greedy continuations
)

// measured says where the metrics of a scope come from.
func (s scope) measured(m Metrics) bool {
	switch s {
	case ofLogits:
		return m.Logits != nil
	case ofText:
		return m.Text != nil
	case ofGeneration:
		return m.Generation != nil
	}
	return m.Elements+m.NonFinite+m.LeftOut > 0 || m.Text == nil && m.Generation == nil
}

// metric is one number of Metrics: its name in limits and JSON, its name for people, whether less of it is worse, what it
// is measured on, and whether tables have a column for it.
type metric struct {
	name, heading string
	lessIsWorse   bool
	scope         scope
	column        bool
	format        string
	get           func(Metrics) float64
}

// metrics lists what can be limited and printed, in the order of the columns.
var metrics = []metric{
	{"max_abs", "max abs", false, ofElements, true, "%.2e", func(m Metrics) float64 { return m.MaxAbs }},
	{"max_rel", "max rel", false, ofElements, true, "%.2e", func(m Metrics) float64 { return m.MaxRel }},
	{"mean_abs", "mean abs", false, ofElements, true, "%.2e", func(m Metrics) float64 { return m.MeanAbs }},
	{"mean_rel", "mean rel", false, ofElements, false, "%.2e", func(m Metrics) float64 { return m.MeanRel }},
	{"p99_abs", "p99 abs", false, ofElements, false, "%.2e", func(m Metrics) float64 { return m.P99Abs }},
	{"p99_rel", "p99 rel", false, ofElements, false, "%.2e", func(m Metrics) float64 { return m.P99Rel }},
	{"cosine", "cosine", true, ofElements, true, "%.6f", func(m Metrics) float64 { return m.Cosine }},
	{"sqnr_db", "SQNR dB", true, ofElements, true, "%.1f", func(m Metrics) float64 { return m.SQNR }},
	{"psnr_db", "PSNR dB", true, ofElements, false, "%.1f", func(m Metrics) float64 { return m.PSNR }},
	{"kl", "KL nats", false, ofLogits, true, "%.2e", func(m Metrics) float64 { return m.Logits.KL }},
	{"kl_max", "KL max", false, ofLogits, false, "%.2e", func(m Metrics) float64 { return m.Logits.KLMax }},
	{"js", "JS nats", false, ofLogits, false, "%.2e", func(m Metrics) float64 { return m.Logits.JS }},
	{"top1", "top-1", true, ofLogits, true, "%.3f", func(m Metrics) float64 { return m.Logits.Top1 }},
	{"top5", "top-5", true, ofLogits, true, "%.3f", func(m Metrics) float64 { return m.Logits.Top5 }},
	{"top10", "top-10", true, ofLogits, false, "%.3f", func(m Metrics) float64 { return m.Logits.Top10 }},
	{"ppl", "perplexity", false, ofText, false, "%.4f", func(m Metrics) float64 { return m.Text.Perplexity }},
	{"ppl_ratio", "perplexity ratio", false, ofText, false, "%.4f", func(m Metrics) float64 { return m.Text.Ratio }},
	{"exact_match", "exact match", true, ofGeneration, false, "%.3f", func(m Metrics) float64 { return m.Generation.Exact }},
	{"agreed_tokens", "agreed tokens", true, ofGeneration, false, "%.0f", func(m Metrics) float64 { return m.Generation.Agreed }},
}

// MetricNames lists the metrics by their names in limits, flags and JSON.
func MetricNames() []string {
	var names []string
	for _, m := range metrics {
		names = append(names, m.name)
	}
	return names
}

// Value returns a metric by its name in limits and JSON; false when there is none or it does not apply.
func (m Metrics) Value(name string) (float64, bool) {
	for _, row := range metrics {
		if row.name == name && row.scope.measured(m) {
			return row.get(m), true
		}
	}
	return 0, false
}

// MarshalJSON writes the metrics under their names in limits. Numbers that JSON has not are strings: "+Inf", "NaN".
func (m Metrics) MarshalJSON() ([]byte, error) {
	out := map[string]any{}
	if ofElements.measured(m) {
		out["elements"], out["non_finite"], out["left_out"], out["scale"] = m.Elements, m.NonFinite, m.LeftOut, number(m.Scale)
	}
	if m.Bad != nil {
		out["first_non_finite"] = m.Bad
	}
	if m.Logits != nil {
		out["positions"] = m.Logits.Positions
	}
	if m.Text != nil {
		out["tokens"], out["original_ppl"] = m.Text.Tokens, number(m.Text.Original)
	}
	if m.Generation != nil {
		out["sequences"], out["tokens"] = m.Generation.Sequences, m.Generation.Tokens
	}
	for _, row := range metrics {
		if x, ok := m.Value(row.name); ok {
			out[row.name] = number(x)
		}
	}
	return json.Marshal(out)
}

// MarshalJSON writes what the two models have there; numbers that JSON has not are strings.
func (p *Place) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"step": p.Step, "index": p.Index, "reference": number(p.Reference), "got": number(p.Got)})
}

// number is a float that JSON can hold.
func number(x float64) any {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return fmt.Sprintf("%+v", x)
	}
	return x
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// logSoftmax returns x - ln Σ exp x, shifted by the maximum so that nothing overflows.
func logSoftmax(x []float64) []float64 {
	out, p := make([]float64, len(x)), make([]float64, len(x))
	softmaxInto(out, p, x)
	return out
}

// softmaxInto writes the softmax of x and its logarithm; false when x has a NaN.
func softmaxInto(log, p, x []float64) bool {
	top := math.Inf(-1)
	for _, v := range x {
		if v != v {
			return false
		}
		top = max(top, v)
	}
	sum := 0.0
	for i, v := range x {
		p[i] = math.Exp(v - top)
		sum += p[i]
	}
	lse, scale := top+math.Log(sum), 1/sum
	for i, v := range x {
		log[i] = v - lse
		p[i] *= scale
	}
	return true
}

// largest returns the indices of the k largest elements, largest first, the lower index first among equals.
func largest(x []float64, k int) []int {
	out := make([]int, 0, k+1)
	for i, v := range x {
		at := len(out)
		if at == k && !(v > x[out[at-1]]) {
			continue
		}
		for at > 0 && v > x[out[at-1]] {
			at--
		}
		out = slices.Insert(out, at, i)
		out = out[:min(len(out), k)]
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
