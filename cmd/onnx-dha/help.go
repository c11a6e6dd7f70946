package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// commandHelp is the help of a command. The examples that the command was declared with stand at its end.
func commandHelp(c *cli.Command) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s - %s\n\nusage: %[1]s %[2]s", program, c.Name, c.Usage)
	if c.ArgsUsage != "" {
		fmt.Fprintf(&b, " %s", c.ArgsUsage)
	}
	fmt.Fprintf(&b, " [OPTIONS]\n\n%s\n\noptions:\n", c.Description)
	width := 0
	list := options(c)
	for _, o := range list {
		width = max(width, len(o.heading()))
	}
	for _, o := range list {
		fmt.Fprintf(&b, "  %-*s  %s\n", width, o.heading(), o.explanation())
	}
	fmt.Fprintf(&b, "\nexamples:\n%s\n", examples[c.Name])
	return b.String()
}

// option is an option of a command as help and completion need it.
type option struct {
	long, short string
	usage       string
	value       string   // name of the value that it takes; empty for a yes or no
	def         string   // what it is when it is not given
	choices     []string // the values it takes; nil for a file name or free text
}

// choices are the options with a fixed set of values.
var choices = map[string][]string{}

func options(c *cli.Command) []option {
	var out []option
	for _, f := range c.Flags {
		o := option{choices: choices[f.Names()[0]]}
		for _, n := range f.Names() {
			if len(n) > 1 {
				o.long = n
			} else {
				o.short = n
			}
		}
		if d, ok := f.(cli.DocGenerationFlag); ok {
			o.usage, o.def = d.GetUsage(), d.GetDefaultText()
			// Usage texts name the value between back quotes.
			if parts := strings.SplitN(o.usage, "`", 3); d.TakesValue() && len(parts) == 3 {
				o.value, o.usage = parts[1], parts[0]+parts[1]+parts[2]
			} else if d.TakesValue() {
				o.value = "VALUE"
			}
		}
		out = append(out, o)
	}
	return append(out, option{long: "help", short: "h", usage: "explain the command"})
}

func (o option) names() []string {
	names := []string{"--" + o.long}
	if o.short != "" {
		names = []string{"-" + o.short, names[0]}
	}
	return names
}

func (o option) heading() string {
	h := strings.Join(o.names(), ", ")
	if o.short == "" {
		h = "    " + h
	}
	if o.value != "" {
		h += " " + o.value
	}
	return h
}

func (o option) explanation() string {
	if o.value == "" || o.def == "" || o.def == "0" || o.def == `""` {
		return o.usage
	}
	return fmt.Sprintf("%s (default: %s)", o.usage, strings.Trim(o.def, `"`))
}

// examples are the last lines of a command's help.
var examples = map[string]string{
	"inspect": `  onnx-dha inspect model.onnx
  onnx-dha inspect model.onnx --json | jq '.blocks[].name'`,
	"init": `  onnx-dha init model.onnx --key 4 --value 2
  onnx-dha init model.onnx --value 1 -o values.yaml     keys stay as they are
  onnx-dha init model.onnx --kv 50% -o -                to standard output`,
	"learn": `  onnx-dha learn model.onnx --kv 25% --data book.txt --tokenizer tokenizer.json
  onnx-dha learn model.onnx --max-kl 0.05 --data ids.jsonl -o small.yaml --json
  onnx-dha learn model.onnx --key 8 --value 4 --groups equal --data text.txt --tokenizer tokenizer.json --resume`,
	"rewrite": `  onnx-dha rewrite model.onnx --config dha.yaml
  onnx-dha rewrite model.onnx --config dha.yaml -o small/model.onnx --weights file
  onnx-dha rewrite model.onnx --config dha.yaml --lowering expand --json`,
	"verify": `  onnx-dha verify model.onnx model.dha.onnx
  onnx-dha verify model.onnx model.dha.onnx --kl 0.1 --top1 0.95 --json -o report.json
  onnx-dha verify model.onnx model.dha.onnx --text book.txt --vocab vocab.json --prompt 'Once' --generate 200
  onnx-dha verify model.onnx model.dha.onnx --layers --bisect --provider cuda --reference-provider cpu
  onnx-dha verify model.onnx model.dha.onnx --save-golden golden && onnx-dha verify --golden golden model.dha.onnx`,
	"importance": `  onnx-dha importance model.onnx --data book.txt --tokenizer tokenizer.json
  onnx-dha importance model.onnx --data ids.jsonl --remove kv --samples 8 --json -o importance.json
  onnx-dha importance vit.onnx --data images.npz --csv | sort -t, -k12 -g`,
	"compare": `  onnx-dha compare model.onnx --kv 50%,25% --data book.txt --tokenizer tokenizer.json
  onnx-dha compare model.onnx --kv 50%,25%,12.5% --strategies gqa,dha,optimal --data ids.jsonl --plot compare.svg
  onnx-dha compare model.onnx --kv 50% --layout uniform --groups equal --data ids.jsonl --csv -o compare.csv`,
	"bench": `  onnx-dha bench model.onnx model.dha.onnx
  onnx-dha bench model.onnx full.static.onnx model.dha.onnx --lengths 2048,8192 --batches 1,4 --threads 2
  onnx-dha bench model.onnx model.static.onnx --lengths 2048 --fill 100%,25% --plot bench.svg --json -o bench.json`,
	"version": `  onnx-dha version
  onnx-dha version --json --ort-lib /opt/onnxruntime/lib`,
	"completion": `  source <(onnx-dha completion bash)                                     in ~/.bashrc
  onnx-dha completion zsh > ~/.zfunc/_onnx-dha                           a folder in $fpath
  onnx-dha completion fish > ~/.config/fish/completions/onnx-dha.fish`,
}
