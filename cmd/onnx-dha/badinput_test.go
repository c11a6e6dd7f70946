package main

import (
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// tamper changes the protobuf message of a model in a new file.
func tamper(t *testing.T, from, to string, change func(*onnxpb.ModelProto)) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var m onnxpb.ModelProto
	if err := proto.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	change(&m)
	if data, err = proto.Marshal(&m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// relocate makes a model look for its first external tensor elsewhere.
func relocate(location string) func(*onnxpb.ModelProto) {
	return func(m *onnxpb.ModelProto) {
		for _, t := range m.Graph.Initializer {
			for _, e := range t.ExternalData {
				if e.GetKey() == "location" {
					e.Value = &location
					return
				}
			}
		}
	}
}

// TestBadInput meets every command with files that it cannot use. Each gets its exit code and one line that names the
// thing; nothing appears beside the input and nothing of it changes.
func TestBadInput(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "models")
	if err := os.MkdirAll(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	good := save(t, in("good.onnx"), "llama", testmodels.Options{Cache: true}, "")
	other := save(t, in("other.onnx"), "llama", testmodels.Options{Cache: true, Seed: 7}, "")
	bert := save(t, in("bert.onnx"), "bert", testmodels.Options{}, "")
	external := save(t, in("external.onnx"), "llama", testmodels.Options{HeadDim: 16}, "file")
	must(t, "init", good, "--key", "2", "--value", "1", "--quiet")
	config := in("dha.yaml")
	small := in("small.onnx")
	must(t, "rewrite", good, "--config", config, "-o", small, "--quiet")

	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	write(t, dir, "truncated.onnx", string(data[:len(data)/2]))
	write(t, dir, "noise.onnx", string(noise))
	write(t, dir, "empty.onnx", "")
	write(t, dir, "text.onnx", "this is not a model\n")
	write(t, dir, "page.onnx", "<html><body>404</body></html>")
	tamper(t, external, in("missing.onnx"), relocate("nowhere.data"))
	tamper(t, external, in("escape.onnx"), relocate("../outside.data"))
	tamper(t, external, in("absolute.onnx"), relocate(filepath.Join(base, "outside.data")))
	write(t, base, "outside.data", strings.Repeat("x", 1<<20))
	if err := os.Symlink(filepath.Join(base, "outside.data"), in("link.data")); err != nil {
		t.Fatal(err)
	}
	tamper(t, external, in("link.onnx"), relocate("link.data"))
	tamper(t, good, in("twice.onnx"), func(m *onnxpb.ModelProto) {
		m.Graph.Node[1].Output[0] = m.Graph.Node[0].Output[0]
	})
	for name, domain := range map[string]string{"future.onnx": "", "opsetless.onnx": "some.where"} {
		tamper(t, good, in(name), func(m *onnxpb.ModelProto) {
			version := int64(99)
			m.OpsetImport = []*onnxpb.OperatorSetIdProto{{Domain: &domain, Version: &version}}
		})
	}
	tamper(t, good, in("cycle.onnx"), func(m *onnxpb.ModelProto) {
		n := m.Graph.Node
		n[0].Input = append(n[0].Input, n[len(n)-1].Output[0])
	})
	plain := graph.New(8, 17)
	x := plain.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "n"))
	plain.Graph.AddOutput(plain.Graph.AddNode("Relu", "", "relu", []*graph.Value{x}, []string{"y"}).Out[0], graph.TensorType(onnxpb.TensorProto_FLOAT, "n"))
	if err := plain.Save(in("plain.onnx"), graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	fused := graph.New(8, 17)
	contrib, first := "com.microsoft", int64(1)
	fused.Proto.OpsetImport = append(fused.Proto.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: &contrib, Version: &first})
	x = fused.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, 1, "n", 8))
	fused.Graph.AddOutput(fused.Graph.AddNode("MultiHeadAttention", "com.microsoft", "mha", []*graph.Value{x, x, x}, []string{"y"}, graph.IntAttr("num_heads", 2)).Out[0],
		graph.TensorType(onnxpb.TensorProto_FLOAT, 1, "n", 8))
	if err := fused.Save(in("fused.onnx"), graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	fused.Graph.Nodes[0].SetAttr(graph.StringAttr("colour", "blue"))
	if err := fused.Save(in("refused.onnx"), graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "bad.yaml", "version: 1\nlayers:\n  - block: a\n    keys: 4\n")
	write(t, dir, "wrong.yaml", "version: 1\nlayers:\n  - {block: nowhere, key: 1}\n")
	write(t, dir, "three.yaml", "version: 1\nlayers:\n  - {block: "+firstBlock(t, good)+", key: 3}\n")
	write(t, dir, "none.yaml", "version: 1\n")

	write(t, dir, "vocab.json", "{}")
	if err := os.Symlink("good.onnx", in("alias.onnx")); err != nil {
		t.Fatal(err)
	}

	rewriteTo := func(model string, more ...string) []string {
		return append([]string{"rewrite", in(model), "--config", config}, more...)
	}
	for _, tc := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"truncated", []string{"inspect", in("truncated.onnx")}, exitModel, []string{"truncated.onnx"}},
		{"random bytes", []string{"inspect", in("noise.onnx")}, exitModel, []string{"noise.onnx"}},
		{"empty", []string{"inspect", in("empty.onnx")}, exitModel, []string{"empty.onnx"}},
		{"folder", []string{"inspect", in("folder")}, exitUsage, []string{"folder " + in("folder") + " holds no .onnx file"}},
		{"text", []string{"inspect", in("text.onnx")}, exitModel, []string{"text.onnx is not an ONNX model: it is text"}},
		{"web page", []string{"inspect", in("page.onnx")}, exitModel, []string{"page.onnx is not an ONNX model"}},
		{"no such file", []string{"inspect", in("gone.onnx")}, exitUsage, []string{"gone.onnx: no such file or directory"}},
		{"no attention", []string{"inspect", in("plain.onnx")}, exitModel, []string{"plain.onnx has no attention block: no softmax between two products"}},
		{"init: rewritten already", []string{"init", small, "--key", "1", "-o", in("new.yaml")}, exitModel, []string{"small.onnx has no attention block that can be rewritten", "rewritten by onnx-dha", "start from the original"}},
		{"nothing to fuse", []string{"init", in("fused.onnx"), "--key", "1", "-o", in("new.yaml")}, exitModel, []string{"no attention block that can be rewritten", `block "mha"`, `come from the caller, as "x"`}},
		{"refused operator", []string{"inspect", in("refused.onnx")}, exitModel, []string{"no attention block that can be rewritten", `MultiHeadAttention "mha"`, "attribute colour of com.microsoft.MultiHeadAttention is not one that is expanded"}},
		{"missing data", []string{"inspect", in("missing.onnx")}, exitModel, []string{"nowhere.data, which does not exist"}},
		{"data above the folder", []string{"inspect", in("escape.onnx")}, exitModel, []string{"../outside.data"}},
		{"absolute data", []string{"inspect", in("absolute.onnx")}, exitModel, []string{filepath.Join(base, "outside.data")}},
		{"data through a link", []string{"inspect", in("link.onnx")}, exitModel, []string{"link.data"}},
		{"duplicate name", []string{"inspect", in("twice.onnx")}, exitModel, []string{"twice.onnx", "defined twice"}},
		{"opset of the future", []string{"inspect", in("future.onnx")}, exitModel, []string{"future.onnx: it imports opset 99 of ai.onnx; this program knows opsets up to 27"}},
		{"no opset", []string{"inspect", in("opsetless.onnx")}, exitModel, []string{"opsetless.onnx: it imports no opset of ai.onnx, but"}},
		{"cycle", []string{"inspect", in("cycle.onnx")}, exitModel, []string{"cycle.onnx", "cycle"}},
		{"report over the model", []string{"inspect", good, "-o", good}, exitUsage, []string{"is the input", "choose another name"}},
		{"report into nowhere", []string{"inspect", good, "-o", in("none/report.txt")}, exitUsage, []string{"none/report.txt", "no such file or directory"}},
		{"report onto a folder", []string{"inspect", good, "-o", dir}, exitUsage, []string{"is a folder; want a file name"}},

		{"init: nothing to aim for", []string{"init", good}, exitUsage, []string{"nothing to aim for; want --key N"}},
		{"init: there already", []string{"init", good, "--key", "2"}, exitUsage, []string{"dha.yaml exists; --force replaces it"}},
		{"init: both", []string{"init", good, "--kv", "50%", "--key", "2"}, exitUsage, []string{"leave out --key and --value, or --kv"}},
		{"init: percentage", []string{"init", good, "--kv", "50", "-o", in("new.yaml")}, exitUsage, []string{"--kv 50; want a share such as 50% or 0.5"}},
		{"init: too little", []string{"init", good, "--kv", "1%", "-o", in("new.yaml")}, exitUsage, []string{"is less than one key head and one value head"}},
		{"init: indivisible", []string{"init", good, "--key", "3", "-o", in("new.yaml")}, exitUsage, []string{"do not make 3 equal groups; want one of 1, 2, 4"}},
		{"init: negative", []string{"init", good, "--key", "-3", "-o", in("new.yaml")}, exitUsage, []string{"--key -3; want at least 1 head"}},
		{"init: over the model", []string{"init", good, "--key", "2", "--force", "-o", in("alias.onnx")}, exitUsage, []string{"is the input"}},
		{"init: no attention", []string{"init", in("plain.onnx"), "--key", "2", "-o", in("new.yaml")}, exitModel, []string{"no attention block"}},

		{"rewrite: no configuration", []string{"rewrite", good}, exitUsage, []string{"--config is missing; onnx-dha init"}},
		{"rewrite: no such configuration", []string{"rewrite", good, "--config", in("gone.yaml")}, exitUsage, []string{"gone.yaml: no such file or directory"}},
		{"rewrite: model as configuration", []string{"rewrite", good, "--config", good}, exitUsage, []string{"not a text file; want YAML"}},
		{"rewrite: unknown key", []string{"rewrite", good, "--config", in("bad.yaml")}, exitUsage, []string{`bad.yaml:4:5: unknown key "keys" in entry of layers; did you mean "key"`, "    4 |     keys: 4\n      |     ^"}},
		{"rewrite: unknown block", []string{"rewrite", good, "--config", in("wrong.yaml")}, exitUsage, []string{`wrong.yaml:3:5: no attention block "nowhere"`, "The model has "}},
		{"rewrite: indivisible", []string{"rewrite", good, "--config", in("three.yaml")}, exitUsage, []string{"three.yaml:3:", "3 groups of equal size cannot be made of the 4 key heads"}},
		{"rewrite: no block", []string{"rewrite", good, "--config", in("none.yaml")}, exitUsage, []string{"the configuration names no block; there is nothing to rewrite"}},
		{"rewrite: wrong lowering", rewriteTo("good.onnx", "--lowering", "groupd"), exitUsage, []string{`--lowering "groupd"; did you mean "grouped"? want one of auto, grouped, static-cache, gqa, attention, expand`}},
		{"rewrite: wrong weights", rewriteTo("good.onnx", "--weights", "outline"), exitUsage, []string{`--weights "outline"`, "want one of keep, inline, file, share"}},
		{"rewrite: another model", rewriteTo("other.onnx"), exitUsage, []string{"dha.yaml:", "made for another model: it says sha256:", "--force uses it all the same"}},
		{"rewrite: another model by force", rewriteTo("bert.onnx", "--force"), exitUsage, []string{"no attention block"}},
		{"rewrite: over the input", rewriteTo("good.onnx", "-o", good), exitUsage, []string{"is the input"}},
		{"rewrite: over a link to the input", rewriteTo("good.onnx", "-o", in("alias.onnx")), exitUsage, []string{"alias.onnx is the input"}},
		{"rewrite: over the configuration", rewriteTo("good.onnx", "-o", config), exitUsage, []string{"dha.yaml is the input"}},
		{"rewrite: onto a folder", rewriteTo("good.onnx", "-o", in("folder")), exitUsage, []string{"folder is a folder"}},
		{"rewrite: into nowhere", rewriteTo("good.onnx", "-o", in("none/out.onnx")), exitUsage, []string{"saving " + in("none/out.onnx") + ": " + in("none") + ": no such file or directory"}},
		{"rewrite: over external data", []string{"rewrite", external, "--config", config, "--force", "-o", external + ".data"}, exitUsage, []string{"external.onnx.data"}},
		{"rewrite: truncated", rewriteTo("truncated.onnx"), exitModel, []string{"truncated.onnx"}},
		{"rewrite: missing data", rewriteTo("missing.onnx"), exitModel, []string{"nowhere.data"}},

		{"verify: one model", []string{"verify", good}, exitUsage, []string{"REWRITTEN is missing; usage: onnx-dha verify ORIGINAL REWRITTEN"}},
		{"verify: no runtime", []string{"verify", good, small, "--ort-lib", in("nowhere.so")}, exitRuntime, []string{"nowhere.so", "make runtime", "ONNXRUNTIME_LIB"}},
		{"verify: text as runtime", []string{"verify", good, small, "--ort-lib", in("text.onnx")}, exitRuntime, []string{"text.onnx"}},
		{"verify: wrong provider", []string{"verify", good, small, "--provider", "gpu"}, exitUsage, []string{`--provider "gpu"`, "want one of cpu, cuda"}},
		{"verify: another original", []string{"verify", other, small}, exitUsage, []string{"made for another model"}},
		{"verify: unrelated", []string{"verify", good, bert}, exitUsage, []string{"bert.onnx is no rewrite of", "it has no input ", ", and the original has no input token_type_ids"}},
		{"verify: the wrong way round", []string{"verify", small, good}, exitUsage, []string{"small.onnx was rewritten and", "the original comes first"}},
		{"verify: an encoder generates", []string{"verify", bert, bert, "--generate", "5"}, exitUsage, []string{"--generate needs a decoder", "bert.onnx is none"}},
		{"verify: another configuration", []string{"verify", good, small, "--config", in("none.yaml")}, exitUsage, []string{"was rewritten with another configuration"}},
		{"verify: truncated", []string{"verify", good, in("truncated.onnx")}, exitModel, []string{"truncated.onnx"}},
		{"verify: report over a model", []string{"verify", good, small, "--steps", "1", "-o", small}, exitUsage, []string{"is the input"}},
		{"verify: negative steps", []string{"verify", good, small, "--steps", "-1"}, exitUsage, []string{"--steps and --threads are 0 or more"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			checkRefusal(t, base, tc.args, tc.code, tc.want)
		})
	}
}

// checkRefusal runs a command that has to fail with one line that says why, and to leave everything under base as it was.
func checkRefusal(t *testing.T, base string, args []string, code int, want []string) {
	t.Helper()
	before := contents(t, base)
	got, out, errs := invoke(args...)
	if got != code {
		t.Errorf("exit code %d, want %d", got, code)
	}
	first, rest, _ := strings.Cut(errs, "\n")
	if !strings.HasPrefix(first, "onnx-dha: ") || rest != "" && !strings.Contains(rest, " | ") {
		t.Errorf("want one line (and an excerpt of a configuration), got %q", errs)
	}
	for _, w := range want {
		if !strings.Contains(errs, w) {
			t.Errorf("no %q in %q", w, errs)
		}
	}
	for _, never := range []string{"goroutine", "panic", "USAGE", "%!"} {
		if strings.Contains(out+errs, never) {
			t.Errorf("%q in\n%s%s", never, out, errs)
		}
	}
	if after := contents(t, base); !maps.Equal(before, after) {
		t.Error("files changed")
		for path := range after {
			if _, ok := before[path]; !ok {
				t.Errorf("new: %s", path)
			}
		}
	}
}

// TestBadLearning meets the commands that run a model on data with data, options and models that they cannot use.
func TestBadLearning(t *testing.T) {
	needRuntime(t)
	base := t.TempDir()
	in := func(name string) string { return filepath.Join(base, name) }
	good := save(t, in("good.onnx"), "llama", testmodels.Options{Cache: true}, "")
	save(t, in("single.onnx"), "falcon", testmodels.Options{}, "")
	save(t, in("gpt2.onnx"), "gpt2", testmodels.Options{}, "")
	must(t, "init", good, "--key", "2", "--value", "1", "--quiet")
	must(t, "rewrite", good, "--config", in("dha.yaml"), "-o", in("small.onnx"), "--quiet")
	must(t, "rewrite", good, "--config", in("dha.yaml"), "--lowering", "static-cache", "-o", in("buffers.onnx"), "--quiet")
	plain := graph.New(8, 17)
	x := plain.Graph.AddInput("x", graph.TensorType(onnxpb.TensorProto_FLOAT, "n"))
	plain.Graph.AddOutput(plain.Graph.AddNode("Relu", "", "relu", []*graph.Value{x}, []string{"y"}).Out[0], graph.TensorType(onnxpb.TensorProto_FLOAT, "n"))
	if err := plain.Save(in("plain.onnx"), graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, embeddings := range map[string]bool{"nan.onnx": false, "overflow.onnx": true} {
		tamper(t, good, in(name), func(m *onnxpb.ModelProto) {
			for _, w := range m.Graph.Initializer {
				if w.GetDataType() == int32(onnxpb.TensorProto_FLOAT) && len(w.Dims) == 2 && (w.Dims[0] == 64) == embeddings {
					copy(w.RawData[4*w.Dims[1]:], []byte{0, 0, 0xc0, 0x7f}) // a quiet NaN in the second row
				}
			}
		})
	}
	lines := func(name, line string, n int) { write(t, base, name, strings.Repeat(line+"\n", n)) }
	lines("ids.jsonl", "[1,2,3,4,5,6,7,8,9,10]", 12)
	lines("vocabulary.jsonl", "[1,2,3,99,5,6]", 12)
	lines("long.jsonl", "["+strings.Repeat("5,", 99)+"5]", 12)
	lines("short.jsonl", "[7]", 1)
	lines("keys.jsonl", `{"words": [1, 2]}`, 3)
	write(t, base, "empty.jsonl", "")
	write(t, base, "empty.txt", "")
	write(t, base, "text.txt", strings.Repeat("to be or not to be\n", 40))
	write(t, base, "vocab.json", `{"t": 0, "o": 1, "b": 2, "e": 70, " ": 4, "r": 5, "n": 6, "\n": 7}`)
	write(t, base, "letters.json", `{"t": 0, "o": 1, "b": 2, "e": 3, " ": 4, "r": 5, "n": 6, "\n": 7}`)
	write(t, base, "noise.npz", "this is no archive")
	write(t, base, "other.json", `{"model": "m.onnx", "data": "d", "samples": 1, "positions": 9, "effect": "loss", "blocks": [{"block": "elsewhere", "query_heads": [], "key_heads": [], "value_heads": [], "layer": {"query_heads": []}}], "unsupported": 0}`)
	write(t, base, "strange.json", `{"positions": 9, "weights": [1, 2]}`)

	type row struct {
		name string
		args []string // after the model
		code int
		want []string
	}
	data := func(name string, more ...string) []string { return append([]string{"--data", in(name)}, more...) }
	common := []row{
		{"no data", nil, exitUsage, []string{"--data is missing; want text, token ids or tensors"}},
		{"no such data", data("gone.jsonl"), exitUsage, []string{"gone.jsonl", "no such file or directory"}},
		{"empty ids", data("empty.jsonl"), exitUsage, []string{"empty.jsonl", "it is empty; want at least 2 tokens"}},
		{"empty text", data("empty.txt", "--tokenizer", in("vocab.json")), exitUsage, []string{"empty.txt", "it is empty"}},
		{"one token", data("short.jsonl"), exitUsage, []string{"short.jsonl", "want more data"}},
		{"shorter than a sample", data("text.txt", "--tokenizer", in("letters.json"), "--seq-len", "5000"), exitUsage, []string{"text.txt", "a sample takes 5000; want more data"}},
		{"other keys", data("keys.jsonl"), exitUsage, []string{"line 1: want an array of token ids"}},
		{"beyond the vocabulary", data("vocabulary.jsonl"), exitUsage, []string{"line 1: token 3 is 99, but the model's vocabulary has 64 tokens, 0 to 63"}},
		{"another tokenizer", data("text.txt", "--tokenizer", in("vocab.json"), "--seq-len", "16"), exitUsage, []string{`is 70 ("e"), but the model's vocabulary has 64 tokens`, "want the tokenizer that the model was trained with"}},
		{"no tokenizer", data("text.txt"), exitUsage, []string{"text.txt", "it is read as text, which needs a tokenizer"}},
		{"no archive", data("noise.npz"), exitUsage, []string{"noise.npz"}},
		{"gpt2.onnx", data("long.jsonl"), exitUsage, []string{"position 64 is beyond the model's table of 64; use fewer tokens"}},
		{"negative samples", data("ids.jsonl", "--samples", "-1"), exitUsage, []string{"--samples -1; want 0 or more"}},
		{"unknown provider", data("ids.jsonl", "--provider", "gpu"), exitUsage, []string{`--provider "gpu"`, "want one of cpu, cuda"}},
		{"provider that is not there", data("ids.jsonl", "--provider", "cuda"), exitRuntime, []string{"good.onnx: execution provider cuda"}},
		{"no runtime", data("ids.jsonl", "--ort-lib", in("nowhere.so")), exitRuntime, []string{"nowhere.so", "make runtime"}},
		{"plain.onnx", data("ids.jsonl"), exitModel, []string{"plain.onnx has no attention block: no softmax between two products"}},
		{"nan.onnx", data("ids.jsonl"), exitModel, []string{`block "/model/layers.0/self_attn": the weights or biases of its query projection hold NaN`}},
		{"overflow.onnx", data("ids.jsonl"), exitRuntime, []string{"overflow.onnx: "}},
	}
	learning := append(common,
		row{"kept in full", data("ids.jsonl", "--held-out", "0"), exitUsage, []string{"--held-out 0; want more than 0 and less than 1"}},
		row{"negative trials", data("ids.jsonl", "--trials", "-2"), exitUsage, []string{"--trials -2; want 0 or more"}},
		row{"wrong layout", data("ids.jsonl", "--layout", "uniforn"), exitUsage, []string{`--layout "uniforn"; did you mean "uniform"`}},
		row{"criterion alone", data("ids.jsonl", "--importance-by", "share"), exitUsage, []string{"--importance-by without --importance"}},
		row{"wrong criterion", data("ids.jsonl", "--importance", "measure", "--importance-by", "size"), exitUsage, []string{`--importance-by "size"`, "want one of effect, contribution"}},
		row{"no such importance", data("ids.jsonl", "--importance", in("gone.json")), exitUsage, []string{"gone.json: no such file or directory"}},
		row{"importance of another model", data("ids.jsonl", "--importance", in("other.json")), exitUsage, []string{"other.json: importance of 1 attention blocks; ", "good.onnx has 2"}},
		row{"no importance", data("ids.jsonl", "--importance", in("strange.json")), exitUsage, []string{`importance "strange.json": json: unknown field "weights"; want the JSON that onnx-dha importance --json prints`}},
		row{"data as importance", data("ids.jsonl", "--importance", in("ids.jsonl")), exitUsage, []string{`importance "ids.jsonl": json: `}},
		row{"small.onnx", data("ids.jsonl"), exitModel, []string{"small.onnx has no attention block that can be rewritten", "start from the original"}},
		row{"single.onnx", data("ids.jsonl"), exitUsage, []string{"every layer has one key head and one value head already; there is nothing to share"}})
	under := func(share string, rows ...row) []row { // learn and compare, which have a budget
		var out []row
		for _, r := range rows {
			r.args = append([]string{"--kv", share}, r.args...)
			out = append(out, r)
		}
		return out
	}
	budgets := slices.Concat(under("50%", learning...),
		under("5%", row{"less than one head each", data("ids.jsonl"), exitUsage, []string{"5 % of the cache is less than one key head and one value head in every layer; want 25 % and more"}}),
		under("0%", row{"nothing left", data("ids.jsonl"), exitUsage, []string{"--kv 0%; want a share such as 50% or 0.5"}}))
	for command, rows := range map[string][]row{
		"importance": append(slices.Clone(common), row{"buffers.onnx", data("ids.jsonl"), exitModel, []string{`its cache "past_key_values.0.key" is a buffer that is written where it lies`, "--lowering grouped"}},
			row{"wrong removal", data("ids.jsonl", "--remove", "head"), exitUsage, []string{`--remove "head"; did you mean "heads"`}},
			row{"over the model", data("ids.jsonl", "-o", good), exitUsage, []string{"is the input"}},
			row{"report into nowhere", data("ids.jsonl", "-o", in("none/report.txt")), exitUsage, []string{"none/report.txt", "no such file or directory"}}),
		"learn": append(slices.Clone(budgets),
			row{"no aim", data("ids.jsonl"), exitUsage, []string{"nothing to aim for; want --kv SHARE"}},
			row{"two aims", data("ids.jsonl", "--kv", "50%", "--max-kl", "1"), exitUsage, []string{"--kv and --max-kl are different aims"}},
			row{"no head", data("ids.jsonl", "--key", "0"), exitUsage, []string{"--key 0; want at least 1 head"}},
			row{"no divergence", data("ids.jsonl", "--max-kl", "-1"), exitUsage, []string{"--max-kl -1; want more than 0"}},
			row{"unequal groups", data("ids.jsonl", "--key", "3", "--groups", "equal"), exitUsage, []string{"the 4 key heads of block", "do not make 3 equal groups"}},
			row{"not coupled", data("ids.jsonl", "--key", "2", "--layout", "coupled"), exitUsage, []string{"cannot have 2 key heads and 4 value heads"}},
			row{"there already", data("ids.jsonl", "--kv", "50%", "-o", in("dha.yaml")), exitUsage, []string{"dha.yaml exists; --force replaces it"}},
			row{"over the data", data("ids.jsonl", "--kv", "50%", "--force", "-o", in("ids.jsonl")), exitUsage, []string{"is the input"}},
			row{"into nowhere", data("ids.jsonl", "--key", "1", "-o", in("none/dha.yaml")), exitUsage, []string{"none", "no such file or directory"}}),
		"compare": append(slices.Clone(budgets),
			row{"no share", data("ids.jsonl"), exitUsage, []string{"--kv is missing; want shares of the cache such as 50%,25%"}},
			row{"unknown strategy", data("ids.jsonl", "--kv", "50%", "--strategies", "gqa,optimum"), exitUsage, []string{`--strategies: strategy "optimum"; want one of gqa`}},
			row{"resumed without a place", data("ids.jsonl", "--kv", "50%", "--resume"), exitUsage, []string{"--resume needs --output"}},
			row{"drawn over the data", data("ids.jsonl", "--kv", "50%", "--plot", in("ids.jsonl")), exitUsage, []string{"want a name that ends in .svg or .html"}},
			row{"drawn into nowhere", data("ids.jsonl", "--kv", "50%", "--plot", in("none/c.svg")), exitUsage, []string{"none/c.svg", "no such file or directory"}},
			row{"two forms", data("ids.jsonl", "--kv", "50%", "--json", "--csv"), exitUsage, []string{"are forms of one report"}}),
	} {
		for _, r := range rows {
			model := good
			if strings.HasSuffix(r.name, ".onnx") {
				model = in(r.name)
			}
			t.Run(command+"/"+r.name, func(t *testing.T) {
				args := append([]string{command, model, "--threads", "1"}, r.args...)
				if command == "learn" && !slices.Contains(args, "-o") {
					args = append(args, "-o", in("new.yaml"))
				}
				checkRefusal(t, base, args, r.code, r.want)
			})
		}
	}
}

// TestRuntimeFromEnvironment checks the message for a machine without ONNX Runtime.
func TestRuntimeFromEnvironment(t *testing.T) {
	dir := t.TempDir()
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Cache: true}, "")
	t.Setenv(ort.Env, filepath.Join(dir, "nowhere"))
	code, _, errs := invoke("verify", model, model)
	if code != exitRuntime || !strings.Contains(errs, ort.Env+" names") || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit code %d, %q", code, errs)
	}
	// The version command reports it instead of failing.
	if out := must(t, "version"); !strings.Contains(out, "ONNX Runtime: "+ort.Env) {
		t.Errorf("version: %s", out)
	}
}

func firstBlock(t *testing.T, model string) string {
	t.Helper()
	return at(t, decode(t, must(t, "inspect", model, "--json")), "blocks", 0, "name").(string)
}
