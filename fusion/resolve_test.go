package fusion

import (
	"reflect"
	"strings"
	"testing"

	"onnx-dha/graph/attention"
)

// blocks makes blocks of the given names with 8 query heads on kv KV heads.
func blocks(kv int, names ...string) []*attention.Block {
	var out []*attention.Block
	for _, n := range names {
		out = append(out, &attention.Block{Name: n, Heads: 8, KVHeads: kv, ValueHeads: kv, HeadDim: 4, ValueDim: 4})
	}
	return out
}

func TestResolve(t *testing.T) {
	model := blocks(4, "a", "b", "c", "d")
	c, err := Parse("dha.yaml", []byte(`version: 1
lowering: expand
layers:
  - {block: d, value: {groups: [[3], [0, 2, 1]]}}
  - {block: a, key: 2, value: 1}
  - {block: c, key: {groups: [[1, 0], [3], [2]], weights: [[2, -1], [1], [0.5]]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Resolve(model)
	if err != nil {
		t.Fatal(err)
	}
	third := 1. / 3
	same := Fusion{Groups: [][]int{{0}, {1}, {2}, {3}}, Weights: [][]float64{{1}, {1}, {1}, {1}}}
	want := &Plan{Lowering: Expand, Blocks: []BlockPlan{
		{model[0],
			Fusion{Groups: [][]int{{0, 1}, {2, 3}}, Weights: [][]float64{{0.5, 0.5}, {0.5, 0.5}}},
			Fusion{Groups: [][]int{{0, 1, 2, 3}}, Weights: [][]float64{{0.25, 0.25, 0.25, 0.25}}}, nil},
		{model[2], Fusion{Groups: [][]int{{1, 0}, {3}, {2}}, Weights: [][]float64{{2, -1}, {1}, {0.5}}}, same, nil},
		{model[3], same, Fusion{Groups: [][]int{{3}, {0, 2, 1}}, Weights: [][]float64{{1}, {third, third, third}}}, nil},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	// The plan owns its groups: changing it must not change the configuration.
	got.Blocks[1].Key.Groups[0][0], got.Blocks[1].Key.Weights[0][0] = 9, 9
	if k := c.Layers[2].Key; k.Groups[0][0] != 1 || k.Weights[0][0] != 2 {
		t.Error("the plan shares its groups with the configuration")
	}
	if p, err := (&Config{Version: Version}).Resolve(model); err != nil || len(p.Blocks) != 0 || p.Lowering != Auto {
		t.Errorf("an empty configuration gives %+v, %v", p, err)
	}
}

func TestResolveErrors(t *testing.T) {
	nine := blocks(4, "h.0.attn", "h.1.attn", "h.2.attn", "h.3.attn", "h.4.attn", "h.5.attn", "h.6.attn", "h.7.attn", "h.8.attn")
	layer := func(s string) string { return "version: 1\nlayers:\n  - {block: h.0.attn, " + s + "}\n" }
	for _, tc := range []struct {
		name, yaml, want string
		blocks           []*attention.Block
	}{
		{"near name", "version: 1\nlayers:\n  - block: h.0.atn\n    key: 2\n", `dha.yaml:3:5: no attention block "h.0.atn"; did you mean "h.0.attn"? The model has h.0.attn, h.1.attn`, nine[:2]},
		{"far name", "version: 1\nlayers:\n  - block: encoder/layer_17\n    key: 2\n", `dha.yaml:3:5: no attention block "encoder/layer_17". The model has h.0.attn, h.1.attn, h.2.attn, h.3.attn, h.4.attn, h.5.attn, h.6.attn, h.7.attn and 1 more`, nine},
		{"no blocks", layer("key: 2"), `dha.yaml:3:5: no attention block "h.0.attn": the model has no block that can be rewritten`, nil},
		{"indivisible", layer("key: 3"), `dha.yaml:3:28: key: 3 groups of equal size cannot be made of the 4 key heads of block "h.0.attn"; want one of 1, 2, 4, or write the groups out`, nine},
		{"too many", layer("value: 8"), `dha.yaml:3:30: value: 8 groups of equal size`, nine},
		{"missing", layer("key: {groups: [[0, 1]]}"), `dha.yaml:3:28: key: heads 2, 3 of block "h.0.attn" are in no group; the groups must cover key heads 0 to 3, each once`, nine},
		{"one missing", layer("key: {groups: [[0, 3], [2]]}"), `dha.yaml:3:28: key: head 1 of block "h.0.attn" is in no group`, nine},
		{"out of range", layer("value: {groups: [[0, 1, 2], [3, 4]]}"), `dha.yaml:3:55: value: head 4 does not exist; block "h.0.attn" has value heads 0 to 3`, nine},
		{"weights", "version: 1\nweights: dha.safetensors\n", `dha.yaml:2:10: weights: open dha.safetensors: no such file or directory`, nine},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse("dha.yaml", []byte(tc.yaml))
			if err != nil {
				t.Fatal(err)
			}
			p, err := c.Resolve(tc.blocks)
			if err == nil {
				t.Fatalf("accepted as %+v", p)
			}
			if !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got  %s\nwant %s", err, tc.want)
			}
		})
	}
	fixed := blocks(4, "h.0.attn")
	fixed[0].Fixed = "its heads are elsewhere"
	c, err := Parse("dha.yaml", []byte(layer("key: 2")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Resolve(fixed); err == nil || err.Error() != `dha.yaml:3:5: block "h.0.attn" cannot be rewritten: its heads are elsewhere` {
		t.Errorf("a block that is fixed: %v", err)
	}
	// Built in memory there are no places; the message stands alone.
	built := &Config{Version: Version, Layers: []Layer{{Block: "h.0.attn", Key: &Heads{Groups: [][]int{{0, 9}}}}}}
	if _, err := built.Resolve(nine); err == nil || err.Error() != `key: head 9 does not exist; block "h.0.attn" has key heads 0 to 3` {
		t.Errorf("built in memory: %v", err)
	}
}
