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

// vocabulary is a list of tokens, found in text from left to right, the longest first: what a model of characters has.
type vocabulary struct {
	ids     map[string]int64
	texts   map[int64]string
	longest int // bytes of the longest token
	size    int
}

// marks are tokens that show a vocabulary to be only a part of a tokenizer: its tokens are not found by their texts.
var marks = []string{"Ġ", "Ġthe", "the</w>", "##s"}

func readVocabulary(file map[string]json.RawMessage) (Tokenizer, error) {
	for _, key := range []string{"tokenizer_class", "add_bos_token", "added_tokens_decoder", "bos_token"} {
		if _, ok := file[key]; ok {
			return nil, fmt.Errorf("it has settings (%q) but no tokens; want the tokenizer.json beside it", key)
		}
	}
	for _, token := range marks {
		if _, ok := file[token]; ok {
			return nil, fmt.Errorf("it is only the vocabulary of a tokenizer that also has rules (token %q shows so); "+
				"want its tokenizer.json", token)
		}
	}
	if len(file) == 0 {
		return nil, errors.New("it has no tokens; want " + kinds)
	}
	v := &vocabulary{ids: make(map[string]int64, len(file)), texts: make(map[int64]string, len(file))}
	for _, text := range slices.Sorted(maps.Keys(file)) { // in order, so that messages are the same every time
		raw := file[text]
		var id int64
		if err := json.Unmarshal(raw, &id); err != nil {
			return nil, fmt.Errorf("%q is %.40s, no token id; want %s", text, raw, kinds)
		}
		if text == "" {
			return nil, fmt.Errorf("token %d has no text", id)
		}
		if id < 0 || id > maxID {
			return nil, fmt.Errorf("token %q has id %d; want 0 to %d", text, id, maxID)
		}
		if other, ok := v.texts[id]; ok {
			return nil, fmt.Errorf("%q and %q are both token %d", other, text, id)
		}
		v.ids[text], v.texts[id] = id, text
		v.longest = max(v.longest, len(text))
		v.size = max(v.size, int(id)+1)
	}
	return v, nil
}

func (v *vocabulary) Encode(text string) ([]int64, error) {
	out := make([]int64, 0, len(text))
	for at := 0; at < len(text); {
		n := min(v.longest, len(text)-at)
		for ; n > 0; n-- {
			if id, ok := v.ids[text[at:at+n]]; ok {
				out = append(out, id)
				break
			}
		}
		if n == 0 {
			r, _ := utf8.DecodeRuneInString(text[at:])
			return nil, fmt.Errorf("byte %d of the text is in no token: the vocabulary has nothing that begins with %q there", at, r)
		}
		at += n
	}
	return out, nil
}

func (v *vocabulary) Decode(ids []int64) string {
	var out strings.Builder
	for _, id := range ids {
		if text, ok := v.texts[id]; ok {
			out.WriteString(text)
		} else {
			fmt.Fprintf(&out, "⟨%d⟩", id)
		}
	}
	return out.String()
}

func (v *vocabulary) Frame() (before, after []int64) { return nil, nil }

func (v *vocabulary) Size() int { return v.size }
