package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/data/tokenizer"
	generate "onnx-dha/decode"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// generated is what transformers.js says.
type generated struct {
	Prompts, Tokens [][]int64
	Texts           []string
}

// release is a release of transformers.js that is tried beside the one in clients/package.json: its file.
var release = os.Getenv("TRANSFORMERS_JS")

// transformers generates n tokens after each prompt with transformers.js.
func transformers(t *testing.T, folder string, n int, prompts any) (g generated) {
	t.Helper()
	data, err := json.Marshal(prompts)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{folder, strconv.Itoa(n), string(data)}
	if release != "" {
		args = append(args, release)
	}
	client(t, &g, "transformers.mjs", args...)
	return g
}

// transformersCase is a model folder that transformers.js generates from, from several prompts of unequal length at once
// where there are several.
type transformersCase struct {
	name       string
	folder     func(t *testing.T) string
	key, value string // heads that are left
	old        bool   // releases before 4 can take it too
	prompts    []string
	tokens     int
	options    []string // of rewrite
}

var cappPrompts = []string{
	strings.Join([]string{"geometry_prismatic", "holes_large", "external_threads_yes", "surface_finish_rough", "tolerance_rough", "batch_size_large", "<SOS>"}, "\n"),
	strings.Join([]string{"geometry_pure_axisymmetric", "surface_finish_rough", "<SOS>"}, "\n"),
	"geometry_prismatic\n<SOS>",
}

var transformersCases = []transformersCase{
	{"char-llama", charFolder, "4", "4", true, []string{"Shall I compare thee"}, 60, nil},
	{"char-llama, several", charFolder, "4", "4", true, []string{"O", "Shall I compare thee", "When forty winters"}, 40, nil},
	{"char-llama, decoupled", charFolder, "8", "2", false, []string{"Shall I compare thee"}, 60, nil},
	{"char-llama, decoupled, several", charFolder, "4", "1", false, []string{"Shall I compare thee", "My mistress' eyes", "No"}, 40, nil},
	{"char-llama, weights in a file", charFolder, "2", "2", true, []string{"Shall I compare thee"}, 20, []string{"--weights", "file"}},
	{"capp-gpt", cappFolder, "2", "2", false, cappPrompts[:1], 12, nil},
	{"capp-gpt, several", cappFolder, "2", "2", false, cappPrompts, 12, nil},
	{"stories260K", storiesFolder, "2", "2", true, []string{"Once upon a time"}, 60, nil},
	{"stories260K, several", storiesFolder, "2", "2", true, []string{"Once upon a time", "Tim", "The little dog was very"}, 40, nil},
}

// TestRuntimesTransformers generates text with transformers.js from rewritten folders, and holds it against both loops of
// this program.
func TestRuntimesTransformers(t *testing.T) {
	for _, c := range transformersCases {
		t.Run(c.name, func(t *testing.T) {
			dir := c.folder(t)
			small := filepath.Join(t.TempDir(), "small")
			config := uniform(t, filepath.Join(dir, "onnx", "model.onnx"), c.key, c.value)
			text := must(t, append([]string{"rewrite", dir, "--config", config, "-o", small, "--target", "transformersjs"}, c.options...)...)
			if !strings.Contains(text, "transformers.js 4  can run it") || strings.Contains(text, "transformers.js 3  can run it") != c.old {
				t.Fatalf("releases before 4 can run it: %v; what is said of the folder is\n%s", c.old, text)
			}
			if release != "" && !c.old {
				t.Skip("for transformers.js 4 alone")
			}
			got := transformers(t, small, c.tokens, c.prompts)
			tokens, err := tokenizer.Open(filepath.Join(small, "tokenizer.json"))
			if err != nil {
				t.Fatal(err)
			}
			for b, text := range c.prompts {
				prompt, err := tokens.Encode(text)
				if err != nil {
					t.Fatal(err)
				}
				// The program's tokenizers leave out what a model wants in front of every text.
				if front := len(got.Prompts[b]) - len(prompt); front < 0 || front > 1 || !slices.Equal(got.Prompts[b][front:], prompt) {
					t.Fatalf("the prompt is %v there, %v here", got.Prompts[b], prompt)
				}
			}
			n := len(got.Tokens[0])
			model := filepath.Join(small, "onnx", "model.onnx")
			want := expected(t, model, got.Prompts, n, nil)
			sameTokens(t, "transformers.js", got.Tokens, want)
			sameTokens(t, "the loop of servers", looped(t, model, got.Prompts, n, nil), want)
			for b, row := range want {
				// All go on until each has come to the end that the folder's generation_config.json gives, or is long enough.
				if n < c.tokens && !slices.Contains(row, end(t, small)) {
					t.Errorf("sequence %d has %d tokens, want %d or an end of text", b, n, c.tokens)
				}
				if all := tokens.Decode(slices.Concat(got.Prompts[b], row)); clean(got.Texts[b]) != clean(all) {
					t.Errorf("text\n%q\nwant\n%q", got.Texts[b], all)
				}
			}
			t.Logf("%q", got.Texts)
		})
	}
}

func sameTokens(t *testing.T, who string, got, want [][]int64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s continues %d prompts of %d", who, len(got), len(want))
	}
	for b := range want {
		if !slices.Equal(got[b], want[b]) {
			t.Errorf("%s, sequence %d: tokens\n%v\nwant\n%v", who, b, got[b], want[b])
		}
	}
}

// looped generates n tokens after each prompt with the loop of package decode.
func looped(t *testing.T, model string, prompts [][]int64, n int, fixed map[string]*ort.Tensor) [][]int64 {
	t.Helper()
	m, err := generate.Open(model, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	l, err := m.Start(generate.Options{Batch: len(prompts), Inputs: fixed})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	said, next := make([][]int64, len(prompts)), prompts
	for range n {
		if err := l.Feed(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		next = make([][]int64, len(prompts))
		for b := range prompts {
			scores, err := l.Scores(b)
			if err != nil {
				t.Fatal(err)
			}
			next[b] = []int64{generate.Greedy(scores)}
			said[b] = append(said[b], next[b]...)
		}
	}
	return said
}

// clean takes out what tokenizers disagree on: special tokens, and which space stands between words.
func clean(text string) string {
	for _, special := range []string{"<s>", "</s>", "<EOS>", "<PAD>"} {
		text = strings.ReplaceAll(text, special, "")
	}
	return strings.Join(strings.Fields(text), " ")
}

// end is the token that ends a text.
func end(t *testing.T, dir string) int64 {
	v, ok := readJSON(t, filepath.Join(dir, "generation_config.json"))["eos_token_id"].(float64)
	if !ok {
		return -1
	}
	return int64(v)
}

// seq2seqCase is a model of an encoder and a decoder.
type seq2seqCase struct {
	name    string
	encoder string // families
	decoder string
	config  object
	seed    uint64   // of weights that do not say one token for ever
	prompts []string // nil: the model hears
}

var (
	bartSizes = object{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
	t5Sizes   = object{"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
	wordRows  = []string{"w3 w1 w4 w1 w5", "w9 w2", "w6 w5 w3 w5 w8 w9 w7"}
)

var seq2seqCases = []seq2seqCase{
	{"t5", "t5-encoder", "t5-decoder", t5Sizes, 44, wordRows},
	{"bart", "bart-encoder/torch", "bart-decoder/torch", bartSizes, 4, wordRows},
	{"whisper", "whisper-encoder/torch", "whisper-decoder/torch", bartSizes, 18, nil},
}

const startToken = 2

// folder makes a model folder of the case as Optimum exports it, the two stages of the decoder merged.
func (c seq2seqCase) folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), c.name)
	config := object{"model_type": c.name, "is_encoder_decoder": true, "vocab_size": 64, "decoder_start_token_id": startToken, "pad_token_id": 0}
	for key, value := range c.config {
		config[key] = value
	}
	writeJSON(t, dir, "config.json", config)
	writeJSON(t, dir, "generation_config.json", object{"decoder_start_token_id": startToken, "pad_token_id": 0, "is_multilingual": false})
	vocab := map[string]int{"<pad>": 0}
	for i := 1; i < 64; i++ {
		vocab["w"+strconv.Itoa(i)] = i
	}
	writeJSON(t, dir, "tokenizer.json", wordTokenizer(vocab, object{"Regex": ` `}, "Removed", nil))
	writeJSON(t, dir, "tokenizer_config.json", object{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "clean_up_tokenization_spaces": false})
	if err := os.Mkdir(filepath.Join(dir, "onnx"), 0o777); err != nil {
		t.Fatal(err)
	}
	save(t, filepath.Join(dir, "onnx", "encoder_model.onnx"), c.encoder, testmodels.Options{Seed: c.seed}, "")
	saveMerged(t, filepath.Join(dir, "onnx", "decoder_model_merged.onnx"), c.decoder, testmodels.Options{Seed: c.seed + 1})
	return dir
}

// saveMerged writes a decoder whose two stages are the branches of an If.
func saveMerged(t *testing.T, path, family string, o testmodels.Options) {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	o.Stage = testmodels.First
	first, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	o.Stage = testmodels.Next
	next, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(testmodels.Merge(first, next))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestRuntimesTransformersEncoderDecoder generates with transformers.js from rewritten folders of an encoder and a decoder,
// whose cross attention has fewer heads too.
func TestRuntimesTransformersEncoderDecoder(t *testing.T) {
	if release != "" {
		t.Skip("for transformers.js 4 alone")
	}
	const n = 12
	for _, c := range seq2seqCases {
		t.Run(c.name, func(t *testing.T) {
			dir := c.folder(t)
			config, small := filepath.Join(t.TempDir(), "dha.yaml"), filepath.Join(t.TempDir(), "small")
			must(t, "init", "--key", "2", "--value", "1", "-o", config, filepath.Join(dir, "onnx"))
			text := must(t, "rewrite", dir, "-c", config, "-o", small, "--target", "transformersjs")
			if !strings.Contains(text, "transformers.js 4  can run it") || !strings.Contains(text, "transformers.js 3  cannot: layer 0 has 2 key heads and 1 value head") {
				t.Fatalf("what is said of the folder is\n%s", text)
			}
			heads := cacheHeads(t, filepath.Join(small, "onnx", "decoder_model_merged.onnx"))
			for name, want := range map[string]int64{"past_key_values.1.decoder.key": 2, "past_key_values.1.encoder.key": 2, "past_key_values.1.encoder.value": 1} {
				if heads[name] != want {
					t.Errorf("cache %s has %d heads, want %d", name, heads[name], want)
				}
			}
			prompts, inputs := any(c.prompts), map[string]*ort.Tensor(nil)
			if c.prompts == nil {
				prompts, inputs = sounds()
			}
			got := transformers(t, small, n, prompts)
			if inputs == nil {
				inputs = padded(got.Prompts)
			}
			start := slices.Repeat([][]int64{{startToken}}, len(got.Tokens))
			decoder, states := filepath.Join(small, "onnx", "decoder_model_merged.onnx"), encoded(t, filepath.Join(small, "onnx", "encoder_model.onnx"), inputs)
			want := expected(t, decoder, start, n, states)
			sameTokens(t, "the loop of servers", looped(t, decoder, start, n, states), want)
			for b := range want {
				want[b] = append([]int64{startToken}, want[b]...)
			}
			sameTokens(t, "transformers.js", got.Tokens, want)
			t.Log(got.Tokens)
		})
	}
}

// sounds makes features of two recordings, as Whisper's encoder of the test models takes them.
func sounds() ([][][]float32, map[string]*ort.Tensor) {
	const batch, channels, time = 2, 6, 16
	rows, flat := make([][][]float32, batch), []float32(nil)
	for b := range rows {
		for c := range channels {
			row := make([]float32, time)
			for i := range row {
				row[i] = float32((7*b+5*c+3*i)%11)/5 - 1
			}
			rows[b], flat = append(rows[b], row), append(flat, row...)
		}
	}
	return rows, map[string]*ort.Tensor{"input_features": ort.FromFloat32(flat, batch, channels, time)}
}

// padded makes the inputs of an encoder, which pads behind.
func padded(texts [][]int64) map[string]*ort.Tensor {
	longest := 0
	for _, row := range texts {
		longest = max(longest, len(row))
	}
	var ids, mask []int64
	for _, row := range texts {
		padding := make([]int64, longest-len(row))
		ids = slices.Concat(ids, row, padding)
		mask = slices.Concat(mask, slices.Repeat([]int64{1}, len(row)), padding)
	}
	return map[string]*ort.Tensor{
		"input_ids": ort.FromInt64(ids, int64(len(texts)), int64(longest)), "attention_mask": ort.FromInt64(mask, int64(len(texts)), int64(longest)),
	}
}

// encoded runs an encoder and returns what a decoder needs of it.
func encoded(t *testing.T, path string, inputs map[string]*ort.Tensor) map[string]*ort.Tensor {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	out, err := s.Run(t.Context(), inputs)
	if err != nil {
		t.Fatal(err)
	}
	fixed := map[string]*ort.Tensor{"encoder_hidden_states": out["last_hidden_state"]}
	if mask := inputs["attention_mask"]; mask != nil {
		fixed["encoder_attention_mask"] = mask
	}
	return fixed
}
