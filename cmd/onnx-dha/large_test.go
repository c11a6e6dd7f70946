package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/testmodels"
)

// large is a Llama with a cache whose files may have any size: testmodels builds the graph with widths that are small
// and prime, and writing it puts the true widths in their place. In a Llama that is all there is to do: the graph knows
// heads and their size, but the width of the model, of its MLP and of its vocabulary occur in the dims of weights only.
type large struct {
	layers, heads, kvHeads, headDim, model, ffn, vocab int
	half                                               bool // float16 instead of float32
}

// stand-ins for the widths; no other size that the graph has is one of them.
const (
	smallModel = 5
	smallFFN   = 7
	smallVocab = 11
)

// storage says where write puts weights, and whether they have bytes.
type storage string

const (
	external storage = "external" // in one data file beside the model
	inlined  storage = "inlined"  // inside the model, whatever the size
	hollow   storage = "hollow"   // external, the data file a single hole: it takes no room on the disk
)

// build makes the graph with the given widths.
func (l large) build(model, ffn, vocab int) (*graph.Model, error) {
	name := "llama"
	if l.kvHeads < l.heads {
		name = "llama-gqa"
	}
	f, err := testmodels.Get(name)
	if err != nil {
		return nil, err
	}
	o := testmodels.Options{
		Layers: l.layers, Heads: l.heads, KVHeads: l.kvHeads, HeadDim: l.headDim, ModelDim: model, FFN: ffn, Vocab: vocab, Cache: true,
	}
	if l.half {
		o.DType = onnxpb.TensorProto_FLOAT16
	}
	return f.Build(o)
}

// weight is an initializer whose bytes are written apart from its message.
type weight struct {
	*onnxpb.TensorProto
	size int64
}

// message returns the model without its initializers, and these without their data.
func (l large) message() (*onnxpb.ModelProto, []weight, error) {
	m, err := l.build(smallModel, smallFFN, smallVocab)
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "onnx-dha-bench-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "small.onnx")
	if err := m.Save(path, graph.SaveOptions{External: "inline"}); err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	pb := &onnxpb.ModelProto{}
	if err := proto.Unmarshal(data, pb); err != nil {
		return nil, nil, err
	}
	widths := map[int64]int64{smallModel: int64(l.model), smallFFN: int64(l.ffn), smallVocab: int64(l.vocab)}
	for _, o := range pb.Graph.Output {
		for _, d := range o.GetType().GetTensorType().GetShape().GetDim() {
			if w, ok := widths[d.GetDimValue()]; ok {
				d.Value = &onnxpb.TensorShapeProto_Dimension_DimValue{DimValue: w}
			}
		}
	}
	var weights []weight
	for _, t := range pb.Graph.Initializer {
		w := weight{t, int64(graph.ElementBits(onnxpb.TensorProto_DataType(t.GetDataType())) / 8)}
		for i, d := range t.Dims {
			if wide, ok := widths[d]; ok {
				t.Dims[i] = wide
			}
			w.size *= t.Dims[i]
		}
		t.RawData = nil
		weights = append(weights, w)
	}
	pb.Graph.Initializer = nil
	return pb, weights, nil
}

// write makes the model's file, and its data file path + ".data" unless it is inlined, and syncs them.
func (l large) write(path string, s storage) error {
	pb, weights, err := l.message()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if s == inlined {
		err = writeInlined(f, pb, weights)
	} else {
		err = writeExternal(f, path+".data", pb, weights, s == external)
	}
	if err != nil {
		return err
	}
	return f.Sync()
}

// writeExternal writes a model whose weights are in a data file, at whole pages.
func writeExternal(f *os.File, data string, pb *onnxpb.ModelProto, weights []weight, fill bool) error {
	const page = 4096
	end := int64(0)
	for _, w := range weights {
		end = (end + page - 1) / page * page
		w.DataLocation = onnxpb.TensorProto_EXTERNAL.Enum()
		for _, e := range [][2]string{
			{"location", filepath.Base(data)}, {"offset", strconv.FormatInt(end, 10)}, {"length", strconv.FormatInt(w.size, 10)},
		} {
			w.ExternalData = append(w.ExternalData, &onnxpb.StringStringEntryProto{Key: &e[0], Value: &e[1]})
		}
		pb.Graph.Initializer = append(pb.Graph.Initializer, w.TensorProto)
		end += w.size
	}
	b, err := proto.Marshal(pb)
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	d, err := os.Create(data)
	if err != nil {
		return err
	}
	defer d.Close()
	if !fill {
		return d.Truncate(end)
	}
	out := bufio.NewWriterSize(d, 1<<20)
	at := int64(0)
	for i, w := range weights {
		for ; at%page != 0; at++ {
			out.WriteByte(0)
		}
		if err := writeBytes(out, w, uint64(i)); err != nil {
			return err
		}
		at += w.size
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return d.Sync()
}

// writeInlined writes a model with its weights inside, field by field: a protobuf library refuses to make a message of
// more than 2 GiB.
func writeInlined(f *os.File, pb *onnxpb.ModelProto, weights []weight) error {
	number := func(m proto.Message, field string) protowire.Number {
		return m.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(field)).Number()
	}
	g := pb.Graph
	pb.Graph = nil
	head, err := proto.Marshal(pb)
	if err != nil {
		return err
	}
	body, err := proto.Marshal(g)
	if err != nil {
		return err
	}
	prefix := func(b []byte, n protowire.Number, size int64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.BytesType), uint64(size))
	}
	inits, size := make([][]byte, len(weights)), int64(len(body))
	for i, w := range weights {
		plain, err := proto.Marshal(w.TensorProto)
		if err != nil {
			return err
		}
		plain = prefix(plain, number(w.TensorProto, "raw_data"), w.size)
		inits[i] = append(prefix(nil, number(g, "initializer"), int64(len(plain))+w.size), plain...)
		size += int64(len(inits[i])) + w.size
	}
	out := bufio.NewWriterSize(f, 1<<20)
	out.Write(prefix(head, number(pb, "graph"), size))
	out.Write(body)
	for i, w := range weights {
		out.Write(inits[i])
		if err := writeBytes(out, w, uint64(i)); err != nil {
			return err
		}
	}
	return out.Flush()
}

// writeBytes writes the elements of a weight: random numbers of either sign around 2⁻⁶, always the same.
func writeBytes(out *bufio.Writer, w weight, seed uint64) error {
	keep, set := uint64(0x80ffffff80ffffff), uint64(0x3c0000003c000000)
	if onnxpb.TensorProto_DataType(w.GetDataType()) == onnxpb.TensorProto_FLOAT16 {
		keep, set = 0x83ff83ff83ff83ff, 0x2000200020002000
	}
	r := rand.NewPCG(1, seed)
	var b [8]byte
	for left := w.size; left > 0; left -= int64(len(b)) {
		binary.LittleEndian.PutUint64(b[:], r.Uint64()&keep|set)
		if _, err := out.Write(b[:min(left, int64(len(b)))]); err != nil {
			return err
		}
	}
	return nil
}

// TestLargeIsWhatTestmodelsBuild holds a model made wide on paper against one that testmodels build with these widths:
// the same nodes, and weights with the same names, dims and types; and it loads.
func TestLargeIsWhatTestmodelsBuild(t *testing.T) {
	for _, l := range []large{
		{layers: 2, heads: 4, kvHeads: 4, headDim: 8, model: 32, ffn: 80, vocab: 96},
		{layers: 2, heads: 4, kvHeads: 2, headDim: 16, model: 64, ffn: 72, vocab: 96, half: true},
	} {
		want, err := l.build(l.model, l.ffn, l.vocab)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []storage{external, inlined, hollow} {
			path := filepath.Join(t.TempDir(), "large.onnx")
			if err := l.write(path, s); err != nil {
				t.Fatal(err)
			}
			got, err := graph.Load(path)
			if err != nil {
				t.Fatal(err)
			}
			defer got.Close()
			if g, w := outline(got.Graph), outline(want.Graph); !slices.Equal(g, w) {
				t.Errorf("%+v, %s: %v,\nwant %v", l, s, g, w)
			}
		}
	}
}

// outline lists what a graph is made of, weights without their elements.
func outline(g *graph.Graph) []string {
	var out []string
	for _, n := range g.Nodes {
		out = append(out, fmt.Sprintf("%v %v → %v", n, n.In, n.Out))
		if c := n.ConstantTensor(); n.Is("Constant") && c != nil {
			b, err := c.Bytes()
			out = append(out, fmt.Sprintf("%v %v %x %v", c.DType(), c.Dims(), b, err))
		}
	}
	for _, v := range g.Inits {
		out = append(out, fmt.Sprintf("%s %v %v", v.Name, v.Init.DType(), v.Init.Dims()))
	}
	for _, v := range slices.Concat(g.Inputs, g.Outputs) {
		out = append(out, fmt.Sprintf("%s %v", v.Name, v.Info))
	}
	return out
}
