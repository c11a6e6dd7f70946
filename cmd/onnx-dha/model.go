package main

import (
	"errors"
	"fmt"
	"io/fs"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/rewrite"
)

// loadModel opens a model. A path that leads nowhere is a mistake of the caller, what the file holds is the model's.
func loadModel(path string) (*graph.Model, error) {
	m, err := graph.Load(path)
	if err == nil {
		return m, nil
	}
	var p *fs.PathError
	if errors.As(err, &p) && p.Path == path && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return nil, coded(exitUsage, err)
	}
	return nil, coded(exitModel, err)
}

// openModel loads a model, its fused operators expanded, and finds its attention blocks. The model must be closed.
func openModel(path string) (*graph.Model, *attention.Report, error) {
	s, err := openSource(path, nil)
	if err != nil {
		return nil, nil, err
	}
	return s.m, s.found, nil
}

// needBlocks is the error of a model without a block that can be rewritten, with the reason when there is one.
func needBlocks(m *graph.Model, r *attention.Report) error {
	why := ""
	for _, b := range r.Blocks {
		if b.Fixed == "" {
			return nil
		}
		if why == "" {
			why = fmt.Sprintf("block %q: %s", b.Name, b.Fixed)
		}
	}
	for _, u := range r.Unsupported {
		if u.Attention && why == "" {
			why = fmt.Sprintf("%s: %s", nodeName(u.Node), u.Why)
		}
	}
	if why == "" {
		return coded(exitModel, fmt.Errorf("%s has no attention block: no softmax between two products of activations, and no attention operator", m.Path))
	}
	if before := rewrittenBefore(m); before != "" {
		why = before
	}
	return coded(exitModel, fmt.Errorf("%s has no attention block that can be rewritten: %s", m.Path, why))
}

// rewrittenBefore says that a model was rewritten, and nothing where it was not.
func rewrittenBefore(m *graph.Model) string {
	version, ok := m.Metadata(rewrite.MetadataVersion)
	if !ok {
		return ""
	}
	return rewrittenBy(version)
}

// rewrittenBy says that a version of the program rewrote a model, and the way out.
func rewrittenBy(version string) string {
	return fmt.Sprintf("the model was rewritten by %s %s: start from the original", program, version)
}

// forceable adds the way out to the error of a configuration that was made for another model.
func forceable(err error) error {
	var e *fusion.Error
	if errors.Is(err, fusion.ErrOtherModel) && errors.As(err, &e) {
		e.Msg += "; --force uses it all the same"
		return err
	}
	return coded(exitModel, err)
}
