package fusion

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Marshal writes the configuration as YAML with its comments, lists of heads on one line. Parse reads back the same
// configuration. It fails when the configuration could not be read back: see Parse.
func (c *Config) Marshal() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	comment(&b, "", c.Comment)
	fmt.Fprintf(&b, "version: %d\n", c.Version)
	if c.Fingerprint != "" {
		fmt.Fprintf(&b, "model: {fingerprint: %s}\n", scalar(c.Fingerprint))
	}
	if c.Method != "" {
		fmt.Fprintf(&b, "method: %s\n", scalar(c.Method))
	}
	if c.Lowering != "" {
		fmt.Fprintf(&b, "lowering: %s\n", scalar(string(c.Lowering)))
	}
	if c.Weights != "" {
		fmt.Fprintf(&b, "weights: %s\n", scalar(c.Weights))
	}
	if c.WeightsHash != "" {
		fmt.Fprintf(&b, "weights_hash: %s\n", scalar(c.WeightsHash))
	}
	if len(c.Layers) > 0 {
		b.WriteString("layers:\n")
	}
	for _, l := range c.Layers {
		comment(&b, "  ", l.Comment)
		fmt.Fprintf(&b, "  - block: %s\n", scalar(l.Block))
		for _, side := range l.sides() {
			fmt.Fprintf(&b, "    %-6s %s\n", side.name+":", side.heads.encode())
		}
	}
	var limits []string
	for _, m := range Metrics {
		if bound, ok := c.Verify[m.Name]; ok {
			limits = append(limits, m.Name+": "+decimal(bound))
		}
	}
	if c.Verify != nil {
		fmt.Fprintf(&b, "verify: {%s}\n", strings.Join(limits, ", "))
	}
	if b.Len() > maxSize {
		return nil, &Error{Msg: tooLarge(int64(b.Len()))}
	}
	return b.Bytes(), nil
}

func (h *Heads) encode() string {
	if h.Groups == nil {
		return strconv.Itoa(h.Count)
	}
	s := "{groups: " + rows(h.Groups, strconv.Itoa)
	if h.Weights != nil {
		s += ", weights: " + rows(h.Weights, decimal)
	}
	return s + "}"
}

func rows[T any](m [][]T, format func(T) string) string {
	var outer []string
	for _, row := range m {
		var inner []string
		for _, x := range row {
			inner = append(inner, format(x))
		}
		outer = append(outer, "["+strings.Join(inner, ", ")+"]")
	}
	return "[" + strings.Join(outer, ", ") + "]"
}

// decimal writes the shortest number that reads back as x, with a point before an exponent: many YAML readers take
// 1e-05 for a word.
func decimal(x float64) string {
	s := strconv.FormatFloat(x, 'g', -1, 64)
	if mantissa, exponent, ok := strings.Cut(s, "e"); ok && !strings.Contains(mantissa, ".") {
		return mantissa + ".0e" + exponent
	}
	return s
}

func comment(b *bytes.Buffer, indent, text string) {
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		b.WriteString(strings.TrimRight(indent+"# "+line, " ") + "\n")
	}
}

// plain matches strings that YAML reads as themselves without quotes.
var plain = regexp.MustCompile(`^[A-Za-z/_][A-Za-z0-9/_.-]*(:[A-Za-z0-9/_.-]+)*$`)

// reserved are the plain words that YAML reads as something else than a string.
var reserved = regexp.MustCompile(`(?i)^(null|true|false|yes|no|on|off|y|n)$`)

// scalar writes a string so that it reads back as itself.
func scalar(s string) string {
	if plain.MatchString(s) && !reserved.MatchString(s) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\x%02X`, r)
		case r > 0x7e && !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
