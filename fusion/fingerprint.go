package fusion

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"runtime"
	"slices"
	"sync"

	"onnx-dha/graph"
	"onnx-dha/graph/attention"
)

// ErrOtherModel is the error of CheckModel when the configuration was made for another model.
var ErrOtherModel = errors.New("the configuration is for another model")

var fingerprintForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func isFingerprint(s string) bool { return fingerprintForm.MatchString(s) }

// Fingerprint identifies the attention weights of a model: "sha256:" and the SHA-256 over the blocks in order, of each
// the element type, dims and bytes of the query, key and value weights and biases (codes, scales and zero points of
// quantised ones), adapters' included. Blocks that lack one of the weights do
// not count. A tensor that several projections of a block share (a packed weight) counts once, as does a layer that is in
// several bodies. Names do not count, nor does how the file stores the weights. The output projection does not count
// either: whether one is recognised may change from version to version of this program, and a fingerprint must not.
func Fingerprint(blocks []*attention.Block) (string, error) {
	blocks = slices.DeleteFunc(slices.Clone(blocks), (*attention.Block).Bare)
	blocks = attention.Layers(blocks)
	sums := make([][]byte, len(blocks))
	errs := make([]error, len(blocks))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(blocks)) {
		workers.Go(func() {
			for i := range next {
				sums[i], errs[i] = digest(blocks[i])
			}
		})
	}
	for i := range blocks {
		next <- i
	}
	close(next)
	workers.Wait()
	all := sha256.New()
	for i, sum := range sums {
		if errs[i] != nil {
			return "", errs[i]
		}
		all.Write(sum)
	}
	return "sha256:" + hex.EncodeToString(all.Sum(nil)), nil
}

// digest hashes the weights of one block. Each tensor is preceded by its role and its shape, so that no two blocks that
// differ give the same stream of bytes.
func digest(b *attention.Block) ([]byte, error) {
	h := sha256.New()
	seen := map[*graph.Value]bool{}
	type constant struct {
		v *graph.Value
		t *graph.Tensor
	}
	add := func(role string, constants ...constant) error {
		for i, c := range constants {
			if c.v == nil || seen[c.v] {
				continue
			}
			seen[c.v] = true
			fmt.Fprintf(h, "%s %d\n", role, i)
			if c.t == nil {
				return fmt.Errorf("fingerprint of block %q: %q is not a constant", b.Name, c.v.Name)
			}
			if err := digestTensor(h, c.t); err != nil {
				return fmt.Errorf("fingerprint of block %q: %w", b.Name, err)
			}
		}
		return nil
	}
	key, value := b.Projected()
	for _, side := range []struct {
		role string
		path *attention.Path
	}{{"query", b.Query}, {"key", key}, {"value", value}} {
		if side.path == nil || side.path.Bare != "" {
			continue // nothing is projected here
		}
		for i, path := range append([]*attention.Path{side.path}, side.path.Adapters...) {
			role, p := side.role, path.Projection
			if i > 0 {
				role += " adapter"
			}
			constants := []constant{{p.Weight, p.Tensor}, {p.GemmBias, p.BiasTensor}}
			if p.Code != nil { // as it is stored: nothing is decoded
				constants = constants[1:]
				for _, c := range p.Code.Stored {
					constants = append(constants, constant{c.Value(), c.Tensor})
				}
			}
			for _, bias := range path.Biases {
				constants = append(constants, constant{bias.Value, bias.Tensor})
			}
			if err := add(role, constants...); err != nil {
				return nil, err
			}
		}
	}
	return h.Sum(nil), nil
}

func digestTensor(h hash.Hash, t *graph.Tensor) error {
	data, err := t.Bytes()
	if err != nil {
		return err
	}
	shape := binary.LittleEndian.AppendUint32(nil, uint32(t.DType()))
	shape = binary.LittleEndian.AppendUint64(shape, uint64(len(t.Dims())))
	for _, d := range t.Dims() {
		shape = binary.LittleEndian.AppendUint64(shape, uint64(d))
	}
	h.Write(shape)
	h.Write(data)
	t.Release()
	return nil
}

// CheckModel compares the configuration's fingerprint with the model's. A difference is an *Error that is also
// ErrOtherModel; a configuration without a fingerprint fits any model.
func (c *Config) CheckModel(blocks []*attention.Block) error {
	if c.Fingerprint == "" {
		return nil
	}
	got, err := Fingerprint(blocks)
	if err != nil {
		return err
	}
	if got == c.Fingerprint {
		return nil
	}
	e := c.src.errorf(c.src.key("model.fingerprint"), "the configuration was made for another model: it says %s, the attention weights of this one have %s", short(c.Fingerprint), short(got))
	e.kind = ErrOtherModel
	return e
}

// short is the beginning of a hash, which is enough to tell two apart.
func short(hash string) string {
	const enough = len("sha256:") + 12
	return hash[:min(enough, len(hash))] + "…"
}
