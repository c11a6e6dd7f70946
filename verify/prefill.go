package verify

import (
	"fmt"
	"slices"

	"onnx-dha/ort"
)

// Prefill makes the inputs of one run over whole sequences, [batch][n] token ids with the same n for all, on empty
// caches. real marks with false the tokens that are padding; nil means none. given overrides whole inputs; what is
// neither tokens, masks, positions nor caches and is not given is generated from seed.
func (s *Signature) Prefill(tokens [][]int64, real [][]bool, given map[string]*ort.Tensor, seed uint64) (map[string]*ort.Tensor, error) {
	if len(tokens) == 0 || len(tokens[0]) == 0 {
		return nil, fmt.Errorf("a prefill of no tokens")
	}
	n := len(tokens[0])
	if n0, ok := s.fixed[Past]; ok && n0 != 0 && s.grows() {
		return nil, fmt.Errorf("the model has a cache of fixed length %d; want one that starts empty and grows", n0)
	}
	for q, have := range map[Quantity]int{Batch: len(tokens), Seq: n} {
		if want, ok := s.fixed[q]; ok && want != have {
			return nil, fmt.Errorf("the model runs a %s of %d only, not %d", q, want, have)
		}
	}
	if !s.pads() && slices.ContainsFunc(real, func(row []bool) bool { return slices.Contains(row, false) }) {
		return nil, fmt.Errorf("the model has no mask, so a batch cannot be padded")
	}
	if real == nil {
		for range tokens {
			real = append(real, slices.Repeat([]bool{true}, n))
		}
	}
	if !s.pads() {
		real = nil
	}
	return s.feed(batch{
		Case: Case{Name: "prefill", Batch: len(tokens), Seq: n, Encoder: defaultEncoder}, seed: seed, tokens: tokens, real: real,
	}, given)
}

// Fixed returns a size that the model does not leave open.
func (s *Signature) Fixed(q Quantity) (int, bool) {
	n, ok := s.fixed[q]
	return n, ok
}
