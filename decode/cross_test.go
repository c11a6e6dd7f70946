package decode

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/internal/trial"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// merged saves a decoder with an encoder whose first step and next ones are branches of one graph.
func merged(t *testing.T, family string) string {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	var stages []*onnxpb.ModelProto
	for _, stage := range []testmodels.Stage{testmodels.First, testmodels.Next} {
		m, err := f.Message(testmodels.Options{Stage: stage, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		stages = append(stages, m)
	}
	data, err := proto.Marshal(testmodels.Merge(stages[0], stages[1]))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "merged.onnx")
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// The caches of cross attention are made by the first step and kept, through every step the same as in verify's loop.
func TestCrossAttention(t *testing.T) {
	runtime(t)
	const batch, length, width = 2, 5, 32
	states := make([]float32, batch*length*width)
	for i := range states {
		states[i] = float32((7*i)%23)/11 - 1
	}
	for _, family := range []string{"t5-decoder", "bart-decoder/torch", "whisper-decoder/torch"} {
		original := merged(t, family)
		for name, path := range map[string]string{"original": original, "rewritten": trial.Rewrite(t, original, fusion.Grouped, fewer)} {
			t.Run(family+" "+name, func(t *testing.T) {
				m := load(t, path)
				inputs := map[string]*ort.Tensor{"encoder_hidden_states": ort.FromFloat32(states, batch, length, width)}
				if slices.ContainsFunc(m.Inputs, func(in verify.Input) bool { return in.Name == "encoder_attention_mask" }) {
					inputs["encoder_attention_mask"] = ort.FromInt64([]int64{1, 1, 1, 1, 1, 1, 1, 1, 0, 0}, batch, length)
				}
				compareLoops(t, path, Options{Chunk: 4, Inputs: inputs}, []int{3, 3}, 6)
			})
		}
	}
}
