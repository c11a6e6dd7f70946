package learn

import "onnx-dha/fusion"

// How often the model runs is known beforehand but for the trials, which end early where no neighbour is left, and for what a
// resumed run has measured already.

// afterwards is the part of a trial, of the runs of a first allocation, that is new: layers before the one that differs are
// taken over.
const afterwards = 0.6

// sweeps is how often statistics of sampled queries go over batches.
func sweeps(batches []Batch, fine bool) int {
	tokens, want := 0, coarseSweep
	for _, b := range batches {
		tokens += b.Tokens
	}
	if fine {
		want = fineSweep
	}
	return max(1, want/max(1, tokens))
}

// fitRuns is how often the model runs to fit the output of block i.
func (r *run) fitRuns(i int, batches []Batch, fine bool) int {
	b := r.lab.Blocks[i]
	n, _ := r.lab.Weights[i].Value.Dims()
	switch {
	case !r.seq.Refit || b.Output == nil:
		return 0
	case !r.seq.Joint || b.Heads*(n+1) > jointLimit:
		return len(batches)
	}
	return min(sweeps(batches, fine), jointStride(b.Heads, n, r.seq.length)) * len(batches)
}

// sequenceRuns is how often it runs to compress all layers.
func (r *run) sequenceRuns(batches []Batch, fine bool) (n int) {
	for _, i := range r.lab.Open() {
		n += sweeps(batches, fine)*len(batches) + r.fitRuns(i, batches, fine)
	}
	return n
}

// tableRuns is how often it runs for the effects of single layers.
func (r *run) tableRuns() (n int) {
	for _, i := range r.lab.Open() {
		b := r.lab.Blocks[i]
		n += sweeps(r.few, false) * len(r.few)
		if r.q.Layout != fusion.UniformLayout {
			n += (len(counts(b.KVHeads)) + len(counts(b.ValueHeads))) * (r.fitRuns(i, r.few, false) + len(r.judged()))
		}
	}
	return n
}

// searchRuns is how often it runs for allocations of the whole model, so many after the first.
func (r *run) searchRuns(trials int) int {
	first := float64(r.sequenceRuns(r.few, false))
	return int(first*(1+afterwards*float64(trials))) + (1+trials)*len(r.judged())
}

// judged are the batches that the search measures on.
func (r *run) judged() []Batch { return bounded(r.few, judgeTokens) }
