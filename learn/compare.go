package learn

import (
	"context"
	"fmt"
	"slices"
	"time"

	"onnx-dha/fusion"
)

// Comparison says which strategies to compare, at which budgets. Each row is what Learn gives for one strategy and one
// share, from the same data.
type Comparison struct {
	Strategies []fusion.Strategy
	Shares     []float64 // of the cache's bytes that may stay, 0 < share ≤ 1
	// Request has what all rows have in common. Its strategy and its aim are not read. Its state keeps the rows that are
	// finished and what was measured for the others; other strategies and shares of the same comparison go on from it.
	Request
}

// Row is one line of a comparison.
type Row struct {
	Strategy string  // empty for the original
	Share    float64 // asked for; 1 for the original
	// Refused says why there is nothing to report: the strategy cannot do this block, or the layout has nothing as small.
	Refused error
	Choices []fusion.Choice // of the blocks that can be rewritten, in the order of Lab.Open
	Quality Quality         // on the held-out samples
	Bytes   int64           // of cache at one position, of all blocks
	Notes   []string        // what the strategy could not do on some block
	// Elapsed is what the search and the final weights took. The effects that a strategy's numbers of heads are chosen by
	// are measured once for all shares and count in each, so that rows compare; the evaluation does not count.
	Elapsed time.Duration
}

// Compare learns a configuration for every strategy and every share, and measures them and the original on the held-out
// samples. The original is the first row; the others stand by shares, then strategies, in the order asked for. A strategy
// that fails gives rows that say so; the error is that of the first of them when all do.
//
// Calibration graphs and the original's distributions are shared between strategies. Nothing is written.
func (l *Lab) Compare(ctx context.Context, q Comparison) ([]Row, error) {
	if len(q.Strategies) == 0 || len(q.Shares) == 0 {
		return nil, unfit("%d strategies at %d budgets; want at least one of each", len(q.Strategies), len(q.Shares))
	}
	if len(l.Open()) == 0 {
		return nil, unfit("%s has no attention block that can be rewritten", l.Path)
	}
	if q.Layout == "" {
		q.Layout = fusion.FreeLayout
	}
	train, err := l.Batches(q.Train, q.Seed)
	if err != nil {
		return nil, &RequestError{err}
	}
	held, err := l.Batches(q.HeldOut, q.Seed)
	if err != nil {
		return nil, unfit("held-out samples: %w", err)
	}
	common := q.Request
	common.Strategy, common.KV, common.Key, common.Value, common.MaxKL, common.Progress = fusion.Strategy{}, 0, 0, 0, 0, nil
	c := &comparing{q: q, run: &run{lab: l, q: common, rows: true}, train: train, held: held}
	if err := c.run.open(train); err != nil {
		return nil, err
	}
	defer c.run.close()
	if err := c.restore("comparison", digestSamples(q.HeldOut)); err != nil {
		return nil, err
	}
	return c.rows(ctx)
}

// comparing is one call of Compare. Its run serves one strategy after the other.
type comparing struct {
	*run
	q           Comparison
	train, held []Batch
	evaluation  *Judge
	left        int // estimated runs of the strategies to come
}

func (c *comparing) rows(ctx context.Context) (rows []Row, err error) {
	for _, share := range c.q.Shares {
		if err := c.reaches(share); err != nil {
			return nil, err
		}
	}
	strategy := ""
	c.seq.Step = func() {
		c.done++
		c.total = max(c.total, c.done)
		if c.q.Progress != nil {
			c.q.Progress(c.done, c.total, strategy+c.what)
		}
	}
	for _, s := range c.q.Strategies {
		c.left += c.estimate(s)
	}
	c.total = c.left + 2*len(c.held)
	c.note("the original")
	if c.judge, err = c.lab.Judge(ctx, c.judged()); err != nil {
		return nil, err
	}
	if c.evaluation, err = c.lab.Judge(ctx, c.held); err != nil {
		return nil, err
	}
	defer c.evaluation.Close()
	rows = []Row{{Share: 1, Choices: c.lab.original(), Bytes: c.lab.cache().whole}}
	if _, rows[0].Quality, err = c.evaluation.Measure(ctx, c.seq.all(nil), c.seq.Step); err != nil {
		return nil, err
	}
	var failures []error
	by := make([][]Row, len(c.q.Strategies))
	for i, s := range c.q.Strategies {
		strategy = s.Name + ": "
		c.left -= c.estimate(s)
		if by[i], err = c.strategy(ctx, s); err != nil {
			return nil, err
		}
		c.total = c.done + c.left
		for _, r := range by[i] {
			if r.Refused != nil {
				failures = append(failures, fmt.Errorf("%s at %.3g %% of the cache: %w", s.Name, 100*r.Share, r.Refused))
			}
		}
	}
	if len(failures) == len(c.q.Strategies)*len(c.q.Shares) {
		return nil, failures[0]
	}
	for n := range c.q.Shares {
		for i := range by {
			rows = append(rows, by[i][n])
		}
	}
	return rows, nil
}

// estimate is how often a strategy runs the model.
func (c *comparing) estimate(s fusion.Strategy) int {
	c.fits(s)
	return c.tableRuns() + len(c.q.Shares)*(c.searchRuns(c.q.Trials)+c.sequenceRuns(c.train, true)+len(c.held))
}

// fits makes the run one for a strategy.
func (c *comparing) fits(s fusion.Strategy) {
	c.run.q.Strategy, c.seq.Strategy = s, s
	c.seq.Refit, c.seq.Joint = c.q.refits(s), c.q.refits(s)
}

// strategy makes the rows of one strategy. The error is one that concerns all.
func (c *comparing) strategy(ctx context.Context, s fusion.Strategy) ([]Row, error) {
	start := time.Now()
	c.fits(s)
	c.searching()
	c.search = c.newSearch()
	c.search.prefix = s.Name + ": "
	var failed error
	if slices.ContainsFunc(c.q.Shares, func(share float64) bool {
		_, done := c.state.Rows[rowKey(s, share)]
		return !done && c.only(share) == nil
	}) {
		failed = c.search.measure(ctx)
	}
	tables := time.Since(start)
	var rows []Row
	for _, share := range c.q.Shares {
		r := Row{Strategy: s.Name, Share: share, Refused: failed}
		if x, done := c.state.Rows[rowKey(s, share)]; done {
			r.Choices, r.Quality, r.Bytes, r.Notes, r.Elapsed, r.Refused = x.Choices, x.Quality, x.Bytes, x.Notes, x.Elapsed, nil
			rows = append(rows, r)
			continue
		}
		if failed == nil {
			r.Refused = c.row(ctx, &r)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if r.Refused != nil {
			rows = append(rows, Row{Strategy: s.Name, Share: share, Refused: r.Refused})
			continue
		}
		r.Elapsed += tables
		rows = append(rows, r)
		c.state.Rows[rowKey(s, share)] = savedRow{r.Choices, r.Quality, r.Bytes, r.Notes, r.Elapsed}
		if err := c.save(); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

func rowKey(s fusion.Strategy, share float64) string { return fmt.Sprintf("%s at %v", s.Name, share) }

// row chooses the numbers of heads for the share of r, compresses the model and measures it.
func (c *comparing) row(ctx context.Context, r *Row) (err error) {
	start := time.Now()
	c.searching()
	c.state.Choices, c.state.Layers = nil, nil // of the row before
	if r.Choices = c.only(r.Share); r.Choices == nil {
		if r.Choices, _, err = c.search.allocate(ctx, c.lab.cache().budget(r.Share), c.q.Trials); err != nil {
			return err
		}
	}
	layers, err := c.finish(ctx, r.Choices, c.train)
	if err != nil {
		return err
	}
	r.Elapsed = time.Since(start)
	c.note("held-out samples")
	if _, r.Quality, err = c.evaluation.Measure(ctx, c.seq.all(c.seq.byBlock(layers)), c.seq.Step); err != nil {
		return err
	}
	r.Bytes = c.lab.bytesWith(r.Choices)
	for n := range r.Choices {
		if s := layers[n].Solution; s != nil && s.Note != "" && !slices.Contains(r.Notes, s.Note) {
			r.Notes = append(r.Notes, s.Note)
		}
	}
	return nil
}

// searching makes the sequence one for the search again, after final weights.
func (c *comparing) searching() { c.seq.Batches, c.seq.Fine = c.few, false }
