package tokenizer

import (
	"strings"
)

// byteRunes are the characters that byte-level BPE writes for bytes: those that print in Latin-1 for themselves, the
// others as the characters from U+0100 on, in order (GPT-2's bytes_to_unicode). runeBytes is the inverse.
var byteRunes, runeBytes = func() (to [256]rune, from map[rune]byte) {
	from = make(map[rune]byte, 256)
	next := rune(256)
	for b := range 256 {
		to[b] = rune(b)
		if b <= ' ' || b >= 0x7f && b <= 0xa0 || b == 0xad {
			to[b] = next
			next++
		}
		from[to[b]] = byte(b)
	}
	return to, from
}()

func toByteLevel(s string) string {
	var out strings.Builder
	out.Grow(len(s))
	for i := range len(s) {
		out.WriteRune(byteRunes[s[i]])
	}
	return out.String()
}

// fromByteLevel is the inverse for text that toByteLevel made, and leaves other text as it is.
func fromByteLevel(s string) string {
	out := make([]byte, 0, len(s))
	for _, r := range s {
		b, ok := runeBytes[r]
		if !ok {
			return s
		}
		out = append(out, b)
	}
	return string(out)
}
