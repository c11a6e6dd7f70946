package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/learn"
	"onnx-dha/ort"
)

func init() { choices["remove"] = learn.Removals() }

func importanceCommand() *cli.Command {
	return &cli.Command{
		Name:      "importance",
		Usage:     "measure what each attention head does",
		ArgsUsage: "MODEL",
		Description: "Runs the model on data and says, for every query head, key/value head and layer: how concentrated its\n" +
			"attention weights are, how much of the block's output it makes, and what is lost when it is removed.",
		Flags: common(reportOutput, append(sampleFlags(32),
			&cli.StringFlag{Name: "remove", Value: string(learn.RemoveHeads), Usage: "`KIND` of what is removed in turn, each with a pass over the data: " + strings.Join(learn.Removals(), ", ") + " (heads: queries, kv and layers)"},
			&cli.BoolFlag{Name: "csv", Usage: "print CSV, one line for each head"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "seed `N` of inputs that are neither in the data nor made from them"},
			&cli.StringFlag{Name: "provider", Value: "cpu", Usage: "execution provider `EP`: " + strings.Join(ort.Providers(), ", ")},
			&cli.IntFlag{Name: "threads", Usage: "use `N` threads within an operator (default: the runtime chooses)"},
			ortLibFlag())...),
		Action: runImportance,
	}
}

// importance is what the command prints.
type importance struct {
	Model   string `json:"model"`
	Data    string `json:"data"`
	Samples int    `json:"samples"`
	*learn.Importance
	// Unsupported is how many softmaxes and operators that are attention are not among the blocks.
	Unsupported int `json:"unsupported"`
}

func runImportance(c *cli.Context) (err error) {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	provider, err := oneOf(c, "provider")
	if err != nil {
		return err
	}
	remove, err := oneOf(c, "remove")
	if err != nil {
		return err
	}
	if c.Bool("csv") && c.Bool("json") {
		return usageError("--csv and --json are two forms of one report; leave one out")
	}
	if err := checkSamples(c); err != nil {
		return err
	}
	inputs := []string{args[0], c.String("data"), c.String("tokenizer")}
	if err := writable(c.String("output"), inputs...); err != nil {
		return err
	}
	m, found, err := openModel(args[0])
	if err != nil {
		return err
	}
	m.Close()
	out := importance{Model: args[0], Data: c.String("data")}
	for _, u := range found.Unsupported {
		if u.Attention {
			out.Unsupported++
		}
	}
	if len(found.Blocks) == 0 {
		return needBlocks(m, found)
	}
	lab, err := openLab(c, args[0], provider)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	set, err := openSamples(c, lab, 0, 0)
	if err != nil {
		return err
	}
	out.Samples = len(set.Train())
	batches, err := lab.Batches(set.Train(), c.Uint64("seed"))
	if err != nil {
		return coded(exitUsage, fmt.Errorf("data %q: %w", out.Data, err))
	}
	bar := newProgress(c)
	out.Importance, err = lab.Importance(c.Context, batches, learn.Removal(remove), bar.step)
	bar.clear()
	if err != nil {
		return coded(exitRuntime, fmt.Errorf("%s: %w", args[0], err))
	}
	print := out.print
	if c.Bool("csv") {
		print = out.csv
	}
	return emit(c, c.String("output"), out, print, inputs...)
}

// effectNames head the column of what is lost without a head.
var effectNames = map[learn.Effect]struct{ short, long string }{
	learn.LossEffect:   {"loss +", "the loss grows by %s nats per token"},
	learn.KLEffect:     {"KL", "the outputs diverge by %s nats"},
	learn.ChangeEffect: {"change", "the output changes by %s of its norm"},
}

func (i *importance) print(w io.Writer, color bool) error {
	fmt.Fprintf(w, "%s: %s of %s, %s", i.Model, plural(i.Samples, "sample"), i.Data, plural(i.Positions, "position"))
	if i.Loss != nil {
		fmt.Fprintf(w, ", loss %.4f nats per token (perplexity %.4f)", *i.Loss, math.Exp(*i.Loss))
	}
	fmt.Fprint(w, "\n")
	for _, b := range i.Blocks {
		fmt.Fprintf(w, "\n%s", b.Block)
		if o := b.Layer.Output; o != nil {
			fmt.Fprintf(w, ": output norm %.*f", decimals(o.RMS), o.RMS)
		}
		if r := b.Layer.Removed; r != nil {
			fmt.Fprintf(w, "; without all heads "+effectNames[i.Effect].long, effectText(r))
		}
		fmt.Fprint(w, "\n", render(i.table(color, b)))
		for _, why := range b.Missing {
			fmt.Fprintf(w, "not measured: %s\n", why)
		}
	}
	if i.Unsupported > 0 {
		fmt.Fprintf(w, "\n%s not described and not measured; %s inspect says why\n", plural(i.Unsupported, "attention block"), program)
	}
	return nil
}

// table has a row for each query head, and one for each key or value head that several query heads read.
func (i *importance) table(color bool, b learn.BlockImportance) table.Writer {
	t := newTable(color, table.Row{"head", "magnitude", "peak", "entropy", "of uniform", "contribution", "of output", "share", effectNames[i.Effect].short},
		2, 3, 4, 5, 6, 7, 8, 9)
	t.SuppressEmptyColumns() // of what was not measured
	row := func(name string, h learn.Head) {
		r := table.Row{name}
		if a := h.Attention; a != nil {
			r = append(r, fmt.Sprintf("%.3f", a.Magnitude), fmt.Sprintf("%.3f", a.Peak), fmt.Sprintf("%.3f", a.Entropy), share(a.Relative))
		} else {
			r = append(r, "", "", "", "")
		}
		if o := h.Output; o != nil {
			r = append(r, fmt.Sprintf("%.*f", decimals(b.Layer.Output.RMS), o.RMS), share(o.Relative), share(o.Share))
		} else {
			r = append(r, "", "", "")
		}
		if h.Removed != nil {
			r = append(r, effectText(h.Removed))
		}
		t.AppendRow(r)
	}
	for h, head := range b.Queries {
		row(strconv.Itoa(h), head)
	}
	kv := func(kind string, heads []learn.Head) {
		for n, h := range heads {
			if len(h.QueryHeads) > 1 {
				row(fmt.Sprintf("%s %d: %s", kind, n, ranges(h.QueryHeads)), h)
			}
		}
	}
	same := slices.EqualFunc(b.Keys, b.Values, func(k, v learn.Head) bool { return slices.Equal(k.QueryHeads, v.QueryHeads) })
	if same {
		kv("KV", b.Keys)
	} else {
		kv("K", b.Keys)
		kv("V", b.Values)
	}
	return t
}

func effectText(r *learn.RemovedHeads) string {
	s := fmt.Sprintf("%.4f", r.Effect)
	if r.Error != nil {
		s += fmt.Sprintf(" ± %.4f", *r.Error)
	}
	return s
}

// decimals is how many a column takes to show four significant digits of its largest number.
func decimals(largest float64) int {
	if largest <= 0 {
		return 0
	}
	return min(max(3-int(math.Floor(math.Log10(largest))), 0), 9)
}

func share(x float64) string { return fmt.Sprintf("%.1f %%", 100*x) }

// ranges writes ascending numbers such as "0-3, 5".
func ranges(x []int) string {
	var parts []string
	for i := 0; i < len(x); {
		j := i
		for j+1 < len(x) && x[j+1] == x[j]+1 {
			j++
		}
		if j > i {
			parts = append(parts, fmt.Sprintf("%d-%d", x[i], x[j]))
		} else {
			parts = append(parts, strconv.Itoa(x[i]))
		}
		i = j + 1
	}
	return strings.Join(parts, ", ")
}

// csv writes a line for each query head, key head, value head and layer; what was not measured is empty.
func (i *importance) csv(w io.Writer, _ bool) error {
	out := csv.NewWriter(w)
	out.Write([]string{"block", "kind", "head", "query_heads", "magnitude", "peak", "entropy", "relative_entropy", "rms", "relative", "share", "effect", "effect_of", "standard_error"})
	number := func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
	for _, b := range i.Blocks {
		b.Each(func(kind learn.HeadKind, n int, h *learn.Head) {
			line := make([]string, 14)
			line[0], line[1], line[2], line[3] = b.Block, string(kind), strconv.Itoa(n), strings.Trim(fmt.Sprint(h.QueryHeads), "[]")
			if a := h.Attention; a != nil {
				line[4], line[5], line[6], line[7] = number(a.Magnitude), number(a.Peak), number(a.Entropy), number(a.Relative)
			}
			if o := h.Output; o != nil {
				line[8], line[9], line[10] = number(o.RMS), number(o.Relative), number(o.Share)
			}
			if r := h.Removed; r != nil {
				line[11], line[12] = number(r.Effect), string(i.Effect)
				if r.Error != nil {
					line[13] = number(*r.Error)
				}
			}
			out.Write(line)
		})
	}
	out.Flush()
	return out.Error()
}
