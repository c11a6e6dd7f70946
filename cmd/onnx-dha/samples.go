package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"onnx-dha/data"
	"onnx-dha/learn"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// sampleFlags are the options of commands that run a model on data.
func sampleFlags(samples int) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "data", Usage: "`PATH` of the data: text, JSON lines of token ids or texts, .npz or .npy tensors, or a folder with test_data_set_*", TakesFile: true},
		&cli.StringFlag{Name: "tokenizer", Usage: "what turns text into tokens: a tokenizer.json, a SentencePiece model, or a vocab.json `FILE`", TakesFile: true},
		&cli.StringFlag{Name: "separator", Usage: "`TEXT` between the documents of a text file, such as <|endoftext|>"},
		&cli.BoolFlag{Name: "bare", Usage: "leave out the special tokens that the tokenizer puts around a text"},
		&cli.IntFlag{Name: "samples", Value: samples, Usage: "use `N` samples, taken evenly over the data; 0 for all"},
		&cli.IntFlag{Name: "seq-len", Usage: "cut text into samples of `N` tokens", DefaultText: fmt.Sprintf("%d, documents of token ids whole", data.DefaultSeqLen)},
	}
}

// openSamples reads --data as the options say, for the model of a lab. heldOut is the share to keep apart, heldOutSamples
// bounds that part.
func openSamples(c *cli.Context, l *learn.Lab, heldOut float64, heldOutSamples int) (*data.Set, error) {
	return openSet(c, l.Path, l.Signature, nil, heldOut, heldOutSamples)
}

// openSet is openSamples for a model of a known signature. outputs are those whose expected values are wanted.
func openSet(c *cli.Context, path string, sig *verify.Signature, outputs []ort.IO, heldOut float64, heldOutSamples int) (*data.Set, error) {
	o := data.Options{
		Tokenizer: c.String("tokenizer"), Separator: c.String("separator"), Bare: c.Bool("bare"),
		Samples: c.Int("samples"), SeqLen: c.Int("seq-len"), HeldOut: heldOut, HeldOutSamples: heldOutSamples, Outputs: outputs,
	}
	if n, fixed := sig.Fixed(verify.Seq); fixed && o.SeqLen == 0 && n > 1 {
		o.SeqLen = n
	}
	vocab := int64(0)
	for _, in := range sig.Inputs {
		shape := make([]int64, len(in.Dims))
		for i, d := range in.Dims {
			shape[i] = -1
			if n, ok := d.Const(); ok {
				shape[i] = n
			}
		}
		o.Inputs = append(o.Inputs, ort.IO{Name: in.Name, DType: in.DType, Shape: shape})
		if in.Name == sig.Tokens {
			vocab = in.Rows
		} else if made[in.Role] && sig.Tokens != "" {
			o.Optional = append(o.Optional, in.Name)
		}
	}
	set, err := data.Open(c.String("data"), o)
	if err != nil {
		return nil, coded(exitUsage, err)
	}
	if set.Tokens() && sig.Tokens == "" {
		return nil, usageError("data %q are tokens, but %s has no input of token ids; want tensors by input name: .npz, .npy or test_data_set_* folders", c.String("data"), path)
	}
	if vocab > 0 {
		if err := set.CheckVocabulary(int(vocab)); err != nil {
			return nil, coded(exitUsage, err)
		}
	}
	return set, nil
}

// made are the roles of inputs that are made for tokens when a sample lacks them.
var made = map[verify.Role]bool{
	verify.MaskOnes: true, verify.Positions: true, verify.Segments: true, verify.PastCache: true, verify.PastLen: true,
	verify.TotalLen: true, verify.LastPos: true, verify.HasPast: true, verify.Kept: true,
}

// checkSamples reads what is wrong with the options before a model is opened for them.
func checkSamples(c *cli.Context) error {
	if c.String("data") == "" {
		return usageError("--data is missing; want text, token ids or tensors to run the model on (see %s --help)", c.Command.HelpName)
	}
	for _, name := range []string{"samples", "seq-len", "threads"} {
		if c.Int(name) < 0 {
			return usageError("--%s %d; want 0 or more", name, c.Int(name))
		}
	}
	return nil
}
