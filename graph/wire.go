package graph

import (
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph/onnxpb"
)

// The protobuf library wants a whole message in memory. The decoder in this file walks the wire format instead and
// hands the library everything but the weights: tensor data of lazyBytes and more is recorded as a range of the file
// and never read. Only messages that can contain a tensor (the spine: model, graph, node, attribute, function, ...) and
// are long enough to contain a big one are walked; the rest is ordinary unmarshalling.

const (
	lazyBytes = 1 << 10 // tensor data from this size on stays in the file

	// maxDepth bounds the nesting of messages: a body inside a body is three levels (graph, node, attribute) deeper.
	maxDepth = 400

	// maxMessage is the protobuf limit on a serialised message, hence on the structure of a model without its weights.
	maxMessage = math.MaxInt32
)

// wireError is a place where a file stops being a protobuf message.
type wireError struct {
	offset int64
	short  bool // because bytes are missing
	what   string
}

// cutError is the place at which a model file was cut off.
type cutError struct{ *wireError }

func (e *wireError) Error() string { return fmt.Sprintf("byte %d: %s", e.offset, e.what) }

// field is one field of a message on the wire.
type field struct {
	num        protowire.Number
	typ        protowire.Type
	start      int64 // of the tag
	value, end int64 // of the value; the content alone for length-delimited fields
}

// decoder reads one model from a file.
type decoder struct {
	in   *window
	file *mapped
	lazy map[*onnxpb.TensorProto]*Tensor
}

// model decodes the whole file.
func (d *decoder) model() (*onnxpb.ModelProto, error) {
	m := &onnxpb.ModelProto{}
	fields := m.ProtoReflect().Descriptor().Fields()
	hasGraph := false
	// A first look at the top level alone: it refuses text, other formats and cut files before a length that is no
	// length is believed.
	for at := int64(0); at < d.in.size; {
		f, err := d.in.field(at, d.in.size, 0)
		fd := fields.ByNumber(f.num)
		var broken *wireError
		if errors.As(err, &broken) && broken.short && at > 0 && fd != nil && wireType(fd) == f.typ {
			return nil, &cutError{broken}
		}
		if err != nil {
			return nil, err
		}
		if fd != nil && wireType(fd) != f.typ {
			return nil, &wireError{offset: at, what: fmt.Sprintf("field %d, %s, has wire type %d", f.num, fd.Name(), f.typ)}
		}
		hasGraph = hasGraph || fd != nil && fd.Name() == "graph"
		at = f.end
	}
	if !hasGraph {
		return nil, errors.New("it has no graph")
	}
	return m, d.message(m.ProtoReflect(), 0, d.in.size, 0)
}

func wireType(fd protoreflect.FieldDescriptor) protowire.Type {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.StringKind, protoreflect.BytesKind:
		return protowire.BytesType
	case protoreflect.FloatKind:
		return protowire.Fixed32Type
	case protoreflect.DoubleKind:
		return protowire.Fixed64Type
	}
	return protowire.VarintType
}

// message merges the bytes from start to end into msg.
func (d *decoder) message(msg protoreflect.Message, start, end int64, depth int) error {
	if depth > maxDepth {
		return &wireError{offset: start, what: fmt.Sprintf("messages are nested more than %d deep", maxDepth)}
	}
	if end-start < lazyBytes {
		b, err := d.in.read(nil, start, end)
		if err != nil {
			return err
		}
		return d.unmarshal(b, msg, start, depth)
	}
	if t, ok := msg.Interface().(*onnxpb.TensorProto); ok {
		return d.tensor(t, start, end, depth)
	}
	through := spine[msg.Descriptor().FullName()]
	var plain []byte
	for at := start; at < end; {
		f, err := d.in.field(at, end, depth)
		if err != nil {
			return err
		}
		at = f.end
		if fd := find(through, f.num); fd != nil && f.typ == protowire.BytesType {
			var child protoreflect.Value
			switch {
			case fd.IsList():
				child = msg.Mutable(fd).List().AppendMutable()
			case msg.Has(fd): // to be merged, says protobuf, but no writer does that
				return &wireError{offset: f.start, what: fmt.Sprintf("the field %s is there twice", fd.Name())}
			default:
				child = msg.Mutable(fd)
			}
			if err := d.message(child.Message(), f.value, f.end, depth+1); err != nil {
				return err
			}
			continue
		}
		if plain, err = d.in.read(plain, f.start, f.end); err != nil {
			return err
		}
	}
	return d.unmarshal(plain, msg, start, depth)
}

func find(fds []protoreflect.FieldDescriptor, num protowire.Number) protoreflect.FieldDescriptor {
	for _, fd := range fds {
		if fd.Number() == num {
			return fd
		}
	}
	return nil
}

func (d *decoder) unmarshal(b []byte, msg protoreflect.Message, start int64, depth int) error {
	opt := proto.UnmarshalOptions{Merge: true, AllowPartial: true, RecursionLimit: maxDepth - depth + 1}
	if err := opt.Unmarshal(b, msg.Interface()); err != nil {
		what := fmt.Sprintf("the %s that starts here is damaged or nested too deeply", msg.Descriptor().Name())
		return &wireError{offset: start, what: what}
	}
	return nil
}

// Data fields of a tensor.
const (
	floatData  protowire.Number = 4
	int32Data  protowire.Number = 5
	int64Data  protowire.Number = 7
	rawData    protowire.Number = 9
	doubleData protowire.Number = 10
	uint64Data protowire.Number = 11
)

// tensor decodes a tensor, leaving big data in the file.
func (d *decoder) tensor(pb *onnxpb.TensorProto, start, end int64, depth int) error {
	// A typed list may come in several chunks, or element by element; it is left in the file when it is one chunk.
	count := map[protowire.Number]int{}
	for at := start; at < end; {
		f, err := d.in.field(at, end, depth)
		if err != nil {
			return err
		}
		count[f.num]++
		at = f.end
	}
	t := &Tensor{Proto: pb}
	var plain []byte
	for at := start; at < end; {
		f, err := d.in.field(at, end, depth)
		if err != nil {
			return err
		}
		at = f.end
		if f.typ == protowire.BytesType && f.end-f.value >= lazyBytes {
			switch f.num {
			case rawData, floatData, int32Data, int64Data, doubleData, uint64Data:
				if count[f.num] == 1 {
					t.parts = append(t.parts, part{f.num, source{d.file, f.value, f.end - f.value}})
					continue
				}
			}
		}
		if plain, err = d.in.read(plain, f.start, f.end); err != nil {
			return err
		}
	}
	if len(t.parts) > 0 {
		d.lazy[pb] = t
	}
	return d.unmarshal(plain, pb.ProtoReflect(), start, depth)
}

// window reads a file through a small buffer, so that skipping over weights costs nothing and what was read is not
// kept. (A memory map would count every page around every tensor header as resident.)
type window struct {
	r     io.ReaderAt
	size  int64
	buf   [4 << 10]byte
	at    int64 // file offset of buf
	n     int   // valid bytes in buf
	total int64 // bytes handed out by read
}

// peek returns up to want bytes from offset at, fewer at the end of the file. They are valid until the next call.
func (w *window) peek(at int64, want int) ([]byte, error) {
	if at < w.at || at+int64(want) > w.at+int64(w.n) && w.at+int64(w.n) < w.size {
		n, err := w.r.ReadAt(w.buf[:], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		w.at, w.n = at, n
	}
	off := min(at-w.at, int64(w.n))
	return w.buf[off:min(off+int64(want), int64(w.n))], nil
}

// read appends the bytes from start to end to b.
func (w *window) read(b []byte, start, end int64) ([]byte, error) {
	n := end - start
	if w.total += n; w.total > maxMessage {
		return nil, &wireError{offset: start, what: "the model's structure, without its weights, is over the 2 GiB that protobuf allows"}
	}
	old := len(b)
	b = append(b, make([]byte, n)...)
	if n <= int64(len(w.buf)) {
		got, err := w.peek(start, int(n))
		if err == nil && int64(len(got)) < n {
			err = io.ErrUnexpectedEOF
		}
		copy(b[old:], got)
		return b, err
	}
	_, err := w.r.ReadAt(b[old:], start)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the file was cut while we read it
	}
	return b, err
}

// field reads the field that starts at offset at of a message that ends at end.
func (w *window) field(at, end int64, depth int) (field, error) {
	head, err := w.peek(at, 20)
	if err != nil {
		return field{}, err
	}
	head = head[:min(int64(len(head)), end-at)]
	num, typ, n := protowire.ConsumeTag(head)
	if n < 0 {
		return field{}, w.broken(at, n, "a field tag")
	}
	f := field{num: num, typ: typ, start: at, value: at + int64(n)}
	rest := head[n:]
	switch typ {
	case protowire.VarintType:
		_, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return f, w.broken(at, n, fmt.Sprintf("field %d", num))
		}
		f.end = f.value + int64(n)
	case protowire.Fixed32Type:
		f.end = f.value + 4
	case protowire.Fixed64Type:
		f.end = f.value + 8
	case protowire.BytesType:
		size, n := protowire.ConsumeVarint(rest)
		if n < 0 {
			return f, w.broken(at, n, fmt.Sprintf("the length of field %d", num))
		}
		f.value += int64(n)
		if size > uint64(end-f.value) {
			what := fmt.Sprintf("field %d is %d bytes long, but %d are left", num, size, end-f.value)
			return f, &wireError{offset: at, short: true, what: what}
		}
		f.end = f.value + int64(size)
	case protowire.StartGroupType:
		f.end, err = w.group(f, end, depth)
		return f, err
	default:
		return f, &wireError{offset: at, what: fmt.Sprintf("field %d has wire type %d", num, typ)}
	}
	if f.end > end {
		return f, w.broken(at, -1, fmt.Sprintf("field %d", num))
	}
	return f, nil
}

// group finds the end of a group, the only field whose length is not written in front of it.
func (w *window) group(f field, end int64, depth int) (int64, error) {
	if depth > maxDepth {
		return 0, &wireError{offset: f.start, what: fmt.Sprintf("groups are nested more than %d deep", maxDepth)}
	}
	for at := f.value; at < end; {
		head, err := w.peek(at, 10)
		if err != nil {
			return 0, err
		}
		num, typ, n := protowire.ConsumeTag(head[:min(int64(len(head)), end-at)])
		if n > 0 && typ == protowire.EndGroupType {
			if num != f.num {
				return 0, &wireError{offset: at, what: fmt.Sprintf("group %d ends as group %d", f.num, num)}
			}
			return at + int64(n), nil
		}
		inner, err := w.field(at, end, depth+1)
		if err != nil {
			return 0, err
		}
		at = inner.end
	}
	return 0, w.broken(f.start, -1, fmt.Sprintf("group %d", f.num))
}

// broken turns a negative count of protowire into an error; -1 is its code for input that ends too early.
func (w *window) broken(at int64, code int, what string) error {
	if code == -1 {
		return &wireError{offset: at, short: true, what: what + " is cut off"}
	}
	return &wireError{offset: at, what: what + " is not valid"}
}
