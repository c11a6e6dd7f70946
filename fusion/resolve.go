package fusion

import (
	"fmt"
	"path/filepath"
	"strings"

	"onnx-dha/graph/attention"
	"onnx-dha/internal/suggest"
)

// Resolve turns the configuration into a plan for the blocks of a model. Every named block must exist and its groups
// must partition the block's key or value heads; a side that is not given stays as it is, a block that is not named is in
// the plan only where the lowering changes its cache. The plan follows the order of blocks. Errors are of type *Error, at the place in the file where there is one.
func (c *Config) Resolve(blocks []*attention.Block) (*Plan, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	layers, found := make(map[string]*Layer, len(c.Layers)), map[string]bool{}
	for i := range c.Layers {
		layers[c.Layers[i].Block] = &c.Layers[i]
	}
	p := &Plan{Lowering: c.lowering()}
	for _, b := range blocks {
		l := layers[b.Name]
		if l == nil {
			if p.Lowering == StaticCache && b.Fixed == "" && (b.KeyCache != nil || b.ValCache != nil) {
				// A model has one kind of cache.
				p.Blocks = append(p.Blocks, BlockPlan{Block: b, Key: Identity(b.KVHeads), Value: Identity(b.ValueHeads)})
			}
			continue
		}
		found[b.Name] = true // a layer that is in several bodies comes several times
		if b.Fixed != "" {
			return nil, c.src.errorf(l.at, "block %q cannot be rewritten: %s", b.Name, b.Fixed)
		}
		bp := BlockPlan{Block: b, Key: Identity(b.KVHeads), Value: Identity(b.ValueHeads)}
		for _, s := range l.sides() {
			heads := b.KVHeads
			if s.heads == l.Value {
				heads = b.ValueHeads
			}
			f, err := s.heads.resolve(c.src, s.name, b.Name, heads)
			if err != nil {
				return nil, err
			}
			if s.heads == l.Key {
				bp.Key = f
			} else {
				bp.Value = f
			}
		}
		p.Blocks = append(p.Blocks, bp)
	}
	for i := range c.Layers { // in file order, so that the first wrong name is reported
		if l := &c.Layers[i]; !found[l.Block] {
			return nil, c.unknownBlock(l, blocks)
		}
	}
	if c.Weights != "" {
		if !filepath.IsLocal(c.Weights) {
			return nil, c.src.errorf(c.src.key("weights"), "weights: %q; want a file beside the configuration, or below it", shorten(c.Weights))
		}
		path := filepath.Join(c.Dir, c.Weights)
		if err := checkWeights(path, c.WeightsHash); err != nil {
			return nil, c.src.errorf(c.src.key("weights_hash"), "%v", err)
		}
		if err := p.addLearned(path); err != nil {
			return nil, c.src.errorf(c.src.key("weights"), "weights: %v", err)
		}
	}
	return p, nil
}

func (c *Config) unknownBlock(l *Layer, blocks []*attention.Block) error {
	if len(blocks) == 0 {
		return c.src.errorf(l.at, "no attention block %q: the model has no block that can be rewritten", shorten(l.Block))
	}
	const most = 8
	var all []string
	for _, b := range blocks {
		all = append(all, b.Name)
	}
	near := suggest.DidYouMean(l.Block, all)
	shown := strings.Join(all[:min(most, len(all))], ", ")
	if len(all) > most {
		shown += fmt.Sprintf(" and %d more", len(all)-most)
	}
	if near == "" {
		near = "."
	}
	return c.src.errorf(l.at, "no attention block %q%s The model has %s", shorten(l.Block), near, shown)
}

// resolve checks one side of a layer against the n key or value heads of the block and fills in what the short forms
// leave out.
func (h *Heads) resolve(src *source, what, block string, n int) (Fusion, error) {
	if h.Groups == nil {
		if h.Count > n || n%h.Count != 0 {
			return Fusion{}, src.errorf(h.at, "%s: %d groups of equal size cannot be made of the %d %s heads of block %q; want one of %s, or write the groups out",
				what, h.Count, n, what, block, divisors(n))
		}
		return Adjacent(n, h.Count), nil
	}
	in := make([]bool, n)
	for g, heads := range h.Groups {
		for j, head := range heads {
			if head >= n {
				return Fusion{}, src.errorf(place(h.headAt, g, j, h.at), "%s: head %d does not exist; block %q has %s heads 0 to %d", what, head, block, what, n-1)
			}
			in[head] = true
		}
	}
	var missing []string
	for head, ok := range in {
		if !ok {
			missing = append(missing, fmt.Sprint(head))
		}
	}
	if missing != nil {
		noun, verb := "head", "is"
		if len(missing) > 1 {
			noun, verb = "heads", "are"
		}
		return Fusion{}, src.errorf(h.at, "%s: %s %s of block %q %s in no group; the groups must cover %s heads 0 to %d, each once",
			what, noun, strings.Join(missing, ", "), block, verb, what, n-1)
	}
	if h.Weights == nil {
		return Mean(h.Groups), nil
	}
	return Fusion{Groups: clone(h.Groups), Weights: clone(h.Weights)}, nil
}

func clone[T any](m [][]T) [][]T {
	out := make([][]T, len(m))
	for i, row := range m {
		out[i] = append([]T(nil), row...)
	}
	return out
}

func divisors(n int) string {
	var out []string
	for d := 1; d <= n; d++ {
		if n%d == 0 {
			out = append(out, fmt.Sprint(d))
		}
	}
	return strings.Join(out, ", ")
}
