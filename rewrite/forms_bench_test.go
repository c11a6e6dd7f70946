package rewrite_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"onnx-dha/bench"
	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
)

// BenchmarkForms measures the forms between which products of a step of decoding are chosen: 8 heads of a cache, 8192
// positions of 64 channels, with 1 to 8 queries each, as fast as they go through the cache. Layers are passed through in
// turn, so that no cache is still in the processor's memory when it is read again, and the forms take turns.
func BenchmarkForms(b *testing.B) {
	const groups, positions, channels, layers, rounds = 8, 8192, 64, 16, 7
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		b.Skip(err)
	}
	caches := make([]*ort.Tensor, layers)
	for i := range caches {
		x := make([]float32, groups*positions*channels)
		for j := range x {
			x[j] = float32(j%97)/97 - 0.5
		}
		caches[i] = ort.From(x, 1, groups, positions, channels)
	}
	for _, keys := range []bool{true, false} {
		side := map[bool]string{true: "keys", false: "values"}[keys]
		for _, rows := range []int{1, 2, 3, 4, 6, 8} {
			type form struct {
				name  string
				binds []*ort.Binding
				times []float64
			}
			var forms []*form
			for _, name := range []string{"rows", "pieces", "copied"} {
				f := &form{name: name}
				s := productForm(b, name, keys, rows, groups, positions, channels)
				left, right := s.Inputs()[0], s.Inputs()[1]
				q, err := ort.New(onnxpb.TensorProto_FLOAT, left.Shape...)
				if err != nil {
					b.Fatal(err)
				}
				out, err := ort.New(onnxpb.TensorProto_FLOAT, s.Outputs()[0].Shape...)
				if err != nil {
					b.Fatal(err)
				}
				for _, c := range caches {
					bound, err := s.Bind()
					if err != nil {
						b.Fatal(err)
					}
					b.Cleanup(bound.Close)
					for _, err := range []error{bound.Input(left.Name, q), bound.Input(right.Name, c), bound.Output(s.Outputs()[0].Name, out)} {
						if err != nil {
							b.Fatal(err)
						}
					}
					f.binds = append(f.binds, bound)
				}
				forms = append(forms, f)
			}
			b.Run(fmt.Sprintf("%s/%d", side, rows), func(b *testing.B) {
				for range b.N {
					for round := range rounds + 1 {
						for _, f := range forms {
							begin := time.Now()
							for _, bound := range f.binds {
								if err := bound.Run(context.Background()); err != nil {
									b.Fatal(err)
								}
							}
							if round > 0 {
								f.times = append(f.times, time.Since(begin).Seconds())
							}
						}
					}
				}
				b.ReportMetric(0, "ns/op")
				for _, f := range forms {
					b.ReportMetric(layers*groups*positions*channels*4/bench.Median(f.times)/1e9, f.name+"-GB/s")
				}
			})
		}
	}
}

// productForm is a session for one product of queries [1, groups, rows, channels] with keys, or of probabilities
// [1, groups, rows, positions] with values.
func productForm(b *testing.B, name string, keys bool, rows, groups, positions, channels int) *ort.Session {
	m := graph.New(8, 17)
	width, result := channels, positions
	if !keys {
		width, result = positions, channels
	}
	x := m.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, 1, groups, rows, width))
	cache := m.Graph.AddInput("cache", graph.TensorType(onnxpb.TensorProto_FLOAT, 1, groups, positions, channels))
	ints := func(x ...int64) *graph.Value {
		return m.Graph.AddInit(graph.NewTensor(fmt.Sprint("ints", len(m.Graph.Inits)), []int64{int64(len(x))}, x))
	}
	op := func(op string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		name := fmt.Sprint(op, len(m.Graph.Nodes))
		return m.Graph.AddNode(op, "", name, in, []string{name}, attrs...).Out[0]
	}
	reshape := func(v *graph.Value, shape ...int64) *graph.Value {
		return op("Reshape", []*graph.Value{v, ints(shape...)})
	}
	transpose := func(v *graph.Value, perm ...int64) *graph.Value {
		return op("Transpose", []*graph.Value{v}, graph.IntsAttr("perm", perm...))
	}
	const length = rewrite.PieceLength
	g, r, t, d := int64(groups), int64(rows), int64(positions), int64(channels)
	var y *graph.Value
	switch name {
	case "pieces":
		pieces := reshape(cache, 1, g, t/length, 1, length, d)
		if keys {
			y = op("MatMul", []*graph.Value{reshape(x, 1, g, 1, r, 1, d), transpose(pieces, 0, 1, 2, 3, 5, 4)})
			y = transpose(y, 0, 1, 3, 2, 4, 5)
		} else {
			left := transpose(reshape(x, 1, g, r, t/length, 1, length), 0, 1, 3, 2, 4, 5)
			y = op("ReduceSum", []*graph.Value{op("MatMul", []*graph.Value{left, pieces}), ints(2)})
		}
		y = reshape(y, 1, g, r, int64(result))
	default:
		right := cache
		if name == "copied" {
			right = op("Gather", []*graph.Value{cache, ints(7, 6, 5, 4, 3, 2, 1, 0)}, graph.IntAttr("axis", 1))
		}
		if keys {
			right = transpose(right, 0, 1, 3, 2)
		}
		y = op("MatMul", []*graph.Value{x, right})
	}
	m.Graph.AddOutput(y, graph.TensorType(onnxpb.TensorProto_FLOAT, 1, groups, rows, result))
	path := filepath.Join(b.TempDir(), "product.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		b.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{Threads: 2})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}
