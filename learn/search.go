package learn

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"onnx-dha/fusion"
)

// search finds the numbers of heads of every layer by measured divergence from the original.
type search struct {
	seq    *Sequence
	judge  *Judge
	layout fusion.Layout
	table  func(block int) fusion.Table // before anything is measured
	memo   map[string]float64           // what was measured before, by description; kept in the state for resuming
	saved  func() error                 // after every measurement
	note   func(what string)
	prefix string // of the descriptions

	tables    []fusion.Table
	incumbent []*Layer
}

// counts are the numbers of n heads whose effect is measured: three quarters, half, a quarter and one, and all of them
// where heads are few.
func counts(n int) []int {
	if n <= 4 {
		var out []int
		for c := n - 1; c >= 1; c-- {
			out = append(out, c)
		}
		return out
	}
	out := []int{3 * n / 4, n / 2, n / 4, 1}
	slices.SortFunc(out, func(a, b int) int { return b - a })
	return slices.Compact(out)
}

// measured returns f(), which is kept under its description.
func (s *search) measured(what string, f func() (float64, error)) (float64, error) {
	what = s.prefix + what
	if x, ok := s.memo[what]; ok {
		return x, nil
	}
	x, err := f()
	if err != nil {
		return 0, err
	}
	s.memo[what] = x
	if s.saved != nil {
		err = s.saved()
	}
	return x, err
}

// measure fills the tables: the divergence when one layer and one kind of heads alone is shared, measured for some
// numbers of heads and carried over to the others by the ratio of their closed-form errors.
func (s *search) measure(ctx context.Context) error {
	l := s.seq.Lab
	open := l.Open()
	s.tables = make([]fusion.Table, len(open))
	for n, i := range open {
		b := l.Blocks[i]
		s.note(fmt.Sprintf("effect of layer %d of %d", n+1, len(open)))
		p, err := s.seq.Problem(ctx, i, nil)
		if err != nil {
			return err
		}
		t := s.table(i)
		for _, kind := range []struct {
			name   string
			heads  int
			choice func(c int) fusion.Choice
			errors func(*fusion.Problem, fusion.SolveOptions) ([]float64, error)
			to     *[]float64
		}{
			{"key", b.KVHeads, func(c int) fusion.Choice { return fusion.Choice{Key: c, Value: b.ValueHeads} }, s.seq.Strategy.KeyErrors, &t.Key},
			{"value", b.ValueHeads, func(c int) fusion.Choice { return fusion.Choice{Key: b.KVHeads, Value: c} }, s.seq.Strategy.ValueErrors, &t.Value},
		} {
			options := s.seq.Options
			options.Coupled, options.Nested = false, false // of one kind alone
			errors, err := kind.errors(p, options)
			if err != nil {
				return fmt.Errorf("block %q: %w", b.Name, err)
			}
			known := map[int]float64{kind.heads: 0}
			for _, c := range counts(kind.heads) {
				if s.layout == fusion.UniformLayout || math.IsInf(errors[c-1], 1) {
					continue
				}
				known[c], err = s.measured(fmt.Sprintf("%s of layer %d to %d", kind.name, n, c), func() (float64, error) {
					layer, err := s.seq.Layer(ctx, i, kind.choice(c), p, nil)
					if err != nil {
						return 0, err
					}
					return s.divergence(ctx, map[int]*Layer{i: layer})
				})
				if err != nil {
					return err
				}
			}
			*kind.to = carry(errors, known)
		}
		s.tables[n] = t
	}
	return nil
}

// carry estimates the effect of every number of heads n = 1 … from the closed-form errors (index n−1) and the effects
// that are known: between two known numbers the effect of a unit of error goes over geometrically.
func carry(errors []float64, known map[int]float64) []float64 {
	top := len(errors)
	out := make([]float64, top)
	type point struct {
		n    int
		unit float64 // effect per error
	}
	var points []point
	for n := 1; n < top; n++ {
		if x, ok := known[n]; ok && errors[n-1] > 0 {
			points = append(points, point{n, max(x, 1e-12) / errors[n-1]})
		}
	}
	for n := 1; n <= top; n++ {
		switch x, ok := known[n]; {
		case math.IsInf(errors[n-1], 1):
			out[n-1] = math.Inf(1)
		case ok:
			out[n-1] = x
		case len(points) == 0:
			out[n-1] = errors[n-1]
		default:
			at := slices.IndexFunc(points, func(p point) bool { return p.n > n })
			switch {
			case at < 0:
				out[n-1] = errors[n-1] * points[len(points)-1].unit
			case at == 0:
				out[n-1] = errors[n-1] * points[0].unit
			default:
				a, b := points[at-1], points[at]
				f := float64(n-a.n) / float64(b.n-a.n)
				out[n-1] = errors[n-1] * math.Pow(a.unit, 1-f) * math.Pow(b.unit, f)
			}
		}
	}
	// Fewer heads never count as better: what is measured as such is noise.
	least := 0.0
	for n := top; n >= 1; n-- {
		if !math.IsInf(out[n-1], 1) {
			out[n-1] = max(out[n-1], least)
			least = out[n-1]
		}
	}
	return out
}

// divergence measures the model with the given layers, KL in nats a position.
func (s *search) divergence(ctx context.Context, layers map[int]*Layer) (float64, error) {
	_, q, err := s.judge.Measure(ctx, s.seq.all(layers), s.seq.step)
	return q.KL, err
}

func key(choices []fusion.Choice) string { return fmt.Sprint(choices) }

// try compresses the whole model to the choices and measures it. Layers before the first that differs from the
// incumbent's are taken over.
func (s *search) try(ctx context.Context, choices []fusion.Choice) (kl float64, layers []*Layer, err error) {
	kl, err = s.measured("model of "+key(choices), func() (float64, error) {
		if layers, err = s.seq.Run(ctx, choices, s.incumbent, nil); err != nil {
			return 0, err
		}
		return s.divergence(ctx, s.seq.byBlock(layers))
	})
	return kl, layers, err
}

// byBlock indexes layers by the number of their block.
func (s *Sequence) byBlock(layers []*Layer) map[int]*Layer {
	out := map[int]*Layer{}
	for n, i := range s.Lab.Open() {
		if n < len(layers) && layers[n] != nil {
			out[i] = layers[n]
		}
	}
	return out
}

// bytes is what the choices take in the cache at one position.
func (s *search) bytes(choices []fusion.Choice) (n int64) {
	for l, c := range choices {
		n += int64(c.Key)*s.tables[l].KeyBytes + int64(c.Value)*s.tables[l].ValueBytes
	}
	return n
}

// move is a change of an allocation with what the tables expect of it.
type move struct {
	choices []fusion.Choice
	gain    float64 // expected fall of the sum of effects
}

// site is a number of heads that can be changed.
type site struct{ layer, kind int }

func (x site) of(c *fusion.Choice) *int {
	if x.kind == 0 {
		return &c.Key
	}
	return &c.Value
}

// next moves a number of heads to the nearest possible one above (by 1) or below (by −1). Where the numbers of a layer hang
// together, the other goes to the nearest that fits. It is false where there is none.
func (s *search) next(choices []fusion.Choice, x site, by int) ([]fusion.Choice, bool) {
	t, now := s.tables[x.layer], choices[x.layer]
	cost := [2][]float64{t.Key, t.Value}
	possible := func(c fusion.Choice) bool {
		return !math.IsInf(t.Key[c.Key-1]+t.Value[c.Value-1], 1) && (t.Pairs == nil || t.Pairs(c.Key, c.Value))
	}
	other := site{x.layer, 1 - x.kind}
	for n := *x.of(&now) + by; n >= 1 && n <= len(cost[x.kind]); n += by {
		c := now
		*x.of(&c) = n
		best, found := c, false
		for m := range cost[other.kind] {
			*other.of(&c) = m + 1
			if possible(c) && (!found || distance(c, now, other) < distance(best, now, other)) {
				best, found = c, true
			}
		}
		if found {
			out := slices.Clone(choices)
			out[x.layer] = best
			return out, true
		}
	}
	return nil, false
}

func distance(a, b fusion.Choice, x site) int {
	d := *x.of(&a) - *x.of(&b)
	return max(d, -d)
}

// moves lists the allocations of at most budget bytes that differ from the choices in one head more here and one or two
// fewer there, those that the tables expect most of first.
func (s *search) moves(choices []fusion.Choice, budget int64) []move {
	cost := func(c []fusion.Choice) (sum float64) {
		for l, x := range c {
			sum += s.tables[l].Key[x.Key-1] + s.tables[l].Value[x.Value-1]
		}
		return sum
	}
	var sites []site
	for l := range choices {
		sites = append(sites, site{l, 0}, site{l, 1})
	}
	var out []move
	before := cost(choices)
	for _, up := range sites {
		more, ok := s.next(choices, up, 1)
		if !ok {
			continue
		}
		for _, down := range sites {
			if down == up {
				continue
			}
			c := more
			for ok := true; ok && s.bytes(c) > budget; {
				var fewer []fusion.Choice
				if fewer, ok = s.next(c, down, -1); ok {
					c = fewer
				}
			}
			if s.bytes(c) <= budget && *up.of(&c[up.layer]) > *up.of(&choices[up.layer]) {
				out = append(out, move{c, before - cost(c)})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b move) int { return cmp.Compare(b.gain, a.gain) })
	return out
}

// allocate finds the choices for a budget of cache bytes a position: the best by the tables, then improved by trials of
// the whole model, at most the given number of them.
func (s *search) allocate(ctx context.Context, budget int64, trials int) ([]fusion.Choice, float64, error) {
	choices, err := fusion.Allocate(s.tables, budget, s.layout)
	if err != nil {
		return nil, 0, err
	}
	s.note("first allocation")
	best, layers, err := s.try(ctx, choices)
	if err != nil {
		return nil, 0, err
	}
	s.incumbent = layers
	if s.layout == fusion.UniformLayout { // of one number there is no neighbour in the budget
		return choices, best, nil
	}
	tried := map[string]bool{key(choices): true}
	for again := true; again && trials > 0; {
		again = false
		for _, m := range s.moves(choices, budget) {
			if tried[key(m.choices)] {
				continue
			}
			if trials == 0 {
				break
			}
			tried[key(m.choices)] = true
			trials--
			s.note(fmt.Sprintf("trial: KL %.4g so far, %d left", best, trials))
			kl, layers, err := s.try(ctx, m.choices)
			if err != nil {
				return nil, 0, err
			}
			if kl < best {
				best, choices, s.incumbent, again = kl, m.choices, layers, true
				break
			}
		}
	}
	return choices, best, nil
}
