package fusion

import (
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// TestWeightsHash: a configuration with the hash of its weights accepts that file and no other.
func TestWeightsHash(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "dha.safetensors")
	hash, err := WriteLearned(path, map[string]*Learned{"a": {Query: mat.NewDense(3, 32, nil), QueryBias: make([]float64, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); hash != want {
		t.Fatalf("the hash is %s, that of the file %s", hash, want)
	}
	model := blocks(4, "a")
	projection := &attention.Path{Projection: &attention.Projection{Tensor: graph.NewTensor("w", []int64{3, 32}, make([]float32, 96)), Axis: 1}}
	model[0].Query, model[0].Key, model[0].Value = projection, projection, projection
	resolve := func(head string) error {
		c, err := Parse("dha.yaml", []byte("version: 1\nweights: dha.safetensors\n"+head+"layers: [{block: a, key: 2}]\n"))
		if err != nil {
			t.Fatal(err)
		}
		c.Dir = dir
		plan, err := c.Resolve(model)
		if err == nil && plan.Blocks[0].Learned == nil {
			t.Error("the weights were not read")
		}
		return err
	}
	pinned := "weights_hash: " + hash + "\n"
	if err := resolve(pinned); err != nil {
		t.Error(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := resolve(""); err != nil {
		t.Errorf("without a hash: %v", err)
	}
	err = resolve(pinned)
	for _, want := range []string{"dha.yaml:3:15: weights_hash: ", "dha.safetensors is not the file that belongs to this configuration: its hash is sha256:", "learn again"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := resolve(pinned); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without the file: %v", err)
	}
	if _, err := WriteLearned(path, map[string]*Learned{"a": {KeyBias: []float64{1, math.NaN()}}}); err == nil || !strings.Contains(err.Error(), `learned tensor "a.key.bias" holds NaN`) {
		t.Errorf("NaN: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}
