package companion

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// Client is a runtime that reads a folder.
type Client struct {
	Name   string
	config string // the file that it reads
	// refuses says why the runtime cannot run a model of this interface; empty when it can.
	refuses func(f *Interface, folder contents) string
}

// contents is what a client finds in a folder.
type contents struct {
	config []byte
	models []string // names of model files
}

// Clients lists the runtimes that a folder is checked for. What they do with caches was read from their sources:
// transformers.js 4.3.1 (src/configs.js, src/models/modeling_utils.js: addPastKeyValues), 3.8.1 (src/configs.js:
// getKeyValueShapes; src/models.js) and onnxruntime-genai (src/models/kv_cache.cpp: DefaultKeyValueCache).
var Clients = []Client{
	{"transformers.js 4", configFile, transformers4},
	{"transformers.js 3", configFile, transformers3},
	{"onnxruntime-genai", genaiFile, genai},
}

// Verdict is whether a client can take a model.
type Verdict struct {
	Client string `json:"client"`
	Why    string `json:"refused,omitempty"` // empty when it can
}

// Check asks every client that reads the configuration file called config. models are the names of the model files in the
// folder.
func Check(config string, f *Interface, content []byte, models []string) (out []Verdict) {
	for _, c := range Clients {
		if c.config == config {
			out = append(out, Verdict{c.Name, c.refuses(f, contents{content, models})})
		}
	}
	return out
}

// transformersInputs are the inputs that transformers.js feeds a decoder besides caches.
var transformersInputs = []string{
	"input_ids", "attention_mask", "position_ids", "inputs_embeds", "use_cache_branch", "num_logits_to_keep",
	"encoder_hidden_states", "encoder_attention_mask",
}

var (
	transformersPast = regexp.MustCompile(`^past_key_values\.\d+\.(decoder\.|encoder\.)?(key|value)$`)
	// transformersStates are caches of all kinds.
	transformersStates = regexp.MustCompile(`^past_(key_values|conv|ssm|recurrent|compressor|indexer)\.`)
	// generative are architectures that text is generated with.
	generative = regexp.MustCompile(`(CausalLM|LMHeadModel|ConditionalGeneration)$`)
)

// mergedDecoder is the decoder that transformers.js loads of a model with an encoder: both steps as branches of one graph.
const mergedDecoder = "decoder_model_merged"

// transformersInterface says what no release of transformers.js takes.
func transformersInterface(f *Interface, folder contents) string {
	merged := slices.ContainsFunc(folder.models, func(name string) bool { return strings.HasPrefix(name, mergedDecoder) })
	if gjson.GetBytes(folder.config, "is_encoder_decoder").Bool() && !merged {
		return fmt.Sprintf("beside an encoder it loads %s.onnx, with both steps of the decoder in one graph, and the folder has none", mergedDecoder)
	}
	if len(f.Caches) == 0 {
		for _, a := range gjson.GetBytes(folder.config, "architectures").Array() {
			if f.Logits != "" && generative.MatchString(a.String()) {
				return "the model has no caches, and after the first step it feeds the last token alone; it can run the model, but not generate with it"
			}
		}
		return "" // whoever calls an encoder feeds what it asks for
	}
	for _, c := range f.Caches {
		switch {
		case c.Static:
			return "its caches are written in place, and transformers.js gives each step the longer caches of the last; --lowering grouped keeps them growing"
		case !transformersPast.MatchString(c.Past) || c.Present != strings.Replace(c.Past, "past_key_values", "present", 1):
			return fmt.Sprintf("its caches are called %q and %q, not past_key_values.0.key and present.0.key", c.Past, c.Present)
		}
	}
	for _, name := range f.Inputs {
		if !slices.Contains(transformersInputs, name) && !transformersStates.MatchString(name) {
			return fmt.Sprintf("it has an input %q that transformers.js does not feed", name)
		}
	}
	return ""
}

// transformersBatch is the one symbol of a cache that transformers.js 4 knows the size of; all others are 0 at the start.
const transformersBatch = "batch_size"

// transformers4 takes the shapes of caches from the model: any numbers of heads will do.
func transformers4(f *Interface, folder contents) string {
	if why := transformersInterface(f, folder); why != "" {
		return why
	}
	for _, c := range slices.Concat(f.Caches, f.Cross) {
		switch {
		case c.Heads == 0 || c.Dim == 0 || c.Both:
			return fmt.Sprintf("cache %q does not declare its heads and their size as numbers", c.Past)
		case c.Batch != transformersBatch:
			return fmt.Sprintf("the batch of cache %q is called %q, not %s", c.Past, c.Batch, transformersBatch)
		}
	}
	return ""
}

// since4 lists model types that transformers.js 3 does not know.
var since4 = []string{
	"gpt_oss", "apertus", "afmoe", "lfm2_moe", "olmo3", "olmo_hybrid", "cohere2", "glm_moe_dsa", "qwen2_moe", "qwen3_moe", "qwen3_next",
	"qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "gemma4", "gemma4_text", "mistral4", "deepseek_v3", "deepseek_v4",
	"falcon_h1", "nemotron_h", "solar_open", "hunyuan_v1_dense", "youtu", "zaya", "hrm_text", "cohere_asr",
}

// merged3 lists model types whose caches transformers.js 3 makes with the batch and the heads in one axis.
var merged3 = []string{"bloom", "falcon"}

// transformers3 makes all caches by the configuration, alike but for OpenELM's.
func transformers3(f *Interface, folder contents) string {
	if why := transformersInterface(f, folder); why != "" {
		return why
	}
	k, model := keysOf(folder.config), gjson.GetBytes(folder.config, "model_type").String()
	switch {
	case slices.Contains(since4, model):
		return fmt.Sprintf("it does not know model_type %q", model)
	case len(f.Caches) == 0:
		return ""
	case slices.Contains(merged3, k.model):
		return fmt.Sprintf("for model_type %q it makes caches of three axes", k.model)
	case k.layered:
		return layered3(f, folder.config, k)
	}
	heads, dim, why := f.Uniform()
	if why != "" {
		return why + "; it makes all caches with one number of heads"
	}
	if got := k.get(folder.config, k.heads, k.queries); got != heads {
		return fmt.Sprintf("for model_type %q it makes caches by %s, which is %d and cannot be %d: it counts the query heads too", k.model, k.at+k.heads, got, heads)
	}
	if got := k.headDim(folder.config, k.queries); got != dim {
		return fmt.Sprintf("for model_type %q it takes heads for %d wide; they are %d", k.model, got, dim)
	}
	for _, c := range f.Cross {
		heads, dim := k.get(folder.config, k.cross), k.headDim(folder.config, k.cross)
		if heads != c.Heads || dim != c.Dim {
			return fmt.Sprintf("for model_type %q it makes caches of cross attention by %s, %d heads of %d; cache %q has %d of %d", k.model, k.cross, heads, dim, c.Past, c.Heads, c.Dim)
		}
	}
	return ""
}

// layered3 is for a model type that has a number of heads for each layer.
func layered3(f *Interface, config []byte, k keys) string {
	if why := f.coupled(); why != "" {
		return why + "; it makes a layer's keys and values alike"
	}
	heads, _ := f.Heads()
	var got []int64
	for _, n := range gjson.GetBytes(config, k.at+k.heads).Array() {
		got = append(got, n.Int())
	}
	alike := !slices.ContainsFunc(f.Caches, func(c Cache) bool { return c.Dim != f.Caches[0].Dim })
	if dim := k.headDim(config, k.queries); !slices.Equal(got, heads) || !alike || dim != f.Caches[0].Dim {
		return fmt.Sprintf("by %s it makes caches of %v heads of %d; they have %v of %d", k.heads, got, dim, heads, f.Caches[0].Dim)
	}
	return ""
}

// genai makes all caches by num_key_value_heads and head_size; releases from 2026 on take the heads of a layer's keys and
// their size from the model, and make its values alike. Those of cross attention it makes by num_attention_heads.
func genai(f *Interface, folder contents) string {
	config := folder.config
	if why := f.coupled(); why != "" {
		return why + "; it makes a layer's keys and values alike"
	}
	for _, c := range f.Caches {
		if c.Static {
			return "its caches are written where an input cache_position says, which onnxruntime-genai does not feed; --lowering grouped or gqa"
		}
	}
	d := gjson.GetBytes(config, "model.decoder")
	names := []struct{ key, def string }{{"inputs.past_key_names", "past_key_values.%d.key"}, {"inputs.past_value_names", "past_key_values.%d.value"}}
	for _, n := range names {
		template := d.Get(n.key).String()
		if template == "" {
			template = n.def
		}
		for _, c := range f.Caches {
			if c.Both {
				if want := strings.Replace(d.Get("inputs.past_names").String(), "%d", fmt.Sprint(c.Layer), 1); c.Past != want {
					return fmt.Sprintf("cache %q does not have the name that inputs.past_names gives: %q", c.Past, want)
				}
				continue
			}
			if c.Value == strings.Contains(n.key, "value") && c.Past != strings.Replace(template, "%d", fmt.Sprint(c.Layer), 1) {
				return fmt.Sprintf("cache %q does not have the name that %s gives: %s", c.Past, n.key, template)
			}
		}
	}
	for _, c := range f.Cross {
		if heads, dim := d.Get("num_attention_heads").Int(), d.Get("head_size").Int(); c.Heads != heads || c.Dim != dim {
			return fmt.Sprintf("it makes caches of cross attention by num_attention_heads and head_size, %d heads of %d; cache %q has %d of %d", heads, dim, c.Past, c.Heads, c.Dim)
		}
	}
	if heads, _, why := f.Uniform(); why == "" && d.Get("num_key_value_heads").Int() != heads {
		return fmt.Sprintf("num_key_value_heads is %d, the caches have %d", d.Get("num_key_value_heads").Int(), heads)
	}
	return ""
}

// Note says what a client that can take a model has to be: the release.
func Note(v Verdict, f *Interface) string {
	if _, _, why := f.Uniform(); v.Client == "onnxruntime-genai" && v.Why == "" && why != "" && len(f.Caches) > 0 {
		return "releases that take the heads of each layer from the model (2026 and later): " + why
	}
	return ""
}
