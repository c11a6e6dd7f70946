package testmodels

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/ort"
)

// charLlama opens the model and reads its vocabulary.
func charLlama(t *testing.T) (s *ort.Session, vocab map[string]int, dir string) {
	t.Helper()
	openRuntime(t)
	dir, err := CharLlama()
	if err != nil {
		t.Fatal(err)
	}
	if s, err = ort.NewSession(filepath.Join(dir, "model.onnx"), ort.Options{Threads: 1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	readJSON(t, filepath.Join(dir, "vocab.json"), &vocab)
	return s, vocab, dir
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestCharLlamaContinuesAsRecorded(t *testing.T) {
	s, _, dir := charLlama(t)
	var golden struct {
		Greedy struct{ Prompt, Tokens []int }
	}
	readJSON(t, filepath.Join(dir, "golden.json"), &golden)
	const steps = 40 // of 128: a wrong cache shows at the second
	a := arch{layers: 4}
	in := map[string]Array{}
	for i := range a.layers {
		past, _ := cacheNames(&a, i)
		in[past[0]], in[past[1]] = Floats([]float64{}, 1, 8, 0, 24), Floats([]float64{}, 1, 8, 0, 24)
	}
	next, total := golden.Greedy.Prompt, 0
	var got []int
	for range steps {
		total += len(next)
		in["input_ids"] = Ints(int64s(next), 1, len(next))
		in["attention_mask"] = mask(1, total, 0, true)
		in["position_ids"] = positions(in["attention_mask"], total-len(next))
		out := run(t, s, in)
		logits := out["logits"].F
		next = []int{argmax(logits[len(logits)-65:])}
		got = append(got, next[0])
		for name, v := range out {
			if rest, ok := strings.CutPrefix(name, "present."); ok {
				in["past_key_values."+rest] = v
			}
		}
	}
	if !slices.Equal(got, golden.Greedy.Tokens[:steps]) {
		t.Errorf("greedy tokens %v, want %v", got, golden.Greedy.Tokens[:steps])
	}
}

// The sonnets are text the model can read, has not seen, and finds likely: far below the 4.2 nats of guessing.
func TestSonnets(t *testing.T) {
	s, vocab, dir := charLlama(t)
	raw, err := os.ReadFile(filepath.Join(dir, "sonnets.txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	if n := strings.Count(text, "\n\n") + 1; n != 6 {
		t.Errorf("%d sonnets, want 6", n)
	}
	if trained, err := os.ReadFile(filepath.Join("..", "..", "shared", "text", "tinyshakespeare.txt")); err == nil {
		for _, line := range strings.Split(text, "\n") {
			if line != "" && strings.Contains(string(trained), line) {
				t.Errorf("the training text has the line %q", line)
			}
		}
	}
	tokens, nll := 0, 0.0
	a := arch{layers: 4}
	var all []int
	for _, c := range text {
		id, ok := vocab[string(c)]
		if !ok {
			t.Fatalf("character %q is not in the vocabulary", c)
		}
		all = append(all, id)
	}
	for ids := range slices.Chunk(all, 256) { // windows as long as those of golden.json
		in := map[string]Array{"input_ids": Ints(int64s(ids), 1, len(ids)), "attention_mask": mask(1, len(ids), 0, true)}
		in["position_ids"] = positions(in["attention_mask"], 0)
		for i := range a.layers {
			past, _ := cacheNames(&a, i)
			in[past[0]], in[past[1]] = Floats([]float64{}, 1, 8, 0, 24), Floats([]float64{}, 1, 8, 0, 24)
		}
		logits := run(t, s, in)["logits"]
		for i, next := range ids[1:] {
			row := logits.F[i*65 : (i+1)*65]
			nll += logSumExp(row) - row[next]
		}
		tokens += len(ids) - 1
	}
	loss := nll / float64(tokens)
	t.Logf("%.4f nats per character over %d", loss, tokens)
	if loss > math.Log(65)/2 {
		t.Errorf("%.4f nats per character, want below half of ln 65", loss)
	}
}
