package graph

import (
	"bytes"
	"path/filepath"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// TestReleaseKeepsBytes reads tensors, inline and external, before and after their pages were given back.
func TestReleaseKeepsBytes(t *testing.T) {
	for _, external := range []string{"inline", "file"} {
		m := New(8, 17)
		data := make([]float32, 5000)
		for i := range data {
			data[i] = float32(i)
		}
		w := m.Graph.AddInit(NewTensor("w", []int64{5000}, data))
		m.Graph.AddInit(NewTensor("v", []int64{4999}, data[1:]))
		m.Graph.AddOutput(m.Graph.AddNode("Add", "", "add", []*Value{w, w}, []string{"y"}).Out[0], TensorType(onnxpb.TensorProto_FLOAT, 5000))
		path := filepath.Join(t.TempDir(), "m.onnx")
		if err := m.Save(path, SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		loaded, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		defer loaded.Close()
		for _, name := range []string{"w", "v"} {
			tensor := loaded.Graph.Value(name).Init
			got, err := tensor.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(got)
			tensor.Release()
			if !bytes.Equal(got, want) {
				t.Errorf("%s, %s: the slice changed", external, name)
			}
			if again, err := tensor.Bytes(); err != nil || !bytes.Equal(again, want) {
				t.Errorf("%s, %s: other bytes after a release (%v)", external, name, err)
			}
		}
		w.Init.Release() // in memory: nothing to give back, nothing lost
		if b, err := w.Init.Bytes(); err != nil || len(b) != 20000 || b[4] != 0 || b[7] != 0x3f {
			t.Errorf("a tensor in memory lost its bytes (%v)", err)
		}
	}
}
