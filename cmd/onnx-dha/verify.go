package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

func init() { choices["provider"] = ort.Providers() }

func verifyCommand() *cli.Command {
	own := []cli.Flag{
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration, a dha.yaml `FILE` (default: the one recorded in the rewritten model)", TakesFile: true},
		&cli.IntFlag{Name: "steps", Value: verify.DefaultSteps, Usage: "decode `N` tokens after the prefill, each model with its own cache; 0 for none"},
		&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N`, the seed of the generated inputs"},
	}
	own = append(own, metricFlags()...)
	own = append(own, inputFlags()...)
	own = append(own, textFlags()...)
	own = append(own, layerFlags()...)
	own = append(own, providerFlags()...)
	own = append(own,
		&cli.BoolFlag{Name: "cross-check", Usage: "let a second reader, onnx-go, decode the rewritten file too"},
		&cli.StringSliceFlag{Name: "with", Usage: "`MODEL` that was rewritten together with ORIGINAL, which passes caches to it or takes them from it (repeat for several)", TakesFile: true},
		&cli.BoolFlag{Name: "force", Usage: "accept an original that is not the one the configuration was made for"},
		&cli.IntFlag{Name: "threads", Usage: "use `N` threads within an operator (default: the runtime chooses)"},
		ortLibFlag())
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare a rewritten model with its original in ONNX Runtime",
		ArgsUsage: "ORIGINAL REWRITTEN",
		Description: "Runs both models on the same inputs and answers two questions apart: is the rewrite exact (against the\n" +
			"tied reference, the original with fused weights in its own graph), and how far does the result drift from the\n" +
			"original. The configuration is found inside the rewritten model. Exit code 1 when a tolerance is broken.\n" +
			"With --golden DIR the original is not needed: the one argument is REWRITTEN.",
		Flags:  common(reportOutput, append(reportFlags(), own...)...),
		Action: runVerify,
	}
}

// metricFlag is the option that limits a metric.
func metricFlag(metric string) string { return strings.ReplaceAll(metric, "_", "-") }

// metricFlags are the limits, by the names that they have in a configuration.
func metricFlags() []cli.Flag {
	var out []cli.Flag
	for _, m := range fusion.Metrics {
		bound := "least"
		if m.AtMost {
			bound = "most"
		}
		out = append(out, &cli.Float64Flag{
			Name: metricFlag(m.Name), Usage: fmt.Sprintf("tolerance: %s of `X` at %s", verify.Heading(m.Name), bound), DefaultText: "the configuration's",
		})
	}
	return out
}

// verification is what the command prints.
type verification struct {
	Report     *verify.Report     `json:"report"`
	CrossCheck *verify.CrossCheck `json:"cross_check,omitempty"`
}

func runVerify(c *cli.Context) error {
	if c.IsSet("golden") {
		return runGolden(c)
	}
	args, err := arguments(c)
	if err != nil {
		return err
	}
	if c.Int("steps") < 0 || c.Int("threads") < 0 || c.Int("trials") < 1 {
		return usageError("--steps and --threads are 0 or more, --trials 1 or more")
	}
	q := verify.Request{Original: args[0], Rewritten: args[1], Steps: c.Int("steps"), Seed: c.Uint64("seed"), Reference: &ort.Options{}}
	if q.Session, *q.Reference, err = sessions(c); err != nil {
		return err
	}
	if q.Steps == 0 {
		q.Steps = -1
	}
	out := verification{}
	if out.Report, err = compareModels(c, q); err != nil {
		return err
	}
	if c.Bool("cross-check") {
		if out.CrossCheck, err = verify.CrossCheckFile(args[1]); err != nil {
			return coded(exitModel, err)
		}
	}
	return out.print(c, args...)
}

// compareModels is the comparison of two models that are there, with all that the options ask for.
func compareModels(c *cli.Context, q verify.Request) (rep *verify.Report, err error) {
	text, err := readText(c)
	if err != nil {
		return nil, err
	}
	if q.Record, err = record(c); err != nil {
		return nil, err
	}
	pair, err := openPair(c, q.Original, q.Rewritten)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pair.close()) }()
	switch s := pair.signature; {
	case text != nil && (s.Tokens == "" || s.Logits == ""):
		return nil, usageError("--text needs a model that takes token ids and gives a score for each token of the vocabulary; %s does not", q.Original)
	case c.Int("generate") > 0 && !s.IsDecoder():
		return nil, usageError("--generate needs a decoder: token ids of an open length go in, scores of the next tokens come out; %s is none", q.Original)
	}
	if q.Drift = tolerance(c, pair.config); text != nil {
		q.Text = text.ids
	}
	set, err := samples(c, q.Original, pair.signature)
	if err != nil {
		return nil, err
	}
	if err := openRuntime(c); err != nil {
		return nil, err
	}
	if err := pair.tie(); err != nil {
		return nil, err
	}
	if pair.tied != nil {
		q.Tied, q.Caches = pair.tied.Path, pair.caches
	}
	if c.Bool("layers") {
		q.Taps = pair.taps
	}
	useSamples(c, &q, set, pair)
	if err := c.Context.Err(); err != nil {
		return nil, err
	}
	bar := newProgress(c)
	q.Progress = bar.step
	rep, err = verify.Run(c.Context, q)
	bar.clear()
	if err == nil {
		err = further(c, q, text, rep, pair.signature)
	}
	if err == nil {
		err = providers(c, q, rep)
	}
	if err == nil && c.Bool("bisect") {
		err = pair.bisect(c, q, q.Record, rep)
	}
	if err != nil {
		return nil, coded(exitRuntime, err)
	}
	rep.Blocks = pair.blocks
	rep.Notes = append(rep.Notes, pair.notes...)
	return rep, saveRecord(c, q.Record, rep, pair.fingerprint)
}

// openRuntime loads ONNX Runtime.
func openRuntime(c *cli.Context) error {
	lib, err := ort.Find(c.String("ort-lib"))
	if err == nil {
		err = ort.Open(lib)
	}
	return coded(exitRuntime, err)
}

// runGolden compares a rewritten model with a recording of its original.
func runGolden(c *cli.Context) error {
	if c.NArg() != 1 {
		return usageError("with --golden DIR verify takes one model, the rewritten one; got %d arguments", c.NArg())
	}
	for _, name := range []string{"data", "text", "layers", "bisect", "save-inputs", "save-golden", "generate", "reference-provider", "cross-check"} {
		if c.IsSet(name) {
			return usageError("--%s needs the original, and --golden does without it: what was recorded is replayed", name)
		}
	}
	path := c.Args().First()
	small, err := loadModel(path)
	if err != nil {
		return err
	}
	defer small.Close()
	golden, err := verify.OpenGolden(c.String("golden"))
	if err != nil {
		return coded(exitUsage, err)
	}
	var config *fusion.Config
	if c.IsSet("config") {
		if config, err = fusion.Load(c.String("config")); err != nil {
			return coded(exitUsage, fmt.Errorf("configuration: %w", err))
		}
	} else if recorded, _ := small.Metadata(rewrite.MetadataConfig); recorded != "" {
		if config, err = fusion.Parse(path+" (recorded configuration)", []byte(recorded)); err != nil {
			return err
		}
	}
	if config != nil && config.Fingerprint != "" && golden.Fingerprint != "" && config.Fingerprint != golden.Fingerprint && !c.Bool("force") {
		return coded(exitModel, fmt.Errorf("%s was rewritten from another model than the recording's, %s: their attention weights differ; --force compares them all the same", path, golden.Original))
	}
	q := verify.Request{Rewritten: path, Drift: tolerance(c, config)}
	if q.Session, _, err = sessions(c); err != nil {
		return err
	}
	if err := openRuntime(c); err != nil {
		return err
	}
	bar := newProgress(c)
	q.Progress = bar.step
	rep, err := golden.Replay(c.Context, q)
	bar.clear()
	if err != nil {
		return coded(exitRuntime, err)
	}
	out := verification{Report: rep}
	return out.print(c, path)
}

// print writes the report in the forms that were asked for; its error is that of a report that does not pass.
func (v *verification) print(c *cli.Context, inputs ...string) error {
	err := emit(c, c.String("output"), v, func(w io.Writer, _ bool) error {
		if v.CrossCheck != nil {
			if _, err := fmt.Fprintln(w, v.CrossCheck); err != nil {
				return err
			}
		}
		return v.Report.WriteText(w)
	}, inputs...)
	if err != nil {
		return err
	}
	if err := writeReports(c, v.Report, inputs...); err != nil {
		return err
	}
	return v.judge()
}

// judge is the error of a report that does not pass.
func (v *verification) judge() error {
	err := v.Report.Err()
	if v.CrossCheck != nil && len(v.CrossCheck.Differences) > 0 {
		err = errors.Join(err, errors.New("onnx-go reads the rewritten file differently"))
	}
	return coded(exitDrift, err)
}
