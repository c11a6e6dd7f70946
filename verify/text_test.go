package verify

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/data/tokenizer"
	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// A cycle 0 → 1 → 2 → 0 with some doubt: what it generates and how surprised it is are known.
func TestBigram(t *testing.T) {
	ctx := context.Background()
	l3 := math.Log(3)
	m := load(t, bigram(t, [][]float64{{0, l3, 0}, {0, 0, l3}, {l3, 0, 0}}))
	got, err := Generate(ctx, m, []int64{2, 1}, 5)
	if err != nil || !slices.Equal(got, []int64{2, 0, 1, 2, 0}) {
		t.Errorf("got %v (%v)", got, err)
	}
	if got, err = Generate(ctx, m, []int64{1}, 9, 0, 7); err != nil || !slices.Equal(got, []int64{2, 0}) {
		t.Errorf("stopping at 0: got %v (%v)", got, err)
	}
	// The next of the cycle has probability 3/5, each other token 1/5. Windows of 4 predict 3 tokens each.
	text := []int64{0, 1, 2, 1 /**/, 2, 0, 0, 1 /* dropped: */, 2}
	p, err := Perplexity(ctx, m, text, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := -(4*math.Log(0.6) + 2*math.Log(0.2)) / 6; p.Tokens != 6 || math.Abs(p.NLL-want) > 1e-6 || math.Abs(p.Perplexity-math.Exp(p.NLL)) > 1e-12 {
		t.Errorf("got %+v, want %v nats over 6 tokens", p, want)
	}
	if p, err = Perplexity(ctx, m, text, 4, 1); err != nil || p.Tokens != 3 {
		t.Errorf("one window: %+v (%v)", p, err)
	}
}

// Uniform scores: every text has the perplexity of the vocabulary's size.
func TestPerplexityOfNoIdea(t *testing.T) {
	m := load(t, bigram(t, make7x7()))
	p, err := Perplexity(context.Background(), m, []int64{6, 3, 0, 2, 2, 1}, 3, 0)
	if err != nil || math.Abs(p.Perplexity-7) > 1e-5 {
		t.Errorf("got %+v (%v), want 7", p, err)
	}
}

func make7x7() [][]float64 {
	rows := make([][]float64, 7)
	for i := range rows {
		rows[i] = make([]float64, 7)
	}
	return rows
}

func TestTextErrors(t *testing.T) {
	ctx := context.Background()
	m := load(t, bigram(t, make7x7()))
	for name, c := range map[string]struct {
		err  func() error
		want string
	}{
		"short text":    {func() error { _, err := Perplexity(ctx, m, []int64{1, 2}, 3, 0); return err }, "text of 2 tokens has no window of 3"},
		"narrow window": {func() error { _, err := Perplexity(ctx, m, []int64{1, 2}, 1, 0); return err }, "windows of 2 tokens and more"},
		"unknown token": {func() error { _, err := Perplexity(ctx, m, []int64{1, 7}, 2, 0); return err }, "token 7 is not in the model's vocabulary of 7"},
		"no prompt":     {func() error { _, err := Generate(ctx, m, nil, 3); return err }, "prompt of at least one token"},
		"no mask to pad": {func() error {
			d, _ := m.NewDecoder(1, 0, nil)
			_, err := d.Step(ctx, [][]int64{{1}}, [][]bool{{false}})
			return err
		}, "no mask"},
	} {
		if err := c.err(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v does not say %q", name, err, c.want)
		}
	}
	bert, err := testmodels.Get("bert")
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := bert.Build(testmodels.Options{Layers: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Generate(ctx, load(t, save(t, encoder)), []int64{1}, 1); err == nil || !strings.Contains(err.Error(), "no decoder") {
		t.Errorf("an encoder generates: %v", err)
	}
}

func TestCompareText(t *testing.T) {
	ctx := context.Background()
	l3 := math.Log(3)
	up := load(t, bigram(t, [][]float64{{0, l3, 0}, {0, 0, l3}, {l3, 0, 0}}))
	down := load(t, bigram(t, [][]float64{{0, l3, 0}, {0, 0, l3}, {0, l3, 0}})) // differs after a 2
	letters := func(ids []int64) string {
		s := ""
		for _, id := range ids {
			s += string(rune('a' + id))
		}
		return s
	}
	p, err := CompareText(ctx, up, down, []int64{0, 1, 2, 0, 1, 2, 0, 1}, TextOptions{Window: 4, Generate: 4}, letters)
	if err != nil {
		t.Fatal(err)
	}
	// Two of eight positions are a 2, where p = (3/5, 1/5, 1/5) and q = (1/5, 3/5, 1/5).
	kl := (0.6*math.Log(3) - 0.2*math.Log(3)) * 2 / 8
	if math.Abs(p.KL-kl) > 1e-6 || p.Top1 != 0.75 {
		t.Errorf("KL %v, want %v; top-1 %v, want 0.75", p.KL, kl, p.Top1)
	}
	if p.Prompt != "a" || p.Generations != [2]string{"bcab", "bcbc"} || p.Agree != 2 {
		t.Errorf("%q continued as %q, the same for %d tokens", p.Prompt, p.Generations, p.Agree)
	}
	if text := p.String(); !strings.Contains(text, "abcab") || !strings.Contains(text, "part after 2 tokens") {
		t.Errorf("%s", text)
	}
	if p, err = CompareText(ctx, up, up, []int64{0, 1, 2, 0}, TextOptions{Window: 4, Generate: 3, Prompt: []int64{1}}, letters); err != nil || p.Agree != -1 || p.KL != 0 || p.Prompt != "b" {
		t.Errorf("a model and itself: %+v (%v)", p, err)
	}
	wide := load(t, bigram(t, make7x7()))
	if _, err = CompareText(ctx, up, wide, []int64{0, 1, 2, 0}, TextOptions{Window: 4}, letters); err == nil || !strings.Contains(err.Error(), "vocabulary of 3") {
		t.Errorf("two vocabularies: %v", err)
	}
}

// charLlama is the trained model that comes with the repository.
func charLlama(t *testing.T) (dir string, m *Model, v tokenizer.Tokenizer) {
	t.Helper()
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Fatal(err)
	}
	if v, err = tokenizer.Open(filepath.Join(dir, "vocab.json")); err != nil {
		t.Fatal(err)
	}
	return dir, load(t, filepath.Join(dir, "model.onnx")), v
}

// The golden values are PyTorch's, on the checkpoint that the model was exported from.
func TestCharLlamaGolden(t *testing.T) {
	ctx := context.Background()
	dir, m, v := charLlama(t)
	var golden struct {
		Eval struct {
			NLL float64 `json:"nll_per_token"`
		}
		Greedy struct {
			Prompt, Tokens []int64
			Text           string
		}
	}
	readJSON(t, filepath.Join(dir, "golden.json"), &golden)
	got, err := Generate(ctx, m, golden.Greedy.Prompt, len(golden.Greedy.Tokens))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, golden.Greedy.Tokens) {
		t.Errorf("generated\n%v, want\n%v", got, golden.Greedy.Tokens)
	}
	if text := v.Decode(slices.Concat(golden.Greedy.Prompt, got)); text != golden.Greedy.Text {
		t.Errorf("generated %q, want %q", text, golden.Greedy.Text)
	}

	text, err := os.ReadFile(filepath.Join("..", "..", "shared", "text", "tinyshakespeare.txt"))
	if err != nil {
		t.Skip("the text of the golden loss is not part of the repository")
	}
	ids, err := v.Encode(string(text[len(text)*9/10:]))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Perplexity(ctx, m, ids, 256, 100)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(p.NLL-golden.Eval.NLL) > 1e-5 {
		t.Errorf("%.7f nats per token, want %.7f", p.NLL, golden.Eval.NLL)
	}
}

// capp-gpt is a real export with a real training behind it; its greedy runs end at a token.
func TestCappGPTGolden(t *testing.T) {
	dir := filepath.Join("..", "..", "shared", "models", "capp-gpt")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("the model is not part of the repository")
	}
	var golden struct {
		Cases []struct{ Prompt, Greedy []int64 }
	}
	readJSON(t, filepath.Join(dir, "golden.json"), &golden)
	m := load(t, filepath.Join(dir, "model.onnx"))
	const eos = 51
	for i, c := range golden.Cases {
		got, err := Generate(context.Background(), m, c.Prompt, 64, eos)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, c.Greedy) {
			t.Errorf("case %d: got %v, want %v", i, got, c.Greedy)
		}
	}
	if len(golden.Cases) == 0 {
		t.Error("no golden cases")
	}
}

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// One token at a time: a model whose input has room for no more is fed the prompt step by step.
func TestGenerationByModelsOfOneTokenAStep(t *testing.T) {
	open := tiny{}.build()
	one := tiny{}.build()
	one.Graph.Value("input_ids").Info.Type = graph.TensorType(i64, "batch", 1)
	a, b := load(t, save(t, open)), load(t, save(t, one))
	// The tiny model is not causal, so that a prompt at once is not the prompt in steps; one token is.
	want, err := Generate(context.Background(), a, []int64{3}, 5)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Generate(context.Background(), b, []int64{3}, 5)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	if got, err = Generate(context.Background(), b, []int64{3, want[0], want[1]}, 3); err != nil || !slices.Equal(got, want[2:]) {
		t.Errorf("from a longer prompt: got %v (%v), want %v", got, err, want[2:])
	}
}
