package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"onnx-dha/internal/suggest"
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:        "completion",
		Usage:       "print a completion script for bash, zsh or fish",
		ArgsUsage:   "SHELL",
		Description: "The script completes commands, options, the values of options with a fixed set, and file names.",
		Flags:       common(reportOutput),
		Action:      completion,
	}
}

// shells writes the script of each shell from the commands and options of the program, so that it cannot name others.
var shells = map[string]func(io.Writer, []*cli.Command){"bash": bashScript, "zsh": zshScript, "fish": fishScript}

var shellNames = []string{"bash", "fish", "zsh"}

func completion(c *cli.Context) error {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	script := shells[args[0]]
	if script == nil {
		return usageError("no completion for %q%s want one of %s", args[0], separator(suggest.DidYouMean(args[0], shellNames)), strings.Join(shellNames, ", "))
	}
	var b strings.Builder
	script(&b, c.App.Commands)
	return emit(c, c.String("output"), map[string]string{"script": b.String()}, func(w io.Writer, _ bool) error {
		_, err := io.WriteString(w, b.String())
		return err
	})
}

// argumentWords lists the values for the argument of a command that are not file names.
func argumentWords(c *cli.Command) []string {
	if c.Name == "completion" {
		return shellNames
	}
	return nil
}

func bashScript(w io.Writer, commands []*cli.Command) {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	fmt.Fprintf(w, `# bash completion of %[1]s
_onnx_dha() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=
	COMPREPLY=()
	if ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W '%[2]s --help --version' -- "$cur"))
		return
	fi
	case ${COMP_WORDS[1]}:$prev in
`, program, strings.Join(names, " "))
	for _, c := range commands {
		for _, o := range options(c) {
			if len(o.choices) > 0 {
				fmt.Fprintf(w, "\t%s:--%s) words='%s' ;;\n", c.Name, o.long, strings.Join(o.choices, " "))
			}
		}
	}
	fmt.Fprint(w, "\tesac\n\tif [[ -n $words ]]; then\n\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n\t\treturn\n\tfi\n\tcase ${COMP_WORDS[1]} in\n")
	for _, c := range commands {
		var long []string
		for _, o := range options(c) {
			long = append(long, "--"+o.long)
		}
		fmt.Fprintf(w, "\t%s) if [[ $cur == -* ]]; then words='%s'; else words='%s'; fi ;;\n", c.Name, strings.Join(long, " "), strings.Join(argumentWords(c), " "))
	}
	// Without words bash falls back to file names (-o default).
	fmt.Fprintf(w, "\tesac\n\t[[ -n $words ]] && COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -o bashdefault -o default -F _onnx_dha %s\n", program)
}

func zshScript(w io.Writer, commands []*cli.Command) {
	fmt.Fprintf(w, "#compdef %s\n# zsh completion of %[1]s\n_onnx_dha() {\n\tlocal -a commands\n\tcommands=(\n", program)
	for _, c := range commands {
		fmt.Fprintf(w, "\t\t%s\n", quote(c.Name+":"+c.Usage))
	}
	fmt.Fprint(w, "\t)\n\tif ((CURRENT == 2)); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n\tlocal command=$words[2]\n\tshift words\n\t((CURRENT--))\n\tcase $command in\n")
	for _, c := range commands {
		fmt.Fprintf(w, "\t%s)\n\t\t_arguments -S", c.Name)
		for _, o := range options(c) {
			// In a description of _arguments brackets and colons have a meaning.
			usage := strings.NewReplacer("[", "(", "]", ")", ":", ",").Replace(o.usage)
			action := ""
			switch {
			case len(o.choices) > 0:
				action = ":" + o.long + ":(" + strings.Join(o.choices, " ") + ")"
			case o.value != "":
				action = ":" + o.long + ":_files"
			}
			for _, name := range o.names() {
				fmt.Fprintf(w, " \\\n\t\t\t%s", quote(name+"["+usage+"]"+action))
			}
		}
		if words := argumentWords(c); words != nil {
			fmt.Fprintf(w, " \\\n\t\t\t%s", quote("1:"+strings.ToLower(c.ArgsUsage)+":("+strings.Join(words, " ")+")"))
		} else if c.ArgsUsage != "" {
			fmt.Fprintf(w, " \\\n\t\t\t'*:file:_files'")
		}
		fmt.Fprint(w, "\n\t\t;;\n")
	}
	fmt.Fprintf(w, "\tesac\n}\ncompdef _onnx_dha %s\n", program)
}

func fishScript(w io.Writer, commands []*cli.Command) {
	fmt.Fprintf(w, "# fish completion of %s\n", program)
	for _, c := range commands {
		fmt.Fprintf(w, "complete -c %s -n __fish_use_subcommand -f -a %s -d %s\n", program, c.Name, quote(c.Usage))
	}
	for _, c := range commands {
		when := quote("__fish_seen_subcommand_from " + c.Name)
		for _, o := range options(c) {
			fmt.Fprintf(w, "complete -c %s -n %s -l %s", program, when, o.long)
			if o.short != "" {
				fmt.Fprintf(w, " -s %s", o.short)
			}
			switch {
			case len(o.choices) > 0:
				fmt.Fprintf(w, " -x -a %s", quote(strings.Join(o.choices, " ")))
			case o.value != "":
				fmt.Fprint(w, " -r")
			}
			fmt.Fprintf(w, " -d %s\n", quote(o.usage))
		}
		if words := argumentWords(c); words != nil {
			fmt.Fprintf(w, "complete -c %s -n %s -f -a %s\n", program, when, quote(strings.Join(words, " ")))
		}
	}
}

// quote makes one word of s for any of the shells.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
