package main

import (
	"context"
	"fmt"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/shapes"
	"onnx-dha/rewrite"
)

// rewriteJob is what is to be done to one model or to every model of a folder.
type rewriteJob struct {
	cfg    *fusion.Config // as it was written; what the model records
	asked  *fusion.Config // with the lowering of the command line
	target fusion.Runtime
	save   graph.SaveOptions
	force  bool
	// keepShapes leaves shape arithmetic as it is.
	keepShapes bool
	beside     []string // the models that a model passes caches to, or takes them from
	// adapt, when not nil, is called with the rewritten model before it is saved; what it returns is noted.
	adapt func(*graph.Model) ([]string, error)
}

// file rewrites one model file into another.
func (j *rewriteJob) file(ctx context.Context, input, output string) (*rewriting, error) {
	src, err := openBeside(input, j.beside)
	if err != nil {
		return nil, err
	}
	defer func() { src.close() }()
	if err := src.set.needBlocks(); err != nil {
		return nil, err
	}
	if !j.force {
		if err := j.cfg.CheckModel(src.set.blocks()); err != nil {
			return nil, startOver(forceable(err), src.set.blocks())
		}
	}
	var plan *fusion.Plan
	if src, plan, err = src.planned(j.asked); err != nil {
		return nil, err
	}
	plan.Target = j.target
	m := src.m
	if len(plan.Blocks) == 0 {
		return nil, usageError("the configuration names no block; there is nothing to rewrite")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		return nil, coded(exitModel, fmt.Errorf("%s: %w", input, err))
	}
	res.NodesBefore, res.ParamsBefore = src.nodes, src.parameters
	var arithmetic shapes.Result
	if !j.keepShapes {
		if arithmetic, err = shapes.Reduce(m.Graph); err != nil {
			return nil, coded(exitModel, fmt.Errorf("%s: %w; --keep-shapes leaves it as it is", input, err))
		}
		res.NodesAfter = len(m.Graph.Nodes)
	}
	if err := rewrite.Record(m, toolVersion(), j.cfg, plan); err != nil {
		return nil, err
	}
	if j.adapt != nil {
		notes, err := j.adapt(m)
		if err != nil {
			return nil, coded(exitModel, fmt.Errorf("%s: %w", input, err))
		}
		res.Notes = append(res.Notes, notes...)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := m.Save(output, j.save); err != nil {
		return nil, coded(exitUsage, err)
	}
	return describeRewrite(input, output, j.cfg, res, arithmetic)
}
