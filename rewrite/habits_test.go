package rewrite_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// habits are things that exporters and tools do to a graph without changing what it computes (or, the last ones,
// changing it for every head alike). A rewrite must be as exact afterwards.
var habits = []struct {
	name     string
	families []string
	do       func(t *testing.T, m *graph.Model)
}{
	// The TorchScript exporter keeps one of several equal initializers and reads the others through Identity: fresh
	// models have zero biases.
	{"equal initializers behind Identity", []string{"bert", "gpt2", "gpt2-matmul", "gpt-neox", "opt"}, func(t *testing.T, m *graph.Model) {
		for _, v := range slices.Clone(m.Graph.Inits) {
			users := slices.Clone(v.Users())
			copied := m.Graph.AddNode("Identity", "", v.Name+"/same", []*graph.Value{v}, []string{v.Name + "_same"}).Out[0]
			for _, u := range users {
				if u.Node != nil {
					u.Node.SetInput(u.Index, copied)
				}
			}
		}
	}},
	// torch's MultiheadAttention with different queries and keys cuts its weight in the graph.
	{"weights cut out of a larger one", []string{"llama", "bert", "t5-decoder"}, func(t *testing.T, m *graph.Model) {
		for _, b := range attention.Find(m).Blocks {
			for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
				w := p.Projection.Weight
				x, err := w.Init.Float32s()
				if err != nil {
					t.Fatal(err)
				}
				d := w.Init.Dims()
				wide := m.Graph.AddInit(graph.NewTensor(w.Name+".wide", []int64{d[0] + 3, d[1]}, append(make([]float32, 3*d[1]), x...)))
				ints := func(name string, x ...int64) *graph.Value {
					return m.Graph.AddInit(graph.NewTensor(w.Name+name, []int64{int64(len(x))}, x))
				}
				cut := m.Graph.AddNode("Slice", "", w.Name+"/cut", []*graph.Value{wide, ints(".from", 3), ints(".to", 1<<40), ints(".axis", 0)}, []string{w.Name + "_cut"}).Out[0]
				p.Projection.Reader.SetInput(p.Projection.Operand, cut)
			}
		}
		m.Graph.RemoveDead(nil)
	}},
	{"weights as Constant nodes", []string{"llama-gqa", "gpt2", "mha"}, func(t *testing.T, m *graph.Model) {
		for _, v := range slices.Clone(m.Graph.Inits) {
			c := m.Graph.AddNode("Constant", "", v.Name+"/constant", nil, []string{v.Name + "_constant"}, graph.TensorAttr("value", v.Init)).Out[0]
			for _, u := range slices.Clone(v.Users()) {
				u.Node.SetInput(u.Index, c)
			}
		}
		m.Graph.RemoveDead(nil)
	}},
	{"weights listed as inputs, IR version 3", []string{"llama", "gpt2", "gpt-neox"}, func(t *testing.T, m *graph.Model) {
		listed(m, 3)
	}},
	{"weights listed as inputs, IR version 8", []string{"llama", "gpt2", "gpt-neox"}, func(t *testing.T, m *graph.Model) {
		listed(m, 8)
	}},
	// torch's MultiheadAttention measures the keys on a transposed copy of them.
	{"keys transposed to be measured", []string{"mha", "opt"}, func(t *testing.T, m *graph.Model) {
		for _, v := range mergedKeys(t, m) {
			turned := m.Graph.AddNode("Transpose", "", v.Name+"/turned", []*graph.Value{v}, []string{v.Name + "_turned"}, graph.IntsAttr("perm", 2, 0, 1)).Out[0]
			size := m.Graph.AddNode("Shape", "", v.Name+"/size", []*graph.Value{turned}, []string{v.Name + "_size"}).Out[0]
			number := m.Graph.AddNode("Cast", "", v.Name+"/number", []*graph.Value{size}, []string{v.Name + "_number"}, graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT)))
			m.Graph.AddOutput(number.Out[0], graph.TensorType(onnxpb.TensorProto_FLOAT, 3))
		}
	}},
	// Whoever else reads the heads of a batch of any size goes on seeing as many.
	{"keys merged with the batch read elsewhere", []string{"mha", "opt"}, func(t *testing.T, m *graph.Model) {
		for _, v := range mergedKeys(t, m) {
			axis := m.Graph.AddInit(graph.NewTensor(v.Name+".axis", nil, []int64{-1}))
			sum := m.Graph.AddNode("CumSum", "", v.Name+"/sum", []*graph.Value{v, axis}, []string{v.Name + "_sum"})
			m.Graph.AddOutput(sum.Out[0], graph.TensorType(onnxpb.TensorProto_FLOAT, nil, nil, nil))
		}
	}},
	{"dimensions without names", []string{"opt", "llama-gqa", "mha", "bloom"}, func(t *testing.T, m *graph.Model) {
		for _, v := range m.Graph.Inputs {
			for _, d := range v.Info.GetType().GetTensorType().GetShape().GetDim() {
				if d.GetDimParam() != "" {
					d.Value = nil
				}
			}
		}
	}},
	// Clipped projections (MPT, OLMo).
	{"projections clipped", []string{"gpt2", "gpt2-matmul", "gpt-neox", "bloom", "llama"}, func(t *testing.T, m *graph.Model) {
		seen := map[*graph.Value]bool{}
		bound := func(name string, x float32) *graph.Value {
			return m.Graph.AddInit(graph.NewTensor(name, nil, []float32{x}))
		}
		low, high := bound("low", -1), bound("high", 1)
		for _, b := range attention.Find(m).Blocks {
			for _, p := range []*attention.Path{b.Query, b.Key, b.Value} {
				v := p.Projection.Output
				if seen[v] {
					continue
				}
				seen[v] = true
				users := slices.Clone(v.Users())
				clipped := m.Graph.AddNode("Clip", "", v.Name+"/clip", []*graph.Value{v, low, high}, []string{v.Name + "_clipped"}).Out[0]
				for _, u := range users {
					u.Node.SetInput(u.Index, clipped)
				}
			}
		}
	}},
}

// mergedKeys are the wires on which keys have their heads on one axis with a batch.
func mergedKeys(t *testing.T, m *graph.Model) (found []*graph.Value) {
	for _, b := range attention.Find(m).Blocks {
		for v, l := range b.Key.Wires {
			if l.Outer > 1 && l.Pure {
				found = append(found, v)
			}
		}
	}
	if len(found) == 0 {
		t.Fatal("keys have no axis with heads and batch")
	}
	slices.SortFunc(found, func(a, b *graph.Value) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// listed declares every initializer as an input too.
func listed(m *graph.Model, ir int64) {
	m.Proto.IrVersion = &ir
	for _, v := range m.Graph.Inits {
		var dims []any
		for _, d := range v.Init.Dims() {
			dims = append(dims, d)
		}
		v.IsInput = true
		v.Info = &onnxpb.ValueInfoProto{Name: &v.Name, Type: graph.TensorType(v.Init.DType(), dims...)}
		m.Graph.Inputs = append(m.Graph.Inputs, v)
	}
}

func TestExactWhateverTheHabits(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	runtime(t)
	for _, h := range habits {
		for _, family := range h.families {
			f, err := testmodels.Get(family)
			if err != nil {
				t.Fatal(err)
			}
			m, err := f.Build(testmodels.Options{Cache: f.Decoder, Seed: 5, Bias: true})
			if err != nil {
				t.Fatal(err)
			}
			h.do(t, m)
			if err := m.Graph.Sort(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "model.onnx")
			if err := m.Save(path, graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
			for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
				t.Run(h.name+"/"+family+"/"+string(low), func(t *testing.T) {
					val := unequal
					if family == "llama-gqa" {
						val = all
					}
					exact(t, path, low, adjacent, val, 2)
				})
			}
		}
	}
}
