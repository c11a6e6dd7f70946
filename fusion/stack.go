package fusion

import (
	"fmt"
	"math"
	"sync"

	"gonum.org/v1/gonum/mat"
)

// stack are heads whose channels may be mixed freely: values, and keys (or channels of keys) without a rotary embedding.
//
// Reader r of head j sees the error e of that head with energy tr(E[eᵀe]·W_r): W_r = O_r O_rᵀ for values (their output
// projection), E[q_rᵀ q_r] for keys, and E over what reader r attends to.
type stack struct {
	n, d    int
	reads   [][]int
	weight  []*mat.SymDense // W_r
	seen    []*mat.SymDense // E[hᵀh] of all heads side by side, [n·d, n·d], by reader; or one for all
	plain   *mat.SymDense   // the same, before attention
	root    []*mat.Dense    // of head j: (Σ_r W_r)^{1/2}
	inverse []*mat.Dense    // and its pseudo-inverse
	inners  innerTable
	mu      sync.Mutex
	reduced []*mat.Dense // by head; see pairError
}

// newStack takes what readers see of all heads (by reader, or one for all), and the same before attention.
func newStack(d int, reads [][]int, weight, seen []*mat.SymDense, plain *mat.SymDense) (*stack, error) {
	s := &stack{n: len(reads), d: d, reads: reads, weight: weight, seen: seen, plain: plain, reduced: make([]*mat.Dense, len(reads))}
	for j := range s.n {
		sum := mat.NewSymDense(d, nil)
		for _, r := range reads[j] {
			sum.AddSym(sum, weight[r])
		}
		root, inverse, err := roots(sum)
		if err != nil {
			return nil, fmt.Errorf("head %d: %w", j, err)
		}
		s.root, s.inverse = append(s.root, root), append(s.inverse, inverse)
	}
	return s, nil
}

func (s *stack) heads() int { return s.n }

func (s *stack) seenBy(r int) *mat.SymDense {
	if len(s.seen) == 1 {
		return s.seen[0]
	}
	return s.seen[r]
}

// of cuts the channels of a group out of moments of all heads.
func (s *stack) of(g *mat.SymDense, group []int) *mat.SymDense {
	d := s.d
	out := mat.NewSymDense(len(group)*d, nil)
	for i, a := range group {
		for j, b := range group[i:] {
			for p := range d {
				q0 := 0
				if j == 0 {
					q0 = p
				}
				for q := q0; q < d; q++ {
					out.SetSym(i*d+p, (i+j)*d+q, g.At(a*d+p, b*d+q))
				}
			}
		}
	}
	return out
}

// average is what the readers of a group see, mean over them.
func (s *stack) average(group []int) *mat.SymDense {
	if len(s.seen) == 1 {
		return s.of(s.seen[0], group)
	}
	out := mat.NewSymDense(len(group)*s.d, nil)
	count := 0.0
	for _, j := range group {
		for _, r := range s.reads[j] {
			out.AddSym(out, s.of(s.seen[r], group))
			count++
		}
	}
	if count > 0 {
		out.ScaleSym(1/count, out)
	}
	return out
}

// weighted returns NᵀGN for the block-diagonal N of the group's roots.
func (s *stack) weighted(g *mat.SymDense, group []int, roots []*mat.Dense) *mat.SymDense {
	d := s.d
	out := mat.NewSymDense(len(group)*d, nil)
	var t, b mat.Dense
	for i := range group {
		for j := i; j < len(group); j++ {
			t.Mul(block(g, i, j, d), roots[group[j]])
			b.Mul(roots[group[i]].T(), &t)
			for p := range d {
				for q := range d {
					if j > i || q >= p {
						out.SetSym(i*d+p, j*d+q, b.At(p, q))
					}
				}
			}
		}
	}
	return out
}

// best is the rank-d approximation of the group's heads side by side, [h_1 N_1 … h_g N_g] with N_j N_jᵀ = Σ_r W_r, where
// the readers look: the leading eigenvectors Y of NᵀGN give fused = Σ_j h_j N_j Y_j and h_j ≈ fused · Y_jᵀ N_j⁺. For
// values that is the truncated singular value decomposition of [W_v^1 O_1 … W_v^g O_g] in the metric G: with a shared
// value head and the output projection free, no other choice has a smaller error (Eckart-Young), so neither a mean nor a
// rotation of heads onto each other. Given the fused head, each reader's map is then the least-squares one in its own
// metric.
func (s *stack) best(group []int) (*mixture, error) {
	g := s.average(group)
	m, err := s.truncated(g, group, s.root, s.inverse)
	if err != nil || len(group) == 1 {
		return m, err
	}
	return m, s.refine(m, group)
}

// principal is the truncated singular value decomposition of the heads' outputs themselves (Yu et al. 2024, arXiv
// 2406.07056: the first d principal directions of the caches of a group side by side).
func (s *stack) principal(group []int) (*mixture, error) {
	eye := make([]*mat.Dense, s.n)
	for _, j := range group {
		eye[j] = scaledIdentity(s.d, 1)
	}
	return s.truncated(s.of(s.plain, group), group, eye, eye)
}

func (s *stack) principalError(group []int) (float64, error) {
	if len(group) == 1 {
		return 0, nil
	}
	return rest(s.of(s.plain, group), s.d)
}

// truncated keeps the d leading directions of NᵀGN.
func (s *stack) truncated(g *mat.SymDense, group []int, roots, inverses []*mat.Dense) (*mixture, error) {
	if len(group) == 1 {
		return scalarMixture([]float64{1}), nil
	}
	d := s.d
	values, y, err := leading(s.weighted(g, group, roots), d)
	if err != nil {
		return nil, err
	}
	// The fused head is scaled to the mean energy of the heads that it stands for: a cache of half precision keeps its
	// range.
	have, want := 0.0, 0.0
	for _, v := range values {
		have += max(v, 0)
	}
	m := &mixture{weights: make([]float64, len(group))}
	for i, j := range group {
		yj := mat.DenseCopyOf(y.Slice(i*d, (i+1)*d, 0, d))
		for c, v := range values {
			for p := range d {
				m.weights[i] += max(v, 0) * yj.At(p, c) * yj.At(p, c)
			}
		}
		mix, read := mat.NewDense(d, d, nil), mat.NewDense(d, d, nil)
		mix.Mul(roots[j], yj)
		read.Mul(yj.T(), inverses[j])
		m.mix = append(m.mix, mix)
		m.read = append(m.read, repeat(read, len(s.reads[j])))
		for c := range d {
			want += g.At(i*d+c, i*d+c) / float64(len(group))
		}
	}
	m.weights = shares(m.weights)
	// have is the energy of the fused head: the values are those of its channels
	if have > 0 && want > 0 {
		gain := math.Sqrt(want / have)
		for i := range group {
			m.mix[i].Scale(gain, m.mix[i])
			for r := range m.read[i] {
				m.read[i][r].Scale(1/gain, m.read[i][r])
			}
		}
	}
	return m, nil
}

// refine replaces the maps of the readers by (FᵀG_rF)⁻¹ FᵀG_r h_j, F the fused head and G_r what reader r sees.
func (s *stack) refine(m *mixture, group []int) error {
	if len(s.seen) == 1 {
		return nil // the truncation is the least-squares map already
	}
	d := s.d
	f := stacked(m.mix)
	for i, j := range group {
		for k, r := range s.reads[j] {
			g := s.of(s.seenBy(r), group)
			var gf, inner mat.Dense
			gf.Mul(g, f)
			inner.Mul(f.T(), &gf)
			gram := symmetric(&inner)
			ridge := 1e-9 * mat.Trace(gram) / float64(d)
			for c := range d {
				gram.SetSym(c, c, gram.At(c, c)+ridge)
			}
			var chol mat.Cholesky
			if ridge == 0 || !chol.Factorize(gram) {
				continue // this reader sees nothing of the fused head: any map does
			}
			read := mat.NewDense(d, d, nil)
			if err := chol.SolveTo(read, gf.Slice(i*d, (i+1)*d, 0, d).T()); err != nil {
				if _, ok := err.(mat.Condition); !ok {
					return fmt.Errorf("readout of head %d: %w", j, err)
				}
			}
			m.read[i][k] = read
		}
	}
	return nil
}

func (s *stack) bestError(group []int) (float64, error) {
	if len(group) == 1 {
		return 0, nil
	}
	return rest(s.weighted(s.average(group), group, s.root), s.d)
}

func (s *stack) residual(group []int, m *mixture) (float64, error) {
	d := s.d
	mixes := make([]*mat.Dense, len(group))
	for i := range group {
		mixes[i] = m.mixOf(i, d)
	}
	f := stacked(mixes)
	total := 0.0
	var shared *mat.SymDense
	if len(s.seen) == 1 {
		shared = s.of(s.seen[0], group)
	}
	for i, j := range group {
		for k, r := range s.reads[j] {
			g := shared
			if g == nil {
				g = s.of(s.seen[r], group)
			}
			e := mat.NewDense(len(group)*d, d, nil) // error = heads · e
			e.Mul(f, m.readOf(i, k, d))
			e.Scale(-1, e)
			for c := range d {
				e.Set(i*d+c, c, e.At(i*d+c, c)+1)
			}
			var ge, ege mat.Dense
			ge.Mul(g, e)
			ege.Mul(e.T(), &ge)
			total += product(&ege, s.weight[r])
		}
	}
	return max(total, 0), nil
}

func (s *stack) inner(h, i, j int) float64 {
	return s.inners.at(s.n, h, i, j, func(h, i, j int) (x float64) {
		for _, r := range s.reads[h] {
			x += product(block(s.seenBy(r), i, j, s.d), s.weight[r])
		}
		return x
	})
}

func (s *stack) energy(i int) float64 { return mat.Trace(block(s.plain, i, i, s.d)) }

func (s *stack) similarity(i, j int, aligned bool) (float64, error) {
	cross := block(s.plain, i, j, s.d)
	norm := math.Sqrt(s.energy(i) * s.energy(j))
	if norm == 0 {
		return 0, nil
	}
	if !aligned {
		return mat.Trace(cross) / norm, nil
	}
	// the sum of the singular values
	var squared mat.SymDense
	squared.SymOuterK(1, cross)
	var e mat.EigenSym
	if !e.Factorize(&squared, false) {
		return 0, fmt.Errorf("singular values of the products of heads %d and %d were not found", i, j)
	}
	sum := 0.0
	for _, v := range e.Values(nil) {
		sum += math.Sqrt(max(v, 0))
	}
	return sum / norm, nil
}

// aligned is generalised Procrustes (Align Attention Heads Before Merging Them, arXiv 2412.20677 §3): orthogonal P_j =
// UVᵀ from the singular value decomposition of E[h_jᵀ t], first with the first head for target t, then with the mean of
// the turned heads, until nothing is gained. The mean is scaled to the heads' mean norm (a mean of g heads of pairwise
// similarity c has √((1 + (g−1)c)/g) of it).
func (s *stack) aligned(group []int) (*mixture, error) {
	if len(group) == 1 {
		return scalarMixture([]float64{1}), nil
	}
	d, g := s.d, s.of(s.plain, group)
	turn := make([]*mat.Dense, len(group))
	for i := range turn {
		turn[i] = scaledIdentity(d, 1)
	}
	target := stackedOnly(0, len(group), d)
	last := -1.0
	for range 100 {
		gain := 0.0
		for i := range group {
			var cross mat.Dense
			cross.Mul(g.SliceSym(0, len(group)*d).(*mat.SymDense), target)
			part := mat.DenseCopyOf(cross.Slice(i*d, (i+1)*d, 0, d))
			var svd mat.SVD
			if !svd.Factorize(part, mat.SVDFull) {
				return nil, fmt.Errorf("alignment of head %d: singular values were not found", group[i])
			}
			var u, v mat.Dense
			svd.UTo(&u)
			svd.VTo(&v)
			turn[i].Mul(&u, v.T())
			for _, x := range svd.Values(nil) {
				gain += x
			}
		}
		target = stacked(turn)
		target.Scale(1/float64(len(group)), target)
		if gain-last <= 1e-7*gain {
			break
		}
		last = gain
	}
	var gt, tgt mat.Dense
	gt.Mul(g, target)
	tgt.Mul(target.T(), &gt)
	gain := 1.0
	if have := mat.Trace(&tgt); have > 0 {
		want := 0.0
		for _, j := range group {
			want += math.Sqrt(s.energy(j)) / float64(len(group))
		}
		gain = want / math.Sqrt(have)
	}
	m := &mixture{weights: shares(make([]float64, len(group)))}
	for i, j := range group {
		mix := mat.DenseCopyOf(turn[i])
		mix.Scale(gain/float64(len(group)), mix)
		m.mix = append(m.mix, mix)
		m.read = append(m.read, repeat(mat.DenseCopyOf(turn[i].T()), len(s.reads[j])))
	}
	return m, nil
}

// stacked puts matrices above one another.
func stacked(ms []*mat.Dense) *mat.Dense {
	r, c := ms[0].Dims()
	out := mat.NewDense(len(ms)*r, c, nil)
	for i, m := range ms {
		out.Slice(i*r, (i+1)*r, 0, c).(*mat.Dense).Copy(m)
	}
	return out
}

// stackedOnly is the mixture that is head i alone.
func stackedOnly(i, n, d int) *mat.Dense {
	out := mat.NewDense(n*d, d, nil)
	for c := range d {
		out.Set(i*d+c, c, 1)
	}
	return out
}

// repeat returns n copies of m.
func repeat(m *mat.Dense, n int) []*mat.Dense {
	out := make([]*mat.Dense, n)
	for i := range out {
		out[i] = mat.DenseCopyOf(m)
	}
	return out
}

// product returns Σ a·b over entries, tr(abᵀ).
func product(a, b mat.Matrix) (sum float64) {
	rows, cols := a.Dims()
	for i := range rows {
		for j := range cols {
			sum += a.At(i, j) * b.At(i, j)
		}
	}
	return sum
}
