package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"onnx-dha/fusion"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// rewritten makes a model and a rewrite of it to half its heads, and returns both paths.
func rewritten(t *testing.T, family string, o testmodels.Options) (model, small string) {
	t.Helper()
	dir := t.TempDir()
	model = save(t, filepath.Join(dir, "model.onnx"), family, o, "")
	must(t, "init", model, "--key", "2", "--value", "2", "--quiet")
	must(t, "rewrite", model, "--config", filepath.Join(dir, "dha.yaml"), "--quiet")
	return model, filepath.Join(dir, "model.dha.onnx")
}

// validReport checks a report against the schema, and returns it decoded.
func validReport(t *testing.T, text string) map[string]any {
	t.Helper()
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("..", "..", "docs", "report.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(v); err != nil {
		t.Errorf("%v", err)
	}
	return decode(t, text)
}

// Every metric has one name: in configurations, as an option, in reports.
func TestMetricsHaveOneName(t *testing.T) {
	var names []string
	for _, m := range fusion.Metrics {
		names = append(names, m.Name)
		if f := findFlag(verifyCommand(), metricFlag(m.Name)); f == nil {
			t.Errorf("verify has no option for %s", m.Name)
		}
	}
	have := verify.MetricNames()
	slices.Sort(names)
	slices.Sort(have)
	if !slices.Equal(names, have) {
		t.Errorf("configurations know %v, reports %v", names, have)
	}
}

// A gate that is broken exits with 1 and says which, by how much and where; options go before the configuration.
func TestVerifyGates(t *testing.T) {
	model, small := rewritten(t, "llama", testmodels.Options{Layers: 2, Cache: true})
	base := []string{"verify", model, small, "--steps", "3", "--threads", "1"}
	code, out, errs := invoke(append(base, "--kl", "1e-9", "--sqnr-db", "-100", "--ppl-ratio", "1.1")...)
	for _, want := range []string{"gate drift: KL nats", "want ≤ 1e-09: over by", "first in B1 S1 T0 logits", "perplexity ratio ≤ 1.1 was not measured: it needs a text"} {
		if !strings.Contains(out, want) {
			t.Errorf("the report does not say %q:\n%s", want, out)
		}
	}
	if code != exitDrift || !strings.Contains(errs, "drift") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if code, out, _ := invoke(append(base, "--kl", "1e9", "--top1", "0", "--p99-rel", "1e9")...); code != 0 || strings.Contains(out, "gate ") {
		t.Errorf("wide limits: exit code %d\n%s", code, out)
	}
	if code, _, _ := invoke(append(base, "--exact-match", "1", "--generate", "5")...); code != exitDrift {
		t.Errorf("random heads were fused and generate the same: exit code %d", code)
	}
	// The same inputs, seed and provider: the same bytes, but for the times.
	var reports [2]string
	for i := range reports {
		_, out, _ := invoke(append(base, "--layers", "--generate", "4", "--json")...)
		v := validReport(t, out)
		report := v["report"].(map[string]any)
		if at(t, report, "timing", "total_seconds").(float64) <= 0 {
			t.Error("no times")
		}
		delete(report, "timing")
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		reports[i] = string(b)
		if i == 0 && (len(at(t, report, "blocks").([]any)) != 2 || at(t, report, "blocks", 0, "key", "after") != 2. || len(at(t, report, "layers", "layers").([]any)) != 2) {
			t.Errorf("blocks %v", report["blocks"])
		}
	}
	if reports[0] != reports[1] {
		t.Error("two runs differ")
	}
}

// Layers whose attention is one fused operator in the file are looked into by what follows it.
func TestVerifyLayersOfFusedOperators(t *testing.T) {
	dir := t.TempDir()
	model, config, small := filepath.Join(dir, "model.onnx"), filepath.Join(dir, "dha.yaml"), filepath.Join(dir, "small.onnx")
	fusedModel(t, model)
	must(t, "init", model, "--key", "2", "--value", "2", "-o", config, "--quiet")
	must(t, "rewrite", model, "--config", config, "-o", small, "--quiet")
	_, out, _ := invoke("verify", model, small, "--layers", "--json", "--threads", "1")
	layers := at(t, validReport(t, out), "report", "layers")
	list := at(t, layers, "layers").([]any)
	if len(list) != 2 || layers.(map[string]any)["untapped"] != nil || layers.(map[string]any)["first_error"] != nil {
		t.Fatalf("%v", layers)
	}
	for i, want := range []string{"out_0_out", "out_1_out"} {
		p := at(t, list, i, "points", 0)
		if at(t, p, "value") != want || at(t, p, "rewrite_error", "passed") != true || at(t, p, "drift", "metrics", "max_rel") == 0. {
			t.Errorf("layer %d: %v", i, p)
		}
	}
}

// A recording stands in for the original: same verdict, same figures, no original.
func TestVerifyGolden(t *testing.T) {
	model, small := rewritten(t, "gpt2", testmodels.Options{Layers: 2, Cache: true})
	dir := t.TempDir()
	golden, inputs := filepath.Join(dir, "golden"), filepath.Join(dir, "inputs")
	_, out, _ := invoke("verify", model, small, "--steps", "3", "--threads", "1", "--save-golden", golden, "--save-inputs", inputs, "--generate", "4", "--json")
	want := decode(t, out)
	if err := os.Remove(model); err != nil {
		t.Fatal(err)
	}
	_, out, _ = invoke("verify", "--golden", golden, small, "--threads", "1", "--json")
	got := validReport(t, out)
	gate := func(v map[string]any) any {
		for _, g := range at(t, v, "report", "gates").([]any) {
			if at(t, g, "section") == "drift" && at(t, g, "metric") == "kl" {
				return at(t, g, "value")
			}
		}
		return nil
	}
	a, b := gate(want).(float64), gate(got).(float64)
	if a <= 0 || b < a*0.9999 || b > a*1.0001 {
		t.Errorf("KL %v, replayed %v", a, b)
	}
	if at(t, got, "report", "generated", "agree", 0) != at(t, want, "report", "generated", "agree", 0) {
		t.Error("generations part elsewhere")
	}
	sets, err := filepath.Glob(filepath.Join(inputs, "test_data_set_*", "input_0.pb"))
	if err != nil || len(sets) < 3 {
		t.Errorf("saved inputs: %v (%v)", sets, err)
	}
	for _, tc := range []struct{ args, want string }{
		{"--golden " + golden + " " + small + " --layers", "--layers needs the original"},
		{"--golden " + golden + " " + small + " " + small, "takes one model"},
		{"--golden " + dir + " " + small, "want a folder that verify --save-golden has written"},
	} {
		code, _, errs := invoke(append([]string{"verify"}, strings.Fields(tc.args)...)...)
		if code != exitUsage || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: exit code %d, %s", tc.args, code, errs)
		}
	}
}

// Samples take the place of generated inputs, whatever they are.
func TestVerifyData(t *testing.T) {
	model, small := rewritten(t, "llama", testmodels.Options{Layers: 1, Cache: true})
	dir := t.TempDir()
	inputs := filepath.Join(dir, "inputs")
	invoke("verify", model, small, "--steps", "0", "--save-inputs", inputs, "--quiet")
	lines := write(t, dir, "ids.jsonl", "[1,2,3,4,5]\n{\"tokens\": [6,7,8]}\n")
	for source, cases := range map[string][]string{inputs: {"test_data_set_0", "test_data_set_3"}, lines: {"line 1", "line 2"}} {
		_, out, errs := invoke("verify", model, small, "--data", source, "--steps", "0", "--threads", "1", "--json")
		if errs != "" && !strings.Contains(errs, "drift") {
			t.Fatalf("%s: %s", source, errs)
		}
		v := validReport(t, out)
		if at(t, v, "report", "rewrite_passed") != true || at(t, v, "report", "inputs") != filepath.Base(source) {
			t.Errorf("%s: %v", source, at(t, v, "report", "inputs"))
		}
		for _, c := range cases {
			if !strings.Contains(out, `"case": "`+c+`"`) {
				t.Errorf("%s: no case %q", source, c)
			}
		}
	}
	for _, tc := range []struct{ args, want string }{
		{"--samples 3", "--samples goes with --data PATH"},
		{"--data " + lines + " --samples -1", "--samples and --seq-len are 0 or more"},
		{"--prompts 3", "--prompts goes with --generate N"},
		{"--golden-mib 0", "--golden-mib is 1 or more"},
		{"--provider cuda --cuda-opt tf32", `--cuda-opt "tf32"; want KEY=VALUE`},
		{"--reference-provider gpu", `--reference-provider "gpu"`},
		{"--bisect --trials 0", "--trials 1 or more"},
		{"--device -1", "--device is 0 or more"},
	} {
		code, _, errs := invoke(append([]string{"verify", model, small}, strings.Fields(tc.args)...)...)
		if code != exitUsage || !strings.Contains(errs, tc.want) {
			t.Errorf("%s: exit code %d, %s", tc.args, code, errs)
		}
	}
}

// With one layer's worth of drift allowed, the layers to leave alone are named, and a rewrite without them passes.
func TestVerifyBisect(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Layers: 3, Cache: true}, "")
	config := filepath.Join(dir, "dha.yaml")
	must(t, "init", model, "--key", "1", "--value", "1", "--quiet")
	must(t, "rewrite", model, "--config", config, "--quiet")
	small := filepath.Join(dir, "model.dha.onnx")
	_, out, _ := invoke("verify", model, small, "--steps", "2", "--threads", "1", "--json")
	full := 0.0
	for _, g := range at(t, decode(t, out), "report", "gates").([]any) {
		if at(t, g, "metric") == "kl" && at(t, g, "section") == "drift" {
			full = at(t, g, "value").(float64)
		}
	}
	limits := []string{"--kl", jsonFloat(full * 0.6), "--top1", "0"}
	_, out, errs := invoke(append([]string{"verify", model, small, "--steps", "2", "--threads", "1", "--bisect", "--json"}, limits...)...)
	v := validReport(t, out)
	b := at(t, v, "report", "bisection")
	leave := at(t, b, "leave_alone").([]any)
	if len(leave) == 0 || len(leave) == 3 || at(t, b, "passed") != true || at(t, b, "smallest") != true {
		t.Fatalf("%v: %v %s", limits, b, errs)
	}
	cfg, err := fusion.Load(config)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Layers = slices.DeleteFunc(cfg.Layers, func(l fusion.Layer) bool { return slices.Contains(leave, any(l.Block)) })
	text, err := cfg.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	some := write(t, dir, "some.yaml", string(text))
	must(t, "rewrite", model, "--config", some, "-o", filepath.Join(dir, "some.onnx"), "--quiet")
	if code, out, errs := invoke(append([]string{"verify", model, filepath.Join(dir, "some.onnx"), "--steps", "2", "--threads", "1"}, limits...)...); code != 0 {
		t.Errorf("without %v: exit code %d, %s\n%s", leave, code, errs, out)
	}
}

func jsonFloat(x float64) string {
	b, _ := json.Marshal(x) // a finite number
	return string(b)
}

// What cannot run is named, with what is missing, and does not stand in the way of the rest.
func TestVerifyProviders(t *testing.T) {
	if testing.Short() {
		t.Skip("starts every provider that there is")
	}
	model, small := rewritten(t, "gpt2", testmodels.Options{Layers: 1})
	code, out, errs := invoke("verify", model, small, "--provider", "all", "--kl", "1e9", "--top1", "0", "--steps", "0", "--json")
	if code != 0 {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	v := validReport(t, out)
	list, _ := v["report"].(map[string]any)["providers"].([]any)
	if len(list) == 0 && !strings.Contains(out, "built for the CPU alone") {
		t.Errorf("no providers: %s", out)
	}
	for _, p := range list {
		m := p.(map[string]any)
		if (m["result"] == nil) == (m["unavailable"] == nil) || at(t, p, "reference_provider") != "cpu" {
			t.Errorf("%v", p)
		}
	}
}
