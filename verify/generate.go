package verify

import (
	"context"
	"fmt"
	"slices"
)

// GenerateBatch continues several prompts of one length at once with the n most likely tokens each, every sequence fed
// with its own.
func GenerateBatch(ctx context.Context, m *Model, prompts [][]int64, n int) ([][]int64, error) {
	if len(prompts) == 0 || len(prompts[0]) == 0 {
		return nil, fmt.Errorf("model %q: generation needs prompts of at least one token", m.Path)
	}
	d, err := m.NewDecoder(len(prompts), 0, nil)
	if err != nil {
		return nil, err
	}
	out := make([][]int64, len(prompts))
	feed := prompts
	if m.fixed[Seq] == 1 {
		for len(feed[0]) > 1 {
			first, rest := make([][]int64, len(feed)), make([][]int64, len(feed))
			for b, row := range feed {
				first[b], rest[b] = row[:1], row[1:]
			}
			if _, err := d.Step(ctx, first, nil); err != nil {
				return nil, err
			}
			feed = rest
		}
	}
	for range n {
		got, err := d.Step(ctx, feed, nil)
		if err != nil {
			return nil, err
		}
		t, err := next(got[m.Logits])
		if err != nil {
			return nil, fmt.Errorf("model %q: %w", m.Path, err)
		}
		feed = make([][]int64, len(t))
		for b, id := range t {
			out[b] = append(out[b], id)
			feed[b] = []int64{id}
		}
	}
	return out, nil
}

// CompareGenerations lets both models continue the same prompts and enters into the report how long they agree.
func (r *Report) CompareGenerations(ctx context.Context, original, rewritten *Model, prompts [][]int64, n int) error {
	p := &GenerationPair{Prompts: prompts, Tokens: n}
	var err error
	if p.Original, err = GenerateBatch(ctx, original, prompts, n); err != nil {
		return err
	}
	return r.compareGenerations(ctx, rewritten, p)
}

// compareGenerations completes a pair of which the original's side is known.
func (r *Report) compareGenerations(ctx context.Context, m *Model, p *GenerationPair) error {
	var err error
	if p.Got, err = GenerateBatch(ctx, m, p.Prompts, p.Tokens); err != nil {
		return err
	}
	g := &GenerationMetrics{Sequences: len(p.Prompts), Tokens: p.Tokens, Agreed: float64(p.Tokens)}
	for b := range p.Got {
		at := agreement(p.Original[b], p.Got[b])
		p.Agree = append(p.Agree, at)
		if at < 0 {
			g.Exact += 1 / float64(len(p.Got))
		} else {
			g.Agreed = min(g.Agreed, float64(at))
		}
	}
	if !slices.ContainsFunc(p.Agree, func(n int) bool { return n >= 0 }) {
		g.Exact = 1 // not a sum of fractions
	}
	r.Generated = p
	r.addLine(Line{
		Case: fmt.Sprintf("generate B%d S%d+%d", len(p.Prompts), len(p.Prompts[0]), p.Tokens), Output: "tokens", Kind: GenerationOutput,
		Steps: p.Tokens, Metrics: Metrics{Generation: g},
	})
	return nil
}
