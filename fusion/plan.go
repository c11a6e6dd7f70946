package fusion

import (
	"slices"

	"onnx-dha/graph/attention"
)

// Fusion says how the KV heads of one block become fewer: fused head g is Σ_j Weights[g][j] · head Groups[g][j]
// (the linear heads fusion operator, DHA §3.1). Groups partition the block's KV heads.
type Fusion struct {
	Groups  [][]int
	Weights [][]float64
}

// Heads returns the number of heads after fusion.
func (f Fusion) Heads() int { return len(f.Groups) }

// Map returns, for each original KV head, the group it belongs to.
func (f Fusion) Map() []int {
	n := 0
	for _, g := range f.Groups {
		n += len(g)
	}
	m := make([]int, n)
	for g, heads := range f.Groups {
		for _, h := range heads {
			m[h] = g
		}
	}
	return m
}

// BlockPlan is the resolved configuration of one block.
type BlockPlan struct {
	Block *attention.Block
	Key   Fusion
	Value Fusion
	// Learned are weights that take the place of those that Key and Value would mix; nil without any.
	Learned *Learned
}

// Plan is a configuration resolved against a model: every group list checked, every weight filled in.
type Plan struct {
	Blocks   []BlockPlan
	Lowering Lowering
	Target   Runtime // what auto chooses for; empty means TargetCPU
}

// Layers lists one block for each layer of the model: those that are in several bodies are planned alike.
func (p *Plan) Layers() []BlockPlan {
	var blocks []*attention.Block
	for _, b := range p.Blocks {
		blocks = append(blocks, b.Block)
	}
	layers := attention.Layers(blocks)
	out := slices.Clone(p.Blocks)
	return slices.DeleteFunc(out, func(b BlockPlan) bool { return !slices.Contains(layers, b.Block) })
}

// Lowering is the form that an attention core takes in the rewritten graph.
type Lowering string

// Runtime is what a rewritten model is meant to run in.
type Runtime string

// Targets: ONNX Runtime on CPU and on CUDA, onnxruntime-genai, transformers.js, and anything that runs ONNX.
const (
	TargetCPU            Runtime = "ort-cpu"
	TargetCUDA           Runtime = "ort-cuda"
	TargetGenAI          Runtime = "genai"
	TargetTransformersJS Runtime = "transformersjs"
	TargetPortable       Runtime = "portable"
)

// Targets lists the names of targets.
var Targets = []Runtime{TargetCPU, TargetCUDA, TargetGenAI, TargetTransformersJS, TargetPortable}

// Lowerings. Auto chooses; the others are described in docs/config.md.
const (
	Auto        Lowering = "auto"
	Grouped     Lowering = "grouped"
	Expand      Lowering = "expand"
	GQA         Lowering = "gqa"
	OpAttention Lowering = "attention"
	StaticCache Lowering = "static-cache"
)
