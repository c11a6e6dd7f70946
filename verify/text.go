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
	Tokens     int     // that were predicted
	NLL        float64 // mean -ln p(token | tokens before it in its window), in nats
	Perplexity float64 // e to the NLL
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
	Original, Rewritten TextLoss
	// KL is the mean divergence of the rewritten model's next-token distributions from the original's, in nats; Top1
	// the share of positions with the same most likely token.
	KL, Top1    float64
	Prompt      string
	Generations [2]string // greedy continuations of the prompt: of the original, of the rewritten model
	// Agree is the number of tokens after which the two continuations part, -1 when they do not.
	Agree int
}

// TextOptions say how CompareText cuts the text.
type TextOptions struct {
	Window, Windows int     // as for Perplexity
	Prompt          []int64 // what both models continue; nil for the first Window/4 tokens of the text
	Generate        int     // tokens
	Stop            []int64
}

// CompareText measures both models on ids and lets both continue a prompt. decode turns ids into text.
func CompareText(ctx context.Context, original, rewritten *Model, ids []int64, o TextOptions, decode func([]int64) string) (*TextPair, error) {
	windows := windowsOf(ids, o.Window, o.Windows)
	if len(windows) == 0 {
		return nil, noWindow(ids, o.Window)
	}
	p := &TextPair{Agree: -1}
	var loss [2]lossSum
	meter := Meter{Logits: true}
	for _, w := range windows {
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
		for i := 0; i < len(a); i += v {
			meter.distributions(a[i:i+v], b[i:i+v])
		}
	}
	l := meter.Metrics().Logits
	p.Original, p.Rewritten, p.KL, p.Top1 = loss[0].mean(), loss[1].mean(), l.KL, l.Top1

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
	for i := range max(len(tokens[0]), len(tokens[1])) {
		if i >= len(tokens[0]) || i >= len(tokens[1]) || tokens[0][i] != tokens[1][i] {
			p.Agree = i
			break
		}
	}
	return p, nil
}
