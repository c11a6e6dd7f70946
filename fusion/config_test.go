package fusion

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// example is the configuration of the design document.
const example = `# learned on a small corpus
version: 1
model: {fingerprint: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef}
method: dha                          # how it was learned
lowering: grouped
layers:
  - block: /model/layers.0/self_attn
    key:   {groups: [[0, 3], [1, 2, 5], [4, 6, 7]], weights: [[0.6, 0.4], [0.2, 0.5, 0.3], [1, -1e-3, .25]]}
    value: {groups: [[0, 1, 2, 3, 4, 5, 6, 7]]}   # no weights: mean
  - block: "h.1: attn"
    key: 4
verify: {kl: 0.05, top1: 0.97}
`

func TestParse(t *testing.T) {
	c, err := Parse("dha.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Version: 1, Fingerprint: "sha256:" + strings.Repeat("0123456789abcdef", 4), Method: "dha", Lowering: Grouped,
		Layers: []Layer{
			{
				Block: "/model/layers.0/self_attn",
				Key: &Heads{
					Groups:  [][]int{{0, 3}, {1, 2, 5}, {4, 6, 7}},
					Weights: [][]float64{{0.6, 0.4}, {0.2, 0.5, 0.3}, {1, -0.001, 0.25}},
				},
				Value: &Heads{Groups: [][]int{{0, 1, 2, 3, 4, 5, 6, 7}}},
			},
			{Block: "h.1: attn", Key: &Heads{Count: 4}},
		},
		Verify: Limits{"kl": 0.05, "top1": 0.97},
	}
	if got := bare(c); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// bare copies what a configuration says, without places and comments.
func bare(c *Config) *Config {
	out := *c
	out.src, out.Comment, out.Layers = nil, "", nil
	heads := func(h *Heads) *Heads {
		if h == nil {
			return nil
		}
		return &Heads{Count: h.Count, Groups: h.Groups, Weights: h.Weights}
	}
	for _, l := range c.Layers {
		out.Layers = append(out.Layers, Layer{Block: l.Block, Key: heads(l.Key), Value: heads(l.Value)})
	}
	return &out
}

// refused holds every message that a wrong file can meet, with its place.
var refused = []struct{ name, yaml, want string }{
	{"empty", "", `dha.yaml: empty; a configuration begins with "version: 1"`},
	{"only a comment", "# nothing\n", `dha.yaml: empty`},
	{"binary", "version: 1\x00", `dha.yaml: not a text file; want YAML in UTF-8`},
	{"not UTF-8", "method: \xff", `dha.yaml: not a text file; want YAML in UTF-8`},
	{"a word", "hello", `dha.yaml:1:1: the string "hello" where "key: value" lines belong`},
	{"a list", "- 1\n", `dha.yaml:1:1: a list where "key: value" lines belong`},
	{"no version", "lowering: auto\n", `dha.yaml:1:1: the configuration has no "version"`},
	{"later version", "version: 2\n", `dha.yaml:1:10: version 2 is not known; this program reads version 1`},
	{"version as text", "version: one\n", `dha.yaml:1:10: version is the string "one"; want a whole number`},
	{"fractional version", "version: 1.5\n", `dha.yaml:1:10: version is the number 1.5; want a whole number`},
	{"huge version", "version: 99999999999\n", `dha.yaml:1:10: version is 99999999999; that is out of range`},
	{"null version", "version:\n", `dha.yaml:1:1: key "version" has no value; leave it out or give one`},
	{"unknown key", "version: 1\nlayer: []\n", `dha.yaml:2:1: unknown key "layer"; did you mean "layers"; known here: version, model, method, lowering, weights, weights_hash, layers, verify`},
	{"unknown nested key", "version: 1\nlayers:\n  - block: a\n    keys: 4\n", `dha.yaml:4:5: unknown key "keys" in entry of layers; did you mean "key"; known here: block, key, value`},
	{"unknown model key", "version: 1\nmodel: {sha: x}\n", `dha.yaml:2:9: unknown key "sha" in model`},
	{"unknown heads key", "version: 1\nlayers: [{block: a, key: {heads: 4}}]\n", `dha.yaml:2:27: unknown key "heads" in key; known here: groups, weights`},
	{"duplicate key", "version: 1\nversion: 1\n", `dha.yaml:2:1: mapping key "version" already defined at [1:1]`},
	{"second document", "version: 1\n---\nversion: 1\n", `dha.yaml:3:1: a second document; a configuration is one`},
	{"unclosed list", "version: 1\nlayers: [\n", `dha.yaml:2:9: sequence end token ']' not found`},
	{"anchor", "version: &v 1\n", `dha.yaml:1:10: anchors and aliases are not part of a configuration; write the value out`},
	{"alias", "version: *v\n", `dha.yaml:1:10: anchors and aliases`},
	{"tag", "version: !!int 1\n", `dha.yaml:1:10: "!!int" is not part of a configuration`},
	{"deep", "version: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), `dha.yaml:1:26: nested too deeply for a configuration`},
	{"deep block", strings.Repeat("- ", 30), `dha.yaml:1:33: nested too deeply for a configuration`},
	{"method as number", "version: 1\nmethod: 7\n", `dha.yaml:2:9: the number 7 where a string belongs`},
	{"lowering", "version: 1\nlowering: groupd\n", `dha.yaml:2:11: unknown lowering "groupd"; did you mean "grouped"?; want one of auto, grouped, static-cache, gqa, attention, expand`},
	{"fingerprint", "version: 1\nmodel: {fingerprint: abc}\n", `dha.yaml:2:22: fingerprint "abc"; want sha256: and 64 hexadecimal digits`},
	{"model without fingerprint", "version: 1\nmodel: {}\n", `dha.yaml:2:8: model has no "fingerprint"`},
	{"layers as mapping", "version: 1\nlayers: {a: 1}\n", `dha.yaml:2:9: layers is a mapping; want a list of blocks`},
	{"layer as word", "version: 1\nlayers: [a]\n", `dha.yaml:2:10: entry of layers is the string "a"; want the keys block, key, value`},
	{"layer without block", "version: 1\nlayers:\n  - key: 4\n", `dha.yaml:3:5: entry of layers has no "block"`},
	{"layer without sides", "version: 1\nlayers:\n  - block: a\n", `dha.yaml:3:5: block "a" has neither key nor value; leave it out to keep it as it is`},
	{"block twice", "version: 1\nlayers:\n  - {block: a, key: 4}\n  - {block: a, key: 4}\n", `dha.yaml:4:5: block "a" is configured twice; it was first on line 3`},
	{"key as word", "version: 1\nlayers: [{block: a, key: four}]\n", `dha.yaml:2:26: key is the string "four"; want a number of heads (key: 4) or groups of heads (key: {groups: [[0, 1], [2, 3]]})`},
	{"key as fraction", "version: 1\nlayers: [{block: a, value: 2.5}]\n", `dha.yaml:2:28: value is the number 2.5; want a number of heads`},
	{"zero heads", "version: 1\nlayers: [{block: a, key: 0}]\n", `dha.yaml:2:26: key: 0 heads; want at least 1`},
	{"negative heads", "version: 1\nlayers: [{block: a, key: -2}]\n", `dha.yaml:2:26: key: -2 heads; want at least 1`},
	{"empty key", "version: 1\nlayers: [{block: a, key: {}}]\n", `dha.yaml:2:26: key has no "groups"`},
	{"hash without weights", "version: 1\nweights_hash: sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n", `dha.yaml:2:15: weights_hash without weights; it is the hash of their file`},
	{"no hash", "version: 1\nweights: x\nweights_hash: 1234abcd\n", `dha.yaml:3:15: weights_hash "1234abcd"; want sha256: and 64 hexadecimal digits`},
	{"weights only", "version: 1\nlayers: [{block: a, key: {weights: [[1]]}}]\n", `dha.yaml:2:26: key has weights but no groups`},
	{"no groups", "version: 1\nlayers: [{block: a, key: {groups: []}}]\n", `dha.yaml:2:26: key has no groups; want at least one`},
	{"empty group", "version: 1\nlayers: [{block: a, key: {groups: [[0], []]}}]\n", `dha.yaml:2:26: key: group 1 is empty`},
	{"flat groups", "version: 1\nlayers: [{block: a, key: {groups: [0, 1]}}]\n", `dha.yaml:2:36: row of groups is the number 0; want a list of numbers`},
	{"groups as number", "version: 1\nlayers: [{block: a, key: {groups: 2}}]\n", `dha.yaml:2:35: groups is the number 2; want a list of lists of numbers`},
	{"head as word", "version: 1\nlayers: [{block: a, key: {groups: [[0, x]]}}]\n", `dha.yaml:2:40: entry of groups is the string "x"; want a whole number`},
	{"head null", "version: 1\nlayers: [{block: a, key: {groups: [[0, ~]]}}]\n", `dha.yaml:2:40: entry of groups is nothing; want a whole number`},
	{"negative head", "version: 1\nlayers: [{block: a, key: {groups: [[0, -1]]}}]\n", `dha.yaml:2:40: key: head -1; heads are counted from 0`},
	{"head twice in a group", "version: 1\nlayers: [{block: a, key: {groups: [[0, 0]]}}]\n", `dha.yaml:2:40: key: head 0 is in group 0 and again in group 0`},
	{"head in two groups", "version: 1\nlayers:\n  - block: a\n    value:\n      groups:\n        - [0, 1]\n        - [1]\n", `dha.yaml:7:12: value: head 1 is in group 0 and again in group 1`},
	{"rows of weights", "version: 1\nlayers: [{block: a, key: {groups: [[0], [1]], weights: [[1]]}}]\n", `dha.yaml:2:26: key: 1 rows of weights for 2 groups; want one row per group`},
	{"weights of a row", "version: 1\nlayers: [{block: a, key: {groups: [[0, 1]], weights: [[1]]}}]\n", `dha.yaml:2:55: key: group 0 has 2 heads but 1 weights`},
	{"weight NaN", "version: 1\nlayers: [{block: a, key: {groups: [[0]], weights: [[.nan]]}}]\n", `dha.yaml:2:53: entry of weights is .nan; want a finite number`},
	{"weight infinite", "version: 1\nlayers: [{block: a, key: {groups: [[0]], weights: [[-.inf]]}}]\n", `dha.yaml:2:53: entry of weights is -.inf; want a finite number`},
	{"weight too large", "version: 1\nlayers: [{block: a, key: {groups: [[0]], weights: [[1e39]]}}]\n", `dha.yaml:2:53: key: weight 1e+39 of head 0; want a finite number`},
	{"weights zero", "version: 1\nlayers: [{block: a, key: {groups: [[0, 1]], weights: [[0, 0.0]]}}]\n", `dha.yaml:2:55: key: the weights of group 0 are all zero; its fused head would be nothing`},
	{"verify as list", "version: 1\nverify: [1]\n", `dha.yaml:2:9: verify is a list; want the keys kl, kl_max, js, top1, top5, top10, ppl, ppl_ratio, exact_match, agreed_tokens, cosine, sqnr_db, psnr_db, max_abs, max_rel, mean_abs, mean_rel, p99_abs, p99_rel`},
	{"verify key", "version: 1\nverify: {top: 1}\n", `dha.yaml:2:10: unknown key "top" in verify`},
	{"verify negative", "version: 1\nverify: {kl: -1}\n", `dha.yaml:2:14: verify.kl is -1; want 0 or more`},
	{"verify beyond", "version: 1\nverify:\n  top1: 97\n", `dha.yaml:3:9: verify.top1 is 97; want between 0 and 1`},
	{"verify word", "version: 1\nverify: {kl: low}\n", `dha.yaml:2:14: verify.kl is the string "low"; want a number`},
}

func TestParseErrors(t *testing.T) {
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse("dha.yaml", []byte(tc.yaml))
			if err == nil {
				t.Fatalf("accepted as %+v", c)
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got  %s\nwant %s", err, tc.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func TestExcerpt(t *testing.T) {
	var e *Error
	_, err := Parse("dha.yaml", []byte("version: 1\nlayers:\n  - block: a\n    keys: 4\n"))
	if !errors.As(err, &e) {
		t.Fatalf("%T, want *Error", err)
	}
	if want := "    4 |     keys: 4\n      |     ^"; e.Excerpt != want {
		t.Errorf("got\n%s\nwant\n%s", e.Excerpt, want)
	}
	long := "version: 1\nlayers: [{block: a, key: {groups: [[" + strings.Repeat("0, ", 200) + "x]]}}]\n"
	if _, err := Parse("dha.yaml", []byte(long)); !errors.As(err, &e) {
		t.Fatalf("%T, want *Error", err)
	}
	lines := strings.Split(e.Excerpt, "\n")
	mark := strings.IndexRune(lines[1], '^')
	// Before the mark both lines hold the same number of runes, so the mark stands under the x.
	if got := []rune(lines[0])[len([]rune(lines[1][:mark]))]; got != 'x' {
		t.Errorf("the mark is under %q:\n%s", got, e.Excerpt)
	}
	if len([]rune(lines[0])) > 130 {
		t.Errorf("excerpt of %d columns", len([]rune(lines[0])))
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "dha.yaml")
	if err := os.WriteFile(good, []byte(example), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(good); err != nil {
		t.Error(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(large); err == nil || !strings.Contains(err.Error(), "a configuration has at most") {
		t.Errorf("a large file: %v", err)
	}
}

func TestMarshalRoundTrip(t *testing.T) {
	c, err := Parse("dha.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	c.Comment = "Two lines,\nthe second one."
	c.Layers[0].Comment = "8 KV heads"
	c.Layers[0].Key.Weights[2][2] = 1e-5
	c.Method = "a \"quoted\"\tone: # \\ \u00a0é \U0001F600 \u2028"
	data, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"# Two lines,\n# the second one.\n", "\n  # 8 KV heads\n", "    value: {groups: [[0, 1, 2, 3, 4, 5, 6, 7]]}\n", "[1, -0.001, 1.0e-05]", "verify: {kl: 0.05, top1: 0.97}\n"} {
		if !strings.Contains(string(data), line) {
			t.Errorf("no %q in\n%s", line, data)
		}
	}
	back, err := Parse("dha.yaml", data)
	if err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	if !reflect.DeepEqual(bare(back), bare(c)) {
		t.Errorf("got %+v, want %+v", bare(back), bare(c))
	}
	c.Layers[0].Key.Weights[0][0] = math.NaN()
	if _, err := c.Marshal(); err == nil {
		t.Error("a NaN weight was written")
	}
}

func TestHash(t *testing.T) {
	hash := func(yaml string) string {
		t.Helper()
		c, err := Parse("dha.yaml", []byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		return c.Hash()
	}
	base := "version: 1\nlayers:\n- {block: a, key: 2}\n- {block: b, key: {groups: [[0], [1]], weights: [[1], [0.5]]}}\n"
	same := []string{
		"# a comment\nlayers:\n  - block: b\n    key:\n      weights: [[1.0], [5e-1]]\n      groups: [[0], [1]]\n  - block: \"a\"\n    key: 2\nversion: 1\n",
		strings.Replace(base, "version: 1\n", "version: 1\nlowering: auto\n", 1),
	}
	for _, s := range same {
		if hash(s) != hash(base) {
			t.Errorf("layout changed the hash:\n%s", s)
		}
	}
	for i, s := range []string{
		strings.Replace(base, "key: 2", "key: 4", 1),
		strings.Replace(base, "key: 2", "value: 2", 1),
		strings.Replace(base, "0.5", "0.25", 1),
		strings.Replace(base, "[0], [1]", "[1], [0]", 1),
		strings.Replace(base, "block: a", "block: c", 1),
		base + "verify: {}\n",
		base + "verify: {kl: 1}\n",
		base + "verify: {top1: 1}\n",
		base + "lowering: expand\n",
		base + "method: x\n",
		base + "weights: x\n",
		base + "weights: x\nweights_hash: sha256:" + strings.Repeat("0", 64) + "\n",
	} {
		if hash(s) == hash(base) {
			t.Errorf("variant %d has the hash of another configuration:\n%s", i, s)
		}
	}
}

// FuzzParse checks that no text panics the decoder and that whatever it accepts survives being written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("version: 1\nverify: {}\n"))
	f.Add([]byte(`{"version": 1, "layers": [{"block": "a\u00e9", "key": 4, "value": {"groups": [[0, 1]]}}]}`))
	f.Add([]byte("version: 0x1\nmethod: 'it''s'\nlayers:\n- block: |\n    text\n"))
	f.Add([]byte("version: 1\nlayers:\n- block: \"\\x07\\u2028\"\n  key: {groups: [[+3, 0o7]], weights: [[1_0, -.5e+3]]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("fuzz.yaml", data)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %T %q; want one line of type *Error", err, err)
			}
			return
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatalf("accepted, but not written: %v", err)
		}
		back, err := Parse("again.yaml", out)
		if err != nil {
			t.Fatalf("written, but not read: %v\n%s", err, out)
		}
		if !reflect.DeepEqual(bare(back), bare(c)) {
			t.Fatalf("%+v became %+v by\n%s", bare(c), bare(back), out)
		}
		if back.Hash() != c.Hash() {
			t.Fatal("the hash changed")
		}
	})
}

func ExampleConfig_Marshal() {
	c := &Config{
		Version: Version,
		Comment: "Keys keep more heads than values.",
		Layers:  []Layer{{Block: "h.0.attn", Key: &Heads{Count: 4}, Value: &Heads{Groups: [][]int{{0, 1}, {2, 3}}}}},
	}
	data, err := c.Marshal()
	if err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%s", data)
	// Output:
	// # Keys keep more heads than values.
	// version: 1
	// layers:
	//   - block: h.0.attn
	//     key:   4
	//     value: {groups: [[0, 1], [2, 3]]}
}
