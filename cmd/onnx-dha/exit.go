package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
)

// Exit codes.
const (
	exitDrift       = 1   // drift beyond tolerance
	exitUsage       = 2   // usage or configuration
	exitModel       = 3   // model not understood
	exitRuntime     = 4   // ONNX Runtime missing or failing
	exitInterrupted = 130 // what a shell reports for Ctrl-C
)

// codedError is an error that knows its exit code.
type codedError struct {
	code int
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// coded gives an error an exit code, unless it has one already.
func coded(code int, err error) error {
	var c *codedError
	if err == nil || errors.As(err, &c) {
		return err
	}
	return &codedError{code, err}
}

func usageError(format string, args ...any) error {
	return coded(exitUsage, fmt.Errorf(format, args...))
}

// report prints an error as one line, with the place in the configuration when there is one, and returns the exit code.
func report(ctx context.Context, err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		fmt.Fprintf(stderr, "%s: interrupted\n", program)
		return exitInterrupted
	}
	fmt.Fprintf(stderr, "%s: %s\n", program, strings.ReplaceAll(strings.TrimSpace(message(err)), "\n", "; "))
	var place *fusion.Error
	if errors.As(err, &place) && place.Excerpt != "" {
		fmt.Fprintln(stderr, place.Excerpt)
	}
	code := &codedError{code: exitUsage}
	errors.As(err, &code)
	return code.code
}

// message words an error for a person; the system's own words name a system call that nobody asked for.
func message(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return strings.Replace(err.Error(), path.Error(), fmt.Sprintf("%s: %v", path.Path, path.Err), 1)
	}
	return err.Error()
}

// wrongFlag words what the flag parser refuses.
func wrongFlag(c *cli.Context, err error, _ bool) error {
	text := strings.Replace(err.Error(), " for flag -", " for --", 1)
	return usageError("%s; see %s --help", strings.TrimSuffix(text, ": parse error"), c.Command.HelpName)
}
