package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/internal/suggest"
)

// arrange lets options stand before, between and behind the arguments of a command, as people write them: the flag
// parser stops at the first argument. It also words the mistakes that the parser would answer with a page of usage.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return nil, usageError("no command; want one of %s (%s --help explains them)", strings.Join(commandNames(app), ", "), program)
	}
	switch args[0] {
	case "-h", "--help", "-help":
		return []string{"--help"}, nil
	case "help":
		if len(args) == 1 {
			return []string{"--help"}, nil
		}
		args = []string{args[1], "--help"}
	case "-v", "--version", "-version":
		args = append([]string{"version"}, args[1:]...)
	}
	i := slices.IndexFunc(app.Commands, func(c *cli.Command) bool { return c.Name == args[0] })
	if i < 0 {
		if strings.HasPrefix(args[0], "-") {
			return nil, usageError("%s stands before the command; options follow it: %s COMMAND ARGUMENTS %s", args[0], program, args[0])
		}
		return nil, usageError("unknown command %q%s want one of %s", args[0], separator(suggest.DidYouMean(args[0], commandNames(app))), strings.Join(commandNames(app), ", "))
	}
	command := app.Commands[i]
	var options, arguments []string
	for rest := args[1:]; len(rest) > 0; rest = rest[1:] {
		arg := rest[0]
		if arg == "--" {
			arguments = append(arguments, rest[1:]...)
			break
		}
		if len(arg) < 2 || arg[0] != '-' {
			arguments = append(arguments, arg)
			continue
		}
		name, _, assigned := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		f := findFlag(command, name)
		if f == nil {
			return nil, usageError("%s has no option %s%s see %s %s --help", command.Name, "--"+name, separator(suggest.DidYouMean("--"+name, flagNames(command))), program, command.Name)
		}
		options = append(options, arg)
		if _, yesNo := f.(*cli.BoolFlag); assigned || yesNo {
			continue
		}
		if len(rest) == 1 {
			return nil, usageError("--%s needs a value; see %s %s --help", name, program, command.Name)
		}
		rest = rest[1:]
		options = append(options, rest[0])
	}
	out := append([]string{command.Name}, options...)
	return append(append(out, "--"), arguments...), nil
}

// separator ends a suggestion, or stands for the one that there is not.
func separator(suggestion string) string {
	if suggestion == "" {
		return ";"
	}
	return suggestion
}

func commandNames(app *cli.App) []string {
	var names []string
	for _, c := range app.Commands {
		names = append(names, c.Name)
	}
	return names
}

func findFlag(c *cli.Command, name string) cli.Flag {
	if name == "help" || name == "h" {
		return &cli.BoolFlag{Name: "help"}
	}
	for _, f := range c.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func flagNames(c *cli.Command) []string {
	var names []string
	for _, o := range options(c) {
		names = append(names, "--"+o.long)
	}
	return names
}

// arguments returns the arguments of a command, one for each of the names of ArgsUsage, or more for a last one that ends
// in dots.
func arguments(c *cli.Context) ([]string, error) {
	want := strings.Fields(c.Command.ArgsUsage)
	got := c.Args().Slice()
	if last := len(want) - 1; last >= 0 && strings.HasSuffix(want[last], "...") {
		want[last] = strings.TrimSuffix(want[last], "...")
		for len(want) < len(got) {
			want = append(want, want[last])
		}
	}
	switch {
	case len(got) < len(want):
		return nil, usageError("%s is missing; usage: %s %s", strings.Join(want[len(got):], " and "), c.Command.HelpName, c.Command.ArgsUsage)
	case len(got) > len(want):
		return nil, usageError("%q is one argument too many; usage: %s %s", got[len(want)], c.Command.HelpName, c.Command.ArgsUsage)
	}
	for i, a := range got {
		if a == "" {
			return nil, usageError("%s is empty", want[i])
		}
	}
	return got, nil
}
