package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/companion"
	"onnx-dha/fusion"
	"onnx-dha/graph"
)

// isFolder reports whether a path is a folder of models rather than a model.
func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// folderRewrite is what rewrite says that it did to a folder.
type folderRewrite struct {
	Folder   string              `json:"folder"`
	Output   string              `json:"output"`
	Models   []*rewriting        `json:"models"`
	Copied   []string            `json:"copied,omitempty"`   // models without a block of the configuration
	LeftOut  []leftOut           `json:"left_out,omitempty"` // what does not go with the rewritten models
	Notes    []string            `json:"notes,omitempty"`
	Verdicts []companion.Verdict `json:"clients"`
}

type leftOut struct {
	File string `json:"file"`
	Why  string `json:"why"`
}

// rewriteFolder rewrites every model of a folder that the configuration is for and brings what stands beside them into
// agreement. The new folder appears under its name only when it is complete.
func rewriteFolder(c *cli.Context, dir string, job rewriteJob) (err error) {
	output := filepath.Clean(c.String("output"))
	if c.String("output") == "" {
		output = filepath.Clean(dir) + ".dha"
	}
	if err := newFolder(output, dir); err != nil {
		return err
	}
	if job.save.External == "share" {
		return usageError("--weights share leaves weights in the folder of the original; a folder of its own cannot refer to them")
	}
	f, err := companion.Open(dir)
	if err != nil {
		return coded(exitModel, err)
	}
	if err := os.MkdirAll(filepath.Dir(output), 0o777); err != nil {
		return coded(exitUsage, err)
	}
	work, err := os.MkdirTemp(filepath.Dir(output), "."+filepath.Base(output)+".*")
	if err != nil {
		return coded(exitUsage, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	// The name that transformers.js looks for.
	job.save.Suffix = "_data"
	r := &folderRewrite{Folder: dir, Output: output}
	for _, name := range f.Left {
		r.LeftOut = append(r.LeftOut, leftOut{name, "weights of the original, in another format"})
	}
	written, err := r.models(c.Context, f, work, job)
	if err != nil {
		return err
	}
	if err := r.companions(f, work, written); err != nil {
		return err
	}
	if err := f.Copy(work); err != nil {
		return coded(exitUsage, err)
	}
	for _, m := range r.Models {
		m.Output = filepath.Join(output, strings.TrimPrefix(m.Output, work))
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return coded(exitUsage, err)
	}
	os.Remove(output) // an empty folder
	if err := os.Rename(work, output); err != nil {
		return coded(exitUsage, err)
	}
	return emit(c, "", r, r.print)
}

// newFolder makes sure that a folder can be written without touching anything.
func newFolder(output, input string) error {
	entries, err := os.ReadDir(output)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return usageError("output %s: want a folder that does not exist yet, or is empty", output)
	case len(entries) > 0:
		return usageError("output %s is not empty; want a folder that does not exist yet, or is empty", output)
	}
	in, err := filepath.Abs(input)
	if err != nil {
		return err
	}
	out, err := filepath.Abs(output)
	if err != nil {
		return err
	}
	if rel, err := filepath.Rel(in, out); err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return usageError("output %s is in the folder that is rewritten; choose a place beside it", output)
	}
	return nil
}

// models rewrites or copies the models of a folder and returns those that were rewritten.
func (r *folderRewrite) models(ctx context.Context, f *companion.Folder, work string, job rewriteJob) (written []string, err error) {
	sets, err := folderSets(f, job.cfg, job.force)
	if err != nil {
		return nil, err
	}
	job.force = true // the configuration was made for one of them
	job.adapt = func(m *graph.Model) ([]string, error) {
		i, err := companion.Describe(m)
		if err != nil {
			return nil, err
		}
		return companion.Adapt(m, i), nil
	}
	for _, models := range sets {
		concerned, err := r.copy(f, work, models, job.cfg)
		if err != nil {
			return nil, err
		}
		done, err := r.rewrite(ctx, f, work, models, concerned, job)
		if err != nil {
			return nil, err
		}
		written = append(written, done...)
	}
	if len(written) == 0 {
		why := "no model of the folder has a block of the configuration"
		for _, l := range r.LeftOut {
			if strings.HasSuffix(l.File, ".onnx") {
				why = l.File + ": " + l.Why
			}
		}
		return nil, coded(exitModel, fmt.Errorf("%s: nothing can be rewritten: %s", r.Folder, why))
	}
	return written, nil
}

// copy copies those models of a set that the configuration has nothing to do with, and returns the others.
func (r *folderRewrite) copy(f *companion.Folder, work string, models []string, cfg *fusion.Config) (others []string, err error) {
	for _, rel := range models {
		in, out := filepath.Join(f.Dir, rel), filepath.Join(work, rel)
		if err := os.MkdirAll(filepath.Dir(out), 0o777); err != nil {
			return nil, coded(exitUsage, err)
		}
		concerned, caches, err := concerns(in, inFolder(f.Dir, models), cfg)
		switch {
		case err != nil:
			return nil, err
		case concerned:
			others = append(others, rel)
			continue
		case caches:
			r.LeftOut = append(r.LeftOut, leftOut{rel, "it has caches, but none of the blocks of the configuration"})
			continue
		}
		if err := copyModel(in, out); err != nil {
			return nil, coded(exitUsage, err)
		}
		r.Copied = append(r.Copied, rel)
	}
	return others, nil
}

// rewrite rewrites those models of a set that the configuration is for: all of them, or none where one cannot be, because
// what they pass to one another has to agree.
func (r *folderRewrite) rewrite(ctx context.Context, f *companion.Folder, work string, models, concerned []string, job rewriteJob) ([]string, error) {
	job.beside = inFolder(f.Dir, models)
	var done []*rewriting
	for _, rel := range concerned {
		d, err := job.file(ctx, filepath.Join(f.Dir, rel), filepath.Join(work, rel))
		if err == nil {
			done = append(done, d)
			continue
		}
		var code *codedError
		if ctx.Err() != nil || !errors.As(err, &code) || code.code != exitModel {
			return nil, err
		}
		for _, other := range concerned {
			why := fmt.Sprintf("%s, which belongs to it, cannot be rewritten", rel)
			if other == rel {
				why = err.Error()
			}
			r.LeftOut = append(r.LeftOut, leftOut{other, why})
			for _, file := range []string{other, other + "_data"} {
				if err := os.Remove(filepath.Join(work, file)); err != nil && !errors.Is(err, os.ErrNotExist) {
					return nil, coded(exitUsage, err)
				}
			}
		}
		return nil, nil
	}
	for _, d := range done {
		r.Models, r.Notes = append(r.Models, d), append(r.Notes, d.Notes...)
	}
	return concerned, nil
}

// copyModel copies a model that stays as it is, with its data files.
func copyModel(in, out string) error {
	m, err := loadModel(in)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Save(out, graph.SaveOptions{Suffix: "_data"})
}

// companions brings the configuration files into agreement with the model that they are about.
func (r *folderRewrite) companions(f *companion.Folder, work string, written []string) error {
	data := companion.External{}
	for _, rel := range slices.Concat(written, r.Copied) {
		data[filepath.Base(rel)] = 0
		if _, err := os.Stat(filepath.Join(work, rel) + "_data"); err == nil {
			data[filepath.Base(rel)] = 1
		}
	}
	interfaces := map[string]*companion.Interface{}
	for _, rel := range written {
		m, err := loadModel(filepath.Join(work, rel))
		if err != nil {
			return err
		}
		interfaces[rel], err = companion.Describe(m)
		m.Close()
		if err != nil {
			return coded(exitModel, err)
		}
	}
	// What a configuration says of caches it says of the model that takes them: not of an encoder, nor of a first step.
	byCaches := slices.Clone(written)
	slices.SortStableFunc(byCaches, func(a, b string) int { return len(interfaces[b].Caches) - len(interfaces[a].Caches) })
	for _, config := range f.Configs() {
		content, err := os.ReadFile(filepath.Join(f.Dir, config))
		if err != nil {
			return coded(exitUsage, err)
		}
		decoder := f.Decoder(config, content, byCaches)
		if decoder == "" {
			r.Notes = append(r.Notes, fmt.Sprintf("%s names a model that was not rewritten; it is copied as it is", config))
			if err := f.CopyFile(config, work); err != nil {
				return coded(exitUsage, err)
			}
			continue
		}
		i := interfaces[decoder]
		notes, verdicts, err := f.Write(config, work, i, data)
		if err != nil {
			return coded(exitModel, err)
		}
		r.Notes = append(r.Notes, notes...)
		for _, v := range verdicts {
			if note := companion.Note(v, i); note != "" {
				r.Notes = append(r.Notes, v.Client+": "+note)
			}
		}
		r.Verdicts = append(r.Verdicts, verdicts...)
	}
	return nil
}

func (r *folderRewrite) print(w io.Writer, color bool) error {
	for _, m := range r.Models {
		fmt.Fprintf(w, "%s\n\n", m.Model)
		if err := m.print(w, color); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	for _, name := range r.Copied {
		fmt.Fprintf(w, "copied %s: it has no block of the configuration\n", name)
	}
	for _, l := range r.LeftOut {
		fmt.Fprintf(w, "left out %s: %s\n", l.File, l.Why)
	}
	var seen []string
	for _, n := range r.Notes {
		if !slices.Contains(seen, n) {
			seen = append(seen, n)
			fmt.Fprintln(w, n)
		}
	}
	fmt.Fprintln(w)
	for _, v := range r.Verdicts {
		verdict := "can run it"
		if v.Why != "" {
			verdict = "cannot: " + v.Why
		}
		fmt.Fprintf(w, "%-18s %s\n", v.Client, verdict)
	}
	_, err := fmt.Fprintf(w, "wrote %s\n", r.Output)
	return err
}
