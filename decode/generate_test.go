package decode

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/internal/trial"
	"onnx-dha/testmodels"
)

func TestGoldenText(t *testing.T) {
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Skip(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Greedy struct{ Prompt, Tokens []int64 }
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	m := load(t, filepath.Join(dir, "model.onnx"))
	var got []int64
	for token, err := range m.Generate(t.Context(), golden.Greedy.Prompt, nil) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, token); len(got) == len(golden.Greedy.Tokens) {
			break
		}
	}
	if !slices.Equal(got, golden.Greedy.Tokens) {
		t.Errorf("got %v, want %v", got, golden.Greedy.Tokens)
	}
	stop := golden.Greedy.Tokens[3]
	got = nil
	for token, err := range m.Generate(t.Context(), golden.Greedy.Prompt, nil, stop) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, token)
	}
	if want := golden.Greedy.Tokens[:slices.Index(golden.Greedy.Tokens, stop)]; !slices.Equal(got, want) {
		t.Errorf("until %d: got %v, want %v", stop, got, want)
	}
}

// Several prompts side by side say what each says alone, whenever each of them stops, with whatever caches.
func TestGenerateAll(t *testing.T) {
	runtime(t)
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Skip(err)
	}
	original := filepath.Join(dir, "model.onnx")
	all := func(b *attention.Block) (keys, values int) { return b.KVHeads, b.ValueHeads }
	// The longest is near the end of a static cache of one chunk, which has to grow on the way.
	long := slices.Repeat([]int64{31, 46, 39, 50, 50, 1, 21, 1, 41, 53, 51, 54, 39, 56, 43, 1}, 15)
	prompts := [][]int64{long, {27}, {35, 46, 43, 52, 1, 44, 53, 56, 58, 63}}
	const n, newline = 60, 0
	generate := func(path string) [][]int64 {
		m := load(t, path)
		got, err := m.GenerateAll(t.Context(), prompts, n, nil, newline)
		if err != nil {
			t.Fatal(err)
		}
		for b, prompt := range prompts {
			var want []int64
			for token, err := range m.Generate(t.Context(), prompt, nil, newline) {
				if err != nil {
					t.Fatal(err)
				}
				if want = append(want, token); len(want) == n {
					break
				}
			}
			if !slices.Equal(got[b], want) {
				t.Errorf("%s, sequence %d: beside others\n%v, alone\n%v", path, b, got[b], want)
			}
		}
		return got
	}
	same := func(name string, heads func(*attention.Block) (int, int), want [][]int64) {
		for _, lowering := range []fusion.Lowering{fusion.Grouped, fusion.StaticCache} {
			got := generate(trial.Rewrite(t, original, lowering, heads))
			if want == nil {
				want = got
			}
			for b := range want {
				if !slices.Equal(got[b], want[b]) {
					t.Errorf("%s, %s, sequence %d: %v, want %v", name, lowering, b, got[b], want[b])
				}
			}
		}
	}
	want := generate(original)
	if len(want[0]) == len(want[1]) && len(want[1]) == len(want[2]) {
		t.Errorf("all sequences stop after %d tokens; want them to stop at different times", len(want[0]))
	}
	same("all heads", all, want)
	same("fewer heads", fewer, nil)
}

// A model that gives the scores of as many last positions as it is told gives those that are read.
func TestKeptLogits(t *testing.T) {
	runtime(t)
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Cache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	g := m.Graph
	logits := g.Value("logits")
	head := logits.Producer
	ints := func(name string, x int64) *graph.Value {
		return g.AddInit(graph.NewTensor(name, []int64{1}, []int64{x}))
	}
	kept := g.AddInput("num_logits_to_keep", graph.TensorType(onnxpb.TensorProto_INT64))
	from := g.AddNode("Neg", "", "keep/Neg", []*graph.Value{kept}, []string{"keep/Neg"}).Out[0]
	from = g.AddNode("Reshape", "", "keep/Reshape", []*graph.Value{from, ints("keep/shape", 1)}, []string{"keep/Reshape"}).Out[0]
	head.SetInput(0, g.AddNode("Slice", "", "keep/Slice", []*graph.Value{head.Input(0), from, ints("keep/end", 1<<62), ints("keep/axis", 1)}, []string{"keep/Slice"}).Out[0])
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kept.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	l := compareLoops(t, path, Options{Chunk: 4}, []int{5, 3}, 3) // verify's loop keeps all
	if err := l.Rewind(0); err != nil {
		t.Fatal(err)
	}
	if err := l.Feed(t.Context(), [][]int64{{1, 2, 3}, {4, 5, 6}}); err != nil {
		t.Fatal(err)
	}
	if got, err := l.bind.Fetch("logits"); err != nil || got.Shape[1] != 1 {
		t.Errorf("after a prompt of three: logits %v (%v), want those of one position", got, err)
	}
}
