package graph_test

import (
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// loadModel loads a model that lies beside the repository, or skips the test.
func loadModel(t *testing.T, path ...string) *graph.Model {
	m, err := graph.Load(filepath.Join(append([]string{"..", "..", "shared"}, path...)...))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// sizes writes a shape.
func sizes(f *graph.Facts, v *graph.Value) string {
	s, ok := f.Shape(v)
	if !ok {
		return "unranked"
	}
	return strings.Trim(fmt.Sprintf("%q", s), "[]")
}

// The export of capp-gpt computes every head count, length and scale from shapes: 4 layers with 4 heads of 16 channels,
// and 16^-¼ on the queries and on the keys.
func TestFactsOfCappGPT(t *testing.T) {
	m := loadModel(t, "models", "capp-gpt", "model.onnx")
	f := graph.Infer(m.Graph)
	const lengths = `"sequence_length" "past_sequence_length + sequence_length"`
	for layer := range 4 {
		prefix := fmt.Sprintf("/transformer/h.%d/attn/", layer)
		for name, want := range map[string]string{
			prefix + "MatMul_output_0":             `"batch_size" "4" ` + lengths,
			prefix + "Softmax_output_0":            `"batch_size" "4" ` + lengths,
			prefix + "MatMul_1_output_0":           `"batch_size" "4" "sequence_length" "16"`,
			prefix + "Split_output_2":              `"batch_size" "sequence_length" "64"`,
			prefix + "c_attn/Gemm_output_0":        `"batch_size*sequence_length" "192"`,
			fmt.Sprintf("present.%d.key", layer):   `"batch_size" "4" "past_sequence_length + sequence_length" "16"`,
			fmt.Sprintf("present.%d.value", layer): `"batch_size" "4" "past_sequence_length + sequence_length" "16"`,
		} {
			if got := sizes(f, m.Graph.Value(name)); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
		}
		for _, name := range []string{"Sqrt_1_output_0", "Sqrt_2_output_0"} {
			if x, ok := f.Scalar(m.Graph.Value(prefix + name)); !ok || x != math.Pow(16, -0.25) {
				t.Errorf("%s: %v, %t, want 16^-¼", prefix+name, x, ok)
			}
		}
	}
	if got, want := sizes(f, m.Graph.Outputs[0]), `"batch_size" "sequence_length" "53"`; got != want {
		t.Errorf("logits: %s, want %s", got, want)
	}
}

// char-llama rotates halves whose length it computes: 4 layers with 8 heads of 24 channels.
func TestFactsOfCharLlama(t *testing.T) {
	folder, err := testmodels.CharLlama()
	if err != nil {
		t.Fatal(err)
	}
	m, err := graph.Load(filepath.Join(folder, "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f := graph.Infer(m.Graph)
	scores, halves := 0, 0
	for _, n := range m.Graph.Nodes {
		switch {
		case n.Is("Softmax"):
			scores++
			want := `"batch_size" "8" "sequence_length" "past_sequence_length + sequence_length"`
			if got := sizes(f, n.In[0]); got != want {
				t.Errorf("%v: %s, want %s", n, got, want)
			}
		case n.Is("Neg"):
			halves++
			if got, want := sizes(f, n.In[0]), `"batch_size" "8" "sequence_length" "12"`; got != want {
				t.Errorf("%v: %s, want %s", n, got, want)
			}
		}
	}
	if scores != 4 || halves != 8 {
		t.Errorf("%d softmaxes and %d halves, want 4 and 8", scores, halves)
	}
}

// Exporters declare numbers where they know them; what is inferred without looking at them agrees.
func TestFactsAgreeWithDeclarations(t *testing.T) {
	models, numbers := 0, 0
	corpus(t, func(t *testing.T, path string) {
		models++
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		declared := map[*graph.Value]*onnxpb.TensorShapeProto{}
		m.Graph.All(func(n *graph.Node) bool {
			for _, v := range n.Out {
				if v != nil && v.Const() == nil && v.Info.GetType().GetTensorType().GetShape() != nil {
					declared[v] = v.Info.GetType().GetTensorType().GetShape()
					v.Info = nil
				}
			}
			return true
		})
		f := graph.Infer(m.Graph)
		for v, want := range declared {
			shape, ok := f.Shape(v)
			if !ok {
				continue
			}
			if len(shape) != len(want.Dim) {
				t.Errorf("%s: inferred %v, declared with rank %d", v, shape, len(want.Dim))
				continue
			}
			for i, d := range want.Dim {
				if _, number := d.GetValue().(*onnxpb.TensorShapeProto_Dimension_DimValue); !number || shape[i].Unknown() {
					continue
				}
				numbers++
				if n, ok := shape[i].Const(); !ok || n != d.GetDimValue() {
					t.Errorf("%s: inferred %v, declared %d at axis %d", v, shape, d.GetDimValue(), i)
				}
			}
		}
	})
	if models > 0 && numbers == 0 {
		t.Error("no number was compared")
	}
}

// Facts with symbols, evaluated at some sizes, are the facts of the same model with these sizes declared.
func TestFactsAreTheSameForFixedSizes(t *testing.T) {
	for _, family := range testmodels.Families() {
		o := testmodels.Options{Cache: family.Decoder}
		build := func() *graph.Model {
			m, err := family.Build(o)
			if err != nil {
				t.Fatal(err)
			}
			return m
		}
		symbolic, fixed := build(), build()
		f := graph.Infer(symbolic.Graph)
		env := map[string]int64{}
		for _, v := range fixed.Graph.Inputs {
			dims, _ := f.Shape(symbolic.Graph.Value(v.Name))
			for i, d := range v.Info.GetType().GetTensorType().GetShape().GetDim() {
				for _, s := range dims[i].Symbols() {
					env[s] = plainSize(s) + 2
				}
				n, _ := dims[i].Eval(env)
				d.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: n}
			}
		}
		total := env["past_sequence_length"] + env["sequence_length"]
		if _, ok := env["total_sequence_length"]; ok && env["total_sequence_length"] != total {
			t.Fatalf("%s: sizes do not fit: %v", family.Name, env)
		}
		g := graph.Infer(fixed.Graph)
		for _, n := range fixed.Graph.Nodes {
			for _, v := range n.Out {
				if v == nil {
					continue
				}
				want, ok := g.Shape(v)
				got, ok2 := f.Shape(symbolic.Graph.Value(v.Name))
				if !ok || !ok2 || len(got) != len(want) {
					t.Errorf("%s: %s is %v with symbols, %v without", family.Name, v, got, want)
					continue
				}
				for i, d := range got {
					a, ok := d.Eval(env)
					b, ok2 := want[i].Const()
					if !ok || !ok2 || a != b {
						t.Errorf("%s: %s is %v at %v, %v with these sizes", family.Name, v, got, env, want)
						break
					}
				}
			}
		}
	}
}
