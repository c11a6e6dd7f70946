package verify_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

var updateMutants = flag.Bool("update-mutants", false, "write docs/mutants.md")

// A fault is a way in which a rewrite may be wrong. inject puts it into one block of a rewritten model, and returns false
// where the block has nothing that could be wrong in this way.
type fault struct {
	name, doc string
	inject    func(p *graph.Patch, b *attention.Block) (bool, error)
	// plan is a fault of the plan that the rewrite follows, while everything else follows the right one.
	plan func(*fusion.BlockPlan) bool
}

// Taken together these are the mistakes that a rewriter of attention makes: which head, which way round, which channel, what
// is added, where in the cache, what is hidden.
var faults = []fault{
	{name: "wrong head in the map", doc: "two key heads change their groups", plan: func(bp *fusion.BlockPlan) bool {
		g := bp.Key.Groups
		if len(g) < 2 {
			return false
		}
		a, b := append([]int{g[1][0]}, g[0][1:]...), append([]int{g[0][0]}, g[1][1:]...)
		bp.Key.Groups = append([][]int{a, b}, g[2:]...)
		return true
	}},
	{name: "transposed block", doc: "the first square of a value head's weights is transposed", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		cols := b.Value.Columns[0]
		return true, editWeight(p, b.Value.Projection, func(at func(row, col int) *float64) {
			for i := range cols {
				for j := range i {
					x, y := at(i, cols[j]), at(j, cols[i])
					*x, *y = *y, *x
				}
			}
		})
	}},
	{name: "wrong rotary pair", doc: "two channels of one key head change places, so that each turns with another's angle", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		if b.Rotary.Kind == attention.NoRotary {
			return false, nil
		}
		cols := b.Key.Columns[0]
		return true, editWeight(p, b.Key.Projection, func(at func(row, col int) *float64) {
			for row := range rows(b.Key.Projection) {
				x, y := at(row, cols[0]), at(row, cols[1])
				*x, *y = *y, *x
			}
		})
	}},
	{name: "bias lost", doc: "the bias of the values, or of the output, is zero", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		switch {
		case len(b.Value.Biases) > 0:
			return true, zero(p, b.Value.Biases[0].Value, b.Value.Biases[0].Tensor)
		case b.Value.Projection.GemmBias != nil:
			return true, zero(p, b.Value.Projection.GemmBias, b.Value.Projection.BiasTensor)
		case b.Output != nil && b.Output.Bias != nil:
			return true, zero(p, b.Output.Bias.Value, b.Output.Bias.Tensor)
		}
		return false, nil
	}},
	{name: "off by one in the cache", doc: "the cached keys are moved by one position", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		c := b.KeyCache
		if c == nil || c.Concat == nil {
			return false, nil
		}
		joined := c.Concat.Out[0]
		axis := c.Concat.Int("axis", 0)
		const end = int64(1) << 40
		slice := func(name string, from, to int64) *graph.Value {
			return p.Op("Slice", name, []*graph.Value{joined, p.Ints(name+"/from", from), p.Ints(name+"/to", to), p.Ints(name+"/axis", axis)})
		}
		last, rest := slice("mutant/last", -1, end), slice("mutant/rest", 0, -1)
		moved := p.Op("Concat", "mutant/moved", []*graph.Value{last, rest}, graph.IntAttr("axis", axis))
		p.Replace(joined, moved, last.Producer, rest.Producer)
		return true, nil
	}},
	{name: "mask lost", doc: "what hides positions from the softmax is left out", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		scores := b.Softmax.In[0]
		for scores != nil && scores.Producer != nil && scores.Producer != b.QK {
			n := scores.Producer
			next := -1
			for i, in := range n.In {
				if _, ok := b.Scores[in]; ok || in == b.QK.Out[0] {
					next = i
				}
			}
			if next < 0 {
				return false, nil
			}
			if n.Is("Where") || n.Is("Add") && n.In[1-next].Const() == nil {
				p.Replace(n.Out[0], n.In[next])
				return true, nil
			}
			scores = n.In[next]
		}
		return false, nil
	}},
	{name: "heads of the output swapped", doc: "two query heads change places in front of the output projection", inject: func(p *graph.Patch, b *attention.Block) (bool, error) {
		if b.Output == nil {
			return false, nil
		}
		out := b.Output
		return true, editTensor(p, out.Weight, out.Tensor, out.RowAxis, func(at func(col, row int) *float64) {
			for i, row := range out.Rows[0] {
				for col := range out.Columns {
					x, y := at(col, row), at(col, out.Rows[1][i])
					*x, *y = *y, *x
				}
			}
		})
	}},
}

// rows is the number of input features of a projection.
func rows(p *attention.Projection) int { return int(p.Tensor.Dims()[1-p.Axis]) }

func editWeight(p *graph.Patch, proj *attention.Projection, edit func(at func(row, col int) *float64)) error {
	return editTensor(p, proj.Weight, proj.Tensor, proj.Axis, edit)
}

// editTensor changes a matrix, whose columns lie on axis.
func editTensor(p *graph.Patch, v *graph.Value, t *graph.Tensor, axis int, edit func(at func(row, col int) *float64)) error {
	x, err := t.Float64s()
	if err != nil {
		return err
	}
	d := t.Dims()
	if len(d) != 2 {
		return fmt.Errorf("%q has dims %v, want a matrix", v.Name, d)
	}
	x = append([]float64(nil), x...)
	edit(func(row, col int) *float64 {
		if axis == 0 {
			row, col = col, row
		}
		return &x[row*int(d[1])+col]
	})
	return replace(p, v, t, x)
}

func zero(p *graph.Patch, v *graph.Value, t *graph.Tensor) error {
	return replace(p, v, t, make([]float64, t.Len()))
}

func replace(p *graph.Patch, v *graph.Value, t *graph.Tensor, x []float64) error {
	changed, err := graph.FromFloat64s("mutant/"+v.Name, t.DType(), t.Dims(), x)
	if err == nil {
		p.Replace(v, p.Init(changed))
	}
	return err
}

// subject is a family with a rewrite that is right.
type subject struct {
	family         testmodels.Family
	dir            string
	original, tied string
	caches         []rewrite.CacheChange
	taps           []verify.Tap
	layers         int
	lowering       fusion.Lowering
}

const mutantLayers = 2

// prepare builds a family and the tied reference of a plan for it.
func prepare(t *testing.T, f testmodels.Family) *subject {
	t.Helper()
	return prepareAs(t, f, testmodels.Options{}, fusion.Auto)
}

// prepareAs is prepare with the element type and further variants of o, in a form of the attention core.
func prepareAs(t *testing.T, f testmodels.Family, o testmodels.Options, lowering fusion.Lowering) *subject {
	t.Helper()
	o.Layers, o.Heads, o.KVHeads, o.HeadDim, o.Cache = mutantLayers, 8, 4, 4, f.Decoder
	m, err := f.Build(o)
	if err != nil {
		o.Heads, o.KVHeads = 4, 0 // as many of each in this family
		if m, err = f.Build(o); err != nil {
			t.Fatal(err)
		}
	}
	s := &subject{family: f, dir: t.TempDir(), lowering: lowering}
	s.original, s.tied = filepath.Join(s.dir, "model.onnx"), filepath.Join(s.dir, "tied.onnx")
	if err := m.Save(s.original, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s.open(t, func(m *graph.Model, plan *fusion.Plan) {
		blocks := make([]*attention.Block, len(plan.Blocks))
		for i, bp := range plan.Blocks {
			blocks[i] = bp.Block
		}
		s.taps, s.layers = verify.Taps(blocks), len(blocks)
		if err := rewrite.Tie(m, plan); err != nil {
			t.Fatal(err)
		}
		if err := m.Save(s.tied, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
	})
	s.open(t, func(m *graph.Model, plan *fusion.Plan) {
		res, err := rewrite.Apply(m, plan)
		if err != nil {
			t.Fatal(err)
		}
		s.caches = res.Caches
	})
	return s
}

// open loads the original with the plan: key heads in two crossing pairs of unequal weights, values in neighbouring pairs.
func (s *subject) open(t *testing.T, f func(*graph.Model, *fusion.Plan)) {
	t.Helper()
	m, err := graph.Load(s.original)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	plan := &fusion.Plan{Lowering: s.lowering}
	for _, b := range attention.Find(m).Blocks {
		bp := fusion.BlockPlan{Block: b, Key: fusion.Identity(b.KVHeads), Value: fusion.Identity(b.ValueHeads)}
		if b.KVHeads == 4 {
			bp.Key = fusion.Fusion{Groups: [][]int{{0, 2}, {1, 3}}, Weights: [][]float64{{0.7, 0.35}, {0.6, 0.5}}}
			bp.Value = fusion.Fusion{Groups: [][]int{{0, 1}, {2, 3}}, Weights: [][]float64{{0.5, 0.5}, {0.8, 0.3}}}
		}
		plan.Blocks = append(plan.Blocks, bp)
	}
	f(m, plan)
}

// mutate writes a rewrite with a fault in one block; false where the fault does not apply.
func (s *subject) mutate(t *testing.T, f fault, layer int) (path string, ok bool) {
	t.Helper()
	path = filepath.Join(s.dir, "mutant.onnx")
	s.open(t, func(m *graph.Model, plan *fusion.Plan) {
		if f.plan != nil && !f.plan(&plan.Blocks[layer]) {
			return
		}
		if _, err := rewrite.Apply(m, plan); err != nil {
			t.Fatal(err)
		}
		if f.inject != nil {
			p := graph.NewPatch(m.Graph)
			applies, err := f.inject(p, attention.Find(m).Blocks[layer])
			if err == nil && applies {
				_, err = p.Apply()
			}
			if err != nil {
				t.Fatal(err)
			}
			if !applies {
				return
			}
		}
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		ok = true
	})
	return path, ok
}

// verify compares as the command does by default, with a look at the layers.
func (s *subject) verify(t *testing.T, path string) *verify.Report {
	t.Helper()
	r, err := verify.Run(context.Background(), verify.Request{
		Original: s.original, Rewritten: path, Tied: s.tied, Caches: s.caches, Seed: 1, Taps: s.taps, Session: ort.Options{Threads: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Whatever is wrong with a rewrite of whatever family, verify sees it with its default settings, and the layers name the
// block that is to blame. A rewrite that is right passes, so that it is the fault that is seen.
func TestMutantsAreKilled(t *testing.T) {
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	fmt.Fprintf(&table, "| family |")
	for _, f := range faults {
		fmt.Fprintf(&table, " %s |", f.name)
	}
	fmt.Fprintf(&table, "\n|---|%s\n", strings.Repeat("---|", len(faults)))
	families := testmodels.Families()
	var cells [][]string
	killed, total := make([]int, len(families)), make([]int, len(families))
	for range families {
		cells = append(cells, make([]string, len(faults)))
	}
	t.Run("families", func(t *testing.T) {
		for i, family := range families {
			t.Run(family.Name, func(t *testing.T) {
				t.Parallel()
				killed[i], total[i] = kill(t, family, i, cells[i])
			})
		}
	})
	all, dead := 0, 0
	for i, family := range families {
		fmt.Fprintf(&table, "| %s | %s |\n", family.Name, strings.Join(cells[i], " | "))
		all, dead = all+total[i], dead+killed[i]
	}
	if t.Failed() {
		return
	}
	if dead != all || all < 3*len(families) {
		t.Errorf("%d of %d mutants are killed", dead, all)
	}
	if slices.Contains(total, 0) {
		return // some families were not asked for
	}
	page := mutantsPage(table.String(), dead, all)
	const path = "../docs/mutants.md"
	if *updateMutants {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != page {
		t.Errorf("docs/mutants.md is not what the test finds (%v); go test ./verify -run Mutants -update-mutants writes it", err)
	}
}

// kill puts every fault into the family's rewrite, number i, and says in cells where it was found.
func kill(t *testing.T, family testmodels.Family, i int, cells []string) (killed, total int) {
	s := prepare(t, family)
	right, _ := s.mutate(t, fault{}, 0)
	if r := s.verify(t, right); !r.RewritePassed() || r.Layers.Error != nil || len(r.Layers.Untapped) > 0 {
		t.Fatalf("a rewrite that is right: %v\n%v %v", r, r.Layers.Error, r.Layers.Untapped)
	}
	for j, f := range faults {
		layer := (i + j) % s.layers
		path, ok := s.mutate(t, f, layer)
		if !ok {
			cells[j] = "–"
			continue
		}
		total++
		r := s.verify(t, path)
		switch e := r.Layers.Error; {
		case r.RewritePassed():
			t.Errorf("%s in layer %d is not seen", f.name, layer)
		case e == nil || e.Layer != layer:
			t.Errorf("%s in layer %d: the layers blame %+v", f.name, layer, e)
		default:
			killed++
			cells[j] = fmt.Sprintf("layer %d, %s", e.Layer, e.Point)
		}
	}
	return killed, total
}

func mutantsPage(table string, killed, total int) string {
	var b strings.Builder
	b.WriteString("# Mutants\n\nDoes `verify` notice when a rewrite is wrong? Into a rewrite of every family of test models, one fault at a time is put into one\n" +
		"layer. With its default settings `verify` has to fail, and `verify --layers` has to name the layer, by the first point at which the\n" +
		"rewritten model does not equal its tied reference. The rewrite without a fault has to pass.\n\n")
	fmt.Fprintf(&b, "%d of %d mutants are killed (%d %%). `go test ./verify -run Mutants` checks it; with `-update-mutants` it writes this page.\n\n", killed, total, 100*killed/max(total, 1))
	b.WriteString("| fault | |\n|---|---|\n")
	for _, f := range faults {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, f.doc)
	}
	b.WriteString("\nWhere each was found first; – where the family has no such thing:\n\n" + table)
	return b.String()
}
