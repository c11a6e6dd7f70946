package data

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/ort"
)

// shared returns the path of something that the repository does not have, and skips the test where it is not there.
func shared(t *testing.T, name string) string {
	path := filepath.Join("..", "..", "shared", name)
	if _, err := os.Stat(path); err != nil {
		t.Skip(err)
	}
	return path
}

// The evaluation of char-llama is on the characters from int(0.9·n) on, in windows of 256 (golden.json beside the model).
func TestGoldenWindows(t *testing.T) {
	path := shared(t, "text/tinyshakespeare.txt")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(path, Options{Tokenizer: shared(t, "models/char-llama"), HeldOut: 0.1, Samples: 48})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Train()) != 48 || len(s.HeldOut()) != len(b)/10/256 {
		t.Errorf("%d and %d samples, want 48 and %d", len(s.Train()), len(s.HeldOut()), len(b)/10/256)
	}
	at := int(0.9 * float64(len(b)))
	for i, sample := range s.HeldOut()[:100] {
		if got, want := s.Tokenizer().Decode(sample.Tokens), string(b[at+256*i:at+256*(i+1)]); got != want {
			t.Fatalf("window %d is %q, want %q", i, got, want)
		}
	}
	if err := s.CheckVocabulary(65); err != nil {
		t.Error(err)
	}
}

// The evaluation of stories260K is on 40 stories, which have 12532 tokens to predict (golden.json beside the model).
func TestGoldenStories(t *testing.T) {
	s, err := Open(shared(t, "text/tinystories_v2_sample_2MiB.txt"), Options{Separator: "<|endoftext|>", SeqLen: 512,
		Tokenizer: shared(t, "models/stories260K/tok512.bin")})
	if err != nil {
		t.Fatal(err)
	}
	tokens, stories := 0, 0
	for _, sample := range s.Train()[1:] {
		if stories++; stories > 40 {
			break
		}
		if sample.Tokens[0] != 1 {
			t.Errorf("%s begins with token %d, want BOS", sample.Source, sample.Tokens[0])
		}
		tokens += len(sample.Tokens) - 1 // all but the first are predicted
	}
	if tokens != 12532 {
		t.Errorf("%d tokens, want 12532", tokens)
	}
}

// ONNX's own tests, run with what is read of them, give the outputs that they expect.
func TestBackend(t *testing.T) {
	lib, err := ort.Find("")
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		t.Skip(err)
	}
	models, _ := filepath.Glob(filepath.Join(shared(t, "corpus/onnx-backend"), "*", "model.onnx"))
	ran := 0
	for _, model := range models {
		session, err := ort.NewSession(model, ort.Options{Threads: 1})
		if err != nil {
			t.Logf("%s: %v", model, err) // the runtime knows not every operator of the standard
			continue
		}
		s, err := Open(filepath.Dir(model), Options{Inputs: session.Inputs(), Outputs: session.Outputs()})
		if err != nil {
			t.Error(err)
			continue
		}
		for _, sample := range s.Train() {
			out, err := session.Run(t.Context(), sample.Tensors)
			if err != nil {
				t.Errorf("%s: %v", model, err)
				continue
			}
			if len(sample.Expected) == 0 {
				t.Errorf("%s: nothing is expected", model)
			}
			for name, want := range sample.Expected {
				a, err := out[name].Float64s()
				if err != nil {
					t.Fatal(err)
				}
				b, err := want.Float64s()
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(out[name].Shape, want.Shape) {
					t.Errorf("%s: output %q is %v, expected %v", model, name, out[name], want)
					continue
				}
				for i := range a {
					if math.Abs(a[i]-b[i]) > 2e-3*(1+math.Abs(b[i])) {
						t.Errorf("%s: output %q: element %d is %v, expected %v", model, name, i, a[i], b[i])
						break
					}
				}
			}
			ran++
		}
		session.Close()
	}
	if ran == 0 {
		t.Errorf("none of %d models ran", len(models))
	}
}
