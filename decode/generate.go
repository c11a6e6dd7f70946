package decode

import (
	"context"
	"iter"
	"slices"
)

// Pick chooses a token by the scores of all.
type Pick func(scores []float32) int64

// Greedy picks the token with the highest score, the first of several.
func Greedy(scores []float32) int64 {
	best := 0
	for i, x := range scores {
		if x > scores[best] {
			best = i
		}
	}
	return int64(best)
}

// Generate yields the tokens that follow a prompt, one after the other, until the caller stops, an error, or a token of
// stop, which is not yielded. A nil pick is Greedy.
func (m *Model) Generate(ctx context.Context, prompt []int64, pick Pick, stop ...int64) iter.Seq2[int64, error] {
	if pick == nil {
		pick = Greedy
	}
	return func(yield func(int64, error) bool) {
		l, err := m.Start(Options{})
		if err != nil {
			yield(0, err)
			return
		}
		defer l.Close()
		for tokens := prompt; ; {
			if err := l.Feed(ctx, [][]int64{tokens}); err != nil {
				yield(0, err)
				return
			}
			scores, err := l.Scores(0)
			if err != nil {
				yield(0, err)
				return
			}
			next := pick(scores)
			if slices.Contains(stop, next) || !yield(next, nil) {
				return
			}
			tokens = []int64{next}
		}
	}
}

// GenerateAll continues several prompts side by side, each by n tokens at most, or until a token of stop, which is not part
// of what it returns. Prompts of unequal length need a model with a mask. Sequences that have come to their end are carried
// on beside the others until all have. A nil pick is Greedy. With an error it returns what was said before.
func (m *Model) GenerateAll(ctx context.Context, prompts [][]int64, n int, pick Pick, stop ...int64) ([][]int64, error) {
	if pick == nil {
		pick = Greedy
	}
	l, err := m.Start(Options{Batch: len(prompts)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	said, done := make([][]int64, len(prompts)), make([]bool, len(prompts))
	for next := prompts; n > 0 && slices.Contains(done, false); {
		if err := l.Feed(ctx, next); err != nil {
			return said, err
		}
		next = make([][]int64, len(prompts))
		for b := range prompts {
			scores, err := l.Scores(b)
			if err != nil {
				return said, err
			}
			token := pick(scores)
			next[b] = []int64{token}
			if done[b] = done[b] || slices.Contains(stop, token); !done[b] {
				said[b] = append(said[b], token)
				done[b] = len(said[b]) == n
			}
		}
	}
	return said, nil
}
