// Package verify runs pairs of models in ONNX Runtime on the same inputs and measures how far they are apart. It keeps
// two questions separate: whether a rewrite is exact (the rewritten model against its tied reference, the original graph
// with fused weights: equal up to rounding) and what the compression costs (the rewritten model against the original:
// drift).
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"onnx-dha/graph"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// Request says which models to compare, and how.
type Request struct {
	Original, Rewritten string // paths
	// Tied is the path of the tied reference; empty when there is none, and then only drift is measured.
	Tied string
	// Caches are the cache tensors that have fewer heads in the rewritten model.
	Caches []rewrite.CacheChange
	// Cases to run once each; nil for DefaultCases of the original.
	Cases []Case
	// Steps of decoding after a prefill; 0 for 20, negative for none. Models that are no decoders have none.
	Steps int
	// Prompt is the number of tokens of the prefill; 0 for 8.
	Prompt int
	// Text holds token ids that prompts and inputs are cut from; nil for random tokens.
	Text []int64
	Seed uint64
	// Logits names the output that scores tokens, when neither its name nor its width tells.
	Logits string
	// Exact and Drift judge the two comparisons; nil for Exact() and DefaultDrift().
	Exact, Drift *Tolerance
	Sizes        map[string]int         // see Case
	Feeds        map[string]*ort.Tensor // see Case
	Session      ort.Options
	// Reference is how the original and the tied reference run; nil for Session.
	Reference *ort.Options
	// Taps are values inside the models that are compared too, for Report.Layers.
	Taps []Tap
	// Inputs names the source of Cases; empty for generated ones.
	Inputs string
	// Record, when not nil, is told the inputs of each run that drift is measured on, and what the original gives.
	Record *Recorder
	// Progress, when not nil, is told after each piece of work how much is done.
	Progress func(done, total int, what string)
}

// exactSteps is how many steps after the prefill the tied reference follows in a decode; it then sits out until the last
// step, which it starts from the caches of the rewritten model: a rewrite that is exact from any one step to the next, and
// was from the start, is exact all along, and the reference need not be run twenty times to show it.
const exactSteps = 2

// Steps and prompt length when a request names none.
const (
	DefaultSteps  = 20
	DefaultPrompt = 8
)

// Run compares the models of a request. An error means that the comparison could not be made; what the comparison
// found, failures included, is in the report.
func Run(ctx context.Context, q Request) (*Report, error) {
	r, err := newPairRun(q)
	if err != nil {
		return nil, err
	}
	defer r.close()
	var decodes []decodeCase
	if q.Steps >= 0 {
		decodes = r.decodeCases()
	}
	cases := q.Cases
	if cases == nil {
		cases = DefaultCases(r.original.Signature)
	}
	total, done := len(cases)+len(decodes), 0
	tick := func(what string) {
		done++
		if q.Progress != nil {
			q.Progress(done, total, what)
		}
	}
	for _, c := range cases {
		if err := r.single(ctx, c); err != nil {
			return nil, err
		}
		tick(c.Name)
	}
	for _, d := range decodes {
		if err := r.decode(ctx, d); err != nil {
			return nil, err
		}
		tick(d.name)
	}
	rep, err := r.report()
	if err != nil {
		return nil, err
	}
	return rep, rep.plainly(ctx, q)
}

// pairRun is one comparison under way.
type pairRun struct {
	Request
	original, rewritten *Model
	tied                *Model // nil without a reference
	maps                headMaps
	exact, drift        *section
	cached              [][]bool // positions of the run under comparison that are no padding, [batch][past+seq]; nil: all
	golden, given       *section // rewritten and original against outputs that came with the inputs; nil without any
	taps                []*settled
	untapped            []string
	notes               []string
	step                int // of the decode under way
	timing              Timing
	started             time.Time
}

func newPairRun(q Request) (*pairRun, error) {
	r := &pairRun{Request: q, maps: mapsByName(q.Caches), started: time.Now()}
	r.timing.Load, r.timing.Run = map[string]float64{}, map[string]float64{}
	if err := r.open(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *pairRun) open() error {
	q := r.Request
	exact, drift := q.Exact, q.Drift
	if exact == nil {
		t := Exact()
		exact = &t
	}
	if drift == nil {
		t := DefaultDrift()
		drift = &t
	}
	if err := errors.Join(exact.Check(), drift.Check()); err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	reference := q.Session
	if q.Reference != nil {
		reference = *q.Reference
	}
	// Reading weights and arranging them is work for one processor: three at once fill two better than one after two.
	sides := []struct {
		what, path string
		o          ort.Options
		to         **Model
		seconds    float64
		err        error
	}{
		{what: "original", path: q.Original, o: reference, to: &r.original},
		{what: "rewritten", path: q.Rewritten, o: q.Session, to: &r.rewritten},
		{what: "tied reference", path: q.Tied, o: reference, to: &r.tied},
	}
	var loading sync.WaitGroup
	for i := range sides {
		if s := &sides[i]; s.path != "" {
			loading.Go(func() {
				start := time.Now()
				*s.to, s.err = r.load(s.what, s.path, s.o)
				s.seconds = time.Since(start).Seconds()
			})
		}
	}
	loading.Wait()
	for _, s := range sides {
		if s.err != nil {
			return s.err
		}
		if s.path != "" {
			r.timing.Load[s.what] = s.seconds
		}
	}
	if err := sameInputs(r.original, r.rewritten); err != nil {
		return err
	}
	if q.Logits != "" {
		if !slices.Contains(r.original.Outputs, q.Logits) {
			return fmt.Errorf("model %q has no output %q to take for logits; it has %v", q.Original, q.Logits, r.original.Outputs)
		}
		r.original.Logits, r.rewritten.Logits = q.Logits, q.Logits
	}
	if r.original.lengths {
		r.note("sequences of one length only: the model's GroupQueryAttention takes lengths, not masks")
	}
	r.drift = &section{reference: r.original, tolerance: drift.For(r.original.Precision)}
	if q.Tied == "" {
		agree(r.rewritten, r.original)
		return nil
	}
	if err := sameInputs(r.tied, r.rewritten); err != nil {
		return err
	}
	agree(r.rewritten, r.original, r.tied)
	r.tied.Logits = r.original.Logits
	r.exact = &section{reference: r.tied, tolerance: exact.For(r.original.Precision)}
	return nil
}

// settle chooses the wires that are tapped in all models.
func (r *pairRun) settle() error {
	if len(r.Taps) == 0 {
		return nil
	}
	var models []*graph.Model
	for _, path := range []string{r.Original, r.Rewritten, r.Tied} {
		if path == "" {
			continue
		}
		m, err := graph.Load(path)
		if err != nil {
			return err
		}
		defer m.Close()
		models = append(models, m)
	}
	r.taps, r.untapped = settleTaps(r.Taps, models...)
	return nil
}

// load opens one of the models, with the tapped wires as outputs.
func (r *pairRun) load(what, path string, o ort.Options) (*Model, error) {
	var m *Model
	var err error
	if len(r.taps) == 0 {
		m, err = Open(path, o)
	} else {
		var values []string
		for _, t := range r.taps {
			values = append(values, t.value)
		}
		m, err = openTapped(path, values, o)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return m, nil
}

// agree gives inputs of one name the same meaning in all models: what an input is an index into can be hidden in one of
// them, inside a fused operator or a function, and values are made by it.
func agree(models ...*Model) {
	for _, m := range models {
		for _, in := range m.Inputs {
			if in.Rows == 0 {
				continue
			}
			for _, other := range models {
				if o := other.input(in.Name); o != nil && o.Rows == 0 {
					o.Role, o.Rows = in.Role, in.Rows
				}
			}
		}
	}
}

func (r *pairRun) close() {
	for _, m := range []*Model{r.original, r.rewritten, r.tied} {
		if m != nil {
			m.Close()
		}
	}
	r.original, r.rewritten, r.tied = nil, nil, nil
}

// sameInputs verifies that two models can be fed the same.
func sameInputs(a, b *Model) error {
	for _, pair := range [][2]*Model{{a, b}, {b, a}} {
		for _, in := range pair[0].Inputs {
			other := pair[1].input(in.Name)
			if other == nil && in.Role == Places {
				continue // says nothing that the other does not see by its cache
			}
			if other == nil {
				return fmt.Errorf("model %q has an input %q that model %q lacks; its inputs are %v",
					pair[0].Path, in.Name, pair[1].Path, pair[1].inputNames())
			}
			if other.DType != in.DType || len(other.Dims) != len(in.Dims) {
				return fmt.Errorf("input %q is %v with %d axes in model %q and %v with %d in model %q",
					in.Name, in.DType, len(in.Dims), pair[0].Path, other.DType, len(other.Dims), pair[1].Path)
			}
		}
	}
	return nil
}

// prompt cuts n tokens for each of count sequences out of the request's text, or draws them.
func (r *pairRun) prompt(count, n int) [][]int64 { return r.original.Prompts(r.Text, r.Seed, count, n) }

// Prompts cuts n tokens for each of count sequences out of a text, or draws them where it is empty. A model without an input
// of token ids has none.
func (s *Signature) Prompts(text []int64, seed uint64, count, n int) [][]int64 {
	in := s.input(s.Tokens)
	if in == nil {
		return nil
	}
	rows := cmp.Or(in.Rows, defaultVocabulary)
	rng := rand.New(rand.NewPCG(seed, uint64(count*1000+n)))
	out := make([][]int64, count)
	for b := range out {
		out[b] = make([]int64, n)
		start := 0
		if spare := len(text) - n; spare > 0 {
			start = rng.IntN(spare)
		}
		for i := range out[b] {
			if len(text) > 0 {
				out[b][i] = text[(start+i)%len(text)]
			} else {
				out[b][i] = rng.Int64N(rows)
			}
		}
	}
	return out
}

// single runs one case once.
func (r *pairRun) single(ctx context.Context, c Case) error {
	c = r.original.settle(c)
	c.Sizes, c.Feeds = merge(r.Sizes, c.Sizes), merge(r.Feeds, c.Feeds)
	b := batch{Case: c, seed: r.Seed, tokens: c.Tokens}
	if r.Text != nil && b.tokens == nil {
		b.tokens = r.prompt(c.Batch, c.Seq)
	}
	if c.Padding {
		b.real = padding(c.Batch, c.Past+c.Seq)
	}
	// Caches of the compressed size are made first; the others' hold copies of these heads.
	in, err := r.rewritten.feed(b, nil)
	if err != nil {
		return fmt.Errorf("case %s, model %q: %w", c.Name, r.Rewritten, err)
	}
	expanded := map[string]*ort.Tensor{}
	for _, cache := range r.rewritten.Inputs {
		if _, ok := r.maps[cache.Name]; ok {
			if expanded[cache.Name], err = r.maps.expand(cache.Name, in[cache.Name]); err != nil {
				return err
			}
		}
	}
	// Without a cache to start from both models see the same. Invented keys and values that all heads of a group share
	// say nothing about the drift of the model, whose heads would differ.
	drifts := c.Past == 0 || len(r.maps) == 0
	if _, fixed := r.original.fixed[Past]; fixed && !drifts {
		if err := r.hidden(ctx, b); err != nil {
			return err
		}
	}
	if r.exact == nil && !drifts {
		return nil
	}
	got, err := r.rewritten.run(ctx, in)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := err
	for _, s := range []*section{r.exact, r.drift} {
		if s == nil || s == r.drift && !drifts {
			continue
		}
		refIn, err := s.reference.feed(b, expanded)
		if err != nil {
			return fmt.Errorf("case %s, model %q: %w", c.Name, s.reference.Path, err)
		}
		ref, err := s.reference.run(ctx, refIn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.note("case %s is left out: %v", c.Name, err)
			return nil
		}
		if s == r.drift {
			if err := r.Record.single(r.original, c.Name, refIn, ref, newest(b.real, c.Seq)); err != nil {
				return err
			}
			r.expected(c, ref, got)
		}
		if limit(failure) {
			r.note("case %s is left out: the rewritten model's GroupQueryAttention takes several tokens after a past for one sequence only", c.Name)
			return nil
		}
		if failure != nil {
			s.fail(c.Name, failure)
			continue
		}
		r.cached = b.real
		r.compare(s, c.Name, ref, got, newest(b.real, c.Seq))
	}
	return nil
}

// hidden measures drift on a model whose cache has a fixed length: with a mask over all of it, a cache says nothing.
func (r *pairRun) hidden(ctx context.Context, b batch) error {
	if !r.original.pads() {
		r.note("drift cannot be measured on a cache of fixed length without a mask to hide it")
		return nil
	}
	b.Name += " hidden"
	b.real = make([][]bool, b.Batch)
	for i := range b.real {
		b.real[i] = append(make([]bool, b.Past), slices.Repeat([]bool{true}, b.Seq)...)
	}
	var out [2]map[string]*ort.Tensor
	for i, m := range []*Model{r.original, r.rewritten} {
		in, err := m.feed(b, nil)
		if err != nil {
			return fmt.Errorf("case %s, model %q: %w", b.Name, m.Path, err)
		}
		out[i], err = m.run(ctx, in)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && m == r.original:
			r.note("case %s is left out: %v", b.Name, err)
			return nil
		case err != nil:
			r.drift.fail(b.Name, err)
			return nil
		}
	}
	r.compare(r.drift, b.Name, out[0], out[1], nil)
	return nil
}

func merge[V any](base, over map[string]V) map[string]V {
	out := map[string]V{}
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		out[k] = v
	}
	return out
}

// newest returns the last n columns.
func newest(real [][]bool, n int) [][]bool {
	if real == nil {
		return nil
	}
	out := make([][]bool, len(real))
	for b, row := range real {
		out[b] = row[len(row)-n:]
	}
	return out
}

func (r *pairRun) note(format string, args ...any) {
	n := fmt.Sprintf(format, args...)
	if !slices.Contains(r.notes, n) {
		r.notes = append(r.notes, n)
	}
}

// compare adds the outputs of one run to the lines of a section. The exactness of a rewrite covers everything (but for
// padding where an operator has a way of its own with it); drift leaves out padding, whose values nobody reads, and the
// caches, whose heads are not the original's.
func (r *pairRun) compare(s *section, name string, ref, got map[string]*ort.Tensor, real [][]bool) {
	for _, output := range s.reference.Outputs {
		if ref[output] == nil {
			continue
		}
		cache := s.reference.isPresent(output)
		if cache && s == r.drift && len(r.maps) > 0 {
			continue
		}
		l := s.line(name, output, s.reference.Logits == output, cache)
		l.steps++
		l.at = append(l.at, r.step)
		t, ok := got[output]
		if !ok {
			l.err = fmt.Sprintf("the rewritten model has no output %q", output)
			continue
		}
		t, err := r.maps.expand(output, t)
		if err == nil {
			keep, want := real, ref[output]
			switch {
			case s != r.exact:
			case !r.rewritten.causal:
				keep = nil
			case cache && r.cached != nil:
				axis := s.reference.axisOf(output)
				want, t, keep = blanked(want, axis, r.cached), blanked(t, axis, r.cached), nil
			}
			err = l.meter.Add(want, t, keep)
		}
		if err != nil {
			l.err = err.Error()
		}
	}
	r.compareTaps(s, ref, got, real)
}

// decodeCase is a prefill and the steps after it.
type decodeCase struct {
	name          string
	batch, prompt int
	padded        bool
	steps         int
}

func (r *pairRun) decodeCases() []decodeCase {
	m := r.original
	if !m.IsDecoder() {
		return nil
	}
	if n, ok := m.fixed[Past]; ok {
		r.note("no decode: the model's cache has a fixed length of %d", n)
		return nil
	}
	steps, prompt := cmp.Or(r.Steps, DefaultSteps), cmp.Or(r.Prompt, DefaultPrompt)
	if n, ok := m.fixed[Seq]; ok {
		prompt = n
	}
	if rows := m.positions(); rows > 0 && prompt+steps > rows {
		r.note("decode is cut short: the model has %d positions", rows)
		prompt = min(prompt, rows-1)
		steps = rows - prompt
	}
	var out []decodeCase
	for _, n := range []int{1, 2} {
		if b, ok := m.fixed[Batch]; ok && b != n {
			continue
		}
		d := decodeCase{batch: n, prompt: prompt, steps: steps, padded: n > 1 && m.pads() && prompt > 1}
		d.name = fmt.Sprintf("decode B%d S%d+%d", n, prompt, steps)
		if d.padded {
			d.name += " padded"
		}
		out = append(out, d)
	}
	return out
}

// decode runs a prefill and then single steps, all models on the tokens that the original finds most likely, each with
// its own cache.
func (r *pairRun) decode(ctx context.Context, c decodeCase) error {
	tokens := r.prompt(c.batch, c.prompt)
	var real [][]bool
	if c.padded {
		real = padding(c.batch, c.prompt)
		// A short sequence stands at the end of its row.
		for b := range tokens {
			copy(tokens[b][b:], slices.Clone(tokens[b]))
		}
	}
	decoders := map[*Model]*Decoder{}
	fixed, err := r.fixedInputs(c.batch)
	if err != nil {
		return err
	}
	for _, m := range []*Model{r.original, r.rewritten, r.tied} {
		if m == nil {
			continue
		}
		d, err := m.NewDecoder(c.batch, r.Seed, fixed[m])
		if err != nil {
			return err
		}
		d.sizes = r.Sizes
		decoders[m] = d
	}
	var fed [][][]int64
	var scores []*ort.Tensor
	defer func() { r.step = 0 }()
	for step := 0; step <= c.steps; step++ {
		r.step = step
		out := map[*Model]map[string]*ort.Tensor{}
		exact := r.tied != nil && (step <= exactSteps || step == c.steps)
		if exact && step > exactSteps+1 {
			if err := decoders[r.tied].adopt(decoders[r.rewritten], r.maps); err != nil {
				return fmt.Errorf("%s, step %d: %w", c.name, step, err)
			}
		}
		for _, m := range []*Model{r.original, r.tied, r.rewritten} {
			if m == nil || m == r.tied && !exact {
				continue
			}
			o, err := decoders[m].Step(ctx, tokens, real)
			var refused *refusal
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case m != r.rewritten && errors.As(err, &refused):
				r.note("%s ends before step %d: %v", c.name, step, err)
				return nil
			case err != nil && m != r.rewritten:
				return fmt.Errorf("%s, step %d: %w", c.name, step, err)
			case err != nil:
				for _, s := range []*section{r.exact, r.drift} {
					if s != nil {
						s.fail(c.name, fmt.Errorf("step %d: %w", step, err))
					}
				}
				return nil
			}
			out[m] = o
		}
		fed, scores = append(fed, tokens), append(scores, out[r.original][r.original.Logits])
		for _, s := range []*section{r.exact, r.drift} {
			if s == nil || s == r.exact && !exact {
				continue
			}
			ref := out[s.reference]
			if !s.reference.grows() {
				// Without a cache a step repeats the earlier ones; the new tokens' scores are all that is new.
				ref = map[string]*ort.Tensor{s.reference.Logits: ref[s.reference.Logits]}
			}
			r.cached = decoders[r.rewritten].real
			r.compare(s, c.name, ref, out[r.rewritten], real)
		}
		t, err := next(out[r.original][r.original.Logits])
		if err != nil {
			return fmt.Errorf("model %q: %w", r.Original, err)
		}
		tokens = make([][]int64, len(t))
		for b := range t {
			tokens[b] = []int64{t[b]}
		}
		real = nil
	}
	return r.Record.decode(r.original, c, fed, scores, fixed[r.original])
}

// fixedInputs makes, for each model, the inputs that stay the same through a decode and whose heads must be mapped:
// the keys and values of a cross attention. Everything else is generated alike by each model's decoder.
func (r *pairRun) fixedInputs(n int) (map[*Model]map[string]*ort.Tensor, error) {
	out := map[*Model]map[string]*ort.Tensor{}
	for _, m := range []*Model{r.original, r.rewritten, r.tied} {
		if m != nil {
			out[m] = merge(r.Feeds, nil)
		}
	}
	c := r.rewritten.settle(Case{Name: "decode", Batch: n, Seq: 1, Sizes: r.Sizes, Feeds: r.Feeds})
	in, err := r.rewritten.feed(batch{Case: c, seed: r.Seed}, nil)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", r.Rewritten, err)
	}
	for _, i := range r.rewritten.Inputs {
		if _, mapped := r.maps[i.Name]; !mapped {
			continue
		}
		if c := r.rewritten.cacheOf(i.Name); c != nil && c.Grows {
			continue
		}
		expanded, err := r.maps.expand(i.Name, in[i.Name])
		if err != nil {
			return nil, err
		}
		for m, given := range out {
			given[i.Name] = expanded
			if m == r.rewritten {
				given[i.Name] = in[i.Name]
			}
		}
	}
	return out, nil
}

// report gathers what was found.
func (r *pairRun) report() (*Report, error) {
	rep := &Report{
		Schema: SchemaVersion, Original: filepath.Base(r.Original), Rewritten: filepath.Base(r.Rewritten), Inputs: "generated",
		Runtime: ort.Version(), Provider: cmp.Or(r.Session.Provider, "cpu"), Seed: r.Seed, Notes: r.notes, Layers: r.layers(),
	}
	rep.Inputs = cmp.Or(r.Inputs, rep.Inputs)
	if r.Reference != nil && cmp.Or(r.Reference.Provider, "cpu") != rep.Provider {
		rep.ReferenceProvider = cmp.Or(r.Reference.Provider, "cpu")
	}
	if r.exact != nil {
		rep.Exact = r.exact.result("tied reference")
	}
	rep.Drift = r.drift.result("original")
	if r.golden != nil {
		rep.Golden, rep.OriginalGolden = r.golden.result("expected outputs"), r.given.result("expected outputs")
	}
	if len(rep.Drift.Lines) == 0 {
		rep.Notes = append(rep.Notes, "drift was not measured: every case starts from an invented cache")
	}
	if len(rep.Drift.Lines) == 0 && (rep.Exact == nil || len(rep.Exact.Lines) == 0) {
		return nil, fmt.Errorf("nothing could be compared: %s", cmp.Or(strings.Join(r.notes, "; "), "no case was given"))
	}
	for what, m := range map[string]*Model{"original": r.original, "rewritten": r.rewritten, "tied reference": r.tied} {
		if m != nil {
			r.timing.Run[what] = m.spent.Seconds()
		}
	}
	r.timing.Total = time.Since(r.started).Seconds()
	rep.Timing = &r.timing
	rep.Judge()
	return rep, nil
}
