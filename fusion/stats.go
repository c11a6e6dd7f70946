package fusion

import "gonum.org/v1/gonum/mat"

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
	Attended []*mat.SymDense
}
