package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

// layerFlags are the options of a look inside.
func layerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "layers", Usage: "compare what every attention block gives, the residual stream and the caches, layer by layer"},
		&cli.BoolFlag{Name: "bisect", Usage: "if the drift is beyond tolerance, find the smallest set of layers to leave alone, by rewriting the others"},
		&cli.IntFlag{Name: "trials", Value: 64, Usage: "of --bisect: try at most `N` sets of layers, and each layer once"},
	}
}

// bisect looks for the layers that must be left alone. full is the comparison of the whole rewrite, which rec has recorded.
func (p *modelPair) bisect(c *cli.Context, q verify.Request, rec *verify.Recorder, full *verify.Report) error {
	if p.config == nil {
		return usageError("--bisect rewrites some of the layers, and no configuration is known: name it with --config")
	}
	golden, err := rec.Golden(full, p.fingerprint)
	if err != nil {
		return err
	}
	var blocks []string
	for _, l := range p.config.Layers {
		blocks = append(blocks, l.Block)
	}
	bar := newProgress(c)
	defer bar.clear()
	done := 0
	full.Bisection, err = verify.Bisect(c.Context, blocks, verify.NewTrial(full), c.Int("trials"), func(ctx context.Context, leave []string) (verify.Trial, error) {
		done++
		bar.step(min(done, c.Int("trials")), c.Int("trials"), fmt.Sprintf("leaving %d alone", len(leave)))
		return p.trial(ctx, q, golden, leave)
	})
	return err
}

// trial rewrites the original but for some blocks and holds the result against the recording.
func (p *modelPair) trial(ctx context.Context, q verify.Request, golden *verify.Golden, leave []string) (t verify.Trial, err error) {
	err = p.planned(p.config, func(src *source, plan *fusion.Plan) error {
		plan.Blocks = slices.DeleteFunc(plan.Blocks, func(b fusion.BlockPlan) bool { return slices.Contains(leave, b.Block.Name) })
		if _, err := rewrite.Apply(src.m, plan); err != nil {
			return coded(exitModel, fmt.Errorf("%s: %w", p.original, err))
		}
		small, err := verify.Beside(src.m)
		if err != nil {
			return err
		}
		defer small.Remove()
		q.Rewritten, q.Progress = small.Path, nil
		r, err := golden.Replay(ctx, q)
		if err == nil {
			t = verify.NewTrial(r)
		}
		return err
	})
	return t, err
}
