package tokenizer

import (
	"iter"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is found in text before anything else is done with it.
type addedToken struct {
	ID         int64  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // only between characters that are not of a word
	LStrip     bool   `json:"lstrip"`      // it takes the white space before it
	RStrip     bool   `json:"rstrip"`      // and after it
	Normalized bool   `json:"normalized"`
}

// added finds tokens in text: the leftmost first, the longest of those that begin at the same place.
type added struct {
	begin [256][]addedToken // by the first byte, longest first
	any   bool
}

func (a *added) add(t addedToken) {
	if t.Content == "" {
		return
	}
	a.any = true
	list := &a.begin[t.Content[0]]
	// The last of two tokens with the same content counts, as if a table of ids had been overwritten.
	*list = slices.DeleteFunc(*list, func(u addedToken) bool { return u.Content == t.Content })
	*list = append(*list, t)
	slices.SortStableFunc(*list, func(x, y addedToken) int { return len(y.Content) - len(x.Content) })
}

// chunk is a part of a text: an added token, or what is between two (token -1, never empty).
type chunk struct {
	token int64
	text  string
	at    int // byte offset
}

func (a *added) cut(text string) iter.Seq[chunk] {
	return func(yield func(chunk) bool) {
		done := 0
		for at := 0; a.any && at < len(text); {
			t, ok := a.match(text[at:])
			if !ok {
				at++
				continue
			}
			start, stop := at, at+len(t.Content)
			at = stop
			if t.SingleWord && !apart(text[:start], text[stop:]) {
				continue
			}
			if t.LStrip {
				start = len(strings.TrimRightFunc(text[:start], unicode.IsSpace))
			}
			if t.RStrip {
				stop = len(text) - len(strings.TrimLeftFunc(text[stop:], unicode.IsSpace))
			}
			if start = max(start, done); start > done && !yield(chunk{-1, text[done:start], done}) {
				return
			}
			if !yield(chunk{t.ID, text[start:stop], start}) {
				return
			}
			done = stop
		}
		if done < len(text) {
			yield(chunk{-1, text[done:], done})
		}
	}
}

func (a *added) match(text string) (addedToken, bool) {
	for _, t := range a.begin[text[0]] {
		if strings.HasPrefix(text, t.Content) {
			return t, true
		}
	}
	return addedToken{}, false
}

// apart reports whether neither the end of before nor the beginning of after is part of a word.
func apart(before, after string) bool {
	l, n := utf8.DecodeLastRuneInString(before)
	r, m := utf8.DecodeRuneInString(after)
	return (n == 0 || !isWord(l)) && (m == 0 || !isWord(r))
}

// isWord is \w of Unicode regular expressions (UTS #18, annex C).
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Nl, unicode.Pc, unicode.Other_Alphabetic,
		unicode.Join_Control)
}
