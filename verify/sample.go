package verify

import (
	"fmt"
	"slices"

	"onnx-dha/data"
	"onnx-dha/ort"
)

// SampleCases makes a case of every sample of a set. Samples of tokens are whole sequences; tensors by input name keep
// their sizes. A sample that brings keys and values of its own has the heads of the original: it is left out where they
// are not empty and the rewritten model has others, which the second result says.
func SampleCases(s *Signature, samples []data.Sample, changed func(past string) bool) (cases []Case, left []string) {
	for _, sample := range samples {
		c := Case{Name: sample.Source, Batch: 1, Expected: sample.Expected}
		if sample.Tokens != nil {
			c.Tokens, c.Seq = [][]int64{sample.Tokens}, len(sample.Tokens)
			cases = append(cases, c)
			continue
		}
		c.Feeds = map[string]*ort.Tensor{}
		filled := ""
		for _, name := range sortedNames(sample.Tensors) {
			t := sample.Tensors[name]
			if changed(name) {
				if t.Len() > 0 {
					filled = name
				}
				continue // empty ones are made with the heads that each model has
			}
			c.Feeds[name] = t
		}
		if filled != "" {
			left = append(left, fmt.Sprintf("%s is left out: its cache %q has the heads of the original, which the rewritten model's cannot be made from", sample.Source, filled))
			continue
		}
		c.Sizes = s.sizesOf(c.Feeds)
		for q, n := range s.quantitiesOf(c.Feeds) {
			switch q {
			case Batch:
				c.Batch = n
			case Seq:
				c.Seq = n
			case Past:
				c.Past = n
			case Encoder:
				c.Encoder = n
			}
		}
		cases = append(cases, c)
	}
	return cases, left
}

// sizesOf reads the sizes of symbols off values of inputs.
func (s *Signature) sizesOf(feeds map[string]*ort.Tensor) map[string]int {
	out := map[string]int{}
	s.eachSize(feeds, func(sym string, _ Quantity, n int) { out[sym] = n })
	if len(out) == 0 {
		return nil
	}
	return out
}

// quantitiesOf reads off values of inputs what is counted.
func (s *Signature) quantitiesOf(feeds map[string]*ort.Tensor) map[Quantity]int {
	out := map[Quantity]int{}
	s.eachSize(feeds, func(sym string, q Quantity, n int) {
		if _, ok := out[q]; !ok {
			out[q] = n / int(max(s.multiple[sym], 1))
		}
	})
	if total, ok := out[Total]; ok {
		if seq, ok := out[Seq]; ok {
			if _, ok := out[Past]; !ok {
				out[Past] = max(total-seq, 0)
			}
		}
	}
	return out
}

// eachSize calls f for each axis of a fed input that is a symbol by itself. Where sequences and masks are called alike, the
// place of the axis tells what it counts.
func (s *Signature) eachSize(feeds map[string]*ort.Tensor, f func(sym string, q Quantity, n int)) {
	for _, in := range s.Inputs {
		t := feeds[in.Name]
		if t == nil || len(t.Shape) != len(in.Dims) {
			continue
		}
		for axis, d := range in.Dims {
			sym, ok := soleSymbol(d)
			if !ok {
				continue
			}
			q := s.axisQuantity(in, axis)
			if q == Other {
				q = s.quantity[sym]
			}
			if !slices.Contains([]Quantity{Total, Past}, q) || s.quantity[sym] == q {
				f(sym, q, int(t.Shape[axis]))
			} else {
				f(axisName(in.Name, axis), q, int(t.Shape[axis]))
			}
		}
	}
}
