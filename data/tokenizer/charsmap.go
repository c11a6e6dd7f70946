package tokenizer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// charsmap replaces strings as SentencePiece's compiled rules say: a trie in a double array (Darts-clone's layout), whose
// values are offsets of the replacements.
type charsmap struct {
	trie         []uint32
	replacements []byte // each ends with a zero byte
}

func readCharsmap(b []byte) (*charsmap, error) {
	if len(b) == 0 {
		return &charsmap{}, nil
	}
	if len(b) < 4 {
		return nil, fmt.Errorf("character map of %d bytes, want 4 and more", len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) || n%4 != 0 {
		return nil, fmt.Errorf("character map says that its trie takes %d bytes, has %d", n, len(b))
	}
	m := &charsmap{trie: make([]uint32, n/4), replacements: b[n:]}
	for i := range m.trie {
		m.trie[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return m, nil
}

// prefixes calls f with the length and the replacement of every rule that s begins with, the shortest first, until f
// returns false.
func (m *charsmap) prefixes(s string, f func(n int, replacement []byte) bool) {
	if len(m.trie) == 0 {
		return
	}
	offset := func(unit uint32) uint32 { return unit >> 10 << (unit & (1 << 9) >> 6) }
	at := offset(m.trie[0])
	for i := range len(s) {
		at ^= uint32(s[i])
		if s[i] == 0 || uint64(at) >= uint64(len(m.trie)) {
			return
		}
		unit := m.trie[at]
		if unit&(1<<31|0xff) != uint32(s[i]) {
			return
		}
		at ^= offset(unit)
		if unit>>8&1 == 0 {
			continue
		}
		if uint64(at) >= uint64(len(m.trie)) {
			return
		}
		value := m.trie[at] & (1<<31 - 1)
		if uint64(value) > uint64(len(m.replacements)) {
			return
		}
		text, _, _ := bytes.Cut(m.replacements[value:], []byte{0})
		if !f(i+1, text) {
			return
		}
	}
}

// longest returns the length of the longest rule that s begins with, 0 when there is none, and its replacement.
func (m *charsmap) longest(s string) (length int, replacement string) {
	m.prefixes(s, func(n int, text []byte) bool {
		length, replacement = n, string(text)
		return true
	})
	return length, replacement
}

// first is like longest for the shortest rule.
func (m *charsmap) first(s string) (length int, replacement string) {
	m.prefixes(s, func(n int, text []byte) bool {
		length, replacement = n, string(text)
		return false
	})
	return length, replacement
}

// graphemes applies the rules as the "tokenizers" library does, which differs from SentencePiece: the shortest rule at
// the beginning of a grapheme of fewer than 6 bytes replaces all of it; other graphemes are taken character by character.
func (m *charsmap) graphemes(s string) string {
	var out strings.Builder
	for state := -1; s != ""; {
		var cluster string
		cluster, s, _, state = uniseg.FirstGraphemeClusterInString(s, state)
		if len(cluster) < 6 {
			if n, text := m.first(cluster); n > 0 {
				out.WriteString(text)
				continue
			}
		}
		for cluster != "" {
			_, size := utf8.DecodeRuneInString(cluster)
			if n, text := m.first(cluster[:size]); n > 0 {
				out.WriteString(text)
			} else {
				out.WriteString(cluster[:size])
			}
			cluster = cluster[size:]
		}
	}
	return out.String()
}
