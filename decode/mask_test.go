package decode

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/internal/trial"
	"onnx-dha/testmodels"
)

// remask saves a Llama, and the same with another mask in the place of its own: edit gets the graph and the new input
// and puts it to use.
func remask(t *testing.T, edit func(g *graph.Graph, in *graph.Value), dtype onnxpb.TensorProto_DataType, dims ...any) (plain, masked string) {
	t.Helper()
	f, err := testmodels.Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(testmodels.Options{Cache: true, Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plain, masked = filepath.Join(t.TempDir(), "plain.onnx"), filepath.Join(t.TempDir(), "masked.onnx")
	if err := m.Save(plain, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	g := m.Graph
	edit(g, g.AddInput("query_mask", graph.TensorType(dtype, dims...)))
	g.RemoveDead(nil)
	old := g.Value("attention_mask")
	g.Inputs = slices.DeleteFunc(g.Inputs, func(x *graph.Value) bool { return x == old })
	if err := g.Sort(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(masked, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return plain, masked
}

func node(g *graph.Graph, op string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	return g.AddNode(op, "", "query_mask/"+op, in, []string{"query_mask/" + op}, attrs...).Out[0]
}

// marks makes the last row of a mask the model's own of [batch, positions], after the operators of through.
func marks(through ...string) func(g *graph.Graph, in *graph.Value) {
	return func(g *graph.Graph, in *graph.Value) {
		ints := func(name string, x ...int64) *graph.Value {
			return g.AddInit(graph.NewTensor("query_mask/"+name, []int64{int64(len(x))}, x))
		}
		rank := len(in.Info.GetType().GetTensorType().GetShape().GetDim())
		for _, op := range through {
			in = node(g, op, []*graph.Value{in})
		}
		v := node(g, "Cast", []*graph.Value{in}, graph.IntAttr("to", int64(onnxpb.TensorProto_INT64)))
		if rank > 2 {
			v = node(g, "Slice", []*graph.Value{v, ints("start", -1), ints("end", 1<<62), ints("axis", int64(rank-2))})
			v = node(g, "Reshape", []*graph.Value{v, ints("shape", 0, -1)})
		}
		for _, u := range slices.Clone(g.Value("attention_mask").Users()) {
			if u.Node != nil {
				u.Node.SetInput(u.Index, v)
			}
		}
	}
}

// adds makes a mask what is added to the scores of every layer, in the place of all that the model hides by itself.
func adds(g *graph.Graph, in *graph.Value) {
	v := node(g, "Cast", []*graph.Value{in}, graph.IntAttr("to", int64(onnxpb.TensorProto_FLOAT)))
	if in.Producer == nil && len(in.Info.GetType().GetTensorType().GetShape().GetDim()) == 3 {
		v = node(g, "Unsqueeze", []*graph.Value{v, g.AddInit(graph.NewTensor("query_mask/axes", []int64{1}, []int64{1}))})
	}
	for _, n := range slices.Clone(g.Nodes) {
		if n.OpType == "Softmax" {
			if sum := n.Input(0).Producer; sum.OpType == "Add" {
				sum.SetInput(1, v)
			}
		}
	}
}

// penalises makes a mask that says what is hidden.
func penalises(g *graph.Graph, in *graph.Value) {
	adds(g, node(g, "Mul", []*graph.Value{in, g.AddInit(graph.NewTensor("query_mask/penalty", nil, []float32{-1e9}))}))
}

// splits takes the heads out of the batch of a mask and adds it.
func splits(g *graph.Graph, in *graph.Value) {
	list := func(name string, x ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor("query_mask/"+name, []int64{int64(len(x))}, x))
	}
	shape := node(g, "Shape", []*graph.Value{in})
	shape = node(g, "Slice", []*graph.Value{shape, list("from", 1), list("to", 3), list("of", 0)})
	shape = node(g, "Concat", []*graph.Value{list("split", -1, 4), shape}, graph.IntAttr("axis", 0))
	adds(g, node(g, "Reshape", []*graph.Value{in, shape}))
}

const (
	fl32 = onnxpb.TensorProto_FLOAT
	fl16 = onnxpb.TensorProto_FLOAT16
	bits = onnxpb.TensorProto_BOOL
	ints = onnxpb.TensorProto_INT64
)

var (
	flat  = []any{"batch_size", "total_sequence_length"}
	cube  = []any{"batch_size", "sequence_length", "total_sequence_length"}
	heads = []any{"batch_size", 4, "sequence_length", "total_sequence_length"}
	four  = []any{"batch_size", 1, "sequence_length", "total_sequence_length"}
)

func two(*attention.Block) (keys, values int) { return 2, 2 }

// Masks of all forms hide what comes later and the padding, and give what the model's own mask of positions gives; rewritten,
// with growing caches and with static ones that are longer than the mask, they give what the tied reference does.
func TestMasks(t *testing.T) {
	for _, c := range []struct {
		name  string
		edit  func(g *graph.Graph, in *graph.Value)
		dtype onnxpb.TensorProto_DataType
		dims  []any
	}{
		{"2-D, truth values", marks(), bits, flat},
		{"3-D, truth values", marks(), bits, cube},
		{"4-D, truth values", marks(), bits, four},
		{"4-D, integers", marks(), ints, four},
		{"2-D, numbers that say which", marks(), fl32, flat},
		{"4-D, numbers that say which", marks(), fl32, four},
		{"3-D, numbers that are added", adds, fl32, cube},
		{"4-D, numbers that are added", adds, fl32, four},
		{"4-D, numbers for each head", adds, fl32, heads},
		{"3-D, heads in the batch", splits, fl32, []any{"4*batch_size", "sequence_length", "total_sequence_length"}},
		{"4-D, numbers that say which are hidden", penalises, fl32, four},
		{"4-D, half precision", adds, fl16, four},
	} {
		t.Run(c.name, func(t *testing.T) {
			plain, masked := remask(t, c.edit, c.dtype, c.dims...)
			sameScores(t, plain, masked)
			compareLoops(t, masked, Options{Chunk: 4}, []int{5, 3}, 2)
			for _, r := range []struct {
				heads     trial.Heads
				lowerings []fusion.Lowering
			}{
				{fewer, []fusion.Lowering{fusion.Expand, fusion.Grouped, fusion.StaticCache}},
				{two, []fusion.Lowering{fusion.GQA, fusion.OpAttention}},
			} {
				tied := trial.Tie(t, masked, r.heads)
				for _, lowering := range r.lowerings {
					t.Run(string(lowering), func(t *testing.T) { sameScores(t, tied, trial.Rewrite(t, masked, lowering, r.heads)) })
				}
			}
		})
	}
}

// sameScores feeds two models prompts of unequal length and some tokens more.
func sameScores(t *testing.T, plain, masked string) {
	t.Helper()
	prompts := [][]int64{{3, 1, 4, 1}, {5, 9}}
	a, b := start(t, load(t, plain), Options{Batch: 2, Chunk: 4}), start(t, load(t, masked), Options{Batch: 2, Chunk: 4})
	for range 4 {
		for _, l := range []*Loop{a, b} {
			if err := l.Feed(t.Context(), prompts); err != nil {
				t.Fatal(err)
			}
		}
		for s := range prompts {
			want, err := a.Scores(s)
			if err != nil {
				t.Fatal(err)
			}
			got, err := b.Scores(s)
			if err != nil {
				t.Fatal(err)
			}
			for v := range want {
				if !(math.Abs(float64(got[v]-want[v])) < 1e-5) {
					t.Fatalf("sequence %d: scores %v, want %v", s, got[:4], want[:4])
				}
			}
		}
		prompts = [][]int64{{2}, {6}}
	}
}

// The rows of masks, for two tokens after one; the second sequence begins with two places of padding.
func TestMaskRows(t *testing.T) {
	const min = -math.MaxFloat32
	for _, c := range []struct {
		name  string
		edit  func(g *graph.Graph, in *graph.Value)
		dtype onnxpb.TensorProto_DataType
		dims  []any
		want  []float64
	}{
		{"truth values", marks(), bits, four, []float64{1, 1, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1}},
		{"numbers that are added", adds, fl32, cube, []float64{0, 0, min, 0, 0, 0, min, 0, min, min, min, 0}},
		{"one for all sequences", adds, fl32, []any{"sequence_length", "total_sequence_length"}, []float64{0, 0, min, 0, 0, 0}},
		{"of positions", marks(), ints, flat, []float64{1, 1, 1, 0, 0, 1}},
	} {
		_, masked := remask(t, c.edit, c.dtype, c.dims...)
		l := start(t, load(t, masked), Options{Batch: 2})
		l.padding, l.filled = []int{0, 2}, 1
		i := slices.IndexFunc(l.inputs, func(s source) bool { return s.name == "query_mask" })
		if i < 0 {
			t.Fatalf("%s: the model has no mask", c.name)
		}
		mask, err := l.inputs[i].make(l, nil, 2)
		if err != nil {
			t.Fatal(err)
		}
		got, err := mask.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: shape %v, mask %v; want %v", c.name, mask.Shape, got, c.want)
		}
	}
}

// One mask for all sequences hides what comes later, and has no place for padding.
func TestMaskForAll(t *testing.T) {
	plain, masked := remask(t, adds, fl32, "sequence_length", "total_sequence_length")
	prompts := [][]int64{{3, 1, 4, 1}, {5, 9, 2, 6}}
	a, b := start(t, load(t, plain), Options{Batch: 2}), start(t, load(t, masked), Options{Batch: 2})
	if err := b.Feed(t.Context(), [][]int64{{1, 2}, {3}}); err == nil || !strings.Contains(err.Error(), "no mask in which padding could be marked") {
		t.Errorf("prompts of unequal length: %v", err)
	}
	for _, l := range []*Loop{a, b} {
		if err := l.Feed(t.Context(), prompts); err != nil {
			t.Fatal(err)
		}
	}
	want, err := a.Scores(1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Scores(1)
	if err != nil {
		t.Fatal(err)
	}
	for v := range want {
		if !(math.Abs(float64(got[v]-want[v])) < 1e-5) {
			t.Fatalf("scores %v, want %v", got[:4], want[:4])
		}
	}
	compareLoops(t, masked, Options{Chunk: 4}, []int{4, 4}, 3)
}

// What numbers of this form do to the scores is not known.
func TestUnknownMask(t *testing.T) {
	_, masked := remask(t, marks("Neg"), fl32, four...)
	if _, err := load(t, masked).Start(Options{}); err == nil || !strings.Contains(err.Error(), `nothing tells what input "query_mask"`) {
		t.Errorf("error %v", err)
	}
}

// An operator that takes a count of tokens for the first positions knows nothing of padding in front.
func TestCountedTokens(t *testing.T) {
	m := load(t, trial.Model(t, "mistral/genai", testmodels.Options{Cache: true}))
	l := start(t, m, Options{Batch: 2})
	if err := l.Feed(t.Context(), [][]int64{{1, 2}, {3}}); err == nil || !strings.Contains(err.Error(), "counts the tokens") {
		t.Errorf("error %v", err)
	}
}
