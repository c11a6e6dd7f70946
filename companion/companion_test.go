package companion

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
	"github.com/tidwall/pretty"

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

// Of a decoder with an encoder both kinds of caches are described, and have the batch by the name that transformers.js knows.
func TestDescribeCross(t *testing.T) {
	family, err := testmodels.Get("bart-decoder/torch")
	if err != nil {
		t.Fatal(err)
	}
	m, err := family.Build(testmodels.Options{Stage: testmodels.Next})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.RenameSymbol("batch_size", "N") {
		t.Fatal("the batch has another name")
	}
	f, err := Describe(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Caches) != 4 || len(f.Cross) != 4 || f.Cross[1].Past != "past_key_values.0.encoder.value" || !f.Cross[1].Value || f.Cross[1].Heads != 4 || f.Cross[1].Dim != 8 {
		t.Fatalf("caches %+v, of cross attention %+v", f.Caches, f.Cross)
	}
	models := []string{"decoder_model_merged.onnx"}
	config := []byte(`{"model_type": "bart", "is_encoder_decoder": true}`)
	if why := Check(configFile, f, config, models)[0].Why; !strings.Contains(why, `called "N"`) {
		t.Errorf("before: %q", why)
	}
	if notes := Adapt(m, f); len(notes) != 1 {
		t.Errorf("notes %v", notes)
	}
	if f, err = Describe(m); err != nil {
		t.Fatal(err)
	}
	if why := Check(configFile, f, config, models)[0].Why; why != "" {
		t.Errorf("after: %q", why)
	}
}

func TestTransformersVerdicts(t *testing.T) {
	const llama = `{"model_type": "llama", "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}`
	const gpt2 = `{"model_type": "gpt2", "n_embd": 128, "n_head": 8}`
	const t5 = `{"model_type": "t5", "is_encoder_decoder": true, "num_heads": 8, "d_kv": 16, "d_model": 64}`
	const bart = `{"model_type": "bart", "is_encoder_decoder": true, "decoder_attention_heads": 8, "encoder_attention_heads": 4, "d_model": 128}`
	const decoder = `{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}`
	const elm = `{"model_type": "openelm", "num_kv_heads": [2, 4], "head_dim": 16}`
	const seeing = `{"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}}`
	static, other, unnamed, extra := caches([2]int64{2, 2}), caches([2]int64{2, 2}), caches([2]int64{2, 2}), caches([2]int64{2, 2})
	crossed := func(heads, crossHeads int64) *Interface {
		f := caches([2]int64{heads, heads})
		f.Cross = []Cache{{Past: "past_key_values.0.encoder.key", Present: "present.0.encoder.key", Heads: crossHeads, Dim: 16, Batch: "batch_size"}}
		f.Inputs = append(f.Inputs, "encoder_hidden_states", "use_cache_branch", "past_key_values.0.encoder.key")
		return f
	}
	unsized := crossed(8, 8)
	unsized.Cross[0].Batch = "N"
	files := []string{"decoder_model_merged_fp16.onnx", "encoder_model_fp16.onnx"}
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
		models      []string
	}{
		{"uniform", caches([2]int64{2, 2}, [2]int64{2, 2}), llama, "", "", nil},
		{"decoupled", caches([2]int64{2, 1}), llama, "", "layer 0 has 2 key heads and 1 value head", nil},
		{"by layer", caches([2]int64{2, 2}, [2]int64{1, 1}), llama, "", "layers have different numbers of heads, 1 to 2", nil},
		{"a type without a number of KV heads", caches([2]int64{2, 2}), gpt2, "", "n_head, which is 8", nil},
		{"the same with all heads", caches([2]int64{8, 8}), gpt2, "", "", nil},
		{"a decoder with an encoder", caches([2]int64{2, 2}), `{"model_type": "t5", "num_heads": 8, "d_kv": 16, "d_model": 64}`, "", "num_heads, which is 8", nil},
		{"the same with all heads", caches([2]int64{8, 8}), `{"model_type": "t5", "num_heads": 8, "d_kv": 16, "d_model": 64}`, "", "", nil},
		{"another such", caches([2]int64{2, 2}), `{"model_type": "whisper", "decoder_attention_heads": 8, "d_model": 128}`, "", "decoder_attention_heads, which is 8", nil},
		{"head size", caches([2]int64{2, 2}), strings.Replace(llama, "128", "64", 1), "", "takes heads for 8 wide; they are 16", nil},
		{"static", static, llama, "written in place", "written in place", nil},
		{"batch of another name", other, llama, `called "N"`, "", nil},
		{"caches of other names", unnamed, llama, "not past_key_values", "not past_key_values", nil},
		{"an input nobody feeds", extra, llama, `input "speed"`, `input "speed"`, nil},
		{"no cache", &Interface{Inputs: []string{"input_ids"}}, llama, "", "", nil},
		{"no cache and text to generate", &Interface{Inputs: []string{"input_ids"}, Logits: "logits"}, decoder, "not generate with it", "not generate with it", nil},
		{"an encoder", &Interface{Inputs: []string{"input_ids", "token_type_ids", "bbox"}, Logits: "logits"}, `{"model_type": "bert"}`, "", "", nil},
		{"an encoder beside two decoders", crossed(8, 8), t5, "loads decoder_model_merged.onnx", "loads decoder_model_merged.onnx", []string{"decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"}},
		{"an encoder beside a merged decoder", crossed(8, 8), t5, "", "", files},
		{"fewer heads of cross attention", crossed(8, 4), t5, "", "cross attention by num_heads, 8 heads of 16", files},
		{"an encoder of other heads", crossed(8, 4), bart, "", "cross attention by encoder_attention_heads, 4 heads of 32", files},
		{"a batch of another name in cross attention", unsized, t5, `called "N"`, "", files},
		{"heads by layer where the type has them", caches([2]int64{2, 2}, [2]int64{4, 4}), elm, "", "", nil},
		{"others than those", caches([2]int64{2, 2}, [2]int64{2, 2}), elm, "", "caches of [2 4] heads of 16; they have [2 2] of 16", nil},
		{"three axes", caches([2]int64{8, 8}), `{"model_type": "bloom", "n_head": 8, "hidden_size": 128}`, "", "three axes", nil},
		{"a newer type", caches([2]int64{2, 2}), `{"model_type": "qwen3_moe"}`, "", "does not know", nil},
		{"text beside images", caches([2]int64{2, 2}), seeing, "", "", nil},
		{"text beside images, of other heads", caches([2]int64{1, 1}), strings.Replace(seeing, "num_key_value_heads", "x", 1), "", "by text_config.num_key_value_heads, which is 8", nil},
	} {
		got := Check(configFile, c.f, []byte(c.config), c.models)
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
		{"a decoder that is a part", `{"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8}}`,
			caches([2]int64{2, 2}), nil, map[string]string{"text_config.num_key_value_heads": "2", "text_config.head_dim": "16", "num_key_value_heads": "", "head_dim": ""}},
		{"a number for each layer", `{"model_type": "openelm", "num_kv_heads": [4, 8], "head_dim": 16}`,
			caches([2]int64{2, 2}, [2]int64{4, 4}), nil, map[string]string{"num_kv_heads": "[2,4]", "num_key_value_heads": ""}},
		{"keys and values apart", `{"model_type": "gpt_bigcode", "n_head": 8, "n_embd": 128, "multi_query": true}`,
			caches([2]int64{1, 1}), nil, map[string]string{"multi_query": "false", "num_key_value_heads": "1"}},
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
			if got := string(pretty.Ugly([]byte(gjson.GetBytes(out, path).Raw))); got != want {
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
	sized := caches([2]int64{2, 2}, [2]int64{2, 2})
	sized.Caches[2].Dim, sized.Caches[3].Dim = 8, 8
	crossed := caches([2]int64{2, 2}, [2]int64{2, 2})
	crossed.Cross = []Cache{{Past: "past_key_cross_0", Heads: 2, Dim: 16}}
	parts := strings.Replace(genaiConfig, `"filename": "model.onnx"`, `"pipeline": [{"embeddings": {"filename": "embeddings.onnx"}}, {"layers": {"filename": "model.onnx", "run_on_prompt": true}}]`, 1)
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
		{"sizes by layer", genaiConfig, sized, "false", "stays as it was: heads have different sizes", ""},
		{"cross attention", strings.Replace(genaiConfig, `"head_size"`, `"num_attention_heads": 2, "head_size"`, 1), crossed, "false", "", ""},
		{"fewer heads of cross attention", strings.Replace(genaiConfig, `"head_size"`, `"num_attention_heads": 8, "head_size"`, 1), crossed, "false", "", "by num_attention_heads and head_size, 8 heads of 16"},
		{"parts", parts, plain, "false", "", ""},
		{"parts, an unknown field", strings.Replace(parts, "run_on_prompt", "run", 1), plain, "false", "model.decoder.pipeline.layers.run is no field", ""},
		{"too long", strings.Replace(genaiConfig, `"top_p": 0.5`, `"max_length": 65`, 1), plain, "false", "search.max_length is 65, more than model.context_length, 64", ""},
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
		if why := Check(genaiFile, c.f, out, nil)[0].Why; !strings.Contains(why, c.refused) || (why == "") != (c.refused == "") {
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

// The decoder of a configuration of several parts is the one with caches, which leads.
func TestDecoderOfParts(t *testing.T) {
	const config = `{"model": {"decoder": {"pipeline": {"a": {"filename": "embed.onnx"}, "b": {"filename": "onnx/layers.onnx"}}}}}`
	for _, c := range []struct {
		written []string
		want    string
	}{
		{[]string{"other.onnx", filepath.Join("onnx", "layers.onnx"), "embed.onnx"}, filepath.Join("onnx", "layers.onnx")},
		{[]string{"other.onnx"}, ""},
	} {
		if got := new(Folder).Decoder(genaiFile, []byte(config), c.written); got != c.want {
			t.Errorf("of %v: %q, want %q", c.written, got, c.want)
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
