package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/internal/suggest"
	"onnx-dha/rewrite"
)

// placements maps the values of --weights to graph.SaveOptions.
var placements = map[string]string{"keep": "", "inline": "inline", "file": "file", "share": "share"}

func init() {
	choices["lowering"] = []string{"auto", "grouped", "static-cache", "expand"}
	choices["weights"] = []string{"keep", "inline", "file", "share"}
}

func rewriteCommand() *cli.Command {
	return &cli.Command{
		Name:      "rewrite",
		Usage:     "apply a configuration to a model",
		ArgsUsage: "MODEL",
		Description: "Fuses key and value heads as the configuration says and writes the smaller model. The original is never\n" +
			"written to; the output appears under its name only when it is complete.",
		Flags: common("write the model to `FILE` (default: MODEL with .dha.onnx in place of .onnx)",
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration, a dha.yaml `FILE`", TakesFile: true},
			&cli.StringFlag{Name: "lowering", Usage: "lower the attention core to `FORM`: auto, grouped, static-cache or expand", DefaultText: "the configuration's"},
			&cli.StringFlag{Name: "weights", Value: "keep", Usage: "`WHERE` weights go: keep (as in the original), inline, file (one data file), share (only new ones are written)"},
			&cli.BoolFlag{Name: "force", Usage: "rewrite a model that is not the one the configuration was made for"}),
		Action: runRewrite,
	}
}

func runRewrite(c *cli.Context) error {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	external, err := oneOf(c, "weights")
	if err != nil {
		return err
	}
	if c.String("config") == "" {
		return usageError("--config is missing; %s init %s writes a configuration to start from", program, args[0])
	}
	cfg, err := fusion.Load(c.String("config"))
	if err != nil {
		return coded(exitUsage, fmt.Errorf("configuration: %w", err))
	}
	// The lowering of the command line is not part of what the model records: it changes the form, not the result.
	asked := *cfg
	if c.IsSet("lowering") {
		lowering, err := oneOf(c, "lowering")
		if err != nil {
			return err
		}
		asked.Lowering = fusion.Lowering(lowering)
	}
	output := c.String("output")
	if output == "" {
		output = strings.TrimSuffix(args[0], ".onnx") + ".dha.onnx"
	}
	if err := apart(output, args[0], c.String("config")); err != nil {
		return err
	}
	src, err := openSource(args[0], nil)
	if err != nil {
		return err
	}
	defer func() { src.m.Close() }()
	if err := needBlocks(src.m, src.found); err != nil {
		return err
	}
	if !c.Bool("force") {
		if err := cfg.CheckModel(src.found.Blocks); err != nil {
			return forceable(err)
		}
	}
	var plan *fusion.Plan
	if src, plan, err = src.planned(&asked); err != nil {
		return err
	}
	m := src.m
	if len(plan.Blocks) == 0 {
		return usageError("%s names no block; there is nothing to rewrite", c.String("config"))
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	res, err := rewrite.Apply(m, plan)
	if err != nil {
		return coded(exitModel, fmt.Errorf("%s: %w", args[0], err))
	}
	res.NodesBefore, res.ParamsBefore = src.nodes, src.parameters
	if err := rewrite.Record(m, toolVersion(), cfg); err != nil {
		return err
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	if err := m.Save(output, graph.SaveOptions{External: placements[external]}); err != nil {
		return coded(exitUsage, err)
	}
	d, err := describeRewrite(args[0], output, cfg, res)
	if err != nil {
		return err
	}
	return emit(c, "", d, func(w io.Writer, color bool) error { return d.print(w, color) })
}

// oneOf reads an option with a fixed set of values.
func oneOf(c *cli.Context, name string) (string, error) {
	value := c.String(name)
	for _, ok := range choices[name] {
		if value == ok {
			return value, nil
		}
	}
	return "", usageError("--%s %q%s want one of %s", name, value, separator(suggest.DidYouMean(value, choices[name])), strings.Join(choices[name], ", "))
}

// rewriting is what rewrite says that it did.
type rewriting struct {
	Model       string         `json:"model"`
	Output      string         `json:"output"`
	Config      string         `json:"config_sha256"`
	Blocks      []blockRewrite `json:"blocks"`
	Before      totals         `json:"before"`
	After       totals         `json:"after"`
	OutputBytes int64          `json:"output_bytes"` // with the data file beside it
}

type blockRewrite struct {
	Block      string   `json:"block"`
	Lowering   string   `json:"lowering"`
	Heads      int      `json:"heads"`
	KeyHeads   [2]int   `json:"key_heads"` // before and after
	ValueHeads [2]int   `json:"value_heads"`
	KVBytes    [2]int64 `json:"kv_bytes_per_token"`
}

type totals struct {
	Parameters int64 `json:"parameters"`
	Nodes      int   `json:"nodes"`
	KVBytes    int64 `json:"kv_bytes_per_token"`
}

func describeRewrite(model, output string, cfg *fusion.Config, res *rewrite.Result) (*rewriting, error) {
	d := &rewriting{
		Model: model, Output: output, Config: cfg.Hash(),
		Before: totals{Parameters: res.ParamsBefore, Nodes: res.NodesBefore},
		After:  totals{Parameters: res.ParamsAfter, Nodes: res.NodesAfter},
	}
	for _, b := range res.Blocks {
		d.Blocks = append(d.Blocks, blockRewrite{
			b.Block, string(b.Lowering), b.Heads, [2]int{b.KVHeads, b.KeyHeads}, [2]int{b.ValueHeadsBefore, b.ValueHeads}, [2]int64{b.KVBytesBefore, b.KVBytesAfter},
		})
		d.Before.KVBytes += b.KVBytesBefore
		d.After.KVBytes += b.KVBytesAfter
	}
	for _, file := range []string{output, output + ".data"} {
		info, err := os.Stat(file)
		if err == nil {
			d.OutputBytes += info.Size()
		} else if file == output {
			return nil, err
		}
	}
	return d, nil
}

func (d *rewriting) print(w io.Writer, color bool) error {
	t := newTable(color, table.Row{"block", "query heads", "key heads", "value heads", "lowering", "KV bytes/token"}, 2, 3, 4, 6)
	for _, b := range d.Blocks {
		t.AppendRow(table.Row{b.Block, b.Heads, change(b.KeyHeads[0], b.KeyHeads[1]), change(b.ValueHeads[0], b.ValueHeads[1]), b.Lowering, changeCount(b.KVBytes[0], b.KVBytes[1])})
	}
	fmt.Fprint(w, render(t), "\n")
	fmt.Fprintf(w, "KV cache per token  %s\n", changeOf(d.Before.KVBytes, d.After.KVBytes, func(n int64) string { return count(n) + " bytes" }))
	fmt.Fprintf(w, "parameters          %s\n", changeOf(d.Before.Parameters, d.After.Parameters, count[int64]))
	fmt.Fprintf(w, "nodes               %s\n", changeOf(int64(d.Before.Nodes), int64(d.After.Nodes), count[int64]))
	_, err := fmt.Fprintf(w, "wrote %s (%s)\n", d.Output, size(d.OutputBytes))
	return err
}

func changeCount(before, after int64) string {
	if before == after {
		return count(before)
	}
	return count(before) + " → " + count(after)
}
