package verify

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// drifts is a model of drift: a set of layers passes when what the rewritten ones cost, and what pairs of them cost together,
// is within the limit.
type drifts struct {
	cost  []float64
	pairs map[[2]int]float64
	limit float64
	tried int
}

func (d *drifts) excess(leave []string) float64 {
	sum := 0.0
	rewritten := func(i int) bool { return !slices.Contains(leave, fmt.Sprint(i)) }
	for i, c := range d.cost {
		if rewritten(i) {
			sum += c
		}
	}
	for p, c := range d.pairs {
		if rewritten(p[0]) && rewritten(p[1]) {
			sum += c
		}
	}
	return max(0, sum-d.limit)
}

func (d *drifts) try(_ context.Context, leave []string) (Trial, error) {
	d.tried++
	e := d.excess(leave)
	return Trial{Passed: e == 0, Excess: e}, nil
}

// smallest is the size of the smallest set that passes, by trying all.
func (d *drifts) smallest() int {
	n := len(d.cost)
	best := n
	for mask := range 1 << n {
		var leave []string
		for i := range n {
			if mask>>i&1 == 1 {
				leave = append(leave, fmt.Sprint(i))
			}
		}
		if len(leave) < best && d.excess(leave) == 0 {
			best = len(leave)
		}
	}
	return best
}

func TestBisectionFindsTheSmallestSet(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 2))
	proven := 0
	for round := range 60 {
		n := 2 + r.IntN(7)
		d := &drifts{pairs: map[[2]int]float64{}, limit: 1 + 2*r.Float64()}
		var blocks []string
		for i := range n {
			blocks = append(blocks, fmt.Sprint(i))
			d.cost = append(d.cost, r.ExpFloat64())
		}
		for range n {
			if i, j := r.IntN(n), r.IntN(n); i < j {
				d.pairs[[2]int{i, j}] = r.ExpFloat64()
			}
		}
		budget := []int{1, 20, 1000}[round%3]
		full := Trial{Passed: d.excess(nil) == 0, Excess: d.excess(nil)}
		b, err := Bisect(context.Background(), blocks, full, budget, d.try)
		if err != nil {
			t.Fatal(err)
		}
		if d.excess(b.LeaveAlone) > 0 && len(b.LeaveAlone) < n {
			t.Fatalf("round %d: leaving %v alone does not pass", round, b.LeaveAlone)
		}
		want := d.smallest()
		if b.Smallest && len(b.LeaveAlone) != want {
			t.Errorf("round %d: %v is called the smallest, and there is one of %d", round, b.LeaveAlone, want)
		}
		if budget == 1000 && !b.Smallest {
			t.Errorf("round %d: %d trials did not suffice for %d layers", round, d.tried, n)
		}
		if b.Smallest {
			proven++
		}
		if b.Passed != (len(b.LeaveAlone) < n) {
			t.Errorf("round %d: passed %v with %v", round, b.Passed, b.LeaveAlone)
		}
		// Each set is tried once; the budget is overrun by the search for a first set alone.
		if d.tried != len(b.Trials)-1 || d.tried > max(budget, n)+2*n+8 {
			t.Errorf("round %d: %d trials for %d layers with a budget of %d, %d in the report", round, d.tried, n, budget, len(b.Trials))
		}
	}
	if proven < 30 {
		t.Errorf("only %d of 60 sets were shown to be the smallest", proven)
	}
	broken := errors.New("broken")
	if _, err := Bisect(context.Background(), []string{"a"}, Trial{}, 5, func(context.Context, []string) (Trial, error) { return Trial{}, broken }); !errors.Is(err, broken) {
		// One block needs no trial: leaving it alone rewrites nothing.
		if err != nil {
			t.Errorf("got %v", err)
		}
	}
}
