package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// parseModel builds the model of a tokenizer.json and returns its tokens.
func parseModel(b json.RawMessage) (model, map[string]int64, error) {
	var kind struct {
		Type   string
		Merges json.RawMessage
		Vocab  json.RawMessage
	}
	if err := json.Unmarshal(b, &kind); err != nil {
		return nil, nil, fmt.Errorf("model: %w", err)
	}
	if kind.Type == "" { // of files from before the type was written
		switch {
		case len(kind.Merges) > 0:
			kind.Type = "BPE"
		case len(kind.Vocab) > 0 && kind.Vocab[0] == '[':
			kind.Type = "Unigram"
		default:
			kind.Type = "WordPiece"
		}
	}
	build, ok := models[kind.Type]
	if !ok {
		return nil, nil, fmt.Errorf("model %q is not supported; have BPE, Unigram, WordLevel, WordPiece", kind.Type)
	}
	m, vocab, err := build(b)
	if err != nil {
		return nil, nil, fmt.Errorf("model %s: %w", kind.Type, err)
	}
	return m, vocab, nil
}

var models = map[string]func(json.RawMessage) (model, map[string]int64, error){
	"BPE":       newBPE,
	"Unigram":   newUnigram,
	"WordLevel": newWordLevel,
	"WordPiece": newWordPiece,
}

// bpe joins the characters of a word by a ranked list of merges (Sennrich et al. 2016, "Neural machine translation of rare
// words with subword units").
type bpe struct {
	vocab          map[string]int64
	merges         map[[2]int64]ranked
	prefix, suffix string // of characters that do not begin, and that end, a word
	unknown        int64  // -1: characters without a token are dropped
	fuseUnknown    bool   // unknown characters in a row are one token
	bytes          *byteTokens
	whole          bool // a word that is a token is not put together by merges
	marked         bool // merges do not cross the places of wordStarts at spaceMark
	known          memory[[]int64]
}

// ranked is what a merge makes.
type ranked struct {
	rank int
	id   int64
}

func newBPE(b json.RawMessage) (model, map[string]int64, error) {
	var c struct {
		Vocab        map[string]int64
		Merges       []json.RawMessage
		Prefix       string  `json:"continuing_subword_prefix"`
		Suffix       string  `json:"end_of_word_suffix"`
		Unknown      *string `json:"unk_token"`
		FuseUnknown  bool    `json:"fuse_unk"`
		ByteFallback bool    `json:"byte_fallback"`
		IgnoreMerges bool    `json:"ignore_merges"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, err
	}
	m := &bpe{vocab: c.Vocab, merges: make(map[[2]int64]ranked, len(c.Merges)), prefix: c.Prefix, suffix: c.Suffix, unknown: -1,
		fuseUnknown: c.FuseUnknown, whole: c.IgnoreMerges}
	if c.Unknown != nil {
		id, ok := c.Vocab[*c.Unknown]
		if !ok {
			return nil, nil, fmt.Errorf("unknown token %q is not in the vocabulary", *c.Unknown)
		}
		m.unknown = id
	}
	if c.ByteFallback {
		m.bytes = newByteTokens(c.Vocab)
	}
	// Characters at the places must not depend on their neighbours.
	_, m.marked = c.Vocab[spaceMark]
	m.marked = m.marked && c.Prefix == "" && c.Suffix == "" && !c.IgnoreMerges
	for rank, raw := range c.Merges {
		left, right, err := parseMerge(raw)
		if err != nil {
			return nil, nil, fmt.Errorf("merge %d: %w", rank, err)
		}
		var ids [3]int64
		for i, token := range []string{left, right, left + strings.TrimPrefix(right, c.Prefix)} {
			var ok bool
			if ids[i], ok = c.Vocab[token]; !ok {
				return nil, nil, fmt.Errorf("merge %d of %q and %q: token %q is not in the vocabulary", rank, left, right, token)
			}
		}
		m.merges[[2]int64{ids[0], ids[1]}] = ranked{rank, ids[2]}
		m.marked = m.marked && crossing(left+strings.TrimPrefix(right, c.Prefix), spaceMark) < 0
	}
	return m, c.Vocab, nil
}

// parseMerge reads `"left right"` or `["left", "right"]`.
func parseMerge(b json.RawMessage) (left, right string, err error) {
	var pair []string
	if b[0] == '[' {
		if err = json.Unmarshal(b, &pair); err == nil && len(pair) == 2 {
			return pair[0], pair[1], nil
		}
	} else {
		var text string
		if err = json.Unmarshal(b, &text); err == nil {
			if left, right, ok := strings.Cut(text, " "); ok {
				return left, right, nil
			}
		}
	}
	return "", "", fmt.Errorf("%s is no pair of tokens", b)
}

func (m *bpe) encode(ids []int64, word string) ([]int64, error) {
	if m.whole {
		if id, ok := m.vocab[word]; ok {
			return append(ids, id), nil
		}
	}
	if !m.marked {
		return append(ids, m.known.get(word, m.tokens)...), nil
	}
	for part := range wordStarts(word, spaceMark) {
		ids = append(ids, m.known.get(part, m.tokens)...)
	}
	return ids, nil
}

func (m *bpe) tokens(word string) []int64 {
	symbols := merge(m.symbols(word), m.join)
	ids := make([]int64, len(symbols))
	for i, s := range symbols {
		ids[i] = s.id
	}
	return ids
}

func (m *bpe) join(left, right symbol) (int64, float64, bool) {
	r, ok := m.merges[[2]int64{left.id, right.id}]
	return r.id, float64(r.rank), ok
}

// symbols are the characters of a word as tokens.
func (m *bpe) symbols(word string) []symbol {
	out := make([]symbol, 0, len(word))
	unknown := false // the last symbol is
	for at := 0; at < len(word); {
		_, n := utf8.DecodeRuneInString(word[at:])
		text := word[at : at+n]
		if at > 0 {
			text = m.prefix + text
		}
		if at += n; at == len(word) {
			text += m.suffix
		}
		if id, ok := m.vocab[text]; ok {
			out = append(out, symbol{id: id})
			unknown = false
			continue
		}
		if ids, ok := m.bytes.of(text); ok {
			for _, id := range ids {
				out = append(out, symbol{id: id})
			}
			unknown = false
			continue
		}
		if m.unknown >= 0 && !(unknown && m.fuseUnknown) {
			out = append(out, symbol{id: m.unknown})
			unknown = true
		}
	}
	return out
}

// byteTokens are tokens that stand for single bytes, written <0x00> to <0xFF>.
type byteTokens [256]int64

func newByteTokens(vocab map[string]int64) *byteTokens {
	var t byteTokens
	for b := range t {
		t[b] = -1
		if id, ok := vocab[fmt.Sprintf("<0x%02X>", b)]; ok {
			t[b] = id
		}
	}
	return &t
}

// of returns the tokens of the bytes of s; ok is false when one has none.
func (t *byteTokens) of(s string) (ids []int64, ok bool) {
	if t == nil {
		return nil, false
	}
	for i := range len(s) {
		if t[s[i]] < 0 {
			return nil, false
		}
		ids = append(ids, t[s[i]])
	}
	return ids, true
}

// byteOf returns the byte that a token's text <0x41> stands for.
func byteOf(token string) (byte, bool) {
	if len(token) != 6 || token[:3] != "<0x" || token[5] != '>' {
		return 0, false
	}
	var b byte
	for _, c := range []byte(token[3:5]) {
		switch {
		case c >= '0' && c <= '9':
			b = b<<4 | (c - '0')
		case c >= 'A' && c <= 'F':
			b = b<<4 | (c - 'A' + 10)
		case c >= 'a' && c <= 'f':
			b = b<<4 | (c - 'a' + 10)
		default:
			return 0, false
		}
	}
	return b, true
}
