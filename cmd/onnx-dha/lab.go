package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/learn"
	"onnx-dha/ort"
)

// openLab loads ONNX Runtime and opens a model for measuring. The lab must be closed.
func openLab(c *cli.Context, model, provider string) (*learn.Lab, error) {
	lib, err := ort.Find(c.String("ort-lib"))
	if err == nil {
		err = ort.Open(lib)
	}
	if err != nil {
		return nil, coded(exitRuntime, err)
	}
	lab, err := learn.OpenLab(model, ort.Options{Provider: provider, Threads: c.Int("threads")})
	if err != nil {
		return nil, coded(exitModel, err)
	}
	return lab, nil
}

// labError tells a request that cannot be met from a run that failed.
func labError(model string, err error) error {
	var unfit *learn.RequestError
	if errors.As(err, &unfit) {
		return coded(exitUsage, err)
	}
	return coded(exitRuntime, fmt.Errorf("%s: %w", model, err))
}

// staying says which blocks cannot be rewritten, a line for each reason.
func staying(l *learn.Lab) (out []string) {
	blocks := map[string][]string{}
	var reasons []string
	for _, b := range l.Blocks {
		if b.Fixed == "" {
			continue
		}
		why := strings.TrimPrefix(b.Fixed, fmt.Sprintf("block %q: ", b.Name))
		if blocks[why] == nil {
			reasons = append(reasons, why)
		}
		blocks[why] = append(blocks[why], b.Name)
	}
	for _, why := range reasons {
		const most = 3
		names := blocks[why]
		list := strings.Join(names[:min(most, len(names))], ", ")
		if len(names) > most {
			list += fmt.Sprintf(" and %d more", len(names)-most)
		}
		verb := "stay as they are"
		if len(names) == 1 {
			verb = "stays as it is"
		}
		out = append(out, fmt.Sprintf("%s %s: %s", list, verb, why))
	}
	return out
}

// writable makes sure, before long work, that its result can be written to path: that it is none of the inputs, and that
// files can be made in its folder.
func writable(path string, inputs ...string) error {
	if path == "" {
		return nil
	}
	if err := apart(path, inputs...); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return usageError("writing %s: %w", path, cause(err))
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
