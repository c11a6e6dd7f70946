package tokenizer

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// sentencePiece is a SentencePiece model of type unigram or BPE, as version 0.1.97 of the library encodes with it.
type sentencePiece struct {
	pieces []piece
	rules  *charsmap
	model  interface {
		encode(text string) []piecePart
	}
	defined                     *added // user-defined pieces, which nothing splits or changes
	bytes                       *byteTokens
	unknown                     int64
	before                      []int64
	dummyPrefix, collapseSpaces bool // put a space in front; drop spaces at the ends and repeated ones
	escapeSpaces, spaceAsSuffix bool // write ▁ for a space; the space that is put in front stands at the end
}

// piece is an entry of a SentencePiece vocabulary.
type piece struct {
	text  string
	score float32
	kind  pieceKind
}

// pieceKind has the numbers of the format.
type pieceKind int

const (
	normalPiece pieceKind = iota + 1
	unknownPiece
	controlPiece
	definedPiece // by the user
	unusedPiece  // a step of merges, no token
	bytePiece
)

// piecePart is a part of a text with its token, -1 when it has none.
type piecePart struct {
	text string
	id   int64
}

// spaceMark stands for a space.
const spaceMark = "▁"

func readSentencePiece(b []byte) (Tokenizer, error) {
	t := &sentencePiece{unknown: -1, defined: &added{}, dummyPrefix: true, collapseSpaces: true, escapeSpaces: true}
	trainer := struct {
		kind         uint64
		byteFallback bool
		bos          int64
	}{kind: 1, bos: 1}
	var rules []byte
	err := fields(b, func(number protowire.Number, value field) error {
		switch number {
		case 1:
			p, err := readPiece(value.bytes)
			t.pieces = append(t.pieces, p)
			return err
		case 2:
			return fields(value.bytes, func(number protowire.Number, value field) error {
				switch number {
				case 3:
					trainer.kind = value.number
				case 24:
					t.spaceAsSuffix = value.number != 0
				case 35:
					trainer.byteFallback = value.number != 0
				case 41:
					trainer.bos = int64(int32(value.number))
				}
				return nil
			})
		case 3:
			return fields(value.bytes, func(number protowire.Number, value field) error {
				switch number {
				case 2:
					rules = value.bytes
				case 3:
					t.dummyPrefix = value.number != 0
				case 4:
					t.collapseSpaces = value.number != 0
				case 5:
					t.escapeSpaces = value.number != 0
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("it is no SentencePiece model: %w; want %s", err, kinds)
	}
	if len(t.pieces) == 0 {
		return nil, errors.New("it has no pieces; want " + kinds)
	}
	if t.rules, err = readCharsmap(rules); err != nil {
		return nil, err
	}
	all := make(map[string]int64, len(t.pieces))
	found := map[string]int64{} // in text
	for id, p := range t.pieces {
		if p.text == "" {
			return nil, fmt.Errorf("piece %d has no text", id)
		}
		if _, ok := all[p.text]; ok {
			return nil, fmt.Errorf("piece %d: %q is there twice", id, p.text)
		}
		all[p.text] = int64(id)
		switch p.kind {
		case normalPiece, unusedPiece:
			found[p.text] = int64(id)
		case definedPiece:
			found[p.text] = int64(id)
			t.defined.add(addedToken{ID: int64(id), Content: p.text})
		case unknownPiece:
			if t.unknown >= 0 {
				return nil, fmt.Errorf("pieces %d and %d are both for what is unknown", t.unknown, id)
			}
			t.unknown = int64(id)
		}
	}
	if t.unknown < 0 {
		return nil, errors.New("no piece is for what is unknown")
	}
	if trainer.byteFallback {
		t.bytes = newByteTokens(all)
	}
	switch trainer.kind {
	case 1:
		t.model = newPieceUnigram(t.pieces, found)
	case 2:
		t.model = newPieceBPE(t.pieces, found, t.defined, t.space())
	default:
		return nil, fmt.Errorf("its model type is %d; have 1 (unigram) and 2 (BPE)", trainer.kind)
	}
	if trainer.bos >= 0 && trainer.bos < int64(len(t.pieces)) && t.pieces[trainer.bos].kind == controlPiece {
		t.before = []int64{trainer.bos}
	}
	return t, nil
}

func readPiece(b []byte) (piece, error) {
	p := piece{kind: normalPiece}
	err := fields(b, func(number protowire.Number, value field) error {
		switch number {
		case 1:
			p.text = string(value.bytes)
		case 2:
			p.score = math.Float32frombits(uint32(value.number))
		case 3:
			p.kind = pieceKind(value.number)
		}
		return nil
	})
	if p.score != p.score {
		return p, fmt.Errorf("piece %q has no score but NaN", p.text)
	}
	return p, err
}

// field is the value of a field of a protobuf message: a number, or bytes.
type field struct {
	number uint64
	bytes  []byte
}

// fields calls f with every field of a message.
func fields(b []byte, f func(protowire.Number, field) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var value field
		switch kind {
		case protowire.VarintType:
			value.number, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var x uint32
			x, n = protowire.ConsumeFixed32(b)
			value.number = uint64(x)
		case protowire.BytesType:
			value.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, kind, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(number, value); err != nil {
			return err
		}
	}
	return nil
}

func (t *sentencePiece) Frame() (before, after []int64) { return t.before, nil }

func (t *sentencePiece) Size() int { return len(t.pieces) }

func (t *sentencePiece) Encode(text string) ([]int64, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("the text is not UTF-8")
	}
	var ids []int64
	unknown := false // the last token is
	for _, p := range t.model.encode(t.normalize(text)) {
		if p.id >= 0 && p.id != t.unknown {
			ids = append(ids, p.id)
			unknown = false
			continue
		}
		if b, ok := t.bytes.of(p.text); ok {
			ids = append(ids, b...)
			unknown = false
			continue
		}
		if !unknown {
			ids = append(ids, t.unknown)
		}
		unknown = true
	}
	return ids, nil
}

// normalize applies the rules and writes spaces as the pieces have them.
func (t *sentencePiece) normalize(text string) string {
	space := t.space()
	var out strings.Builder
	written := false
	afterSpace := t.collapseSpaces
	for text != "" {
		n, s := t.next(text)
		text = text[n:]
		if afterSpace {
			s = strings.TrimLeft(s, " ")
		}
		if s == "" {
			continue
		}
		if !written && t.dummyPrefix && !t.spaceAsSuffix {
			out.WriteString(space)
		}
		written = true
		out.WriteString(strings.ReplaceAll(s, " ", space))
		afterSpace = t.collapseSpaces && strings.HasSuffix(s, " ")
	}
	s := out.String()
	if t.collapseSpaces {
		for strings.HasSuffix(s, space) {
			s = strings.TrimSuffix(s, space)
		}
	}
	if written && t.dummyPrefix && t.spaceAsSuffix {
		s += space
	}
	return s
}

// space is how the pieces write a space.
func (t *sentencePiece) space() string {
	if t.escapeSpaces {
		return spaceMark
	}
	return " "
}

// next returns the length of what the rules take from the beginning of a text, and what they make of it.
func (t *sentencePiece) next(text string) (int, string) {
	if token, ok := t.defined.match(text); ok {
		return len(token.Content), token.Content
	}
	if n, s := t.rules.longest(text); n > 0 {
		return n, s
	}
	_, n := utf8.DecodeRuneInString(text)
	return n, text[:n]
}

func (t *sentencePiece) Decode(ids []int64) string {
	var out strings.Builder
	seen := false // the space that was put in front
	for _, id := range ids {
		if id < 0 || id >= int64(len(t.pieces)) {
			fmt.Fprintf(&out, "⟨%d⟩", id)
			continue
		}
		p := t.pieces[id]
		switch b, ok := byteOf(p.text); {
		case p.kind == controlPiece:
		case p.kind == unknownPiece:
			out.WriteString(" \u2047 ")
		case p.kind == bytePiece && ok:
			out.WriteByte(b)
		default:
			text := p.text
			if out.Len() == 0 && !seen && (t.dummyPrefix || t.collapseSpaces) {
				text = strings.TrimPrefix(text, t.space())
				seen = len(text) < len(p.text) && !t.collapseSpaces // then there may be more that are not the text's
			}
			out.WriteString(strings.ReplaceAll(text, t.space(), " "))
		}
	}
	return strings.ToValidUTF8(out.String(), "\ufffd")
}

// pieceUnigram is the unigram model over pieces.
type pieceUnigram struct {
	path lattice[float32]
	ids  map[string]int64
}

func newPieceUnigram(pieces []piece, found map[string]int64) *pieceUnigram {
	least, most := float32(math.Inf(1)), float32(math.Inf(-1))
	for _, p := range pieces {
		if p.kind == normalPiece {
			least, most = min(least, p.score), max(most, p.score)
		}
	}
	scores := make(map[string]float32, len(found))
	for text, id := range found {
		switch p := pieces[id]; p.kind {
		case unusedPiece:
		case definedPiece:
			scores[text] = float32(len(text))*most - 0.1
		default:
			scores[text] = p.score
		}
	}
	return &pieceUnigram{newLattice(scores, least), found}
}

func (m *pieceUnigram) encode(text string) []piecePart {
	var out []piecePart
	for _, p := range m.path.best(text) {
		part := piecePart{text[p.start:p.end], -1}
		if id, ok := m.ids[part.text]; ok && !p.unknown {
			part.id = id
		}
		out = append(out, part)
	}
	return out
}

// pieceBPE joins characters to pieces, the pair that makes the piece of the best score first.
type pieceBPE struct {
	pieces  []piece
	ids     map[string]int64
	defined *added
	mark    string // of the beginning of words, "" when pieces cross it
	known   memory[[]piecePart]
}

func newPieceBPE(pieces []piece, ids map[string]int64, defined *added, mark string) *pieceBPE {
	m := &pieceBPE{pieces: pieces, ids: ids, defined: defined, mark: mark}
	for text := range ids {
		if crossing(text, mark) >= 0 {
			m.mark = ""
		}
	}
	return m
}

func (m *pieceBPE) encode(text string) []piecePart {
	if m.mark == "" {
		return m.parts(text)
	}
	var out []piecePart
	for word := range wordStarts(text, m.mark) {
		out = append(out, m.known.get(word, m.parts)...)
	}
	return out
}

func (m *pieceBPE) parts(text string) []piecePart {
	symbols := make([]symbol, 0, len(text))
	for at := 0; at < len(text); {
		s := symbol{id: -1, start: at}
		if token, ok := m.defined.match(text[at:]); ok {
			s.id, s.end, s.frozen = token.ID, at+len(token.Content), true
		} else {
			_, n := utf8.DecodeRuneInString(text[at:])
			s.end = at + n
			if id, ok := m.ids[text[at:s.end]]; ok {
				s.id = id
			}
		}
		symbols = append(symbols, s)
		at = s.end
	}
	halves := map[int64]int{} // where the pieces that are only steps of merges were joined
	symbols = merge(symbols, func(l, r symbol) (int64, float64, bool) {
		id, ok := m.ids[text[l.start:r.end]]
		if !ok {
			return 0, 0, false
		}
		if m.pieces[id].kind == unusedPiece {
			halves[id] = l.end - l.start
		}
		return id, -float64(m.pieces[id].score), true
	})
	var out []piecePart
	var add func(start, end int)
	add = func(start, end int) {
		id, ok := m.ids[text[start:end]]
		if !ok {
			id = -1
		}
		if half, ok := halves[id]; ok && half < end-start {
			add(start, start+half)
			add(start+half, end)
			return
		}
		out = append(out, piecePart{text[start:end], id})
	}
	for _, s := range symbols {
		add(s.start, s.end)
	}
	return out
}
