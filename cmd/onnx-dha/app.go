package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v2"
)

const program = "onnx-dha"

// run executes one command line and returns the exit code. Results go to stdout, everything else to stderr.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	args, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, append([]string{program}, args...))
	}
	return report(ctx, err, stderr)
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:      program,
		HelpName:  program,
		Usage:     "fuse the key and value heads of ONNX transformers, and prove what changed",
		Writer:    stdout,
		ErrWriter: stderr,
		Commands: []*cli.Command{
			inspectCommand(), initCommand(), learnCommand(), rewriteCommand(), verifyCommand(), importanceCommand(), compareCommand(), benchCommand(), versionCommand(), completionCommand(),
		},
		HideHelpCommand:       true,
		HideVersion:           true,
		CustomAppHelpTemplate: appHelp,
		// Errors come back to run, which prints them and chooses the exit code.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   wrongFlag,
	}
	for _, c := range app.Commands {
		c.HideHelpCommand = true
		c.OnUsageError = wrongFlag
		c.CustomHelpTemplate = commandHelp(c)
	}
	return app
}

const appHelp = `{{.Name}} - {{.Usage}}

usage: {{.Name}} COMMAND ARGUMENTS [OPTIONS]

commands:
{{range .VisibleCommands}}  {{printf "%-12s" .Name}} {{.Usage}}
{{end}}
A first run:
  {{.Name}} inspect model.onnx                      what there is
  {{.Name}} init model.onnx --kv 50%                a dha.yaml to edit; learn finds a better one from data
  {{.Name}} rewrite model.onnx --config dha.yaml    model.dha.onnx
  {{.Name}} verify model.onnx model.dha.onnx        how far it drifts

exit codes: 0 good, 1 drift beyond tolerance, 2 usage or configuration, 3 model not understood, 4 runtime missing or failing
"{{.Name}} COMMAND --help" explains a command.
`
