package fusion

import "math"

// unlike is how unlike the heads of a group are after turning them onto each other: their number times one minus the mean
// similarity of pairs (AsymGQA, arXiv 2406.14963, scores groups by the similarity of activations; its exact score is not
// published. Raw similarity of heads is near zero in trained models, whatever the pair).
func unlike(p *Problem, k kind, m moments, group []int) (float64, error) {
	g := len(group)
	if g == 1 {
		return 0, nil
	}
	sum := 0.0
	for i, a := range group {
		for _, b := range group[i+1:] {
			s, err := p.memo("similarity of "+k.String(), []int{a, b}, func() (float64, error) { return m.similarity(a, b, true) })
			if err != nil {
				return 0, err
			}
			sum += s
		}
	}
	return float64(g) * (1 - sum/float64(g*(g-1)/2)), nil
}

// sharingError is the weight-sharing error of QCQA (arXiv 2406.10247 §3): Σ over the heads of a group of the mean square
// of the difference between a head's weights and the group's mean, by the products of heads: Σ_h |W_h|² − |Σ_h W_h|²/g.
func sharingError(p *Problem, k kind, _ moments, group []int) (float64, error) {
	w, d := p.W.Key, p.W.HeadDim
	if k == valueKind {
		w, d = p.W.Value, p.W.ValueDim
	}
	rows, _ := w.Dims()
	e := 0.0
	for i, a := range group {
		for _, b := range group[i:] {
			x, err := p.memo("weights of "+k.String(), []int{a, b}, func() (float64, error) {
				return product(w.Slice(0, rows, a*d, (a+1)*d), w.Slice(0, rows, b*d, (b+1)*d)), nil
			})
			if err != nil {
				return 0, err
			}
			if a == b {
				e += x * (1 - 1/float64(len(group)))
			} else {
				e -= 2 * x / float64(len(group))
			}
		}
	}
	return max(e, 0) / float64(rows*d), nil
}

// byNorm cuts the heads into runs of neighbours whose lengths follow the norms of the pooled heads, as KDGQA (arXiv
// 2408.08454) allots queries to the heads that mean pooling gives: min-max scaled norms, rounded shares of the heads, the
// largest or least corrected until they add up. There the queries are dealt anew at every call; here the heads of a run
// are what is pooled, so that each query keeps its own head in its group, and no run is empty.
func byNorm(t *partitionTask, m moments) ([][]int, error) {
	runs := t.neighbours()
	norm := make([]float64, t.n)
	low, high := math.Inf(1), 0.0
	for i, run := range runs {
		heads := t.heads(run)
		e := 0.0
		for _, a := range heads {
			for _, b := range heads {
				s := 1.0
				if a != b {
					var err error
					if s, err = m.similarity(a, b, false); err != nil {
						return nil, err
					}
				}
				e += s * math.Sqrt(m.energy(a)*m.energy(b))
			}
		}
		norm[i] = math.Sqrt(max(e, 0)) / float64(len(heads))
		low, high = min(low, norm[i]), max(high, norm[i])
	}
	h := len(t.items)
	if t.equal || !(high > low) {
		return runs, nil
	}
	sum := 0.0
	for _, x := range norm {
		sum += (x - low) / (high - low)
	}
	sizes, total := make([]int, t.n), 0
	for i, x := range norm {
		sizes[i] = max(1, int(math.Round((x-low)/(high-low)/sum*float64(h))))
		total += sizes[i]
	}
	extreme := func(larger bool) (at int) {
		for i := range sizes {
			if larger && sizes[i] > sizes[at] || !larger && sizes[i] < sizes[at] {
				at = i
			}
		}
		return at
	}
	for ; total > h; total-- {
		sizes[extreme(true)]--
	}
	for ; total < h; total++ {
		sizes[extreme(false)]++
	}
	at := 0
	for i, n := range sizes {
		runs[i] = nil
		for range n {
			runs[i] = append(runs[i], at)
			at++
		}
	}
	return runs, nil
}
