package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

// progress shows on a terminal how much of a long piece of work is done; elsewhere it is silent.
type progress struct {
	w io.Writer // nil when silent
}

func newProgress(c *cli.Context) *progress {
	if c.Bool("quiet") || !terminal(c.App.ErrWriter) {
		return &progress{}
	}
	return &progress{w: c.App.ErrWriter}
}

func (p *progress) step(done, total int, what string) {
	if p.w == nil || total == 0 {
		return
	}
	const width = 30
	full := width * done / total
	fmt.Fprintf(p.w, "\r\x1b[K%s%s %d/%d %s", strings.Repeat("█", full), strings.Repeat("░", width-full), done, total, what)
}

// clear removes the line.
func (p *progress) clear() {
	if p.w != nil {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
