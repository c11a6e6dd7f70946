package rewrite_test

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/fusion"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// wrapped writes a model that is put into bodies and returns its path.
func wrapped(t *testing.T, m *onnxpb.ModelProto) string {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func message(t *testing.T, family string, o testmodels.Options) *onnxpb.ModelProto {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	o.Seed = 3
	m, err := f.Message(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func merged(t *testing.T, family string, o testmodels.Options) *onnxpb.ModelProto {
	first, next := o, o
	first.Stage, next.Stage = testmodels.First, testmodels.Next
	return testmodels.Merge(message(t, family, first), message(t, family, next))
}

// groupingsInBodies are the ones that tell more about bodies than about a block.
var groupingsInBodies = []string{"equal", "decoupled-unequal", "crossed", "values-only"}

// exactGroupings runs exact for these groupings in both general lowerings.
func exactGroupings(t *testing.T, name, path string, names []string, steps int) {
	for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
		for _, g := range groupings {
			for _, want := range names {
				if g.name == want {
					t.Run(name+"/"+string(low)+"/"+g.name, func(t *testing.T) { exact(t, path, low, g.key, g.val, steps) })
				}
			}
		}
	}
}

// A layer is in both branches of a merged decoder; weights are shared between them, the cache is an input that one branch
// reads and an output of both.
func TestExactMerged(t *testing.T) {
	runtime(t)
	for _, family := range []string{"gpt2", "llama-gqa", "llama-dynamo", "gpt-neox", "opt"} {
		exactGroupings(t, family, wrapped(t, merged(t, family, testmodels.Options{})), groupingsInBodies, 3)
	}
}

// A Loop carries the caches of a decoder from token to token.
func TestExactLoop(t *testing.T) {
	runtime(t)
	for _, family := range []string{"gpt2", "llama-gqa"} {
		exactGroupings(t, family, wrapped(t, testmodels.Loop(message(t, family, testmodels.Options{Cache: true}))), groupingsInBodies, 2)
	}
}

// What a Loop starts from is one empty tensor for the caches of all layers, whose heads come to differ.
func TestExactLoopFromEmpty(t *testing.T) {
	runtime(t)
	path := wrapped(t, testmodels.FromEmpty(testmodels.Loop(message(t, "llama", testmodels.Options{Cache: true}))))
	exactGroupings(t, "llama", path, []string{"decoupled", "decoupled-unequal"}, -1)
}

// The body of a Scan reads weights of the graph around it.
func TestExactScan(t *testing.T) {
	runtime(t)
	exactGroupings(t, "bert", wrapped(t, testmodels.Scan(message(t, "bert", testmodels.Options{}))), groupingsInBodies, -1)
}

// The cross attention of a merged decoder is projected in one branch; the other takes the keys and values from the caller.
func TestExactMergedCross(t *testing.T) {
	runtime(t)
	exactGroupings(t, "t5-decoder", wrapped(t, merged(t, "t5-decoder", testmodels.Options{})), groupingsInBodies, 3)
}
