// Generate continues a text with a model in ONNX Runtime: a decode loop with the packages of this repository, and nothing
// else. With a model that was rewritten with --lowering static-cache the caches are buffers that are written in place and
// grow in chunks; any other decoder works too.
//
//	go run ./examples/generate -model small.onnx -tokenizer tokenizer.json -n 100 'Once upon a time'
//
// The tokenizer is a tokenizer.json, a SentencePiece model, or a JSON object of token text to id.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"onnx-dha/data/tokenizer"
	"onnx-dha/decode"
	"onnx-dha/ort"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(log)
	model := flags.String("model", "", "the model, an .onnx `FILE`")
	vocabulary := flags.String("tokenizer", "", "the tokenizer `FILE`")
	count := flags.Int("n", 100, "generate `N` tokens")
	threads := flags.Int("threads", 0, "use `N` threads (default: the runtime chooses)")
	var stop []int64
	flags.Func("stop", "end at token `ID`; may be given several times", func(s string) error {
		id, err := strconv.ParseInt(s, 10, 64)
		stop = append(stop, id)
		return err
	})
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil // said already
	case err != nil:
		return err
	}
	if *model == "" || *vocabulary == "" || flags.NArg() == 0 {
		return errors.New("usage: generate -model FILE -tokenizer FILE [-n N] PROMPT")
	}

	// The library of ONNX Runtime: what `make runtime` has installed, or ONNXRUNTIME_LIB names.
	if err := ort.OpenDefault(); err != nil {
		return err
	}
	m, err := decode.Open(*model, ort.Options{Threads: *threads})
	if err != nil {
		return err
	}
	defer m.Close()
	tokens, err := tokenizer.Open(*vocabulary)
	if err != nil {
		return err
	}
	prompt, err := tokens.Encode(strings.Join(flags.Args(), " "))
	if err != nil {
		return err
	}

	// A model with a table of positions knows so many; the last token is not fed any more.
	if most := m.MaxPositions(); most > 0 {
		*count = min(*count, most-len(prompt)+1)
	}

	loop, err := m.Start(decode.Options{})
	if err != nil {
		return err
	}
	defer loop.Close()
	begin := time.Now()
	text := append([]int64(nil), prompt...)
	shown := ""
	for next := prompt; len(text) < len(prompt)+*count; {
		// The first step takes the whole prompt, each after it one token. The caches stay where they are.
		if err := loop.Feed(ctx, [][]int64{next}); err != nil {
			return err
		}
		scores, err := loop.Scores(0)
		if err != nil {
			return err
		}
		token := decode.Greedy(scores)
		if slices.Contains(stop, token) {
			break
		}
		next = []int64{token}
		text = append(text, token)
		// A character may take several tokens: print what the text has grown by.
		if whole := tokens.Decode(text); strings.HasPrefix(whole, shown) && !strings.HasSuffix(whole, "\uFFFD") {
			fmt.Fprint(out, whole[len(shown):])
			shown = whole
		}
	}
	fmt.Fprintln(out)

	cache := loop.Len()
	if m.Static {
		cache = loop.Capacity()
	}
	bytes, err := m.CacheBytes(1, cache)
	if err != nil {
		return err
	}
	kind := "growing"
	if m.Static {
		kind = "static"
	}
	seconds := time.Since(begin).Seconds()
	fmt.Fprintf(log, "%d tokens in %.2f s (%.0f a second), %s cache of %d positions, %d bytes\n",
		len(text)-len(prompt), seconds, float64(len(text)-len(prompt))/seconds, kind, cache, bytes)
	return nil
}
