package main

import (
	"bytes"
	"io"

	"github.com/urfave/cli/v2"

	"onnx-dha/verify"
	reports "onnx-dha/verify/report"
)

// reportForms are the further forms of a report, each an option that names its file.
var reportForms = []struct {
	flag, usage string
	write       func(io.Writer, *verify.Report) error
}{
	{"markdown", "write a summary as Markdown to `FILE`, such as for $GITHUB_STEP_SUMMARY", reports.Markdown},
	{"junit", "write the gates and lines as JUnit XML to `FILE`", reports.JUnit},
	{"html", "write a page with plots to `FILE`; it needs nothing else", reports.HTML},
}

const annotationsFlag = "annotations"

// reportFlags are the options of reportForms, and that of annotations.
func reportFlags() []cli.Flag {
	var out []cli.Flag
	for _, f := range reportForms {
		out = append(out, &cli.StringFlag{Name: f.flag, Usage: f.usage, TakesFile: true})
	}
	return append(out, &cli.BoolFlag{Name: annotationsFlag, Usage: "print broken gates to standard error as annotations of GitHub"})
}

// writeReports writes a report in the further forms that were asked for. inputs are files that none of them may replace.
func writeReports(c *cli.Context, r *verify.Report, inputs ...string) error {
	taken := append([]string{}, inputs...)
	if path := c.String("output"); path != "" {
		taken = append(taken, path)
	}
	for _, f := range reportForms {
		path := c.String(f.flag)
		if path == "" {
			continue
		}
		var b bytes.Buffer
		if err := f.write(&b, r); err != nil {
			return err
		}
		if err := writeFile(path, b.Bytes(), taken...); err != nil {
			return err
		}
		taken = append(taken, path)
	}
	if c.Bool(annotationsFlag) {
		return reports.Annotations(c.App.ErrWriter, r)
	}
	return nil
}
