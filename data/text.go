package data

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"onnx-dha/data/tokenizer"
)

func readText(path string, o Options) (*Set, error) {
	if o.Tokenizer == "" {
		return nil, errors.New("it is read as text, which needs a tokenizer")
	}
	t, err := tokenizer.Open(o.Tokenizer)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(b)
	if at := invalid(text); at >= 0 {
		return nil, fmt.Errorf("it is read as text, but byte %d (%#02x) is not UTF-8", at, text[at])
	}
	docs, err := documents(text, o.Separator, t)
	if err != nil {
		return nil, err
	}
	c := cutting{length: o.SeqLen}
	if c.length == 0 {
		c.length = DefaultSeqLen
	}
	if !o.Bare {
		c.before, c.after = t.Frame()
	}
	s := &Set{tokens: true, tokenizer: t}
	s.train, s.heldOut, err = c.cut(docs, o)
	return s, err
}

// invalid returns where text stops being UTF-8, or -1.
func invalid(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for at, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[at:], string(utf8.RuneError)) {
			return at
		}
	}
	return -1
}

// documents splits text at the separator and encodes the parts that are not blank.
func documents(text, separator string, t Tokenizer) ([]document, error) {
	if separator == "" || !strings.Contains(text, separator) {
		ids, err := t.Encode(text)
		return []document{{"", ids}}, err
	}
	var docs []document
	number := 0
	for part := range strings.SplitSeq(text, separator) {
		number++
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		ids, err := t.Encode(part)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", number, err)
		}
		docs = append(docs, document{fmt.Sprintf("document %d", number), ids})
	}
	return docs, nil
}
