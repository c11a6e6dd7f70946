package verify

import (
	"context"
	"strings"
	"testing"

	"onnx-dha/ort"
)

// Nodes are counted by the provider that ran them, and those that another ran than the one asked for are named.
func TestPlacement(t *testing.T) {
	openRuntime(t)
	p, err := PlaceNodes(context.Background(), "original", tiny{}.path(t), ort.Options{Provider: "cpu", Threads: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if p.Nodes["CPUExecutionProvider"] < 10 || len(p.Nodes) != 1 || len(p.Fallback) != 0 {
		t.Errorf("%+v", p)
	}
	p.Provider = "cuda"
	for range maxFallback + 3 {
		p.Fallback = append(p.Fallback, PlacedNode{Node: "scatter", Op: "ScatterND", Provider: "CPUExecutionProvider"})
	}
	text := p.String()
	for _, want := range []string{"Nodes of the original on cuda: ", "CPUExecutionProvider falls back: ScatterND scatter", "and 3 more"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// Two sides of a comparison may run differently, which the report says.
func TestReferenceProvider(t *testing.T) {
	openRuntime(t)
	path := tiny{}.path(t)
	plain := ort.Options{Threads: 1, DisableOptimization: true}
	r := run(t, Request{Original: path, Rewritten: path, Steps: 2, Reference: &plain})
	if !r.Passed() || r.ReferenceProvider != "" || r.Provider != "cpu" {
		t.Errorf("%v", r)
	}
	if _, err := Run(context.Background(), Request{Original: path, Rewritten: path, Reference: &ort.Options{Provider: "abacus"}}); err == nil || !strings.Contains(err.Error(), "original: ") || !strings.Contains(err.Error(), `"abacus" is not known`) {
		t.Errorf("a reference that cannot run: %v", err)
	}
	if err := (&Report{}).Across(context.Background(), Request{Original: path, Rewritten: path, Steps: -1}, func(p string) ort.Options { return ort.Options{Provider: p} }); err != nil {
		t.Error(err)
	}
}
