package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/data/tokenizer"
	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/unfuse"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

func init() { choices["provider"] = ort.Providers() }

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:      "verify",
		Usage:     "compare a rewritten model with its original in ONNX Runtime",
		ArgsUsage: "ORIGINAL REWRITTEN",
		Description: "Runs both models on the same inputs and answers two questions apart: is the rewrite exact (against the\n" +
			"tied reference, the original with fused weights in its own graph), and how far does the result drift from the\n" +
			"original. The configuration is found inside the rewritten model. Exit code 1 when a tolerance is broken.",
		Flags: common(reportOutput, append(reportFlags(),
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "the configuration, a dha.yaml `FILE` (default: the one recorded in the rewritten model)", TakesFile: true},
			&cli.IntFlag{Name: "steps", Value: verify.DefaultSteps, Usage: "decode `N` tokens after the prefill, each model with its own cache; 0 for none"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N`, the seed of the generated inputs"},
			&cli.Float64Flag{Name: "kl", Usage: "tolerance: mean KL divergence of at most `NATS`", DefaultText: "the configuration's"},
			&cli.Float64Flag{Name: "top1", Usage: "tolerance: same most likely token at a `SHARE` of the positions at least", DefaultText: "the configuration's"},
			&cli.StringFlag{Name: "text", Usage: "measure perplexity on `FILE` and cut prompts from it", TakesFile: true},
			&cli.StringFlag{Name: "vocab", Aliases: []string{"tokenizer"}, Usage: "tokenizer of --text: a `FILE` such as tokenizer.json, a SentencePiece .model, or a JSON object of token text to id", TakesFile: true},
			&cli.IntFlag{Name: "window", Value: 256, Usage: "cut --text into windows of `N` tokens"},
			&cli.IntFlag{Name: "windows", Value: 40, Usage: "use the first `N` windows of --text; 0 for all"},
			&cli.StringFlag{Name: "prompt", Usage: "`TEXT` that both models continue (default: how --text begins)"},
			&cli.IntFlag{Name: "generate", Usage: "let both models continue the prompt by `N` tokens"},
			&cli.BoolFlag{Name: "cross-check", Usage: "let a second reader, onnx-go, decode the rewritten file too"},
			&cli.BoolFlag{Name: "force", Usage: "accept an original that is not the one the configuration was made for"},
			&cli.StringFlag{Name: "provider", Value: "cpu", Usage: "`EP`, the execution provider: " + strings.Join(ort.Providers(), " or ")},
			&cli.IntFlag{Name: "threads", Usage: "use `N` threads within an operator (default: the runtime chooses)"},
			ortLibFlag())...),
		Action: runVerify,
	}
}

// verification is what the command prints.
type verification struct {
	Report     *verify.Report     `json:"report"`
	CrossCheck *verify.CrossCheck `json:"cross_check,omitempty"`
}

func runVerify(c *cli.Context) (err error) {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	provider, err := oneOf(c, "provider")
	if err != nil {
		return err
	}
	if c.Int("steps") < 0 || c.Int("threads") < 0 {
		return usageError("--steps and --threads are 0 or more")
	}
	text, err := readText(c)
	if err != nil {
		return err
	}
	pair, err := openPair(c, args[0], args[1])
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pair.close()) }()
	lib, err := ort.Find(c.String("ort-lib"))
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		return coded(exitRuntime, err)
	}
	q := verify.Request{
		Original: args[0], Rewritten: args[1], Steps: c.Int("steps"), Seed: c.Uint64("seed"), Drift: pair.tolerance(c),
		Session: ort.Options{Provider: provider, Threads: c.Int("threads")},
	}
	if q.Steps == 0 {
		q.Steps = -1
	}
	if text != nil {
		q.Text = text.ids
	}
	if q.Tied, q.Caches, err = pair.tie(); err != nil {
		return err
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	bar := newProgress(c)
	q.Progress = bar.step
	r, err := verify.Run(c.Context, q)
	bar.clear()
	if err != nil {
		return coded(exitRuntime, err)
	}
	if text != nil {
		if r.Text, err = text.compare(c, q); err != nil {
			return coded(exitRuntime, err)
		}
	}
	out := verification{Report: r}
	if c.Bool("cross-check") {
		if out.CrossCheck, err = verify.CrossCheckFile(args[1]); err != nil {
			return coded(exitModel, err)
		}
	}
	r.Notes = append(r.Notes, pair.notes...)
	err = emit(c, c.String("output"), out, func(w io.Writer, _ bool) error {
		if out.CrossCheck != nil {
			if _, err := fmt.Fprintln(w, out.CrossCheck); err != nil {
				return err
			}
		}
		return r.WriteText(w)
	}, args...)
	if err != nil {
		return err
	}
	if err := writeReports(c, r, args...); err != nil {
		return err
	}
	return out.judge()
}

// judge is the error of a report that does not pass.
func (v *verification) judge() error {
	err := v.Report.Err()
	if v.CrossCheck != nil && len(v.CrossCheck.Differences) > 0 {
		err = errors.Join(err, errors.New("onnx-go reads the rewritten file differently"))
	}
	return coded(exitDrift, err)
}

// modelPair is an original and a rewritten model with the configuration between them.
type modelPair struct {
	original, rewritten string
	config              *fusion.Config // nil when none is known; then only drift is measured
	folder              string         // of the tied reference
	notes               []string
}

// openPair reads both models and the configuration of the second, and checks that they belong together.
func openPair(c *cli.Context, original, rewritten string) (*modelPair, error) {
	p := &modelPair{original: original, rewritten: rewritten}
	small, err := loadModel(rewritten)
	if err != nil {
		return nil, err
	}
	defer small.Close()
	recorded, _ := small.Metadata(rewrite.MetadataConfig)
	hash, _ := small.Metadata(rewrite.MetadataHash)
	switch {
	case c.IsSet("config"):
		if p.config, err = fusion.Load(c.String("config")); err != nil {
			return nil, coded(exitUsage, fmt.Errorf("configuration: %w", err))
		}
		if h := p.config.Hash(); hash != "" && hash != h {
			return nil, usageError("%s was rewritten with another configuration: it records %s, %s has %s", rewritten, short(hash), c.String("config"), short(h))
		}
	case recorded != "":
		if p.config, err = fusion.Parse(rewritten+" (recorded configuration)", []byte(recorded)); err != nil {
			return nil, err
		}
		if p.config.Weights != "" && !p.findWeights() {
			p.notes = append(p.notes, fmt.Sprintf("%s was rewritten with learned weights, and %s is neither beside it nor beside the original: only drift was measured; --config names their configuration", filepath.Base(rewritten), p.config.Weights))
			p.config = nil
		}
	default:
		p.notes = append(p.notes, fmt.Sprintf("%s records no configuration and --config gives none: only drift was measured", filepath.Base(rewritten)))
	}
	big, found, err := openModel(original)
	if err != nil {
		return nil, err
	}
	defer big.Close()
	if err := sameInputs(big, small); err != nil {
		return nil, err
	}
	if p.config == nil {
		return p, nil
	}
	if err := needBlocks(big, found); err != nil {
		return nil, err
	}
	if !c.Bool("force") {
		if err := p.config.CheckModel(found.Blocks); err != nil {
			return nil, forceable(err)
		}
	}
	_, err = p.config.Resolve(found.Blocks)
	return p, err
}

// findWeights looks for the learned tensors of a recorded configuration, which does not know where it lay: beside the
// rewritten model, then beside the original.
func (p *modelPair) findWeights() bool {
	for _, model := range []string{p.rewritten, p.original} {
		p.config.Dir = filepath.Dir(model)
		if _, err := os.Stat(filepath.Join(p.config.Dir, p.config.Weights)); err == nil {
			return true
		}
	}
	return false
}

func short(hash string) string { return hash[:min(12, len(hash))] }

// sameInputs refuses two models that no input fits both of.
func sameInputs(original, rewritten *graph.Model) error {
	names := func(m *graph.Model) []string {
		var out []string
		for _, v := range m.Graph.Inputs {
			if v.Init == nil {
				out = append(out, v.Name)
			}
		}
		slices.Sort(out)
		return out
	}
	a, b := names(original), names(rewritten)
	if slices.Equal(a, b) {
		return nil
	}
	return usageError("%s is no rewrite of %s: its inputs are %s, the original's %s", rewritten.Path, original.Path, strings.Join(b, ", "), strings.Join(a, ", "))
}

// tolerance is the configuration's with those of the command line over it, nil when neither says anything.
func (p *modelPair) tolerance(c *cli.Context) *verify.Tolerance {
	limits := fusion.Limits{}
	given := false
	if p.config != nil && p.config.Verify != nil {
		given = true
		for name, bound := range p.config.Verify {
			limits[name] = bound
		}
	}
	for _, name := range []string{"kl", "top1"} {
		if c.IsSet(name) {
			given = true
			limits[name] = c.Float64(name)
		}
	}
	if !given {
		return nil
	}
	t := &verify.Tolerance{Name: verify.DefaultDrift().Name}
	for _, m := range fusion.Metrics {
		if bound, ok := limits[m.Name]; ok {
			t.Limits = append(t.Limits, verify.Limit{Metric: m.Name, Bound: bound})
		}
	}
	return t
}

// tie writes the tied reference into a temporary folder and returns its path with the changes of the caches.
func (p *modelPair) tie() (path string, caches []rewrite.CacheChange, err error) {
	if p.config == nil {
		return "", nil, nil
	}
	if p.folder, err = os.MkdirTemp("", program+"-*"); err != nil {
		return "", nil, err
	}
	path = filepath.Join(p.folder, "tied.onnx")
	for _, reference := range []bool{true, false} {
		src, err := openSource(p.original, nil)
		if err != nil {
			return "", nil, err
		}
		defer func() { src.m.Close() }()
		var plan *fusion.Plan
		if src, plan, err = src.planned(p.config); err != nil {
			return "", nil, err
		}
		if reference {
			if err := p.reference(src, plan, path); err != nil {
				return "", nil, err
			}
			continue
		}
		res, err := rewrite.Apply(src.m, plan)
		if err != nil {
			return "", nil, coded(exitModel, fmt.Errorf("%s: %w", p.original, err))
		}
		caches = res.Caches
	}
	return path, caches, nil
}

// reference writes the tied reference: the model as the file has it, with other constants. Where operators were expanded
// to find the blocks, the constants are carried back to the fused ones, so that the expansion is held against them too.
func (p *modelPair) reference(src *source, plan *fusion.Plan, path string) error {
	before := unfuse.Remember(src.m, src.expansions)
	if err := rewrite.Tie(src.m, plan); err != nil {
		return coded(exitModel, fmt.Errorf("tied reference of %s: %w", p.original, err))
	}
	m := src.m
	if len(src.expansions) > 0 {
		fused, err := loadModel(p.original)
		if err != nil {
			return err
		}
		defer fused.Close()
		switch err := before.Carry(fused); {
		case err == nil:
			m = fused
			for _, e := range src.expansions {
				if e.Assumes != "" {
					p.notes = append(p.notes, fmt.Sprintf("%s was expanded under a condition: %s", e.Node, e.Assumes))
				}
			}
		case errors.Is(err, unfuse.ErrNotCarried):
			p.notes = append(p.notes, fmt.Sprintf("the tied reference is expanded as the rewritten model is, so its fused operators were not compared: %v", err))
		default:
			return coded(exitModel, fmt.Errorf("tied reference of %s: %w", p.original, err))
		}
	}
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		return fmt.Errorf("tied reference: %w", err)
	}
	return nil
}

func (p *modelPair) close() error {
	if p.folder == "" {
		return nil
	}
	return os.RemoveAll(p.folder)
}

// sample is a text to measure on.
type sample struct {
	tokens tokenizer.Tokenizer
	ids    []int64
	prompt []int64
}

// readText reads --text and what goes with it, nil without one.
func readText(c *cli.Context) (*sample, error) {
	if c.String("text") == "" {
		for _, name := range []string{"vocab", "prompt", "generate", "window", "windows"} {
			if c.IsSet(name) {
				return nil, usageError("--%s goes with --text FILE", name)
			}
		}
		return nil, nil
	}
	if c.String("vocab") == "" {
		return nil, usageError("--text needs --vocab FILE: the model's tokenizer.json, or another kind of tokenizer")
	}
	if c.Int("window") < 2 || c.Int("windows") < 0 || c.Int("generate") < 0 {
		return nil, usageError("--window is 2 or more, --windows and --generate 0 or more")
	}
	tokens, err := tokenizer.Open(c.String("vocab"))
	if err != nil {
		return nil, coded(exitUsage, err)
	}
	data, err := os.ReadFile(c.String("text"))
	if err != nil {
		return nil, coded(exitUsage, err)
	}
	s := &sample{tokens: tokens}
	if s.ids, err = tokens.Encode(string(data)); err != nil {
		return nil, usageError("text %s: %w", c.String("text"), err)
	}
	if len(s.ids) < c.Int("window") {
		return nil, usageError("text %s has %d tokens; a window takes %d (--window)", c.String("text"), len(s.ids), c.Int("window"))
	}
	if prompt := c.String("prompt"); prompt != "" {
		if s.prompt, err = tokens.Encode(prompt); err != nil {
			return nil, usageError("--prompt: %w", err)
		}
	}
	return s, nil
}

func (s *sample) compare(c *cli.Context, q verify.Request) (*verify.TextPair, error) {
	var models [2]*verify.Model
	for i, path := range []string{q.Original, q.Rewritten} {
		m, err := verify.Open(path, q.Session)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		models[i] = m
	}
	return verify.CompareText(c.Context, models[0], models[1], s.ids, verify.TextOptions{
		Window: c.Int("window"), Windows: c.Int("windows"), Prompt: s.prompt, Generate: c.Int("generate"),
	}, s.tokens.Decode)
}
