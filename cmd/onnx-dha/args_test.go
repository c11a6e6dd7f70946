package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestArrange(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for in, want := range map[string]string{
		"inspect model.onnx --json":                  "inspect --json -- model.onnx",
		"inspect --json model.onnx":                  "inspect --json -- model.onnx",
		"rewrite m.onnx --config c.yaml -o out.onnx": "rewrite --config c.yaml -o out.onnx -- m.onnx",
		"rewrite --config=c.yaml m.onnx --force":     "rewrite --config=c.yaml --force -- m.onnx",
		"verify a -q b --kl 0.1":                     "verify -q --kl 0.1 -- a b",
		"verify a b --kl -1":                         "verify --kl -1 -- a b",
		"verify -- --a -b":                           "verify -- --a -b",
		"init m -o -":                                "init -o - -- m",
		"help":                                       "--help",
		"help verify":                                "verify --help --",
		"inspect -h":                                 "inspect -h --",
		"--version":                                  "version --",
		"-version --json":                            "version --json --",
		"inspect m --json=false":                     "inspect --json=false -- m",
		"init m --key 4 --value 2 --output x.yaml --force": "init --key 4 --value 2 --output x.yaml --force -- m",
	} {
		got, err := arrange(app, strings.Fields(in))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v; want %q", in, strings.Join(got, " "), err, want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "no command; want one of inspect, init, learn, rewrite, verify, ",
		"inspct m":                `unknown command "inspct"; did you mean "inspect"? want one of`,
		"serve m":                 `unknown command "serve"; want one of`,
		"help serve":              `unknown command "serve"`,
		"--json inspect m":        "--json stands before the command; options follow it",
		"inspect":                 "MODEL is missing; usage: onnx-dha inspect MODEL",
		"verify a b c":            `"c" is one argument too many; usage: onnx-dha verify ORIGINAL REWRITTEN`,
		"verify":                  "ORIGINAL and REWRITTEN is missing",
		"inspect m --jsn":         `inspect has no option --jsn; did you mean "--json"? see onnx-dha inspect --help`,
		"inspect m --nothinglike": `inspect has no option --nothinglike; see onnx-dha inspect --help`,
		"rewrite m --config":      "--config needs a value; see onnx-dha rewrite --help",
		"init m --key four":       `invalid value "four" for --key; see onnx-dha init --help`,
		"verify a b --seed -1":    `invalid value "-1" for --seed`,
		"inspect m --json=maybe":  "json", // the flag parser's own words
		"completion fsh":          `no completion for "fsh"; did you mean "fish"? want one of bash, fish, zsh`,
		"version 1":               `"1" is one argument too many`,
	} {
		code, out, errs := invoke(strings.Fields(in)...)
		if code != exitUsage || out != "" || !strings.HasPrefix(errs, "onnx-dha: ") || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q; want %q", in, code, out, errs, want)
		}
	}
	if code, _, errs := invoke("inspect", ""); code != exitUsage || !strings.Contains(errs, "MODEL is empty") {
		t.Errorf("an empty name: exit code %d, %q", code, errs)
	}
}

// TestHelp checks that every command explains itself with each of its options and examples, and that its page in docs/
// does too.
func TestHelp(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	top := must(t, "--help")
	for _, c := range app.Commands {
		if !strings.Contains(top, "  "+c.Name+" ") {
			t.Errorf("--help does not list %s", c.Name)
		}
		help := must(t, c.Name, "--help")
		if help != must(t, "help", c.Name) {
			t.Errorf("help %s is another text", c.Name)
		}
		if examples[c.Name] == "" || !strings.Contains(help, examples[c.Name]) {
			t.Errorf("%s: no examples", c.Name)
		}
		page, err := os.ReadFile(filepath.Join("..", "..", "docs", c.Name+".md"))
		if err != nil {
			t.Error(err)
		}
		for _, o := range options(c) {
			if !strings.Contains(help, o.heading()+" ") {
				t.Errorf("%s --help does not explain --%s", c.Name, o.long)
			}
			if o.long != "help" && !strings.Contains(string(page), "`--"+o.long) {
				t.Errorf("docs/%s.md does not explain --%s", c.Name, o.long)
			}
		}
	}
}

// TestExamplesParse checks that the examples of the help are command lines that the program understands.
func TestExamplesParse(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for name, text := range examples {
		for line := range strings.Lines(text) {
			line, _, _ = strings.Cut(strings.TrimSpace(line), "    ")
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " > ")
			line = strings.TrimSuffix(strings.TrimPrefix(line, "source <("), ")")
			words := strings.Fields(line)
			if words[0] != program || words[1] != name {
				t.Errorf("%s: example %q", name, line)
			}
			if _, err := arrange(app, words[1:]); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
}

func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal(err) // the Makefile needs it too
	}
	script := write(t, t.TempDir(), "completion", must(t, "completion", "bash"))
	complete := func(line string) []string {
		t.Helper()
		words := strings.Split(line, " ")
		// What the shell does at a tab key: words, the position in them, then the function.
		cmd := exec.Command(bash, "-c", `source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _onnx_dha; printf '%s\n' "${COMPREPLY[@]}"`,
			"bash", script)
		cmd.Args = append(cmd.Args, words...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		return got
	}
	for line, want := range map[string]string{
		"onnx-dha ins":                      "inspect",
		"onnx-dha ver":                      "verify version",
		"onnx-dha rewrite m.onnx --lo":      "--lowering",
		"onnx-dha rewrite m --lowering ":    "attention auto expand gqa grouped static-cache",
		"onnx-dha rewrite m --weights s":    "share",
		"onnx-dha verify a b --provider ":   "coreml cpu cuda directml openvino tensorrt webgpu xnnpack",
		"onnx-dha completion ":              "bash fish zsh",
		"onnx-dha inspect mod":              "", // file names are bash's own part
		"onnx-dha inspect --quiet --js":     "--json",
		"onnx-dha verify a b --cross-check": "--cross-check",
	} {
		if got := strings.Join(complete(line), " "); got != want {
			t.Errorf("%q completes to %q, want %q", line, got, want)
		}
	}
}

// TestCompletionNamesEverything checks the scripts of the shells for all commands, options and values; a shell that is
// installed also reads its script.
func TestCompletionNamesEverything(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for _, shell := range shellNames {
		script := must(t, "completion", shell)
		for _, c := range app.Commands {
			if !strings.Contains(script, c.Name) {
				t.Errorf("%s: no %s", shell, c.Name)
			}
			for _, o := range options(c) {
				if !strings.Contains(script, o.long) || !strings.Contains(script, strings.Join(o.choices, " ")) {
					t.Errorf("%s: %s: no --%s with %v", shell, c.Name, o.long, o.choices)
				}
			}
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		cmd := exec.Command(shell, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", shell, err, out)
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, tc := range [][2]string{
		{count(0), "0"}, {count(999), "999"}, {count(1000), "1,000"}, {count(1234567), "1,234,567"}, {count(-1000), "-1,000"}, {count(-100), "-100"},
		{size(0), "0 B"}, {size(1023), "1023 B"}, {size(1024), "1.00 KiB"}, {size(1 << 20), "1.00 MiB"}, {size(1<<20 - 1), "1024 KiB"},
		{size(12345), "12.1 KiB"}, {size(3 << 30), "3.00 GiB"}, {size(5000 << 30), "4.88 TiB"},
		{plural(1, "node"), "1 node"}, {plural(2, "node"), "2 nodes"}, {plural(0, "node"), "0 nodes"},
		{change(4, 4), "4"}, {change(8, 4), "8 → 4"},
		{changeOf(100, 50, count[int64]), "100 → 50 (-50.0 %)"}, {changeOf(7, 7, count[int64]), "7"}, {changeOf(0, 7, count[int64]), "0"},
	} {
		if tc[0] != tc[1] {
			t.Errorf("%q, want %q", tc[0], tc[1])
		}
	}
}

// TestPlainOutput checks that a pipe gets no colours, and no lines with spaces at their end.
func TestPlainOutput(t *testing.T) {
	out := must(t, "inspect", filepath.Join("..", "..", "testmodels", "char-llama", "model.onnx"))
	if strings.Contains(out, "\x1b") {
		t.Errorf("escape codes in a pipe:\n%q", out)
	}
	for line := range strings.Lines(out) {
		if strings.HasSuffix(line, " \n") {
			t.Errorf("trailing space in %q", line)
		}
	}
	if r := render(newTable(true, []any{"a"})); !strings.Contains(r, "\x1b") {
		t.Error("no colours where they are asked for")
	}
	t.Setenv("NO_COLOR", "1")
	if colorful(os.Stdout) {
		t.Error("NO_COLOR is ignored")
	}
}
