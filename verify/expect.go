package verify

import (
	"onnx-dha/ort"
)

// given is the tolerance for an original against outputs that came with its inputs, which another runtime computed.
func given() Tolerance {
	return Tolerance{Name: "expected outputs", Limits: []Limit{{"max_rel", 1e-3}}}
}

// expected holds both models against the outputs that a case came with. Caches of other heads are left out.
func (r *pairRun) expected(c Case, ref, got map[string]*ort.Tensor) {
	if len(c.Expected) == 0 {
		return
	}
	if r.golden == nil {
		r.golden = &section{reference: r.original, tolerance: r.drift.tolerance}
		r.given = &section{reference: r.original, tolerance: given().For(r.original.Precision)}
	}
	for _, name := range r.original.Outputs {
		want := c.Expected[name]
		if want == nil {
			continue
		}
		cache := r.original.isPresent(name)
		for _, side := range []struct {
			s   *section
			out map[string]*ort.Tensor
		}{{r.given, ref}, {r.golden, got}} {
			if cache && side.s == r.golden && len(r.maps) > 0 {
				continue
			}
			l := side.s.line(c.Name, name, r.original.Logits == name, cache)
			l.steps++
			if err := l.meter.Add(want, side.out[name], nil); err != nil {
				l.err = err.Error()
			}
		}
	}
}
