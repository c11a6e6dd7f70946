package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"onnx-dha/data"
	"onnx-dha/data/tokenizer"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// textFlags and inputFlags say what the models are compared on.
func textFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "text", Usage: "measure perplexity on `FILE` and cut prompts from it", TakesFile: true},
		&cli.StringFlag{Name: "vocab", Aliases: []string{"tokenizer"}, Usage: "tokenizer of --text and --data: a `FILE` such as tokenizer.json, a SentencePiece .model, or a JSON object of token text to id", TakesFile: true},
		&cli.IntFlag{Name: "window", Value: 256, Usage: "cut --text into windows of `N` tokens"},
		&cli.IntFlag{Name: "windows", Value: 40, Usage: "use the first `N` windows of --text; 0 for all"},
		&cli.StringFlag{Name: "prompt", Usage: "`TEXT` that both models continue (default: how --text begins)"},
		&cli.IntFlag{Name: "generate", Usage: "let both models continue prompts by `N` tokens, each fed its own"},
		&cli.IntFlag{Name: "prompts", Value: 4, Usage: "of --generate: `N` prompts at once, cut from --text or drawn"},
	}
}

func inputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "data", Usage: "compare on the samples of `PATH` in place of generated inputs: JSON lines, .npz or .npy tensors, a folder with test_data_set_*, or text", TakesFile: true},
		&cli.IntFlag{Name: "samples", Value: 16, Usage: "use `N` samples of --data, taken evenly over it; 0 for all"},
		&cli.IntFlag{Name: "seq-len", Usage: "cut the text of --data into samples of `N` tokens", DefaultText: fmt.Sprint(data.DefaultSeqLen)},
		&cli.StringFlag{Name: "save-inputs", Usage: "write the inputs of every single run to `DIR`, as test_data_set_* that --data reads", TakesFile: true},
		&cli.StringFlag{Name: "save-golden", Usage: "record inputs and the original's outputs in `DIR`, for --golden", TakesFile: true},
		&cli.Int64Flag{Name: "golden-mib", Value: 16, Usage: "of --save-golden: keep about `N` MiB of outputs, and of larger ones some rows"},
		&cli.StringFlag{Name: "golden", Usage: "compare REWRITTEN with the recording in `DIR`, without the original", TakesFile: true},
	}
}

// samples reads --data for a model, nil without it.
func samples(c *cli.Context, path string, s *verify.Signature) (*data.Set, error) {
	if c.String("data") == "" {
		for _, name := range []string{"samples", "seq-len"} {
			if c.IsSet(name) {
				return nil, usageError("--%s goes with --data PATH", name)
			}
		}
		return nil, nil
	}
	if c.Int("samples") < 0 || c.Int("seq-len") < 0 {
		return nil, usageError("--samples and --seq-len are 0 or more")
	}
	var outputs []ort.IO
	for _, name := range s.Outputs {
		outputs = append(outputs, ort.IO{Name: name})
	}
	return openSet(c, path, s, outputs, 0, 0)
}

// useSamples makes the cases of a request from --data.
func useSamples(c *cli.Context, q *verify.Request, set *data.Set, pair *modelPair) {
	if set == nil {
		return
	}
	changed := map[string]bool{}
	for _, change := range pair.caches {
		changed[change.Past] = true
	}
	cases, left := verify.SampleCases(pair.signature, set.Train(), func(past string) bool { return changed[past] })
	q.Cases, q.Inputs = cases, filepath.Base(c.String("data"))
	pair.notes = append(pair.notes, left...)
	if set.Tokens() && q.Text == nil {
		for _, s := range set.Train() {
			q.Text = append(q.Text, s.Tokens...)
		}
	}
}

// record makes the recorder that the options ask for, nil for none.
func record(c *cli.Context) (*verify.Recorder, error) {
	if c.Int64("golden-mib") < 1 {
		return nil, usageError("--golden-mib is 1 or more")
	}
	if c.String("save-golden") == "" && c.String("save-inputs") == "" && !c.Bool("bisect") {
		return nil, nil
	}
	return &verify.Recorder{Bytes: c.Int64("golden-mib") << 20}, nil
}

// saveRecord writes what was recorded.
func saveRecord(c *cli.Context, r *verify.Recorder, rep *verify.Report, fingerprint string) error {
	if dir := c.String("save-inputs"); dir != "" {
		if err := r.WriteInputs(dir); err != nil {
			return coded(exitUsage, fmt.Errorf("--save-inputs: %w", err))
		}
	}
	if dir := c.String("save-golden"); dir != "" {
		if err := r.Write(dir, rep, fingerprint); err != nil {
			return coded(exitUsage, fmt.Errorf("--save-golden: %w", err))
		}
	}
	return nil
}

// sample is a text to measure on.
type sample struct {
	tokens tokenizer.Tokenizer
	ids    []int64
	prompt []int64
}

// readText reads --text and what goes with it, nil without one.
func readText(c *cli.Context) (*sample, error) {
	if c.Int("generate") < 0 || c.Int("prompts") < 1 {
		return nil, usageError("--generate is 0 or more, --prompts 1 or more")
	}
	if c.IsSet("prompts") && c.Int("generate") == 0 {
		return nil, usageError("--prompts goes with --generate N")
	}
	if c.String("text") == "" {
		for _, name := range []string{"vocab", "prompt", "window", "windows"} {
			if c.IsSet(name) && !(name == "vocab" && c.IsSet("data")) {
				return nil, usageError("--%s goes with --text FILE", name)
			}
		}
		return nil, nil
	}
	if c.String("vocab") == "" {
		return nil, usageError("--text needs --vocab FILE: the model's tokenizer.json, or another kind of tokenizer")
	}
	if c.Int("window") < 2 || c.Int("windows") < 0 {
		return nil, usageError("--window is 2 or more, --windows 0 or more")
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

// further compares both models on a text and on what they generate, where the options ask for it.
func further(c *cli.Context, q verify.Request, text *sample, rep *verify.Report, s *verify.Signature) error {
	n := c.Int("generate")
	if text == nil && n == 0 {
		return nil
	}
	reference := q.Session
	if q.Reference != nil {
		reference = *q.Reference
	}
	original, err := verify.Open(q.Original, reference)
	if err != nil {
		return err
	}
	defer original.Close()
	rewritten, err := verify.Open(q.Rewritten, q.Session)
	if err != nil {
		return err
	}
	defer rewritten.Close()
	if text != nil {
		o := verify.TextOptions{Window: c.Int("window"), Windows: c.Int("windows"), Prompt: text.prompt, Generate: n}
		p, err := verify.CompareText(c.Context, original, rewritten, text.ids, o, text.tokens.Decode)
		if err != nil {
			return err
		}
		rep.AddText(p)
		if q.Record != nil {
			q.Record.Text(verify.Windows(text.ids, o.Window, o.Windows), p.Original)
		}
	}
	if n == 0 {
		return nil
	}
	batch, length := c.Int("prompts"), verify.DefaultPrompt
	if fixed, ok := s.Fixed(verify.Batch); ok {
		batch = fixed
	}
	if rows := s.MaxPositions(); rows > 0 && length+n > rows {
		n = max(rows-length, 1)
		rep.Notes = append(rep.Notes, fmt.Sprintf("generations are cut short: the model has %d positions", rows))
	}
	return rep.CompareGenerations(c.Context, original, rewritten, s.Prompts(q.Text, q.Seed, batch, length), n)
}

// sessions are how the two sides run.
func sessions(c *cli.Context) (session, reference ort.Options, err error) {
	provider, other := c.String("provider"), c.String("reference-provider")
	if other == "" {
		other = provider
	}
	if provider == allProviders {
		provider = "cpu"
		if !c.IsSet("reference-provider") {
			other = "cpu"
		}
	}
	for _, p := range []struct{ flag, value string }{{"provider", provider}, {"reference-provider", other}} {
		if err := knownProvider(p.flag, p.value); err != nil {
			return session, reference, err
		}
	}
	if c.Int("device") < 0 {
		return session, reference, usageError("--device is 0 or more")
	}
	if session, err = sessionOptions(c, provider); err == nil {
		reference, err = sessionOptions(c, other)
	}
	return session, reference, err
}
