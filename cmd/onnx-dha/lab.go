package main

import (
	"errors"
	"fmt"

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
