package attention_test

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

func opened(t *testing.T, pb *onnxpb.ModelProto) *graph.Model {
	t.Helper()
	data, err := proto.Marshal(pb)
	if err != nil {
		t.Fatal(err)
	}
	m, err := graph.Read("message", data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func built(t *testing.T, family string, o testmodels.Options) *onnxpb.ModelProto {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The blocks of a layer share a name, whatever their bodies, and no others do.
func TestLayersInBodies(t *testing.T) {
	first, next := testmodels.Options{Stage: testmodels.First}, testmodels.Options{Stage: testmodels.Next}
	for name, c := range map[string]struct {
		m              *onnxpb.ModelProto
		blocks, layers int
	}{
		"merged":         {testmodels.Merge(built(t, "llama", first), built(t, "llama", next)), 4, 2},
		"merged, dynamo": {testmodels.Merge(built(t, "llama-dynamo", first), built(t, "llama-dynamo", next)), 4, 2},
		"merged, cross":  {testmodels.Merge(built(t, "t5-decoder", first), built(t, "t5-decoder", next)), 8, 4},
		"loop":           {testmodels.Loop(built(t, "gpt2", next)), 2, 2},
		"scan":           {testmodels.Scan(built(t, "bert", testmodels.Options{})), 2, 2},
		"search":         {testmodels.Search("BeamSearch", built(t, "gpt2", next)), 2, 2},
	} {
		r := attention.Find(opened(t, c.m))
		for _, u := range r.Unsupported {
			t.Errorf("%s: %v: %s", name, u.Node, u.Why)
		}
		names := map[string]int{}
		for _, b := range r.Blocks {
			names[b.Name]++
			if b.Fixed != "" {
				t.Errorf("%s: %s: %s", name, b.Name, b.Fixed)
			}
			if b.Body == "" {
				t.Errorf("%s: %s is said to lie in the main graph", name, b.Name)
			}
		}
		if len(r.Blocks) != c.blocks || len(names) != c.layers || len(attention.Layers(r.Blocks)) != c.layers {
			t.Errorf("%s: %d blocks of %d layers, want %d of %d", name, len(r.Blocks), len(names), c.blocks, c.layers)
		}
		for n, times := range names {
			if times != c.blocks/c.layers {
				t.Errorf("%s: layer %s has %d blocks, want %d", name, n, times, c.blocks/c.layers)
			}
		}
	}
}

// A block that projects no keys and values itself is whole only beside what fills its caches.
func TestCachesFilledElsewhere(t *testing.T) {
	first := built(t, "t5-decoder", testmodels.Options{Stage: testmodels.First})
	next := built(t, "t5-decoder", testmodels.Options{Stage: testmodels.Next})
	encoder := testmodels.Fill(built(t, "t5-encoder", testmodels.Options{}), first, func(s string) string { return s })
	count := func(models ...*onnxpb.ModelProto) (fixed, filled int) {
		var open []*graph.Model
		for _, m := range models {
			open = append(open, opened(t, m))
		}
		for _, r := range attention.FindAll(open...) {
			for _, b := range r.Blocks {
				if b.Fixed != "" {
					fixed++
				}
				filled += len(b.KeyFills)
				if len(b.KeyFills) != len(b.ValueFills) {
					t.Errorf("%s: %d fills of keys, %d of values", b.Name, len(b.KeyFills), len(b.ValueFills))
				}
				for _, f := range b.KeyFills {
					if len(f.Path.Columns) != b.KVHeads || f.Cache.Present == nil {
						t.Errorf("%s: filled with %d heads, want %d", b.Name, len(f.Path.Columns), b.KVHeads)
					}
				}
			}
		}
		return fixed, filled
	}
	for name, c := range map[string]struct {
		models        []*onnxpb.ModelProto
		fixed, filled int
	}{
		"alone":                   {[]*onnxpb.ModelProto{next}, 2, 0},
		"beside the first step":   {[]*onnxpb.ModelProto{next, first}, 0, 0},
		"beside the encoder":      {[]*onnxpb.ModelProto{next, encoder}, 0, 2},
		"beside an encoder alone": {[]*onnxpb.ModelProto{next, built(t, "t5-encoder", testmodels.Options{})}, 2, 0},
		"beside both":             {[]*onnxpb.ModelProto{next, first, encoder}, 0, 2},
	} {
		if fixed, filled := count(c.models...); fixed != c.fixed || filled != c.filled {
			t.Errorf("%s: %d blocks are fixed and %d filled, want %d and %d", name, fixed, filled, c.fixed, c.filled)
		}
	}
}
