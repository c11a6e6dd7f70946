package fusion

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"gonum.org/v1/gonum/mat"
)

// Problem is one block to be fused: its weights and what calibration says of it. Results of searches are kept in it, so
// that Errors and Solve for several numbers of heads do the work once; it is safe for concurrent use. W and S must not
// change after the first use.
type Problem struct {
	W *Weights
	S *Stats
	// KeyNorm says that a norm of each head follows the key projection (Qwen3). Keys are then mixed by one weight per
	// head: no turn or gain passes the norm exactly.
	KeyNorm bool
	// Importance is how much an error counts in what each query head gives, positive numbers; nil counts all alike.
	Importance []float64
	// Seed starts the searches that are not exact.
	Seed uint64

	once         sync.Once
	keys, values moments
	keyNote      string
	valueNote    string
	err          error

	mu     sync.Mutex
	costs  map[string]float64
	groups *groupings
}

// groupings are partitions that searches have found.
type groupings struct {
	mu sync.Mutex
	m  map[string][][]int
}

func (g *groupings) get(key string) ([][]int, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p, ok := g.m[key]
	return p, ok
}

func (g *groupings) put(key string, p [][]int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m == nil {
		g.m = map[string][][]int{}
	}
	g.m[key] = p
}

// Follow makes p take the groups that were found on earlier, a problem of the same block with other statistics, and look
// for those only that were not: the search is most of the work, and groups change little when layers before are
// compressed otherwise. It is called before p is first used.
func (p *Problem) Follow(earlier *Problem) { p.groups = earlier.found() }

// found returns the store of groups.
func (p *Problem) found() *groupings {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.groups == nil {
		p.groups = &groupings{}
	}
	return p.groups
}

// kind is one of the two kinds of heads.
type kind int

const (
	keyKind kind = iota
	valueKind
)

func (k kind) String() string { return [...]string{"key", "value"}[k] }

func (p *Problem) check() error {
	if n := len(p.Importance); n != 0 && n != p.W.Heads {
		return fmt.Errorf("importance of %d query heads; want %d", n, p.W.Heads)
	}
	for h, x := range p.Importance {
		if !(x > 0) || math.IsInf(x, 1) {
			return fmt.Errorf("the importance of query head %d is %g; want a positive number", h, x)
		}
	}
	return p.S.check(p.W)
}

// moments returns those of a kind, computed on first use.
func (p *Problem) moments(k kind) (moments, error) {
	p.once.Do(func() {
		if p.err = p.check(); p.err == nil {
			p.keys, p.err = p.keyMoments()
		}
		if p.err == nil {
			p.values, p.err = p.valueMoments()
		}
		p.costs = map[string]float64{}
	})
	if p.err != nil {
		return nil, p.err
	}
	if k == keyKind {
		return p.keys, nil
	}
	return p.values, nil
}

func (p *Problem) keyMoments() (moments, error) {
	k, err := newKeys(p.W, p.S.counted(p.Importance))
	if err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if p.KeyNorm {
		p.keyNote = "a norm of each head follows the key projection: keys are mixed by one weight per head, nothing is folded into the queries"
		return rigid{k}, nil
	}
	return k, nil
}

// dim is the number of channels of a head.
func (p *Problem) dim(k kind) int {
	if k == keyKind {
		return p.W.HeadDim
	}
	return p.W.ValueDim
}

// freeConstant tells whether an error of the output that is the same for every token costs nothing, since an output bias
// takes it up: rows of attention probabilities add up to 1, so that what is constant in the values stays constant.
func (p *Problem) freeConstant() bool { return p.W.OutputBias != nil && p.S.AttendedMean != nil }

func (p *Problem) valueMoments() (moments, error) {
	seen := slices.Clone(p.S.Attended)
	if len(seen) == 0 {
		seen = []*mat.SymDense{p.S.Value}
	}
	if p.freeConstant() {
		for i, c := range seen {
			means := p.S.AttendedMean
			if len(seen) > 1 {
				means = means[i : i+1]
			}
			seen[i] = centred(c, means)
		}
	}
	d := p.W.ValueDim
	weight := make([]*mat.SymDense, p.W.Heads)
	for h := range weight {
		counts := 1.0
		if p.Importance != nil {
			counts = p.Importance[h]
		}
		if p.W.Output == nil {
			weight[h] = symmetric(scaledIdentity(d, counts))
			continue
		}
		o := p.W.Output.Slice(h*d, (h+1)*d, 0, p.W.Output.RawMatrix().Cols)
		weight[h] = mat.NewSymDense(d, nil)
		weight[h].SymOuterK(counts, o)
	}
	s, err := newStack(d, readers(p.W.ValueOf, p.W.ValueHeads), weight, seen, p.S.Value)
	if err != nil {
		return nil, fmt.Errorf("values: %w", err)
	}
	if p.W.Output == nil {
		p.valueNote = "no projection follows the values: they are mixed by one weight per head, nothing is folded into the output"
		return rigid{s}, nil
	}
	return s, nil
}

// memo returns f(), kept under the name and the heads of a group.
func (p *Problem) memo(name string, group []int, f func() (float64, error)) (float64, error) {
	k := make([]byte, 0, len(name)+2*len(group))
	k = append(k, name...)
	for _, h := range group {
		k = append(k, byte(h), byte(h>>8))
	}
	p.mu.Lock()
	x, ok := p.costs[string(k)]
	p.mu.Unlock()
	if ok {
		return x, nil
	}
	x, err := f()
	if err == nil {
		p.mu.Lock()
		p.costs[string(k)] = x
		p.mu.Unlock()
	}
	return x, err
}
