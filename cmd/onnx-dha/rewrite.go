package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/shapes"
	"onnx-dha/internal/suggest"
	"onnx-dha/rewrite"
)

// placements maps the values of --weights to graph.SaveOptions.
var placements = map[string]string{"keep": "", "inline": "inline", "file": "file", "share": "share"}

func init() {
	for _, l := range fusion.Lowerings {
		choices["lowering"] = append(choices["lowering"], string(l))
	}
	for _, t := range fusion.Targets {
		choices["target"] = append(choices["target"], string(t))
	}
	choices["weights"] = []string{"keep", "inline", "file", "share"}
}

func rewriteCommand() *cli.Command {
	return &cli.Command{
		Name:      "rewrite",
		Usage:     "apply a configuration to a model",
		ArgsUsage: "MODEL...",
		Description: "Fuses key and value heads as the configuration says and writes the smaller model. The original is never\n" +
			"written to; the output appears under its name only when it is complete. MODEL may be a folder with a config.json or a\n" +
			"genai_config.json: every model in it is rewritten, and what stands beside them is brought into agreement. Models that\n" +
			"pass caches to one another (encoder and decoder, a decoder and its next steps) are given together, -o naming a folder.",
		Flags: common("write the model to `FILE`, or the folder (default: MODEL with .dha.onnx in place of .onnx, FOLDER.dha)",
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration, a dha.yaml `FILE`", TakesFile: true},
			&cli.StringFlag{Name: "lowering", Usage: "lower the attention core to `FORM`: auto, grouped, static-cache, gqa, attention or expand", DefaultText: "the configuration's"},
			&cli.StringFlag{Name: "target", Value: string(fusion.TargetCPU), Usage: "let auto choose for `RUNTIME`: ort-cpu, ort-cuda, genai, transformersjs or portable"},
			&cli.StringFlag{Name: "weights", Value: "keep", Usage: "`WHERE` weights go: keep (as in the original), inline, file (one data file), share (only new ones are written)"},
			&cli.BoolFlag{Name: "keep-shapes", Usage: "leave shape arithmetic as it is, also what is computed again in every layer"},
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
	target, err := oneOf(c, "target")
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
	// The lowering of the command line is not part of the configuration that the model records: it changes the form, not the
	// result.
	asked := *cfg
	if c.IsSet("lowering") {
		lowering, err := oneOf(c, "lowering")
		if err != nil {
			return err
		}
		asked.Lowering = fusion.Lowering(lowering)
	}
	job := rewriteJob{
		cfg: cfg, asked: &asked, target: fusion.Runtime(target), save: graph.SaveOptions{External: placements[external]}, force: c.Bool("force"),
		keepShapes: c.Bool("keep-shapes"),
	}
	if len(args) > 1 {
		return rewriteSet(c, args, job)
	}
	if isFolder(args[0]) {
		return rewriteFolder(c, args[0], job)
	}
	output := c.String("output")
	if output == "" {
		output = strings.TrimSuffix(args[0], ".onnx") + ".dha.onnx"
	}
	if err := apart(output, args[0], c.String("config")); err != nil {
		return err
	}
	d, err := job.file(c.Context, args[0], output)
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
	Shapes      int            `json:"shape_nodes_removed"` // nodes of shape arithmetic, those in bodies included
	OutputBytes int64          `json:"output_bytes"`        // with the data file beside it
	Notes       []string       `json:"notes,omitempty"`
	Requantised []requantised  `json:"requantised,omitempty"`
}

type blockRewrite struct {
	Block      string   `json:"block"`
	Lowering   string   `json:"lowering"`
	Why        string   `json:"why"` // the lowering was chosen
	Heads      int      `json:"heads"`
	KeyHeads   [2]int   `json:"key_heads"` // before and after
	ValueHeads [2]int   `json:"value_heads"`
	KVBytes    [2]int64 `json:"kv_bytes_per_token"`
	Cached     bool     `json:"cached"`
}

type totals struct {
	Parameters int64 `json:"parameters"`
	Nodes      int   `json:"nodes"`
	KVBytes    int64 `json:"kv_bytes_per_token"`
}

func describeRewrite(model, output string, cfg *fusion.Config, res *rewrite.Result, arithmetic shapes.Result) (*rewriting, error) {
	d := &rewriting{
		Model: model, Output: output, Config: cfg.Hash(), Shapes: arithmetic.Removed(),
		Before: totals{Parameters: res.ParamsBefore, Nodes: res.NodesBefore},
		After:  totals{Parameters: res.ParamsAfter, Nodes: res.NodesAfter},
		Notes:  res.Notes,
	}
	var err error
	if d.Requantised, err = describeRequantised(res); err != nil {
		return nil, err
	}
	for _, b := range res.Blocks {
		d.Blocks = append(d.Blocks, blockRewrite{
			b.Block, string(b.Lowering), b.Why, b.Heads, [2]int{b.KVHeads, b.KeyHeads}, [2]int{b.ValueHeadsBefore, b.ValueHeads}, [2]int64{b.KVBytesBefore, b.KVBytesAfter}, b.Cached,
		})
		d.Before.KVBytes += b.KVBytesBefore
		d.After.KVBytes += b.KVBytesAfter
	}
	for _, file := range []string{output, output + ".data", output + "_data"} {
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
	printRequantised(w, d.Requantised)
	d.printReasons(w)
	cached := slices.ContainsFunc(d.Blocks, func(b blockRewrite) bool { return b.Cached })
	fmt.Fprintf(w, "KV cache per token  %s\n", cacheChange(d.Before.KVBytes, d.After.KVBytes, cached))
	fmt.Fprintf(w, "parameters          %s\n", changeOf(d.Before.Parameters, d.After.Parameters, count[int64]))
	arithmetic := ""
	if d.Shapes > 0 {
		arithmetic = fmt.Sprintf("; %s of shape arithmetic removed", count(d.Shapes))
	}
	fmt.Fprintf(w, "nodes               %s%s\n", changeOf(int64(d.Before.Nodes), int64(d.After.Nodes), count[int64]), arithmetic)
	_, err := fmt.Fprintf(w, "wrote %s (%s)\n", d.Output, size(d.OutputBytes))
	return err
}

// printReasons says, once for all blocks that it holds of, why a lowering was chosen.
func (d *rewriting) printReasons(w io.Writer) {
	var reasons []string
	blocks := map[string][]string{}
	for _, b := range d.Blocks {
		r := b.Lowering + " (" + b.Why + ")"
		if blocks[r] == nil {
			reasons = append(reasons, r)
		}
		blocks[r] = append(blocks[r], b.Block)
	}
	for _, r := range reasons {
		if len(reasons) == 1 {
			fmt.Fprintf(w, "lowering            %s\n", r)
			continue
		}
		named := blocks[r]
		more := ""
		if n := len(named) - 2; n > 0 {
			named, more = named[:2], fmt.Sprintf(" and %d more", n)
		}
		fmt.Fprintf(w, "lowering            %s: %s%s\n", r, strings.Join(named, ", "), more)
	}
	for _, n := range d.Notes {
		fmt.Fprintf(w, "note                %s\n", n)
	}
}

func changeCount(before, after int64) string {
	if before == after {
		return count(before)
	}
	return count(before) + " → " + count(after)
}
