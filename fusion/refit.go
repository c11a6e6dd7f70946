package fusion

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/mat"
)

// RefitOutput returns the output projection that fits the new heads best: O + (GᵀG + λI)⁻¹ Gᵀ(Y − G·O), ridge regression
// of what the block should give on what its new heads give, drawn towards the projection that it has instead of to zero.
//
// gram is E[gᵀg], [m, m], g the concatenated contexts of the query heads; cross is E[gᵀy], [m, out], y the output wanted:
// the original block's, plus the error that the residual stream has by now where layers are done in sequence; o is
// [m, out]. λ is in the unit of gram: RefitRidge gives one that suits. A last entry of g that is always 1 makes the last
// row of o an output bias.
func RefitOutput(gram *mat.SymDense, cross *mat.Dense, o *mat.Dense, lambda float64) (*mat.Dense, error) {
	m := gram.SymmetricDim()
	rows, out := o.Dims()
	if r, c := cross.Dims(); rows != m || r != m || c != out {
		return nil, fmt.Errorf("refit of the output: gram [%d, %d], cross [%d, %d] and projection [%d, %d] do not fit; want [m, m], [m, out], [m, out]",
			m, m, r, c, rows, out)
	}
	if !(lambda >= 0) || math.IsInf(lambda, 0) {
		return nil, fmt.Errorf("refit of the output: ridge %g; want a number that is not negative", lambda)
	}
	for _, a := range []mat.Matrix{gram, cross} {
		if err := finite(a); err != nil {
			return nil, fmt.Errorf("refit of the output: %w", err)
		}
	}
	residual := mat.NewDense(m, out, nil)
	residual.Mul(mat.DenseCopyOf(gram), o)
	residual.Sub(cross, residual)
	ridged := mat.NewSymDense(m, nil)
	ridged.CopySym(gram)
	for i := range m {
		ridged.SetSym(i, i, gram.At(i, i)+lambda)
	}
	var chol mat.Cholesky
	if !chol.Factorize(ridged) {
		return nil, fmt.Errorf("refit of the output: the statistics of %d head channels are singular with a ridge of %g; use more tokens or a larger ridge", m, lambda)
	}
	var step mat.Dense
	if err := chol.SolveTo(&step, residual); err != nil {
		if _, ok := err.(mat.Condition); !ok { // an ill-conditioned system is solved all the same; the ridge bounds the harm
			return nil, fmt.Errorf("refit of the output: %w", err)
		}
	}
	step.Add(o, &step)
	return &step, nil
}

// RefitRidge returns a λ that suits gram: 1e-3 of its mean diagonal.
func RefitRidge(gram *mat.SymDense) float64 {
	n := gram.SymmetricDim()
	return 1e-3 * mat.Trace(gram) / float64(n)
}

// finite returns an error that names the first entry that is not a number or infinite.
func finite(m mat.Matrix) error {
	rows, cols := m.Dims()
	for i := range rows {
		for j := range cols {
			if x := m.At(i, j); math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("entry [%d, %d] is %g; the model overflows on these data, or the data hold such values", i, j, x)
			}
		}
	}
	return nil
}
