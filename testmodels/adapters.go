package testmodels

import (
	"math/rand/v2"
	"slices"

	"onnx-dha/graph"
)

// Adapt puts a low-rank adapter beside every MatMul with a constant matrix, as PEFT leaves those that are not merged:
// x·W + (x·A)·B·scale.
func Adapt(m *graph.Model, rank int64, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 77))
	p := graph.NewPatch(m.Graph)
	weight := func(name string, rows, cols int64) *graph.Value {
		data := make([]float32, rows*cols)
		for i := range data {
			data[i] = float32(rng.NormFloat64() * 0.3)
		}
		return p.Init(graph.NewTensor(name, []int64{rows, cols}, data))
	}
	for _, n := range slices.Clone(m.Graph.Nodes) {
		t := n.Input(1).Const()
		if !n.Is("MatMul") || t == nil || len(t.Dims()) != 2 {
			continue
		}
		a := p.Op("MatMul", n.Name+"/lora_A/MatMul", []*graph.Value{n.In[0], weight(n.Name+".lora_A.weight", t.Dims()[0], rank)})
		b := p.Op("MatMul", n.Name+"/lora_B/MatMul", []*graph.Value{a, weight(n.Name+".lora_B.weight", rank, t.Dims()[1])})
		scaled := p.Op("Mul", n.Name+"/Mul", []*graph.Value{b, p.Init(graph.NewTensor(n.Name+"/scaling", nil, []float32{0.5}))})
		sum := p.Op("Add", n.Name+"/lora/Add", []*graph.Value{n.Out[0], scaled})
		p.Replace(n.Out[0], sum, sum.Producer)
	}
	_, err := p.Apply()
	return err
}
