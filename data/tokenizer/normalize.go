package tokenizer

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites a text before it is split into words.
type normalizer func(string) (string, error)

// always makes a normalizer of a function that cannot fail.
func always(f func(string) string) normalizer {
	return func(s string) (string, error) { return f(s), nil }
}

var normalizers map[string]func(json.RawMessage) (normalizer, error)

func init() { // a row for sequences refers to the table
	fixed := func(f func(string) string) func(json.RawMessage) (normalizer, error) {
		return func(json.RawMessage) (normalizer, error) { return always(f), nil }
	}
	normalizers = map[string]func(json.RawMessage) (normalizer, error){
		"NFC":            fixed(norm.NFC.String),
		"NFD":            fixed(norm.NFD.String),
		"NFKC":           fixed(norm.NFKC.String),
		"NFKD":           fixed(norm.NFKD.String),
		"Lowercase":      fixed(lower),
		"StripAccents":   fixed(func(s string) string { return drop(s, unicode.M) }),
		"Nmt":            fixed(nmt),
		"ByteLevel":      fixed(toByteLevel),
		"BertNormalizer": newBertNormalizer,
		"Prepend":        newPrepend,
		"Precompiled":    newPrecompiled,
		"Replace":        newReplace,
		"Strip":          newStrip,
		"Sequence":       newNormalizers,
	}
}

func newNormalizers(b json.RawMessage) (normalizer, error) {
	var c struct{ Normalizers []json.RawMessage }
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	steps, err := parseAll(normalizers, "normalizer", c.Normalizers)
	if err != nil {
		return nil, err
	}
	return func(s string) (_ string, err error) {
		for _, step := range steps {
			if step == nil {
				continue
			}
			if s, err = step(s); err != nil {
				return "", err
			}
		}
		return s, nil
	}, nil
}

func newPrepend(b json.RawMessage) (normalizer, error) {
	var c struct{ Prepend string }
	err := json.Unmarshal(b, &c)
	return always(func(s string) string {
		if s == "" {
			return s
		}
		return c.Prepend + s
	}), err
}

func newStrip(b json.RawMessage) (normalizer, error) {
	var c struct {
		Left  bool `json:"strip_left"`
		Right bool `json:"strip_right"`
	}
	err := json.Unmarshal(b, &c)
	return always(func(s string) string {
		if c.Left {
			s = strings.TrimLeftFunc(s, unicode.IsSpace)
		}
		if c.Right {
			s = strings.TrimRightFunc(s, unicode.IsSpace)
		}
		return s
	}), err
}

func newReplace(b json.RawMessage) (normalizer, error) {
	var c struct {
		Pattern pattern
		Content string
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	find, err := c.Pattern.finder()
	if err != nil {
		return nil, err
	}
	return func(s string) (string, error) {
		spans, err := find(s)
		if err != nil {
			return "", err
		}
		var out strings.Builder
		for _, x := range spans {
			if x.match {
				out.WriteString(c.Content)
			} else {
				out.WriteString(s[x.start:x.end])
			}
		}
		return out.String(), nil
	}, nil
}

func newPrecompiled(b json.RawMessage) (normalizer, error) {
	var c struct {
		Charsmap string `json:"precompiled_charsmap"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	blob, err := base64.StdEncoding.DecodeString(c.Charsmap)
	if err != nil {
		return nil, err
	}
	m, err := readCharsmap(blob)
	if err != nil {
		return nil, err
	}
	return always(m.graphemes), nil
}

func newBertNormalizer(b json.RawMessage) (normalizer, error) {
	c := struct {
		CleanText    bool  `json:"clean_text"`
		Chinese      bool  `json:"handle_chinese_chars"`
		StripAccents *bool `json:"strip_accents"`
		Lowercase    bool  `json:"lowercase"`
	}{CleanText: true, Chinese: true, Lowercase: true}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, err
	}
	strip := c.Lowercase
	if c.StripAccents != nil {
		strip = *c.StripAccents
	}
	return always(func(s string) string {
		if c.CleanText {
			s = strings.Map(cleanRune, s)
		}
		if c.Chinese {
			s = spaceChinese(s)
		}
		if strip {
			s = drop(norm.NFD.String(s), unicode.Mn)
		}
		if c.Lowercase {
			s = lower(s)
		}
		return s
	}), nil
}

// cleanRune drops control, format and private characters, not those that no version of Unicode has assigned, and makes every white space a space.
func cleanRune(r rune) rune {
	switch {
	case r == '\t', r == '\n', r == '\r':
		return ' '
	case r == unicode.ReplacementChar || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Co):
		return -1
	case unicode.IsSpace(r):
		return ' '
	}
	return r
}

// chinese are the blocks that BERT takes for Chinese characters, each of which it makes a word.
var chinese = &unicode.RangeTable{
	R16: []unicode.Range16{{0x3400, 0x4dbf, 1}, {0x4e00, 0x9fff, 1}, {0xf900, 0xfaff, 1}},
	R32: []unicode.Range32{{0x20000, 0x2a6df, 1}, {0x2a700, 0x2b73f, 1}, {0x2b740, 0x2b81f, 1}, {0x2b920, 0x2ceaf, 1},
		{0x2f800, 0x2fa1f, 1}},
}

func spaceChinese(s string) string {
	var out strings.Builder
	for _, r := range s {
		if unicode.Is(chinese, r) {
			out.WriteByte(' ')
			out.WriteRune(r)
			out.WriteByte(' ')
			continue
		}
		out.WriteRune(r)
	}
	return out.String()
}

func drop(s string, table *unicode.RangeTable) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(table, r) {
			return -1
		}
		return r
	}, s)
}

// lower maps characters one by one. Go's mapping is to single characters; the full mapping of Unicode differs for one.
func lower(s string) string {
	return strings.ReplaceAll(strings.Map(func(r rune) rune {
		if r == 'İ' {
			return r
		}
		return unicode.ToLower(r)
	}, s), "İ", "i\u0307")
}

// nmt is the cleaning of SentencePiece's nmt_nfkc rules.
func nmt(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 1 && r <= 8, r == 0xb, r >= 0xe && r <= 0x1f, r == 0x7f, r == 0x8f, r == 0x9f:
			return -1
		case r == '\t', r == '\n', r == 0xc, r == '\r', r == 0x1680, r >= 0x200b && r <= 0x200f, r == 0x2028, r == 0x2029,
			r == 0x2581, r == 0xfeff, r == 0xfffd:
			return ' '
		}
		return r
	}, s)
}
