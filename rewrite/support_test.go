package rewrite_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/unfuse"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

var update = flag.Bool("update", false, "write docs/support.md anew")

// outcome is what becomes of the attentions of one model when half of the key heads and half of the value heads of every
// block are fused.
type outcome struct {
	located   int      // described with their heads
	reported  int      // known to be attention, but not described
	rewritten int      // with fewer heads
	fixed     []string // why others were not
	runs      bool     // the runtime runs the original
	exact     bool     // the rewritten model equals the tied reference to rounding, in every output and cache
}

// halve finds the attentions of the model at path, fuses neighbouring heads in pairs of groups, and compares.
func halve(t *testing.T, path string, steps int) outcome {
	t.Helper()
	load := func() *graph.Model {
		m, err := graph.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
	var o outcome
	m := load()
	done, _, err := unfuse.Expand(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	found := attention.Find(m)
	nodes := map[*graph.Node]bool{}
	for _, b := range found.Blocks {
		o.located++
		switch {
		case b.Fixed != "":
			o.fixed = append(o.fixed, b.Fixed)
		case b.KVHeads < 2 || b.ValueHeads < 2:
			o.fixed = append(o.fixed, "one key/value head")
		default:
			maps.Copy(nodes, b.Nodes())
		}
	}
	for _, u := range found.Unsupported {
		if u.Attention {
			o.reported++
			o.fixed = append(o.fixed, u.Why)
		}
	}
	plan := func() (*graph.Model, []unfuse.Expansion, *fusion.Plan) {
		m := load()
		done, _, err := unfuse.Expand(m, unfuse.Owners(done, nodes))
		if err != nil {
			t.Fatal(err)
		}
		p := &fusion.Plan{}
		for _, b := range attention.Find(m).Blocks {
			if b.Fixed == "" && b.KVHeads > 1 && b.ValueHeads > 1 {
				p.Blocks = append(p.Blocks, fusion.BlockPlan{Block: b, Key: weigh(adjacent(b.KVHeads)), Value: weigh(adjacent(b.ValueHeads))})
			}
		}
		return m, done, p
	}
	if len(nodes) == 0 {
		return o
	}
	dir := t.TempDir()
	save := func(m *graph.Model, name string) string {
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(dir, name)
		if err := m.Save(out, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	m, _, p := plan()
	res, err := rewrite.Apply(m, p)
	if err != nil {
		t.Errorf("%s: %v", path, err)
		return o
	}
	o.rewritten = len(res.Blocks)
	rewritten := save(m, "rewritten.onnx")
	m, done, p = plan()
	before := unfuse.Remember(m, done)
	if err := rewrite.Tie(m, p); err != nil {
		t.Fatal(err)
	}
	if len(done) > 0 {
		m = load()
		if err := before.Carry(m); err != nil {
			t.Fatal(err)
		}
	}
	r, err := verify.Run(context.Background(), verify.Request{
		Original: path, Rewritten: rewritten, Tied: save(m, "tied.onnx"), Caches: res.Caches, Steps: steps, Seed: 7,
	})
	if err != nil {
		return o
	}
	o.runs, o.exact = true, len(r.Exact.Lines) > 0
	for _, l := range r.Exact.Lines {
		if !l.Passed() {
			o.exact = false
			t.Logf("%s: %s %s: %s", path, l.Case, l.Output, strings.Join(l.Broken, "; "))
		}
	}
	return o
}

// columns are the entries of a row after its name.
func (o outcome) columns(attentions int) string {
	share := func(n int) string { return fmt.Sprintf("%d of %d", n, attentions) }
	exact := "yes"
	switch {
	case o.rewritten == 0:
		exact = "–"
	case !o.runs:
		exact = "the runtime does not run the original"
	case !o.exact:
		exact = "**no**"
	}
	located := share(o.located)
	if o.reported > 0 {
		located += fmt.Sprintf(", %d reported", o.reported)
	}
	return fmt.Sprintf("%s | %s | %s", located, share(o.rewritten), exact)
}

// corpus lists the models of other projects' test suites with the attentions in each, counted by hand, and how many of
// them have projections of several key/value heads whose weights are in the file.
var corpus = []struct {
	name                 string
	attentions, fuseable int
}{
	{"onnxruntime/attention_distilbert", 1, 1},
	{"onnxruntime/attention_mask1d_fp32", 1, 0},
	{"onnxruntime/attention_mha", 1, 1},
	{"onnxruntime/attention_past_state", 1, 0},
	{"onnxruntime/attention_past_unidir", 1, 1},
	{"onnxruntime/attention_symbolic_batch", 1, 1},
	{"onnxruntime/bert_toy_optimized", 5, 5},
	{"onnxruntime/gpt2_attention_opt_skiplayernorm", 1, 1},
	{"onnxruntime/gpt2_past", 12, 12},
	{"onnxruntime/gpt2_past_one_layer", 1, 1},
	{"onnxruntime/hf_fp16_decoder_attention_with_past", 2, 1},
	{"onnxruntime/hf_fp32_decoder_attention_no_past", 2, 2},
	{"ort-genai/tiny-random-LlamaForCausalLM-fp16/model", 2, 0},
	{"ort-genai/tiny-random-gpt2-fp32/past", 5, 5},
	{"ort-generated/bert_attention.rnd", 1, 1},
	{"ort-generated/gpt2_attention.rnd", 1, 1},
	{"ort-generated/rotary_mha_past", 1, 0},
	{"ort-generated/tf2onnx_bert_3d_attention.rnd", 1, 1},
	{"vespa/dummy_transformer", 2, 2},
	{"onnx-backend/test_attention_3d_gqa_causal/model", 1, 0},
	{"onnx-backend/test_attention_3d_with_past_and_present_expanded/model", 1, 0},
	{"onnx-backend/test_attention_4d/model", 1, 0},
	{"onnx-backend/test_attention_4d_expanded/model", 1, 0},
	{"onnx-backend/test_attention_4d_gqa_causal_nonpad_decode/model", 1, 0},
	{"onnx-backend/test_attention_4d_gqa_with_past_and_present/model", 1, 0},
	{"onnx-backend/test_attention_4d_softcap_expanded/model", 1, 0},
	{"onnx-backend/test_rotary_embedding_expanded/model", 0, 0},
}

// Every attention of the corpus is found, and every one that can be is rewritten exactly. All but one are described: the
// nodes of rotary_mha_past are out of order and its shapes contradict each other, so its heads cannot be counted.
func supportCorpus(t *testing.T) string {
	var table strings.Builder
	table.WriteString("| model | located | rewritten | exact | the others |\n|---|---|---|---|---|\n")
	attentions, located, rewritten, exact := 0, 0, 0, 0
	for _, c := range corpus {
		o := halve(t, shared(t, "corpus", filepath.FromSlash(c.name+".onnx")), 2)
		attentions += c.attentions
		located += o.located + o.reported
		rewritten += o.rewritten
		if o.located+o.reported != c.attentions {
			t.Errorf("%s: %d attentions found, want %d", c.name, o.located+o.reported, c.attentions)
		}
		if o.reported > 0 && c.name != "ort-generated/rotary_mha_past" {
			t.Errorf("%s: %d attentions are not described: %v", c.name, o.reported, o.fixed)
		}
		if o.rewritten != c.fuseable {
			t.Errorf("%s: %d attentions rewritten, want %d", c.name, o.rewritten, c.fuseable)
		}
		if o.runs && o.exact {
			exact += o.rewritten
		} else if o.runs {
			t.Errorf("%s is not rewritten exactly", c.name)
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s |\n", c.name, o.columns(c.attentions), reasons(o.fixed))
	}
	fmt.Fprintf(&table, "| all | %d of %d | %d of %d | %d | |\n", located, attentions, rewritten, attentions, exact)
	return table.String()
}

// reasons lists each of some reasons once.
func reasons(list []string) string {
	var out []string
	seen := map[string]bool{}
	for _, why := range list {
		if !seen[why] {
			seen[why] = true
			out = append(out, why)
		}
	}
	return strings.Join(out, "; ")
}

// supportFamilies measures architectures in the dress of each exporter.
func supportFamilies(t *testing.T) string {
	var table strings.Builder
	table.WriteString("| model | written as | located | rewritten | exact |\n|---|---|---|---|---|\n")
	for _, f := range append(testmodels.Families(), testmodels.Dressed()...) {
		options := testmodels.Options{Cache: f.Decoder, Seed: 3}
		m, err := f.Build(options)
		if err != nil {
			t.Fatal(err)
		}
		attentions, err := f.Attentions(options)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "model.onnx")
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		o := halve(t, path, 2)
		single := strings.Contains(strings.Join(o.fixed, ""), "one key/value head")
		if o.located != attentions || o.rewritten != attentions && !single || !o.exact && !single {
			t.Errorf("%s: %d of %d located, %d rewritten, exact %v: %v", f.Name, o.located, attentions, o.rewritten, o.exact, o.fixed)
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", f.Name, f.Doc, o.columns(attentions))
	}
	return table.String()
}

// docs/support.md says what was measured, here and now.
func TestSupport(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	runtime(t)
	path := filepath.Join("..", "docs", "support.md")
	old, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	page := string(old)
	for _, section := range []struct {
		name    string
		measure func(*testing.T) string
	}{{"models", supportFamilies}, {"corpus", supportCorpus}} {
		t.Run(section.name, func(t *testing.T) {
			first, last := "<!-- "+section.name+" -->\n", "<!-- /"+section.name+" -->\n"
			head, rest, ok1 := strings.Cut(page, first)
			had, tail, ok2 := strings.Cut(rest, last)
			if !ok1 || !ok2 {
				t.Fatalf("docs/support.md has no section %s", section.name)
			}
			table := section.measure(t)
			if *update {
				page = head + first + table + last + tail
				return
			}
			if had != table {
				t.Errorf("docs/support.md is not what is measured; go test ./rewrite -run TestSupport -update\n%s", difference(had, table))
			}
		})
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// difference lists the lines that two texts do not share.
func difference(a, b string) string {
	var out []string
	for _, x := range []struct{ mark, text, other string }{{"-", a, b}, {"+", b, a}} {
		lines := map[string]bool{}
		for _, l := range strings.Split(x.other, "\n") {
			lines[l] = true
		}
		for _, l := range strings.Split(x.text, "\n") {
			if !lines[l] {
				out = append(out, x.mark+" "+l)
			}
		}
	}
	return strings.Join(out, "\n")
}
