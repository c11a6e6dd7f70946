package verify

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Generate continues a prompt with the n most likely tokens, each fed back through the model's own cache; it ends
// after the first token that is one of stop. The prompt is not part of the result.
func Generate(ctx context.Context, m *Model, prompt []int64, n int, stop ...int64) ([]int64, error) {
	if len(prompt) == 0 {
		return nil, fmt.Errorf("model %q: generation needs a prompt of at least one token", m.Path)
	}
	d, err := m.NewDecoder(1, 0, nil)
	if err != nil {
		return nil, err
	}
	var out []int64
	feed := prompt
	if m.fixed[Seq] == 1 {
		for ; len(feed) > 1; feed = feed[1:] {
			if _, err := d.Step(ctx, [][]int64{feed[:1]}, nil); err != nil {
				return nil, err
			}
		}
	}
	for len(out) < n {
		got, err := d.Step(ctx, [][]int64{feed}, nil)
		if err != nil {
			return out, err
		}
		t, err := next(got[m.Logits])
		if err != nil {
			return out, fmt.Errorf("model %q: %w", m.Path, err)
		}
		out = append(out, t[0])
		if slices.Contains(stop, t[0]) {
			break
		}
		feed = t
	}
	return out, nil
}

// TextLoss is how well a model predicts a text.
type TextLoss struct {
	Tokens     int     `json:"tokens"`     // that were predicted
	NLL        float64 `json:"nll"`        // mean -ln p(token | tokens before it in its window), in nats
	Perplexity float64 `json:"perplexity"` // e to the NLL
}

// Perplexity measures a model on token ids. The ids are cut into windows of the given length, at most limit of them (0:
// all; a rest shorter than a window is dropped), each starts afresh, and every token of a window but the first is
// predicted from those before it.
func Perplexity(ctx context.Context, m *Model, ids []int64, window, limit int) (TextLoss, error) {
	windows := windowsOf(ids, window, limit)
	if len(windows) == 0 {
		return TextLoss{}, noWindow(ids, window)
	}
	var loss lossSum
	for _, w := range windows {
		logits, err := m.score(ctx, w)
		if err != nil {
			return TextLoss{}, err
		}
		if err := loss.add(m, logits, w); err != nil {
			return TextLoss{}, err
		}
	}
	return loss.mean(), nil
}

// lossSum accumulates losses over windows.
type lossSum struct {
	nll    float64
	tokens int
}

// add takes the logits [len(ids), vocabulary] of one window.
func (l *lossSum) add(m *Model, logits []float64, ids []int64) error {
	v := len(logits) / len(ids)
	for i := 1; i < len(ids); i++ {
		if ids[i] < 0 || int(ids[i]) >= v {
			return fmt.Errorf("model %q: token %d is not in the vocabulary of %d", m.Path, ids[i], v)
		}
		l.nll -= logSoftmax(logits[(i-1)*v : i*v])[ids[i]]
		l.tokens++
	}
	return nil
}

func (l *lossSum) mean() TextLoss {
	nll := l.nll / float64(l.tokens)
	return TextLoss{Tokens: l.tokens, NLL: nll, Perplexity: math.Exp(nll)}
}

func noWindow(ids []int64, window int) error {
	return fmt.Errorf("a text of %d tokens has no window of %d; want a longer text, or windows of 2 tokens and more",
		len(ids), window)
}

// Windows cuts a text as Perplexity does.
func Windows(ids []int64, window, limit int) [][]int64 { return windowsOf(ids, window, limit) }

func windowsOf(ids []int64, window, limit int) [][]int64 {
	var out [][]int64
	for window >= 2 && len(ids) >= window && (limit <= 0 || len(out) < limit) {
		out = append(out, ids[:window])
		ids = ids[window:]
	}
	return out
}

// score returns the logits [len(ids), vocabulary] of one sequence.
func (m *Model) score(ctx context.Context, ids []int64) ([]float64, error) {
	d, err := m.NewDecoder(1, 0, nil)
	if err != nil {
		return nil, err
	}
	out, err := d.Step(ctx, [][]int64{ids}, nil)
	if err != nil {
		return nil, err
	}
	l := out[m.Logits]
	if len(l.Shape) != 3 || int(l.Shape[1]) != len(ids) {
		return nil, fmt.Errorf("model %q: logits are %v for %d tokens; a perplexity needs the scores of every position",
			m.Path, l, len(ids))
	}
	return l.Float64s()
}

// TextPair is what two models make of the same text.
type TextPair struct {
	Original  TextLoss `json:"original"`
	Rewritten TextLoss `json:"rewritten"`
	// KL is the mean divergence of the rewritten model's next-token distributions from the original's, in nats; Top1
	// the share of positions with the same most likely token.
	KL   float64 `json:"kl"`
	Top1 float64 `json:"top1"`
	// Worst are the positions of the largest divergence, the largest first.
	Worst       []WorstToken `json:"worst,omitempty"`
	Prompt      string       `json:"prompt"`
	Generations [2]string    `json:"generations"` // greedy continuations of the prompt: of the original, of the rewritten model
	// Agree is the number of tokens after which the two continuations part, -1 when they do not.
	Agree int `json:"agree"`

	metrics Metrics
}

// WorstToken is a position of a text at which two models disagree, in its text.
type WorstToken struct {
	Position  int     `json:"position"` // of the token in the text, counted from 0
	Before    string  `json:"before"`   // the text in front of it
	Token     string  `json:"token"`    // what the text goes on with
	KL        float64 `json:"kl"`
	Original  string  `json:"original"`  // the most likely token there, by the original
	Rewritten string  `json:"rewritten"` // and by the rewritten model
	// Probabilities of Token.
	POriginal  float64 `json:"p_original"`
	PRewritten float64 `json:"p_rewritten"`
}

// GenerationPair is a batch of greedy continuations by two models, each fed with its own tokens.
type GenerationPair struct {
	Prompts  [][]int64 `json:"prompts"`
	Tokens   int       `json:"tokens"` // asked for in each
	Original [][]int64 `json:"original"`
	Got      [][]int64 `json:"rewritten"`
	// Agree is the number of tokens after which each pair parts, -1 where it does not.
	Agree []int `json:"agree"`
}

// TextOptions say how CompareText cuts the text.
type TextOptions struct {
	Window, Windows int     // as for Perplexity
	Prompt          []int64 // what both models continue; nil for the first Window/4 tokens of the text
	Generate        int     // tokens
	Stop            []int64
}

// Worst tokens that a report names, and the number of tokens in front of each that it shows.
const (
	worstTokens  = 20
	tokensBefore = 12
)

// CompareText measures both models on ids and lets both continue a prompt. decode turns ids into text.
func CompareText(ctx context.Context, original, rewritten *Model, ids []int64, o TextOptions, decode func([]int64) string) (*TextPair, error) {
	windows := windowsOf(ids, o.Window, o.Windows)
	if len(windows) == 0 {
		return nil, noWindow(ids, o.Window)
	}
	p := &TextPair{Agree: -1}
	var loss [2]lossSum
	meter := Meter{Logits: true}
	for i, w := range windows {
		var logits [2][]float64
		for i, m := range []*Model{original, rewritten} {
			var err error
			if logits[i], err = m.score(ctx, w); err != nil {
				return nil, err
			}
			if err := loss[i].add(m, logits[i], w); err != nil {
				return nil, err
			}
		}
		a, b := logits[0], logits[1]
		if len(a) != len(b) {
			return nil, fmt.Errorf("model %q has a vocabulary of %d, model %q one of %d",
				original.Path, len(a)/len(w), rewritten.Path, len(b)/len(w))
		}
		v := len(a) / len(w)
		starts := make([]int, len(w))
		for j := range starts {
			starts[j] = j * v
		}
		for j, d := range meter.distributions(numbers{double: a}, numbers{double: b}, starts, v) {
			if d.counts && j+1 < len(w) {
				p.note(WorstToken{Position: i*o.Window + j + 1, KL: d.kl}, a[j*v:(j+1)*v], b[j*v:(j+1)*v], w, j+1, decode)
			}
		}
	}
	p.metrics = Metrics{Logits: meter.Metrics().Logits}
	p.Original, p.Rewritten, p.KL, p.Top1 = loss[0].mean(), loss[1].mean(), p.metrics.Logits.KL, p.metrics.Logits.Top1
	p.metrics.Text = &TextMetrics{
		Tokens: p.Original.Tokens, Original: p.Original.Perplexity, Perplexity: p.Rewritten.Perplexity,
		Ratio: p.Rewritten.Perplexity / p.Original.Perplexity,
	}

	prompt := o.Prompt
	if prompt == nil {
		prompt = ids[:max(1, o.Window/4)]
	}
	p.Prompt = decode(prompt)
	var tokens [2][]int64
	var err error
	for i, m := range []*Model{original, rewritten} {
		if tokens[i], err = Generate(ctx, m, prompt, o.Generate, o.Stop...); err != nil {
			return nil, err
		}
		p.Generations[i] = decode(tokens[i])
	}
	p.Agree = agreement(tokens[0], tokens[1])
	return p, nil
}

// agreement returns the number of tokens after which two sequences part, -1 when they do not.
func agreement(a, b []int64) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return -1
}

// note keeps a position if it is one of the worst. ref and got are the scores that predict w[at].
func (p *TextPair) note(t WorstToken, ref, got []float64, w []int64, at int, decode func([]int64) string) {
	place := len(p.Worst)
	for place > 0 && t.KL > p.Worst[place-1].KL {
		place--
	}
	if place == worstTokens || t.KL == 0 {
		return
	}
	one := func(id int64) string { return decode([]int64{id}) }
	t.Before, t.Token = decode(w[max(0, at-tokensBefore):at]), one(w[at])
	t.Original, t.Rewritten = one(int64(largest(ref, 1)[0])), one(int64(largest(got, 1)[0]))
	t.POriginal, t.PRewritten = math.Exp(logSoftmax(ref)[w[at]]), math.Exp(logSoftmax(got)[w[at]])
	p.Worst = slices.Insert(p.Worst, place, t)
	p.Worst = p.Worst[:min(len(p.Worst), worstTokens)]
}

// AddText enters the comparison on a text into the report, where the limits on distributions and on perplexity judge it.
func (r *Report) AddText(p *TextPair) {
	r.Text = p
	r.addLine(Line{Case: "text", Output: "perplexity", Kind: TextOutput, Steps: 1, Metrics: p.metrics})
}

// addLine judges a line and adds it to those of the drift.
func (r *Report) addLine(l Line) {
	l.Limits = len(r.Drift.Tolerance.applying(l.Metrics))
	l.Broken = r.Drift.Tolerance.Judge(l.Metrics)
	r.Drift.Lines = append(r.Drift.Lines, l)
	r.Judge()
}
