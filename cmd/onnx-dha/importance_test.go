package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

func needRuntime(t *testing.T) {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Skip(err)
	}
}

// tokenLines writes samples of token ids below 64.
func tokenLines(t *testing.T, samples, length int) string {
	t.Helper()
	var b strings.Builder
	for s := range samples {
		ids := make([]string, length)
		for i := range ids {
			ids[i] = fmt.Sprint((7*s + 11*i + i*i) % 64)
		}
		fmt.Fprintf(&b, "[%s]\n", strings.Join(ids, ","))
	}
	path := filepath.Join(t.TempDir(), "ids.jsonl")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestImportanceReports prints one measurement in its three forms, which have to say the same.
func TestImportanceReports(t *testing.T) {
	needRuntime(t)
	model := save(t, filepath.Join(t.TempDir(), "m.onnx"), "llama-gqa", testmodels.Options{Cache: true}, "")
	line := []string{"importance", model, "--data", tokenLines(t, 3, 9), "--threads", "1"}
	d := decode(t, must(t, append(line, "--json")...))
	if at(t, d, "positions") != 27.0 || at(t, d, "samples") != 3.0 || at(t, d, "effect") != "loss" || at(t, d, "unsupported") != 0.0 {
		t.Errorf("%v positions, %v samples, effect %v", d["positions"], d["samples"], d["effect"])
	}
	rows, err := csv.NewReader(strings.NewReader(must(t, append(line, "--csv")...))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1+2*(4+2+2+1) {
		t.Fatalf("%d lines of CSV", len(rows))
	}
	text := must(t, line...)
	if !strings.Contains(text, "3 samples") || !strings.Contains(text, fmt.Sprintf("loss %.4f nats per token", at(t, d, "loss"))) {
		t.Errorf("the report does not say what was measured:\n%s", text)
	}
	kinds := map[string]string{"query": "query_heads", "key": "key_heads", "value": "value_heads"}
	for i, block := range at(t, d, "blocks").([]any) {
		name := at(t, block, "block").(string)
		if !strings.Contains(text, "\n"+name+": output norm ") {
			t.Errorf("block %q is not in the report:\n%s", name, text)
		}
		for _, row := range rows[1+9*i : 10+9*i] {
			var head any
			if row[1] == "layer" {
				head = at(t, block, "layer")
			} else {
				var n int
				fmt.Sscan(row[2], &n)
				head = at(t, block, kinds[row[1]], n)
			}
			for column, path := range map[int][]any{
				4: {"attention", "magnitude"}, 5: {"attention", "peak"}, 6: {"attention", "entropy"}, 7: {"attention", "relative_entropy"},
				8: {"output", "rms"}, 9: {"output", "relative"}, 10: {"output", "share"}, 11: {"removed", "effect"}, 13: {"removed", "standard_error"},
			} {
				if got, want := row[column], fmt.Sprint(at(t, head, path...)); got != want {
					t.Errorf("%s %s %s: %s is %s in CSV, %s in JSON", row[0], row[1], row[2], path, got, want)
				}
			}
			if row[0] != name || row[12] != "loss" {
				t.Errorf("line %v", row)
			}
			effect := fmt.Sprintf("%.4f ± %.4f", at(t, head, "removed", "effect"), at(t, head, "removed", "standard_error"))
			if !strings.Contains(text, effect) {
				t.Errorf("%s %s %s: no %q in the report:\n%s", row[0], row[1], row[2], effect, text)
			}
		}
	}
	if !regexp.MustCompile(`(?m)^KV 1: 2-3 `).MatchString(text) {
		t.Errorf("no line for the key/value head of query heads 2 and 3:\n%s", text)
	}
}

// TestImportanceToFile writes the report and nothing else.
func TestImportanceToFile(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "gpt2", testmodels.Options{}, "")
	out := filepath.Join(dir, "heads.csv")
	if text := must(t, "importance", model, "--data", tokenLines(t, 2, 8), "--remove", "layers", "--csv", "-o", out); text != "" {
		t.Errorf("printed %q", text)
	}
	b, err := os.ReadFile(out)
	if err != nil || !strings.HasPrefix(string(b), "block,kind,head,") {
		t.Errorf("%v, %q", err, b)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
}

func TestImportanceOfTensors(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "vit", testmodels.Options{}, "")
	m, err := graph.Load(model)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	set := filepath.Join(dir, "test_data_set_0")
	if err := os.Mkdir(set, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := testmodels.Get("vit")
	if err != nil {
		t.Fatal(err)
	}
	in, err := f.Inputs(testmodels.Options{}, testmodels.Shape{Batch: 1, Seq: 5}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range m.Graph.Inputs {
		a := in[v.Name]
		dims := make([]int64, len(a.Dims))
		for k, d := range a.Dims {
			dims[k] = int64(d)
		}
		x, err := graph.FromFloat64s(v.Name, onnxpb.TensorProto_FLOAT, dims, a.F)
		if err != nil {
			t.Fatal(err)
		}
		b, err := proto.Marshal(x.Proto)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(set, fmt.Sprintf("input_%d.pb", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := decode(t, must(t, "importance", model, "--data", dir, "--json"))
	if at(t, d, "effect") != "kl" || d["loss"] != nil {
		t.Errorf("effect %v, loss %v", d["effect"], d["loss"])
	}
	if kl := at(t, d, "blocks", 0, "query_heads", 0, "removed", "effect").(float64); !(kl > 0) {
		t.Errorf("without a head the outputs diverge by %v", kl)
	}
}

func TestImportanceErrors(t *testing.T) {
	needRuntime(t)
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "m.onnx"), "llama", testmodels.Options{}, "")
	ids := tokenLines(t, 2, 8)
	strange := filepath.Join(dir, "strange.jsonl")
	empty := filepath.Join(dir, "empty.jsonl")
	for path, text := range map[string]string{strange: "[1, 2, 64]\n", empty: "\n"} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	vit := save(t, filepath.Join(dir, "vit.onnx"), "vit", testmodels.Options{}, "")
	for _, tc := range []struct {
		args string
		want string
	}{
		{model, "--data is missing"},
		{model + " --data " + ids + " --csv --json", "--csv and --json"},
		{model + " --data " + ids + " --remove head", `did you mean "heads"?`},
		{model + " --data " + ids + " --samples -1", "--samples -1; want 0 or more"},
		{model + " --data " + filepath.Join(dir, "nowhere.txt"), "no such file"},
		{model + " --data " + empty, "it is empty"},
		{model + " --data " + strange, "the model's vocabulary has 64 tokens"},
		{model + " --data " + ids + " -o " + model, "inputs are never written to"},
		{model + " --data " + ids + " -o " + ids, "inputs are never written to"},
		{vit + " --data " + ids, "want tensors by input name"},
	} {
		code, out, errs := invoke(append([]string{"importance"}, strings.Fields(tc.args)...)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tc.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q; want %q", tc.args, code, out, errs, tc.want)
		}
	}
}

func TestRanges(t *testing.T) {
	for want, x := range map[string][]int{"": nil, "3": {3}, "0-3": {0, 1, 2, 3}, "0, 2-3, 5": {0, 2, 3, 5}} {
		if got := ranges(x); got != want {
			t.Errorf("%v: %q, want %q", x, got, want)
		}
	}
}

func TestDecimals(t *testing.T) {
	for _, tc := range []struct {
		x    float64
		want int
	}{{0, 0}, {8.304, 3}, {0.2564, 4}, {1234.5, 0}, {99999, 0}, {1e-12, 9}} {
		if got := decimals(tc.x); got != tc.want {
			t.Errorf("%g: %d, want %d", tc.x, got, tc.want)
		}
	}
}
