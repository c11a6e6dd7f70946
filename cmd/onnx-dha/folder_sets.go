package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"onnx-dha/companion"
	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/verify"
)

// precision is what exporters append to the name of a model that is there in several precisions.
var precision = regexp.MustCompile(`[_-](fp16|fp32|bf16|quantized|q8|q4|q4f16|int8|uint8|int4|uint4|bnb4|nf4)$`)

// variants groups models that may belong together: those of one directory and one precision.
func variants(models []string) [][]string {
	var keys []string
	groups := map[string][]string{}
	for _, rel := range models {
		key := filepath.Dir(rel) + "\x00" + precision.FindString(strings.TrimSuffix(rel, ".onnx"))
		if groups[key] == nil {
			keys = append(keys, key)
		}
		groups[key] = append(groups[key], rel)
	}
	out := make([][]string, len(keys))
	for i, k := range keys {
		out[i] = groups[k]
	}
	return out
}

// partition divides models of one directory and one precision, named relative to a folder, into those that are opened
// together.
type partition func(dir string, models []string) ([][]string, error)

func together(_ string, models []string) ([][]string, error) { return [][]string{models}, nil }
func alone(_ string, models []string) ([][]string, error) {
	return slices.Collect(slices.Chunk(models, 1)), nil
}

// partitions are tried in turn. A configuration was made for all models together, for those that pass caches to one
// another, or for one of them; made for one, it is for those too that belong to it, as long as it names their blocks.
var partitions = []struct{ made, taken partition }{
	{together, together}, {linked, linked}, {alone, linked}, {alone, alone},
}

// folderSets divides the models of a folder into sets that are rewritten together, so that the configuration fits one of
// them; the sets of other precisions are taken for the same models.
func folderSets(f *companion.Folder, cfg *fusion.Config, force bool) (sets [][]string, err error) {
	var other error // what was found is not what the configuration was made for
	blocks, made := false, false
	for _, p := range partitions {
		if sets, err = divide(f, p.taken); err != nil {
			return nil, err
		}
		candidates, err := divide(f, p.made)
		if err != nil {
			return nil, err
		}
		fits := false
		if err := eachSet(f, candidates, func(found []*attention.Block) bool {
			blocks = blocks || len(found) > 0
			if err := cfg.CheckModel(found); err != nil && !force {
				other = startOver(err, found)
				return false
			}
			fits = fits || len(found) > 0
			return fits
		}); err != nil {
			return nil, err
		}
		if made = made || fits; !fits {
			continue
		}
		named := false
		if err := eachSet(f, sets, func(found []*attention.Block) bool {
			named = named || namesAll(cfg, found)
			return named
		}); err != nil {
			return nil, err
		}
		if named {
			break
		}
	}
	switch {
	case !blocks:
		return nil, coded(exitModel, fmt.Errorf("%s: no model of the folder has an attention block", f.Dir))
	case !made:
		return nil, forceable(other)
	}
	return sets, nil
}

// divide divides the models of a folder, each precision for itself.
func divide(f *companion.Folder, p partition) (sets [][]string, err error) {
	for _, models := range variants(f.Models) {
		parts, err := p(f.Dir, models)
		if err != nil {
			return nil, err
		}
		sets = append(sets, parts...)
	}
	return sets, nil
}

// eachSet calls a function with the blocks of each set until it returns true.
func eachSet(f *companion.Folder, sets [][]string, done func(found []*attention.Block) bool) error {
	for _, models := range sets {
		s, err := openModels(inFolder(f.Dir, models), nil)
		if err != nil {
			return err
		}
		stop := done(s.blocks())
		s.close()
		if stop {
			return nil
		}
	}
	return nil
}

// namesAll reports whether all blocks of a configuration are there.
func namesAll(cfg *fusion.Config, blocks []*attention.Block) bool {
	return !slices.ContainsFunc(cfg.Layers, func(l fusion.Layer) bool {
		return !slices.ContainsFunc(blocks, func(b *attention.Block) bool { return b.Name == l.Block })
	})
}

func inFolder(dir string, models []string) []string {
	out := make([]string, len(models))
	for i, rel := range models {
		out[i] = filepath.Join(dir, rel)
	}
	return ordered(out)
}

// linked divides models into those that share layers: one fills the caches of another, or both hold the same layer.
func linked(dir string, models []string) ([][]string, error) {
	paths := inFolder(dir, models)
	s, err := openModels(paths, nil)
	if err != nil {
		return nil, err
	}
	defer s.close()
	in := map[*graph.Model]int{} // the part that a model is in
	for i, src := range s {
		in[src.m] = i
	}
	join := func(a, b *graph.Model) {
		from, to := max(in[a], in[b]), min(in[a], in[b])
		for m, part := range in {
			if part == from {
				in[m] = to
			}
		}
	}
	layers := map[string]*graph.Model{}
	for _, b := range s.blocks() {
		m := b.QK.Graph.Model
		if first, ok := layers[b.Name]; ok {
			join(first, m)
		}
		layers[b.Name] = m
		for _, f := range slices.Concat(b.KeyFills, b.ValueFills) {
			join(f.Path.Operand.Graph.Model, m)
		}
	}
	parts := map[int][]string{}
	for i, src := range s {
		rel, err := filepath.Rel(dir, paths[i])
		if err != nil {
			return nil, err
		}
		parts[in[src.m]] = append(parts[in[src.m]], rel)
	}
	var out [][]string
	for i := range s {
		if parts[i] != nil {
			out = append(out, parts[i])
		}
	}
	return out, nil
}

// concerns reports whether a model has a block that the configuration names, or fills the cache of one, and whether it
// has caches.
func concerns(path string, beside []string, cfg *fusion.Config) (concerned, caches bool, err error) {
	src, err := openBeside(path, beside)
	if err != nil {
		return false, false, err
	}
	defer src.close()
	for _, b := range src.set.blocks() {
		here := b.QK.Graph.Model == src.m || slices.ContainsFunc(slices.Concat(b.KeyFills, b.ValueFills), func(f *attention.Fill) bool {
			return f.Path.Operand.Graph.Model == src.m
		})
		concerned = concerned || here && slices.ContainsFunc(cfg.Layers, func(l fusion.Layer) bool { return l.Block == b.Name })
	}
	if s, err := verify.Describe(src.m); err == nil {
		caches = len(s.Caches) > 0
	}
	return concerned, caches, nil
}
