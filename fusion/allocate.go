package fusion

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Layout says what numbers of key and value heads a runtime can serve.
type Layout string

// Layouts: any numbers; as many value heads as key heads in a layer; one number for all layers and both kinds.
const (
	FreeLayout    Layout = "free"
	CoupledLayout Layout = "coupled"
	UniformLayout Layout = "uniform"
)

// Layouts lists them.
var Layouts = []Layout{FreeLayout, CoupledLayout, UniformLayout}

// Table says what the numbers of heads of one layer cost: Key[n-1] and Value[n-1] for n heads, in any one unit for all
// layers (an increase of the loss, of KL), +Inf for a number that is not to be had; KeyBytes and ValueBytes are what one
// head takes in the cache at one position.
type Table struct {
	Block                string
	Key, Value           []float64
	KeyBytes, ValueBytes int64
}

// Choice is the numbers of heads of one layer.
type Choice struct{ Key, Value int }

// Allocate chooses the numbers of heads of every layer that cost least in total among those whose cache takes at most
// budget bytes a position, exactly: the (bytes, cost) pairs that no other pair beats are carried from layer to layer
// (dynamic programming for the multiple-choice knapsack; DHA arXiv 2406.06567 App. B.4 deals heads out greedily). Every
// layer keeps one head of each kind at least. Among equal costs the smaller cache is chosen, then the first.
func Allocate(tables []Table, budget int64, layout Layout) ([]Choice, error) {
	if !slices.Contains(Layouts, layout) {
		return nil, fmt.Errorf("layout %q; want one of %v", layout, Layouts)
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("a budget for no layers; want at least one")
	}
	for _, t := range tables {
		if err := t.check(); err != nil {
			return nil, err
		}
	}
	if layout == UniformLayout {
		return uniform(tables, budget)
	}
	// One stage is one decision: a layer and kind, or a layer where the kinds are coupled.
	var stages [][]option
	for _, t := range tables {
		if layout == CoupledLayout {
			stages = append(stages, t.coupled())
		} else {
			stages = append(stages, options(t.Key, t.KeyBytes), options(t.Value, t.ValueBytes))
		}
	}
	picks, err := knapsack(stages, budget, tables, layout)
	if err != nil {
		return nil, err
	}
	out := make([]Choice, len(tables))
	for l := range out {
		if layout == CoupledLayout {
			out[l] = Choice{picks[l], picks[l]}
		} else {
			out[l] = Choice{picks[2*l], picks[2*l+1]}
		}
	}
	return out, nil
}

func (t Table) check() error {
	for _, s := range []struct {
		what  string
		cost  []float64
		bytes int64
	}{{"key", t.Key, t.KeyBytes}, {"value", t.Value, t.ValueBytes}} {
		if len(s.cost) == 0 {
			return fmt.Errorf("block %q: no costs of %s heads; want one for each number of heads", t.Block, s.what)
		}
		for n, c := range s.cost {
			if math.IsNaN(c) || math.IsInf(c, -1) {
				return fmt.Errorf("block %q: %d %s heads cost %g; want a number", t.Block, n+1, s.what, c)
			}
		}
		if s.bytes <= 0 {
			return fmt.Errorf("block %q: a %s head takes %d bytes; want a positive number", t.Block, s.what, s.bytes)
		}
	}
	return nil
}

// option is one number of heads of one stage.
type option struct {
	heads int
	bytes int64
	cost  float64
}

func options(costs []float64, bytes int64) []option {
	var out []option
	for i, c := range costs {
		if !math.IsInf(c, 1) {
			out = append(out, option{i + 1, int64(i+1) * bytes, c})
		}
	}
	return out
}

// coupled are the numbers that both kinds can have.
func (t Table) coupled() []option {
	var out []option
	for n := 1; n <= min(len(t.Key), len(t.Value)); n++ {
		if c := t.Key[n-1] + t.Value[n-1]; !math.IsInf(c, 1) {
			out = append(out, option{n, int64(n) * (t.KeyBytes + t.ValueBytes), c})
		}
	}
	return out
}

// state is one way through the first stages; last is the state that it continues, in the list of the stage before.
type state struct {
	bytes int64
	cost  float64
	heads int
	last  int
}

func knapsack(stages [][]option, budget int64, tables []Table, layout Layout) ([]int, error) {
	least := int64(0)
	for i, s := range stages {
		if len(s) == 0 {
			return nil, fmt.Errorf("block %q: no number of heads is possible in the %s layout", tables[i*len(tables)/len(stages)].Block, layout)
		}
		least += s[0].bytes
	}
	if least > budget {
		return nil, fmt.Errorf("a budget of %d bytes a position; the fewest heads possible in the %s layout take %d", budget, layout, least)
	}
	lists := [][]state{{{}}}
	for _, s := range stages {
		var next []state
		for i, from := range lists[len(lists)-1] {
			for _, o := range s {
				if b := from.bytes + o.bytes; b <= budget {
					next = append(next, state{b, from.cost + o.cost, o.heads, i})
				}
			}
		}
		slices.SortStableFunc(next, func(a, b state) int {
			return cmp.Or(cmp.Compare(a.bytes, b.bytes), cmp.Compare(a.cost, b.cost))
		})
		var kept []state
		for _, x := range next {
			if len(kept) == 0 || x.cost < kept[len(kept)-1].cost {
				kept = append(kept, x)
			}
		}
		lists = append(lists, kept)
	}
	picks := make([]int, len(stages))
	at := len(lists[len(stages)]) - 1 // the last is the cheapest
	for i := len(stages); i > 0; i-- {
		s := lists[i][at]
		picks[i-1], at = s.heads, s.last
	}
	return picks, nil
}

// uniform chooses one number of heads for every layer and kind.
func uniform(tables []Table, budget int64) ([]Choice, error) {
	most := math.MaxInt
	for _, t := range tables {
		most = min(most, len(t.Key), len(t.Value))
	}
	best, least, fewest := 0, math.Inf(1), int64(0)
	for n := 1; n <= most; n++ {
		bytes, cost := int64(0), 0.0
		for _, t := range tables {
			bytes += int64(n) * (t.KeyBytes + t.ValueBytes)
			cost += t.Key[n-1] + t.Value[n-1]
		}
		if math.IsInf(cost, 1) {
			continue
		}
		if fewest == 0 {
			fewest = bytes
		}
		if bytes <= budget && cost < least {
			best, least = n, cost
		}
	}
	if best == 0 {
		if fewest == 0 {
			return nil, fmt.Errorf("no number of heads is possible in every layer; want the free or the coupled layout, or groups of any size")
		}
		return nil, fmt.Errorf("a budget of %d bytes a position; the fewest heads possible in the uniform layout take %d", budget, fewest)
	}
	return slices.Repeat([]Choice{{best, best}}, len(tables)), nil
}
