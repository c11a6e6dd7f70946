package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/learn"
)

func init() {
	for _, s := range fusion.Strategies {
		choices["strategy"] = append(choices["strategy"], s.Name)
	}
}

func learnCommand() *cli.Command {
	return &cli.Command{
		Name:      "learn",
		Usage:     "find which heads share, and their weights, from data",
		ArgsUsage: "MODEL",
		Description: "Runs the model on data and finds, for a budget of cache, how many key and value heads each layer keeps, which\n" +
			"heads share, and the weights that they share. Nothing is trained. Writes a dha.yaml and, beside it, the weights;\n" +
			"rewrite applies them.",
		Flags: common("write the configuration to `FILE`, its weights beside it (default: dha.yaml beside the model)", append(sampleFlags(128), searchFlags(8,
			&cli.StringFlag{Name: "kv", Usage: "let at most `SHARE` of the cache stay: 25% or 0.25"},
			&cli.IntFlag{Name: "key", Usage: "give every layer `N` key heads"},
			&cli.IntFlag{Name: "value", Usage: "give every layer `N` value heads"},
			&cli.Float64Flag{Name: "max-kl", Usage: "find the smallest cache whose output diverges by `NATS` a token at most, on the data learned from"},
			&cli.StringFlag{Name: "strategy", Value: "optimal", Usage: "`NAME` of how heads are chosen and fused: " + strings.Join(choices["strategy"], ", ")},
			&cli.BoolFlag{Name: "force", Usage: "replace a configuration that is there"})...)...),
		Action: runLearn,
	}
}

// readShare reads a share such as 25% or 0.25.
func readShare(name, text string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	share, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if percent {
		share /= 100
	}
	if err != nil || !(share > 0 && share <= 1) {
		return 0, usageError("--%s %s; want a share such as 50%% or 0.5", name, text)
	}
	return share, nil
}

// learnRequest reads what is to be learned from the options.
func learnRequest(c *cli.Context) (q learn.Request, err error) {
	if q, err = searchRequest(c); err != nil {
		return q, err
	}
	var aims []string
	for _, name := range []string{"kv", "max-kl"} {
		if c.IsSet(name) {
			aims = append(aims, "--"+name)
		}
	}
	if c.IsSet("key") || c.IsSet("value") {
		aims = append(aims, "--key and --value")
	}
	switch len(aims) {
	case 0:
		return q, usageError("nothing to aim for; want --kv SHARE such as 25%%, --max-kl NATS, or --key N and --value N")
	case 1:
	default:
		return q, usageError("%s are different aims; want one of them", strings.Join(aims, " and "))
	}
	if c.IsSet("kv") {
		if q.KV, err = readShare("kv", c.String("kv")); err != nil {
			return q, err
		}
	}
	for _, name := range []string{"key", "value"} {
		if c.IsSet(name) && c.Int(name) < 1 {
			return q, usageError("--%s %d; want at least 1 head", name, c.Int(name))
		}
	}
	if q.MaxKL = c.Float64("max-kl"); c.IsSet("max-kl") && !(q.MaxKL > 0) {
		return q, usageError("--max-kl %g; want more than 0", q.MaxKL)
	}
	strategy, err := oneOf(c, "strategy")
	if err != nil {
		return q, err
	}
	if q.Strategy, err = fusion.FindStrategy(strategy); err != nil {
		return q, coded(exitUsage, err)
	}
	q.Key, q.Value = c.Int("key"), c.Int("value")
	return q, nil
}

func runLearn(c *cli.Context) (err error) {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	provider, err := oneOf(c, "provider")
	if err != nil {
		return err
	}
	q, err := learnRequest(c)
	if err != nil {
		return err
	}
	if err := checkSamples(c); err != nil {
		return err
	}
	inputs := []string{args[0], c.String("data"), c.String("tokenizer"), importanceFile(c)}
	path := c.String("output")
	if path == "" {
		path = filepath.Join(filepath.Dir(args[0]), "dha.yaml")
	}
	weights := strings.TrimSuffix(path, filepath.Ext(path)) + ".safetensors"
	q.State = path + ".learn-state"
	for _, p := range []string{path, weights, q.State} {
		if err := writable(p, inputs...); err != nil {
			return err
		}
	}
	if _, err := os.Stat(path); err == nil && !c.Bool("force") {
		return usageError("%s exists; --force replaces it, -o names another", path)
	}
	m, found, err := openModel(args[0])
	if err != nil {
		return err
	}
	defer m.Close()
	if err := needBlocks(m, found); err != nil {
		return err
	}
	lab, err := openLab(c, args[0], provider)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	set, err := openSamples(c, lab, c.Float64("held-out"), c.Int("held-out-samples"))
	if err != nil {
		return err
	}
	q.Train, q.HeldOut = set.Train(), set.HeldOut()
	bar := newProgress(c)
	if err := addImportance(c, lab, &q, bar); err != nil {
		bar.clear()
		return err
	}
	q.Progress = withTimeLeft(bar.step)
	res, err := lab.Learn(c.Context, q)
	bar.clear()
	if err != nil {
		return labError(args[0], err)
	}
	d := describeLearning(args[0], path, c, q, lab, res)
	cfg, learned, err := lab.Config(res, q.Strategy, filepath.Base(weights), d.about()...)
	if err != nil {
		return err
	}
	if err := writeLearned(path, weights, cfg, learned, inputs); err != nil {
		return err
	}
	if err := os.Remove(q.State); err != nil && !errors.Is(err, os.ErrNotExist) {
		return coded(exitUsage, err)
	}
	if len(learned) > 0 {
		d.Weights = weights
	}
	return emit(c, "", d, func(w io.Writer, color bool) error { return d.print(w, color) })
}

// withTimeLeft adds to each step how long the rest takes at the pace so far.
func withTimeLeft(step func(done, total int, what string)) func(done, total int, what string) {
	start := time.Now()
	return func(done, total int, what string) {
		if spent := time.Since(start); done > 0 && spent > 2*time.Second {
			left := time.Duration(float64(spent) / float64(done) * float64(total-done)).Round(time.Second)
			what = fmt.Sprintf("about %v left, %s", left, what)
		}
		step(done, total, what)
	}
}

// writeLearned writes the weights, then the configuration that names them with their hash: a configuration is never there
// without its weights, and an older one beside them is noticed.
func writeLearned(path, weights string, cfg *fusion.Config, learned map[string]*fusion.Learned, inputs []string) error {
	if len(learned) > 0 {
		hash, err := fusion.WriteLearned(weights, learned)
		if err != nil {
			return coded(exitUsage, err)
		}
		cfg.WeightsHash = hash
	}
	data, err := cfg.Marshal()
	if err != nil {
		return err
	}
	return writeFile(path, data, inputs...)
}

// learning is what learn says about what it found.
type learning struct {
	Model       string         `json:"model"`
	Config      string         `json:"config"`
	Weights     string         `json:"weights,omitempty"`
	Strategy    string         `json:"strategy"`
	Layout      string         `json:"layout"`
	Data        string         `json:"data"`
	Samples     int            `json:"samples"`
	HeldOut     int            `json:"held_out_samples"`
	Blocks      []blockLearned `json:"blocks"`
	KVBytes     [2]int64       `json:"kv_bytes_per_token"` // before and after
	Before      measured       `json:"before"`
	After       measured       `json:"after"`
	SearchKL    *float64       `json:"search_kl,omitempty"` // on the data that the numbers of heads were chosen by
	Seconds     float64        `json:"seconds"`
	Resumed     bool           `json:"resumed,omitempty"`
	Unsupported int            `json:"unsupported"`
	Staying     []string       `json:"staying,omitempty"` // which blocks that is, and why
	cached      bool           // whether the model has caches
}

type blockLearned struct {
	Block      string  `json:"block"`
	KeyHeads   [2]int  `json:"key_heads"` // before and after
	ValueHeads [2]int  `json:"value_heads"`
	Key        [][]int `json:"key_groups"`
	Value      [][]int `json:"value_groups"`
	Note       string  `json:"note,omitempty"`
}

// measured is learn.Quality with nothing for what the model has no number of.
type measured struct {
	Positions  int      `json:"positions"`
	Loss       *float64 `json:"loss,omitempty"`
	Perplexity *float64 `json:"perplexity,omitempty"`
	KL         float64  `json:"kl"`
	Top1       *float64 `json:"top1,omitempty"`
}

func measuredOf(q learn.Quality) measured {
	number := func(x float64) *float64 {
		if math.IsNaN(x) {
			return nil
		}
		return &x
	}
	return measured{q.Positions, number(q.Loss), number(q.Perplexity), q.KL, number(q.Top1)}
}

func describeLearning(model, path string, c *cli.Context, q learn.Request, lab *learn.Lab, res *learn.Result) *learning {
	d := &learning{
		Model: model, Config: path, Strategy: q.Strategy.Name, Layout: string(q.Layout), Data: c.String("data"),
		Samples: len(q.Train), HeldOut: len(q.HeldOut), KVBytes: [2]int64{res.BytesBefore, res.BytesAfter},
		Before: measuredOf(res.Before), After: measuredOf(res.After), SearchKL: measuredOf(learn.Quality{Loss: res.Searched}).Loss,
		Seconds: math.Round(res.Elapsed.Seconds()*100) / 100, Resumed: res.Resumed, cached: slices.ContainsFunc(lab.Blocks, cached),
	}
	for n, i := range lab.Open() {
		b, l := lab.Blocks[i], res.Layers[n]
		e := blockLearned{
			Block: b.Name, KeyHeads: [2]int{b.KVHeads, l.Choice.Key}, ValueHeads: [2]int{b.ValueHeads, l.Choice.Value},
			Key: l.Plan.Key.Groups, Value: l.Plan.Value.Groups,
		}
		if l.Solution != nil {
			e.Note = l.Solution.Note
		}
		d.Blocks = append(d.Blocks, e)
	}
	d.Unsupported, d.Staying = len(lab.Blocks)-len(lab.Open()), staying(lab)
	return d
}

// about is what stands at the top of the configuration, before the figures.
func (d *learning) about() []string {
	return []string{fmt.Sprintf("Learned from %s of %s by the strategy %s.", plural(d.Samples, "sample"), filepath.Base(d.Data), d.Strategy)}
}

func (d *learning) print(w io.Writer, color bool) error {
	t := newTable(color, table.Row{"block", "key heads", "value heads", "keys that share", "values that share"}, 2, 3)
	for _, b := range d.Blocks {
		t.AppendRow(table.Row{b.Block, change(b.KeyHeads[0], b.KeyHeads[1]), change(b.ValueHeads[0], b.ValueHeads[1]), sharing(b.Key), sharing(b.Value)})
	}
	fmt.Fprint(w, render(t), "\n")
	for _, b := range d.Blocks {
		if b.Note != "" {
			fmt.Fprintf(w, "%s: %s\n", b.Block, b.Note)
		}
	}
	fmt.Fprintf(w, "KV cache per token  %s\n", cacheChange(d.KVBytes[0], d.KVBytes[1], d.cached))
	fmt.Fprintf(w, "held-out data       %s, %s\n", plural(d.HeldOut, "sample"), plural(d.After.Positions, "position"))
	if d.After.Loss != nil {
		fmt.Fprintf(w, "loss                %.4f → %.4f nats a token\n", *d.Before.Loss, *d.After.Loss)
		fmt.Fprintf(w, "perplexity          %.4f → %.4f (× %.4f)\n", *d.Before.Perplexity, *d.After.Perplexity, *d.After.Perplexity / *d.Before.Perplexity)
	}
	if d.After.Top1 != nil {
		fmt.Fprintf(w, "KL to the original  %.4g nats\nsame top token      %.2f %%\n", d.After.KL, 100**d.After.Top1)
	} else {
		fmt.Fprintf(w, "error of the output %.4g of its mean square\n", d.After.KL)
	}
	for _, s := range d.Staying {
		fmt.Fprintln(w, s)
	}
	fmt.Fprintf(w, "wrote %s", d.Config)
	if d.Weights != "" {
		fmt.Fprintf(w, " and %s", d.Weights)
	}
	_, err := fmt.Fprintf(w, " in %v\nnext: %s rewrite %s --config %s\n", time.Duration(d.Seconds*float64(time.Second)).Round(100*time.Millisecond), program, d.Model, d.Config)
	return err
}

// sharing writes groups of heads, those of one head left out.
func sharing(groups [][]int) string {
	var parts []string
	for _, g := range groups {
		if len(g) > 1 {
			parts = append(parts, "{"+ranges(g)+"}")
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, " ")
}
