package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/learn"
	"onnx-dha/ort"
)

const measureImportance = "measure"

func init() {
	for _, l := range fusion.Layouts {
		choices["layout"] = append(choices["layout"], string(l))
	}
	choices["groups"] = []string{string(fusion.AnyGroups), string(fusion.EqualGroups)}
	choices["importance-by"] = learn.Criteria()
}

// searchFlags are the options of commands that search for heads to share, after those of the command.
func searchFlags(trials int, own ...cli.Flag) []cli.Flag {
	return append(own,
		&cli.StringFlag{Name: "layout", Value: string(fusion.FreeLayout), Usage: "`LAYOUT` of the numbers of heads: free (any), coupled (as many keys as values in a layer), uniform (one number everywhere)"},
		&cli.StringFlag{Name: "groups", Value: string(fusion.AnyGroups), Usage: "`SIZES` of groups: any, or equal within a layer"},
		&cli.BoolFlag{Name: "nested", Usage: "make groups of keys unions of groups of values, or the other way round"},
		&cli.StringFlag{Name: "importance", Usage: "let errors count by the importance of query heads from `SOURCE`: measure, or the JSON file that importance wrote", TakesFile: true},
		&cli.StringFlag{Name: "importance-by", Value: learn.Criteria()[0], Usage: "`CRITERION` of importance: " + strings.Join(learn.Criteria(), ", ")},
		&cli.IntFlag{Name: "trials", Value: trials, Usage: "try `N` neighbouring allocations on the whole model"},
		&cli.BoolFlag{Name: "no-refit", Usage: "leave values and output projections as the strategy makes them"},
		&cli.Float64Flag{Name: "held-out", Value: 0.1, Usage: "keep a `SHARE` of the data, its end, for the report"},
		&cli.IntFlag{Name: "held-out-samples", Value: 64, Usage: "use `N` samples of that part, taken evenly; 0 for all"},
		&cli.BoolFlag{Name: "resume", Usage: "go on where a stopped run of the same command left off"},
		&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "seed `N` of searches and of inputs that are neither in the data nor made from them"},
		&cli.StringFlag{Name: "provider", Value: "cpu", Usage: "execution provider `EP`: " + strings.Join(ort.Providers(), ", ")},
		&cli.IntFlag{Name: "threads", Usage: "use `N` threads within an operator (default: the runtime chooses)"},
		ortLibFlag())
}

// searchRequest reads those options.
func searchRequest(c *cli.Context) (q learn.Request, err error) {
	if h := c.Float64("held-out"); !(h > 0 && h < 1) {
		return q, usageError("--held-out %g; want more than 0 and less than 1: the report needs data that nothing was learned from", h)
	}
	for _, name := range []string{"trials", "held-out-samples"} {
		if c.Int(name) < 0 {
			return q, usageError("--%s %d; want 0 or more", name, c.Int(name))
		}
	}
	layout, err := oneOf(c, "layout")
	if err != nil {
		return q, err
	}
	groups, err := oneOf(c, "groups")
	if err != nil {
		return q, err
	}
	if _, err := oneOf(c, "importance-by"); err != nil {
		return q, err
	}
	if c.IsSet("importance-by") && c.String("importance") == "" {
		return q, usageError("--importance-by without --importance; want --importance measure, or the file that %s importance --json wrote", program)
	}
	q.Layout, q.Groups, q.Nested = fusion.Layout(layout), fusion.GroupSizes(groups), c.Bool("nested")
	q.Trials, q.NoRefit, q.Seed, q.Resume = c.Int("trials"), c.Bool("no-refit"), c.Uint64("seed"), c.Bool("resume")
	return q, nil
}

// importanceFile is the file that --importance names, empty where there is none.
func importanceFile(c *cli.Context) string {
	if s := c.String("importance"); s != measureImportance {
		return s
	}
	return ""
}

// addImportance gives a request the importance of query heads that the options ask for.
func addImportance(c *cli.Context, lab *learn.Lab, q *learn.Request, bar *progress) error {
	source, by := c.String("importance"), c.String("importance-by")
	var imp *learn.Importance
	switch source {
	case "":
		return nil
	case measureImportance:
		batches, err := lab.Batches(q.Train, q.Seed)
		if err != nil {
			return coded(exitUsage, fmt.Errorf("data %q: %w", c.String("data"), err))
		}
		remove := learn.RemoveNone
		if by == learn.Criteria()[0] {
			remove = learn.RemoveQueries
		}
		if imp, err = lab.Importance(c.Context, batches, remove, withTimeLeft(bar.step)); err != nil {
			return labError(lab.Path, fmt.Errorf("importance: %w", err))
		}
	default:
		var err error
		if imp, err = readImportance(source); err != nil {
			return coded(exitUsage, err)
		}
	}
	weights, err := lab.HeadWeights(imp, by)
	if err != nil {
		return usageError("--importance %s: %w", source, err)
	}
	q.Importance = weights
	return nil
}

// readImportance reads the JSON that the command importance prints.
func readImportance(path string) (*learn.Importance, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var report importance
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	err = d.Decode(&report)
	if err == nil && report.Importance == nil {
		err = errors.New("it names no blocks")
	}
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the report")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("importance %q: %w; want the JSON that %s importance --json prints", filepath.Base(path), err, program)
	}
	return report.Importance, nil
}
