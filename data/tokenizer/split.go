package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// word is a part of a text that the model tokenizes by itself.
type word struct {
	text  string
	first bool // nothing of the text is before it
}

// preTokenizer splits a word into smaller ones; empty ones do not count.
type preTokenizer func(word) ([]word, error)

var preTokenizers map[string]func(json.RawMessage) (preTokenizer, error)

func init() { // a row for sequences refers to the table
	fixed := func(p preTokenizer) func(json.RawMessage) (preTokenizer, error) {
		return func(json.RawMessage) (preTokenizer, error) { return p, nil }
	}
	space := cutter(characters(unicode.IsSpace), removed)
	preTokenizers = map[string]func(json.RawMessage) (preTokenizer, error){
		"BertPreTokenizer":   fixed(chain(space, cutter(characters(isPunctuation), behaviors["Isolated"]))),
		"ByteLevel":          newByteLevel,
		"CharDelimiterSplit": newDelimiterSplit,
		"Digits":             newDigits,
		"Metaspace":          newMetaspace,
		"Punctuation":        newPunctuation,
		"Sequence":           newPreTokenizers,
		"Split":              newSplit,
		"Whitespace":         fixed(chain(space, cutter(characters(isWord), contiguous))),
		"WhitespaceSplit":    fixed(space),
	}
}

func chain(steps ...preTokenizer) preTokenizer {
	return func(w word) ([]word, error) {
		words := []word{w}
		for _, step := range steps {
			if step == nil {
				continue
			}
			var next []word
			for _, w := range words {
				if w.text == "" {
					continue
				}
				parts, err := step(w)
				if err != nil {
					return nil, err
				}
				next = append(next, parts...)
			}
			words = next
		}
		return words, nil
	}
}

// cutter splits where find says, and does with matches what behavior says.
func cutter(find finder, behavior func([]span) []span) preTokenizer {
	return func(w word) ([]word, error) {
		spans, err := find(w.text)
		if err != nil {
			return nil, err
		}
		spans = behavior(spans)
		words := make([]word, len(spans))
		for i, s := range spans {
			words[i] = word{w.text[s.start:s.end], w.first && s.start == 0}
		}
		return words, nil
	}
}

func newPreTokenizers(b json.RawMessage) (preTokenizer, error) {
	var c struct{ Pretokenizers []json.RawMessage }
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	steps, err := parseAll(preTokenizers, "pre-tokenizer", c.Pretokenizers)
	return chain(steps...), err
}

// gpt2 is the expression of GPT-2: contractions, letters, numbers and other characters, each with at most one space
// before it; and white space, which leaves its last character to a word that follows.
const gpt2 = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

func newByteLevel(b json.RawMessage) (preTokenizer, error) {
	c := struct {
		Prefix bool `json:"add_prefix_space"`
		Regex  bool `json:"use_regex"`
	}{Prefix: true, Regex: true}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	find, err := expression(gpt2)
	if err != nil {
		return nil, err
	}
	split := cutter(find, behaviors["Isolated"])
	return func(w word) ([]word, error) {
		if c.Prefix && !strings.HasPrefix(w.text, " ") {
			w.text = " " + w.text
		}
		words := []word{w}
		if c.Regex {
			var err error
			if words, err = split(w); err != nil {
				return nil, err
			}
		}
		for i := range words {
			words[i].text = toByteLevel(words[i].text)
		}
		return words, nil
	}, nil
}

func newMetaspace(b json.RawMessage) (preTokenizer, error) {
	c, err := parseMetaspace(b)
	if err != nil {
		return nil, err
	}
	split := cutter(literal(c.Replacement), mergedWithNext)
	return func(w word) ([]word, error) {
		w.text = strings.ReplaceAll(w.text, " ", c.Replacement)
		if !strings.HasPrefix(w.text, c.Replacement) && (c.Scheme == "always" || c.Scheme == "first" && w.first) {
			w.text = c.Replacement + w.text
		}
		if !c.Split {
			return []word{w}, nil
		}
		return split(w)
	}, nil
}

// metaspace settings serve the pre-tokenizer and the decoder.
type metaspace struct {
	Replacement string `json:"replacement"`
	Scheme      string `json:"prepend_scheme"`
	Split       bool   `json:"split"`
	Prefix      *bool  `json:"add_prefix_space"` // of older files, in place of the scheme
}

func parseMetaspace(b json.RawMessage) (metaspace, error) {
	c := metaspace{Scheme: "always", Split: true}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, err
	}
	if c.Prefix != nil && !*c.Prefix && c.Scheme == "always" {
		c.Scheme = "never"
	}
	if utf8.RuneCountInString(c.Replacement) != 1 {
		return c, fmt.Errorf("replacement %q; want one character", c.Replacement)
	}
	if !slices.Contains([]string{"always", "first", "never"}, c.Scheme) {
		return c, fmt.Errorf("prepend_scheme %q; want always, first or never", c.Scheme)
	}
	return c, nil
}

func newSplit(b json.RawMessage) (preTokenizer, error) {
	var c struct {
		Pattern  pattern
		Behavior string
		Invert   bool
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	find, err := c.Pattern.finder()
	if err != nil {
		return nil, err
	}
	behavior, err := behaviorNamed(c.Behavior)
	if err != nil {
		return nil, err
	}
	if !c.Invert {
		return cutter(find, behavior), nil
	}
	return cutter(find, func(spans []span) []span {
		for i := range spans {
			spans[i].match = !spans[i].match
		}
		return behavior(spans)
	}), nil
}

func behaviorNamed(name string) (func([]span) []span, error) {
	f, ok := behaviors[name]
	if !ok {
		return nil, fmt.Errorf("behavior %q; want %s", name, strings.Join(slices.Sorted(maps.Keys(behaviors)), ", "))
	}
	return f, nil
}

func newPunctuation(b json.RawMessage) (preTokenizer, error) {
	c := struct{ Behavior string }{"Isolated"}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	behavior, err := behaviorNamed(c.Behavior)
	return cutter(characters(isPunctuation), behavior), err
}

func newDigits(b json.RawMessage) (preTokenizer, error) {
	var c struct {
		Individual bool `json:"individual_digits"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	behavior := behaviors["Contiguous"]
	if c.Individual {
		behavior = behaviors["Isolated"]
	}
	return cutter(characters(unicode.IsNumber), behavior), nil
}

func newDelimiterSplit(b json.RawMessage) (preTokenizer, error) {
	var c struct{ Delimiter string }
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	if c.Delimiter == "" {
		return nil, errors.New("no delimiter")
	}
	return cutter(literal(c.Delimiter), removed), nil
}

// isPunctuation includes ASCII's symbols.
func isPunctuation(r rune) bool {
	return unicode.IsPunct(r) || r > ' ' && r < unicode.MaxASCII && !unicode.IsLetter(r) && !unicode.IsDigit(r)
}
