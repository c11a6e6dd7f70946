package verify

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/ort"
)

// Tap is a value of one layer that is compared in all models.
type Tap struct {
	Layer int // counted from 0
	Block string
	Point Point
	// Values are the names of wires that would do, the best first: the first that is a value of every model is taken.
	Values []string
}

// Taps lists what there is to compare of each block: the output of the attention, the residual stream that it is added
// to, and its caches. The blocks may be those of an expanded graph, so that not every name is one of the file.
func Taps(blocks []*attention.Block) []Tap {
	var out []Tap
	for i, b := range blocks {
		for _, c := range []struct {
			point Point
			cache *attention.Cache
		}{{KeyCachePoint, b.KeyCache}, {ValueCachePoint, b.ValCache}} {
			if c.cache != nil && c.cache.Present != nil && (c.point == KeyCachePoint || !c.cache.Stacked) {
				out = append(out, Tap{i, b.Name, c.point, []string{c.cache.Present.Name}})
			}
		}
		attention, residual := downstream(b)
		out = append(out, Tap{i, b.Name, AttentionPoint, attention})
		if len(residual) > 0 {
			out = append(out, Tap{i, b.Name, ResidualPoint, residual})
		}
	}
	return out
}

// maxDownstream bounds the operators that are followed from an attention to the residual stream.
const maxDownstream = 16

// carries lists the operators that an attention's output passes through on its way to the residual stream: casts, forms,
// biases and scales, norms after the projection, fused or not.
var carries = []string{
	"Identity", "Cast", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Mul", "Div", "Sum", "Gemm", "MatMul",
	"MatMulNBits", "LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization",
}

// downstream follows a block's output to the residual stream. attention are the values that carry the output alone, from
// the projection's with its bias on; residual are the sums with the stream, the last first.
func downstream(b *attention.Block) (attention, residual []string) {
	var v *graph.Value
	switch {
	case b.Output == nil:
		v = b.PV.Out[0]
	case b.Output.Projection != nil:
		v = b.Output.Projection.Output
	}
	sums := false
	for range maxDownstream {
		if v == nil || sums {
			break
		}
		attention = append(attention, v.Name)
		v, sums = follow(v)
	}
	for range maxDownstream {
		if v == nil || !sums {
			break
		}
		residual = slices.Insert(residual, 0, v.Name)
		v, sums = follow(v)
	}
	// With a bias on, and before it where the bias is part of something else: the sum is the better name.
	if b.Output != nil && b.Output.Bias != nil && b.Output.Bias.Node != nil && b.Output.Bias.Node.Is("Add") {
		if i := slices.Index(attention, b.Output.Bias.Node.Out[0].Name); i > 0 {
			attention = slices.Concat(attention[i:], attention[:i])
		}
	}
	return attention, residual
}

// follow returns the value that v becomes, and whether that is a sum with something computed elsewhere. It is nil where v
// has several readers, or one that does more than carry it.
func follow(v *graph.Value) (next *graph.Value, sums bool) {
	var reader *graph.Use
	for i, u := range v.Users() {
		if u.Node == nil || u.Node.Is("Shape") {
			continue
		}
		if reader != nil && reader.Node != u.Node {
			return nil, false
		}
		reader = &v.Users()[i]
	}
	if reader == nil || len(reader.Node.Out) == 0 || reader.Node.Out[0] == nil {
		return nil, false
	}
	n := reader.Node
	switch {
	case n.Is("Add") && len(n.In) == 2 && n.In[1-reader.Index] != nil:
		return n.Out[0], n.In[1-reader.Index].Const() == nil
	case n.OpType == "SkipLayerNormalization" || n.OpType == "SkipSimplifiedLayerNormalization":
		if len(n.Out) > 3 && n.Out[3] != nil {
			return n.Out[3], true // the sum before the norm
		}
		return n.Out[0], true
	case slices.Contains(carries, n.OpType) && reader.Index == 0:
		return n.Out[0], false
	}
	return nil, false
}

// settled is a tap with the name that all models know.
type settled struct {
	Tap
	value  string
	output bool // of the models as they are
	exact  *line
	drift  *line
}

// settleTaps chooses the wire of every tap, and says which taps have none.
func settleTaps(taps []Tap, models ...*graph.Model) (out []*settled, missing []string) {
	known := func(name string) bool {
		return !slices.ContainsFunc(models, func(m *graph.Model) bool {
			v := m.Graph.Value(name)
			return v == nil || v.Producer == nil
		})
	}
	used := map[string]bool{}
	for _, t := range taps {
		i := slices.IndexFunc(t.Values, func(name string) bool { return known(name) && !used[name] })
		if i < 0 {
			missing = append(missing, fmt.Sprintf("%s: %s: none of its wires is in all models", t.Block, t.Point))
			continue
		}
		s := &settled{Tap: t, value: t.Values[i]}
		used[s.value] = true
		s.output = slices.ContainsFunc(models[0].Graph.Outputs, func(v *graph.Value) bool { return v.Name == s.value })
		out = append(out, s)
	}
	return out, missing
}

// openTapped opens a model with further outputs.
func openTapped(path string, values []string, o ort.Options) (*Model, error) {
	m, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	sig, err := Describe(m)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", path, err)
	}
	facts := graph.Infer(m.Graph)
	for _, name := range values {
		v := m.Graph.Value(name)
		if !slices.Contains(m.Graph.Outputs, v) {
			typ := graph.TensorType(facts.Elem(v))
			typ.GetTensorType().Shape = nil // whatever it has
			m.Graph.AddOutput(v, typ)
		}
	}
	copied, err := Beside(m)
	if err != nil {
		return nil, err
	}
	defer copied.Remove()
	s, err := ort.NewSession(copied.Path, o)
	if err != nil {
		return nil, err
	}
	return &Model{Signature: sig, Path: path, session: s}, nil
}

// A Copy is a changed model that the runtime is to read once.
type Copy struct {
	Path   string
	folder string // to remove; empty when the copy lies beside its model
}

// shareFrom is the size in bytes from which a copy is not to hold the weights of its model.
const shareFrom = 64 << 20

// Beside saves a changed model where the runtime can read it. A large one is written beside the file that it was loaded
// from, where its weights can stay in that file; where that folder cannot be written to, or the model is small, it goes
// to the folder for temporary files. It must be removed, which may be done once a session has read it.
func Beside(m *graph.Model) (*Copy, error) {
	large := false
	if info, err := os.Stat(m.Path); err == nil {
		large = info.Size() >= shareFrom
	}
	for _, v := range m.Graph.Inits {
		large = large || len(v.Init.Proto.ExternalData) > 0
	}
	if large && m.Path != "" {
		f, err := os.CreateTemp(filepath.Dir(m.Path), ".onnx-dha-*.onnx")
		if err == nil {
			c := &Copy{Path: f.Name()}
			f.Close()
			if err := m.Save(c.Path, graph.SaveOptions{External: "share"}); err == nil {
				return c, nil
			}
			c.Remove()
		}
	}
	folder, err := os.MkdirTemp("", "onnx-dha-*")
	if err != nil {
		return nil, err
	}
	c := &Copy{Path: filepath.Join(folder, filepath.Base(m.Path)), folder: folder}
	if m.Path == "" {
		c.Path = filepath.Join(folder, "model.onnx")
	}
	if err := m.Save(c.Path, graph.SaveOptions{}); err != nil {
		c.Remove()
		return nil, err
	}
	return c, nil
}

// Remove deletes the copy.
func (c *Copy) Remove() error {
	if c.folder != "" {
		return os.RemoveAll(c.folder)
	}
	err := os.Remove(c.Path)
	if e := os.Remove(c.Path + ".data"); e != nil && !os.IsNotExist(e) {
		return e
	}
	return err
}
