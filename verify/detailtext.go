package verify

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// plainTable makes a table with a line under its heads; columns named in right are aligned to the right.
func plainTable(header table.Row, right ...int) table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Options = table.Options{SeparateHeader: true}
	t.Style().Format.Header = text.FormatDefault
	t.Style().Box.PaddingLeft, t.Style().Box.PaddingRight = "", "  "
	var columns []table.ColumnConfig
	for _, i := range right {
		columns = append(columns, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	t.AppendHeader(header)
	return t
}

// trimmed renders a table without the padding that would end each line.
func trimmed(t table.Writer) string {
	lines := strings.Split(t.Render(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

// String shows what was compared inside the models: a line for each point of each layer.
func (r *LayerReport) String() string {
	var b strings.Builder
	t := plainTable(table.Row{"layer", "block", "point", "rewrite max rel", "", "drift max rel", "‖d‖/‖x‖", "cosine", "SQNR dB"}, 1, 4, 6, 7, 8, 9)
	for _, l := range r.Layers {
		for i, p := range l.Points {
			row := table.Row{"", "", p.Point, "", "", "", "", "", ""}
			if i == 0 {
				row[0], row[1] = l.Layer, l.Block
			}
			if p.Exact != nil {
				row[3], row[4] = Format("max_rel", p.Exact.Metrics.MaxRel), verdict(p.Exact.Passed())
			}
			if p.Drift != nil {
				m := p.Drift.Metrics
				row[5], row[6] = Format("max_rel", m.MaxRel), fmt.Sprintf("%.2e", math.Pow(10, -m.SQNR/20))
				row[7], row[8] = Format("cosine", m.Cosine), Format("sqnr_db", m.SQNR)
			}
			t.AppendRow(row)
		}
	}
	fmt.Fprintf(&b, "\nLayers: over all runs\n%s", trimmed(t))
	for _, where := range []struct {
		place *LayerPlace
		says  string
	}{{r.Error, "the rewrite is not exact from"}, {r.Drift, "drift starts at"}} {
		if p := where.place; p != nil {
			fmt.Fprintf(&b, "%s layer %d (%s): %s\n", where.says, p.Layer, p.Block, p.Point)
		}
	}
	for _, u := range r.Untapped {
		fmt.Fprintf(&b, "not compared: %s\n", u)
	}
	return b.String()
}

// String names the layers to leave alone, and what was tried.
func (b *Bisection) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "\nBisection: %d of %d trials pass\n", passing(b.Trials), len(b.Trials))
	switch {
	case len(b.LeaveAlone) == 0:
		s.WriteString("the whole rewrite passes: no layer has to be left alone\n")
	case !b.Passed:
		s.WriteString("no layer can be rewritten within the limits\n")
	default:
		least := "the smallest set of layers to leave alone"
		if !b.Smallest {
			least = "a set of layers to leave alone (the trials did not suffice to rule out a smaller one)"
		}
		fmt.Fprintf(&s, "%s: %d of %d\n", least, len(b.LeaveAlone), len(b.Blocks))
		for _, name := range b.LeaveAlone {
			fmt.Fprintf(&s, "  %s\n", name)
		}
	}
	return s.String()
}

func passing(trials []Trial) int {
	n := 0
	for _, t := range trials {
		if t.Passed {
			n++
		}
	}
	return n
}

// String shows after how many tokens each pair of continuations parts.
func (p *GenerationPair) String() string {
	var parts []string
	for _, n := range p.Agree {
		if n < 0 {
			parts = append(parts, "–")
		} else {
			parts = append(parts, fmt.Sprint(n))
		}
	}
	return fmt.Sprintf("\nGenerated: %d prompts continued by %d tokens, greedily; they part after %s tokens (–: not at all)\n",
		len(p.Prompts), p.Tokens, strings.Join(parts, ", "))
}

// maxFallback bounds the nodes that the text names; JSON has them all.
const maxFallback = 12

// String says which provider runs how many nodes, and which it leaves to others.
func (p Placement) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nNodes of the %s on %s:", p.Model, p.Provider)
	for i, name := range slices.Sorted(maps.Keys(p.Nodes)) {
		if i > 0 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, " %d by %s", p.Nodes[name], name)
	}
	b.WriteByte('\n')
	for i, n := range p.Fallback {
		if i == maxFallback {
			fmt.Fprintf(&b, "  and %d more\n", len(p.Fallback)-i)
			break
		}
		fmt.Fprintf(&b, "  %s falls back: %s %s\n", n.Provider, n.Op, n.Node)
	}
	return b.String()
}

// String is the comparison of two providers, or why there is none.
func (p ProviderSection) String() string {
	title := fmt.Sprintf("Providers: the %s model on %s against %s", p.Model, p.Provider, p.Reference)
	if p.Result == nil {
		return fmt.Sprintf("\n%s\nnot compared: %s\n", title, p.Unavailable)
	}
	return p.Result.text(title, reasons{})
}
