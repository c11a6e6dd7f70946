package fusion

import (
	"math"
	"math/cmplx"

	"gonum.org/v1/gonum/mat"
)

// keys are the key heads of a block. A pair of channels that the rotary embedding turns together is one complex number
// z_hf = a + ib per head h and frequency f. What may be done to it after the cache is what commutes with the turning, a
// multiplication by a complex number; channels that are not turned may be mixed freely.
//
// The score of a query q and a key in error by e is in error by Re(q ē e^{iφ}), φ the turn between their positions: over
// φ its energy is ½|q|²|e|², so that the metric of a frequency is ½E|q_hf|², summed over the query heads that read the
// key head. Scores are meant before their scale.
type keys struct {
	n, d   int
	planes [][2]int // the pairs of channels, by frequency
	rest   []int
	reads  [][]int
	turned []hermitian // of frequency f: E[z_i z̄_j]
	lambda [][]float64 // [head][frequency]: ½ Σ E|q|²
	free   *stack      // the channels that are not turned; nil without any
	// metric takes the place of lambda where the statistics have it and all channels are turned; nil otherwise.
	metric *scoreMetric
	inners innerTable
}

func newKeys(w *Weights, s *Stats) (*keys, error) {
	pairs, rest, err := Channels(w.Rotary, w.HeadDim)
	if err != nil {
		return nil, err
	}
	k := &keys{n: w.KVHeads, d: w.HeadDim, planes: pairs, rest: rest, reads: readers(w.KeyOf, w.KVHeads)}
	for _, g := range s.Turned {
		z := newHermitian(k.n)
		for i := range k.n {
			for j := range i + 1 {
				at := func(a, b int) float64 { return g.At(a*k.n+i, b*k.n+j) }
				x := complex(at(0, 0)+at(1, 1), at(1, 0)-at(0, 1))
				if i == j {
					x = complex(real(x), 0)
				}
				z.set(i, j, x)
				z.set(j, i, cmplx.Conj(x))
			}
		}
		k.turned = append(k.turned, z)
	}
	k.lambda = make([][]float64, k.n)
	for h, reads := range k.reads {
		k.lambda[h] = make([]float64, len(pairs))
		for f, p := range pairs {
			for _, r := range reads {
				k.lambda[h][f] += (s.Query[r].At(p[0], p[0]) + s.Query[r].At(p[1], p[1])) / 2
			}
		}
	}
	if len(rest) == 0 {
		k.metric, err = newScoreMetric(k, s)
		return k, err
	}
	var weight []*mat.SymDense
	for _, q := range s.Query {
		weight = append(weight, chosen(q, rest))
	}
	seen := s.Spread
	switch {
	case seen != nil:
	case s.FixedMean != nil:
		seen = []*mat.SymDense{centred(s.Fixed, [][]float64{s.FixedMean})}
	default:
		seen = []*mat.SymDense{s.Fixed}
	}
	k.free, err = newStack(len(rest), k.reads, weight, seen, s.Fixed)
	return k, err
}

// chosen is the sub-matrix of the given rows and columns.
func chosen(a *mat.SymDense, at []int) *mat.SymDense {
	out := mat.NewSymDense(len(at), nil)
	for i, p := range at {
		for j := i; j < len(at); j++ {
			out.SetSym(i, j, a.At(p, at[j]))
		}
	}
	return out
}

func (k *keys) heads() int { return k.n }

// weighted is the Gram matrix of the group's keys at frequency f, head h times scale(h).
func (k *keys) weighted(f int, group []int, scale func(h int) float64) hermitian {
	g := newHermitian(len(group))
	for i, a := range group {
		for j, b := range group {
			g.set(i, j, k.turned[f].at(a, b)*complex(scale(a)*scale(b), 0))
		}
	}
	return g
}

// best is, for each frequency, the rank-1 approximation of the matrix with rows s_h z_h, s_h = √λ_h: with u the leading
// eigenvector of its Gram matrix, the fused key is c = Σ_h ū_h s_h z_h and head h's key ≈ (u_h/s_h)·c. It holds every
// mean, weighted mean and alignment by phases. The channels that are not turned are mixed as those of a stack.
//
// That is exact for the energy by frequency. With a metric of the scores it is where the fit starts.
func (k *keys) best(group []int) (*mixture, error) {
	m, err := k.closed(group)
	if err != nil || k.metric == nil || len(group) == 1 {
		return m, err
	}
	_, err = k.metric.improve(k, group, m, 1e-5, 60)
	return m, err
}

func (k *keys) closed(group []int) (*mixture, error) {
	return k.rankOne(group, func(h, f int) float64 { return math.Sqrt(k.lambda[h][f]) }, (*stack).best)
}

// principal is best for queries that look everywhere alike: the principal component of the keys themselves, among what
// folds. The unrestricted principal directions of rotated keys (arXiv 2406.07056 §3.4) do not commute with the rotation.
func (k *keys) principal(group []int) (*mixture, error) {
	return k.rankOne(group, func(int, int) float64 { return 1 }, (*stack).principal)
}

func (k *keys) rankOne(group []int, scale func(h, f int) float64, free func(*stack, []int) (*mixture, error)) (*mixture, error) {
	if len(group) == 1 {
		return scalarMixture([]float64{1}), nil
	}
	m := k.empty(group)
	for f := range k.planes {
		value, u, err := k.weighted(f, group, func(h int) float64 { return scale(h, f) }).top()
		if err != nil {
			return nil, err
		}
		// c is scaled to the mean energy of the heads, so that a cache of half precision keeps its range.
		energy := 0.0
		for _, h := range group {
			energy += real(k.turned[f].at(h, h)) / float64(len(group))
		}
		gain := 1.0
		if value > 0 && energy > 0 {
			gain = math.Sqrt(energy / value)
		}
		for i, h := range group {
			s := scale(h, f)
			from := cmplx.Conj(u[i]) * complex(s*gain, 0)
			to := complex128(0)
			if s > 0 {
				to = u[i] / complex(s*gain, 0)
			}
			k.put(m, f, i, from, to)
			m.weights[i] += (real(u[i])*real(u[i]) + imag(u[i])*imag(u[i])) * 2
		}
	}
	if k.free != nil {
		part, err := free(k.free, group)
		if err != nil {
			return nil, err
		}
		k.insert(m, group, part)
	}
	m.weights = shares(m.weights)
	return m, nil
}

// empty is a mixture of zeros.
func (k *keys) empty(group []int) *mixture {
	m := &mixture{weights: make([]float64, len(group))}
	for _, h := range group {
		m.mix = append(m.mix, mat.NewDense(k.d, k.d, nil))
		m.read = append(m.read, repeat(mat.NewDense(k.d, k.d, nil), len(k.reads[h])))
	}
	return m
}

// put sets what frequency f of the i-th head gives to the fused key and takes from it: multiplications by a complex
// number p + iq, [[p, q], [−q, p]] on a row (a, b).
func (k *keys) put(m *mixture, f, i int, from, to complex128) {
	set := func(x *mat.Dense, z complex128) {
		a, b := k.planes[f][0], k.planes[f][1]
		x.Set(a, a, real(z))
		x.Set(a, b, imag(z))
		x.Set(b, a, -imag(z))
		x.Set(b, b, real(z))
	}
	set(m.mix[i], from)
	for _, r := range m.read[i] {
		set(r, to)
	}
}

// insert adds the mixture of the channels that are not turned.
func (k *keys) insert(m *mixture, group []int, part *mixture) {
	d := len(k.rest)
	set := func(to, from *mat.Dense) {
		for i, a := range k.rest {
			for j, b := range k.rest {
				to.Set(a, b, from.At(i, j))
			}
		}
	}
	for i, h := range group {
		set(m.mix[i], part.mixOf(i, d))
		for r := range k.reads[h] {
			set(m.read[i][r], part.readOf(i, r, d))
		}
		m.weights[i] += part.weights[i] * float64(d)
	}
}

// searchRounds bounds the rounds of the fit of a group that a search looks at.
const searchRounds = 8

func (k *keys) bestError(group []int) (float64, error) {
	if len(group) == 1 {
		return 0, nil
	}
	if k.metric != nil {
		m, err := k.closed(group)
		if err != nil {
			return 0, err
		}
		return k.metric.improve(k, group, m, 1e-2, searchRounds)
	}
	return k.closedError(group, func(h, f int) float64 { return math.Sqrt(k.lambda[h][f]) }, (*stack).bestError)
}

func (k *keys) principalError(group []int) (float64, error) {
	if len(group) == 1 {
		return 0, nil
	}
	return k.closedError(group, func(int, int) float64 { return 1 }, (*stack).principalError)
}

// closedError is what the rank-1 approximations leave.
func (k *keys) closedError(group []int, scale func(h, f int) float64, free func(*stack, []int) (float64, error)) (float64, error) {
	g := len(group)
	total, work := 0.0, make([]complex128, 2*g*g)
	a, s := newHermitian(g), make([]float64, g)
	for f := range k.planes {
		for i, h := range group {
			s[i] = scale(h, f)
		}
		for i, p := range group {
			for j, q := range group[:i+1] {
				x := k.turned[f].at(p, q) * complex(s[i]*s[j], 0)
				a.set(i, j, x)
				a.set(j, i, cmplx.Conj(x))
			}
		}
		total += max(a.trace()-a.topValue(work), 0)
	}
	if k.free != nil {
		e, err := free(k.free, group)
		if err != nil {
			return 0, err
		}
		total += e
	}
	return total, nil
}

// factors reads back the complex numbers of a mixture.
func (k *keys) factors(m *mixture, f, i int) (from, to complex128) {
	if m.scalar() {
		return complex(m.weights[i], 0), 1
	}
	a, b := k.planes[f][0], k.planes[f][1]
	from = complex(m.mix[i].At(a, a), m.mix[i].At(a, b))
	to = complex(m.read[i][0].At(a, a), m.read[i][0].At(a, b))
	return from, to
}

func (k *keys) residual(group []int, m *mixture) (float64, error) {
	if k.metric != nil {
		return k.metric.residual(k, group, m), nil
	}
	total := 0.0
	e := make([]complex128, len(group)) // error of one head = Σ_j e_j z_j
	for f := range k.planes {
		for i, h := range group {
			if len(k.reads[h]) == 0 {
				continue
			}
			_, to := k.factors(m, f, i)
			for j := range group {
				from, _ := k.factors(m, f, j)
				e[j] = -from * to
			}
			e[i]++
			sum := complex128(0)
			for p, a := range group {
				for q, b := range group {
					sum += e[p] * k.turned[f].at(a, b) * cmplx.Conj(e[q])
				}
			}
			total += k.lambda[h][f] * real(sum)
		}
	}
	if k.free != nil {
		r, err := k.free.residual(group, k.part(m, group))
		if err != nil {
			return 0, err
		}
		total += r
	}
	return max(total, 0), nil
}

// part is the mixture of the channels that are not turned.
func (k *keys) part(m *mixture, group []int) *mixture {
	if m.scalar() {
		return m
	}
	get := func(from *mat.Dense) *mat.Dense {
		to := mat.NewDense(len(k.rest), len(k.rest), nil)
		for i, a := range k.rest {
			for j, b := range k.rest {
				to.Set(i, j, from.At(a, b))
			}
		}
		return to
	}
	out := &mixture{weights: m.weights}
	for i, h := range group {
		out.mix = append(out.mix, get(m.mix[i]))
		var reads []*mat.Dense
		for r := range k.reads[h] {
			reads = append(reads, get(m.read[i][r]))
		}
		out.read = append(out.read, reads)
	}
	return out
}

func (k *keys) inner(h, i, j int) float64 {
	return k.inners.at(k.n, h, i, j, func(h, i, j int) (x float64) {
		if k.metric != nil {
			return k.metric.inner(h, i, j)
		}
		for f := range k.planes {
			x += k.lambda[h][f] * real(k.turned[f].at(i, j))
		}
		if k.free != nil {
			x += k.free.inner(h, i, j)
		}
		return x
	})
}

func (k *keys) energy(i int) (x float64) {
	for f := range k.planes {
		x += real(k.turned[f].at(i, i))
	}
	if k.free != nil {
		x += k.free.energy(i)
	}
	return x
}

func (k *keys) similarity(i, j int, aligned bool) (float64, error) {
	norm := math.Sqrt(k.energy(i) * k.energy(j))
	if norm == 0 {
		return 0, nil
	}
	x := 0.0
	for f := range k.planes {
		if z := k.turned[f].at(i, j); aligned {
			x += cmplx.Abs(z)
		} else {
			x += real(z)
		}
	}
	if k.free != nil {
		part, err := k.free.similarity(i, j, aligned)
		if err != nil {
			return 0, err
		}
		x += part * math.Sqrt(k.free.energy(i)*k.free.energy(j))
	}
	return x / norm, nil
}

// aligned turns every head's pairs by the phase φ = arg Σ conj(z_h) t that brings them nearest to a target t, first the
// first head, then the mean of the turned heads (arXiv 2412.20677, whose 2×2 Procrustes with positive determinant is this
// phase); the fused key is their mean, scaled to their mean norm.
func (k *keys) aligned(group []int) (*mixture, error) {
	if len(group) == 1 {
		return scalarMixture([]float64{1}), nil
	}
	m := k.empty(group)
	n := float64(len(group))
	have, want := 0.0, 0.0
	phases := make([][]complex128, len(k.planes))
	for f := range k.planes {
		g := k.weighted(f, group, func(int) float64 { return 1 })
		turn := make([]complex128, len(group))
		target := make([]complex128, len(group))
		target[0] = 1
		last := -1.0
		for range 100 {
			gain := 0.0
			for i := range group {
				// Σ conj(z_i) t over tokens, t = Σ_j target_j z_j
				cross := complex128(0)
				for j, t := range target {
					cross += t * g.at(j, i)
				}
				turn[i] = 1
				if a := cmplx.Abs(cross); a > 0 {
					turn[i] = cross / complex(a, 0)
					gain += a
				}
			}
			for i := range target {
				target[i] = turn[i] / complex(n, 0)
			}
			if gain-last <= 1e-9*gain {
				break
			}
			last = gain
		}
		phases[f] = turn
		for i := range group {
			for j := range group {
				have += real(target[i] * g.at(i, j) * cmplx.Conj(target[j]))
			}
		}
	}
	for _, h := range group {
		turnedEnergy := k.energy(h)
		if k.free != nil {
			turnedEnergy -= k.free.energy(h)
		}
		want += math.Sqrt(max(turnedEnergy, 0)) / n
	}
	gain := 1.0
	if have > 0 {
		gain = want / math.Sqrt(have)
	}
	for f, turn := range phases {
		for i := range group {
			k.put(m, f, i, turn[i]*complex(gain/n, 0), cmplx.Conj(turn[i]))
		}
	}
	if k.free != nil {
		part, err := k.free.aligned(group)
		if err != nil {
			return nil, err
		}
		k.insert(m, group, part)
	}
	m.weights = shares(make([]float64, len(group)))
	return m, nil
}
