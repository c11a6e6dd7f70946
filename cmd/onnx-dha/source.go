package main

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
)

// source is a model as a command sees it: fused operators are expanded in memory, so that their blocks are found.
type source struct {
	path       string
	m          *graph.Model
	found      *attention.Report
	expansions []unfuse.Expansion
	refused    []unfuse.Refusal
	set        set // the models that were opened together, this one among them
	// Of the file, before anything was expanded.
	nodes      int
	parameters int64
}

// openSource loads a model, expands the fused operators that only accepts (nil: all) and finds the attention blocks. The
// model must be closed.
func openSource(path string, only func(*graph.Node) bool) (*source, error) {
	s, err := openModels([]string{path}, []func(*graph.Node) bool{only})
	if err != nil {
		return nil, err
	}
	return s[0], nil
}

// openBeside is openSource for a model that passes caches to others, or takes them from them.
func openBeside(path string, others []string) (*source, error) {
	s, err := openModels(ordered(append([]string{path}, others...)), nil)
	if err != nil {
		return nil, err
	}
	return s.at(path), nil
}

// loadSource loads a model and expands fused operators.
func loadSource(path string, only func(*graph.Node) bool) (*source, error) {
	m, err := loadModel(path)
	if err != nil {
		return nil, err
	}
	s := &source{path: path, m: m, nodes: len(m.Graph.Nodes), parameters: rewrite.Parameters(m.Graph)}
	if err := errors.Join(m.CheckOpset(), m.Check()); err != nil {
		m.Close()
		return nil, coded(exitModel, fmt.Errorf("%s: %w", path, err))
	}
	if s.expansions, s.refused, err = unfuse.Expand(m, only); err != nil {
		m.Close()
		return nil, coded(exitModel, fmt.Errorf("%s: %w", path, err))
	}
	return s, nil
}

// describe takes what was found. People know the nodes of the file, not those that took a fused one's place.
func (s *source) describe(found *attention.Report) {
	s.found = found
	for i := range found.Unsupported {
		u := &found.Unsupported[i]
		for _, r := range s.refused {
			if u.Node == r.Node || u.At == r.Node {
				u.Why = r.Why
			}
		}
		u.Node, u.At = unfuse.Fused(s.expansions, u.Node), unfuse.Fused(s.expansions, u.At)
	}
	for _, b := range found.Blocks {
		if why := unfuse.Fixed(s.expansions, b.QK, b.PV); why != "" {
			b.Fixed = why
		}
	}
}

// fusedIn lists the expansions of fused operators and functions that a block lies in.
func (s *source) fusedIn(b *attention.Block) []*unfuse.Expansion {
	nodes := b.Nodes()
	var out []*unfuse.Expansion
	for i := range s.expansions {
		if e := &s.expansions[i]; e.Op != "If" && slices.ContainsFunc(e.Nodes, func(n *graph.Node) bool { return nodes[n] }) {
			out = append(out, e)
		}
	}
	return out
}

// planned returns the model with the plan of a configuration, which is for the models beside it too. Operators that belong
// to no block of the plan are fused, as they are in the file. s is closed where another copy takes its place.
func (s *source) planned(c *fusion.Config) (*source, *fusion.Plan, error) {
	again, plan, err := s.set.planned(c)
	return again.at(s.path), plan, err
}

// close closes the model and those beside it.
func (s *source) close() { s.set.close() }
