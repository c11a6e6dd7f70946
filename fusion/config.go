package fusion

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"onnx-dha/internal/suggest"
)

// Version is the version of the configuration format that this package reads and writes.
const Version = 1

// maxSize bounds the bytes of a configuration: enough for a thousand blocks of a hundred heads.
const maxSize = 8 << 20

// Lowerings lists the names that a configuration accepts.
var Lowerings = []Lowering{Auto, Grouped, StaticCache, GQA, OpAttention, Expand}

// Config is a dha.yaml: what happens to the key and value heads of each attention block, and how far the result may
// drift. docs/config.md describes every key.
type Config struct {
	Version     int
	Fingerprint string   // of the attention weights (Fingerprint); empty accepts any model
	Method      string   // how it was learned, for people
	Lowering    Lowering // empty means Auto
	Weights     string   // file with learned tensors beside the configuration; empty fuses by Heads.Weights
	WeightsHash string   // of that file, sha256: and hexadecimal digits; empty accepts any
	Layers      []Layer
	Verify      Limits // of the drift that verify accepts

	// Comment is written as # lines at the top; Parse leaves it empty.
	Comment string

	// Dir is the folder that Weights is looked for in: that of the file, or the current one.
	Dir string

	src *source // the text it was decoded from; nil for a configuration built in memory
}

// Layer says what happens to one attention block.
type Layer struct {
	Block      string
	Key, Value *Heads // nil keeps the heads as they are

	// Comment is written as # lines above the entry; Parse leaves it empty.
	Comment string

	at pos
}

// Heads says how the key or the value heads of a block are grouped: Count for that many groups of neighbours of equal
// size, or Groups with explicit heads, fused by Weights (of the same shape) or by the mean when Weights is nil.
type Heads struct {
	Count   int
	Groups  [][]int
	Weights [][]float64

	at       pos
	headAt   [][]pos // of each head number in Groups
	weightAt [][]pos // of each weight
	rowAt    []pos   // of each row of Weights
}

// Limits bound the drift of a rewritten model against the original, by metric. A metric that is absent is
// unbounded; nil, where the configuration says nothing, leaves the choice to verify.
type Limits map[string]float64

// Metric is a measure of drift that a configuration can bound, with the range of sensible bounds.
type Metric struct {
	Name   string
	AtMost bool // whether the bound is an upper one
	lo, hi float64
}

// Metrics lists the measures of drift, by the names that verify prints.
var Metrics = []Metric{
	{"kl", true, 0, unbounded},
	{"kl_max", true, 0, unbounded},
	{"js", true, 0, unbounded},
	{"top1", false, 0, 1},
	{"top5", false, 0, 1},
	{"top10", false, 0, 1},
	{"ppl", true, 0, unbounded},
	{"ppl_ratio", true, 0, unbounded},
	{"exact_match", false, 0, 1},
	{"agreed_tokens", false, 0, unbounded},
	{"cosine", false, -1, 1},
	{"sqnr_db", false, -unbounded, unbounded},
	{"psnr_db", false, -unbounded, unbounded},
	{"max_abs", true, 0, unbounded},
	{"max_rel", true, 0, unbounded},
	{"mean_abs", true, 0, unbounded},
	{"mean_rel", true, 0, unbounded},
	{"p99_abs", true, 0, unbounded},
	{"p99_rel", true, 0, unbounded},
}

const unbounded = math.MaxFloat64

// Load reads a configuration file.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{File: path, Msg: "not a regular file; want a dha.yaml"}
	}
	if info.Size() > maxSize {
		return nil, &Error{File: path, Msg: tooLarge(info.Size())}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := Parse(path, data)
	if c != nil {
		c.Dir = filepath.Dir(path)
	}
	return c, err
}

// Parse decodes a configuration strictly: an unknown or repeated key, a value of the wrong type and a group that
// cannot be meant are errors of type *Error with their place. name stands for the file in messages.
func Parse(name string, data []byte) (*Config, error) {
	if len(data) > maxSize {
		return nil, &Error{File: name, Msg: tooLarge(int64(len(data)))}
	}
	c, err := decode(name, data)
	if err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return c, nil
}

func tooLarge(size int64) string {
	return fmt.Sprintf("%d bytes; a configuration has at most %d", size, maxSize)
}

// check verifies all that can be said without the model: known version and lowering, blocks named once, groups that
// overlap nowhere, weights of the same shape, tolerances in range.
func (c *Config) check() error {
	if c.Version != Version {
		return c.src.errorf(c.src.key("version"), "version %d is not known; this program reads version %d", c.Version, Version)
	}
	if c.Lowering != "" && !slices.Contains(Lowerings, c.Lowering) {
		return c.src.errorf(c.src.key("lowering"), "unknown lowering %q%s; want one of %s", c.Lowering,
			suggest.DidYouMean(string(c.Lowering), names(Lowerings)), strings.Join(names(Lowerings), ", "))
	}
	if c.Fingerprint != "" && !isFingerprint(c.Fingerprint) {
		return c.src.errorf(c.src.key("model.fingerprint"), "fingerprint %q; want sha256: and 64 hexadecimal digits", shorten(c.Fingerprint))
	}
	if c.WeightsHash != "" {
		at := c.src.key("weights_hash")
		switch {
		case c.Weights == "":
			return c.src.errorf(at, "weights_hash without weights; it is the hash of their file")
		case !isFingerprint(c.WeightsHash):
			return c.src.errorf(at, "weights_hash %q; want sha256: and 64 hexadecimal digits", shorten(c.WeightsHash))
		}
	}
	seen := map[string]pos{}
	for _, l := range c.Layers {
		if first, ok := seen[l.Block]; ok {
			where := ""
			if first.line > 0 {
				where = fmt.Sprintf("; it was first on line %d", first.line)
			}
			return c.src.errorf(l.at, "block %q is configured twice%s", l.Block, where)
		}
		seen[l.Block] = l.at
		if l.Key == nil && l.Value == nil {
			return c.src.errorf(l.at, "block %q has neither key nor value; leave it out to keep it as it is", l.Block)
		}
		for _, side := range l.sides() {
			if err := side.heads.check(c.src, side.name); err != nil {
				return err
			}
		}
	}
	return c.Verify.check(c.src)
}

// side is the key or the value entry of a layer.
type side struct {
	name  string
	heads *Heads
}

// sides lists the entries that l has.
func (l *Layer) sides() []side {
	var out []side
	if l.Key != nil {
		out = append(out, side{"key", l.Key})
	}
	if l.Value != nil {
		out = append(out, side{"value", l.Value})
	}
	return out
}

func (h *Heads) check(src *source, what string) error {
	if h.Groups == nil {
		if h.Weights != nil {
			return src.errorf(h.at, "%s has weights but no groups; a weight belongs to a head of a group", what)
		}
		if h.Count < 1 {
			return src.errorf(h.at, "%s: %d heads; want at least 1", what, h.Count)
		}
		return nil
	}
	if len(h.Groups) == 0 {
		return src.errorf(h.at, "%s has no groups; want at least one", what)
	}
	group := map[int]int{}
	for g, heads := range h.Groups {
		if len(heads) == 0 {
			return src.errorf(h.at, "%s: group %d is empty", what, g)
		}
		for j, head := range heads {
			at := place(h.headAt, g, j, h.at)
			if head < 0 {
				return src.errorf(at, "%s: head %d; heads are counted from 0", what, head)
			}
			if other, ok := group[head]; ok {
				return src.errorf(at, "%s: head %d is in group %d and again in group %d", what, head, other, g)
			}
			group[head] = g
		}
	}
	if h.Weights == nil {
		return nil
	}
	if len(h.Weights) != len(h.Groups) {
		return src.errorf(h.at, "%s: %d rows of weights for %d groups; want one row per group", what, len(h.Weights), len(h.Groups))
	}
	for g, row := range h.Weights {
		at := h.at
		if g < len(h.rowAt) {
			at = h.rowAt[g]
		}
		if len(row) != len(h.Groups[g]) {
			return src.errorf(at, "%s: group %d has %d heads but %d weights", what, g, len(h.Groups[g]), len(row))
		}
		zero := true
		for j, w := range row {
			// Weights end up in float32 tensors: beyond their range they would be infinite there.
			if math.IsNaN(w) || math.Abs(w) > math.MaxFloat32 {
				return src.errorf(place(h.weightAt, g, j, at), "%s: weight %g of head %d; want a finite number", what, w, h.Groups[g][j])
			}
			zero = zero && w == 0
		}
		if zero {
			return src.errorf(at, "%s: the weights of group %d are all zero; its fused head would be nothing", what, g)
		}
	}
	return nil
}

func (l Limits) check(src *source) error {
	for name := range l {
		if !slices.ContainsFunc(Metrics, func(m Metric) bool { return m.Name == name }) {
			return src.errorf(src.key("verify"), "verify: unknown metric %q", shorten(name))
		}
	}
	for _, m := range Metrics {
		bound, ok := l[m.Name]
		if !ok || bound >= m.lo && bound <= m.hi {
			continue
		}
		want := fmt.Sprintf("between %g and %g", m.lo, m.hi)
		switch {
		case m.lo == -unbounded:
			want = "a finite number"
		case m.hi == unbounded:
			want = fmt.Sprintf("%g or more", m.lo)
		}
		return src.errorf(src.key("verify."+m.Name), "verify.%s is %g; want %s", m.Name, bound, want)
	}
	return nil
}

// Hash identifies what the configuration says, whatever its layout, comments and order of blocks: the SHA-256 of a
// canonical encoding, in hexadecimal.
func (c *Config) Hash() string {
	type heads struct {
		Count   int         `json:",omitempty"`
		Groups  [][]int     `json:",omitempty"`
		Weights [][]float64 `json:",omitempty"`
	}
	type layer struct {
		Block      string
		Key, Value *heads
	}
	canonical := struct {
		Version                                int
		Fingerprint, Method, Lowering, Weights string
		WeightsHash                            string `json:",omitempty"`
		Layers                                 []layer
		Verify                                 map[string]float64 // keys are sorted when encoded
	}{
		Version: c.Version, Fingerprint: c.Fingerprint, Method: c.Method, Lowering: string(c.lowering()),
		Weights: c.Weights, WeightsHash: c.WeightsHash, Verify: c.Verify,
	}
	for _, l := range c.Layers {
		out := layer{Block: l.Block}
		if k := l.Key; k != nil {
			out.Key = &heads{k.Count, k.Groups, k.Weights}
		}
		if v := l.Value; v != nil {
			out.Value = &heads{v.Count, v.Groups, v.Weights}
		}
		canonical.Layers = append(canonical.Layers, out)
	}
	slices.SortFunc(canonical.Layers, func(a, b layer) int { return strings.Compare(a.Block, b.Block) })
	data, err := json.Marshal(canonical)
	if err != nil {
		panic("fusion: " + err.Error()) // only a number that check refuses cannot be encoded
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (c *Config) lowering() Lowering {
	if c.Lowering == "" {
		return Auto
	}
	return c.Lowering
}

func names[S ~string](list []S) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
