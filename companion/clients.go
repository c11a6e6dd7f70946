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
	// refuses says why the runtime cannot run a model with this interface and configuration; empty when it can.
	refuses func(f *Interface, config []byte) string
}

// Clients lists the runtimes that a folder is checked for. What they do with caches was read from their sources:
// transformers.js 4.3.1 (src/configs.js, src/models/modeling_utils.js: addPastKeyValues), 3.8.1 (src/configs.js:
// getKeyValueShapes) and onnxruntime-genai (src/models/kv_cache.cpp: DefaultKeyValueCache).
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

// Check asks every client that reads the configuration file called config.
func Check(config string, f *Interface, content []byte) (out []Verdict) {
	for _, c := range Clients {
		if c.config == config {
			out = append(out, Verdict{c.Name, c.refuses(f, content)})
		}
	}
	return out
}

// transformersInputs are the inputs that transformers.js feeds a decoder besides caches.
var transformersInputs = []string{"input_ids", "attention_mask", "position_ids", "inputs_embeds", "use_cache_branch", "num_logits_to_keep"}

var transformersPast = regexp.MustCompile(`^past_key_values\.\d+\.(decoder\.|encoder\.)?(key|value)$`)

// transformersInterface says what no release of transformers.js takes.
func transformersInterface(f *Interface) string {
	for _, c := range f.Caches {
		switch {
		case c.Static:
			return "its caches are written in place, and transformers.js gives each step the longer caches of the last; --lowering grouped keeps them growing"
		case !transformersPast.MatchString(c.Past) || c.Present != strings.Replace(c.Past, "past_key_values", "present", 1):
			return fmt.Sprintf("its caches are called %q and %q, not past_key_values.0.key and present.0.key", c.Past, c.Present)
		}
	}
	for _, name := range f.Inputs {
		cache := slices.ContainsFunc(f.Caches, func(c Cache) bool { return c.Past == name })
		if !cache && !slices.Contains(transformersInputs, name) && !strings.HasPrefix(name, "past_key_values.") && !strings.HasPrefix(name, "encoder_") {
			return fmt.Sprintf("it has an input %q that transformers.js does not feed", name)
		}
	}
	return ""
}

// transformersBatch is the one symbol of a cache that transformers.js 4 knows the size of; all others are 0 at the start.
const transformersBatch = "batch_size"

// transformers4 takes the shapes of caches from the model: any numbers of heads will do.
func transformers4(f *Interface, _ []byte) string {
	if why := transformersInterface(f); why != "" {
		return why
	}
	for _, c := range f.Caches {
		switch {
		case c.Heads == 0 || c.Dim == 0 || c.Both:
			return fmt.Sprintf("cache %q does not declare its heads and their size as numbers", c.Past)
		case c.Batch != transformersBatch:
			return fmt.Sprintf("the batch of cache %q is called %q, not %s", c.Past, c.Batch, transformersBatch)
		}
	}
	return ""
}

// transformers3 makes all caches alike, by the configuration.
func transformers3(f *Interface, config []byte) string {
	if why := transformersInterface(f); why != "" {
		return why
	}
	if len(f.Caches) == 0 {
		return ""
	}
	heads, dim, why := f.Uniform()
	if why != "" {
		return why + "; it makes all caches with one number of heads"
	}
	k := keysOf(config)
	if got := k.get(config, k.heads, k.queries); got != heads {
		return fmt.Sprintf("for model_type %q it makes caches by %s, which is %d and cannot be %d: it counts the query heads too", k.model, k.heads, got, heads)
	}
	if got := k.headDim(config); got != dim {
		return fmt.Sprintf("for model_type %q it takes heads for %d wide; they are %d", k.model, got, dim)
	}
	return ""
}

// genai makes all caches by num_key_value_heads and head_size; releases from 2026 on take the heads of a layer's keys from
// the model, and make its values alike.
func genai(f *Interface, config []byte) string {
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
