package verify

import (
	"context"
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/graph/quant"
	"onnx-dha/graph/unfuse"
)

// Where activations are quantised, by the model or by the runtime in its kernels for weights of few bits, a sum whose last
// bit differs can be rounded to another code, and the result is off by a whole step: more than rounding, and no fault.
// What is left to tell whether the rewrite is at fault are the plain forms of the models, in which weights are the numbers
// that their codes stand for and activations are not rounded. They differ where codes of weights do.

// plainly measures the rewrite error of a quantised model again on the plain forms when it came out too large. It stands
// in the report's Exact when it is within tolerance, with a note on what was found first.
func (rep *Report) plainly(ctx context.Context, q Request) error {
	if rep.Exact.Passed() || q.Tied == "" {
		return nil
	}
	for _, l := range rep.Exact.Lines {
		if l.Output == "" {
			return nil // it did not run
		}
	}
	paths := []*string{&q.Original, &q.Rewritten, &q.Tied}
	for _, path := range paths {
		c, err := plainCopy(*path)
		if err != nil {
			return fmt.Errorf("%s: its plain form: %w", *path, err)
		}
		if c == nil {
			return nil
		}
		defer c.Remove()
		*path = c.Path
	}
	q.Taps, q.Record, q.Progress = nil, nil, nil
	again, err := Run(ctx, q)
	if err != nil {
		return fmt.Errorf("plain forms of the models: %w", err)
	}
	if !again.Exact.Passed() {
		return nil
	}
	worst := 0.0
	for _, l := range rep.Exact.Lines {
		worst = max(worst, l.Metrics.MaxRel)
	}
	rep.Exact = again.Exact
	rep.Exact.Reference += ", activations as floats"
	rep.Notes = append(rep.Notes, fmt.Sprintf("activations are quantised: rounded to other codes where sums differ in the last bit, they set the rewritten model and its tied reference apart by up to %s; the rewrite error is that of both with activations as floats",
		Format("max_rel", worst)))
	rep.Judge()
	return nil
}

// plainCopy writes the plain form of a model; nil where that is the model itself.
func plainCopy(path string) (*Copy, error) {
	m, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	quantised := false
	m.Graph.All(func(n *graph.Node) bool {
		_, codes, _ := quant.Weights(n)
		quantised = quantised || codes != nil
		return true
	})
	if !quantised {
		return nil, nil
	}
	if _, _, err := unfuse.Expand(m, unfuse.OnCodes); err != nil {
		return nil, err
	}
	if err := quant.Plain(m, nil); err != nil {
		return nil, err
	}
	return Beside(m)
}
