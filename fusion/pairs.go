package fusion

import (
	"math"

	"gonum.org/v1/gonum/mat"
)

// exactWork bounds the work, in nanoseconds of one core, of a search that fits every group it looks at. Above it costs are
// estimated, and groups are fitted as far as it matters: see corrected.
const exactWork = 3e10

// correctionWork bounds the same where costs are corrected, searches included.
const correctionWork = 1e10

// tableWork is that of one search over all subsets of h items, each a step of the dynamic programming.
func tableWork(h int) float64 {
	if h > exactHeads {
		return 0
	}
	return 4 * float64(h) * math.Pow(3, float64(h-1))
}

// searchWork is the work of fitting every group that a search for n groups of h items looks at, heads being the heads of
// all items.
func searchWork(work func(g int) float64, h, heads, n int) float64 {
	if h <= exactHeads {
		total, subsets := 0.0, 1.0
		for g := 1; g <= h; g++ {
			subsets *= float64(h-g+1) / float64(g)
			total += subsets * work(g*heads/h)
		}
		return total
	}
	const looks = 50 // per pair of items, over all starts of a descent
	return float64(looks*h*h) * work((heads+n-1)/n)
}

// fromPairs estimates the cost of a group from those of its pairs: (2/g)·Σ_{i<j} cost(i, j), which holds exactly for what
// a mean loses, Σ_h |h − mean|² = (1/g) Σ_{i<j} |h_i − h_j|².
func fromPairs(group []int, cost func(pair []int) (float64, error)) (float64, error) {
	sum := 0.0
	for i, a := range group {
		for _, b := range group[i+1:] {
			c, err := cost([]int{a, b})
			if err != nil {
				return 0, err
			}
			sum += c
		}
	}
	return 2 * sum / float64(len(group)), nil
}

// pairDirections are the directions of a head that pairs are compared in where heads have more channels.
const pairDirections = 32

// pairError is bestError in the leading directions of each head, of which as many are kept as one head has.
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
	return rest(small, r)
}

// work is that of the eigenvalues of all channels of a group, and of averaging what its readers see.
func (s *stack) work(g int) float64 {
	if g < 2 {
		return 0
	}
	n := float64(g * s.d)
	w := 0.55 * n * n * n
	if n > denseEigen && g >= 4 { // by subspace iteration
		w = 2 * n * n * float64(s.d)
	}
	if len(s.seen) > 1 {
		w += n * n * float64(g*len(s.seen)) / float64(s.n)
	}
	return w
}

func (k *keys) pairError(pair []int) (float64, error) { return k.bestError(pair) }

// work is that of eigenvalues of g × g for every frequency, or of a fit in the metric of the scores.
func (k *keys) work(g int) float64 {
	if g < 2 {
		return 0
	}
	w := 5 * float64(len(k.planes)) * math.Pow(float64(g), 3)
	if n := float64(g * k.d); k.metric != nil {
		w = searchRounds * (8*float64(g)*n*n + 0.08*n*n*n)
	}
	if k.free != nil {
		w += k.free.work(g)
	}
	return w
}

func (r rigid) pairError(pair []int) (float64, error) { return r.bestError(pair) }

// work is that of a system of g × g whose entries are products of heads.
func (r rigid) work(g int) float64 { return math.Pow(float64(g), 3) }
