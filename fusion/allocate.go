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
	// Pairs says which numbers of key and of value heads go together; nil when all do.
	Pairs func(key, value int) bool
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
	var stages []stage
	for l, t := range tables {
		stages = append(stages, t.stages(l, layout)...)
	}
	picks, err := knapsack(stages, budget, layout)
	if err != nil {
		return nil, err
	}
	out := make([]Choice, len(tables))
	for i, s := range stages {
		out[s.layer].Key += picks[i].Key
		out[s.layer].Value += picks[i].Value
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

// stage is one decision: a layer and kind, or a layer where the numbers of both kinds hang together.
type stage struct {
	layer   int
	block   string
	options []option // by bytes
}

// option is one choice of a stage; the kind that the stage does not decide has no heads in it.
type option struct {
	Choice
	bytes int64
	cost  float64
}

// stages lists the decisions about a layer.
func (t Table) stages(layer int, layout Layout) []stage {
	pairs := t.Pairs
	if layout == CoupledLayout {
		pairs = t.coupled
	}
	key, value, both := stage{layer: layer, block: t.Block}, stage{layer: layer, block: t.Block}, stage{layer: layer, block: t.Block}
	for k, cost := range t.Key {
		key.add(Choice{Key: k + 1}, t, cost)
		for v, more := range t.Value {
			if pairs != nil && pairs(k+1, v+1) {
				both.add(Choice{k + 1, v + 1}, t, cost+more)
			}
		}
	}
	if pairs != nil {
		both.options = front(both.options, func(o option) option { return o })
		return []stage{both}
	}
	for v, cost := range t.Value {
		value.add(Choice{Value: v + 1}, t, cost)
	}
	return []stage{key, value}
}

func (t Table) coupled(key, value int) bool {
	return key == value && (t.Pairs == nil || t.Pairs(key, value))
}

func (s *stage) add(c Choice, t Table, cost float64) {
	if !math.IsInf(cost, 1) {
		s.options = append(s.options, option{c, int64(c.Key)*t.KeyBytes + int64(c.Value)*t.ValueBytes, cost})
	}
}

// front keeps what costs less than everything that takes no more bytes, by bytes. It changes the order of the list.
func front[T any](list []T, of func(T) option) []T {
	slices.SortStableFunc(list, func(a, b T) int {
		return cmp.Or(cmp.Compare(of(a).bytes, of(b).bytes), cmp.Compare(of(a).cost, of(b).cost))
	})
	var kept []T
	for _, x := range list {
		if len(kept) == 0 || of(x).cost < of(kept[len(kept)-1]).cost {
			kept = append(kept, x)
		}
	}
	return kept
}

// state is one way through the first stages; last is the state that it continues, in the list of the stage before.
type state struct {
	option // its choice; bytes and cost are those of all stages up to this one
	last   int
}

func knapsack(stages []stage, budget int64, layout Layout) ([]Choice, error) {
	least := int64(0)
	for _, s := range stages {
		if len(s.options) == 0 {
			return nil, fmt.Errorf("block %q: no number of heads is possible in the %s layout", s.block, layout)
		}
		least += s.options[0].bytes
	}
	if least > budget {
		return nil, fmt.Errorf("a budget of %d bytes a position; the fewest heads possible in the %s layout take %d", budget, layout, least)
	}
	lists := [][]state{{{}}}
	for _, s := range stages {
		var next []state
		for i, from := range lists[len(lists)-1] {
			for _, o := range s.options {
				if b := from.bytes + o.bytes; b <= budget {
					next = append(next, state{option{o.Choice, b, from.cost + o.cost}, i})
				}
			}
		}
		lists = append(lists, front(next, func(s state) option { return s.option }))
	}
	picks := make([]Choice, len(stages))
	at := len(lists[len(stages)]) - 1 // the last is the cheapest
	for i := len(stages); i > 0; i-- {
		s := lists[i][at]
		picks[i-1], at = s.Choice, s.last
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
			if !t.coupled(n, n) {
				cost = math.Inf(1)
			}
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
