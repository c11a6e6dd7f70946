package attention

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// survey is the facts of a graph and what walks over it have worked out so far. The layers of a transformer are alike:
// what an operator does to the labels on the first of them it does on the others, so all that a walk computes from
// labels is computed once and looked up from then on. Samples, labels and what is read off them are therefore shared
// between walks, and never change.
type survey struct {
	*graph.Facts

	sources map[string]source
	moves   map[string][]*sample
	serial  map[*sample]int // numbers that samples have in keys

	joints map[*graph.Value][]*graph.Joint // where values cross the boundaries of bodies

	heads    map[string]headList
	owners   map[ownersKey]*owners
	rotaries map[rotaryKey]Rotary
}

func newSurvey(f *graph.Facts, g *graph.Graph) *survey {
	return &survey{
		Facts: f, joints: jointsOf(g), sources: map[string]source{}, moves: map[string][]*sample{}, serial: map[*sample]int{},
		heads: map[string]headList{}, owners: map[ownersKey]*owners{}, rotaries: map[rotaryKey]Rotary{},
	}
}

// source is where walks begin: a sample and the labels that it is written in.
type source struct {
	*sample
	*labels
}

// id returns the number that a sample has in keys.
func (s *survey) id(x *sample) int {
	return remember(s.serial, x, func() int { return len(s.serial) })
}

// move moves labels through a node.
func (s *survey) move(t *tracer, n *graph.Node, row mover, in []*sample) ([]*sample, error) {
	key := s.key(t, n, in)
	if out, ok := s.moves[key]; ok {
		return out, nil
	}
	out, err := row.move(t, n, in)
	if err != nil { // it may name a wire
		return nil, err
	}
	s.moves[key] = out
	return out, nil
}

var canonical = proto.MarshalOptions{Deterministic: true}

// key identifies all that a mover looks at: the labels that come in, the attributes, and of the other inputs and the
// first output what the facts say, as far as a sample shows it.
func (s *survey) key(t *tracer, n *graph.Node, in []*sample) string {
	b := append([]byte(n.OpType), 0)
	b = appendFlags(b, t.mixing)
	b = appendInts(b, len(n.Out), len(n.In), len(n.Proto.Attribute))
	for _, a := range n.Proto.Attribute {
		b, _ = canonical.MarshalAppend(appendInts(b, canonical.Size(a)), a)
	}
	for i, v := range n.In {
		if in[i] != nil {
			b = appendInts(append(b, 's'), s.id(in[i]))
			continue
		}
		b = s.appendFacts(append(b, 'v'), v)
	}
	if len(n.Out) > 0 {
		b = s.appendShape(b, n.Out[0])
	}
	return string(b)
}

// appendFacts appends the shape of a value, and its elements where movers read them: those of integer tensors and
// scalars.
func (s *survey) appendFacts(b []byte, v *graph.Value) []byte {
	b = s.appendShape(b, v)
	if v == nil {
		return b
	}
	if t := v.Const(); t != nil && t.Len() != 1 && floats[t.DType()] {
		return append(b, 'f')
	}
	k, ok := s.Known(v)
	b = appendFlags(b, ok)
	if !ok {
		return b
	}
	b = appendInts(b, len(k.Floats))
	for _, x := range k.Floats {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(x))
	}
	return appendDims(b, k.Ints)
}

// floats are the types of weights, whose elements no mover reads.
var floats = map[onnxpb.TensorProto_DataType]bool{
	onnxpb.TensorProto_FLOAT: true, onnxpb.TensorProto_DOUBLE: true, onnxpb.TensorProto_FLOAT16: true, onnxpb.TensorProto_BFLOAT16: true,
}

func (s *survey) appendShape(b []byte, v *graph.Value) []byte {
	if v == nil {
		return append(b, 'n')
	}
	dims, ok := s.Shape(v)
	return appendDims(appendFlags(b, ok), dims)
}

// appendDims appends what a sample shows of dimensions.
func appendDims(b []byte, dims []graph.Dim) []byte {
	b = appendInts(b, len(dims))
	for _, d := range dims {
		n, fits := d.Sample(sampleSize)
		_, constant := d.Const()
		b = binary.AppendVarint(appendFlags(b, fits, constant, d.Unknown()), n)
	}
	return b
}

func appendInts(b []byte, n ...int) []byte {
	for _, x := range n {
		b = binary.AppendVarint(b, int64(x))
	}
	return b
}

func appendFlags(b []byte, f ...bool) []byte {
	x := byte(0)
	for i, set := range f {
		if set {
			x |= 1 << i
		}
	}
	return append(b, x)
}

// remember returns the entry of m for k, which make makes when there is none.
func remember[K comparable, V any](m map[K]V, k K, make func() V) V {
	v, ok := m[k]
	if !ok {
		v = make()
		m[k] = v
	}
	return v
}
