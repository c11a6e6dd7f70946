package quant_test

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/quant"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

const (
	batch, in, out = 3, 48, 24
)

// weights are those of the models below.
var weights = sync.OnceValue(func() []float64 {
	rng := rand.New(rand.NewPCG(5, 6))
	x := make([]float64, in*out)
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	return x
})

func weight(r, c int) float64 { return weights()[r*out+c] }

// product is a model of one MatMul, y = x·w with x [batch, 48] and w [48, 24], under a scheme.
func product(t *testing.T, s testmodels.Scheme) *graph.Model {
	t.Helper()
	m := graph.New(10, max(s.Opset, 13))
	data := make([]float32, in*out)
	for i := range data {
		data[i] = float32(weight(i/out, i%out))
	}
	x := m.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, batch, in))
	w := m.Graph.AddInit(graph.NewTensor("w", []int64{in, out}, data))
	y := m.Graph.AddNode("MatMul", "", "product", []*graph.Value{x, w}, []string{"y"}).Out[0]
	m.Graph.AddOutput(y, graph.TensorType(onnxpb.TensorProto_FLOAT, batch, out))
	if err := s.Quantise(m); err != nil {
		t.Fatal(err)
	}
	return m
}

// stored finds the quantised weight of a model of one product, as it meets the activations.
func stored(t *testing.T, m *graph.Model) *quant.Matrix {
	t.Helper()
	f := graph.Infer(m.Graph)
	for _, n := range m.Graph.Nodes {
		if p, err := quant.ProductOf(f, n); err != nil {
			t.Fatal(err)
		} else if p != nil {
			return p.Matrix
		}
		if !n.Is("MatMul") {
			continue
		}
		v, flipped := n.In[1], false
		if v.Producer.Is("Transpose") {
			v, flipped = v.Producer.In[0], true
		}
		q, ok, err := quant.Dequantized(f, v)
		if err != nil || !ok {
			t.Fatalf("the weight %q is not understood: %v", v.Name, err)
		}
		if flipped {
			q = q.Transposed()
		}
		return q
	}
	t.Fatal("no quantised product")
	return nil
}

func run(t *testing.T, m *graph.Model, x []float64) []float64 {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	feed, err := ort.FromFloat64s(onnxpb.TensorProto_FLOAT, x, batch, in)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Run(context.Background(), map[string]*ort.Tensor{"x": feed})
	if err != nil {
		t.Fatal(err)
	}
	y, err := res["y"].Float64s()
	if err != nil {
		t.Fatal(err)
	}
	return y
}

// runtime skips a test where ONNX Runtime is not installed.
func runtime(t *testing.T) {
	t.Helper()
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		t.Skip(err)
	}
}

// What a weight is decoded to is what ONNX Runtime multiplies with: rows of the unit matrix bring out the weight itself
// where activations are floats, and products with others agree where they are quantised too.
func TestDecodeAsTheRuntimeDoes(t *testing.T) {
	runtime(t)
	for _, s := range testmodels.Schemes() {
		if strings.HasPrefix(s.Name, "qoperator") {
			continue // expanded first, by package unfuse
		}
		t.Run(s.Name, func(t *testing.T) {
			m := product(t, s)
			q := stored(t, m)
			w, err := q.Decode("w").Float64s()
			if err != nil {
				t.Fatal(err)
			}
			if q.Rows != in || q.Cols != out {
				t.Fatalf("decoded as %d × %d, want %d × %d", q.Rows, q.Cols, in, out)
			}
			for first := 0; first < in; first += batch {
				x := make([]float64, batch*in)
				for b := range batch {
					x[b*in+first+b] = 1
				}
				y := run(t, m, x)
				for b := range batch {
					for c := range out {
						want := w[(first+b)*out+c]
						// A quantised 1 is off by half a step of 1/255 at most, static ones by half of 0.05.
						tolerance := 1e-6 * max(math.Abs(want), 1)
						if s.Activations {
							tolerance = 0.03
						}
						if got := y[b*out+c]; !(math.Abs(got-want) <= tolerance) {
							t.Fatalf("entry (%d, %d) is %v in the runtime, decoded as %v", first+b, c, got, want)
						}
					}
				}
			}
		})
	}
}
