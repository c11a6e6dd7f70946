// Package decode generates with a model in ONNX Runtime as a server would: the memory of its caches is bound, so that they
// stay where they are. Static caches are written in place and grow in chunks; caches that the model joins itself go back
// and forth between two buffers.
//
// It knows what a model's inputs mean from package verify, and shares nothing else with that package's own decode loop,
// which is plainer and slower, and which this one is held against.
package decode

import (
	"fmt"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/ort"
	"onnx-dha/verify"
)

// Model is a decoder that is ready to generate. Its methods may be called from several goroutines; Close must come last.
type Model struct {
	Path string
	// Signature is what the inputs and outputs mean.
	*verify.Signature
	// Static is whether the caches are buffers of a capacity that the caller chooses, written in place.
	Static bool

	session *ort.Session
	host    bool // the caches lie in ordinary memory
}

// Open loads a decoder: a model that takes token ids and gives out a score per token of its vocabulary. The ONNX Runtime
// library must have been opened.
func Open(path string, o ort.Options) (*Model, error) {
	g, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	sig, err := verify.Describe(g)
	if err != nil {
		return nil, fmt.Errorf("model %q: %w", path, err)
	}
	m := &Model{Path: path, Signature: sig, host: o.Provider == "" || strings.EqualFold(o.Provider, "cpu")}
	if !sig.IsDecoder() {
		return nil, fmt.Errorf("model %q is no decoder: want an input of token ids with an open length and an output of logits", path)
	}
	for _, c := range sig.Caches {
		m.Static = m.Static || c.Grows && static(sig, g.Graph, c)
	}
	if m.Static && slices.ContainsFunc(sig.Caches, func(c verify.CachePair) bool { return c.Grows && !static(sig, g.Graph, c) }) {
		return nil, fmt.Errorf("model %q: some of its caches are static and some are not", path)
	}
	if m.session, err = ort.NewSession(path, o); err != nil {
		return nil, err
	}
	return m, nil
}

// Close frees the session.
func (m *Model) Close() error { return m.session.Close() }

// static reports whether a cache can be a buffer: its past and its present are equally long, or it goes through an
// operator that takes both from one buffer.
func static(s *verify.Signature, g *graph.Graph, c verify.CachePair) bool {
	if s.SharesBuffer(g, c) {
		return true
	}
	past, ok := dim(g.Value(c.Past), c.SeqAxis)
	if !ok {
		return false
	}
	present, ok := dim(g.Value(c.Present), c.SeqAxis)
	return ok && past == present
}

// dim returns an axis of a value as it is declared.
func dim(v *graph.Value, axis int) (string, bool) {
	dims := v.Info.GetType().GetTensorType().GetShape().GetDim()
	if axis >= len(dims) {
		return "", false
	}
	d := dims[axis]
	if d.GetDimParam() != "" {
		return d.GetDimParam(), true
	}
	return fmt.Sprint(d.GetDimValue()), d.Value != nil
}

// growing lists the caches that get longer with every step.
func (m *Model) growing() []verify.CachePair {
	var out []verify.CachePair
	for _, c := range m.Caches {
		if c.Grows {
			out = append(out, c)
		}
	}
	return out
}

// input returns the input called name, which the signature has named.
func (m *Model) input(name string) verify.Input {
	i := slices.IndexFunc(m.Inputs, func(in verify.Input) bool { return in.Name == name })
	return m.Inputs[i]
}

// cacheShape is the shape of a past that holds a number of positions.
func (m *Model) cacheShape(c verify.CachePair, batch, positions int) ([]int64, error) {
	in := m.input(c.Past)
	shape, err := m.Shape(in, verify.Case{Name: "decode", Batch: batch, Seq: 1, Past: positions, Encoder: 1})
	if err != nil {
		return nil, fmt.Errorf("model %q: cache %q: %w", m.Path, c.Past, err)
	}
	if c.SeqAxis >= len(shape) {
		return nil, fmt.Errorf("model %q: cache %q has shape %v, and no axis %d of positions", m.Path, c.Past, shape, c.SeqAxis)
	}
	if n, fixed := in.Dims[c.SeqAxis].Const(); fixed {
		if int(n) < positions {
			return nil, fmt.Errorf("model %q: cache %q has room for %d positions; %d are needed", m.Path, c.Past, n, positions)
		}
		positions = int(n)
	}
	shape[c.SeqAxis] = int64(positions)
	return shape, nil
}

// CacheBytes is what the caches of batch sequences take for a number of positions: the buffers of static caches, else one
// copy of those that grow.
func (m *Model) CacheBytes(batch, positions int) (int64, error) {
	total := int64(0)
	for _, c := range m.growing() {
		shape, err := m.cacheShape(c, batch, positions)
		if err != nil {
			return 0, err
		}
		n, err := ort.Bytes(m.input(c.Past).DType, shape)
		if err != nil {
			return 0, fmt.Errorf("model %q: cache %q: %w", m.Path, c.Past, err)
		}
		total += n
	}
	return total, nil
}
