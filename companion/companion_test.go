package companion

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"

	"onnx-dha/testmodels"
)

// caches makes the interface of a model of so many key and value heads in each layer.
func caches(heads ...[2]int64) *Interface {
	f := &Interface{Inputs: []string{"input_ids", "attention_mask"}, Logits: "logits"}
	for i, h := range heads {
		name := string(rune('0' + i))
		for kind, n := range h {
			end := []string{".key", ".value"}[kind]
			f.Caches = append(f.Caches, Cache{
				Past: "past_key_values." + name + end, Present: "present." + name + end, Layer: i, Value: kind == 1, Heads: n, Dim: 16, Batch: "batch_size",
			})
			f.Inputs = append(f.Inputs, "past_key_values."+name+end)
		}
	}
	return f
}

func TestDescribe(t *testing.T) {
	family, err := testmodels.Get("llama-gqa")
	if err != nil {
		t.Fatal(err)
	}
	m, err := family.Build(testmodels.Options{Layers: 3, Heads: 4, KVHeads: 2, HeadDim: 8, Cache: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	keys, values := f.Heads()
	if !slices.Equal(keys, []int64{2, 2, 2}) || !slices.Equal(values, []int64{2, 2, 2}) {
		t.Errorf("keys %v, values %v; want 2 in each of 3 layers", keys, values)
	}
	if heads, dim, why := f.Uniform(); heads != 2 || dim != 8 || why != "" {
		t.Errorf("%d heads of %d (%s)", heads, dim, why)
	}
	if c := f.Caches[5]; !c.Value || c.Layer != 2 || c.Static || f.Fused || f.Logits != "logits" {
		t.Errorf("last cache %+v, fused %v, logits %q", c, f.Fused, f.Logits)
	}
}

func TestTransformersVerdicts(t *testing.T) {
	const llama = `{"model_type": "llama", "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}`
	const gpt2 = `{"model_type": "gpt2", "n_embd": 128, "n_head": 8}`
	static, other, unnamed, extra := caches([2]int64{2, 2}), caches([2]int64{2, 2}), caches([2]int64{2, 2}), caches([2]int64{2, 2})
	for i := range static.Caches {
		static.Caches[i].Static = true
		other.Caches[i].Batch = "N"
		unnamed.Caches[i].Past = "cache_in"
	}
	extra.Inputs = append(extra.Inputs, "speed")
	for _, c := range []struct {
		name        string
		f           *Interface
		config      string
		four, three string // why each refuses
	}{
		{"uniform", caches([2]int64{2, 2}, [2]int64{2, 2}), llama, "", ""},
		{"decoupled", caches([2]int64{2, 1}), llama, "", "layer 0 has 2 key heads and 1 value heads"},
		{"by layer", caches([2]int64{2, 2}, [2]int64{1, 1}), llama, "", "layers have different numbers of heads, 1 to 2"},
		{"a type without a number of KV heads", caches([2]int64{2, 2}), gpt2, "", "n_head, which is 8"},
		{"the same with all heads", caches([2]int64{8, 8}), gpt2, "", ""},
		{"a decoder with an encoder", caches([2]int64{2, 2}), `{"model_type": "t5", "num_heads": 8, "d_kv": 16, "d_model": 64}`, "", "num_heads, which is 8"},
		{"the same with all heads", caches([2]int64{8, 8}), `{"model_type": "t5", "num_heads": 8, "d_kv": 16, "d_model": 64}`, "", ""},
		{"another such", caches([2]int64{2, 2}), `{"model_type": "whisper", "decoder_attention_heads": 8, "d_model": 128}`, "", "decoder_attention_heads, which is 8"},
		{"head size", caches([2]int64{2, 2}), strings.Replace(llama, "128", "64", 1), "", "takes heads for 8 wide; they are 16"},
		{"static", static, llama, "written in place", "written in place"},
		{"batch of another name", other, llama, `called "N"`, ""},
		{"caches of other names", unnamed, llama, "not past_key_values", "not past_key_values"},
		{"an input nobody feeds", extra, llama, `input "speed"`, `input "speed"`},
		{"no cache", &Interface{Inputs: []string{"input_ids"}}, llama, "", ""},
	} {
		got := Check(configFile, c.f, []byte(c.config))
		for i, want := range []string{c.four, c.three} {
			if why := got[i].Why; !strings.Contains(why, want) || (why == "") != (want == "") {
				t.Errorf("%s: %s refuses for %q, want %q", c.name, got[i].Client, why, want)
			}
		}
	}
}

func TestTransformersConfig(t *testing.T) {
	for _, c := range []struct {
		name, config string
		f            *Interface
		data         External
		want         map[string]string // paths and their JSON
	}{
		{"a number of heads", `{"a": 1, "model_type": "llama", "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8, "z": [1]}`,
			caches([2]int64{2, 2}), nil, map[string]string{"num_key_value_heads": "2", "num_attention_heads": "8", "head_dim": "", "a": "1"}},
		{"a head size that does not follow", `{"model_type": "qwen3", "hidden_size": 64, "num_attention_heads": 8}`,
			caches([2]int64{2, 2}), nil, map[string]string{"num_key_value_heads": "2", "head_dim": "16"}},
		{"decoupled heads", `{"model_type": "llama", "num_key_value_heads": 8}`, caches([2]int64{2, 1}), nil, map[string]string{"num_key_value_heads": "8"}},
		{"external data", `{"model_type": "llama"}`, caches([2]int64{2, 2}), External{"model.onnx": 1, "model_fp16.onnx": 0},
			map[string]string{`transformers\.js_config.use_external_data_format.model\.onnx`: "1", `transformers\.js_config.use_external_data_format.model_fp16\.onnx`: ""}},
		{"external data no more", `{"model_type": "llama", "transformers.js_config": {"use_external_data_format": true, "dtype": "fp16"}}`, caches([2]int64{2, 2}), External{"model.onnx": 0},
			map[string]string{`transformers\.js_config.use_external_data_format.model\.onnx`: "0", `transformers\.js_config.dtype`: `"fp16"`}},
	} {
		out, _, err := Transformers([]byte(c.config), c.f, c.data)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for path, want := range c.want {
			if got := gjson.GetBytes(out, path).Raw; got != want {
				t.Errorf("%s: %s is %q, want %q in\n%s", c.name, path, got, want, out)
			}
		}
		if first := strings.Index(string(out), `"a"`); strings.Contains(c.config, `"a"`) && first > strings.Index(string(out), `"z"`) {
			t.Errorf("%s: keys changed places:\n%s", c.name, out)
		}
	}
	for _, bad := range []string{"", "[1]", `{"a": `} {
		if _, _, err := Transformers([]byte(bad), caches(), nil); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

const genaiConfig = `{"model": {"type": "llama", "context_length": 64, "vocab_size": 8, "eos_token_id": [1, 2], "decoder": {
	"filename": "model.onnx", "head_size": 16, "num_hidden_layers": 2, "num_key_value_heads": 8, "session_options": {"provider_options": []},
	"inputs": {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}, "outputs": {}}},
	"search": {"past_present_share_buffer": true, "top_p": 0.5}}`

func TestGenAI(t *testing.T) {
	plain, fused := caches([2]int64{2, 2}, [2]int64{2, 2}), caches([2]int64{2, 2}, [2]int64{2, 2})
	fused.Fused = true
	both := &Interface{Caches: []Cache{{Past: "past_0", Present: "present_0", Both: true, Heads: 2, Dim: 16}, {Past: "past_1", Present: "present_1", Layer: 1, Both: true, Heads: 2, Dim: 16}}}
	together := strings.Replace(genaiConfig, `"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"`, `"past_names": "past_%d"`, 1)
	for _, c := range []struct {
		name, config string
		f            *Interface
		share        string
		note         string // one of the notes, "" for no problem
		refused      string
	}{
		{"grouped", genaiConfig, plain, "false", "", ""},
		{"fused", genaiConfig, fused, "true", "", ""},
		{"fused, not said", strings.Replace(genaiConfig, `"past_present_share_buffer": true, `, "", 1), fused, "true", "", ""},
		{"keys and values in one", together, both, "false", "num_key_value_heads is 2", ""},
		{"keys and values in one of another name", strings.Replace(together, "past_%d", "p_%d", 1), both, "false", "num_key_value_heads is 2", `gives: "p_0"`},
		{"by layer", genaiConfig, caches([2]int64{2, 2}, [2]int64{1, 1}), "false", "stays as it was", ""},
		{"decoupled", genaiConfig, caches([2]int64{2, 1}), "false", "stays as it was", "keys and values alike"},
		{"an unknown field", strings.Replace(genaiConfig, `"head_size"`, `"heads": 1, "head_size"`, 1), plain, "false", "model.decoder.heads is no field", ""},
		{"a field of another type", strings.Replace(genaiConfig, `"context_length": 64`, `"context_length": "64"`, 1), plain, "false", "want a whole number", ""},
		{"a missing field", strings.Replace(genaiConfig, `"vocab_size": 8,`, "", 1), plain, "false", "model.vocab_size is missing", ""},
		{"other names", strings.Replace(genaiConfig, "past_key_values.%d.key", "k_%d", 1), plain, "false", `makes "k_0", the model has "past_key_values.0.key"`, "does not have the name"},
	} {
		out, notes, err := GenAI([]byte(c.config), c.f)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := gjson.GetBytes(out, "search.past_present_share_buffer").Raw; got != c.share {
			t.Errorf("%s: past_present_share_buffer is %s, want %s", c.name, got, c.share)
		}
		problems := CheckGenAI(out, c.f)
		if all := strings.Join(notes, "\n"); !strings.Contains(all, c.note) || c.note == "" && len(problems) > 0 {
			t.Errorf("%s: notes %q, problems %q, want %q", c.name, all, problems, c.note)
		}
		if why := Check(genaiFile, c.f, out)[0].Why; !strings.Contains(why, c.refused) || (why == "") != (c.refused == "") {
			t.Errorf("%s: refused for %q, want %q", c.name, why, c.refused)
		}
	}
}

// The configurations of ONNX Runtime GenAI's own test models are made of fields that are known.
func TestGenAIOwnConfigs(t *testing.T) {
	files, _ := filepath.Glob(filepath.Join("..", "..", "shared", "corpus", "ort-genai", "*", genaiFile))
	if len(files) == 0 {
		t.Skip("the test models of ONNX Runtime GenAI are not there")
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range CheckGenAI(content, &Interface{}) {
			t.Errorf("%s: %s", file, p)
		}
	}
}

func TestOpenFolder(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"config.json", "tokenizer.json", "model.safetensors", ".git/config", "sub/notes.txt"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("{}"), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "has no .onnx file") {
		t.Errorf("without a model: %v", err)
	}
}
