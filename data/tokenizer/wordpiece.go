package tokenizer

import (
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// wordPiece cuts a word into the longest tokens from left to right (Wu et al. 2016, "Google's neural machine translation
// system", as in BERT); a word that cannot be cut is one unknown token.
type wordPiece struct {
	vocab    map[string]int64
	prefix   string // of tokens that do not begin a word
	unknown  int64
	longest  int // characters of a word; longer ones are unknown
	maxToken int // bytes of the longest token
}

func newWordPiece(b json.RawMessage) (model, map[string]int64, error) {
	c := struct {
		Vocab   map[string]int64
		Prefix  string `json:"continuing_subword_prefix"`
		Unknown string `json:"unk_token"`
		Longest int    `json:"max_input_chars_per_word"`
	}{Prefix: "##", Unknown: "[UNK]", Longest: 100}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, err
	}
	m := &wordPiece{vocab: c.Vocab, prefix: c.Prefix, longest: c.Longest}
	for token := range c.Vocab {
		m.maxToken = max(m.maxToken, len(token))
	}
	var err error
	m.unknown, err = lookup(c.Vocab, c.Unknown)
	return m, c.Vocab, err
}

func lookup(vocab map[string]int64, unknown string) (int64, error) {
	id, ok := vocab[unknown]
	if !ok {
		return 0, fmt.Errorf("unknown token %q is not in the vocabulary", unknown)
	}
	return id, nil
}

func (m *wordPiece) encode(ids []int64, word string) ([]int64, error) {
	if utf8.RuneCountInString(word) > m.longest {
		return append(ids, m.unknown), nil
	}
	from := len(ids)
	for at := 0; at < len(word); {
		prefix := ""
		if at > 0 {
			prefix = m.prefix
		}
		end := min(len(word), at+m.maxToken)
		for ; end > at; end-- {
			if id, ok := m.vocab[prefix+word[at:end]]; ok {
				ids = append(ids, id)
				break
			}
		}
		if end == at {
			return append(ids[:from], m.unknown), nil
		}
		at = end
	}
	return ids, nil
}

// wordLevel has a token for each word.
type wordLevel struct {
	vocab   map[string]int64
	unknown int64
}

func newWordLevel(b json.RawMessage) (model, map[string]int64, error) {
	c := struct {
		Vocab   map[string]int64
		Unknown string `json:"unk_token"`
	}{Unknown: "<unk>"}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, err
	}
	m := &wordLevel{vocab: c.Vocab, unknown: -1}
	if id, ok := c.Vocab[c.Unknown]; ok {
		m.unknown = id
	}
	return m, c.Vocab, nil
}

func (m *wordLevel) encode(ids []int64, word string) ([]int64, error) {
	id, ok := m.vocab[word]
	if !ok {
		if id = m.unknown; id < 0 {
			return nil, fmt.Errorf("the vocabulary has neither the word %q nor a token for unknown words", word)
		}
	}
	return append(ids, id), nil
}
