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
