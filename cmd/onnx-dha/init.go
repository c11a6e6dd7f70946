package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph/attention"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:      "init",
		Usage:     "write a dha.yaml to start from",
		ArgsUsage: "MODEL...",
		Description: "Writes a commented configuration with all attention blocks of the model, groups of neighbouring heads,\n" +
			"and the model's fingerprint. Give the numbers of heads, or the share of the cache that may stay.",
		Flags: common("write the configuration to `FILE`, - for standard output (default: dha.yaml beside the model)",
			&cli.IntFlag{Name: "key", Usage: "fuse the key heads of each block into `N`"},
			&cli.IntFlag{Name: "value", Usage: "fuse the value heads of each block into `N`"},
			&cli.StringFlag{Name: "kv", Usage: "choose the numbers of heads so that at most `SHARE` of each block's cache stays: 50% or 0.5"},
			&cli.BoolFlag{Name: "force", Usage: "replace a configuration that is there"}),
		Action: initialise,
	}
}

func initialise(c *cli.Context) error {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	target, err := headTarget(c)
	if err != nil {
		return err
	}
	paths, err := modelPaths(args)
	if err != nil {
		return err
	}
	path := c.String("output")
	if path == "" {
		path = filepath.Join(filepath.Dir(paths[0]), "dha.yaml")
	}
	if _, err := os.Stat(path); err == nil && path != "-" && !c.Bool("force") {
		if err := apart(path, paths...); err != nil {
			return err
		}
		return usageError("%s exists; --force replaces it, -o names another", path)
	}
	models, err := openModels(paths, nil)
	if err != nil {
		return err
	}
	defer models.close()
	if err := models.needBlocks(); err != nil {
		return err
	}
	cfg, err := fusion.Draft(models.blocks(), target)
	if err != nil {
		return coded(exitUsage, err)
	}
	data, err := cfg.Marshal()
	if err != nil {
		return err
	}
	if path == "-" {
		_, err := c.App.Writer.Write(data)
		return err
	}
	if err := writeFile(path, data, paths...); err != nil {
		return err
	}
	d, err := describeDraft(path, cfg, models)
	if err != nil {
		return err
	}
	return emit(c, "", d, func(w io.Writer, color bool) error { return d.print(w, color) })
}

// headTarget reads what the options ask for.
func headTarget(c *cli.Context) (fusion.Target, error) {
	if !c.IsSet("kv") {
		for _, name := range []string{"key", "value"} {
			if c.IsSet(name) && c.Int(name) < 1 {
				return nil, usageError("--%s %d; want at least 1 head", name, c.Int(name))
			}
		}
		if !c.IsSet("key") && !c.IsSet("value") {
			return nil, usageError("nothing to aim for; want --key N, --value N, both, or --kv SHARE such as 50%%")
		}
		return fusion.HeadCounts(c.Int("key"), c.Int("value")), nil
	}
	if c.IsSet("key") || c.IsSet("value") {
		return nil, usageError("--kv chooses the numbers of heads itself; leave out --key and --value, or --kv")
	}
	text, percent := strings.CutSuffix(strings.TrimSpace(c.String("kv")), "%")
	share, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if percent {
		share /= 100
	}
	if err != nil || math.IsNaN(share) || share <= 0 || share > 1 {
		return nil, usageError("--kv %s; want a share such as 50%% or 0.5", c.String("kv"))
	}
	return fusion.CacheShare(share), nil
}

// draft is what init says about the configuration that it wrote.
type draft struct {
	Config   string       `json:"config"`
	Blocks   []blockDraft `json:"blocks"`
	Before   int64        `json:"kv_bytes_per_token_before"`
	After    int64        `json:"kv_bytes_per_token_after"`
	NotNamed int          `json:"unsupported"`
	cached   bool         // whether the model has caches
}

type blockDraft struct {
	Block       string `json:"block"`
	KeyBefore   int    `json:"key_heads_before"`
	KeyAfter    int    `json:"key_heads_after"`
	ValueBefore int    `json:"value_heads_before"`
	ValueAfter  int    `json:"value_heads_after"`
}

func describeDraft(path string, cfg *fusion.Config, models set) (*draft, error) {
	plan, err := cfg.Resolve(models.blocks())
	if err != nil {
		return nil, err
	}
	d := &draft{Config: path}
	layers := plan.Layers()
	for _, p := range layers {
		b := p.Block
		d.Blocks = append(d.Blocks, blockDraft{b.Name, b.KVHeads, p.Key.Heads(), b.ValueHeads, p.Value.Heads()})
		facts := models.of(b).found.Facts
		d.Before += cacheBytes(b, facts)
		d.After += fusion.CacheBytes(b, facts, p.Key.Heads(), p.Value.Heads())
		d.cached = d.cached || cached(b)
	}
	d.NotNamed = len(attention.Layers(models.blocks())) - len(layers)
	for _, src := range models {
		for _, u := range src.found.Unsupported {
			if u.Attention {
				d.NotNamed++
			}
		}
	}
	return d, nil
}

func (d *draft) print(w io.Writer, color bool) error {
	t := newTable(color, table.Row{"block", "key heads", "value heads"}, 2, 3)
	for _, b := range d.Blocks {
		t.AppendRow(table.Row{b.Block, change(b.KeyBefore, b.KeyAfter), change(b.ValueBefore, b.ValueAfter)})
	}
	fmt.Fprint(w, render(t), "\n")
	fmt.Fprintf(w, "KV cache per token: %s\n", cacheChange(d.Before, d.After, d.cached))
	if d.NotNamed > 0 {
		fmt.Fprintf(w, "%s cannot be rewritten and stay as they are; %s inspect says why\n", plural(d.NotNamed, "more block"), program)
	}
	_, err := fmt.Fprintf(w, "wrote %s\n", d.Config)
	return err
}

// change writes a number before and after, once when it is the same.
func change(before, after int) string {
	if before == after {
		return fmt.Sprint(before)
	}
	return fmt.Sprintf("%d → %d", before, after)
}

// changeOf writes a quantity before and after with the difference in per cent.
func changeOf(before, after int64, format func(int64) string) string {
	if before == after || before == 0 {
		return format(before)
	}
	return fmt.Sprintf("%s → %s (%+.1f %%)", format(before), format(after), 100*(float64(after)/float64(before)-1))
}

// cacheChange words what the cache of a token takes before and after. Without a cache, as in an encoder, it says what keys
// and values take while they are used.
func cacheChange(before, after int64, cached bool) string {
	change := changeOf(before, after, func(n int64) string { return count(n) + " bytes" })
	if !cached {
		return "none; its keys and values take " + change
	}
	return change
}

// cached reports whether a cache holds keys or values of a block.
func cached(b *attention.Block) bool { return b.KeyCache != nil || b.ValCache != nil }
