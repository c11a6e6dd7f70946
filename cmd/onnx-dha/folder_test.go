package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// writeJSON puts a value into a file of dir.
func writeJSON(t *testing.T, dir, name string, value any) string {
	t.Helper()
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o777); err != nil {
		t.Fatal(err)
	}
	return write(t, dir, name, string(data))
}

func readJSON(t *testing.T, path string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return decode(t, string(data))
}

func copyFile(t *testing.T, from, to string) string {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o777), os.WriteFile(to, data, 0o644)); err != nil {
		t.Fatal(err)
	}
	return to
}

type object = map[string]any

// wordTokenizer is a tokenizer.json of whole words; split is the pattern that finds them in a text, keep whether it is the
// words themselves or what stands between them, and between is what a decoder puts between words.
func wordTokenizer(vocab map[string]int, split object, behavior string, decoder any) object {
	unknown := ""
	for word, id := range vocab {
		if id == 0 {
			unknown = word
		}
	}
	return object{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": []object{}, "normalizer": nil,
		"pre_tokenizer":  object{"type": "Split", "pattern": split, "behavior": behavior, "invert": false},
		"post_processor": nil, "decoder": decoder,
		"model": object{"type": "WordLevel", "vocab": vocab, "unk_token": unknown},
	}
}

// charFolder makes a model folder of the character model: a Llama, 8 heads of 24, which is not the width over the heads of
// its configuration file any more once that says otherwise.
func charFolder(t *testing.T) string {
	t.Helper()
	source, err := testmodels.CharLlama()
	if err != nil {
		t.Skip(err)
	}
	dir := filepath.Join(t.TempDir(), "char-llama")
	copyFile(t, filepath.Join(source, "model.onnx"), filepath.Join(dir, "onnx", "model.onnx"))
	copyFile(t, filepath.Join(source, "config.json"), filepath.Join(dir, "config.json"))
	vocab := map[string]int{}
	data, err := os.ReadFile(filepath.Join(source, "vocab.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &vocab); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, dir, "tokenizer.json", wordTokenizer(vocab, object{"Regex": `[\s\S]`}, "Isolated", object{"type": "Fuse"}))
	writeJSON(t, dir, "tokenizer_config.json", object{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "\n", "clean_up_tokenization_spaces": false})
	writeJSON(t, dir, "generation_config.json", object{"bos_token_id": 0})
	return dir
}

// uniform writes a configuration of so many key and value heads for a model.
func uniform(t *testing.T, model string, key, value string) string {
	t.Helper()
	config := filepath.Join(t.TempDir(), "dha.yaml")
	must(t, "init", model, "--key", key, "--value", value, "-o", config)
	return config
}

func TestRewriteFolder(t *testing.T) {
	dir := charFolder(t)
	save(t, filepath.Join(dir, "onnx", "model_fp16.onnx"), "llama", testmodels.Options{}, "") // another model altogether
	write(t, dir, "model.safetensors", "weights")
	write(t, dir, ".gitattributes", "x")
	write(t, dir, "README.md", "a model")
	before := contents(t, dir)
	out := filepath.Join(t.TempDir(), "small")
	text := must(t, "rewrite", dir, "--config", uniform(t, filepath.Join(dir, "onnx", "model.onnx"), "4", "4"), "-o", out)
	for _, want := range []string{
		"config.json: num_key_value_heads is 4 (it was 8)", "transformers.js 4  can run it", "transformers.js 3  can run it",
		"left out model.safetensors: weights of the original", "copied onnx/model_fp16.onnx", "wrote " + out,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if after := contents(t, dir); len(after) != len(before) {
		t.Errorf("the folder that was rewritten has %d files, before %d", len(after), len(before))
	}
	var names []string
	err := filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(out, path)
			names = append(names, filepath.ToSlash(rel))
		}
		return err
	})
	if want := []string{"README.md", "config.json", "generation_config.json", "onnx/model.onnx", "onnx/model_fp16.onnx", "tokenizer.json", "tokenizer_config.json"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("files %v (%v), want %v", names, err, want)
	}
	config, old := readJSON(t, filepath.Join(out, "config.json")), readJSON(t, filepath.Join(dir, "config.json"))
	for key, value := range old {
		if key != "num_key_value_heads" && fmt.Sprint(config[key]) != fmt.Sprint(value) {
			t.Errorf("config.json: %s is %v, was %v", key, config[key], value)
		}
	}
	m, err := graph.Load(filepath.Join(out, "onnx", "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if d := m.Graph.Value("past_key_values.0.key").Info.GetType().GetTensorType().Shape.Dim; d[0].GetDimParam() != "batch_size" || d[1].GetDimValue() != 4 {
		t.Errorf("a past is %v; want batch_size and 4 heads", d)
	}
}

// Heads that differ are said not to fit where they do not, and written all the same; weights go into the file that
// transformers.js looks for.
func TestRewriteFolderDecoupled(t *testing.T) {
	dir := charFolder(t)
	out := filepath.Join(t.TempDir(), "small")
	v := decode(t, must(t, "rewrite", dir, "--config", uniform(t, filepath.Join(dir, "onnx", "model.onnx"), "4", "2"), "-o", out, "--weights", "file", "--json"))
	refused, _ := at(t, v, "clients", 1, "refused").(string)
	if at(t, v, "clients", 0, "client") != "transformers.js 4" || at(t, v, "clients", 0).(map[string]any)["refused"] != nil || !strings.Contains(refused, "layer 0 has 4 key heads and 2 value heads") {
		t.Errorf("clients: %v", at(t, v, "clients"))
	}
	config := readJSON(t, filepath.Join(out, "config.json"))
	if config["num_key_value_heads"] != 8.0 || at(t, config, "transformers.js_config", "use_external_data_format", "model.onnx") != 1.0 {
		t.Errorf("config.json: %v", config)
	}
	if _, err := os.Stat(filepath.Join(out, "onnx", "model.onnx_data")); err != nil {
		t.Error(err)
	}
}

func TestRewriteFolderErrors(t *testing.T) {
	dir := charFolder(t)
	config := uniform(t, filepath.Join(dir, "onnx", "model.onnx"), "4", "4")
	other := uniform(t, save(t, filepath.Join(t.TempDir(), "m.onnx"), "llama", testmodels.Options{}, ""), "2", "2")
	bare := t.TempDir()
	save(t, filepath.Join(bare, "model.onnx"), "llama", testmodels.Options{}, "")
	full := t.TempDir()
	write(t, full, "file", "")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"an output that is not empty", []string{dir, "-c", config, "-o", full}, exitUsage, "is not empty"},
		{"an output inside", []string{dir, "-c", config, "-o", filepath.Join(dir, "small")}, exitUsage, "in the folder that is rewritten"},
		{"shared weights", []string{dir, "-c", config, "-o", filepath.Join(t.TempDir(), "s"), "--weights", "share"}, exitUsage, "share"},
		{"no configuration file", []string{bare, "-c", other, "-o", filepath.Join(t.TempDir(), "s")}, exitModel, "neither a config.json nor a genai_config.json"},
		{"no model", []string{full, "-c", config, "-o", filepath.Join(t.TempDir(), "s")}, exitModel, "has no .onnx file"},
		{"another model's configuration", []string{dir, "-c", other, "-o", filepath.Join(t.TempDir(), "s")}, exitUsage, "--force"},
	} {
		code, _, errs := invoke(append([]string{"rewrite"}, c.args...)...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit code %d, %q; want %d, %q", c.name, code, errs, c.code, c.want)
		}
	}
	// Nothing is left behind.
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A folder of ONNX Runtime GenAI names its model and says how many heads caches have.
func TestRewriteFolderGenAI(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "genai")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	model := save(t, filepath.Join(dir, "model.onnx"), "llama", testmodels.Options{Layers: 2, Heads: 4, HeadDim: 8, Cache: true}, "")
	writeJSON(t, dir, "genai_config.json", object{
		"model": object{
			"type": "llama", "context_length": 64, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": []int{1}, "pad_token_id": 2,
			"decoder": object{
				"filename": "model.onnx", "head_size": 8, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
				"session_options": object{"provider_options": []object{}},
				"inputs":          object{"input_ids": "input_ids", "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
				"outputs":         object{"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
			},
		},
		"search": object{"max_length": 64, "past_present_share_buffer": true},
	})
	out := filepath.Join(t.TempDir(), "small")
	text := must(t, "rewrite", dir, "-c", uniform(t, model, "2", "2"), "--lowering", "grouped", "-o", out)
	for _, want := range []string{"num_key_value_heads is 2 (it was 4)", "past_present_share_buffer is false (it was true)", "onnxruntime-genai  can run it"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if d := at(t, readJSON(t, filepath.Join(out, "genai_config.json")), "model", "decoder"); at(t, d, "num_key_value_heads") != 2.0 || at(t, d, "num_attention_heads") != 4.0 {
		t.Errorf("decoder: %v", d)
	}
	text = must(t, "rewrite", dir, "-c", uniform(t, model, "2", "1"), "--lowering", "grouped", "-o", filepath.Join(t.TempDir(), "small"))
	if !strings.Contains(text, "onnxruntime-genai  cannot: layer 0 has 2 key heads and 1 value head") {
		t.Errorf("decoupled heads:\n%s", text)
	}
	text = must(t, "rewrite", dir, "-c", uniform(t, model, "2", "2"), "--lowering", "gqa", "-o", filepath.Join(t.TempDir(), "small"))
	if strings.Contains(text, "past_present_share_buffer is false") {
		t.Errorf("the runtime's own operator can share a buffer:\n%s", text)
	}
}

// shared is a file that comes with the workplace and not with the repository.
func shared(t *testing.T, elem ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{"..", "..", "..", "shared", "models"}, elem...)...)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is not there: it is too large or not this project's to be part of the repository", path)
	}
	return path
}

// cappFolder makes a model folder of a GPT-2 as Optimum exported it. Its vocabulary is of phrases, each on a
// line of its own.
func cappFolder(t *testing.T) string {
	t.Helper()
	source := shared(t, "capp-gpt", "model.onnx")
	dir := filepath.Join(t.TempDir(), "capp-gpt")
	copyFile(t, source, filepath.Join(dir, "onnx", "model.onnx"))
	for _, name := range []string{"config.json", "generation_config.json"} {
		copyFile(t, shared(t, "capp-gpt", name), filepath.Join(dir, name))
	}
	vocab := map[string]int{}
	for word, id := range readJSON(t, shared(t, "capp-gpt", "token_mappings.json"))["token2id"].(map[string]any) {
		vocab[word] = int(id.(float64))
	}
	writeJSON(t, dir, "tokenizer.json", wordTokenizer(vocab, object{"Regex": `\n`}, "Removed", nil))
	writeJSON(t, dir, "tokenizer_config.json", object{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<PAD>", "clean_up_tokenization_spaces": false})
	return dir
}

// storiesFolder converts a llama2.c checkpoint and its tokenizer into a model folder.
func storiesFolder(t *testing.T) string {
	t.Helper()
	m, err := testmodels.FromLlama2C(shared(t, "stories260K", "stories260K.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	dir := filepath.Join(t.TempDir(), "stories260K")
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "onnx"), 0o777), m.Save(filepath.Join(dir, "onnx", "model.onnx"), graph.SaveOptions{})); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, dir, "config.json", object{
		"model_type": "llama", "architectures": []string{"LlamaForCausalLM"}, "hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 8,
		"num_key_value_heads": 4, "num_hidden_layers": 5, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
		"rope_theta": 10000, "hidden_act": "silu", "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
	})
	writeJSON(t, dir, "generation_config.json", object{"bos_token_id": 1, "eos_token_id": 2})
	tokens, err := testmodels.LoadLlama2CTokenizer(shared(t, "stories260K", "tok512.bin"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := tokens.HuggingFace()
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "tokenizer.json", string(data))
	writeJSON(t, dir, "tokenizer_config.json", object{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "add_bos_token": true, "clean_up_tokenization_spaces": false})
	return dir
}

// One of ONNX Runtime GenAI's own test models: its caches hold keys and values together.
func TestRewriteFolderGenAIOwn(t *testing.T) {
	dir := filepath.Dir(shared(t, "..", "corpus", "ort-genai", "tiny-random-gpt2-fp32", "genai_config.json"))
	out := filepath.Join(t.TempDir(), "small")
	text := must(t, "rewrite", dir, "-c", uniform(t, filepath.Join(dir, "past.onnx"), "2", "2"), "-o", out)
	if !strings.Contains(text, "num_key_value_heads is 2 (it was 4)") || !strings.Contains(text, "onnxruntime-genai  can run it") {
		t.Errorf("the runtime is not said to take it:\n%s", text)
	}
	if heads := at(t, readJSON(t, filepath.Join(out, "genai_config.json")), "model", "decoder", "num_key_value_heads"); heads != 2.0 {
		t.Errorf("num_key_value_heads is %v", heads)
	}
}
