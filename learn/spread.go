package learn

import (
	"math/rand/v2"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// signTable is the number of random signs that are fed for keys: no attention is as long.
const signTable = 1 << 16

const spreadInput = "learn/spread"

// spread sets up E_i Σ_j A_ij (k_j − k̄_i)ᵀ(k_j − k̄_i) for k [batch·keys, n] and the queries that were sampled: as the mean of
// the squares of rows Σ_j ξ_j √A_ij (k_j − k̄_i) with random signs ξ, one row for each query instead of one for each key.
func (c *collector) spread(l *layout, at *sampled, k *graph.Value, heads int) {
	b, name, n := c.b, l.name("spread"), int64(l.fixed)
	l.spread = true
	p := at.p
	if at.shown != nil { // what padding holds may be NaN
		p = b.op("Where", name+"/shown", []*graph.Value{at.shown, p, b.floats(name+"/zero", nil, 0)})
	}
	shape := b.op("Shape", name+"/shape", []*graph.Value{p})
	dim := func(axis int64) *graph.Value {
		return b.op("Gather", name+"/dim", []*graph.Value{shape, b.ints(name+"/at", axis)}, graph.IntAttr("axis", 0))
	}
	concat := func(of ...*graph.Value) *graph.Value {
		return b.op("Concat", name+"/dims", of, graph.IntAttr("axis", 0))
	}
	signs := b.input(spreadInput, onnxpb.TensorProto_FLOAT, signTable)
	signs = b.op("Slice", name+"/signs", []*graph.Value{signs, b.ints(name+"/from", 0), dim(3), b.ints(name+"/axis", 0)})
	y := b.op("Mul", name+"/signed", []*graph.Value{b.op("Sqrt", name+"/root", []*graph.Value{p}), signs})
	drift := b.op("Mul", name+"/drift", []*graph.Value{p, b.reduce("ReduceSum", name+"/sums", y, 3)})
	y = b.op("Sub", name+"/centred", []*graph.Value{y, drift})
	rows := b.op("Reshape", name+"/rows", []*graph.Value{y, concat(dim(0), b.ints(name+"/all", -1), dim(3))})
	k = b.op("Reshape", name+"/k", []*graph.Value{k, concat(dim(0), dim(3), b.ints(name+"/n", n))})
	x := b.op("MatMul", name+"/of_keys", []*graph.Value{rows, k})
	x = b.op("Reshape", name+"/split", []*graph.Value{x, concat(dim(0), dim(1), b.ints(name+"/each", -1, n))})
	x = b.op("Transpose", name+"/by_head", []*graph.Value{x}, graph.IntsAttr("perm", 1, 0, 2, 3))
	x = b.op("Reshape", name+"/flat", []*graph.Value{x, b.ints(name+"/flat_shape", int64(heads), -1, n)})
	b.sum(name, b.gram(name, x, 3), int64(heads), n, n)
}

// spreadSigns are those of one run.
func spreadSigns(run int) *ort.Tensor {
	rng := rand.New(rand.NewPCG(uint64(run), 0x59bead))
	x := make([]float32, signTable)
	for i := 0; i < len(x); i += 64 {
		for j, bits := 0, rng.Uint64(); j < 64; j, bits = j+1, bits>>1 {
			x[i+j] = 1 - 2*float32(bits&1)
		}
	}
	return ort.FromFloat32(x, signTable)
}
