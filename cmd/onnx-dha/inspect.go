package main

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/rewrite"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "list a model's attention blocks",
		ArgsUsage: "MODEL...",
		Description: "Finds every attention block and describes it: heads, position embedding, cache, weights, and the bytes\n" +
			"that one token takes in the cache. What cannot be rewritten is listed with the place and the reason.",
		Flags: common(reportOutput,
			&cli.BoolFlag{Name: "why", Usage: "list the softmaxes that are no attention too, with the reason"}),
		Action: inspect,
	}
}

// inspection is what inspect says about a model.
type inspection struct {
	Model       string             `json:"model"`
	IRVersion   int64              `json:"ir_version"`
	Opset       int64              `json:"opset"`
	Producer    string             `json:"producer,omitempty"`
	Nodes       int                `json:"nodes"`
	Parameters  int64              `json:"parameters"`
	Rewritten   string             `json:"rewritten_by,omitempty"` // version of this program that rewrote the model
	Blocks      []blockDescription `json:"blocks"`
	KVBytes     int64              `json:"kv_bytes_per_token"`
	Unsupported []unsupported      `json:"unsupported"`
}

type blockDescription struct {
	Name       string       `json:"name"`
	Kind       string       `json:"kind"`
	Causal     bool         `json:"causal"`
	Heads      int          `json:"heads"`
	KeyHeads   int          `json:"key_heads"`
	ValueHeads int          `json:"value_heads"`
	HeadDim    int          `json:"head_dim"`
	ValueDim   int          `json:"value_dim"`
	Rotary     string       `json:"rotary"`
	RotaryDims int          `json:"rotary_dims,omitempty"`
	Mask       string       `json:"mask"`
	Scale      *float64     `json:"scale"` // null when it is not a constant
	KeyCache   *cacheNames  `json:"key_cache"`
	ValueCache *cacheNames  `json:"value_cache"`
	Query      weightPlace  `json:"query_weight"`
	Key        weightPlace  `json:"key_weight"`
	Value      weightPlace  `json:"value_weight"`
	Output     *weightPlace `json:"output_weight"`
	KVBytes    int64        `json:"kv_bytes_per_token"`
	Fixed      string       `json:"fixed,omitempty"`  // why it cannot be rewritten
	Bodies     []string     `json:"bodies,omitempty"` // of the nodes that the layer lies in
	// Fused lists the fused operators of the file that the block lies in. A rewrite of the block expands them.
	Fused []fusedOperator `json:"fused,omitempty"`
}

type fusedOperator struct {
	Op      string `json:"op"`
	Node    string `json:"node"`
	Assumes string `json:"assumes,omitempty"` // what must hold of the inputs for the expansion to be exact
}

type cacheNames struct {
	Past    string `json:"past,omitempty"`
	Present string `json:"present,omitempty"`
	Heads   int    `json:"heads"`
}

type weightPlace struct {
	Tensor string  `json:"tensor"`
	Type   string  `json:"type"`
	Shape  []int64 `json:"shape"`
	Packed bool    `json:"packed"` // shared with another projection of the block
	Bias   bool    `json:"bias"`
	Scheme string  `json:"scheme,omitempty"` // how a quantised weight is stored
}

type unsupported struct {
	Node      string `json:"node"`
	At        string `json:"at"`
	Wire      string `json:"wire,omitempty"`
	Why       string `json:"why"`
	Attention bool   `json:"attention"`
}

func inspect(c *cli.Context) error {
	args, err := arguments(c)
	if err != nil {
		return err
	}
	paths, err := modelPaths(args)
	if err != nil {
		return err
	}
	models, err := openModels(paths, nil)
	if err != nil {
		return err
	}
	defer models.close()
	var all []*inspection
	for _, src := range models {
		all = append(all, describeModel(src, c.Bool("why")))
	}
	err = emit(c, c.String("output"), several(all), func(w io.Writer, color bool) error {
		for i, d := range all {
			fmt.Fprint(w, strings.Repeat("\n", min(i, 1)))
			if err := d.print(w, color); err != nil {
				return err
			}
		}
		return nil
	}, paths...)
	if err != nil || len(models.blocks()) > 0 {
		return err
	}
	return models.needBlocks()
}

func describeModel(src *source, all bool) *inspection {
	m, found := src.m, src.found
	d := &inspection{
		Model: m.Path, IRVersion: m.Proto.GetIrVersion(), Opset: m.Opset(""), Producer: m.Proto.GetProducerName(),
		Nodes: src.nodes, Parameters: src.parameters, Blocks: []blockDescription{}, Unsupported: []unsupported{},
	}
	if v := m.Proto.GetProducerVersion(); v != "" && d.Producer != "" {
		d.Producer += " " + v
	}
	d.Rewritten, _ = m.Metadata(rewrite.MetadataVersion)
	for _, b := range attention.Layers(found.Blocks) {
		row := describeBlock(b, found.Facts)
		for _, twin := range found.Blocks {
			if twin.Name == b.Name && twin.Body != "" {
				row.Bodies = append(row.Bodies, twin.Body)
			}
		}
		for _, e := range src.fusedIn(b) {
			row.Fused = append(row.Fused, fusedOperator{e.Op, e.Node, e.Assumes})
		}
		d.KVBytes += row.KVBytes
		d.Blocks = append(d.Blocks, row)
	}
	for _, u := range found.Unsupported {
		if u.Attention || all {
			d.Unsupported = append(d.Unsupported, unsupported{nodeName(u.Node), nodeName(u.At), u.Wire, u.Why, u.Attention})
		}
	}
	return d
}

// nodeName names a node; what lies in a function of the model has none.
func nodeName(n *graph.Node) string {
	if n == nil {
		return ""
	}
	return n.String()
}

func describeBlock(b *attention.Block, facts *graph.Facts) blockDescription {
	d := blockDescription{
		Name: b.Name, Kind: string(b.Kind), Causal: b.Causal, Heads: b.Heads, KeyHeads: b.KVHeads, ValueHeads: b.ValueHeads,
		HeadDim: b.HeadDim, ValueDim: b.ValueDim, Rotary: string(b.Rotary.Kind), RotaryDims: b.Rotary.Dims, Mask: string(b.Mask),
		KeyCache: describeCache(b.KeyCache), ValueCache: describeCache(b.ValCache),
		Query: describeWeight(b.Query, b.Key, b.Value), Key: describeWeight(b.Key, b.Query, b.Value), Value: describeWeight(b.Value, b.Query, b.Key),
		KVBytes: cacheBytes(b, facts), Fixed: b.Fixed,
	}
	if !math.IsNaN(b.Scale) {
		d.Scale = &b.Scale
	}
	if b.Output != nil {
		o := placeOf(b.Output.Projection)
		o.Bias = b.Output.GemmBias != nil
		d.Output = &o
	}
	return d
}

func cacheBytes(b *attention.Block, facts *graph.Facts) int64 {
	key, value := fusion.CachedHeads(b)
	return fusion.CacheBytes(b, facts, key, value)
}

func describeCache(c *attention.Cache) *cacheNames {
	if c == nil {
		return nil
	}
	d := &cacheNames{Heads: c.Heads}
	if c.Past != nil {
		d.Past = c.Past.Name
	}
	if c.Present != nil {
		d.Present = c.Present.Name
	}
	return d
}

func describeWeight(p *attention.Path, others ...*attention.Path) weightPlace {
	w := placeOf(p.Projection)
	w.Bias = p.Projection.GemmBias != nil || len(p.Biases) > 0
	for _, o := range others {
		w.Packed = w.Packed || o.Projection.Weight == p.Projection.Weight
	}
	return w
}

// placeOf describes the weight of a projection: of a quantised one the type of its codes and the shape of the matrix.
func placeOf(p *attention.Projection) weightPlace {
	w := weightPlace{Tensor: p.Weight.Name, Shape: []int64{}}
	if t := p.Weight.Const(); t != nil {
		w.Type = strings.ToLower(t.DType().String())
		w.Shape = append(w.Shape, t.Dims()...)
	}
	if p.Code != nil {
		w.Scheme, w.Shape = p.Code.String(), p.Tensor.Dims()
	}
	return w
}

func (d *inspection) print(w io.Writer, color bool) error {
	fmt.Fprintf(w, "%s: opset %d", d.Model, d.Opset)
	if d.Producer != "" {
		fmt.Fprintf(w, ", from %s", d.Producer)
	}
	fmt.Fprintf(w, ", %s, %s parameters", plural(d.Nodes, "node"), count(d.Parameters))
	if d.Rewritten != "" {
		fmt.Fprintf(w, ", rewritten by %s %s", program, d.Rewritten)
	}
	fmt.Fprint(w, "\n")
	if len(d.Blocks) > 0 {
		t := newTable(color, table.Row{"block", "kind", "heads", "KV heads", "head dim", "rotary", "cache", "K weight", "V weight", "KV bytes/token"}, 3, 4, 5, 10)
		for _, b := range d.Blocks {
			kind := b.Kind
			if b.Causal {
				kind += ", causal"
			}
			rotary := b.Rotary
			if b.RotaryDims > 0 && b.RotaryDims != b.HeadDim {
				rotary = fmt.Sprintf("%s, %d of %d", rotary, b.RotaryDims, b.HeadDim)
			}
			t.AppendRow(table.Row{b.Name, kind, b.Heads, pair(b.KeyHeads, b.ValueHeads), pair(b.HeadDim, b.ValueDim), rotary, b.cache(), b.Key.String(), b.valueWeight(), count(b.KVBytes)})
		}
		t.AppendFooter(table.Row{"total", "", "", "", "", "", "", "", "", count(d.KVBytes)})
		fmt.Fprint(w, "\n", render(t))
	}
	d.printFused(w)
	d.printQuantised(w)
	d.printShared(w, "in", func(b *blockDescription) string { return strings.Join(b.Bodies, " and ") }, nil)
	d.printShared(w, "cannot be rewritten", func(b *blockDescription) string { return b.Fixed }, quoted)
	if len(d.Unsupported) > 0 {
		fmt.Fprint(w, "\nfound, but not supported:\n")
	}
	for _, u := range d.Unsupported {
		at := ""
		if u.At != u.Node {
			at = ", stopped at " + u.At
		}
		wire := ""
		if u.Wire != "" {
			wire = fmt.Sprintf(" (value %q)", u.Wire)
		}
		kind := ""
		if !u.Attention {
			kind = ", no attention"
		}
		_, err := fmt.Fprintf(w, "  %s%s%s%s: %s\n", u.Node, kind, at, wire, u.Why)
		if err != nil {
			return err
		}
	}
	if d.Rewritten != "" && d.stuck() {
		fmt.Fprintf(w, "\n%s\n", rewrittenBy(d.Rewritten))
	}
	return nil
}

// stuck reports whether some attention cannot be rewritten.
func (d *inspection) stuck() bool {
	return slices.ContainsFunc(d.Blocks, func(b blockDescription) bool { return b.Fixed != "" }) ||
		slices.ContainsFunc(d.Unsupported, func(u unsupported) bool { return u.Attention })
}

// printFused names the fused operators that blocks lie in, once for those with the same ones, and what their expansions
// assume, once for what differs in names only.
func (d *inspection) printFused(w io.Writer) {
	var lists, assumed []string
	names := map[string][]string{}
	nodes := map[string][]fusedOperator{} // by what they assume
	for _, b := range d.Blocks {
		var ops []string
		for _, f := range b.Fused {
			if !slices.Contains(ops, f.Op) {
				ops = append(ops, f.Op)
			}
			if f.Assumes != "" {
				what := quoted.ReplaceAllString(f.Assumes, "")
				if nodes[what] == nil {
					assumed = append(assumed, what)
				}
				nodes[what] = append(nodes[what], f)
			}
		}
		if len(ops) == 0 {
			continue
		}
		list := strings.Join(ops, ", ")
		if names[list] == nil {
			lists = append(lists, list)
		}
		names[list] = append(names[list], b.Name)
	}
	for _, list := range lists {
		fmt.Fprintf(w, "\nfused: %s: %s\n", list, strings.Join(names[list], ", "))
	}
	for _, what := range assumed {
		first, likewise := nodes[what][0], ""
		if n := len(nodes[what]) - 1; n > 0 {
			likewise = fmt.Sprintf("; likewise at %s", plural(n, "other"))
		}
		fmt.Fprintf(w, "  exact if, at %s: %s%s\n", first.Node, first.Assumes, likewise)
	}
}

// quoted is a name in a sentence.
var quoted = regexp.MustCompile(`"[^"]*"`)

// printShared says something of blocks, once for those of which it says the same but for what matches besides (nil:
// nothing).
func (d *inspection) printShared(w io.Writer, what string, of func(*blockDescription) string, besides *regexp.Regexp) {
	type shared struct {
		text  string
		names []string
		alike bool // not the same to the letter
	}
	var all []*shared
	known := map[string]*shared{}
	for i := range d.Blocks {
		b := &d.Blocks[i]
		text := of(b)
		if text == "" {
			continue
		}
		key := text
		if besides != nil {
			key = besides.ReplaceAllString(text, "")
		}
		s := known[key]
		if s == nil {
			s = &shared{text: text}
			known[key], all = s, append(all, s)
		}
		s.names, s.alike = append(s.names, b.Name), s.alike || text != s.text
	}
	for _, s := range all {
		more := ""
		if s.alike {
			more = "; the others likewise"
		}
		fmt.Fprintf(w, "\n%s: %s: %s%s\n", what, strings.Join(s.names, ", "), s.text, more)
	}
}

// pair writes a number for keys and one for values, or the one that both have.
func pair(key, value int) string {
	if key == value {
		return fmt.Sprint(key)
	}
	return fmt.Sprintf("%d, %d", key, value)
}

func (b *blockDescription) cache() string {
	side := func(c *cacheNames) string {
		switch {
		case c == nil:
			return "none"
		case c.Past == "":
			return "out"
		case c.Present == "":
			return "in"
		}
		return "in, out"
	}
	k, v := side(b.KeyCache), side(b.ValueCache)
	if k == v {
		return k
	}
	return "K " + k + "; V " + v
}

func (b *blockDescription) valueWeight() string {
	if b.Value.Tensor == b.Key.Tensor {
		return "the same"
	}
	return b.Value.String()
}

func (w weightPlace) String() string {
	if w.Packed {
		return w.Tensor + " (packed)"
	}
	return w.Tensor
}
