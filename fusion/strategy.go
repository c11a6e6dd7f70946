package fusion

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph/attention"
)

// Strategy is a way to choose which heads share and what they share. Its name is what people write; Strategies lists
// them.
type Strategy struct {
	Name string
	Doc  string // one line with the source
	// Together strategies choose one grouping for keys and values whenever their numbers are equal.
	Together   bool
	key, value rule
	// note says what the strategy cannot do on a block, empty when nothing.
	note func(p *Problem) string
}

// rule is what a strategy does with one kind of heads.
type rule struct {
	// cost is what the search minimises, the sum over groups.
	cost func(p *Problem, k kind, m moments, group []int) (float64, error)
	// pair is the cost of two heads, or near it and cheaper, for a cost that takes a fit of the group's channels: groups
	// too many to fit are estimated from it. nil for a cost that is cheap.
	pair func(m moments, pair []int) (float64, error)
	// merge makes the fused head of a group.
	merge func(m moments, group []int) (*mixture, error)
	// search partitions; nil for the cheapest partition that can be found.
	search func(t *partitionTask, m moments) ([][]int, error)
}

// Strategies are all there are, in the order in which they are compared.
var Strategies = []Strategy{
	alike("gqa", "mean of neighbouring heads (GQA, arXiv 2305.13245)", true,
		rule{merge: meanOf, search: func(t *partitionTask, _ moments) ([][]int, error) { return t.neighbours(), nil }}),
	alike("kdgqa", "mean of neighbouring heads, more heads in a group whose pooled key is large (KDGQA, arXiv 2408.08454)", true,
		rule{merge: meanOf, search: byNorm}),
	alike("asymgqa", "mean of heads with similar activations, groups of any size by annealing (AsymGQA, arXiv 2406.14963)", true,
		rule{cost: unlike, merge: meanOf, search: func(t *partitionTask, _ moments) ([][]int, error) { return t.anneal() }}),
	alike("qcqa", "mean of heads with similar weights, by a genetic search on the weight-sharing error (QCQA, arXiv 2406.10247)", true,
		rule{cost: sharingError, merge: meanOf, search: func(t *partitionTask, _ moments) ([][]int, error) { return t.evolve() }}),
	alike("aligned", "mean of similar heads turned onto each other, norm kept (Align Attention Heads, arXiv 2412.20677)", true,
		rule{cost: unlike, merge: moments.aligned}),
	{
		Name: "svd", Doc: "principal components of the caches of a group, readouts folded (arXiv 2406.07056)",
		key: rule{cost: principalError, pair: moments.principalError, merge: moments.principal}, value: rule{cost: principalError, pair: moments.principalError, merge: moments.principal},
		note: func(p *Problem) string {
			if p.KeyNorm || p.W.Rotary.Kind == "" || p.W.Rotary.Kind == attention.NoRotary {
				return ""
			}
			return "keys are turned by a rotary embedding: only one component per frequency folds into the weights, not the principal components of the turned keys"
		},
	},
	alike("dha", "one fusion weight per head (DHA, arXiv 2406.06567), by least squares where the heads are read instead of training", false,
		rule{cost: scalarError, merge: leastSquares}),
	alike("optimal", "least error that folds: complex keys per rotary frequency fitted to what they do to scores and output, values of full rank with the output projection, best partition", false,
		rule{cost: bestError, pair: moments.pairError, merge: moments.best}),
}

// alike is a strategy that treats keys and values alike.
func alike(name, doc string, together bool, r rule) Strategy {
	return Strategy{Name: name, Doc: doc, Together: together, key: r, value: r}
}

// FindStrategy returns the strategy of that name.
func FindStrategy(name string) (Strategy, error) {
	var have []string
	for _, s := range Strategies {
		if s.Name == name {
			return s, nil
		}
		have = append(have, s.Name)
	}
	return Strategy{}, fmt.Errorf("strategy %q; want one of %s", name, strings.Join(have, ", "))
}

func bestError(_ *Problem, _ kind, m moments, group []int) (float64, error) {
	return m.bestError(group)
}

func principalError(_ *Problem, _ kind, m moments, group []int) (float64, error) {
	return m.principalError(group)
}

// scalarError is what one weight per head loses where the heads are read: L_fusion of DHA (§3.2) asks that all readers of a
// group can share one set of weights, which without training costs this much.
func scalarError(_ *Problem, _ kind, m moments, group []int) (float64, error) {
	mix, err := leastSquares(m, group)
	if err != nil {
		return 0, err
	}
	return scalarResidual(m, group, mix.weights), nil
}

// GroupSizes says what groups a runtime can serve.
type GroupSizes string

// Group sizes: groups of any size, or of one.
const (
	AnyGroups   GroupSizes = "any"
	EqualGroups GroupSizes = "equal"
)

// SolveOptions constrain a solution.
type SolveOptions struct {
	// Groups is AnyGroups when empty.
	Groups GroupSizes
	// Coupled asks for the same groups for keys and values; their numbers must be equal.
	Coupled bool
	// Nested asks that each group of the kind with more groups lies within one of the other's, so that query heads need
	// one order only.
	Nested bool
}

// Solution is one fused block.
type Solution struct {
	// Key and Value are the groups. Their weights are what fused heads are made of when Learned is nil; else shares,
	// adding up to 1, that tell people how much of each head went in.
	Key, Value Fusion
	Learned    *Learned
	// KeyError is the energy of the error of the scores (before their scale), ValueError that of the block's output,
	// both summed over query heads and as the calibration statistics weigh them. What is constant in the output's error is
	// not counted where the block has an output bias that can take it up.
	KeyError, ValueError float64
	// Note says what the strategy could not do on this block, empty when nothing.
	Note string
}

// KeyErrors returns the residual of the best solution with n key heads for n = 1 … KVHeads, at index n−1: the energy of
// the error of the scores, comparable between n of one block. It is +Inf for an n that the options rule out.
func (s Strategy) KeyErrors(p *Problem, o SolveOptions) ([]float64, error) {
	return s.errors(p, keyKind, o)
}

// ValueErrors is the like for value heads: the energy of the error of the block's output.
func (s Strategy) ValueErrors(p *Problem, o SolveOptions) ([]float64, error) {
	return s.errors(p, valueKind, o)
}

func (s Strategy) errors(p *Problem, k kind, o SolveOptions) ([]float64, error) {
	m, err := p.moments(k)
	if err != nil {
		return nil, fmt.Errorf("strategy %s: %w", s.Name, err)
	}
	out := make([]float64, m.heads())
	for n := range out {
		if o.Groups == EqualGroups && len(out)%(n+1) != 0 {
			out[n] = math.Inf(1)
			continue
		}
		groups, err := s.partition(p, k, single(len(out)), n+1, o)
		if err == nil {
			_, out[n], err = s.merge(p, k, groups)
		}
		if err != nil {
			return nil, fmt.Errorf("strategy %s: %d %s heads: %w", s.Name, n+1, k, err)
		}
	}
	return out, nil
}

// Solve fuses the block to k key heads and v value heads.
func (s Strategy) Solve(p *Problem, k, v int, o SolveOptions) (*Solution, error) {
	sol, err := s.solve(p, k, v, o)
	if err != nil {
		return nil, fmt.Errorf("strategy %s: %w", s.Name, err)
	}
	return sol, nil
}

func (s Strategy) solve(p *Problem, k, v int, o SolveOptions) (*Solution, error) {
	counts := [2]int{k, v}
	var have [2]int
	for _, kd := range []kind{keyKind, valueKind} {
		m, err := p.moments(kd)
		if err != nil {
			return nil, err
		}
		have[kd] = m.heads()
		switch n := counts[kd]; {
		case n < 1 || n > have[kd]:
			return nil, fmt.Errorf("%d %s heads; want 1 to %d", n, kd, have[kd])
		case o.Groups == EqualGroups && have[kd]%n != 0:
			return nil, fmt.Errorf("%d %s heads do not make %d equal groups; want one of %s", have[kd], kd, n, divisors(have[kd]))
		}
	}
	if o.Groups != "" && o.Groups != AnyGroups && o.Groups != EqualGroups {
		return nil, fmt.Errorf("groups %q; want %q or %q", o.Groups, AnyGroups, EqualGroups)
	}
	if o.Coupled && (k != v || have[keyKind] != have[valueKind]) {
		return nil, fmt.Errorf("%d of %d key heads and %d of %d value heads cannot share groups; want equal numbers", k, have[keyKind], v, have[valueKind])
	}
	groups, err := s.partitions(p, counts, have, o)
	if err != nil {
		return nil, err
	}
	sol := &Solution{}
	var mixtures [2][]*mixture
	for _, kd := range []kind{keyKind, valueKind} {
		list, e, err := s.merge(p, kd, groups[kd])
		if err != nil {
			return nil, fmt.Errorf("%s heads: %w", kd, err)
		}
		f := Fusion{Groups: groups[kd]}
		for _, m := range list {
			f.Weights = append(f.Weights, m.weights)
		}
		mixtures[kd] = list
		if kd == keyKind {
			sol.Key, sol.KeyError = f, e
		} else {
			sol.Value, sol.ValueError = f, e
		}
	}
	sol.Learned = fold(p, groups[keyKind], mixtures[keyKind], groups[valueKind], mixtures[valueKind])
	notes, err := s.unproven(p, counts, have, o)
	if err != nil {
		return nil, err
	}
	if k < have[keyKind] && p.keyNote != "" {
		notes = append(notes, p.keyNote)
	}
	if v < have[valueKind] && p.valueNote != "" {
		notes = append(notes, p.valueNote)
	}
	if s.note != nil && k < have[keyKind] {
		if n := s.note(p); n != "" {
			notes = append(notes, n)
		}
	}
	sol.Note = strings.Join(notes, "; ")
	return sol, nil
}

// unproven says of which kinds the groups are not known to be the cheapest.
func (s Strategy) unproven(p *Problem, counts, have [2]int, o SolveOptions) (notes []string, err error) {
	for _, k := range []kind{keyKind, valueKind} {
		if s.rule(k).search != nil || counts[k] == 1 || counts[k] == have[k] {
			continue
		}
		m, err := p.moments(k)
		if err != nil {
			return nil, err
		}
		t := &partitionTask{items: single(have[k]), n: counts[k], equal: o.Groups == EqualGroups}
		if have[k] > exactHeads || s.costs(p, k, m).dear(t) {
			notes = append(notes, fmt.Sprintf("the groups of %s heads are the best found, not proven best: sets of %d heads of %d channels are too many to fit each", k, have[k], p.dim(k)))
		}
	}
	return notes, nil
}

// single makes an item of each of n heads.
func single(n int) [][]int {
	out := make([][]int, n)
	for i := range out {
		out[i] = []int{i}
	}
	return out
}

// partitions chooses the groups of both kinds.
func (s Strategy) partitions(p *Problem, counts, have [2]int, o SolveOptions) (groups [2][][]int, err error) {
	if o.Coupled || (s.Together || o.Nested) && counts[0] == counts[1] && have[0] == have[1] {
		g, err := s.common(p, counts[0], o)
		return [2][][]int{g, g}, err
	}
	fine, coarse := keyKind, valueKind
	if counts[fine] < counts[coarse] {
		fine, coarse = coarse, fine
	}
	if groups[fine], err = s.partition(p, fine, single(have[fine]), counts[fine], o); err != nil {
		return groups, err
	}
	items := single(have[coarse])
	if o.Nested && have[fine] == have[coarse] {
		items = groups[fine]
		if o.Groups == EqualGroups && len(items)%counts[coarse] != 0 {
			return groups, fmt.Errorf("%d %s heads do not nest in %d %s heads with equal groups", counts[coarse], coarse, counts[fine], fine)
		}
	}
	groups[coarse], err = s.partition(p, coarse, items, counts[coarse], o)
	return groups, err
}

// partition chooses n groups of one kind.
func (s Strategy) partition(p *Problem, k kind, items [][]int, n int, o SolveOptions) ([][]int, error) {
	m, err := p.moments(k)
	if err != nil {
		return nil, err
	}
	t := &partitionTask{items: items, n: n, equal: o.Groups == EqualGroups, seed: p.Seed}
	c := s.costs(p, k, m)
	t.cost, t.work = c.cost, c.work
	if c.dear(t) {
		t.rough = c.rough
	}
	return s.run(p, t, m, s.rule(k), k.String())
}

// common chooses n groups for both kinds at once: a group costs what it loses of either, each as a share of what one group
// of all heads would lose.
func (s Strategy) common(p *Problem, n int, o SolveOptions) ([][]int, error) {
	var kinds [2]costs
	var all []int
	var unit [2]float64
	var km moments
	for _, k := range []kind{keyKind, valueKind} {
		m, err := p.moments(k)
		if err != nil {
			return nil, err
		}
		kinds[k] = s.costs(p, k, m)
		if k == keyKind {
			km = m
			for i := range m.heads() {
				all = append(all, i)
			}
		}
		if s.rule(k).cost != nil {
			x, err := kinds[k].cost(all)
			if err != nil {
				return nil, err
			}
			if unit[k] = math.Abs(x); unit[k] == 0 {
				unit[k] = 1
			}
		}
	}
	// both adds up the costs of a group as shares; f picks how they are taken.
	both := func(f func(c costs) func([]int) (float64, error)) func([]int) (float64, error) {
		return func(group []int) (sum float64, err error) {
			for k, c := range kinds {
				x, err := f(c)(group)
				if err != nil {
					return 0, err
				}
				sum += x / unit[k]
			}
			return sum, nil
		}
	}
	t := &partitionTask{items: single(len(all)), n: n, equal: o.Groups == EqualGroups, seed: p.Seed}
	t.cost = both(func(c costs) func([]int) (float64, error) { return c.cost })
	t.work = func(g int) float64 { return kinds[0].work(g) + kinds[1].work(g) }
	if kinds[0].dear(t) || kinds[1].dear(t) {
		t.rough = both(func(c costs) func([]int) (float64, error) {
			if c.rough == nil {
				return c.cost
			}
			return c.rough
		})
	}
	return s.run(p, t, km, s.key, "both")
}

// run searches, keeping what it finds: all numbers of groups at once where that costs no more than one.
func (s Strategy) run(p *Problem, t *partitionTask, m moments, r rule, what string) ([][]int, error) {
	found := p.found()
	key := func(n int) string { return fmt.Sprint(s.Name, what, t.equal, t.items, n) }
	if g, ok := found.get(key(t.n)); ok {
		return g, nil
	}
	if r.search != nil {
		items, err := r.search(t, m)
		if err != nil {
			return nil, err
		}
		found.put(key(t.n), t.groups(items))
		return t.groups(items), nil
	}
	all, err := t.search()
	if err != nil {
		return nil, err
	}
	for n, items := range all {
		if items != nil {
			found.put(key(n+1), t.groups(items))
		}
	}
	return t.groups(all[t.n-1]), nil
}

func (s Strategy) rule(k kind) rule {
	if k == keyKind {
		return s.key
	}
	return s.value
}

// merge fuses the groups of one kind and adds up their residuals.
func (s Strategy) merge(p *Problem, k kind, groups [][]int) ([]*mixture, float64, error) {
	m, err := p.moments(k)
	if err != nil {
		return nil, 0, err
	}
	out, total := make([]*mixture, len(groups)), 0.0
	for i, g := range groups {
		if !slices.IsSorted(g) {
			return nil, 0, fmt.Errorf("group %v is not in order", g)
		}
		if out[i], err = s.rule(k).merge(m, g); err != nil {
			return nil, 0, err
		}
		e, err := m.residual(g, out[i])
		if err != nil {
			return nil, 0, err
		}
		total += e
	}
	return out, total, nil
}
