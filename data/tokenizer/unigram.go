package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"unicode/utf8"
)

// unigram finds the most likely way to put a word together from tokens (Kudo 2018, "Subword regularization").
type unigram struct {
	ids     map[string]int64
	path    lattice[float64]
	bytes   *byteTokens
	unknown int64 // -1: none
}

func newUnigram(b json.RawMessage) (model, map[string]int64, error) {
	var c struct {
		Vocab        [][]json.RawMessage
		Unknown      *int64 `json:"unk_id"`
		ByteFallback bool   `json:"byte_fallback"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, nil, err
	}
	m := &unigram{ids: make(map[string]int64, len(c.Vocab)), unknown: -1}
	if c.Unknown != nil {
		if m.unknown = *c.Unknown; m.unknown < 0 || m.unknown >= int64(len(c.Vocab)) {
			return nil, nil, fmt.Errorf("unk_id %d, the vocabulary has %d tokens", m.unknown, len(c.Vocab))
		}
	}
	scores := make(map[string]float64, len(c.Vocab))
	least := math.Inf(1)
	for i, pair := range c.Vocab {
		var text string
		var score float64
		if len(pair) != 2 || json.Unmarshal(pair[0], &text) != nil || json.Unmarshal(pair[1], &score) != nil {
			return nil, nil, fmt.Errorf("token %d is no pair of text and score", i)
		}
		m.ids[text], scores[text] = int64(i), score
		least = min(least, score)
	}
	m.path = newLattice(scores, least)
	if c.ByteFallback {
		m.bytes = newByteTokens(m.ids)
	}
	return m, m.ids, nil
}

func (m *unigram) encode(ids []int64, word string) ([]int64, error) {
	for _, p := range m.path.best(word) {
		text := word[p.start:p.end]
		if id, ok := m.ids[text]; ok {
			ids = append(ids, id)
			continue
		}
		if b, ok := m.bytes.of(text); ok {
			ids = append(ids, b...)
			continue
		}
		if m.unknown < 0 {
			return nil, errors.New("the text has characters that are not in the vocabulary, which has no token for unknown ones")
		}
		ids = append(ids, m.unknown)
	}
	return ids, nil
}

// lattice finds the path of the highest sum of scores through the tokens of a text. The precision of the scores is that of
// the implementation that is followed, since it decides ties.
type lattice[F float32 | float64] struct {
	tokens  []string // sorted: those with a common beginning are a range
	scores  []F
	unknown F // score of a character that no token begins and ends with
}

// unlikely is what an unknown character costs beyond the least likely token.
const unlikely = 10

func newLattice[F float32 | float64](scores map[string]F, least F) lattice[F] {
	l := lattice[F]{unknown: least - unlikely}
	for token := range scores {
		if token != "" {
			l.tokens = append(l.tokens, token)
		}
	}
	slices.Sort(l.tokens)
	for _, token := range l.tokens {
		l.scores = append(l.scores, scores[token])
	}
	return l
}

// part is a token of the best path, or characters in a row that no token covers.
type part struct {
	start, end int // bytes of the text
	unknown    bool
}

func (l lattice[F]) best(text string) []part {
	type node struct {
		score   F
		start   int // of the token that ends here, -1 when none does yet
		unknown bool
	}
	nodes := make([]node, len(text)+1)
	for i := range nodes {
		nodes[i].start = -1
	}
	reach := func(start, end int, score F, unknown bool) {
		if n := &nodes[end]; n.start < 0 || score > n.score {
			*n = node{score, start, unknown}
		}
	}
	for at := 0; at < len(text); {
		_, size := utf8.DecodeRuneInString(text[at:])
		single := false
		lo, hi := 0, len(l.tokens)
		for n := 0; at+n < len(text); n++ {
			// Tokens lo to hi begin with the n bytes from at; keep those that go on like the text.
			c := text[at+n]
			lo += sort.Search(hi-lo, func(i int) bool { t := l.tokens[lo+i]; return len(t) > n && t[n] >= c })
			hi = lo + sort.Search(hi-lo, func(i int) bool { t := l.tokens[lo+i]; return t[n] > c })
			if lo == hi {
				break
			}
			if len(l.tokens[lo]) == n+1 {
				reach(at, at+n+1, l.scores[lo]+nodes[at].score, false)
				single = single || n+1 == size
			}
		}
		if !single {
			reach(at, at+size, l.unknown+nodes[at].score, true)
		}
		at += size
	}
	var out []part
	for end := len(text); end > 0; end = nodes[end].start {
		n := nodes[end]
		if last := len(out) - 1; n.unknown && last >= 0 && out[last].unknown {
			out[last].start = n.start
			continue
		}
		out = append(out, part{n.start, end, n.unknown})
	}
	slices.Reverse(out)
	return out
}
