package verify

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

func openRuntime(t testing.TB) {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
}

func save(t testing.TB, m *graph.Model) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t testing.TB, path string) *Model {
	t.Helper()
	openRuntime(t)
	m, err := Open(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// tiny is a decoder of one attention layer without a causal mask: 4 query heads of 4 channels, a vocabulary of 11. Its
// weights are drawn head by head, so that models of different forms share them.
type tiny struct {
	seed uint64
	// groups is the head map of keys and values in the graph; nil: 4 heads of each. Fused heads are means.
	groups []int
	// tied gives the heads of a group the same weights and leaves the graph at 4 heads.
	tied bool
	// wrong is the map that the graph expands the cached heads by, when a rewrite got it wrong.
	wrong []int
	// newOnly makes the presents hold the step's positions alone.
	newOnly bool
	poison  float32 // replaces the first weight of the value projection
	drop    string  // output that is left out
	extra   string  // input that is added
	symbols map[string]string
	batch   any // size of the batch axis; nil: open
}

const (
	tinyHeads, tinyDim, tinyVocab = 4, 4, 11
	tinyWidth                     = tinyHeads * tinyDim
)

func (c tiny) draw(name string, n int) []float32 {
	h := fnv.New64a()
	h.Write([]byte(name))
	r := rand.New(rand.NewPCG(c.seed, h.Sum64()))
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64()) / 2
	}
	return out
}

// heads returns a projection [width, heads·dim] as this form of the model holds it.
func (c tiny) heads(name string, fused bool) (w []float32, heads int) {
	base := make([][]float32, tinyHeads)
	for h := range base {
		base[h] = c.draw(name+string(rune('0'+h)), tinyWidth*tinyDim)
	}
	cols := base
	if fused && c.groups != nil {
		n := 0
		for _, g := range c.groups {
			n = max(n, g+1)
		}
		mean, size := make([][]float32, n), make([]float32, n)
		for h, g := range c.groups {
			if mean[g] == nil {
				mean[g] = make([]float32, len(base[h]))
			}
			for i, x := range base[h] {
				mean[g][i] += x
			}
			size[g]++
		}
		for g := range mean {
			for i := range mean[g] {
				mean[g][i] /= size[g]
			}
		}
		cols = mean
		if c.tied {
			cols = nil
			for _, g := range c.groups {
				cols = append(cols, mean[g])
			}
		}
	}
	heads = len(cols)
	w = make([]float32, tinyWidth*heads*tinyDim)
	for h, col := range cols {
		for r := range tinyWidth {
			copy(w[(r*heads+h)*tinyDim:][:tinyDim], col[r*tinyDim:][:tinyDim])
		}
	}
	return w, heads
}

func (c tiny) build() *graph.Model {
	m := graph.New(8, 17)
	g := m.Graph
	sym := func(s string) any {
		if s == "batch" && c.batch != nil {
			return c.batch
		}
		if r, ok := c.symbols[s]; ok {
			s = r
		}
		return s
	}
	init := func(name string, data []float32, dims ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor(name, dims, data))
	}
	ints := func(name string, data ...int64) *graph.Value {
		return g.AddInit(graph.NewTensor(name, []int64{int64(len(data))}, data))
	}
	op := func(kind, out string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
		return g.AddNode(kind, "", "node_"+out, in, []string{out}, attrs...).Out[0]
	}
	v := func(vs ...*graph.Value) []*graph.Value { return vs }
	float, int64s := onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_INT64

	wk, kv := c.heads("k", true)
	wv, _ := c.heads("v", true)
	wq, _ := c.heads("q", false)
	if c.poison != 0 {
		wv[0] = c.poison
	}
	ids := g.AddInput("input_ids", graph.TensorType(int64s, sym("batch"), sym("sequence")))
	mask := g.AddInput("attention_mask", graph.TensorType(int64s, sym("batch"), sym("total_sequence")))
	pastK := g.AddInput("past_key", graph.TensorType(float, sym("batch"), kv, sym("past_sequence"), tinyDim))
	pastV := g.AddInput("past_value", graph.TensorType(float, sym("batch"), kv, sym("past_sequence"), tinyDim))
	if c.extra != "" {
		g.AddInput(c.extra, graph.TensorType(float, sym("batch")))
	}
	x := op("Gather", "x", v(init("embedding", c.draw("embedding", tinyVocab*tinyWidth), tinyVocab, tinyWidth), ids))
	split := func(name string, w []float32, heads int) *graph.Value {
		y := op("MatMul", name+"_flat", v(x, init(name+"_weight", w, tinyWidth, int64(heads*tinyDim))))
		y = op("Reshape", name+"_heads", v(y, ints(name+"_shape", 0, 0, int64(heads), tinyDim)))
		return op("Transpose", name, v(y), graph.IntsAttr("perm", 0, 2, 1, 3))
	}
	q := split("q", wq, tinyHeads)
	k := split("k", wk, kv)
	val := split("v", wv, kv)
	presentK := op("Concat", "joined_key", v(pastK, k), graph.IntAttr("axis", -2))
	presentV := op("Concat", "joined_value", v(pastV, val), graph.IntAttr("axis", 2))
	outK, outV := presentK, presentV
	if c.newOnly {
		outK, outV = k, val
	}
	if c.groups != nil && !c.tied {
		use := c.groups
		if c.wrong != nil {
			use = c.wrong
		}
		index := make([]int64, len(use))
		for h, grp := range use {
			index[h] = int64(grp)
		}
		of := ints("head_map", index...)
		presentK = op("Gather", "expanded_key", v(presentK, of), graph.IntAttr("axis", 1))
		presentV = op("Gather", "expanded_value", v(presentV, of), graph.IntAttr("axis", 1))
	}
	scores := op("MatMul", "scores", v(q, op("Transpose", "key_t", v(presentK), graph.IntsAttr("perm", 0, 1, 3, 2))))
	hidden := op("Sub", "hidden", v(init("one", []float32{1}, 1), op("Cast", "mask_float", v(mask), graph.IntAttr("to", int64(float)))))
	hidden = op("Mul", "penalty", v(hidden, init("minus", []float32{-1e9}, 1)))
	hidden = op("Unsqueeze", "penalty4", v(hidden, ints("axes", 1, 2)))
	p := op("Softmax", "p", v(op("Add", "masked", v(scores, hidden))), graph.IntAttr("axis", -1))
	y := op("Transpose", "mixed", v(op("MatMul", "context", v(p, presentV))), graph.IntsAttr("perm", 0, 2, 1, 3))
	y = op("Reshape", "mixed_flat", v(y, ints("flat", 0, 0, tinyWidth)))
	y = op("Add", "residual", v(x, op("MatMul", "out", v(y, init("o_weight", c.draw("o", tinyWidth*tinyWidth), tinyWidth, tinyWidth)))))
	y = op("MatMul", "logits", v(y, init("head", c.draw("head", tinyWidth*tinyVocab), tinyWidth, tinyVocab)))
	g.AddOutput(y, graph.TensorType(float, sym("batch"), sym("sequence"), tinyVocab))
	for _, o := range []struct {
		name string
		of   *graph.Value
	}{{"present_key", outK}, {"present_value", outV}} {
		if o.name == c.drop {
			continue
		}
		g.AddOutput(op("Identity", o.name, v(o.of)), graph.TensorType(float, sym("batch"), kv, "out_"+o.name, tinyDim))
	}
	return m
}

func (c tiny) path(t testing.TB) string { return save(t, c.build()) }

// bigram is a model whose scores for the next token depend on the token alone: row ids of a table.
func bigram(t testing.TB, table [][]float64) string {
	t.Helper()
	m := graph.New(8, 17)
	var flat []float32
	for _, row := range table {
		for _, x := range row {
			flat = append(flat, float32(x))
		}
	}
	n := int64(len(table))
	w := m.Graph.AddInit(graph.NewTensor("table", []int64{n, n}, flat))
	ids := m.Graph.AddInput("input_ids", graph.TensorType(onnxpb.TensorProto_INT64, "batch", "sequence"))
	y := m.Graph.AddNode("Gather", "", "lookup", []*graph.Value{w, ids}, []string{"logits"}).Out[0]
	m.Graph.AddOutput(y, graph.TensorType(onnxpb.TensorProto_FLOAT, "batch", "sequence", n))
	return save(t, m)
}

var nan32 = float32(math.NaN())
