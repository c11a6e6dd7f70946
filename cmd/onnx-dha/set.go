package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
)

// A set is models that pass caches to one another: an encoder and a decoder, the first step of a decoder and the next ones.
// One configuration is for all of them.
type set []*source

// modelPaths lists the models that arguments name. A folder stands for the models in it, in one precision where they are
// there in several, and without those that this program wrote. Several are put in the order of their file names, so that it does not matter how they are given.
func modelPaths(args []string) ([]string, error) {
	var paths []string
	for _, a := range args {
		info, err := os.Stat(a)
		if err != nil || !info.IsDir() {
			paths = append(paths, a) // whoever opens it says what is wrong
			continue
		}
		found, err := filepath.Glob(filepath.Join(a, "*.onnx"))
		if err != nil {
			return nil, coded(exitUsage, err)
		}
		found = slices.DeleteFunc(found, func(p string) bool { return strings.HasSuffix(p, ".dha.onnx") })
		if len(found) == 0 {
			return nil, usageError("folder %s holds no .onnx file", a)
		}
		paths = append(paths, variants(found)[0]...) // the shortest name comes first, that without a precision
	}
	paths = ordered(paths)
	for i := 1; i < len(paths); i++ {
		if filepath.Base(paths[i]) == filepath.Base(paths[i-1]) {
			return nil, usageError("%s and %s have the same file name, by which models that belong together are told apart", paths[i-1], paths[i])
		}
	}
	return paths, nil
}

// ordered puts models in the order of their file names.
func ordered(paths []string) []string {
	slices.SortFunc(paths, func(a, b string) int {
		return cmp.Or(strings.Compare(filepath.Base(a), filepath.Base(b)), strings.Compare(a, b))
	})
	return slices.Compact(paths)
}

// openModels loads models, expands the fused operators that only accepts for each (nil: all of all) and finds the attention
// blocks. The models must be closed.
func openModels(paths []string, only []func(*graph.Node) bool) (set, error) {
	var s set
	var models []*graph.Model
	for i, path := range paths {
		var accepts func(*graph.Node) bool
		if only != nil {
			accepts = only[i]
		}
		src, err := loadSource(path, accepts)
		if err != nil {
			s.close()
			return nil, err
		}
		s, models = append(s, src), append(models, src.m)
	}
	for i, r := range attention.FindAll(models...) {
		s[i].describe(r)
		s[i].set = s
	}
	return s, nil
}

func (s set) close() {
	for _, src := range s {
		src.m.Close()
	}
}

// blocks lists those of all models.
func (s set) blocks() []*attention.Block {
	var out []*attention.Block
	for _, src := range s {
		out = append(out, src.found.Blocks...)
	}
	return out
}

// at returns the model that was opened at a path.
func (s set) at(path string) *source {
	return s[slices.IndexFunc(s, func(src *source) bool { return src.path == path })]
}

// of returns the model that a block lies in.
func (s set) of(b *attention.Block) *source {
	return s[slices.IndexFunc(s, func(src *source) bool { return src.m == b.QK.Graph.Model })]
}

// needBlocks is the error of a set in which no model has a block that can be rewritten.
func (s set) needBlocks() error {
	var first error
	for _, src := range s {
		err := needBlocks(src.m, src.found)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// startOver adds to the error of a configuration that does not fit some blocks that their model was rewritten, where it was.
func startOver(err error, blocks []*attention.Block) error {
	var e *fusion.Error
	for _, b := range blocks {
		if before := rewrittenBefore(b.QK.Graph.Model); before != "" && errors.As(err, &e) {
			e.Msg += " (" + before + ")"
			break
		}
	}
	return err
}

// planned returns the set with the plan of a configuration. Operators that belong to no block of the plan are fused, as
// they are in the files. s is closed where other copies take its place.
func (s set) planned(c *fusion.Config) (set, *fusion.Plan, error) {
	plan, err := c.Resolve(s.blocks())
	if err != nil {
		return s, nil, startOver(err, s.blocks())
	}
	nodes := map[*graph.Node]bool{}
	for _, b := range plan.Blocks {
		for n := range b.Block.Nodes() {
			nodes[n] = true
		}
	}
	var paths []string
	var only []func(*graph.Node) bool
	all := true
	for _, src := range s {
		paths, only = append(paths, src.path), append(only, unfuse.Owners(src.expansions, nodes))
		for _, e := range src.expansions {
			all = all && slices.ContainsFunc(e.Nodes, func(n *graph.Node) bool { return nodes[n] })
		}
	}
	if len(plan.Blocks) == 0 || all {
		return s, plan, nil
	}
	again, err := openModels(paths, only)
	if err != nil {
		return s, nil, err
	}
	for i := range s {
		again[i].named(s[i])
	}
	s.close()
	plan, err = c.Resolve(again.blocks())
	return again, plan, err
}

// named gives blocks the names that they had in another copy of the model: blocks without a scope of their own are
// numbered, which fewer blocks would be otherwise.
func (s *source) named(other *source) {
	place := func(b *attention.Block) string { return b.Body + "\x00" + b.Softmax.Out[0].Name }
	names := map[string]string{}
	for _, b := range other.found.Blocks {
		names[place(b)] = b.Name
	}
	for _, b := range s.found.Blocks {
		if name, ok := names[place(b)]; ok {
			b.Name = name
		}
	}
}

// rewriteSet rewrites models that pass caches to one another into a folder.
func rewriteSet(c *cli.Context, args []string, job rewriteJob) error {
	paths, err := modelPaths(args)
	if err != nil {
		return err
	}
	folder := c.String("output")
	if folder == "" {
		return usageError("%d models are rewritten together; -o names the folder for the results", len(paths))
	}
	if info, err := os.Stat(folder); err == nil && !info.IsDir() {
		return usageError("%s is a file; %d models are rewritten together and want a folder", folder, len(paths))
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return coded(exitUsage, err)
	}
	var done []*rewriting
	for _, p := range paths {
		output := filepath.Join(folder, filepath.Base(p))
		if err := apart(output, append(slices.Clone(paths), c.String("config"))...); err != nil {
			return err
		}
		job.beside = paths
		d, err := job.file(c.Context, p, output)
		if err != nil {
			return err
		}
		done = append(done, d)
	}
	return emit(c, "", several(done), func(w io.Writer, color bool) error {
		for i, d := range done {
			fmt.Fprintf(w, "%s%s\n", strings.Repeat("\n", min(i, 1)), d.Model)
			if err := d.print(w, color); err != nil {
				return err
			}
		}
		return nil
	})
}

// several is one result, or a list of them.
func several[T any](list []T) any {
	if len(list) == 1 {
		return list[0]
	}
	return list
}
