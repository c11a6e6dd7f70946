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

// The decoder and the protobuf library agree on every message that both accept.
func FuzzDecoder(f *testing.F) {
	f.Add(serialise(f, richModel()))
	f.Add(serialise(f, smallModel(rawTensor("w", 300, 0))))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Read("fuzz", data)
		if err != nil {
			return
		}
		got, err := written(m)
		if err != nil {
			t.Fatal(err)
		}
		want := serialiseLibrary(data)
		if want == nil {
			t.Fatal("the protobuf library refuses what was read")
		}
		if m2, err := Read("library", want); err != nil {
			t.Fatal(err)
		} else if again, err := written(m2); err != nil || !bytes.Equal(got, again) {
			t.Fatalf("the protobuf library reads another model, %v", err)
		}
	})
}

func serialiseLibrary(data []byte) []byte {
	m := &onnxpb.ModelProto{}
	if proto.Unmarshal(data, m) != nil {
		return nil
	}
	b, err := canonical.Marshal(m)
	if err != nil {
		return nil
	}
	return b
}
