package tokenizer

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// pattern is a string or a regular expression of a tokenizer.json.
type pattern struct {
	String *string
	Regex  *string
}

// span is a part of a text that a pattern matches, or that is between two matches.
type span struct {
	start, end int
	match      bool
}

// finder cuts a text into spans that follow each other.
type finder func(string) ([]span, error)

// patience bounds the search for one match: expressions that backtrack without end are possible.
const patience = 20 * time.Second

func (p pattern) finder() (finder, error) {
	switch {
	case p.String != nil:
		return literal(*p.String), nil
	case p.Regex != nil:
		return expression(*p.Regex)
	}
	return nil, fmt.Errorf(`pattern has neither "String" nor "Regex"`)
}

func literal(s string) finder {
	return func(text string) (spans []span, err error) {
		done := 0
		for s != "" {
			at := strings.Index(text[done:], s)
			if at < 0 {
				break
			}
			spans = appendMatch(spans, done, done+at, done+at+len(s))
			done += at + len(s)
		}
		return appendRest(spans, done, len(text)), nil
	}
}

// expression finds a regular expression. The engine backtracks, since tokenizers look ahead; its syntax agrees with the
// one that tokenizer.json is written in as far as tokenizers go.
func expression(s string) (finder, error) {
	re, err := regexp2.Compile(s, regexp2.None)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", s, err)
	}
	re.MatchTimeout = patience
	return func(text string) (spans []span, err error) {
		runes := []rune(text)
		done, at, runeAt := 0, 0, 0
		// advance returns the byte offset of a rune; calls go from left to right.
		advance := func(to int) int {
			for ; runeAt < to; runeAt++ {
				at += utf8.RuneLen(runes[runeAt])
			}
			return at
		}
		m, err := re.FindRunesMatch(runes)
		for ; m != nil && err == nil; m, err = re.FindNextMatch(m) {
			start := advance(m.Index)
			end := advance(m.Index + m.Length)
			spans = appendMatch(spans, done, start, end)
			done = end
		}
		if err != nil {
			return nil, fmt.Errorf("regular expression %q: %w", s, err)
		}
		return appendRest(spans, done, len(text)), nil
	}, nil
}

// characters finds the characters for which f holds, each a match.
func characters(f func(rune) bool) finder {
	return func(text string) (spans []span, err error) {
		done := 0
		for at, r := range text {
			if f(r) {
				end := at + utf8.RuneLen(r)
				spans = appendMatch(spans, done, at, end)
				done = end
			}
		}
		return appendRest(spans, done, len(text)), nil
	}
}

func appendMatch(spans []span, done, start, end int) []span {
	return append(appendRest(spans, done, start), span{start, end, true})
}

func appendRest(spans []span, done, end int) []span {
	if done < end {
		spans = append(spans, span{done, end, false})
	}
	return spans
}

// behaviors say what becomes of matches: they are rows by their name in tokenizer.json.
var behaviors = map[string]func([]span) []span{
	"Isolated":           func(spans []span) []span { return spans },
	"Removed":            removed,
	"Contiguous":         contiguous,
	"MergedWithPrevious": mergedWithPrevious,
	"MergedWithNext":     mergedWithNext,
}

func removed(spans []span) []span {
	var out []span
	for _, s := range spans {
		if !s.match {
			out = append(out, s)
		}
	}
	return out
}

func contiguous(spans []span) []span {
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].match == s.match {
			out[n-1].end = s.end
			continue
		}
		out = append(out, s)
	}
	return out
}

// mergedWithPrevious joins a match to what is before it, unless that is a match as well.
func mergedWithPrevious(spans []span) []span {
	var out []span
	for i, s := range spans {
		if n := len(out); n > 0 && s.match && !spans[i-1].match {
			out[n-1].end = s.end
			continue
		}
		out = append(out, s)
	}
	return out
}

// mergedWithNext joins a match to what is after it, unless that is a match as well.
func mergedWithNext(spans []span) []span {
	var out []span
	for i, s := range spans {
		if n := len(out); n > 0 && spans[i-1].match && !s.match {
			out[n-1].end = s.end
			continue
		}
		out = append(out, s)
	}
	return out
}
