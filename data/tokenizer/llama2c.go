package tokenizer

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Token ids that llama2.c fixes: 0 unknown, 1 and 2 begin and end, then the 256 bytes.
const (
	llama2cBOS   = 1
	llama2cBytes = 3
)

// readLlama2C reads a tokenizer of llama2.c: int32 length of the longest token, then per token float32 score, int32
// length, bytes. It is a SentencePiece model whose pieces have spaces for spaceMark.
func readLlama2C(b []byte) (Tokenizer, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%d bytes, want a header of 4", len(b))
	}
	t := &sentencePiece{unknown: 0, before: []int64{llama2cBOS}, dummyPrefix: true, rules: &charsmap{}, defined: &added{},
		bytes: &byteTokens{}}
	found := map[string]int64{}
	for rest := b[4:]; len(rest) > 0; {
		id := int64(len(t.pieces))
		if len(rest) < 8 {
			return nil, fmt.Errorf("llama2.c token %d: %d bytes left, want a score and a length", id, len(rest))
		}
		p := piece{score: math.Float32frombits(binary.LittleEndian.Uint32(rest)), kind: normalPiece}
		n := binary.LittleEndian.Uint32(rest[4:])
		rest = rest[8:]
		if uint64(n) > uint64(len(rest)) {
			return nil, fmt.Errorf("llama2.c token %d: length %d, %d bytes left", id, n, len(rest))
		}
		if p.score != p.score {
			return nil, fmt.Errorf("llama2.c token %d: its score is NaN", id)
		}
		p.text, rest = string(rest[:n]), rest[n:]
		switch {
		case id == 0:
			p.kind = unknownPiece
		case id < llama2cBytes:
			p.kind = controlPiece
		case id < llama2cBytes+256:
			p.kind = bytePiece
			t.bytes[id-llama2cBytes] = id
		default:
			if _, ok := found[p.text]; !ok && p.text != "" {
				found[p.text] = id
			}
		}
		t.pieces = append(t.pieces, p)
	}
	if len(t.pieces) < llama2cBytes+256 {
		return nil, fmt.Errorf("it has %d llama2.c tokens, want at least the 3 special ones and 256 bytes", len(t.pieces))
	}
	t.model = newPieceBPE(t.pieces, found, t.defined, t.space())
	return t, nil
}
