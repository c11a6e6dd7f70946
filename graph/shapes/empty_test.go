package shapes_test

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/shapes"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// Some callers pass the same empty cache whatever the batch is. The runtime lets a Concat have it, and what follows has the
// sizes of what is not empty.
func TestEmptyCacheOfAnotherBatch(t *testing.T) {
	runtime(t)
	const batch, length = 3, 5
	for _, family := range []string{"gpt2", "llama", "gpt-neox", "llama-dynamo"} {
		f, err := testmodels.Get(family)
		if err != nil {
			t.Fatal(err)
		}
		m, err := f.Build(testmodels.Options{Cache: true, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		halve(t, m, fusion.Grouped)
		dir := t.TempDir()
		before, after := filepath.Join(dir, "before.onnx"), filepath.Join(dir, "after.onnx")
		if err := m.Save(before, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := shapes.Reduce(m.Graph); err != nil {
			t.Fatal(err)
		}
		if err := m.Save(after, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		a, b := session(t, before), session(t, after)
		feeds := map[string]*ort.Tensor{}
		for _, in := range a.Inputs() {
			if strings.HasPrefix(in.Name, "past") {
				feeds[in.Name] = ort.FromFloat32(nil, 1, in.Shape[1], 0, in.Shape[3])
				continue
			}
			x := make([]int64, batch*length)
			for i := range x {
				x[i] = int64(i % length)
				if strings.Contains(in.Name, "mask") {
					x[i] = 1
				}
			}
			feeds[in.Name] = ort.FromInt64(x, batch, length)
		}
		want, err := a.Run(context.Background(), feeds)
		if err != nil {
			t.Fatalf("%s: %v", family, err)
		}
		got, err := b.Run(context.Background(), feeds)
		if err != nil {
			t.Fatalf("%s: %v", family, err)
		}
		for name, x := range want {
			if y := got[name]; !slices.Equal(x.Shape, y.Shape) || !bytes.Equal(x.Raw, y.Raw) {
				t.Errorf("%s: %s is %v, want %v", family, name, y, x)
			}
		}
	}
}
