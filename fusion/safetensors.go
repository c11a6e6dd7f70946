package fusion

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nlpodyssey/safetensors"
	"gonum.org/v1/gonum/mat"

	"onnx-dha/graph/attention"
)

// Learned tensors are kept in a safetensors file under "<block>.<part>.weight" and "<block>.<part>.bias", the parts being
// query, key, value and output, as 64-bit floats: what is rounded is rounded once, to the model's own type.

// parts lists the fields of l by the names of their tensors.
func (l *Learned) parts() map[string]struct {
	weight **mat.Dense
	bias   *[]float64
} {
	return map[string]struct {
		weight **mat.Dense
		bias   *[]float64
	}{
		"query": {&l.Query, &l.QueryBias}, "key": {&l.Key, &l.KeyBias},
		"value": {&l.Value, &l.ValueBias}, "output": {&l.Output, &l.OutputBias},
	}
}

// view is a tensor that gives its bytes when they are written, so that no more than one tensor is held twice.
type view struct{ m mat.Matrix }

func (v view) DType() safetensors.DType { return safetensors.F64 }

func (v view) Shape() []uint64 {
	rows, cols := v.m.Dims()
	if _, ok := v.m.(mat.Vector); ok {
		return []uint64{uint64(rows)}
	}
	return []uint64{uint64(rows), uint64(cols)}
}

func (v view) DataLen() uint64 {
	rows, cols := v.m.Dims()
	return 8 * uint64(rows) * uint64(cols)
}

func (v view) Data() []byte {
	rows, cols := v.m.Dims()
	raw := make([]byte, 0, v.DataLen())
	for i := range rows {
		for j := range cols {
			raw = binary.LittleEndian.AppendUint64(raw, math.Float64bits(v.m.At(i, j)))
		}
	}
	return raw
}

// finite reports the first element that is no number.
func (v view) finite(name string) error {
	rows, cols := v.m.Dims()
	for i := range rows {
		for j := range cols {
			if x := v.m.At(i, j); math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("learned tensor %q holds %v", name, x)
			}
		}
	}
	return nil
}

// WriteLearned writes the learned tensors of blocks to a file, which appears under its name only when it is complete, and
// returns its hash as Config.WeightsHash has it.
func WriteLearned(path string, blocks map[string]*Learned) (string, error) {
	tensors := map[string]view{}
	for block, l := range blocks {
		for part, p := range l.parts() {
			if m := *p.weight; m != nil {
				tensors[block+"."+part+".weight"] = view{m}
			}
			if b := *p.bias; b != nil {
				tensors[block+"."+part+".bias"] = view{mat.NewVecDense(len(b), b)}
			}
		}
	}
	for name, v := range tensors {
		if err := v.finite(name); err != nil {
			return "", err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".learned-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	sum := sha256.New()
	err = errors.Join(safetensors.SerializeToWriter(tensors, nil, io.MultiWriter(f, sum)), f.Chmod(0o644), f.Sync())
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("writing %s: %w", path, err)
	}
	return hashText(sum), os.Rename(f.Name(), path)
}

func hashText(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// checkWeights verifies that a file of learned tensors is the one with the given hash; none accepts any.
func checkWeights(path, want string) error {
	if want == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("weights: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("weights: %w", err)
	}
	if have := hashText(sum); have != want {
		return fmt.Errorf("weights_hash: %s is not the file that belongs to this configuration: its hash is %s; learn again, or leave weights_hash out to take it all the same", path, have)
	}
	return nil
}

// ReadLearned reads a file of learned tensors, by block.
func ReadLearned(path string) (map[string]*Learned, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fail := func(format string, args ...any) (map[string]*Learned, error) {
		return nil, fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...))
	}
	file, err := safetensors.Deserialize(data)
	if err != nil {
		return fail("not a safetensors file: %w", err)
	}
	blocks := map[string]*Learned{}
	for _, t := range file.Tensors() {
		rest, kind, ok1 := cutLast(t.Name)
		block, part, ok2 := cutLast(rest)
		if !ok1 || !ok2 {
			return fail("tensor %q; want names like BLOCK.key.weight", t.Name)
		}
		l := blocks[block]
		if l == nil {
			l = &Learned{}
			blocks[block] = l
		}
		p, ok := l.parts()[part]
		if !ok || kind != "weight" && kind != "bias" {
			return fail("tensor %q; want BLOCK.{query,key,value,output}.{weight,bias}", t.Name)
		}
		x, err := floats(t.TensorView)
		if err != nil {
			return fail("tensor %q: %w", t.Name, err)
		}
		shape := t.TensorView.Shape()
		switch {
		case kind == "bias" && len(shape) == 1 && len(x) > 0:
			*p.bias = x
		case kind == "weight" && len(shape) == 2 && len(x) > 0:
			*p.weight = mat.NewDense(int(shape[0]), int(shape[1]), x)
		default:
			return fail("tensor %q has shape %v; a weight has two axes and a bias one, none of them empty", t.Name, shape)
		}
	}
	return blocks, nil
}

// cutLast splits at the last dot.
func cutLast(s string) (before, after string, found bool) {
	i := strings.LastIndexByte(s, '.')
	if i < 0 {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// floats widens a tensor of 32- or 64-bit floats and refuses what is not a number.
func floats(t safetensors.TensorView) ([]float64, error) {
	raw := t.Data()
	var out []float64
	switch t.DType() {
	case safetensors.F64:
		for i := 0; i+8 <= len(raw); i += 8 {
			out = append(out, math.Float64frombits(binary.LittleEndian.Uint64(raw[i:])))
		}
	case safetensors.F32:
		for i := 0; i+4 <= len(raw); i += 4 {
			out = append(out, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[i:]))))
		}
	default:
		return nil, fmt.Errorf("%v; want F32 or F64", t.DType())
	}
	for _, x := range out {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return nil, fmt.Errorf("it holds %v", x)
		}
	}
	return out, nil
}

// addLearned gives the blocks of a plan the tensors of a file.
func (p *Plan) addLearned(path string) error {
	blocks, err := ReadLearned(path)
	if err != nil {
		return err
	}
	given := map[string]bool{}
	for i := range p.Blocks {
		bp := &p.Blocks[i]
		l := blocks[bp.Block.Name]
		if l == nil {
			continue
		}
		given[bp.Block.Name] = true // a layer in several bodies has one
		if err := l.fits(bp); err != nil {
			return fmt.Errorf("%s: block %q: %w", path, bp.Block.Name, err)
		}
		bp.Learned = l
	}
	maps.DeleteFunc(blocks, func(name string, _ *Learned) bool { return given[name] })
	if len(blocks) > 0 {
		names := slices.Sorted(maps.Keys(blocks))
		return fmt.Errorf("%s has tensors for block %q, which the configuration does not name", path, names[0])
	}
	return nil
}

// fits checks the shapes of learned tensors against the block that they are for.
func (l *Learned) fits(bp *BlockPlan) error {
	b := bp.Block
	key, value := b.Projected()
	in := func(p *attention.Path) int {
		if p == nil {
			p = b.Query // another block of the layer has them, and is looked at too
		}
		return int(p.Projection.Tensor.Dims()[1-p.Projection.Axis])
	}
	for _, c := range []struct {
		name       string
		m          *mat.Dense
		rows, cols int
		bias       []float64
	}{
		{"query", l.Query, in(b.Query), b.Heads * b.HeadDim, l.QueryBias},
		{"key", l.Key, in(key), bp.Key.Heads() * b.HeadDim, l.KeyBias},
		{"value", l.Value, in(value), bp.Value.Heads() * b.ValueDim, l.ValueBias},
	} {
		if err := shaped(c.name, c.m, c.rows, c.cols, c.bias); err != nil {
			return err
		}
	}
	if l.Output == nil && l.OutputBias == nil {
		return nil
	}
	if b.Output == nil {
		return errors.New("an output weight, but the block has no output projection")
	}
	return shaped("output", l.Output, b.Heads*b.ValueDim, b.Output.Columns, l.OutputBias)
}

func shaped(name string, m *mat.Dense, rows, cols int, bias []float64) error {
	if m != nil {
		if r, c := m.Dims(); r != rows || c != cols {
			return fmt.Errorf("%s.weight is %d × %d, want %d × %d", name, r, c, rows, cols)
		}
	}
	if bias != nil && len(bias) != cols {
		return fmt.Errorf("%s.bias has %d elements, want %d", name, len(bias), cols)
	}
	return nil
}
