package fusion

import (
	"errors"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// model makes blocks with real weights: element i of each tensor is seed + i.
func model(seed float32, packed bool, names ...string) []*attention.Block {
	m := graph.New(10, 17)
	tensor := func(name string, dims ...int64) *graph.Value {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = seed + float32(i)
		}
		return m.Graph.AddInit(graph.NewTensor(m.Graph.FreshName(name), dims, data))
	}
	out := blocks(8, names...)
	for _, b := range out {
		if packed {
			qkv := projection(tensor("qkv", 6, 18))
			qkv.GemmBias = tensor("b", 18)
			qkv.BiasTensor = qkv.GemmBias.Init
			b.Query, b.Key, b.Value = &attention.Path{Projection: qkv}, &attention.Path{Projection: qkv}, &attention.Path{Projection: qkv}
		} else {
			path := func(name string) *attention.Path {
				return &attention.Path{Projection: projection(tensor(name, 6, 6))}
			}
			b.Query, b.Key, b.Value = path("q"), path("k"), path("v")
			bias := tensor("vb", 6)
			b.Value.Biases = []attention.Side{{Value: bias, Tensor: bias.Init}}
		}
		b.Output = &attention.Output{Projection: projection(tensor("o", 6, 6))}
	}
	return out
}

func TestFingerprint(t *testing.T) {
	fingerprint := func(b []*attention.Block) string {
		t.Helper()
		s, err := Fingerprint(b)
		if err != nil {
			t.Fatal(err)
		}
		if !isFingerprint(s) {
			t.Fatalf("form of %q", s)
		}
		return s
	}
	base := fingerprint(model(1, false, "a", "b", "c"))
	if again := fingerprint(model(1, false, "other", "names", "here")); again != base {
		t.Error("names changed the fingerprint")
	}
	without := model(1, false, "a", "b", "c")
	without[0].Output = nil
	if fingerprint(without) != base {
		t.Error("the output projection changed the fingerprint")
	}
	seen := map[string]string{base: "base"}
	for what, b := range map[string][]*attention.Block{
		"other values": model(2, false, "a", "b", "c"),
		"fewer blocks": model(1, false, "a", "b"),
		"packed":       model(1, true, "a", "b", "c"),
		"one value": func() []*attention.Block {
			b := model(1, false, "a", "b", "c")
			b[2].Value.Biases[0].Value.Init.Proto.RawData[0]++
			return b
		}(),
		"a shape": func() []*attention.Block {
			b := model(1, false, "a", "b", "c")
			b[1].Key.Projection.Weight.Init.Proto.Dims = []int64{4, 9}
			return b
		}(),
		"key and value swapped": func() []*attention.Block {
			b := model(1, false, "a", "b", "c")
			b[0].Key, b[0].Value = b[0].Value, b[0].Key
			return b
		}(),
	} {
		f := fingerprint(b)
		if other, ok := seen[f]; ok {
			t.Errorf("%s and %s have the same fingerprint", what, other)
		}
		seen[f] = what
	}
	broken := model(1, false, "a", "b")
	broken[1].Key.Projection = projection(&graph.Value{Name: "x"})
	if _, err := Fingerprint(broken); err == nil || !strings.Contains(err.Error(), `block "b": "x" is not a constant`) {
		t.Errorf("a computed weight: %v", err)
	}
}

func TestCheckModel(t *testing.T) {
	mine, other := model(1, false, "a"), model(2, false, "a")
	c, err := Draft(mine, HeadCounts(4, 2))
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if c, err = Parse("dha.yaml", data); err != nil {
		t.Fatal(err)
	}
	if err := c.CheckModel(mine); err != nil {
		t.Error(err)
	}
	err = c.CheckModel(other)
	if !errors.Is(err, ErrOtherModel) {
		t.Fatalf("another model: %v", err)
	}
	theirs, _ := Fingerprint(other)
	for _, part := range []string{"dha.yaml:5:22: ", c.Fingerprint[:19] + "…", theirs[:19] + "…"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in %q", part, err)
		}
	}
	c.Fingerprint = ""
	if err := c.CheckModel(other); err != nil {
		t.Errorf("without a fingerprint: %v", err)
	}
}

func TestDraft(t *testing.T) {
	m := model(1, false, "a", "b")
	m[1].KVHeads, m[1].ValueHeads = 2, 2
	c, err := Draft(m, HeadCounts(4, 1))
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Resolve(m)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][2]int{{4, 1}, {2, 1}} { // a block of two heads keeps them when four are asked for
		if got := [2]int{p.Blocks[i].Key.Heads(), p.Blocks[i].Value.Heads()}; got != want {
			t.Errorf("block %s: %v heads, want %v", m[i].Name, got, want)
		}
	}
	if !p.Blocks[1].Key.IsIdentity() {
		t.Error("heads that stay are not the identity")
	}
	if _, err := Draft(nil, HeadCounts(1, 1)); err == nil {
		t.Error("a draft for no block")
	}
	m[0].Fixed = "no reason"
	part, err := Draft(m, HeadCounts(1, 1))
	if err != nil || len(part.Layers) != 1 || part.Layers[0].Block != "b" || part.Fingerprint != c.Fingerprint {
		t.Errorf("with a block that is fixed: %+v, %v; want block b and the fingerprint of both", part, err)
	}
	m[1].Fixed = "no reason"
	if _, err := Draft(m, HeadCounts(1, 1)); err == nil {
		t.Error("a draft for blocks that are fixed")
	}
}

func TestTargets(t *testing.T) {
	block := func(kv, d, dv int) *attention.Block {
		return &attention.Block{Name: "a", Heads: 8, KVHeads: kv, ValueHeads: kv, HeadDim: d, ValueDim: dv}
	}
	for _, tc := range []struct {
		target     Target
		block      *attention.Block
		key, value int
		err        string
	}{
		{HeadCounts(4, 2), block(8, 16, 16), 4, 2, ""},
		{HeadCounts(0, 2), block(8, 16, 16), 8, 2, ""},
		{HeadCounts(4, 0), block(2, 16, 16), 2, 2, ""},
		{HeadCounts(4, 2), block(6, 16, 16), 0, 0, `the 6 key heads of block "a" do not make 4 equal groups; want one of 1, 2, 3, 6`},
		{HeadCounts(2, 4), block(6, 16, 16), 0, 0, `the 6 value heads of block "a" do not make 4 equal groups`},
		{HeadCounts(-1, 1), block(6, 16, 16), 0, 0, `-1 key heads; want at least 1`},
		{CacheShare(0.5), block(8, 16, 16), 4, 4, ""},
		{CacheShare(0.7), block(8, 16, 16), 8, 2, ""}, // 10 of 16 heads; (4, 4) uses less
		{CacheShare(0.375), block(8, 16, 16), 4, 2, ""},
		{CacheShare(1), block(12, 16, 16), 12, 12, ""},
		{CacheShare(0.5), block(4, 32, 16), 2, 2, ""},
		{CacheShare(0.5), block(4, 16, 48), 2, 2, ""},
		{CacheShare(0.45), block(4, 16, 48), 1, 2, ""}, // 112 of at most 115 channels, as (4, 1), but more balanced
		{CacheShare(0.1), block(4, 16, 16), 0, 0, `10 % of the cache of block "a" is less than one key head and one value head, which take 25 %`},
		{CacheShare(0), block(4, 16, 16), 0, 0, "a share of 0 of the cache"},
		{CacheShare(1.5), block(4, 16, 16), 0, 0, "a share of 1.5 of the cache"},
	} {
		k, v, err := tc.target(tc.block)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%+v: error %v, want %s", tc.block, err, tc.err)
			}
			continue
		}
		if err != nil || k != tc.key || v != tc.value {
			t.Errorf("%d KV heads of %d and %d channels: %d, %d, %v; want %d, %d", tc.block.KVHeads, tc.block.HeadDim, tc.block.ValueDim, k, v, err, tc.key, tc.value)
		}
	}
}

// projection is one whose weight is the initializer w.
func projection(w *graph.Value) *attention.Projection {
	return &attention.Projection{Weight: w, Tensor: w.Init}
}
