package companion

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/tidwall/gjson"
	"github.com/tidwall/pretty"
	"github.com/tidwall/sjson"
)

// Files that say what a folder is.
const (
	configFile = "config.json"
	genaiFile  = "genai_config.json"
)

// keys are what a model type calls the numbers that caches are made by.
type keys struct {
	model                 string
	at                    string // the object of the configuration that they are in, with a dot; empty for the whole
	heads, queries, width string // number of cached heads, of query heads, width of the model
	dim                   string // size of a head, where there is a key for it
	cross                 string // number of heads in the caches of cross attention
	layered               bool   // there is a number of cached heads for each layer
}

// grouped lists the model types whose caches transformers.js makes by num_key_value_heads (src/configs.js). For those in
// the second list it reads head_dim alone, for the others head_dim or hidden_size / num_attention_heads.
var (
	grouped = []string{
		"gpt_oss", "llama", "llama4_text", "nanochat", "apertus", "arcee", "afmoe", "lfm2", "lfm2_moe", "smollm3", "olmo", "olmo2", "olmo3",
		"mobilellm", "granite", "granitemoehybrid", "cohere", "cohere2", "mistral", "starcoder2", "qwen2", "qwen2_moe", "qwen2_vl",
		"qwen2_vl_text", "qwen2_5_vl_text", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "phi", "phi3", "phi3_v", "llava_qwen2", "exaone",
	}
	groupedByDim = []string{
		"qwen3", "solar_open", "gemma", "gemma2", "vaultgemma", "gemma3_text", "gemma3n_text", "gemma4_text", "glm", "helium", "ernie4_5",
		"hunyuan_v1_dense", "falcon_h1", "nemotron_h", "ministral", "ministral3",
	}
)

// ungrouped lists the names of model types that have others.
var ungrouped = map[string]keys{
	"gpt2": {heads: "n_head", width: "n_embd"}, "gptj": {heads: "n_head", width: "n_embd"}, "codegen": {heads: "n_head", width: "n_embd"},
	"jais": {heads: "n_head", width: "n_embd"}, "gpt_bigcode": {heads: "n_head", width: "n_embd"},
	"bloom":   {heads: "n_head", width: "hidden_size"},
	"mpt":     {heads: "n_heads", width: "d_model"},
	"gpt_neo": {heads: "num_heads", width: "hidden_size"},
	"openelm": {heads: "num_kv_heads", dim: "head_dim", layered: true},
	"t5":      t5Keys, "mt5": t5Keys, "longt5": t5Keys,
	"bart": bartKeys, "mbart": bartKeys, "marian": bartKeys, "whisper": bartKeys, "lite-whisper": bartKeys, "m2m_100": bartKeys,
	"blenderbot": bartKeys, "blenderbot-small": bartKeys, "florence2_language": bartKeys,
	"speecht5":         {heads: "decoder_attention_heads", width: "hidden_size", cross: "encoder_attention_heads"},
	"trocr":            {heads: "decoder_attention_heads", width: "d_model", cross: "decoder_attention_heads"},
	"musicgen_decoder": {heads: "num_attention_heads", width: "hidden_size", cross: "num_attention_heads"},
	"moonshine":        {heads: "decoder_num_key_value_heads", width: "hidden_size", cross: "encoder_num_key_value_heads"},
}

// Decoders with an encoder.
var (
	t5Keys   = keys{heads: "num_heads", width: "d_model", dim: "d_kv", cross: "num_heads"}
	bartKeys = keys{heads: "decoder_attention_heads", width: "d_model", cross: "encoder_attention_heads"}
)

// parts says which object of the configuration is about the decoder, for model types that are made of several models;
// of others text_config is, where they have one.
var parts = map[string]string{
	"moondream1": "phi_config", "musicgen": "decoder", "multi_modality": "language_config", "vision-encoder-decoder": "decoder",
}

// keysOf returns the keys of a config.json by its model type; of types that are not listed those that most have.
func keysOf(config []byte) keys {
	model := gjson.GetBytes(config, "model_type").String()
	if k, ok := ungrouped[model]; ok {
		k.model, k.queries = model, k.heads
		return k
	}
	k := keys{model: model, heads: "num_attention_heads", queries: "num_attention_heads", width: "hidden_size"}
	if slices.Contains(grouped, model) || slices.Contains(groupedByDim, model) {
		k.heads, k.dim = "num_key_value_heads", "head_dim"
		return k
	}
	part, ok := parts[model]
	if !ok {
		part = "text_config"
	}
	if inner := gjson.GetBytes(config, part); inner.IsObject() {
		k = keysOf([]byte(inner.Raw))
		k.at = part + "." + k.at
	}
	return k
}

// get returns the first of the keys that the configuration has.
func (k keys) get(config []byte, names ...string) int64 {
	for _, n := range names {
		if v := gjson.GetBytes(config, k.at+n); v.Type == gjson.Number {
			return v.Int()
		}
	}
	return 0
}

// headDim is the size of a head by the configuration, for as many heads as the key heads says.
func (k keys) headDim(config []byte, heads string) int64 {
	if k.dim != "" {
		if n := k.get(config, k.dim); n > 0 {
			return n
		}
	}
	if n := k.get(config, heads); n > 0 {
		return k.get(config, k.width) / n
	}
	return 0
}

// edit is a change of a JSON file.
type edit struct {
	path  string
	value any
}

// apply makes changes in a JSON file. The order of the keys stays; a file over several lines is laid out anew.
func apply(content []byte, edits []edit) ([]byte, error) {
	out := content
	for _, e := range edits {
		var err error
		if out, err = sjson.SetBytes(out, e.path, e.value); err != nil {
			return nil, fmt.Errorf("%s: %w", e.path, err)
		}
	}
	return pretty.PrettyOptions(out, &pretty.Options{Width: 80, Indent: "  "}), nil
}

// External counts the data files of a model file, by the name of the model file.
type External map[string]int

// Transformers brings a config.json into agreement with a model: the number of cached heads and the size of a head, and
// which model files have weights in files beside them. notes says what was changed.
func Transformers(content []byte, f *Interface, data External) (out []byte, notes []string, err error) {
	if !gjson.ValidBytes(content) || !gjson.ParseBytes(content).IsObject() {
		return nil, nil, fmt.Errorf("it is no JSON object")
	}
	var edits []edit
	set := func(path string, value any) {
		raw, _ := json.Marshal(value)
		if old := gjson.GetBytes(content, path); !old.Exists() || old.Raw != string(raw) {
			was := "it was not there"
			if old.Exists() {
				was = "it was " + old.Raw
			}
			edits = append(edits, edit{path, value})
			notes = append(notes, fmt.Sprintf("%s: %s is %s (%s)", configFile, path, raw, was))
		}
	}
	k := keysOf(content)
	heads, dim, why := f.Uniform()
	switch {
	case k.layered && len(f.Caches) > 0 && f.coupled() == "":
		counts, _ := f.Heads()
		set(k.at+k.heads, counts)
	case why == "":
		set(k.at+"num_key_value_heads", heads)
		// Where the size of a head is not width / heads it has to be said.
		if k.headDim(content, k.queries) != dim && k.dim != "" {
			set(k.at+k.dim, dim)
		}
	case len(f.Caches) > 0:
		notes = append(notes, fmt.Sprintf("%s: %snum_key_value_heads stays as it was: %s", configFile, k.at, why))
	}
	// Of such a model transformers.js looks for caches of keys and values together.
	apart := len(f.Caches) > 0 && !slices.ContainsFunc(f.Caches, func(c Cache) bool { return c.Both })
	if apart && gjson.GetBytes(content, "multi_query").Bool() {
		set("multi_query", false)
	}
	const key = `transformers\.js_config.use_external_data_format`
	had := gjson.GetBytes(content, key)
	external := map[string]int{}
	for name, n := range data {
		if n > 0 || had.Exists() {
			external[name] = n
		}
	}
	if len(external) > 0 {
		edits = append(edits, edit{key, external})
		notes = append(notes, fmt.Sprintf("%s: transformers.js_config.use_external_data_format names the data files", configFile))
	}
	out, err = apply(content, edits)
	return out, notes, err
}
