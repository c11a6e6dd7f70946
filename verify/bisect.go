package verify

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
)

// Bisection says which blocks have to be left as they are for the rest to pass a gate.
type Bisection struct {
	Blocks     []string `json:"blocks"`      // those of the configuration
	LeaveAlone []string `json:"leave_alone"` // the smallest set that was found; empty when all may be rewritten
	Passed     bool     `json:"passed"`      // false when not even one block can be rewritten
	// Smallest says that every smaller set was tried or is ruled out by one that was.
	Smallest bool    `json:"smallest"`
	Trials   []Trial `json:"trials"`
}

// Trial is one rewrite of some of the blocks, held against the original.
type Trial struct {
	LeftAlone []string           `json:"left_alone"`
	Passed    bool               `json:"passed"`
	Metrics   map[string]float64 `json:"metrics"` // the worst of each limited metric
	Excess    float64            `json:"excess"`  // how far beyond its limits: the largest ratio, 0 when passed
}

// Bisect looks for the smallest set of blocks that must be left as they are. try rewrites all blocks but the given ones and
// measures; it is asked at most budget times, and at least once for every block. That leaving nothing alone fails, which
// full is, the caller knows already.
//
// Every single block is tried first. Where none suffices, blocks are left alone in the order in which each by itself
// helped most, as many as it takes, and those that turn out not to be needed are put back. Sets that are smaller than
// what this finds are then tried one by one, as far as the budget goes.
func Bisect(ctx context.Context, blocks []string, full Trial, budget int, try func(ctx context.Context, leave []string) (Trial, error)) (*Bisection, error) {
	b := &bisection{
		ctx: ctx, try: try, left: max(budget, len(blocks)), known: map[string]Trial{"": full},
		Bisection: Bisection{Blocks: blocks, LeaveAlone: []string{}, Trials: []Trial{full}},
	}
	if full.Passed {
		b.Passed, b.Smallest = true, true
		return &b.Bisection, nil
	}
	if err := b.search(); err != nil {
		return nil, err
	}
	b.Passed = len(b.LeaveAlone) < len(blocks)
	return &b.Bisection, nil
}

// bisection is a search under way.
type bisection struct {
	Bisection
	ctx   context.Context
	try   func(context.Context, []string) (Trial, error)
	left  int // trials
	known map[string]Trial
}

// passes tries a set of block numbers, unless it was tried before. Leaving all alone passes: nothing is rewritten then.
func (b *bisection) passes(set []int) (Trial, error) {
	set = slices.Sorted(slices.Values(set))
	if len(set) == len(b.Blocks) {
		return Trial{LeftAlone: b.Blocks, Passed: true}, nil
	}
	key := fmt.Sprint(set)
	if t, ok := b.known[key]; ok {
		return t, nil
	}
	b.left--
	t, err := b.try(b.ctx, b.names(set))
	if err != nil {
		return t, err
	}
	t.LeftAlone = b.names(set)
	b.known[key] = t
	b.Trials = append(b.Trials, t)
	return t, nil
}

func (b *bisection) names(set []int) []string {
	out := make([]string, len(set))
	for i, n := range set {
		out[i] = b.Blocks[n]
	}
	return out
}

func (b *bisection) search() error {
	n := len(b.Blocks)
	excess := make([]float64, n)
	order := make([]int, n)
	best := -1
	for i := range n {
		t, err := b.passes([]int{i})
		if err != nil {
			return err
		}
		order[i], excess[i] = i, t.Excess
		if t.Passed && best < 0 {
			best = i
		}
	}
	if best >= 0 {
		b.LeaveAlone, b.Smallest = b.names([]int{best}), true
		return nil
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(excess[x], excess[y]) })
	enough, err := b.prefix(order)
	if err != nil {
		return err
	}
	set, err := b.prune(order[:enough])
	if err != nil {
		return err
	}
	for size := 2; size < len(set); size++ {
		found, all, err := b.exhaust(size)
		if err != nil {
			return err
		}
		if found != nil {
			set = found
			break
		}
		if !all {
			b.LeaveAlone = b.names(slices.Sorted(slices.Values(set)))
			return nil
		}
	}
	b.LeaveAlone, b.Smallest = b.names(slices.Sorted(slices.Values(set))), true
	return nil
}

// prefix returns the least number of blocks, in order, that suffice, as if more never did worse.
func (b *bisection) prefix(order []int) (int, error) {
	lo, hi := 1, len(order) // lo does not suffice, hi does
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		t, err := b.passes(order[:mid])
		if err != nil {
			return 0, err
		}
		if t.Passed {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi, nil
}

// prune takes out of a set that suffices what is not needed, the least helpful first.
func (b *bisection) prune(set []int) ([]int, error) {
	set = slices.Clone(set)
	for i := len(set) - 1; i >= 0 && b.left > 0; i-- {
		fewer := slices.Delete(slices.Clone(set), i, i+1)
		t, err := b.passes(fewer)
		if err != nil {
			return nil, err
		}
		if t.Passed {
			set = fewer
		}
	}
	return set, nil
}

// exhaust tries all sets of a size, and returns the first that suffices; all is false when the budget does not allow it.
func (b *bisection) exhaust(size int) (found []int, all bool, err error) {
	n := len(b.Blocks)
	known := 0
	for _, t := range b.Trials {
		if len(t.LeftAlone) == size {
			known++
		}
	}
	count := 1
	for i := range size {
		if count = count * (n - i) / (i + 1); count-known > b.left {
			return nil, false, nil
		}
	}
	set := make([]int, size)
	for i := range set {
		set[i] = i
	}
	for {
		t, err := b.passes(set)
		if err != nil {
			return nil, false, err
		}
		if t.Passed {
			return slices.Clone(set), true, nil
		}
		at := size - 1
		for at >= 0 && set[at] == n-size+at {
			at--
		}
		if at < 0 {
			return nil, true, nil
		}
		set[at]++
		for i := at + 1; i < size; i++ {
			set[i] = set[i-1] + 1
		}
	}
}

// NewTrial sums a report up.
func NewTrial(r *Report) Trial {
	t := Trial{LeftAlone: []string{}, Passed: r.DriftPassed(), Metrics: map[string]float64{}}
	for _, g := range r.Gates {
		if g.Section != "drift" || g.Unmeasured != "" {
			continue
		}
		if finite(g.Value) {
			t.Metrics[g.Metric] = g.Value
		}
		if !g.Passed {
			t.Excess = max(t.Excess, g.Excess/max(math.Abs(g.Bound), 1e-9))
		}
	}
	if !t.Passed && !finite(t.Excess) {
		t.Excess = math.MaxFloat64
	}
	return t
}
