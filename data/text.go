package data

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"onnx-dha/data/tokenizer"
)

func readText(path string, o Options) (*Set, error) {
	if o.Tokenizer == "" {
		return nil, errors.New("it is read as text, which needs a tokenizer; other data are " + notText)
	}
	t, err := tokenizer.Open(o.Tokenizer)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(b)
	if at := invalid(text); at >= 0 {
		return nil, fmt.Errorf("it is read as text, but byte %d (%#02x) is not UTF-8; want %s", at, text[at], sources)
	}
	c := cutting{length: o.SeqLen}
	if c.length == 0 {
		c.length = DefaultSeqLen
	}
	if !o.Bare {
		c.before, c.after = t.Frame()
	}
	docs, err := encode(passages(text, o.Separator, c.length*bytesPerToken, enough(o)), t)
	if err != nil {
		return nil, err
	}
	s := &Set{tokens: true, tokenizer: t}
	s.train, s.heldOut, err = c.cut(docs, o)
	return s, err
}

// invalid returns where text stops being UTF-8, or -1.
func invalid(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for at, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[at:], string(utf8.RuneError)) {
			return at
		}
	}
	return -1
}

// passage is a part of a text that is encoded by itself.
type passage struct{ source, text string }

// wholeText is the size in bytes of texts that are encoded as a whole, which takes seconds.
const wholeText = 16 << 20

// passages splits text at the separator. Of a larger text than wholeText, of which count passages of size bytes are a small part
// (count 0: all are wanted), it takes about so many evenly, whole documents or blocks of lines of at least that size:
// nobody waits for the tokens of a library to learn from a few thousand.
func passages(text, separator string, size, count int) []passage {
	large := count > 0 && len(text) > wholeText && len(text)/4/size >= count
	var all []passage
	switch {
	case separator != "" && strings.Contains(text, separator):
		number := 0
		for part := range strings.SplitSeq(text, separator) {
			number++
			if part = strings.TrimSpace(part); part != "" {
				all = append(all, passage{fmt.Sprintf("document %d", number), part})
			}
		}
	case !large:
		return []passage{{"", text}}
	default:
		at := 0
		for at < len(text) {
			end := min(at+size, len(text))
			if line := strings.IndexByte(text[end:], '\n'); line >= 0 && end < len(text) {
				end += line + 1
			} else {
				end = len(text)
			}
			all = append(all, passage{fmt.Sprintf("text from byte %d", at), text[at:end]})
			at = end
		}
	}
	if large {
		// Documents may be shorter than a sample: as many as have the bytes of count passages.
		return pick(all, max(count, int(float64(len(all))*float64(count)*float64(size)/float64(len(text))))+2)
	}
	return all
}

// bytesPerToken is more than any tokenizer reaches on text that is not degenerate.
const bytesPerToken = 16

// enough returns how many passages that fill a sample hold the samples that the options ask for, 0 when they ask for all.
func enough(o Options) int {
	if o.Samples == 0 || o.HeldOut > 0 && o.HeldOutSamples == 0 {
		return 0
	}
	n := float64(o.Samples) / (1 - o.HeldOut)
	if o.HeldOut > 0 {
		n = max(n, float64(o.HeldOutSamples)/o.HeldOut)
	}
	return int(min(n, 1<<40)) + 2
}

func encode(parts []passage, t tokenizer.Tokenizer) ([]document, error) {
	docs := make([]document, len(parts))
	for i, p := range parts {
		ids, err := t.Encode(p.text)
		if err != nil && p.source != "" {
			err = fmt.Errorf("%s: %w", p.source, err)
		}
		if err != nil {
			return nil, err
		}
		docs[i] = document{source: p.source, tokens: ids}
	}
	return docs, nil
}
