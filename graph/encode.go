package graph

import (
	"bufio"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph/onnxpb"
)

// encoding is a serialised message in pieces.
type encoding struct {
	pieces []piece
	size   int64
}

// piece is bytes in memory, a range of a file, or the bytes of a tensor that are made while writing.
type piece struct {
	mem  []byte
	src  *source
	make *Tensor
}

func (e *encoding) bytes(b []byte) {
	e.pieces = append(e.pieces, piece{mem: b})
	e.size += int64(len(b))
}

func (e *encoding) append(o *encoding) {
	e.pieces = append(e.pieces, o.pieces...)
	e.size += o.size
}

// head starts a length-delimited field.
func (e *encoding) head(num protowire.Number, size int64) {
	e.bytes(protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.BytesType), uint64(size)))
}

var canonical = proto.MarshalOptions{Deterministic: true, AllowPartial: true}

// encode serialises a message in field order. It returns nil when the message holds nothing that is left in a file:
// then the library can serialise it.
func (s *saver) encode(m protoreflect.Message) (*encoding, error) {
	if t, ok := m.Interface().(*onnxpb.TensorProto); ok {
		return s.encodeTensor(t)
	}
	through := spine[m.Descriptor().FullName()]
	children := make([][]*encoding, len(through))
	lazy := false
	for k, fd := range through {
		if !m.Has(fd) {
			continue
		}
		visit := func(c protoreflect.Message) error {
			e, err := s.encode(c)
			children[k] = append(children[k], e)
			lazy = lazy || e != nil
			return err
		}
		if !fd.IsList() {
			if err := visit(m.Get(fd).Message()); err != nil {
				return nil, err
			}
			continue
		}
		for i, l := 0, m.Get(fd).List(); i < l.Len(); i++ {
			if err := visit(l.Get(i).Message()); err != nil {
				return nil, err
			}
		}
	}
	if _, top := m.Interface().(*onnxpb.ModelProto); !lazy && !top {
		return nil, nil
	}
	plain := shallow(m.Interface(), func(fd protoreflect.FieldDescriptor) bool { return slices.Contains(through, fd) })
	b, err := canonical.Marshal(plain)
	if err != nil {
		return nil, err
	}
	out := &encoding{}
	for k, fd := range through {
		if len(children[k]) == 0 {
			continue
		}
		n := before(b, fd.Number())
		out.bytes(b[:n])
		b = b[n:]
		for i, e := range children[k] {
			if e == nil {
				c := m.Get(fd)
				if fd.IsList() {
					c = c.List().Get(i)
				}
				raw, err := canonical.Marshal(c.Message().Interface())
				if err != nil {
					return nil, err
				}
				e = &encoding{}
				e.bytes(raw)
			}
			out.head(fd.Number(), e.size)
			out.append(e)
		}
	}
	out.bytes(b)
	return out, nil
}

// before returns the length of the leading fields of b with numbers below num.
func before(b []byte, num protowire.Number) int {
	at := 0
	for at < len(b) {
		n, _, size := protowire.ConsumeField(b[at:])
		if size < 0 || n > num {
			break
		}
		at += size
	}
	return at
}

// encodeTensor serialises a tensor whose data is in a file or big.
func (s *saver) encodeTensor(t *onnxpb.TensorProto) (*encoding, error) {
	lt := s.tensor(t)
	p := s.placed[t]
	big := len(t.RawData) >= lazyBytes
	if p == nil && len(lt.parts) == 0 && lt.computed == nil && !big {
		return nil, nil
	}
	type data struct {
		num protowire.Number
		piece
		size int64
	}
	var fields []data
	plain := shallow(t, func(fd protoreflect.FieldDescriptor) bool { return p == nil && big && fd.Number() == rawData })
	if p == nil {
		for _, d := range lt.parts {
			fields = append(fields, data{d.field, piece{src: &d.source}, d.length})
		}
		if lt.computed != nil {
			fields = append(fields, data{rawData, piece{make: lt}, lt.computed.size})
		}
		if big {
			fields = append(fields, data{rawData, piece{mem: t.RawData}, int64(len(t.RawData))})
		}
		slices.SortStableFunc(fields, func(a, b data) int { return int(a.num - b.num) })
	} else {
		plain.FloatData, plain.DoubleData, plain.Int32Data, plain.Int64Data, plain.Uint64Data, plain.RawData = nil, nil, nil, nil, nil, nil
		plain.ExternalData, plain.DataLocation = nil, nil
		if p.inline {
			fields = append(fields, data{rawData, piece{src: lt.ext}, p.length})
		} else {
			plain.ExternalData = s.entries(p, t.ExternalData)
			plain.DataLocation = onnxpb.TensorProto_EXTERNAL.Enum()
		}
	}
	b, err := canonical.Marshal(plain)
	if err != nil {
		return nil, err
	}
	out := &encoding{}
	for _, f := range fields {
		n := before(b, f.num)
		out.bytes(b[:n])
		b = b[n:]
		out.head(f.num, f.size)
		out.pieces = append(out.pieces, f.piece)
		out.size += f.size
	}
	out.bytes(b)
	return out, nil
}

// writeTo writes the message at the start of an empty file.
func (e *encoding) writeTo(f *os.File) error {
	w := bufio.NewWriterSize(f, 1<<20)
	c := &copier{}
	defer c.close()
	for _, p := range e.pieces {
		if p.src == nil {
			b := p.mem
			if p.make != nil {
				var err error
				if b, err = p.make.Bytes(); err != nil {
					return err
				}
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
			continue
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if err := c.copy(f, p.src); err != nil {
			return err
		}
	}
	return w.Flush()
}
