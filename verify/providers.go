package verify

import (
	"context"
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/ort"
)

// acrossProviders is the tolerance for one model on two providers: other kernels add in another order, and in wider blocks.
func acrossProviders() Tolerance {
	return Tolerance{Name: "across providers", Limits: []Limit{{"max_rel", 1e-3}}}
}

// Across compares both models of a request on every other provider that the runtime was built with to themselves on the
// CPU. What cannot run is entered with the reason.
func (r *Report) Across(ctx context.Context, q Request, options func(provider string) ort.Options) error {
	built, err := ort.Available()
	if err != nil {
		return err
	}
	const base = "cpu"
	reference := options(base)
	for _, provider := range built {
		if provider == base {
			continue
		}
		for _, m := range []struct{ what, path string }{{"original", q.Original}, {"rewritten", q.Rewritten}} {
			s := ProviderSection{Model: m.what, Provider: provider, Reference: base}
			t := acrossProviders()
			one := Request{
				Original: m.path, Rewritten: m.path, Cases: q.Cases, Steps: q.Steps, Prompt: q.Prompt, Text: q.Text, Seed: q.Seed, Logits: q.Logits,
				Drift: &t, Sizes: q.Sizes, Feeds: q.Feeds, Session: options(provider), Reference: &reference,
			}
			rep, err := Run(ctx, one)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				s.Unavailable = err.Error()
			default:
				s.Result = rep.Drift
				s.Result.Reference = "the same model on " + base
			}
			r.Providers = append(r.Providers, s)
		}
	}
	if len(r.Providers) == 0 {
		r.Notes = append(r.Notes, "providers were not compared: this ONNX Runtime library was built for the CPU alone")
	}
	return nil
}

// PlaceNodes runs a model once and says which provider runs its nodes, for the report.
func PlaceNodes(ctx context.Context, what, path string, o ort.Options, seed uint64) (Placement, error) {
	p := Placement{Model: what, Provider: o.Provider, Nodes: map[string]int{}}
	m, err := graph.Load(path)
	if err != nil {
		return p, err
	}
	defer m.Close()
	s, err := Describe(m)
	if err != nil {
		return p, fmt.Errorf("model %q: %w", path, err)
	}
	c := s.settle(Case{Batch: 1, Seq: 5})
	model := &Model{Signature: s, Path: path}
	in, err := s.feed(batch{Case: c, seed: seed}, nil)
	if err == nil {
		in, err = model.buffered(in)
	}
	if err != nil {
		return p, fmt.Errorf("model %q: %w", path, err)
	}
	nodes, err := ort.Placed(ctx, path, o, in)
	if err != nil {
		return p, err
	}
	for _, n := range nodes {
		p.Nodes[n.Provider]++
		if want := ort.ProviderOf(o.Provider); want != "" && n.Provider != want {
			p.Fallback = append(p.Fallback, PlacedNode{Node: n.Name, Op: n.Op, Provider: n.Provider})
		}
	}
	return p, nil
}
