package testmodels

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Llama2CTokenizer is the tokenizer of a llama2.c checkpoint: byte-pair merges by best score, bytes as a fallback.
type Llama2CTokenizer struct {
	tokens []string
	scores []float32
	ids    map[string]int
}

// Token numbers that the format fixes: 0 unknown, 1 and 2 begin and end, then the 256 bytes.
const (
	llama2cBOS   = 1
	llama2cBytes = 3
)

// LoadLlama2CTokenizer reads a tokenizer file: int32 length of the longest token, then per token float32 score, int32
// length, bytes.
func LoadLlama2CTokenizer(path string) (*Llama2CTokenizer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := parseLlama2CTokenizer(data)
	if err != nil {
		return nil, fmt.Errorf("llama2.c tokenizer %s: %w", path, err)
	}
	return t, nil
}

func parseLlama2CTokenizer(data []byte) (*Llama2CTokenizer, error) {
	if len(data) < 4 {
		return nil, fmt.Errorf("%d bytes, want a header of 4", len(data))
	}
	t := &Llama2CTokenizer{ids: map[string]int{}}
	for rest := data[4:]; len(rest) > 0; {
		if len(rest) < 8 {
			return nil, fmt.Errorf("token %d: %d bytes left, want a score and a length", len(t.tokens), len(rest))
		}
		score, n := math.Float32frombits(binary.LittleEndian.Uint32(rest)), binary.LittleEndian.Uint32(rest[4:])
		rest = rest[8:]
		if uint64(n) > uint64(len(rest)) {
			return nil, fmt.Errorf("token %d: length %d, %d bytes left", len(t.tokens), n, len(rest))
		}
		text := string(rest[:n])
		rest = rest[n:]
		if _, ok := t.ids[text]; !ok {
			t.ids[text] = len(t.tokens)
		}
		t.tokens = append(t.tokens, text)
		t.scores = append(t.scores, score)
	}
	if len(t.tokens) < llama2cBytes+256 {
		return nil, fmt.Errorf("%d tokens, want at least the 3 special ones and 256 bytes", len(t.tokens))
	}
	return t, nil
}

// Encode returns the tokens of text after the begin token. A space is put in front, as SentencePiece does.
func (t *Llama2CTokenizer) Encode(text string) []int {
	out := []int{llama2cBOS}
	if text == "" {
		return out
	}
	for s := " " + text; s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		if id, ok := t.ids[s[:n]]; ok && r != utf8.RuneError {
			out = append(out, id)
		} else {
			for _, b := range []byte(s[:n]) {
				out = append(out, llama2cBytes+int(b))
			}
		}
		s = s[n:]
	}
	for {
		best, at, id := float32(math.Inf(-1)), -1, 0
		for i := 1; i+1 < len(out); i++ { // the begin token does not merge
			if joined, ok := t.ids[t.tokens[out[i]]+t.tokens[out[i+1]]]; ok && t.scores[joined] > best {
				best, at, id = t.scores[joined], i, joined
			}
		}
		if at < 0 {
			return out
		}
		out[at] = id
		out = append(out[:at+1], out[at+2:]...)
	}
}

// Decode returns the text of tokens; numbers outside the vocabulary give nothing.
func (t *Llama2CTokenizer) Decode(tokens []int) string {
	var b strings.Builder
	previous := -1
	for _, id := range tokens {
		if id < 0 || id >= len(t.tokens) {
			continue
		}
		piece := t.tokens[id]
		if previous == llama2cBOS {
			piece = strings.TrimPrefix(piece, " ")
		}
		if len(piece) == 6 && strings.HasPrefix(piece, "<0x") && piece[5] == '>' {
			if v, err := strconv.ParseUint(piece[3:5], 16, 8); err == nil {
				piece = string([]byte{byte(v)})
			}
		}
		if id >= llama2cBytes {
			b.WriteString(piece)
		}
		previous = id
	}
	return b.String()
}
