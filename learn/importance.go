package learn

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Importance says what every head of a model does on some data.
type Importance struct {
	Positions int    `json:"positions"` // of the data, those that are hidden included
	Effect    Effect `json:"effect"`    // what Removed.Effect is; empty when no head was removed
	// Loss is the loss with all heads in place, in nats per token; nil for other effects.
	Loss   *float64          `json:"loss,omitempty"`
	Blocks []BlockImportance `json:"blocks"`
}

// BlockImportance is the part of one block.
type BlockImportance struct {
	Block string `json:"block"`
	// Queries are the query heads. Keys and Values are the key and value heads, each standing for the query heads that read
	// it.
	Queries []Head `json:"query_heads"`
	Keys    []Head `json:"key_heads"`
	Values  []Head `json:"value_heads"`
	// Layer is all heads together.
	Layer Head `json:"layer"`
	// Missing says what could not be measured and why; empty when all was.
	Missing []string `json:"missing,omitempty"`
}

// Head is what a set of query heads does; a part is nil when it was not measured.
type Head struct {
	QueryHeads []int          `json:"query_heads"`
	Attention  *HeadAttention `json:"attention,omitempty"`
	Output     *HeadOutput    `json:"output,omitempty"`
	Removed    *RemovedHeads  `json:"removed,omitempty"`
}

// HeadAttention are means over queries and heads of the weights a that a head gives to positions.
type HeadAttention struct {
	Magnitude float64 `json:"magnitude"` // √Σ a²: 1 when a single position has all the weight, 1/√n when n share it
	Peak      float64 `json:"peak"`      // the largest a
	Entropy   float64 `json:"entropy"`   // -Σ a ln a, in nats
	// Relative is the entropy divided by that of equal weights for all positions that the queries see.
	Relative float64 `json:"relative_entropy"`
}

// HeadOutput is what heads add to the output of their block, whose bias does not count: c = Σ_h context_h · O_h.
type HeadOutput struct {
	RMS      float64 `json:"rms"`      // √E‖c‖² over tokens
	Relative float64 `json:"relative"` // RMS divided by that of the block's output y
	// Share is E⟨c, y⟩ / E‖y‖². Shares of all query heads add up to 1; a head that works against the others has a
	// negative one.
	Share float64 `json:"share"`
}

// RemovedHeads is what happens when the heads add nothing to the output.
type RemovedHeads struct {
	Effect float64 `json:"effect"` // see Importance.Effect; larger is worse
	// Error is the standard error of the effect over sequences; nil when there is no more than one.
	Error *float64 `json:"standard_error,omitempty"`
}

// Removal says which heads Importance removes to see what they are for.
type Removal string

// Removals: every query head, key head, value head and layer; query heads only; all but query heads; layers only; none.
// Each head takes a pass over the data.
const (
	RemoveHeads   Removal = "heads"
	RemoveQueries Removal = "queries"
	RemoveKV      Removal = "kv"
	RemoveLayers  Removal = "layers"
	RemoveNone    Removal = "none"
)

// removes says which kinds of heads each removal takes away.
var removes = map[Removal][]HeadKind{
	RemoveHeads:   {QueryHead, KeyHead, ValueHead, WholeLayer},
	RemoveQueries: {QueryHead},
	RemoveKV:      {KeyHead, ValueHead, WholeLayer},
	RemoveLayers:  {WholeLayer},
}

// Removals lists the removals.
func Removals() []string {
	return []string{string(RemoveHeads), string(RemoveQueries), string(RemoveKV), string(RemoveLayers), string(RemoveNone)}
}

// Importance measures all heads on batches. progress, when not nil, is told after each run how many are done.
func (l *Lab) Importance(ctx context.Context, batches []Batch, remove Removal, progress func(done, total int, what string)) (*Importance, error) {
	imp := &Importance{}
	for _, b := range batches {
		imp.Positions += b.Tokens
	}
	for i := range l.Blocks {
		imp.Blocks = append(imp.Blocks, l.headsOf(i))
	}
	removals, index := l.removals(imp, remove)
	done, total := 0, len(batches)
	if len(removals) > 0 {
		total += len(batches) * (1 + len(removals))
	}
	step := func(what string) func() {
		return func() {
			done++
			if progress != nil {
				progress(done, total, what)
			}
		}
	}
	if err := l.headStatistics(ctx, imp, batches, step("attention weights and outputs")); err != nil {
		return nil, err
	}
	if len(removals) == 0 {
		return imp, nil
	}
	return imp, l.removeHeads(ctx, imp, batches, removals, index, step("removing heads"))
}

// headsOf lists the heads of a block.
func (l *Lab) headsOf(i int) BlockImportance {
	b := l.Blocks[i]
	out := BlockImportance{
		Block: b.Name, Queries: make([]Head, b.Heads), Keys: make([]Head, b.KVHeads), Values: make([]Head, b.ValueHeads),
	}
	for h := range b.Heads {
		out.Queries[h].QueryHeads = []int{h}
		for _, side := range []*Head{&out.Keys[b.KeyOf[h]], &out.Values[b.ValueOf[h]], &out.Layer} {
			side.QueryHeads = append(side.QueryHeads, h)
		}
	}
	return out
}

// HeadKind says what a head is.
type HeadKind string

// Kinds of heads; a layer counts as one that has all.
const (
	QueryHead  HeadKind = "query"
	KeyHead    HeadKind = "key"
	ValueHead  HeadKind = "value"
	WholeLayer HeadKind = "layer"
)

// Each calls f for all heads of a block, numbered within their kind.
func (b *BlockImportance) Each(f func(kind HeadKind, number int, h *Head)) {
	for _, side := range []struct {
		kind  HeadKind
		heads []Head
	}{{QueryHead, b.Queries}, {KeyHead, b.Keys}, {ValueHead, b.Values}} {
		for i := range side.heads {
			f(side.kind, i, &side.heads[i])
		}
	}
	f(WholeLayer, 0, &b.Layer)
}

// headStatistics fills in Attention and Output.
func (l *Lab) headStatistics(ctx context.Context, imp *Importance, batches []Batch, step func()) error {
	b, err := l.bench()
	if err != nil {
		return err
	}
	c := newCollector(b)
	var sums []headSums
	for i := range b.blocks {
		s, err := c.addHeads(i)
		if err != nil {
			b.m.Close()
			return err
		}
		out := &imp.Blocks[i]
		if !s.attention {
			out.Missing = append(out.Missing, "the attention weights are inside an operator, or on axes in an order that is not known")
		}
		if !s.output {
			out.Missing = append(out.Missing, "no output projection follows, so that what heads contribute is not known")
		}
		sums = append(sums, s)
	}
	if len(b.sums) == 0 {
		b.m.Close()
		return nil
	}
	p, err := b.pass()
	if err != nil {
		return err
	}
	defer p.close()
	p.reset()
	for _, batch := range batches {
		if _, err := p.run(ctx, batch.Feeds, nil, nil); err != nil {
			return err
		}
		step()
	}
	for i, s := range sums {
		h, err := p.headStats(s)
		if err != nil {
			return fmt.Errorf("block %q: %w", imp.Blocks[i].Block, err)
		}
		imp.Blocks[i].Each(func(_ HeadKind, _ int, head *Head) { h.fill(head) })
	}
	return nil
}

// fill works out the statistics of a set of heads.
func (s *headStats) fill(head *Head) {
	n := float64(len(head.QueryHeads))
	if s.entropy != nil {
		a := &HeadAttention{Relative: 1}
		for _, h := range head.QueryHeads {
			a.Magnitude += s.norm[h] / n
			a.Peak += s.peak[h] / n
			a.Entropy += s.entropy[h] / n
		}
		if s.uniform > 0 {
			a.Relative = a.Entropy / s.uniform
		}
		head.Attention = a
	}
	if s.products == nil {
		return
	}
	heads := int(math.Round(math.Sqrt(float64(len(s.products)))))
	own, shared, whole := 0.0, 0.0, sum(s.products)
	for _, h := range head.QueryHeads {
		row := s.products[h*heads : (h+1)*heads]
		shared += sum(row)
		for _, g := range head.QueryHeads {
			own += row[g]
		}
	}
	head.Output = &HeadOutput{RMS: math.Sqrt(max(0, own))}
	if whole > 0 {
		head.Output.Relative, head.Output.Share = math.Sqrt(max(0, own)/whole), shared/whole
	}
}

// removals lists the different sets of heads to remove, and which of them each head is.
func (l *Lab) removals(imp *Importance, r Removal) (sets []removal, index map[*Head]int) {
	index = map[*Head]int{}
	for i := range imp.Blocks {
		if !gateable(l.Facts, l.Blocks[i]) {
			continue
		}
		first := len(sets)
		imp.Blocks[i].Each(func(kind HeadKind, _ int, h *Head) {
			if !slices.Contains(removes[r], kind) || len(h.QueryHeads) == 0 {
				return
			}
			at := slices.IndexFunc(sets[first:], func(s removal) bool { return slices.Equal(s.heads, h.QueryHeads) })
			if at < 0 {
				at = len(sets) - first
				sets = append(sets, removal{i, h.QueryHeads})
			}
			index[h] = first + at
		})
	}
	return sets, index
}

// removeHeads fills in Removed.
func (l *Lab) removeHeads(ctx context.Context, imp *Importance, batches []Batch, removals []removal, index map[*Head]int, step func()) error {
	a, err := l.ablation(batches)
	if err != nil {
		return err
	}
	defer a.close()
	effect, deviation, base, err := a.effects(ctx, batches, removals, step)
	if err != nil {
		return err
	}
	imp.Effect = a.effect
	if a.effect == LossEffect {
		imp.Loss = &base
	}
	for h, i := range index {
		h.Removed = &RemovedHeads{Effect: effect[i]}
		if d := deviation[i]; !math.IsNaN(d) {
			h.Removed.Error = &d
		}
	}
	return nil
}

// criterion reads one number of a head; false when it was not measured.
type criterion struct {
	name string
	of   func(h Head) (float64, bool)
}

// criteria are the rows that Weights chooses from.
var criteria = []criterion{
	{"effect", reads(func(h Head) *RemovedHeads { return h.Removed }, func(r RemovedHeads) float64 { return r.Effect })},
	{"contribution", reads(func(h Head) *HeadOutput { return h.Output }, func(o HeadOutput) float64 { return o.RMS * o.RMS })},
	{"share", reads(func(h Head) *HeadOutput { return h.Output }, func(o HeadOutput) float64 { return o.Share })},
	{"magnitude", reads(func(h Head) *HeadAttention { return h.Attention }, func(a HeadAttention) float64 { return a.Magnitude })},
	{"peak", reads(func(h Head) *HeadAttention { return h.Attention }, func(a HeadAttention) float64 { return a.Peak })},
	{"certainty", reads(func(h Head) *HeadAttention { return h.Attention }, func(a HeadAttention) float64 { return 1 - a.Relative })},
}

// reads makes a criterion of a number in a part of a head.
func reads[T any](part func(Head) *T, number func(T) float64) func(Head) (float64, bool) {
	return func(h Head) (float64, bool) {
		p := part(h)
		if p == nil {
			return 0, false
		}
		return number(*p), true
	}
}

// Criteria lists the names that Weights accepts.
func Criteria() []string {
	var names []string
	for _, c := range criteria {
		names = append(names, c.name)
	}
	return names
}

// Weights returns a weight for each query head, [block][head], for a search that should err where it matters least:
// "effect" of removing the head, squared norm of its "contribution", its "share" of the block's output, "magnitude" or
// "peak" of its attention weights, or "certainty", 1 less their relative entropy. Weights are not negative (a head whose
// removal helps weighs 0), and their mean over the model is 1. A block that was not measured has nil.
func (imp *Importance) Weights(by string) ([][]float64, error) {
	i := slices.IndexFunc(criteria, func(c criterion) bool { return c.name == by })
	if i < 0 {
		return nil, fmt.Errorf("no importance by %q; want one of %s", by, strings.Join(Criteria(), ", "))
	}
	out := make([][]float64, len(imp.Blocks))
	total, n := 0.0, 0
	for b, block := range imp.Blocks {
		for _, h := range block.Queries {
			x, ok := criteria[i].of(h)
			if !ok {
				continue
			}
			x = max(0, x)
			out[b] = append(out[b], x)
			total, n = total+x, n+1
		}
	}
	if n == 0 {
		return nil, fmt.Errorf("no head has its %s measured", by)
	}
	if total == 0 {
		return nil, fmt.Errorf("no head weighs anything by its %s", by)
	}
	for _, block := range out {
		for h := range block {
			block[h] *= float64(n) / total
		}
	}
	return out, nil
}
