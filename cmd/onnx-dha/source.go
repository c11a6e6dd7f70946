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
	// Of the file, before anything was expanded.
	nodes      int
	parameters int64
}

// openSource loads a model, expands the fused operators that only accepts (nil: all) and finds the attention blocks. The
// model must be closed.
func openSource(path string, only func(*graph.Node) bool) (*source, error) {
	m, err := loadModel(path)
	if err != nil {
		return nil, err
	}
	s := &source{path: path, m: m, nodes: len(m.Graph.Nodes), parameters: rewrite.Parameters(m.Graph)}
	if err := errors.Join(m.CheckOpset(), m.Check()); err != nil {
		m.Close()
		return nil, coded(exitModel, fmt.Errorf("%s: %w", path, err))
	}
	done, refused, err := unfuse.Expand(m, only)
	if err != nil {
		m.Close()
		return nil, coded(exitModel, fmt.Errorf("%s: %w", path, err))
	}
	s.expansions, s.found = done, attention.Find(m)
	for i := range s.found.Unsupported {
		u := &s.found.Unsupported[i]
		for _, r := range refused {
			if u.Node == r.Node || u.At == r.Node {
				u.Why = r.Why
			}
		}
		// People know the nodes of the file, not those that took a fused one's place.
		u.Node, u.At = unfuse.Fused(done, u.Node), unfuse.Fused(done, u.At)
	}
	return s, nil
}

// fusedIn lists the expansions that a block lies in.
func (s *source) fusedIn(b *attention.Block) []*unfuse.Expansion {
	nodes := b.Nodes()
	var out []*unfuse.Expansion
	for i := range s.expansions {
		if slices.ContainsFunc(s.expansions[i].Nodes, func(n *graph.Node) bool { return nodes[n] }) {
			out = append(out, &s.expansions[i])
		}
	}
	return out
}

// planned returns the model with the plan of a configuration. Operators that belong to no block of the plan are fused, as
// they are in the file. s is closed where another copy takes its place.
func (s *source) planned(c *fusion.Config) (*source, *fusion.Plan, error) {
	plan, err := c.Resolve(s.found.Blocks)
	if err != nil {
		return s, nil, err
	}
	nodes := map[*graph.Node]bool{}
	for _, b := range plan.Blocks {
		for n := range b.Block.Nodes() {
			nodes[n] = true
		}
	}
	needed := 0
	for _, e := range s.expansions {
		if slices.ContainsFunc(e.Nodes, func(n *graph.Node) bool { return nodes[n] }) {
			needed++
		}
	}
	if len(plan.Blocks) == 0 || needed == len(s.expansions) {
		return s, plan, nil
	}
	again, err := openSource(s.path, unfuse.Owners(s.expansions, nodes))
	if err != nil {
		return s, nil, err
	}
	// Blocks without a scope of their own are numbered, which fewer blocks would be otherwise.
	names := map[string]string{}
	for _, b := range s.found.Blocks {
		names[b.Body+"\x00"+b.Softmax.Out[0].Name] = b.Name
	}
	for _, b := range again.found.Blocks {
		if name, ok := names[b.Body+"\x00"+b.Softmax.Out[0].Name]; ok {
			b.Name = name
		}
	}
	s.m.Close()
	plan, err = c.Resolve(again.found.Blocks)
	return again, plan, err
}
