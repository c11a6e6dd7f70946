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

// expected generates n tokens greedily after each prompt with verify's decode loop; prompts of unequal length are padded in
// front. fixed holds inputs that stay the same in every step.
func expected(t *testing.T, model string, prompts [][]int64, n int, fixed map[string]*ort.Tensor) [][]int64 {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
	m, err := verify.Open(model, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	d, err := m.NewDecoder(len(prompts), 1, fixed)
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for _, p := range prompts {
		longest = max(longest, len(p))
	}
	next, real := make([][]int64, len(prompts)), make([][]bool, len(prompts))
	padded := false
	for b, p := range prompts {
		padding := longest - len(p)
		padded = padded || padding > 0
		next[b] = slices.Concat(make([]int64, padding), p)
		real[b] = slices.Concat(make([]bool, padding), slices.Repeat([]bool{true}, len(p)))
	}
	if !padded {
		real = nil
	}
	said := make([][]int64, len(prompts))
	for range n {
		out, err := d.Step(t.Context(), next, real)
		if err != nil {
			t.Fatal(err)
		}
		scores, err := out[m.Logits].Float32s()
		if err != nil {
			t.Fatal(err)
		}
		shape := out[m.Logits].Shape
		per, vocabulary := len(scores)/len(prompts), int(shape[len(shape)-1])
		for b := range prompts {
			best := generate.Greedy(scores[(b+1)*per-vocabulary : (b+1)*per])
			said[b], next[b] = append(said[b], best), []int64{best}
		}
		real = nil
	}
	return said
}

func ids(tokens []int64) string {
	text := make([]string, len(tokens))
	for i, x := range tokens {
		text[i] = strconv.FormatInt(x, 10)
	}
	return strings.Join(text, ",")
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
	want := expected(t, small, [][]int64{prompt}, n, nil)[0]
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
		browser := ""
		for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
			if path, err := exec.LookPath(name); err == nil && browser == "" {
				browser = path
			}
		}
		if browser == "" {
			missing(t, "there is no browser: chromium, chromium-browser or google-chrome")
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
