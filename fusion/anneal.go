package fusion

import (
	"math"
	"math/rand/v2"
	"slices"
)

// anneal searches by simulated annealing over exchanges of two items and, unless groups are to be equal, moves of one: a
// worse partition is taken with probability e^{−Δ/T}, T falls geometrically from the spread of the first proposals to a
// thousandth of it, and every so often the search goes back to the best so far (AsymGQA, arXiv 2406.14963; DHA, arXiv
// 2406.06567 Algorithm 4, with the temperature in the unit of the cost and the best partition returned).
func (t *partitionTask) anneal() ([][]int, error) {
	h := len(t.items)
	if t.n == 1 || t.n == h {
		return t.neighbours(), nil
	}
	rng := rand.New(rand.NewPCG(t.seed, 0xa55e))
	steps := 300 * h
	back := steps / 10
	p := t.neighbours()
	costs := make([]float64, len(p))
	total := 0.0
	for i, g := range p {
		c, err := t.groupCost(g)
		if err != nil {
			return nil, err
		}
		costs[i] = c
		total += c
	}
	best, bestCosts, least := clone(p), slices.Clone(costs), total
	warm, spread := steps/20, 0.0
	temperature, fall := 0.0, math.Pow(1e-3, 1/float64(steps-warm))
	for step := range steps {
		if step > 0 && step%back == 0 {
			p, costs, total = clone(best), slices.Clone(bestCosts), least
		}
		i, j := rng.IntN(len(p)), rng.IntN(len(p)-1)
		if j >= i {
			j++
		}
		x := p[i][rng.IntN(len(p[i]))]
		var gi, gj []int
		if !t.equal && len(p[i]) > 1 && rng.IntN(2) == 0 {
			gi, gj = without(p[i], x), joined(p[j], []int{x})
		} else {
			y := p[j][rng.IntN(len(p[j]))]
			gi, gj = joined(without(p[i], x), []int{y}), joined(without(p[j], y), []int{x})
		}
		ci, err := t.groupCost(gi)
		if err != nil {
			return nil, err
		}
		cj, err := t.groupCost(gj)
		if err != nil {
			return nil, err
		}
		delta := ci + cj - costs[i] - costs[j]
		switch {
		case step < warm:
			spread = max(spread, math.Abs(delta))
			temperature = spread
		default:
			temperature *= fall
		}
		if delta > 0 && !(rng.Float64() < math.Exp(-delta/temperature)) {
			continue
		}
		p[i], p[j], costs[i], costs[j] = gi, gj, ci, cj
		if total += delta; total < least-1e-12*math.Abs(least) {
			best, bestCosts, least = clone(p), slices.Clone(costs), total
		}
	}
	return best, nil
}
