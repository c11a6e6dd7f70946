package graph

import "slices"

// Symbols returns the names that d depends on, sorted, each once; nil for a constant and for an overflow.
func (d Dim) Symbols() []string {
	var out []string
	for _, t := range d.terms {
		out = append(out, t.vars...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
