package ort

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Node is one node of the graph that the runtime made of a model, with the provider that runs it.
type Node struct {
	Name, Op string
	Provider string // such as "CPUExecutionProvider"
}

// Placed runs a model once, on inputs that fit it, and returns the nodes that ran, in the order in which they first did.
// The runtime's own fusions count: a node may stand for several of the file.
func Placed(ctx context.Context, path string, o Options, in map[string]*Tensor) ([]Node, error) {
	dir, err := os.MkdirTemp("", "onnx-dha-profile-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	o.Profile = filepath.Join(dir, "profile")
	s, err := NewSession(path, o)
	if err != nil {
		return nil, err
	}
	_, err = s.Run(ctx, in)
	if e := s.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(o.Profile + "*")
	if err != nil || len(files) != 1 {
		return nil, fmt.Errorf("model %q: the runtime left %d profiles, want 1", path, len(files))
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	return parseProfile(b)
}

// parseProfile reads the nodes out of a profile, a list of events in the format of Chrome's tracing.
func parseProfile(b []byte) ([]Node, error) {
	var events []struct {
		Category string `json:"cat"`
		Name     string `json:"name"`
		Args     struct {
			Op       string `json:"op_name"`
			Provider string `json:"provider"`
		} `json:"args"`
	}
	if err := json.Unmarshal(b, &events); err != nil {
		return nil, fmt.Errorf("the runtime's profile: %w", err)
	}
	var out []Node
	for _, e := range events {
		name, timed := strings.CutSuffix(e.Name, "_kernel_time")
		n := Node{Name: name, Op: e.Args.Op, Provider: e.Args.Provider}
		if e.Category == "Node" && timed && n.Provider != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// ProviderOf returns what the runtime calls a provider; empty for one that is not known.
func ProviderOf(name string) string { return providers[name].is }
