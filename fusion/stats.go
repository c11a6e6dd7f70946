package fusion

import (
	"fmt"

	"gonum.org/v1/gonum/mat"
)

// Stats are the statistics of one block over the calibration tokens, expectations over tokens that are not hidden. x is
// the input of the key and value projections, with a constant 1 appended when one of the block's projections has a
// bias, so that biases are weights of that last entry; n = len(x).
type Stats struct {
	Tokens float64
	// Input is E[xᵀx], [n, n].
	Input *mat.SymDense
	// Query[h] is E[q_hᵀ q_h], [d, d]: queries of head h as projected, bias included, before any rotation or scale.
	Query []*mat.SymDense
	// Attended[h] is E[(A_h x)ᵀ (A_h x)], [n, n]: what value head inputs look like after the attention of query head h.
	// One entry alone stands for all heads (their mean: less memory for large n, a little less exact); none for Input.
	Attended []*mat.SymDense
	// Mean is E[x], for inputs without the constant 1 (which gives it otherwise); nil when unknown. It tells what part
	// of a key is the same at every position, which a softmax does not see when no rotary embedding turns it.
	Mean []float64
	// Weighed[h] is E_i Σ_j A_ij x_jᵀ x_j, [n, n]: the inputs as the attention of query head h weighs them, so that
	// Weighed − Attended is the mean covariance of what one query attends to; nil when unknown. It serves keys that no
	// rotary embedding turns.
	Weighed []*mat.SymDense
	// Scores[h] and Outputs[h], [KVHeads·d, KVHeads·d], say what errors of keys do to query head h where a rotary
	// embedding turns all channels; a sample of query positions is enough (some 400 in all), nil when unknown. Let φ_ij be
	// how the score of query i and key j changes with a multiple of each key head's channels: for the pair (a, b) of
	// channels of key head m, turned keys k and the turned query q of head h,
	//
	//	φ[m·d+a] = q_a k_ma + q_b k_mb,  φ[m·d+b] = q_b k_ma − q_a k_mb
	//
	// (before any scale), and φ̄_i = Σ_j A_ij φ_ij. Scores is E_i Σ_j A_ij (φ_ij − φ̄_i)ᵀ(φ_ij − φ̄_i): twice the
	// divergence of the attention weights, to second order. Outputs is E_i M_i O_h O_hᵀ M_iᵀ with M_i = Σ_j A_ij
	// (φ_ij − φ̄_i)ᵀ v_j, [KVHeads·d, dv]: the energy of the change of the block's output, to first order.
	Scores, Outputs []*mat.SymDense
}

// check holds the statistics against the block's weights.
func (s *Stats) check(w *Weights) error {
	if s == nil || s.Input == nil {
		return fmt.Errorf("no statistics of the input; calibrate first")
	}
	if !(s.Tokens > 0) {
		return fmt.Errorf("statistics over %g tokens; want at least one", s.Tokens)
	}
	if len(s.Query) != w.Heads {
		return fmt.Errorf("statistics of %d query heads; the block has %d", len(s.Query), w.Heads)
	}
	if n := len(s.Attended); n > 1 && n != w.Heads {
		return fmt.Errorf("attended inputs of %d query heads; the block has %d", n, w.Heads)
	}
	for _, f := range []struct {
		what string
		n    int
	}{{"weighed inputs", len(s.Weighed)}, {"scores", len(s.Scores)}, {"outputs", len(s.Outputs)}} {
		if f.n > 0 && f.n != w.Heads {
			return fmt.Errorf("statistics of the %s of %d query heads; the block has %d", f.what, f.n, w.Heads)
		}
	}
	n, keys := s.Input.SymmetricDim(), w.KVHeads*w.HeadDim
	if s.Mean != nil && len(s.Mean) != n {
		return fmt.Errorf("a mean input of %d entries beside moments of %d", len(s.Mean), n)
	}
	for _, m := range []struct {
		what string
		list []*mat.SymDense
		n    int
	}{{"input", []*mat.SymDense{s.Input}, n}, {"queries", s.Query, w.HeadDim}, {"attended inputs", s.Attended, n},
		{"weighed inputs", s.Weighed, n}, {"scores", s.Scores, keys}, {"outputs", s.Outputs, keys}} {
		for h, a := range m.list {
			if a == nil || a.SymmetricDim() != m.n {
				return fmt.Errorf("statistics of the %s, matrix %d: want [%d, %d]", m.what, h, m.n, m.n)
			}
			if err := finite(a); err != nil {
				return fmt.Errorf("statistics of the %s, matrix %d: %w", m.what, h, err)
			}
		}
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
