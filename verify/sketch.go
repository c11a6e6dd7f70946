package verify

import "math"

// A sketch counts numbers of 0 and more by size, finely enough for quantiles: every octave has 16 bins of equal width, so
// that a quantile is at most 1/16 too large. Adding in another order gives the same sketch.
type sketch struct {
	zeros, infinities int64
	first             int     // bin of counts[0]
	counts            []int64 // of neighbouring bins
}

// perOctave is the number of bins between a power of two and the next, as bits of the mantissa.
const perOctave = 4

// binOf numbers the bins by the leading bits of the number.
func binOf(x float64) int { return int(math.Float64bits(x) >> (52 - perOctave)) }

// lower is the smallest number of a bin.
func lower(bin int) float64 { return math.Float64frombits(uint64(bin) << (52 - perOctave)) }

func (s *sketch) add(x float64) {
	switch {
	case x == 0:
		s.zeros++
	case math.IsInf(x, 1):
		s.infinities++
	default:
		*s.at(binOf(x))++
	}
}

// at returns the count of a bin.
func (s *sketch) at(bin int) *int64 {
	switch {
	case len(s.counts) == 0:
		s.first, s.counts = bin, make([]int64, 1, 64)
	case bin < s.first:
		grown := make([]int64, s.first-bin+len(s.counts))
		copy(grown[s.first-bin:], s.counts)
		s.first, s.counts = bin, grown
	}
	for bin-s.first >= len(s.counts) {
		s.counts = append(s.counts, 0)
	}
	return &s.counts[bin-s.first]
}

func (s *sketch) merge(o *sketch) {
	s.zeros += o.zeros
	s.infinities += o.infinities
	if len(o.counts) == 0 {
		return
	}
	s.at(o.first)
	s.at(o.first + len(o.counts) - 1)
	for i, n := range o.counts {
		s.counts[o.first-s.first+i] += n
	}
}

// divided counts the same numbers divided by x, each as the largest of its bin. Divided by 0 all but 0 are infinite.
func (s *sketch) divided(x float64) sketch {
	out := sketch{zeros: s.zeros, infinities: s.infinities}
	for i, n := range s.counts {
		switch {
		case n == 0:
		case x == 0:
			out.infinities += n
		default:
			*out.at(binOf(math.Nextafter(lower(s.first+i+1), 0) / x)) += n
		}
	}
	return out
}

// quantile returns a number that a share of the numbers do not exceed: the upper end of the bin of the one that is just
// enough. It is 0 for no numbers.
func (s *sketch) quantile(share float64) float64 {
	total := s.zeros + s.infinities
	for _, n := range s.counts {
		total += n
	}
	need := int64(math.Ceil(share * float64(total)))
	seen := s.zeros
	if seen >= need {
		return 0
	}
	for i, n := range s.counts {
		if seen += n; seen >= need {
			return lower(s.first + i + 1)
		}
	}
	return math.Inf(1)
}

// Histogram counts errors |ref - got| by octave: Counts[i] of them lie in [Low·2^i, Low·2^(i+1)), Zeros are exact.
type Histogram struct {
	Zeros  int64   `json:"zeros"`
	Low    float64 `json:"low"`
	Counts []int64 `json:"counts"`
}

// histogram sums the bins of each octave.
func (s *sketch) histogram() *Histogram {
	h := &Histogram{Zeros: s.zeros, Counts: []int64{}}
	last := -1
	for i, n := range s.counts {
		if n == 0 {
			continue
		}
		octave := (s.first + i) >> perOctave
		if last < 0 {
			last, h.Low = octave-1, lower(octave<<perOctave)
		}
		for last < octave {
			h.Counts = append(h.Counts, 0)
			last++
		}
		h.Counts[len(h.Counts)-1] += n
	}
	return h
}
