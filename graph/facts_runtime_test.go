package graph_test

import (
	"context"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// ONNX Runtime computes every value of a model, and each has the type, the shape and the elements that Infer said.
func TestFactsAgreeWithRuntime(t *testing.T) {
	if err := ort.OpenDefault(); err != nil {
		t.Skip(err)
	}
	for _, family := range testmodels.Families() {
		for _, cache := range []bool{false, true} {
			if cache && !family.Decoder {
				continue
			}
			o := testmodels.Options{Cache: cache}
			name := family.Name
			shape := testmodels.Shape{Batch: 2, Seq: 3}
			if cache {
				name += " with cache"
				shape.Past = 5
			}
			t.Run(name, func(t *testing.T) {
				m, err := family.Build(o)
				if err != nil {
					t.Fatal(err)
				}
				arrays, err := family.Inputs(o, shape, 1)
				if err != nil {
					t.Fatal(err)
				}
				facts := graph.Infer(m.Graph)
				in := map[string]*ort.Tensor{}
				for name, a := range arrays {
					dims := make([]int64, len(a.Dims))
					for i, d := range a.Dims {
						dims[i] = int64(d)
					}
					values := a.F
					for _, n := range a.I {
						values = append(values, float64(n))
					}
					if in[name], err = ort.FromFloat64s(facts.Elem(m.Graph.Value(name)), values, dims...); err != nil {
						t.Fatal(err)
					}
				}
				if unknown := compareWithRuntime(t, m, facts, in, t.Fatal); unknown > 0 {
					t.Errorf("%d dimensions of the models made here are not known", unknown)
				}
			})
		}
	}
	corpus(t, func(t *testing.T, path string) {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		facts := graph.Infer(m.Graph)
		in, err := plainInputs(m, facts)
		if err != nil {
			t.Skip(err)
		}
		compareWithRuntime(t, m, facts, in, t.Skip) // some models of the corpus were never meant to run
	})
}

// corpus runs a test on every model of the data that lies beside the repository, if it does.
func corpus(t *testing.T, test func(t *testing.T, path string)) {
	root := filepath.Join("..", "..", "shared")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".onnx") {
			t.Run(strings.TrimPrefix(path, root), func(t *testing.T) { test(t, path) })
		}
		return err
	})
	if err != nil {
		t.Log("no corpus:", err)
	}
}

// plainInputs makes inputs for any model: symbols get sizes by what they are called, masks are ones, ids and positions
// small.
func plainInputs(m *graph.Model, facts *graph.Facts) (map[string]*ort.Tensor, error) {
	in := map[string]*ort.Tensor{}
	for _, v := range m.Graph.Inputs {
		if v.Init != nil {
			continue
		}
		shape, _ := facts.Shape(v)
		dims, n := make([]int64, len(shape)), int64(1)
		for i, d := range shape {
			env := map[string]int64{}
			for _, s := range d.Symbols() {
				env[s] = plainSize(s)
			}
			dims[i], _ = d.Eval(env)
			n *= dims[i]
		}
		values := make([]float64, n)
		for i := range values {
			switch facts.Elem(v) {
			case onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_FLOAT16:
				values[i] = math.Sin(float64(i))
			default:
				if !strings.Contains(v.Name, "pos") {
					values[i] = 1
				}
			}
		}
		var err error
		if in[v.Name], err = ort.FromFloat64s(facts.Elem(v), values, dims...); err != nil {
			return nil, err
		}
	}
	return in, nil
}

func plainSize(symbol string) int64 {
	for _, c := range []struct {
		part string
		n    int64
	}{{"total", 6}, {"past", 5}, {"batch", 2}} {
		if strings.Contains(symbol, c.part) {
			return c.n
		}
	}
	return 1
}

// compareWithRuntime makes every value an output, runs the model, and reports where it and the facts disagree. It
// returns how many dimensions are not known. refused is called when the runtime does not run the model.
func compareWithRuntime(t *testing.T, m *graph.Model, facts *graph.Facts, in map[string]*ort.Tensor, refused func(...any)) (unknown int) {
	env := map[string]int64{}
	for name, x := range in {
		shape, _ := facts.Shape(m.Graph.Value(name))
		for i, d := range shape {
			if s := d.Symbols(); len(s) == 1 && d.Equal(graph.Sym(s[0])) {
				env[s[0]] = x.Shape[i]
			}
		}
	}
	values := map[string]*graph.Value{}
	for _, n := range m.Graph.Nodes {
		for _, v := range n.Out {
			if v == nil || v.Const() != nil {
				continue
			}
			values[v.Name] = v
			if !v.IsOutput() {
				e := int32(facts.Elem(v))
				m.Graph.AddOutput(v, &onnxpb.TypeProto{Value: &onnxpb.TypeProto_TensorType{TensorType: &onnxpb.TypeProto_Tensor{ElemType: &e}}})
			}
		}
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{})
	if err != nil {
		refused(err)
	}
	defer s.Close()
	out, err := s.Run(context.Background(), in)
	if err != nil {
		refused(err)
	}
	compared := 0
	for name, y := range out {
		v := values[name]
		if v == nil {
			continue
		}
		shape, ok := facts.Shape(v)
		switch {
		case !ok:
			unknown++
			continue
		case len(shape) != len(y.Shape):
			t.Errorf("%s: inferred %v, is %v", name, shape, y.Shape)
			continue
		}
		for i, d := range shape {
			n, ok := d.Eval(env)
			switch {
			case !ok:
				unknown++
			case n != y.Shape[i]:
				t.Errorf("%s: inferred %v, is %v at %v", name, shape, y.Shape, env)
			default:
				compared++
			}
		}
		if e := facts.Elem(v); e != y.DType {
			t.Errorf("%s: inferred %v, is %v", name, e, y.DType)
		}
		if known, ok := facts.Known(v); ok {
			compareElements(t, name, known, y, env)
		}
	}
	if compared == 0 {
		t.Error("nothing was compared")
	}
	return unknown
}

// compareElements compares folded elements with computed ones.
func compareElements(t *testing.T, name string, known *graph.Known, y *ort.Tensor, env map[string]int64) {
	values, err := y.Float64s()
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if len(values) != len(known.Ints)+len(known.Floats) {
		t.Errorf("%s: %d elements are known, it has %d", name, len(known.Ints)+len(known.Floats), len(values))
		return
	}
	for i, x := range known.Floats {
		// Sine, exponential and the like may differ in the last bits.
		if got := values[i]; x != got && !(math.Abs(x-got) <= 1e-6*(1+math.Abs(got))) && !(math.IsNaN(x) && math.IsNaN(got)) {
			t.Errorf("%s: element %d inferred %v, is %v", name, i, x, got)
		}
	}
	for i, d := range known.Ints {
		if n, ok := d.Eval(env); ok && float64(n) != values[i] {
			t.Errorf("%s: element %d inferred %v, is %v at %v", name, i, d, values[i], env)
		}
	}
}
