package tokenizer

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// decoder turns the texts of tokens into the parts of a text.
type decoder func(tokens []string) []string

var decoders map[string]func(json.RawMessage) (decoder, error)

func init() { // a row for sequences refers to the table
	decoders = map[string]func(json.RawMessage) (decoder, error){
		"BPEDecoder":   newSuffixDecoder,
		"ByteFallback": func(json.RawMessage) (decoder, error) { return joinBytes, nil },
		"ByteLevel":    func(json.RawMessage) (decoder, error) { return decodeByteLevel, nil },
		"Fuse": func(json.RawMessage) (decoder, error) {
			return func(tokens []string) []string { return []string{strings.Join(tokens, "")} }, nil
		},
		"Metaspace": newMetaspaceDecoder,
		"Replace":   newReplaceDecoder,
		"Sequence":  newDecoders,
		"Strip":     newStripDecoder,
		"WordPiece": newWordPieceDecoder,
	}
}

func newDecoders(b json.RawMessage) (decoder, error) {
	var c struct{ Decoders []json.RawMessage }
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	steps, err := parseAll(decoders, "decoder", c.Decoders)
	return func(tokens []string) []string {
		for _, step := range steps {
			if step != nil {
				tokens = step(tokens)
			}
		}
		return tokens
	}, err
}

// each makes a decoder of a function of a token and its index.
func each(f func(i int, token string) string) decoder {
	return func(tokens []string) []string {
		out := make([]string, len(tokens))
		for i, t := range tokens {
			out[i] = f(i, t)
		}
		return out
	}
}

// decodeByteLevel joins the bytes of the tokens first, because characters may be spread over several.
func decodeByteLevel(tokens []string) []string {
	var out strings.Builder
	for _, t := range tokens {
		out.WriteString(fromByteLevel(t))
	}
	return []string{strings.ToValidUTF8(out.String(), "\ufffd")}
}

// joinBytes turns runs of tokens like <0x41> into the characters that their bytes are, or one U+FFFD a byte.
func joinBytes(tokens []string) []string {
	var out []string
	var run []byte
	flush := func() {
		switch {
		case len(run) == 0:
		case utf8.Valid(run):
			out = append(out, string(run))
		default:
			for range run {
				out = append(out, "\ufffd")
			}
		}
		run = nil
	}
	for _, t := range tokens {
		if b, ok := byteOf(t); ok {
			run = append(run, b)
			continue
		}
		flush()
		out = append(out, t)
	}
	flush()
	return out
}

func newMetaspaceDecoder(b json.RawMessage) (decoder, error) {
	c, err := parseMetaspace(b)
	return each(func(i int, token string) string {
		if i == 0 && c.Scheme != "never" {
			return strings.ReplaceAll(token, c.Replacement, "")
		}
		return strings.ReplaceAll(token, c.Replacement, " ")
	}), err
}

func newReplaceDecoder(b json.RawMessage) (decoder, error) {
	replace, err := newReplace(b)
	return each(func(_ int, token string) string {
		if s, err := replace(token); err == nil {
			return s
		}
		return token
	}), err
}

func newStripDecoder(b json.RawMessage) (decoder, error) {
	var c struct {
		Content     string
		Start, Stop int
	}
	err := json.Unmarshal(b, &c)
	return each(func(_ int, token string) string {
		for n := 0; n < c.Start && c.Content != "" && strings.HasPrefix(token, c.Content); n++ {
			token = token[len(c.Content):]
		}
		for n := 0; n < c.Stop && c.Content != "" && strings.HasSuffix(token, c.Content); n++ {
			token = token[:len(token)-len(c.Content)]
		}
		return token
	}), err
}

func newSuffixDecoder(b json.RawMessage) (decoder, error) {
	c := struct{ Suffix string }{"</w>"}
	err := json.Unmarshal(b, &c)
	return func(tokens []string) []string {
		return each(func(i int, token string) string {
			if i == len(tokens)-1 {
				return strings.ReplaceAll(token, c.Suffix, "")
			}
			return strings.ReplaceAll(token, c.Suffix, " ")
		})(tokens)
	}, err
}

func newWordPieceDecoder(b json.RawMessage) (decoder, error) {
	c := struct {
		Prefix  string
		Cleanup bool
	}{"##", true}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	return each(func(i int, token string) string {
		switch {
		case i == 0:
		case strings.HasPrefix(token, c.Prefix):
			token = token[len(c.Prefix):]
		default:
			token = " " + token
		}
		if c.Cleanup {
			token = cleanSpaces(token)
		}
		return token
	}), nil
}

// cleanSpaces removes the spaces that splitting at punctuation left, one kind after the other.
func cleanSpaces(s string) string {
	for _, x := range [][2]string{{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"}, {" 'm", "'m"},
		{" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}} {
		s = strings.ReplaceAll(s, x[0], x[1])
	}
	return s
}
