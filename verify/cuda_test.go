package verify_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// needCUDA skips a test where the CUDA provider does not work, and says what is missing.
func needCUDA(t *testing.T) ort.Options {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Skip(err)
	}
	f, err := testmodels.Get("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Layers: 1})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	o := ort.FullPrecision(ort.Options{Provider: "cuda"})
	s, err := ort.NewSession(path, o)
	if err != nil {
		t.Skipf("no GPU to test on: %v", err)
	}
	s.Close()
	return o
}

// Every family, in single and half precision and in every form of the attention core that can be written, is exact on
// CUDA and agrees there with the CPU.
func TestCUDA(t *testing.T) {
	cuda := needCUDA(t)
	for _, family := range testmodels.Families() {
		for _, dtype := range []onnxpb.TensorProto_DataType{onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_FLOAT16} {
			for _, lowering := range fusion.Lowerings {
				t.Run(fmt.Sprintf("%s/%v/%s", family.Name, dtype, lowering), func(t *testing.T) {
					onCUDA(t, family, dtype, lowering, cuda)
				})
			}
		}
	}
}

func onCUDA(t *testing.T, family testmodels.Family, dtype onnxpb.TensorProto_DataType, lowering fusion.Lowering, cuda ort.Options) {
	s := prepareAs(t, family, testmodels.Options{DType: dtype}, lowering)
	path, _ := s.mutate(t, fault{}, 0)
	for _, c := range []struct {
		name      string
		reference ort.Options
	}{{"exact on CUDA", cuda}, {"CUDA against the CPU", ort.Options{Threads: 2}}} {
		start := time.Now()
		r, err := verify.Run(context.Background(), verify.Request{
			Original: s.original, Rewritten: path, Tied: s.tied, Caches: s.caches, Seed: 1, Taps: s.taps, Session: cuda, Reference: &c.reference,
			Exact: across(c.reference),
		})
		if err != nil {
			t.Fatal(err)
		}
		if !r.RewritePassed() {
			t.Errorf("%s:\n%v", c.name, r)
		}
		t.Logf("%s: %v", c.name, time.Since(start).Round(time.Millisecond))
	}
}

// across is the tolerance between providers, nil for one and the same.
func across(reference ort.Options) *verify.Tolerance {
	if reference.Provider == "cuda" {
		return nil
	}
	return &verify.Tolerance{Name: "across providers", Limits: []verify.Limit{{Metric: "max_rel", Bound: 1e-3}}}
}

// Everything that test-cuda runs on a GPU runs on the CPU too, in one family: the test itself is sound.
func TestComparisonAcrossSessions(t *testing.T) {
	if err := ort.OpenDefault(); err != nil {
		t.Skip(err)
	}
	f, err := testmodels.Get("qwen2")
	if err != nil {
		t.Fatal(err)
	}
	for _, dtype := range []onnxpb.TensorProto_DataType{onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_FLOAT16} {
		onCUDA(t, f, dtype, fusion.Grouped, ort.Options{Threads: 1})
	}
}
