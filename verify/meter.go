package verify

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// Meter accumulates Metrics over several tensors: steps of a decode, cases, windows of a text.
type Meter struct {
	// Logits makes the last axis a vocabulary.
	Logits bool

	elements, nonFinite, leftOut int64
	scale, maxAbs, maxRel        float64
	sumAbs, sumRel               float64
	dot, ref2, got2, err2        float64
	abs, rel                     sketch
	bad                          *Place
	positions                    int64
	kl, klMax, js                float64
	top1, top5, top10            float64
	adds, worstAdd               int
	diverged                     int // 1 + the first add with another most likely token, 0 for none
	trace                        bool
	steps                        []Metrics // of each add, when traced
}

// Add compares got with ref. keep, when not nil, says for [batch, sequence] which positions of tensors that begin with
// these axes count (padding does not). Different shapes or types are an error.
func (m *Meter) Add(ref, got *ort.Tensor, keep [][]bool) error {
	if ref.DType != got.DType || !slices.Equal(ref.Shape, got.Shape) {
		return fmt.Errorf("it is %v, want %v", got, ref)
	}
	a, err := numbersOf(ref)
	if err != nil {
		return err
	}
	b, err := numbersOf(got)
	if err != nil {
		return err
	}
	size := int(ref.Len())
	one := Meter{Logits: m.Logits}
	row := size // elements that are kept or left out together
	if keep != nil && len(ref.Shape) >= 2 && int(ref.Shape[0]) == len(keep) && int(ref.Shape[1]) == len(keep[0]) && size > 0 {
		row = size / (len(keep) * len(keep[0]))
	} else {
		keep = nil
	}
	width := row
	if m.Logits && len(ref.Shape) > 0 {
		width = int(ref.Shape[len(ref.Shape)-1])
	}
	var kept, positions []int // where rows and positions start
	for at := 0; at < size; at += row {
		if keep != nil {
			i := at / row
			if !keep[i/len(keep[0])][i%len(keep[0])] {
				continue
			}
		}
		kept = append(kept, at)
		if m.Logits {
			for p := at; p < at+row; p += width {
				positions = append(positions, p)
			}
		}
	}
	one.elementwise(a, b, kept, row, ref.Shape)
	one.distributions(a, b, positions, width)
	if one.maxAbs > 0 {
		one.maxRel = one.maxAbs / one.scale // +Inf when the reference is all zero
		one.sumRel = one.sumAbs / one.scale
	}
	one.rel = one.abs.divided(one.scale)
	one.adds = 1
	if m.trace {
		m.steps = append(m.steps, one.Metrics())
	}
	m.Merge(&one)
	return nil
}

// numbers are the elements of a tensor, widened where they are looked at: all of them at once would be twice the memory.
type numbers struct {
	single []float32
	double []float64
}

func numbersOf(t *ort.Tensor) (n numbers, err error) {
	if t.DType == onnxpb.TensorProto_FLOAT {
		n.single, err = t.Float32s()
	} else {
		n.double, err = t.Float64s()
	}
	return n, err
}

// at returns n elements from number i on; room holds as many numbers.
func (x numbers) at(i, n int, room []float64) []float64 {
	if x.single == nil {
		return x.double[i : i+n]
	}
	room = room[:n]
	for j, v := range x.single[i : i+n] {
		room[j] = float64(v)
	}
	return room
}

// float64s widens a tensor.
func float64s(t *ort.Tensor) ([]float64, error) {
	n, err := numbersOf(t)
	if err != nil || n.single == nil {
		return n.double, err
	}
	return n.at(0, len(n.single), make([]float64, len(n.single))), nil
}

// rooms are slices of n numbers for one use after another.
func rooms(n int) *sync.Pool {
	return &sync.Pool{New: func() any {
		room := make([]float64, n)
		return &room
	}}
}

// chunk is how many elements are added up together, whatever the number of processors.
const chunk = 1 << 16

// elementwise adds the elements of the rows that start at the given places. Chunks of them are summed side by side, and
// the sums added in order.
func (m *Meter) elementwise(ref, got numbers, starts []int, row int, shape []int64) {
	type piece struct{ at, n int }
	var pieces []piece
	for _, at := range starts {
		if n := len(pieces); n > 0 && pieces[n-1].at+pieces[n-1].n == at && pieces[n-1].n+row <= chunk {
			pieces[n-1].n += row
			continue
		}
		for done := 0; done < row; done += chunk {
			pieces = append(pieces, piece{at + done, min(chunk, row-done)})
		}
	}
	largest := 0
	for _, p := range pieces {
		largest = max(largest, p.n)
	}
	sums, pool := make([]Meter, len(pieces)), rooms(2*largest)
	parallel(len(pieces), func(i int) {
		p, room := pieces[i], pool.Get().(*[]float64)
		sums[i].compare(ref.at(p.at, p.n, *room), got.at(p.at, p.n, (*room)[p.n:]), p.at, shape)
		pool.Put(room)
	})
	for i := range sums {
		m.Merge(&sums[i])
	}
}

// parallel calls f for the numbers below n on all processors.
func parallel(n int, f func(int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers < 2 {
		for i := range n {
			f(i)
		}
		return
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	group.Wait()
}

// compare adds elements, of which the first is number at of a tensor of the given shape.
func (m *Meter) compare(ref, got []float64, at int, shape []int64) {
	for i, r := range ref {
		g := got[i]
		d := math.Abs(r - g)
		switch {
		case d == 0: // both are finite, or their difference would be NaN
			m.abs.zeros++
		case finite(r) && finite(g):
			m.maxAbs = max(m.maxAbs, d)
			m.sumAbs += d
			m.err2 += d * d
			m.abs.add(d)
		default:
			if finite(r) {
				m.scale = max(m.scale, math.Abs(r))
			}
			if r == g || math.IsNaN(r) && math.IsNaN(g) {
				m.leftOut++
			} else if m.nonFinite++; m.bad == nil {
				m.bad = &Place{Index: indexOf(at+i, shape), Reference: r, Got: g}
			}
			continue
		}
		m.elements++
		m.scale = max(m.scale, math.Abs(r))
		m.dot += r * g
		m.ref2 += r * r
		m.got2 += g * g
	}
}

// indexOf is the place of a row-major element.
func indexOf(n int, shape []int64) []int64 {
	out := make([]int64, len(shape))
	for axis := len(shape) - 1; axis >= 0; axis-- {
		out[axis] = int64(n) % shape[axis]
		n /= int(shape[axis])
	}
	return out
}

// parted is what a comparison of two distributions adds to a Meter.
type parted struct {
	counts            bool // false where there is a NaN, which the elements tell of
	kl, js            float64
	top1, top5, top10 float64
}

// distributions adds positions of logits, each width scores from where it starts. They are compared side by side and
// added up in order, so that the sums do not depend on the number of processors. It returns what each adds.
func (m *Meter) distributions(ref, got numbers, starts []int, width int) []parted {
	if len(starts) == 0 || width == 0 {
		return nil
	}
	out := make([]parted, len(starts))
	pool := rooms(6 * width)
	parallel(len(starts), func(i int) {
		at, room := starts[i], pool.Get().(*[]float64)
		out[i] = part(ref.at(at, width, *room), got.at(at, width, (*room)[width:]), (*room)[2*width:])
		pool.Put(room)
	})
	for _, d := range out {
		if !d.counts {
			continue
		}
		m.positions++
		m.kl += d.kl
		m.klMax = max(m.klMax, d.kl)
		m.js += d.js
		m.top1 += d.top1
		m.top5 += d.top5
		m.top10 += d.top10
		if d.top1 == 0 {
			m.diverged = 1
		}
	}
	return out
}

// underflow is where the ratio of two probabilities may overflow, and their part of a divergence is nothing.
const underflow = 1e-290

// part compares the distributions of one position; room is for four times as many numbers.
func part(ref, got, room []float64) parted {
	n := len(ref)
	lp, lq, ps, qs := room[:n], room[n:2*n], room[2*n:3*n], room[3*n:4*n]
	if !softmaxInto(lp, ps, ref) || !softmaxInto(lq, qs, got) {
		return parted{}
	}
	if slices.Equal(ref, got) {
		return parted{counts: true, top1: 1, top5: 1, top10: 1}
	}
	d := parted{counts: true}
	for i, p := range ps {
		q := qs[i]
		if p > 0 { // 0·ln 0 is 0
			d.kl += p * (lp[i] - lq[i])
		}
		// ½ p ln(p/m) + ½ q ln(q/m), where ln(p/m) = ln 2 - ln(1 + q/p).
		if p > underflow && q > underflow {
			l := math.Ln2 - math.Log1p(q/p)
			d.js += 0.5 * (p*l + q*(l+lq[i]-lp[i]))
		} else {
			d.js += 0.5 * math.Ln2 * (p + q)
		}
	}
	// Rounding can leave a tiny negative sum for equal distributions.
	d.kl, d.js = max(d.kl, 0), max(d.js, 0)
	a, b := largest(ref, min(10, len(ref))), largest(got, min(10, len(ref)))
	for _, top := range []struct {
		k  int
		to *float64
	}{{1, &d.top1}, {5, &d.top5}, {10, &d.top10}} {
		k := min(top.k, len(a))
		common := 0
		for _, t := range a[:k] {
			if slices.Contains(b[:k], t) {
				common++
			}
		}
		*top.to = float64(common) / float64(k)
	}
	return d
}

// Merge adds all that another meter has seen.
func (m *Meter) Merge(o *Meter) {
	if o.maxRel > m.maxRel {
		m.maxRel, m.worstAdd = o.maxRel, m.adds+o.worstAdd
	}
	if m.bad == nil && o.bad != nil {
		bad := *o.bad
		bad.Step += m.adds
		m.bad = &bad
	}
	if m.diverged == 0 && o.diverged > 0 {
		m.diverged = m.adds + o.diverged
	}
	m.adds += o.adds
	m.scale, m.maxAbs, m.klMax = max(m.scale, o.scale), max(m.maxAbs, o.maxAbs), max(m.klMax, o.klMax)
	for _, sum := range []struct {
		to   *float64
		from float64
	}{
		{&m.sumAbs, o.sumAbs}, {&m.sumRel, o.sumRel}, {&m.dot, o.dot}, {&m.ref2, o.ref2}, {&m.got2, o.got2}, {&m.err2, o.err2},
		{&m.kl, o.kl}, {&m.js, o.js}, {&m.top1, o.top1}, {&m.top5, o.top5}, {&m.top10, o.top10},
	} {
		*sum.to += sum.from
	}
	m.elements += o.elements
	m.nonFinite += o.nonFinite
	m.leftOut += o.leftOut
	m.positions += o.positions
	m.abs.merge(&o.abs)
	m.rel.merge(&o.rel)
}

// Metrics returns what has been added so far.
func (m *Meter) Metrics() Metrics {
	out := Metrics{
		Elements: m.elements, NonFinite: m.nonFinite, LeftOut: m.leftOut, Scale: m.scale,
		MaxAbs: m.maxAbs, MaxRel: m.maxRel, Cosine: 1, SQNR: math.Inf(1), PSNR: math.Inf(1),
		P99Abs: min(m.abs.quantile(0.99), m.maxAbs), P99Rel: min(m.rel.quantile(0.99), m.maxRel),
	}
	if m.bad != nil {
		bad := *m.bad
		out.Bad = &bad
	}
	if m.elements > 0 {
		out.MeanAbs, out.MeanRel = m.sumAbs/float64(m.elements), m.sumRel/float64(m.elements)
	}
	switch {
	case m.ref2 > 0 && m.got2 > 0:
		out.Cosine = min(1, m.dot/math.Sqrt(m.ref2)/math.Sqrt(m.got2))
	case m.ref2 != m.got2:
		out.Cosine = 0 // one is zero, the other is not
	}
	if m.err2 > 0 {
		out.SQNR = 10 * math.Log10(m.ref2/m.err2)
		out.PSNR = 10 * math.Log10(float64(m.elements)*m.scale*m.scale/m.err2)
	}
	if m.Logits {
		n := max(float64(m.positions), 1)
		out.Logits = &LogitMetrics{
			Positions: m.positions, KL: m.kl / n, KLMax: m.klMax, JS: m.js / n, Top1: m.top1 / n, Top5: m.top5 / n, Top10: m.top10 / n,
		}
	}
	return out
}

// WorstAdd returns which call of Add, counted from 0, had the largest relative error.
func (m *Meter) WorstAdd() int { return m.worstAdd }

// Diverged returns the first call of Add, counted from 0, with a position whose most likely token differs; false when
// there is none.
func (m *Meter) Diverged() (int, bool) { return m.diverged - 1, m.diverged > 0 }
