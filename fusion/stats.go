package fusion

import (
	"fmt"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// Stats are second moments of the heads of one block, expectations over the calibration tokens that are not hidden. With
// x the input of the projections they are Wᵀ·E[xᵀx]·W; taken of the heads they are as small as the heads are, and nothing
// has to be multiplied by a moment of the width of the model. Heads are meant as projected, bias included, before any
// norm, rotation or scale: K key heads of d channels, V value heads of dv.
type Stats struct {
	Tokens float64
	// Query[h] is E[q_hᵀ q_h], [d, d], of query head h.
	Query []*mat.SymDense
	// Turned[f] is E[zᵀz], [2K, 2K], of the channels (a, b) that the rotary embedding turns together at frequency f: z is
	// a of every key head, then b of every key head. Frequencies follow the order of the channels.
	Turned []*mat.SymDense
	// Fixed is E[kᵀk], [K·r, K·r], of the r channels of each key head that are not turned, in their order; nil when all are.
	Fixed *mat.SymDense
	// FixedMean is E[k] of them: a softmax does not see what is the same in every key; nil when unknown.
	FixedMean []float64
	// Spread[h] is E_i Σ_j A_ij (k_j − k̄_i)ᵀ(k_j − k̄_i), [K·r, K·r], k̄_i = Σ_j A_ij k_j, of the same channels: how keys
	// differ where query head h looks. nil when unknown; Fixed less its mean stands for it.
	Spread []*mat.SymDense
	// Value is E[vᵀv], [V·dv, V·dv].
	Value *mat.SymDense
	// Attended[h] is E[(A_h v)ᵀ(A_h v)], [V·dv, V·dv]: values after the attention of query head h. One entry alone stands
	// for all heads (their mean: less memory where heads are many, a little less exact); none for Value.
	Attended []*mat.SymDense
	// AttendedMean[h] is E[A_h v], always one for each query head: what an output bias can take up; nil when unknown.
	AttendedMean [][]float64
	// Scores[h] and Outputs[h], [K·d, K·d], say what errors of keys do to query head h where a rotary embedding turns all
	// channels; a sample of query positions is enough (some 400 in all), nil when unknown. Let φ_ij be how the score of
	// query i and key j changes with a multiple of each key head's channels: for the pair (a, b) of channels of key head
	// m, turned keys k and the turned query q of head h,
	//
	//	φ[m·d+a] = q_a k_ma + q_b k_mb,  φ[m·d+b] = q_b k_ma − q_a k_mb
	//
	// (before any scale), and φ̄_i = Σ_j A_ij φ_ij. Scores is E_i Σ_j A_ij (φ_ij − φ̄_i)ᵀ(φ_ij − φ̄_i): twice the
	// divergence of the attention weights, to second order. Outputs is E_i M_i O_h O_hᵀ M_iᵀ with M_i = Σ_j A_ij
	// (φ_ij − φ̄_i)ᵀ v_j, [K·d, dv]: the energy of the change of the block's output, to first order.
	Scores, Outputs []*mat.SymDense
}

// check holds the statistics against the block's weights.
func (s *Stats) check(w *Weights) error {
	if s == nil || s.Value == nil {
		return fmt.Errorf("no statistics of the heads; calibrate first")
	}
	if !(s.Tokens > 0) {
		return fmt.Errorf("statistics over %g tokens; want at least one", s.Tokens)
	}
	pairs, rest, err := Channels(w.Rotary, w.HeadDim)
	if err != nil {
		return err
	}
	fixed, values, keys := w.KVHeads*len(rest), w.ValueHeads*w.ValueDim, w.KVHeads*w.HeadDim
	var rests []*mat.SymDense
	if s.Fixed != nil || fixed > 0 {
		rests = []*mat.SymDense{s.Fixed}
	}
	for _, m := range []struct {
		what string
		list []*mat.SymDense
		want []int // numbers of matrices that can be
		n    int
	}{
		{"queries", s.Query, []int{w.Heads}, w.HeadDim},
		{"turned keys", s.Turned, []int{len(pairs)}, 2 * w.KVHeads},
		{"keys that are not turned", rests, []int{min(1, fixed)}, fixed},
		{"spread of keys", s.Spread, []int{0, w.Heads}, fixed},
		{"values", []*mat.SymDense{s.Value}, []int{1}, values},
		{"attended values", s.Attended, []int{0, 1, w.Heads}, values},
		{"scores", s.Scores, []int{0, w.Heads}, keys},
		{"outputs", s.Outputs, []int{0, w.Heads}, keys},
	} {
		if !slices.Contains(m.want, len(m.list)) {
			return fmt.Errorf("statistics of the %s: %d matrices; want %d", m.what, len(m.list), m.want[len(m.want)-1])
		}
		for h, a := range m.list {
			if a == nil || a.SymmetricDim() != m.n {
				return fmt.Errorf("statistics of the %s, matrix %d: want [%d, %d]", m.what, h, m.n, m.n)
			}
			if err := finite(a); err != nil {
				return fmt.Errorf("statistics of the %s, matrix %d: %w", m.what, h, err)
			}
		}
	}
	means := s.AttendedMean
	if means != nil && len(means) != w.Heads {
		return fmt.Errorf("mean attended values of %d query heads; the block has %d", len(means), w.Heads)
	}
	for _, m := range means {
		if len(m) != values {
			return fmt.Errorf("a mean of %d attended channels; want %d", len(m), values)
		}
	}
	if s.FixedMean != nil && len(s.FixedMean) != fixed {
		return fmt.Errorf("a mean of %d channels of keys; want %d", len(s.FixedMean), fixed)
	}
	return nil
}

// counted returns the statistics with what errors of keys do to each query head multiplied by the head's importance; nil
// changes nothing.
func (s *Stats) counted(importance []float64) *Stats {
	if importance == nil {
		return s
	}
	out := *s
	for _, list := range []*[]*mat.SymDense{&out.Query, &out.Scores, &out.Outputs} {
		var scaled []*mat.SymDense
		for h, m := range *list {
			x := mat.NewSymDense(m.SymmetricDim(), nil)
			x.ScaleSym(importance[h], m)
			scaled = append(scaled, x)
		}
		*list = scaled
	}
	return &out
}

// Bytes is about what the statistics take in memory.
func (s *Stats) Bytes() (n int64) {
	for _, list := range [][]*mat.SymDense{s.Query, s.Turned, s.Spread, s.Attended, s.Scores, s.Outputs, {s.Fixed, s.Value}} {
		for _, m := range list {
			if m != nil {
				n += 8 * int64(m.SymmetricDim()) * int64(m.SymmetricDim())
			}
		}
	}
	return n
}
