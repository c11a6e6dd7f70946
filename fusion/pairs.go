package fusion

import (
	"sync"

	"gonum.org/v1/gonum/mat"
)

// exactWork bounds the work of a search that fits every subset of heads: the number of subsets times the cube of the
// channels of half the heads. Above it the costs of subsets are estimated from pairs; the groups that are chosen are
// fitted in full all the same.
const exactWork = 5e8

// affordable reports whether all subsets of n heads of d channels can be fitted in full.
func affordable(n, d int) bool {
	half := float64(n) / 2 * float64(d)
	return float64(int(1)<<min(n, exactHeads))*half*half*half <= exactWork
}

// pairCosts estimates the cost of a group from those of its pairs: (2/g)·Σ_{i<j} cost(i, j), which holds exactly for what a
// mean loses, Σ_h |h − mean|² = (1/g) Σ_{i<j} |h_i − h_j|².
type pairCosts struct {
	mu sync.Mutex
	m  map[[2]int]float64
}

func (p *pairCosts) estimate(group []int, cost func(pair []int) (float64, error)) (float64, error) {
	sum := 0.0
	for i, a := range group {
		for _, b := range group[i+1:] {
			pair := [2]int{a, b}
			p.mu.Lock()
			c, ok := p.m[pair]
			p.mu.Unlock()
			if !ok {
				var err error
				if c, err = cost(pair[:]); err != nil {
					return 0, err
				}
				p.mu.Lock()
				if p.m == nil {
					p.m = map[[2]int]float64{}
				}
				p.m[pair] = c
				p.mu.Unlock()
			}
			sum += c
		}
	}
	return 2 * sum / float64(len(group)), nil
}

func (s *stack) searchError(group []int) (float64, error) {
	if affordable(s.n, s.d) {
		return s.bestError(group)
	}
	return s.pairs.estimate(group, s.pairError)
}

// pairDirections are the directions of a head that pairs are compared in where heads have more channels.
const pairDirections = 32

// pairError is bestError of two heads in the leading directions of each, of which as many are kept as one head has.
func (s *stack) pairError(pair []int) (float64, error) {
	r := min(s.d, pairDirections)
	var reduced [2]*mat.Dense
	for i, j := range pair {
		s.mu.Lock()
		reduced[i] = s.reduced[j]
		s.mu.Unlock()
		if reduced[i] != nil {
			continue
		}
		_, v, err := leading(s.weighted(s.average(pair[i:i+1]), pair[i:i+1], s.root), r)
		if err != nil {
			return 0, err
		}
		reduced[i] = mat.NewDense(s.d, r, nil)
		reduced[i].Mul(s.root[j], v)
		s.mu.Lock()
		s.reduced[j] = reduced[i]
		s.mu.Unlock()
	}
	g := s.average(pair)
	small := mat.NewSymDense(2*r, nil)
	var t, b mat.Dense
	for i := range 2 {
		for j := i; j < 2; j++ {
			t.Mul(block(g, i, j, s.d), reduced[j])
			b.Mul(reduced[i].T(), &t)
			for p := range r {
				for q := range r {
					if j > i || q >= p {
						small.SetSym(i*r+p, j*r+q, b.At(p, q))
					}
				}
			}
		}
	}
	values, _, err := leading(small, r)
	if err != nil {
		return 0, err
	}
	e := mat.Trace(small)
	for _, v := range values {
		e -= v
	}
	return max(e, 0), nil
}

func (k *keys) searchError(group []int) (float64, error) {
	if k.metric == nil || affordable(k.n, k.d) {
		return k.bestError(group)
	}
	return k.pairs.estimate(group, k.bestError)
}

func (r rigid) searchError(group []int) (float64, error) { return r.bestError(group) }
