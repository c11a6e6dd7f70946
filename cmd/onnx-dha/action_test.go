package main

import (
	"encoding/json"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// asProgram makes the test binary the program itself, for tests that need one to start.
const asProgram = "ONNX_DHA_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// action is what the tests read of action.yml.
type action struct {
	Inputs map[string]struct {
		Default  string
		Required bool
	}
	Outputs map[string]struct{ Value string }
	Runs    struct {
		Using string
		Steps []struct {
			Name, ID, Uses, Shell, Run string
			Env                        map[string]string
		}
	}
}

// The script of the action's step is run as a runner would: inputs as variables, a summary and outputs in files. A model
// within the gate passes, one beyond it fails with its exit code, and both leave all reports.
func TestAction(t *testing.T) {
	text, err := os.ReadFile("../../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var a action
	if err := yaml.Unmarshal(text, &a); err != nil {
		t.Fatal(err)
	}
	step := a.Runs.Steps[len(a.Runs.Steps)-1]
	if a.Runs.Using != "composite" || step.ID != "verify" || strings.Contains(step.Run, "${{") {
		t.Fatalf("the last step has to be that of verify, with inputs as variables only: %+v", step)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir() // what the runner checks the action out into
	for link, to := range map[string]string{"bin/onnx-dha": self, ".ort": filepath.Join(root, ".ort")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(home, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(home, link)); err != nil {
			t.Fatal(err)
		}
	}
	model := filepath.Join(root, "testmodels/char-llama/model.onnx")
	rewritten := filepath.Join(t.TempDir(), "a model.onnx")
	must(t, "rewrite", model, "--config", filepath.Join(root, "testmodels/char-llama/dha.yaml"), "-o", rewritten)

	run := func(t *testing.T, inputs map[string]string) (code int, dir, summary, outputs, log string) {
		dir = t.TempDir()
		c := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.Run)
		c.Dir = dir
		c.Env = append(os.Environ(), asProgram+"=1", "GITHUB_STEP_SUMMARY="+filepath.Join(dir, "summary"), "GITHUB_OUTPUT="+filepath.Join(dir, "outputs"))
		for name, value := range step.Env {
			input := strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(value, "${{"), "}}"))
			value = home
			if input != "github.action_path" {
				input = strings.TrimPrefix(input, "inputs.")
				def, ok := a.Inputs[input]
				if !ok {
					t.Fatalf("%s is no input of the action", input)
				}
				if value, ok = inputs[input]; !ok {
					value = def.Default
				}
			}
			c.Env = append(c.Env, name+"="+value)
		}
		out, err := c.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !asExit(err, &exit) {
			t.Fatal(err)
		}
		text := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return string(b)
		}
		return c.ProcessState.ExitCode(), dir, text("summary"), text("outputs"), string(out)
	}
	for _, c := range []struct {
		name, arguments string
		code            int
		passed, log     string
	}{
		{"within", "--kl 2 --top1 0  --steps 2 --layers", 0, "passed=true", "::notice title=onnx-dha::"},
		{"beyond", "--kl 0.0001 --steps 2", 1, "passed=false", "::error title=onnx-dha%3A drift::drift: KL nats"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, dir, summary, outputs, log := run(t, map[string]string{"original": model, "rewritten": rewritten, "arguments": c.arguments})
			if code != c.code || !strings.Contains(outputs, c.passed) || !strings.Contains(log, c.log) {
				t.Fatalf("exit code %d, outputs %q; want %d, %s, %q in\n%s", code, outputs, c.code, c.passed, c.log, log)
			}
			if !strings.HasPrefix(summary, "## onnx-dha verify: ") {
				t.Errorf("summary: %s", summary)
			}
			read := func(name string) []byte {
				b, err := os.ReadFile(filepath.Join(dir, "onnx-dha-report", name))
				if err != nil {
					t.Error(err)
				}
				return b
			}
			if err := json.Unmarshal(read("report.json"), new(any)); err != nil {
				t.Error(err)
			}
			if err := xml.Unmarshal(read("report.xml"), new(struct{ XMLName xml.Name })); err != nil {
				t.Error(err)
			}
			if !strings.Contains(string(read("report.html")), "</html>") {
				t.Error("the page is not whole")
			}
		})
	}
	if code, _, _, _, log := run(t, map[string]string{"rewritten": rewritten}); code != 2 || !strings.Contains(log, "::error::") {
		t.Errorf("without an original: exit code %d, %s", code, log)
	}
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*to = e
	return ok
}
