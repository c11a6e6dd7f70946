package companion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
)

// kind is the type of a field.
type kind string

// Kinds of fields; a field of kind open is read by a part of the runtime that has nothing to do with caches, and what is in
// it is not looked at.
const (
	text    kind = "text"
	whole   kind = "a whole number"
	number  kind = "a number"
	boolean kind = "true or false"
	tokens  kind = "a token id or a list of them"
	open    kind = ""
)

// genaiFields are the fields of genai_config.json that a decoder has, by the object that holds them: those that the parser
// of onnxruntime-genai (src/config.cpp) knows. It refuses a file with any other field.
var genaiFields = map[string]map[string]kind{
	"": {"model": open, "search": open, "engine": open, "speculative": open},
	"model": {
		"type": text, "tokenizer_dir": text, "vocab_size": whole, "context_length": whole, "pad_token_id": whole, "eos_token_id": tokens,
		"bos_token_id": whole, "sep_token_id": whole, "decoder_start_token_id": whole, "image_token_id": whole, "audio_token_id": whole,
		"boa_token_id": whole, "video_token_id": whole, "vision_start_token_id": whole, "bot_token_id": whole, "eot_token_id": whole,
		"bor_token_id": whole, "eor_token_id": whole, "num_mels": whole, "fft_size": whole, "hop_length": whole, "win_length": whole,
		"preemph": number, "log_eps": number, "norm_eps": number, "subsampling_factor": whole, "left_context": whole, "conv_context": whole,
		"pre_encode_cache_size": whole, "sample_rate": whole, "chunk_samples": whole, "blank_id": whole, "max_symbols_per_step": whole,
		"left_context_samples": whole, "right_context_samples": whole, "tdt_durations": open, "encoder": open, "decoder": open,
		"draft": open, "vision": open, "embedding": open, "speech": open, "joiner": open, "vad": open, "mtp": open, "dflash2": open, "dspark": open,
	},
	"model.decoder": {
		"filename": text, "hidden_size": whole, "num_attention_heads": whole, "num_hidden_layers": whole, "num_key_value_heads": whole,
		"head_size": whole, "state_update_capacity": whole, "conv_cache_size": whole, "ple_token_pad_id": whole, "session_options": open,
		"run_options": open, "inputs": open, "outputs": open, "sliding_window": open, "pipeline": open, "layer_types": open,
		"shared_initializers": open, "state_groups": open,
	},
	"model.decoder.inputs": texts("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_names", "past_value_names",
		"past_key_scale_names", "past_value_scale_names", "past_names", "cross_past_key_names", "cross_past_value_names",
		"past_sequence_length", "current_sequence_length", "total_sequence_length", "encoder_hidden_states", "encoder_attention_mask",
		"rnn_states_prev", "past_key_values_length", "cache_indirection", "cumulative_sequence_lengths", "past_sequence_lengths",
		"block_table", "block_table_windowed", "attention_metadata", "past_conv_names", "past_recurrent_names", "past_ple_token_names",
		"past_ple_conv_names", "past_indexer_names", "state_update_capture_count", "state_update_active", "hidden_states", "targets",
		"lstm_hidden_state", "lstm_cell_state", "per_layer_inputs", "targets_length"),
	"model.decoder.outputs": texts("logits", "present_key_names", "present_value_names", "present_key_scale_names",
		"present_value_scale_names", "present_names", "output_cross_qk_names", "rnn_states", "present_conv_names",
		"present_recurrent_names", "present_ple_token_names", "present_ple_conv_names", "present_indexer_names",
		"state_update_conv_value_names", "state_update_recurrent_capsule_names", "hidden_states", "aux_hidden_states", "outputs",
		"lstm_hidden_state", "lstm_cell_state", "outputs_length"),
	"model.decoder.sliding_window": {
		"window_size": whole, "pad_value": whole, "alignment": text, "slide_key_value_cache": boolean, "slide_inputs": boolean,
		"cache_slack": whole, "layers": open,
	},
	// Each of the models that a decoder of several parts is made of.
	pipelinePath: {
		"filename": text, "run_on_prompt": boolean, "run_on_token_gen": boolean, "is_lm_head": boolean, "inherit_session_options": boolean,
		"reset_session_idx": whole, "session_options": open, "run_options": open, "inputs": open, "outputs": open, "output_names_forwarder": open,
	},
	"search": {
		"min_length": whole, "max_length": whole, "batch_size": whole, "num_beams": whole, "num_return_sequences": whole, "top_k": whole,
		"top_p": number, "temperature": number, "repetition_penalty": number, "length_penalty": number, "no_repeat_ngram_size": whole,
		"diversity_penalty": number, "random_seed": whole, "chunk_size": whole, "do_sample": boolean, "past_present_share_buffer": boolean,
		"early_stopping": boolean, "blank_penalty": number,
	},
}

const pipelinePath = "model.decoder.pipeline"

// pipeline lists the parts of a decoder that is made of several models: objects by name, in a list or in an object.
func pipeline(content []byte) (names []string, parts []gjson.Result) {
	add := func(name, part gjson.Result) bool {
		names, parts = append(names, name.Str), append(parts, part)
		return true
	}
	p := gjson.GetBytes(content, pipelinePath)
	if p.IsArray() {
		for _, entry := range p.Array() {
			entry.ForEach(add)
		}
	} else if p.IsObject() {
		p.ForEach(add)
	}
	return names, parts
}

// decoders lists the model files of a decoder.
func decoders(content []byte) []string {
	names := []string{gjson.GetBytes(content, "model.decoder.filename").String()}
	_, parts := pipeline(content)
	for _, p := range parts {
		names = append(names, p.Get("filename").String())
	}
	return names
}

func texts(names ...string) map[string]kind {
	out := map[string]kind{}
	for _, n := range names {
		out[n] = text
	}
	return out
}

// fits reports whether a value is of the kind.
func (k kind) fits(v gjson.Result) bool {
	integer := v.Type == gjson.Number && v.Num == float64(int64(v.Num))
	switch k {
	case text:
		return v.Type == gjson.String
	case whole:
		return integer
	case number:
		return v.Type == gjson.Number
	case boolean:
		return v.IsBool()
	case tokens:
		return integer || v.IsArray() && !slices.ContainsFunc(v.Array(), func(e gjson.Result) bool { return !whole.fits(e) })
	}
	return true
}

// CheckGenAI holds a genai_config.json against the fields that the runtime knows and against the model that it describes,
// and returns what is wrong with it.
func CheckGenAI(content []byte, f *Interface) (problems []string) {
	if !gjson.ValidBytes(content) || !gjson.ParseBytes(content).IsObject() {
		return []string{"it is no JSON object"}
	}
	checkFields := func(path, shown string, object gjson.Result) {
		object.ForEach(func(key, value gjson.Result) bool {
			name := strings.TrimPrefix(shown+"."+key.Str, ".")
			k, known := genaiFields[path][key.Str]
			switch {
			case !known:
				problems = append(problems, fmt.Sprintf("%s is no field that onnxruntime-genai knows; it refuses the file", name))
			case !k.fits(value):
				problems = append(problems, fmt.Sprintf("%s is %s; want %s", name, value.Raw, k))
			}
			return true
		})
	}
	checkFields("", "", gjson.ParseBytes(content))
	for _, path := range []string{"model", "model.decoder", "model.decoder.inputs", "model.decoder.outputs", "model.decoder.sliding_window", "search"} {
		checkFields(path, path, gjson.GetBytes(content, path))
	}
	names, parts := pipeline(content)
	for i, part := range parts {
		checkFields(pipelinePath, pipelinePath+"."+names[i], part)
	}
	needed := []string{"model.type", "model.context_length", "model.vocab_size", "model.decoder.head_size", "model.decoder.num_hidden_layers", "model.decoder.num_key_value_heads"}
	if len(parts) == 0 {
		needed = append(needed, "model.decoder.filename")
	}
	for _, need := range needed {
		if !gjson.GetBytes(content, need).Exists() {
			problems = append(problems, need+" is missing")
		}
	}
	if length, most := gjson.GetBytes(content, "search.max_length"), gjson.GetBytes(content, "model.context_length"); most.Exists() && length.Int() > most.Int() {
		problems = append(problems, fmt.Sprintf("search.max_length is %d, more than model.context_length, %d", length.Int(), most.Int()))
	}
	problems = append(problems, checkNames(content, f)...)
	if _, dim, why := f.Uniform(); why == "" && gjson.GetBytes(content, "model.decoder.head_size").Int() != dim {
		problems = append(problems, fmt.Sprintf("model.decoder.head_size is %d; heads are %d wide", gjson.GetBytes(content, "model.decoder.head_size").Int(), dim))
	}
	if gjson.GetBytes(content, "search.past_present_share_buffer").Bool() && !f.Fused && len(f.Caches) > 0 {
		problems = append(problems, "search.past_present_share_buffer is true, but the model makes a longer present of its past and cannot share a buffer")
	}
	return problems
}

// checkNames holds the templates of names against the model's inputs and outputs, for every layer.
func checkNames(content []byte, f *Interface) (problems []string) {
	d := gjson.GetBytes(content, "model.decoder")
	templates := []struct {
		key, def string
		value    bool
		name     func(Cache) string
	}{
		{"inputs.past_key_names", "past_key_values.%d.key", false, func(c Cache) string { return c.Past }},
		{"inputs.past_value_names", "past_key_values.%d.value", true, func(c Cache) string { return c.Past }},
		{"outputs.present_key_names", "present.%d.key", false, func(c Cache) string { return c.Present }},
		{"outputs.present_value_names", "present.%d.value", true, func(c Cache) string { return c.Present }},
	}
	if d.Get("inputs.past_names").Exists() {
		return nil // keys and values in one tensor
	}
	for _, t := range templates {
		template := t.def
		if v := d.Get(t.key); v.Exists() {
			template = v.Str
		}
		n := 0
		for _, c := range f.Caches {
			if c.Value != t.value {
				continue
			}
			n++
			if want := strings.Replace(template, "%d", fmt.Sprint(c.Layer), 1); t.name(c) != want {
				problems = append(problems, fmt.Sprintf("model.decoder.%s makes %q, the model has %q", t.key, want, t.name(c)))
				break
			}
		}
		if layers := d.Get("num_hidden_layers").Int(); len(problems) == 0 && layers > 0 && int64(n) > layers {
			problems = append(problems, fmt.Sprintf("model.decoder.num_hidden_layers is %d, the model has caches of %d layers", layers, n))
		}
	}
	return problems
}

// GenAI brings a genai_config.json into agreement with a model: the number of cached heads, the size of a head, and
// whether past and present share a buffer, which they can where the runtime's own operator updates the caches. notes says
// what was changed and what is wrong with the file.
func GenAI(content []byte, f *Interface) (out []byte, notes []string, err error) {
	if !gjson.ValidBytes(content) || !gjson.ParseBytes(content).IsObject() {
		return nil, nil, fmt.Errorf("it is no JSON object")
	}
	var edits []edit
	set := func(path string, value any) {
		old := gjson.GetBytes(content, path)
		if old.Exists() && old.Raw == fmt.Sprint(value) {
			return
		}
		was := "it was not there"
		if old.Exists() {
			was = "it was " + old.Raw
		}
		edits = append(edits, edit{path, value})
		notes = append(notes, fmt.Sprintf("%s: %s is %v (%s)", genaiFile, path, value, was))
	}
	if heads, dim, why := f.Uniform(); why == "" {
		set("model.decoder.num_key_value_heads", heads)
		set("model.decoder.head_size", dim)
	} else if len(f.Caches) > 0 {
		notes = append(notes, fmt.Sprintf("%s: num_key_value_heads stays as it was: %s", genaiFile, why))
	}
	share := gjson.GetBytes(content, "search.past_present_share_buffer")
	if share.Bool() && !f.Fused {
		set("search.past_present_share_buffer", false)
	}
	if f.Fused && !share.Exists() {
		set("search.past_present_share_buffer", true)
	}
	if out, err = apply(content, edits); err != nil {
		return nil, nil, err
	}
	for _, p := range CheckGenAI(out, f) {
		notes = append(notes, genaiFile+": "+p)
	}
	return out, notes, nil
}
