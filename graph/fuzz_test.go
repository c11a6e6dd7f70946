package graph

import (
	"bytes"
	"os"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

// written returns what Save writes into the model file.
func written(m *Model) ([]byte, error) {
	s := newSaver(m, "m.onnx")
	pb := m.assemble()
	if err := s.place(pb, "inline", false); err != nil {
		return nil, err
	}
	msg, err := s.encode(pb.ProtoReflect())
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, p := range msg.pieces {
		b := p.mem
		if p.src != nil {
			if b, err = p.src.bytes(); err != nil {
				return nil, err
			}
		}
		out = append(out, b...)
	}
	return out, nil
}

// Whatever the bytes: reading them fails with an error or gives a model that checks, is written, and is then read and
// written as the same bytes.
func FuzzLoad(f *testing.F) {
	rich := richModel()
	f.Add(serialise(f, rich))
	f.Add(serialise(f, smallModel(rawTensor("w", 300, 0))))
	for i, g := 0, rich.Graph; i < len(g.Node); i++ { // smaller ones, that mutations get through
		m := smallModel(rawTensor("w", 2, 0))
		m.Graph.Node = append(m.Graph.Node, g.Node[i])
		f.Add(serialise(f, m))
	}
	for _, path := range sharedModels(f) {
		if b, err := os.ReadFile(path); err == nil && len(b) < 20<<10 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Read("fuzz", data)
		if err != nil {
			return
		}
		_ = m.Check() // may find faults that Load leaves: unknown domains, functions
		for _, lt := range m.lazy {
			for _, read := range []func() error{
				func() error { _, err := lt.Bytes(); return err },
				func() error { _, err := lt.Int64s(); return err },
				func() error { _, err := lt.Float64s(); return err },
				func() error { _, err := lt.Float32s(); return err },
			} {
				_ = read()
			}
		}
		first, err := written(m)
		if err != nil {
			t.Fatalf("read, but not written: %v", err)
		}
		again, err := Read("again", first)
		if err != nil {
			t.Fatalf("written, but not read: %v", err)
		}
		if (m.Check() == nil) != (again.Check() == nil) {
			t.Fatalf("check before: %v; after: %v", m.Check(), again.Check())
		}
		second, err := written(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("the second writing differs: %v", err)
		}
	})
}

// The decoder agrees with the protobuf library on every message that both accept. (A list that stays in the file is
// copied as it is; the library may write its numbers shorter.)
func FuzzDecoder(f *testing.F) {
	f.Add(serialise(f, richModel()))
	f.Add(serialise(f, smallModel(rawTensor("w", 300, 0))))
	library := func(t *testing.T, data []byte) *onnxpb.ModelProto {
		pb := &onnxpb.ModelProto{}
		if err := proto.Unmarshal(data, pb); err != nil {
			t.Fatalf("the protobuf library refuses what was read or written: %v", err)
		}
		return pb
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, err := Read("ours", data)
		if err != nil {
			return
		}
		for _, lt := range ours.lazy { // a damaged list that stays in the file is found when it is read
			for _, p := range lt.parts {
				if _, _, err := lt.typed(elementType{bits: 64, list: p.field, integer: unsigned}); p.field != rawData && err != nil {
					return
				}
			}
		}
		theirs, err := Read("theirs", serialise(t, library(t, data)))
		if err != nil {
			t.Fatal(err)
		}
		a, err := written(ours)
		if err != nil {
			t.Fatal(err)
		}
		b, err := written(theirs)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(library(t, a), library(t, b)) {
			t.Fatal("the protobuf library reads another model")
		}
	})
}
