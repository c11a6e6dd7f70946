package main

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/bench"
	"onnx-dha/ort"
)

// defaultLengths are the context lengths measured when none are asked for; those that a model has no positions for are
// left out.
var defaultLengths = []int{256, 1024, 4096}

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure prefill and decode of models side by side",
		ArgsUsage: "ORIGINAL REWRITTEN",
		Description: "Measures how long a prefill and a decoded token take, at several context lengths and batch sizes, what memory and\n" +
			"what caches cost, and how near the gain comes to what the bytes moved allow. Models are measured in turn, and more\n" +
			"than two may be named: one that caches as much as the original (a rewrite that fuses no heads) is a second base.\n" +
			"Measure on a machine that does nothing else.",
		Flags: common(reportOutput,
			&cli.StringFlag{Name: "lengths", Usage: "decode after so many cached positions, `N,N,…`", DefaultText: joinInts(defaultLengths)},
			&cli.StringFlag{Name: "batches", Value: "1", Usage: "decode and prefill so many sequences at a time, `N,N,…`"},
			&cli.IntFlag{Name: "prompt", Value: 128, Usage: "prefill `N` tokens; 0 for none"},
			&cli.StringFlag{Name: "fill", Value: "100%", Usage: "fill static caches to these `SHARES`: 100%,25%; a step computes over a whole buffer, filled or not"},
			&cli.IntFlag{Name: "rounds", Value: 5, Usage: "measure every model `N` times"},
			&cli.IntFlag{Name: "steps", Value: 8, Usage: "decode `N` timed tokens a round"},
			&cli.IntFlag{Name: "warmup", Value: 2, Usage: "decode `N` tokens before them"},
			&cli.StringFlag{Name: "plot", Usage: "draw tokens a second over the context length to `FILE`, an .svg", TakesFile: true},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N`, the seed of tokens and caches"},
			&cli.StringFlag{Name: "provider", Value: "cpu", Usage: "`EP`, the execution provider: " + strings.Join(ort.Providers(), " or ")},
			&cli.IntFlag{Name: "threads", Usage: "use `N` threads within an operator (default: the runtime chooses)"},
			ortLibFlag()),
		Action: runBench,
	}
}

// benchRequest reads what is to be measured from the options.
func benchRequest(c *cli.Context) (q bench.Request, err error) {
	q.Models = c.Args().Slice()
	if len(q.Models) < 2 {
		return q, usageError("%s is missing; usage: %s %s [MORE…]", []string{"ORIGINAL and REWRITTEN", "REWRITTEN"}[len(q.Models)], c.Command.HelpName, c.Command.ArgsUsage)
	}
	q.Lengths = defaultLengths
	if c.IsSet("lengths") {
		if q.Lengths, err = positiveInts(c, "lengths"); err != nil {
			return q, err
		}
	}
	if q.Batches, err = positiveInts(c, "batches"); err != nil {
		return q, err
	}
	for text := range strings.SplitSeq(c.String("fill"), ",") {
		share, err := readShare("fill", text)
		if err != nil {
			return q, err
		}
		if !slices.Contains(q.Fills, share) {
			q.Fills = append(q.Fills, share)
		}
	}
	for _, name := range []string{"rounds", "steps"} {
		if c.Int(name) < 1 {
			return q, usageError("--%s %d; want 1 or more", name, c.Int(name))
		}
	}
	if c.Int("prompt") < 0 || c.Int("warmup") < 1 {
		return q, usageError("--prompt is 0 or more, --warmup 1 or more")
	}
	provider, err := oneOf(c, "provider")
	if err != nil {
		return q, err
	}
	q.Prompt, q.Rounds, q.Steps, q.Warmup = c.Int("prompt"), c.Int("rounds"), c.Int("steps"), c.Int("warmup")
	q.Session, q.Seed = ort.Options{Provider: provider, Threads: c.Int("threads")}, c.Uint64("seed")
	return q, nil
}

// positiveInts reads an option that lists numbers, in order and each once.
func positiveInts(c *cli.Context, name string) (out []int, err error) {
	for text := range strings.SplitSeq(c.String(name), ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 1 || n > 1<<30 {
			return nil, usageError("--%s %s; want numbers of 1 and more with commas between", name, c.String(name))
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func joinInts(n []int) string {
	text := make([]string, len(n))
	for i, x := range n {
		text[i] = strconv.Itoa(x)
	}
	return strings.Join(text, ",")
}

func runBench(c *cli.Context) error {
	q, err := benchRequest(c)
	if err != nil {
		return err
	}
	drawing := c.String("plot")
	if drawing != "" && plotForm(drawing) != "svg" {
		return usageError("--plot %s; want a name that ends in .svg", drawing)
	}
	if drawing != "" && drawing == c.String("output") {
		return usageError("--plot and --output are one file, %s; want two", drawing)
	}
	for _, path := range []string{c.String("output"), drawing} {
		if path == "" {
			continue
		}
		if err := apart(path, q.Models...); err != nil {
			return err
		}
	}
	for _, path := range q.Models {
		m, err := loadModel(path)
		if err != nil {
			return err
		}
		m.Close()
	}
	lib, err := ort.Find(c.String("ort-lib"))
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		return coded(exitRuntime, err)
	}
	bar := newProgress(c)
	q.Progress = withTimeLeft(bar.step)
	r, err := bench.Run(c.Context, q)
	bar.clear()
	if err != nil {
		var unfit *bench.ModelError
		if errors.As(err, &unfit) {
			return coded(exitModel, err)
		}
		return coded(exitRuntime, err)
	}
	out := describeBench(r, q)
	out.dropUnasked(c.IsSet("lengths"))
	if err := emit(c, c.String("output"), out, out.print, q.Models...); err != nil {
		return err
	}
	if drawing == "" {
		return nil
	}
	svg, err := out.draw()
	if err != nil {
		return coded(exitUsage, fmt.Errorf("--plot %s: %w", drawing, err))
	}
	return writeFile(drawing, []byte(svg), q.Models...)
}

// processor is what a report says of the machine.
func processor() string {
	return fmt.Sprintf("%s/%s, %s", runtime.GOOS, runtime.GOARCH, plural(runtime.NumCPU(), "processor"))
}
