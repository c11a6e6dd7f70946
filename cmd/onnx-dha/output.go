package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
)

// common returns the options that every command has, -o with its own wording, before those of the command.
func common(output string, own ...cli.Flag) []cli.Flag {
	return append(own,
		&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: output, TakesFile: true},
		&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but errors (and what --json asks for)"},
	)
}

const reportOutput = "write the report to `FILE` instead of standard output"

// emit prints a result: value as JSON with --json, else as text writes it. path, when not empty, is the file that
// receives it instead of standard output; inputs are files that it must not be.
func emit(c *cli.Context, path string, value any, text func(w io.Writer, color bool) error, inputs ...string) error {
	var b bytes.Buffer
	switch {
	case c.Bool("json"):
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(value); err != nil {
			return err
		}
	case c.Bool("quiet") && path == "":
		return nil
	default:
		if err := text(&b, path == "" && colorful(c.App.Writer)); err != nil {
			return err
		}
	}
	if path != "" {
		return writeFile(path, b.Bytes(), inputs...)
	}
	_, err := c.App.Writer.Write(b.Bytes())
	return err
}

// colorful reports whether w is a terminal whose user has not asked for plain text (https://no-color.org).
func colorful(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && terminal(w)
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// writeFile writes a file that appears under its name only when it is complete. It refuses to replace an input.
func writeFile(path string, data []byte, inputs ...string) (err error) {
	if err := apart(path, inputs...); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return coded(exitUsage, fmt.Errorf("writing %s: %w", path, cause(err)))
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = coded(exitUsage, fmt.Errorf("writing %s: %w", path, cause(err)))
		}
	}()
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// apart makes sure that an output is no folder and none of the inputs, by whatever name.
func apart(output string, inputs ...string) error {
	out, err := os.Stat(output)
	if err != nil {
		return nil // nothing there yet; a path that cannot be written to fails when it is
	}
	if out.IsDir() {
		return usageError("output %s is a folder; want a file name", output)
	}
	for _, in := range inputs {
		if info, err := os.Stat(in); err == nil && os.SameFile(info, out) {
			return usageError("output %s is the input %s; inputs are never written to, choose another name", output, in)
		}
	}
	return nil
}

// cause strips the operation and the temporary name from an error of the file system.
func cause(err error) error {
	var p *os.PathError
	var l *os.LinkError
	switch {
	case errors.As(err, &p):
		return p.Err
	case errors.As(err, &l):
		return l.Err
	}
	return err
}
