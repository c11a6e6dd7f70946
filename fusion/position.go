package fusion

import (
	"fmt"
	"strings"
	"unicode"
)

// Error is a mistake in a configuration, with its place where that is known.
type Error struct {
	File         string
	Line, Column int // from 1; 0 when the place is the whole file or a configuration built in memory
	Msg          string
	Excerpt      string // the line and a mark under the column; empty when there is none

	kind error // what errors.Is finds, when there is something
}

func (e *Error) Unwrap() error { return e.kind }

// Error is one line, "file:line:column: message".
func (e *Error) Error() string {
	switch {
	case e.File == "":
		return e.Msg
	case e.Line == 0:
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
}

// pos is a place in a source, counted from 1; the zero pos is unknown.
type pos struct{ line, col int }

// source is the text of a configuration, kept so that an error found later can show the place. A nil *source belongs
// to a configuration built in memory.
type source struct {
	name  string
	lines []string
	keys  map[string]pos // places of the top-level settings, by dotted name
}

func (s *source) key(name string) pos {
	if s == nil {
		return pos{}
	}
	return s.keys[name]
}

func (s *source) errorf(at pos, format string, args ...any) *Error {
	e := &Error{Msg: fmt.Sprintf(format, args...)}
	if s == nil {
		return e
	}
	e.File, e.Line, e.Column = s.name, at.line, at.col
	e.Excerpt = s.excerpt(at)
	return e
}

// place returns at[i][j], or def when positions were not recorded.
func place(at [][]pos, i, j int, def pos) pos {
	if i < len(at) && j < len(at[i]) {
		return at[i][j]
	}
	return def
}

// excerpt shows the line of a place with a mark under the column; of a long line, the part around it.
func (s *source) excerpt(at pos) string {
	const before, width = 40, 100
	if at.line < 1 || at.line > len(s.lines) {
		return ""
	}
	line := []rune(strings.TrimRight(s.lines[at.line-1], "\r"))
	for i, r := range line {
		if !unicode.IsPrint(r) {
			line[i] = ' '
		}
	}
	col := min(max(at.col-1, 0), len(line))
	head, tail := "", ""
	from, to := 0, len(line)
	if len(line) > width {
		from = max(0, col-before)
		to = min(len(line), from+width)
	}
	if from > 0 {
		head = "… "
	}
	if to < len(line) {
		tail = " …"
	}
	margin := fmt.Sprintf("%5d | ", at.line)
	pad := strings.Repeat(" ", len(margin)-2) + "| " + strings.Repeat(" ", len([]rune(head))+col-from)
	return margin + head + string(line[from:to]) + tail + "\n" + pad + "^"
}

// shorten cuts a string for a message.
func shorten(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
