package verify

import (
	"fmt"
	"regexp"
	"strings"
)

// reasons holds why models did not run, or lacked what was to be compared, as far as a report has said it.
type reasons map[string]bool

// inReasons are the parts in which one reason differs from case to case: the step that it was met at, and sizes.
var inReasons = regexp.MustCompile(`^step \d+: |\d+`)

// text says what is broken in lines, each in one of its own. What cannot be compared tends to have the same reason in all
// cases, and that is said once.
func (r reasons) text(lines []Line) string {
	type entry struct {
		where, why string
		more       int // lines with the same reason
	}
	var all []*entry
	here := map[string]*entry{}
	for _, l := range lines {
		where := strings.TrimSpace(l.Case + " " + l.Output)
		if !l.failed() && l.Steps > 1 && l.Case != allCases {
			where += fmt.Sprintf(" (worst at step %d)", l.WorstStep)
		}
		for _, why := range l.Broken {
			key := inReasons.ReplaceAllString(why, "")
			e := here[key]
			if e != nil && l.failed() {
				e.more++
				continue
			}
			e = &entry{where: where, why: why}
			all = append(all, e)
			if !l.failed() {
				continue
			}
			if here[key] = e; r[key] {
				e.why = "for the reason given above"
			}
			r[key] = true
		}
	}
	var b strings.Builder
	for _, e := range all {
		fmt.Fprintf(&b, "FAIL %s: %s\n", e.where, e.why)
		switch {
		case e.more == 1:
			b.WriteString("FAIL 1 more line, for the same reason\n")
		case e.more > 1:
			fmt.Fprintf(&b, "FAIL %d more lines, for the same reason\n", e.more)
		}
	}
	return b.String()
}
