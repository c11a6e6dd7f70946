package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"onnx-dha/data/tokenizer"
	generate "onnx-dha/decode"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// The tests whose names begin with Runtimes run rewritten models in the runtimes that people use, and hold what they
// generate against verify's own loop. `make clients` installs those for JavaScript; with RUNTIMES=required in the
// environment, as `make test-runtimes` has it, one that is missing is a failure.

// client runs a program of the folder clients with Node and reads what it prints.
func client(t *testing.T, result any, script string, args ...string) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts other runtimes")
	}
	dir, err := filepath.Abs(filepath.Join("..", "..", "clients"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", ".package-lock.json")); err != nil {
		missing(t, "the runtimes for JavaScript are not installed: make clients")
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing(t, err.Error())
	}
	cmd := exec.CommandContext(t.Context(), node, append([]string{filepath.Join(dir, script)}, args...)...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", script, err, out, errs.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), result); err != nil {
		t.Fatalf("%s printed %q: %v", script, out, err)
	}
}

func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("RUNTIMES") == "required" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// expected generates greedily with verify's decode loop.
func expected(t *testing.T, model string, prompt []int64, n int) []int64 {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
	m, err := verify.Open(model, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d, err := m.NewDecoder(1, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	var tokens []int64
	for next := prompt; len(tokens) < n; {
		out, err := d.Step(t.Context(), [][]int64{next}, nil)
		if err != nil {
			t.Fatal(err)
		}
		scores, err := out[m.Logits].Float32s()
		if err != nil {
			t.Fatal(err)
		}
		shape := out[m.Logits].Shape
		best := generate.Greedy(scores[len(scores)-int(shape[len(shape)-1]):])
		tokens, next = append(tokens, best), []int64{best}
	}
	return tokens
}

func ids(tokens []int64) string {
	text := make([]string, len(tokens))
	for i, x := range tokens {
		text[i] = strconv.FormatInt(x, 10)
	}
	return strings.Join(text, ",")
}

// transformersCase is a model folder that transformers.js generates from.
type transformersCase struct {
	name       string
	folder     func(t *testing.T) string
	key, value string // heads that are left
	prompt     string
	tokens     int
}

var transformersCases = []transformersCase{
	{"char-llama", charFolder, "4", "4", "Shall I compare thee", 60},
	{"char-llama, decoupled", charFolder, "8", "2", "Shall I compare thee", 60},
	{"capp-gpt", cappFolder, "2", "2", strings.Join([]string{"geometry_prismatic", "holes_large", "external_threads_yes", "surface_finish_rough", "tolerance_rough", "batch_size_large", "<SOS>"}, "\n"), 12},
	{"stories260K", storiesFolder, "2", "2", "Once upon a time", 60},
}

// TestRuntimesTransformers generates text with transformers.js from rewritten folders.
func TestRuntimesTransformers(t *testing.T) {
	for _, c := range transformersCases {
		t.Run(c.name, func(t *testing.T) {
			dir := c.folder(t)
			small := filepath.Join(t.TempDir(), "small")
			text := must(t, "rewrite", dir, "--config", uniform(t, filepath.Join(dir, "onnx", "model.onnx"), c.key, c.value), "-o", small, "--target", "transformersjs")
			if !strings.Contains(text, "transformers.js 4  can run it") {
				t.Fatalf("the folder is said not to fit:\n%s", text)
			}
			var got struct {
				Prompt, Tokens []int64
				Text           string
			}
			client(t, &got, "transformers.mjs", small, strconv.Itoa(c.tokens), c.prompt)
			tokens, err := tokenizer.Open(filepath.Join(small, "tokenizer.json"))
			if err != nil {
				t.Fatal(err)
			}
			prompt, err := tokens.Encode(c.prompt)
			if err != nil {
				t.Fatal(err)
			}
			// The program's tokenizers leave out what a model wants in front of every text.
			if front := len(got.Prompt) - len(prompt); front < 0 || front > 1 || !slices.Equal(got.Prompt[front:], prompt) {
				t.Fatalf("the prompt is %v there, %v here", got.Prompt, prompt)
			}
			prompt = got.Prompt
			want := expected(t, filepath.Join(small, "onnx", "model.onnx"), prompt, len(got.Tokens))
			if !slices.Equal(got.Tokens, want) {
				t.Errorf("tokens\n%v\nwant\n%v", got.Tokens, want)
			}
			// The end of the text is where the folder's generation_config.json says so.
			if len(got.Tokens) < c.tokens && !slices.Contains(ends(t, small), got.Tokens[len(got.Tokens)-1]) {
				t.Errorf("%d tokens, want %d or an end of text", len(got.Tokens), c.tokens)
			}
			if all := tokens.Decode(slices.Concat(prompt, want)); clean(got.Text) != clean(all) {
				t.Errorf("text\n%q\nwant\n%q", got.Text, all)
			}
			t.Logf("%q", got.Text)
		})
	}
}

// clean takes out what tokenizers disagree on: special tokens, and which space stands between words.
func clean(text string) string {
	for _, special := range []string{"<s>", "</s>", "<EOS>"} {
		text = strings.ReplaceAll(text, special, "")
	}
	return strings.Join(strings.Fields(text), " ")
}

// ends are the tokens that end a text.
func ends(t *testing.T, dir string) []int64 {
	v, _ := readJSON(t, filepath.Join(dir, "generation_config.json"))["eos_token_id"].(float64)
	return []int64{int64(v)}
}

// TestRuntimesPlain decodes with ONNX Runtime in Go, in Node and in a browser.
func TestRuntimesPlain(t *testing.T) {
	dir, err := testmodels.CharLlama()
	if err != nil {
		t.Skip(err)
	}
	small := filepath.Join(t.TempDir(), "small.onnx")
	must(t, "rewrite", filepath.Join(dir, "model.onnx"), "--config", filepath.Join(dir, "dha.yaml"), "-o", small, "--lowering", "grouped")
	prompt := []int64{31, 46, 39, 50, 50, 1, 21}
	const n = 40
	want := expected(t, small, prompt, n)
	check := func(t *testing.T, got []int64) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("tokens\n%v\nwant\n%v", got, want)
		}
	}
	t.Run("Go", func(t *testing.T) {
		for _, lowering := range []string{"grouped", "static-cache"} {
			path := filepath.Join(t.TempDir(), lowering+".onnx")
			must(t, "rewrite", filepath.Join(dir, "model.onnx"), "--config", filepath.Join(dir, "dha.yaml"), "-o", path, "--lowering", lowering)
			m, err := generate.Open(path, ort.Options{Threads: 1})
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for token, err := range m.Generate(t.Context(), prompt, nil) {
				if err != nil {
					t.Fatal(err)
				}
				if got = append(got, token); len(got) == n {
					break
				}
			}
			check(t, got)
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("Node", func(t *testing.T) {
		var got struct {
			Version string
			Tokens  []int64
		}
		client(t, &got, "node.mjs", small, strconv.Itoa(n), ids(prompt))
		check(t, got.Tokens)
		t.Logf("onnxruntime-node %s", got.Version)
	})
	t.Run("browser", func(t *testing.T) {
		browser, err := exec.LookPath("chromium")
		if err != nil {
			missing(t, "no chromium: "+err.Error())
		}
		var got struct {
			Agent, Version string
			Tokens         []int64
		}
		client(t, &got, "web.mjs", small, strconv.Itoa(n), ids(prompt), browser)
		check(t, got.Tokens)
		t.Logf("onnxruntime-web %s in %s", got.Version, got.Agent)
	})
}
