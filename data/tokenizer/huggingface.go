package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// huggingFace is the pipeline of a tokenizer.json: added tokens are cut out of the text, the rest is normalized, split
// into words, and each word is tokenized by the model. It follows version 0.22 of the "tokenizers" library.
type huggingFace struct {
	plain, normalized added // tokens that are looked for before and after normalization
	normalize         normalizer
	split             preTokenizer
	model             model
	decode            decoder
	before, after     []int64

	texts map[int64]string
	size  int
}

// model tokenizes a word, appending to ids.
type model interface {
	encode(ids []int64, word string) ([]int64, error)
}

func readHuggingFace(b []byte) (Tokenizer, error) {
	var file struct {
		AddedTokens   []addedToken    `json:"added_tokens"`
		Normalizer    json.RawMessage `json:"normalizer"`
		PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
		Model         json.RawMessage `json:"model"`
		PostProcessor json.RawMessage `json:"post_processor"`
		Decoder       json.RawMessage `json:"decoder"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, err
	}
	t := &huggingFace{}
	var err error
	if t.normalize, err = parse(normalizers, "normalizer", file.Normalizer); err != nil {
		return nil, err
	}
	if t.split, err = parse(preTokenizers, "pre-tokenizer", file.PreTokenizer); err != nil {
		return nil, err
	}
	var vocab map[string]int64
	if t.model, vocab, err = parseModel(file.Model); err != nil {
		return nil, err
	}
	f, err := parse(postProcessors, "post-processor", file.PostProcessor)
	if err != nil {
		return nil, err
	}
	t.before, t.after = f.before, f.after
	if t.decode, err = parse(decoders, "decoder", file.Decoder); err != nil {
		return nil, err
	}
	t.texts = make(map[int64]string, len(vocab))
	for text, id := range vocab {
		t.texts[id] = text
	}
	for _, a := range file.AddedTokens {
		if a.Content == "" {
			continue
		}
		if id, ok := vocab[a.Content]; ok {
			a.ID = id
		}
		t.texts[a.ID] = a.Content
		if !a.Normalized {
			t.plain.add(a)
			continue
		}
		if t.normalize != nil {
			if a.Content, err = t.normalize(a.Content); err != nil {
				return nil, err
			}
		}
		t.normalized.add(a)
	}
	for id := range t.texts {
		if id < 0 || id > maxID {
			return nil, fmt.Errorf("token %q has id %d; want 0 to %d", t.texts[id], id, maxID)
		}
		t.size = max(t.size, int(id)+1)
	}
	for _, id := range slices.Concat(t.before, t.after) {
		if id < 0 || id > maxID {
			return nil, fmt.Errorf("post-processor: token id %d; want 0 to %d", id, maxID)
		}
		t.size = max(t.size, int(id)+1)
	}
	if t.size == 0 {
		return nil, errors.New("it has no tokens")
	}
	return t, nil
}

// parse builds the component that a JSON object describes, by its "type"; the zero value for null.
func parse[T any](table map[string]func(json.RawMessage) (T, error), what string, b json.RawMessage) (T, error) {
	var zero T
	if len(b) == 0 || string(b) == "null" {
		return zero, nil
	}
	var kind struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(b, &kind); err != nil {
		return zero, fmt.Errorf("%s: %w", what, err)
	}
	build, ok := table[kind.Type]
	if !ok {
		return zero, fmt.Errorf("%s %q is not supported; have %s", what, kind.Type,
			strings.Join(slices.Sorted(maps.Keys(table)), ", "))
	}
	c, err := build(b)
	if err != nil {
		return zero, fmt.Errorf("%s %s: %w", what, kind.Type, err)
	}
	return c, nil
}

// parseAll builds the components of a list.
func parseAll[T any](table map[string]func(json.RawMessage) (T, error), what string, list []json.RawMessage) ([]T, error) {
	out := make([]T, len(list))
	for i, b := range list {
		var err error
		if out[i], err = parse(table, what, b); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (t *huggingFace) Frame() (before, after []int64) { return t.before, t.after }

func (t *huggingFace) Size() int { return t.size }

func (t *huggingFace) Encode(text string) (ids []int64, err error) {
	defer func() {
		if r := recover(); r != nil {
			ids, err = nil, fmt.Errorf("the tokenizer's rules do not work on this text: %v", r)
		}
	}()
	if !utf8.ValidString(text) {
		return nil, errors.New("the text is not UTF-8")
	}
	for chunk := range t.plain.cut(text) {
		if chunk.token >= 0 {
			ids = append(ids, chunk.token)
			continue
		}
		part := chunk.text
		if t.normalize != nil {
			if part, err = t.normalize(part); err != nil {
				return nil, fmt.Errorf("normalizer: %w", err)
			}
		}
		for inner := range t.normalized.cut(part) {
			if inner.token >= 0 {
				ids = append(ids, inner.token)
				continue
			}
			words := []word{{inner.text, chunk.at == 0 && inner.at == 0}}
			if t.split != nil {
				if words, err = t.split(words[0]); err != nil {
					return nil, fmt.Errorf("pre-tokenizer: %w", err)
				}
			}
			for _, w := range words {
				if w.text == "" {
					continue
				}
				if ids, err = t.model.encode(ids, w.text); err != nil {
					return nil, err
				}
			}
		}
	}
	return ids, nil
}

func (t *huggingFace) Decode(ids []int64) (text string) {
	tokens := make([]string, len(ids))
	for i, id := range ids {
		var ok bool
		if tokens[i], ok = t.texts[id]; !ok {
			tokens[i] = fmt.Sprintf("⟨%d⟩", id)
		}
	}
	if t.decode == nil {
		return strings.Join(tokens, " ")
	}
	return strings.Join(t.decode(tokens), "")
}
