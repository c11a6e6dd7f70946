// Package learn finds a configuration for a model and a budget of KV cache: which heads share, with which weights. It
// measures everything inside ONNX Runtime, on copies of the graph with measuring nodes added, so that only small
// matrices leave it; the linear algebra on those is package fusion's.
package learn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/graph/unfuse"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/verify"
)

// Lab makes and runs copies of one model with measuring nodes in them. Its methods are not safe for concurrent use.
type Lab struct {
	Path      string
	Blocks    []*attention.Block // every block, in the order of the graph
	Weights   []*fusion.Weights  // of each block; nil for one that cannot be rewritten
	Signature *verify.Signature
	Facts     *graph.Facts

	options ort.Options
	model   *graph.Model // holds the blocks' weights
	folder  string       // of the copies
	shared  bool         // the copies lie beside the model and leave its weights where they are
	copies  int
	plain   bool // the model's weights are quantised; those of Blocks are floats
}

// sharedFrom is the size in bytes from which copies of a model are not to hold its weights.
const sharedFrom = 256 << 20

// OpenLab opens the model at path. The runtime library must have been opened.
func OpenLab(path string, o ort.Options) (*Lab, error) {
	m, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	l := &Lab{Path: path, options: o, model: m}
	if l.Signature, err = verify.Describe(m); err != nil { // of the file: fused operators tell what some inputs are
		l.Close()
		return nil, err
	}
	report, plain, err := find(m)
	if err != nil {
		l.Close()
		return nil, err
	}
	l.Blocks, l.Facts, l.plain = report.Blocks, report.Facts, plain
	for _, b := range l.Blocks {
		if c := b.KeyCache; c != nil && c.Concat != nil && !c.Concat.Is("Concat") {
			l.Close()
			return nil, fmt.Errorf("%s: block %q: its cache %q is a buffer that is written where it lies, and nothing can be measured there; give a model whose caches grow: the original, or one rewritten with --lowering grouped", path, b.Name, c.Past.Name)
		}
	}
	l.screen()
	for _, b := range l.Blocks {
		var w *fusion.Weights
		if b.Fixed == "" {
			if w, err = fusion.ReadWeights(b); err == nil {
				err = finite(b.Name, w)
			}
			if err != nil {
				l.Close()
				return nil, err
			}
		}
		l.Weights = append(l.Weights, w)
	}
	if l.folder, err = os.MkdirTemp("", "onnx-dha-learn-*"); err != nil {
		l.Close()
		return nil, fmt.Errorf("a folder for calibration graphs: %w", err)
	}
	if info, err := os.Stat(path); err == nil {
		l.shared = info.Size() >= sharedFrom
	}
	for _, v := range m.Graph.Inits {
		l.shared = l.shared || len(v.Init.Proto.ExternalData) > 0
	}
	if l.shared { // sessions read weights where they lie in the file instead of packing copies of their own
		l.options.Config = maps.Clone(l.options.Config)
		if l.options.Config == nil {
			l.options.Config = map[string]string{}
		}
		l.options.Config["session.disable_prepacking"] = "1"
	}
	return l, nil
}

// finite reports weights of a block that are no numbers: nothing can be learned from what they give.
func finite(block string, w *fusion.Weights) error {
	for _, p := range []struct {
		what   string
		weight *mat.Dense
		bias   []float64
	}{{"query", w.Query, w.QueryBias}, {"key", w.Key, w.KeyBias}, {"value", w.Value, w.ValueBias}, {"output", w.Output, w.OutputBias}} {
		parts := [][]float64{p.bias}
		if p.weight != nil {
			parts = append(parts, p.weight.RawMatrix().Data)
		}
		for _, part := range parts {
			for _, x := range part {
				if math.IsNaN(x) || math.IsInf(x, 0) {
					return fmt.Errorf("block %q: the weights or biases of its %s projection hold %v; want numbers", block, p.what, x)
				}
			}
		}
	}
	return nil
}

// load opens the model anew, as the lab found it. It must be closed.
func (l *Lab) load() (*graph.Model, *attention.Report, error) {
	m, err := graph.Load(l.Path)
	if err != nil {
		return nil, nil, err
	}
	r, _, err := find(m)
	if err == nil && len(r.Blocks) != len(l.Blocks) {
		err = fmt.Errorf("%s changed while it was calibrated: %d attention blocks, then %d", l.Path, len(l.Blocks), len(r.Blocks))
	}
	if err != nil {
		m.Close()
		return nil, nil, err
	}
	for i, b := range l.Blocks {
		r.Blocks[i].Fixed = b.Fixed
	}
	return m, r, nil
}

// find expands fused operators, whose insides are to be measured, and finds the blocks, with weights as floats; floats
// tells that they were quantised. What the expansions are called is the same in every copy.
func find(m *graph.Model) (r *attention.Report, floats bool, err error) {
	expansions, _, err := unfuse.Expand(m, nil)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", m.Path, err)
	}
	r = attention.Find(m)
	if floats, err = plain(m, r.Blocks); err != nil {
		return nil, false, err
	}
	if floats {
		r = attention.Find(m)
	}
	for _, b := range r.Blocks {
		if why := unfuse.Fixed(expansions, b.QK, b.PV); why != "" {
			b.Fixed = why
		}
		if b.Key.Bare != "" && b.Fixed == "" {
			b.Fixed = "its keys and values are projected in another graph than its queries, so that nothing can be measured"
		}
		if b.Body != "" && b.Fixed == "" {
			b.Fixed = fmt.Sprintf("it lies in %s, where nothing can be measured: learn on the model that was put there, whose configuration fits this one too", b.Body)
		}
	}
	return r, floats, nil
}

// screen marks the blocks that a rewrite refuses, so that nothing is learned that could not be applied.
func (l *Lab) screen() {
	refused := func(blocks ...int) error {
		m, r, err := l.load()
		if err != nil {
			return nil // it was just opened, and will be again
		}
		defer m.Close()
		plan := &fusion.Plan{Lowering: fusion.Auto}
		for _, i := range blocks {
			b := r.Blocks[i]
			plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: fusion.Adjacent(b.KVHeads, 1), Value: fusion.Adjacent(b.ValueHeads, 1)})
		}
		_, err = rewrite.Apply(m, plan)
		return err
	}
	open := l.Open()
	if len(open) == 0 || refused(open...) == nil {
		return
	}
	for _, i := range open {
		if err := refused(i); err != nil {
			l.Blocks[i].Fixed = err.Error()
		}
	}
}

// Close removes the copies and closes the model.
func (l *Lab) Close() error {
	var err error
	if l.folder != "" {
		err = os.RemoveAll(l.folder)
	}
	return errors.Join(err, l.model.Close())
}

// bench is one copy of the model on which measuring nodes are set up.
type bench struct {
	lab     *Lab
	m       *graph.Model
	g       *graph.Graph
	blocks  []*attention.Block
	facts   *graph.Facts
	outputs []*graph.Value                // of the model; a copy starts without any
	depend  map[*graph.Value]bool         // values that the weights of forked blocks change
	clones  map[*graph.Value]*graph.Value // their counterparts in the second branch
	origin  map[*graph.Value]*graph.Value // and back
	slots   map[operand]*graph.Value      // weight operands of forked blocks → graph inputs
	sums    map[string][]int64            // accumulators and their shapes
}

// operand is one input of a node.
type operand struct {
	node  *graph.Node
	input int
}

func (l *Lab) bench() (*bench, error) {
	m, r, err := l.load()
	if err != nil {
		return nil, err
	}
	b := &bench{
		lab: l, m: m, g: m.Graph, blocks: r.Blocks, facts: r.Facts,
		depend: map[*graph.Value]bool{}, clones: map[*graph.Value]*graph.Value{}, origin: map[*graph.Value]*graph.Value{},
		slots: map[operand]*graph.Value{}, sums: map[string][]int64{},
	}
	b.outputs = slices.Clone(b.g.Outputs)
	b.g.ClearOutputs()
	return b, nil
}

// op adds an ai.onnx node with one output.
func (b *bench) op(op, name string, in []*graph.Value, attrs ...*onnxpb.AttributeProto) *graph.Value {
	name = b.g.FreshName("learn/" + name)
	return b.g.AddNode(op, "", name, in, []string{name}, attrs...).Out[0]
}

func (b *bench) ints(name string, x ...int64) *graph.Value {
	return b.g.AddInit(graph.NewTensor(b.g.FreshName("learn/"+name), []int64{int64(len(x))}, x))
}

func (b *bench) floats(name string, dims []int64, x ...float32) *graph.Value {
	return b.g.AddInit(graph.NewTensor(b.g.FreshName("learn/"+name), dims, x))
}

func (b *bench) cast(v *graph.Value, to onnxpb.TensorProto_DataType) *graph.Value {
	return b.op("Cast", v.Name+"/cast", []*graph.Value{v}, graph.IntAttr("to", int64(to)))
}

// tap returns a value of the second branch as float: statistics of half-precision models are taken in single precision.
func (b *bench) tap(v *graph.Value) (*graph.Value, error) {
	now, err := b.now(v)
	if err != nil {
		return nil, err
	}
	return b.single(v, now), nil
}

// single returns v, which has the type of the original value like, as float.
func (b *bench) single(like, v *graph.Value) *graph.Value {
	if b.facts.Elem(like) == onnxpb.TensorProto_FLOAT {
		return v
	}
	return b.cast(v, onnxpb.TensorProto_FLOAT)
}

// width returns the length of the last axis of an original value.
func (b *bench) width(v *graph.Value) (int, error) {
	shape, ok := b.facts.Shape(v)
	if ok && len(shape) > 0 {
		if n, ok := shape[len(shape)-1].Const(); ok {
			return int(n), nil
		}
	}
	return 0, fmt.Errorf("the number of channels of %q is not known", v.Name)
}

// rows views v as [tokens, width].
func (b *bench) rows(v *graph.Value, width int) *graph.Value {
	return b.op("Reshape", v.Name+"/rows", []*graph.Value{v, b.ints(v.Name+"/rows_shape", -1, int64(width))})
}

// input declares an input of the copy.
func (b *bench) input(name string, t onnxpb.TensorProto_DataType, dims ...any) *graph.Value {
	if v := b.g.Value(name); v != nil {
		return v
	}
	return b.g.AddInput(name, graph.TensorType(t, dims...))
}

// sum adds v, of the given shape, to an accumulator that stays in double precision and is bound in place.
func (b *bench) sum(name string, v *graph.Value, shape ...int64) {
	dims := make([]any, len(shape))
	for i, d := range shape {
		dims[i] = d
	}
	acc := b.input("learn/sum/"+name, onnxpb.TensorProto_DOUBLE, dims...)
	out := b.op("Add", "total/"+name, []*graph.Value{acc, b.cast(v, onnxpb.TensorProto_DOUBLE)})
	b.g.AddOutput(out, graph.TensorType(onnxpb.TensorProto_DOUBLE, dims...))
	b.sums[name] = shape
}

// total adds the sum of all elements of v, which is float, to an accumulator.
func (b *bench) total(name string, v *graph.Value) {
	b.sum(name, b.op("ReduceSum", name+"/reduced", []*graph.Value{v}, graph.IntAttr("keepdims", 0)))
}

// pass is a copy of the model in the runtime, with the sums that it accumulates.
type pass struct {
	lab     *Lab
	path    string
	session *ort.Session
	sums    map[string]*ort.Tensor
	slots   []string // names of the weight inputs
	bytes   int64    // see size
}

// pass writes the copy and loads it. The bench is used up.
func (b *bench) pass() (*pass, error) {
	defer b.m.Close()
	b.g.RemoveDead(nil)
	if err := b.g.Sort(); err != nil {
		return nil, err
	}
	if err := b.m.Check(); err != nil {
		return nil, fmt.Errorf("calibration graph: %w", err)
	}
	p := &pass{lab: b.lab, sums: map[string]*ort.Tensor{}}
	for name, shape := range b.sums {
		t, err := ort.New(onnxpb.TensorProto_DOUBLE, shape...)
		if err != nil {
			return nil, err
		}
		p.sums[name] = t
		p.bytes += 2 * int64(len(t.Raw))
	}
	if !b.lab.shared {
		for _, v := range b.g.Inits {
			p.bytes += v.Init.Len() * int64(graph.ElementBits(v.Init.DType())) / 8
		}
	}
	b.lab.copies++
	p.path = filepath.Join(b.lab.folder, fmt.Sprintf("%d.onnx", b.lab.copies))
	err := errors.New("not shared")
	if b.lab.shared { // weights stay in the model's files, which the copy must lie beside
		beside := filepath.Join(filepath.Dir(b.lab.Path), fmt.Sprintf(".onnx-dha-learn-%d-%d.onnx", os.Getpid(), b.lab.copies))
		if err = b.m.Save(beside, graph.SaveOptions{External: "share"}); err == nil {
			p.path = beside
		}
	}
	if err != nil {
		if err := b.m.Save(p.path, graph.SaveOptions{}); err != nil {
			return nil, fmt.Errorf("calibration graph: %w", err)
		}
	}
	if p.session, err = ort.NewSession(p.path, b.lab.options); err != nil {
		p.remove()
		return nil, own(err)
	}
	for _, in := range p.session.Inputs() {
		for _, v := range b.slots {
			if v.Name == in.Name {
				p.slots = append(p.slots, in.Name)
			}
		}
	}
	p.remove() // the runtime has read it; on systems that cannot remove an open file it goes with the folder
	return p, nil
}

// own takes the name of the copy, which tells nobody anything, off an error of the runtime.
func own(err error) error {
	if inner := errors.Unwrap(err); inner != nil && strings.HasPrefix(err.Error(), "model ") {
		return inner
	}
	return err
}

func (p *pass) remove() {
	os.Remove(p.path)
	os.Remove(p.path + ".data")
}

func (p *pass) close() error { return p.session.Close() }

// reset sets the sums to zero.
func (p *pass) reset() {
	for _, t := range p.sums {
		clear(t.Raw)
	}
}

// run feeds one batch and adds to the sums. extra are inputs beyond those of the batch; what the copy does not read is
// left out. Outputs that are no sums are returned by name when they are asked for.
func (p *pass) run(ctx context.Context, feeds, slots, extra map[string]*ort.Tensor, outs ...string) (map[string]*ort.Tensor, error) {
	in, out := map[string]*ort.Tensor{}, map[string]*ort.Tensor{}
	for _, io := range p.session.Inputs() {
		for _, from := range []map[string]*ort.Tensor{feeds, slots, extra} {
			if t := from[io.Name]; t != nil {
				in[io.Name] = t
			}
		}
	}
	for name, t := range p.sums {
		in["learn/sum/"+name] = t
		out["learn/total/"+name] = t
	}
	for _, o := range outs {
		out[o] = nil
	}
	if err := p.session.RunInto(ctx, in, out); err != nil {
		return nil, own(err)
	}
	for name := range p.sums {
		delete(out, "learn/total/"+name)
	}
	return out, nil
}

// matrix returns the sum called name.
func (p *pass) matrix(name string) []float64 {
	x, _ := p.sums[name].Float64s() // the tensor is one of doubles
	return slices.Clone(x)
}
