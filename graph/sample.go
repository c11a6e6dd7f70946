package graph

// Sample returns the value of d when every symbol has the value n: a concrete size that is consistent wherever sizes
// are computed from one another. False when d overflowed.
func (d Dim) Sample(n int64) (int64, bool) {
	env := map[string]int64{}
	for _, t := range d.terms {
		for _, s := range t.vars {
			env[s] = n
		}
	}
	return d.Eval(env)
}
