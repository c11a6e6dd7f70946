package learn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
)

// Sequence compresses the blocks of a model one after the other: each is calibrated on what the compressed blocks before
// it give, and its output projection is refitted to what the original's residual stream has after it.
type Sequence struct {
	Lab      *Lab
	Strategy fusion.Strategy
	Options  fusion.SolveOptions
	Batches  []Batch // to calibrate on
	Refit    bool    // of the output projections
	Joint    bool    // of the values with them, where that is possible
	Fine     bool    // take more samples of what is sampled, and go on with the fit until it brings nothing more
	Seed     uint64
	Step     func() // called after every run of the model; may be nil
	// Importance is that of the request.
	Importance [][]float64

	length   int
	sessions sessions
	alone    map[int]bool  // blocks whose output can be fitted without their values only
	own      map[int]Slots // of the original weights
	earlier  map[int]*fusion.Problem
}

// Layer is one compressed block.
type Layer struct {
	Choice   fusion.Choice
	Solution *fusion.Solution // nil for a block that stays as it is
	Plan     *fusion.BlockPlan
	Slots    Slots

	problem *fusion.Problem // what was solved; nil where it takes too much to be kept
}

// problemBytes bounds the statistics that a layer keeps for solutions with other numbers of heads.
const problemBytes = 32 << 20

// Start prepares a sequence.
func (s *Sequence) Start() error {
	s.sessions, s.alone, s.earlier = sessions{limit: sessionBytes}, map[int]bool{}, map[int]*fusion.Problem{}
	for _, b := range s.Batches {
		s.length = max(s.length, b.Length)
	}
	all := map[int]*fusion.BlockPlan{}
	for _, i := range s.Lab.Open() {
		all[i] = nil
	}
	var err error
	s.own, err = s.Lab.slots(all)
	return err
}

// Close frees the sessions.
func (s *Sequence) Close() { s.sessions.close() }

// Tokens to go over for statistics of sampled queries: few data are swept several times, each time with other queries.
const (
	coarseSweep = 24 << 10
	fineSweep   = 64 << 10
)

func (s *Sequence) sweeps() int { return sweeps(s.Batches, s.Fine) }

func (s *Sequence) step() {
	if s.Step != nil {
		s.Step()
	}
}

// Open lists the blocks that can be rewritten.
func (l *Lab) Open() []int {
	var out []int
	for i, b := range l.Blocks {
		if b.Fixed == "" {
			out = append(out, i)
		}
	}
	return out
}

// all merges the weights of the layers that are done with the original ones of the others.
func (s *Sequence) all(done map[int]*Layer) Slots {
	out := Slots{}
	for i, own := range s.own {
		if l := done[i]; l != nil && l.Slots != nil {
			own = l.Slots
		}
		maps.Copy(out, own)
	}
	return out
}

// normed reports whether a norm of each head follows a projection: what is folded into its weights does not pass it.
func normed(p *attention.Path) bool {
	for w := range p.Wires {
		if slices.ContainsFunc(w.Users(), func(u graph.Use) bool {
			return u.Node != nil && (u.Node.OpType == "Pow" || strings.HasPrefix(u.Node.OpType, "Reduce") || strings.HasSuffix(u.Node.OpType, "Normalization"))
		}) {
			return true
		}
	}
	return false
}

// Problem calibrates block i on the layers that are done and returns what is to be solved there.
func (s *Sequence) Problem(ctx context.Context, i int, done map[int]*Layer) (*fusion.Problem, error) {
	c, err := kept(&s.sessions, fmt.Sprint("calibration ", i), func() (*calibration, error) { return s.Lab.calibration(i, s.length, i) })
	if err != nil {
		return nil, err
	}
	stats, err := c.collect(ctx, s.Batches, s.sweeps(), s.all(done), s.step)
	if err != nil {
		return nil, err
	}
	b := s.Lab.Blocks[i]
	p := &fusion.Problem{W: s.Lab.Weights[i], S: stats[0], KeyNorm: normed(b.Key) || normed(b.Query), Seed: s.Seed}
	if s.Importance != nil {
		p.Importance = s.Importance[i]
	}
	if s.earlier[i] == nil {
		s.earlier[i] = &fusion.Problem{} // of which nothing is wanted but the groups that are found
	}
	p.Follow(s.earlier[i])
	return p, nil
}

// Layer compresses block i to the numbers of heads asked for, after the layers that are done; p is its problem there.
func (s *Sequence) Layer(ctx context.Context, i int, c fusion.Choice, p *fusion.Problem, done map[int]*Layer) (*Layer, error) {
	b := s.Lab.Blocks[i]
	l := &Layer{Choice: c, Plan: &fusion.BlockPlan{Block: b, Key: fusion.Identity(b.KVHeads), Value: fusion.Identity(b.ValueHeads)}}
	if p.S.Bytes() <= problemBytes {
		l.problem = p
	}
	if c.Key < b.KVHeads || c.Value < b.ValueHeads {
		options := s.Options
		options.Coupled = (options.Coupled || fusion.SharedCache(b)) && c.Key == c.Value && b.KVHeads == b.ValueHeads
		var err error
		if l.Solution, err = s.Strategy.Solve(p, c.Key, c.Value, options); err != nil {
			return nil, fmt.Errorf("block %q: %w", b.Name, err)
		}
		l.Plan.Key, l.Plan.Value, l.Plan.Learned = l.Solution.Key, l.Solution.Value, l.Solution.Learned
	} else if len(done) == 0 {
		l.Slots = s.own[i]
		return l, nil
	}
	if err := s.tie(i, l); err != nil {
		return nil, err
	}
	if s.Refit && b.Output != nil {
		if err := s.refit(ctx, i, l, done); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// tie makes the weights of a layer for the second branch.
func (s *Sequence) tie(i int, l *Layer) error {
	slots, err := s.Lab.slots(map[int]*fusion.BlockPlan{i: l.Plan})
	if err != nil {
		return err
	}
	l.Slots = slots[i]
	return nil
}

func (s *Sequence) refit(ctx context.Context, i int, l *Layer, done map[int]*Layer) error {
	if s.Joint {
		if fitted, err := s.joint(ctx, i, l, done); fitted || err != nil {
			return err
		}
	}
	r, err := kept(&s.sessions, fmt.Sprint("refit ", i), func() (*refit, error) { return s.Lab.refit(i) })
	if err != nil {
		return err
	}
	output, bias, err := r.solve(ctx, s.Batches, s.all(and(done, i, l)), l.Plan.Learned, s.step)
	if err != nil {
		return err
	}
	learned := fusion.Learned{}
	if l.Plan.Learned != nil {
		learned = *l.Plan.Learned
	}
	learned.Output, learned.OutputBias = output, bias
	l.Plan.Learned = &learned
	return s.tie(i, l)
}

// and adds a layer to those that are done.
func and(done map[int]*Layer, i int, l *Layer) map[int]*Layer {
	with := map[int]*Layer{i: l}
	for k, d := range done {
		if k != i {
			with[k] = d
		}
	}
	return with
}

// joint fits values and output of block i together, false where that is not possible.
func (s *Sequence) joint(ctx context.Context, i int, l *Layer, done map[int]*Layer) (bool, error) {
	if s.alone[i] {
		return false, nil
	}
	j, err := kept(&s.sessions, fmt.Sprint("joint ", i), func() (*joint, error) { return s.Lab.joint(i, s.length) })
	if errors.Is(err, errAlone) {
		s.alone[i] = true
		return false, nil
	}
	if err != nil {
		return false, err
	}
	e := coarse
	if s.Fine {
		e = fine
	}
	learned, err := j.solve(ctx, s.Batches, s.sweeps(), s.all(and(done, i, l)), l.Plan, e, s.step)
	if err != nil {
		return false, err
	}
	l.Plan.Learned = learned
	return true, s.tie(i, l)
}

// Run compresses every block, to the choice of each (in the order of Open). Layers that are kept from an earlier run
// with the same choices before them are taken over: keep holds the first of them.
func (s *Sequence) Run(ctx context.Context, choices []fusion.Choice, keep []*Layer, finished func(i int, l *Layer) error) ([]*Layer, error) {
	done := map[int]*Layer{}
	var out []*Layer
	same := true
	for n, i := range s.Lab.Open() {
		same = same && n < len(keep) && keep[n] != nil && keep[n].Choice == choices[n]
		if same {
			done[i] = keep[n]
			out = append(out, keep[n])
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var p *fusion.Problem
		if n < len(keep) && keep[n] != nil && agree(out, keep[:n]) {
			p = keep[n].problem // the layers before are the same, and so is what they make of the data
		}
		if p == nil {
			var err error
			if p, err = s.Problem(ctx, i, changed(done)); err != nil {
				return nil, err
			}
		}
		l, err := s.Layer(ctx, i, choices[n], p, changed(done))
		if err != nil {
			return nil, err
		}
		done[i] = l
		out = append(out, l)
		if finished != nil {
			if err := finished(n, l); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// agree reports whether layers are the same ones.
func agree(a, b []*Layer) bool { return slices.Equal(a, b) }

// changed leaves out the layers that have their original weights.
func changed(done map[int]*Layer) map[int]*Layer {
	out := map[int]*Layer{}
	for i, l := range done {
		if l.Plan.Learned != nil || l.Solution != nil {
			out[i] = l
		}
	}
	return out
}

// Judge measures a set of layers against the original.
type Judge struct {
	meter      *meter
	batches    []Batch
	references []*ort.Tensor
}

// Judge prepares the comparison on some batches.
func (l *Lab) Judge(ctx context.Context, batches []Batch) (*Judge, error) {
	refs, err := l.references(ctx, batches)
	if err != nil {
		return nil, err
	}
	m, err := l.meter(batches[0], refs != nil)
	if err != nil {
		return nil, err
	}
	return &Judge{m, batches, refs}, nil
}

// Close frees the session.
func (j *Judge) Close() { j.meter.close() }

// Measure returns the quality of the original and of the model with the given weights.
func (j *Judge) Measure(ctx context.Context, slots Slots, step func()) (original, now Quality, err error) {
	if step == nil {
		step = func() {}
	}
	return j.meter.measure(ctx, j.batches, slots, j.references, step)
}
