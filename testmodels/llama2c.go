package testmodels

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"

	"onnx-dha/graph"
)

// llama2cHeader is the head of a llama2.c checkpoint in the legacy layout: seven little-endian int32.
type llama2cHeader struct {
	Dim, Hidden, Layers, Heads, KVHeads, Vocab, SeqLen int32
}

// llama2cHeaderSize is its size in bytes.
const llama2cHeaderSize = 7 * 4

// tied reports whether the embedding is the classifier; the file says otherwise by a negative vocabulary.
func (h llama2cHeader) tied() bool { return h.Vocab > 0 }

// section is a run of float32 in the file. A skipped one holds nothing the model needs: the rotary tables, which follow
// from the head dim.
type section struct {
	name string // of the architecture's tensor; per layer when layers is set
	size int64  // floats of one tensor
	per  bool   // one tensor per layer
	skip bool
}

// sections lists the file's floats in order.
func (h llama2cHeader) sections() []section {
	d, hidden, vocab := int64(h.Dim), int64(h.Hidden), int64(h.Vocab)
	vocab = max(vocab, -vocab)
	kv := d / int64(h.Heads) * int64(h.KVHeads)
	table := int64(h.SeqLen) * (d / int64(h.Heads) / 2)
	s := []section{
		{name: "embed.weight", size: vocab * d},
		{name: "attn_norm.weight", size: d, per: true},
		{name: "q.weight", size: d * d, per: true},
		{name: "k.weight", size: kv * d, per: true},
		{name: "v.weight", size: kv * d, per: true},
		{name: "o.weight", size: d * d, per: true},
		{name: "mlp_norm.weight", size: d, per: true},
		{name: "gate.weight", size: hidden * d, per: true},
		{name: "down.weight", size: d * hidden, per: true},
		{name: "up.weight", size: hidden * d, per: true},
		{name: "norm.weight", size: d},
		{name: "cosines", size: table, skip: true},
		{name: "sines", size: table, skip: true},
	}
	if !h.tied() {
		s = append(s, section{name: "head.weight", size: vocab * d})
	}
	return s
}

// check refuses a header that makes no model, or one whose weights do not fill a file of size bytes exactly. Every
// product of two fields fits an int64; only the sums are guarded.
func (h llama2cHeader) check(size int64) error {
	for _, f := range []struct {
		name string
		n    int32
	}{{"dim", h.Dim}, {"hidden_dim", h.Hidden}, {"n_layers", h.Layers}, {"n_heads", h.Heads}, {"n_kv_heads", h.KVHeads}, {"seq_len", h.SeqLen}} {
		if f.n <= 0 {
			return fmt.Errorf("header: %s is %d, want a positive number", f.name, f.n)
		}
	}
	switch {
	case h.Vocab == 0 || h.Vocab == math.MinInt32:
		return fmt.Errorf("header: vocab_size is %d, want the number of tokens (negative for an untied classifier)", h.Vocab)
	case h.Dim%h.Heads != 0:
		return fmt.Errorf("header: dim %d is not a multiple of n_heads %d", h.Dim, h.Heads)
	case h.Dim/h.Heads%2 != 0:
		return fmt.Errorf("header: head size %d is odd, rotary positions turn pairs of channels", h.Dim/h.Heads)
	case h.KVHeads > h.Heads || h.Heads%h.KVHeads != 0:
		return fmt.Errorf("header: n_heads %d is not a multiple of n_kv_heads %d", h.Heads, h.KVHeads)
	}
	want := uint64(llama2cHeaderSize)
	for _, s := range h.sections() {
		n := uint64(1)
		if s.per {
			n = uint64(h.Layers)
		}
		over, floats := bits.Mul64(uint64(s.size), n)
		over2, bytes := bits.Mul64(floats, 4)
		total, carry := bits.Add64(want, bytes, 0)
		if over|over2|carry != 0 {
			return fmt.Errorf("header: %+v describes more weights than any file holds", h)
		}
		want = total
	}
	if want != uint64(size) {
		return fmt.Errorf("header %+v wants a file of %d bytes, this one has %d", h, want, size)
	}
	return nil
}

// FromLlama2C converts the llama2.c checkpoint (legacy layout, float32) at path; see ReadLlama2C.
func FromLlama2C(path string) (*graph.Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("llama2.c checkpoint %s: not a regular file", path)
	}
	m, err := ReadLlama2C(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("llama2.c checkpoint %s: %w", path, err)
	}
	return m, nil
}

// ReadLlama2C converts a llama2.c checkpoint of size bytes to an ONNX decoder with a KV cache: rotary positions on
// interleaved pairs with θ = 10⁴, RMS ε = 1e-5, grouped-query attention, inputs and outputs named as Optimum does.
// The classifier is the embedding unless the vocabulary size is negative. Nothing is allocated before the header has
// been checked against size.
func ReadLlama2C(r io.Reader, size int64) (*graph.Model, error) {
	f, o, a, w, err := readLlama2C(r, size)
	if err != nil {
		return nil, err
	}
	return f.assemble(o, a, w), nil
}

// readLlama2C reads the weights and says which family and options they belong to.
func readLlama2C(r io.Reader, size int64) (f Family, o Options, a *arch, w bank, err error) {
	in := bufio.NewReaderSize(r, 1<<16)
	var h llama2cHeader
	if err := binary.Read(in, binary.LittleEndian, &h); err != nil {
		return f, o, nil, nil, fmt.Errorf("the header of %d bytes: %w", llama2cHeaderSize, err)
	}
	if err := h.check(size); err != nil {
		return f, o, nil, nil, err
	}
	if f, err = Get("llama-interleaved"); err != nil {
		return f, o, nil, nil, err
	}
	o, a, err = f.open(Options{
		Layers: int(h.Layers), Heads: int(h.Heads), KVHeads: int(h.KVHeads), HeadDim: int(h.Dim / h.Heads), ModelDim: int(h.Dim),
		FFN: int(h.Hidden), Vocab: int(max(h.Vocab, -h.Vocab)), MaxSeq: int(h.SeqLen), Cache: true,
	})
	if err != nil {
		return f, o, nil, nil, err
	}
	a.tied = h.tied()
	w = bank{}
	for _, s := range h.sections() {
		n := 1
		if s.per {
			n = int(h.Layers)
		}
		for i := range n {
			name := s.name
			if s.per {
				name = layer(i, name)
			}
			if s.skip {
				if _, err := io.CopyN(io.Discard, in, 4*s.size); err != nil {
					return f, o, nil, nil, fmt.Errorf("%s: %w", name, err)
				}
				continue
			}
			data := make([]float32, s.size)
			if err := binary.Read(in, binary.LittleEndian, data); err != nil {
				return f, o, nil, nil, fmt.Errorf("%s: %w", name, err)
			}
			w[name] = data
		}
	}
	return f, o, a, w, nil
}
