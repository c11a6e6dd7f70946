package fusion

import (
	"slices"

	"gonum.org/v1/gonum/mat"
)

// fold turns mixtures into weights: what heads are made of goes into their projections (and biases), what their readers
// do with them into the queries, q·readᵀ, and into the rows of the output projection, read·O. It returns nil when all
// mixtures are scalar, since the fusion's weights then say everything.
func fold(p *Problem, keyGroups [][]int, keys []*mixture, valueGroups [][]int, values []*mixture) *Learned {
	w, l := p.W, &Learned{}
	scalar := func(m *mixture) bool { return m.scalar() }
	keyScalar, valueScalar := !slices.ContainsFunc(keys, not(scalar)), !slices.ContainsFunc(values, not(scalar))
	if keyScalar && valueScalar {
		return nil
	}
	if !keyScalar {
		d := w.HeadDim
		l.Key = mixed(w.Key, d, keyGroups, keys)
		if w.KeyBias != nil {
			l.KeyBias = mixed(row(w.KeyBias), d, keyGroups, keys).RawRowView(0)
		}
		l.Query = mat.DenseCopyOf(w.Query)
		l.QueryBias = slices.Clone(w.QueryBias)
		turn := func(to, from *mat.Dense) {
			rows, _ := from.Dims()
			eachReader(keyGroups, keys, readers(w.KeyOf, w.KVHeads), d, func(q int, read *mat.Dense) {
				to.Slice(0, rows, q*d, (q+1)*d).(*mat.Dense).Mul(from.Slice(0, rows, q*d, (q+1)*d), read.T())
			})
		}
		turn(l.Query, w.Query)
		if w.QueryBias != nil {
			turn(row(l.QueryBias), row(w.QueryBias))
		}
	}
	if !valueScalar {
		d := w.ValueDim
		l.Value = mixed(w.Value, d, valueGroups, values)
		if w.ValueBias != nil {
			l.ValueBias = mixed(row(w.ValueBias), d, valueGroups, values).RawRowView(0)
		}
		l.Output = mat.DenseCopyOf(w.Output)
		_, out := w.Output.Dims()
		eachReader(valueGroups, values, readers(w.ValueOf, w.ValueHeads), d, func(q int, read *mat.Dense) {
			l.Output.Slice(q*d, (q+1)*d, 0, out).(*mat.Dense).Mul(read, w.Output.Slice(q*d, (q+1)*d, 0, out))
		})
	}
	if !valueScalar && p.freeConstant() {
		l.OutputBias = p.outputBias(valueGroups, values, l)
	}
	return l
}

// outputBias adds to the output bias what the new heads lose of the mean output: Σ_r E[A_r v] O_r less the same of the
// fused heads, E[A_r v'] = Σ_j E[A_r v_j]·mix_j.
func (p *Problem) outputBias(groups [][]int, values []*mixture, l *Learned) []float64 {
	w, d := p.W, p.W.ValueDim
	bias := row(slices.Clone(w.OutputBias))
	_, out := bias.Dims()
	reads := readers(w.ValueOf, w.ValueHeads)
	for g, group := range groups {
		for _, h := range group {
			for _, q := range reads[h] {
				head := func(j int) *mat.Dense { return row(p.S.AttendedMean[q][j*d : (j+1)*d]) }
				fused := mat.NewDense(1, d, nil)
				var part mat.Dense
				for i, j := range group {
					part.Mul(head(j), values[g].mixOf(i, d))
					fused.Add(fused, &part)
				}
				var was, is mat.Dense
				was.Mul(head(h), w.Output.Slice(q*d, (q+1)*d, 0, out))
				is.Mul(fused, l.Output.Slice(q*d, (q+1)*d, 0, out))
				bias.Add(bias, &was)
				bias.Sub(bias, &is)
			}
		}
	}
	return bias.RawRowView(0)
}

// mixed returns, per group, Σ_j w_j·mix_j side by side.
func mixed(w *mat.Dense, d int, groups [][]int, list []*mixture) *mat.Dense {
	rows, _ := w.Dims()
	out := mat.NewDense(rows, len(groups)*d, nil)
	for g, group := range groups {
		to := out.Slice(0, rows, g*d, (g+1)*d).(*mat.Dense)
		var part mat.Dense
		for j, h := range group {
			part.Mul(w.Slice(0, rows, h*d, (h+1)*d), list[g].mixOf(j, d))
			to.Add(to, &part)
		}
	}
	return out
}

// eachReader calls f with every query head whose reading of its head is not plain.
func eachReader(groups [][]int, list []*mixture, reads [][]int, d int, f func(q int, read *mat.Dense)) {
	for g, group := range groups {
		if list[g].scalar() {
			continue
		}
		for j, h := range group {
			for r, q := range reads[h] {
				f(q, list[g].readOf(j, r, d))
			}
		}
	}
}

// row is x as a [1, len(x)] matrix that shares its memory.
func row(x []float64) *mat.Dense { return mat.NewDense(1, len(x), x) }

func not[T any](f func(T) bool) func(T) bool { return func(x T) bool { return !f(x) } }
