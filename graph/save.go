package graph

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"onnx-dha/graph/onnxpb"
)

// SaveOptions say where Save puts the weights.
type SaveOptions struct {
	// External is one of
	//
	//	""        as the model was loaded: inline weights inline, external ones in one new data file
	//	"inline"  everything in the model file
	//	"file"    initializers of 1 KiB and more in one new data file
	//	"share"   only initializers that are new in a new data file; the others stay where they are, in the original's
	//	          files, which must lie in the folder of the output or below
	//
	// The data file has the name of the output with Suffix behind it. Protobuf files hold at most 2 GiB: a model that
	// would be over that is written as with "file".
	External string
	// Suffix is ".data" when it is empty.
	Suffix string
}

// Save writes the model to a file, and a data file beside it when the options or the size ask for one. Both appear
// under their names only when they are complete and synced. Weights that did not change are copied from file to file by
// the system. The files that the model was loaded from are never written to: an output that is one of them, by whatever
// name or link, is an error.
func (m *Model) Save(path string, opt SaveOptions) error {
	if !slices.Contains([]string{"", "inline", "file", "share"}, opt.External) {
		return fmt.Errorf("external data %q: want inline, file, share, or nothing to keep it as it is", opt.External)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("output %s is a folder", path)
	}
	s := newSaver(m, path)
	if opt.Suffix != "" {
		s.data = path + opt.Suffix
	}
	if err := s.refuseInputs(path, "the input model"); err != nil {
		return err
	}
	if err := s.save(opt.External); err != nil {
		return fmt.Errorf("saving %s: %w", path, err)
	}
	return nil
}

// saver writes one model.
type saver struct {
	model      *Model
	path, data string
	weights    map[*onnxpb.TensorProto]*Tensor // initializers of all graphs
	external   bool                            // some tensor is in an external file now
	locations  map[*mapped]string

	placed   map[*onnxpb.TensorProto]*placement
	writes   []*placement // what the data file holds, by offset
	size     int64        // of the data file
	checksum string       // of the data file; empty until it is written
}

func newSaver(m *Model, path string) *saver {
	s := &saver{
		model: m, path: path, data: path + ".data",
		weights:   map[*onnxpb.TensorProto]*Tensor{},
		locations: map[*mapped]string{},
		placed:    map[*onnxpb.TensorProto]*placement{},
	}
	m.Graph.eachGraph(func(g *Graph) {
		for _, v := range g.Inits {
			s.weights[v.Init.Proto] = v.Init
		}
	})
	for _, t := range m.lazy {
		s.external = s.external || t.ext != nil
	}
	for _, t := range s.weights {
		s.external = s.external || t.ext != nil
	}
	return s
}

// placement is where a tensor's bytes go.
type placement struct {
	tensor   *Tensor
	inline   bool // into the message, as raw data
	shared   bool // they stay in the file they are in
	location string
	offset   int64
	length   int64
}

func (s *saver) save(external string) error {
	pb := s.model.assemble()
	if external == "" {
		external = "keep"
	}
	if err := s.place(pb, external, false); err != nil {
		return err
	}
	msg, err := s.encode(pb.ProtoReflect())
	if err != nil {
		return err
	}
	// First weights go, then constants inside nodes: not every reader looks for external data there.
	for _, constants := range []bool{false, true} {
		if msg.size <= maxMessage {
			break
		}
		if external != "share" {
			external = "file"
		}
		if err := s.place(pb, external, constants); err != nil {
			return err
		}
		if msg, err = s.encode(pb.ProtoReflect()); err != nil {
			return err
		}
	}
	if msg.size > maxMessage {
		return fmt.Errorf("the model takes %d bytes without its weights, protobuf files hold at most %d", msg.size, maxMessage)
	}
	return s.write(pb, msg)
}

// place decides for every tensor where its bytes go.
func (s *saver) place(pb *onnxpb.ModelProto, external string, constants bool) error {
	clear(s.placed)
	s.writes, s.size = nil, 0
	at := map[source]*placement{} // weights that share a range go on sharing it
	return eachTensor(pb.ProtoReflect(), func(t *onnxpb.TensorProto) error {
		lt := s.tensor(t)
		wasExternal := t.GetDataLocation() == onnxpb.TensorProto_EXTERNAL
		if err := lt.checkData(); err != nil { // a message whose bytes were left in a file that we do not know
			return fmt.Errorf("%s: %w", lt.describe(), err)
		}
		src, length := lt.payload()
		p := &placement{tensor: lt, length: length}
		big := length >= lazyBytes && (s.weights[t] != nil || constants)
		isNew := len(lt.parts) == 0 && s.external // beside external weights, new ones are external too
		switch {
		case external == "inline" && wasExternal:
			p.inline = true
			s.placed[t] = p
			return nil
		case external == "inline", !wasExternal && (!big || external == "keep" && !isNew):
			return nil
		case external == "share" && src != nil && src.file.info != nil:
			location, err := s.relative(src.file)
			p.location, p.offset, p.shared = location, src.offset, true
			s.placed[t] = p
			return err
		}
		if src != nil {
			if twin := at[*src]; twin != nil {
				s.placed[t] = twin
				return nil
			}
			at[*src] = p
		}
		align := int64(64)
		if length >= 4096 {
			align = 4096 // whole pages, so that a runtime can map the weight
		}
		p.location = filepath.Base(s.data)
		p.offset = (s.size + align - 1) / align * align
		s.size = p.offset + length
		s.writes = append(s.writes, p)
		s.placed[t] = p
		return nil
	})
}

// tensor returns the tensor behind a message without entering it into the model.
func (s *saver) tensor(pb *onnxpb.TensorProto) *Tensor {
	if t := s.weights[pb]; t != nil {
		return t
	}
	if t := s.model.lazy[pb]; t != nil {
		return t
	}
	return &Tensor{Proto: pb}
}

// payload returns the size of a tensor's raw data and, when they are in a file in that form, where. The size is 0 for
// tensors that have no such form.
func (t *Tensor) payload() (*source, int64) {
	if t.ext != nil {
		return t.ext, t.ext.length
	}
	if s := t.part(rawData); s != nil {
		return s, s.length
	}
	if t.computed != nil {
		return nil, t.computed.size
	}
	if t.Proto.RawData != nil {
		return nil, int64(len(t.Proto.RawData))
	}
	size, ok := byteSize(t.Proto)
	if !ok {
		return nil, 0
	}
	for _, list := range []protowire.Number{floatData, doubleData} {
		// Packed floats are little-endian on the wire: raw data by another name.
		if s := t.part(list); s != nil && s.length == size && elementTypes[t.DType()].list == list {
			return s, size
		}
	}
	return nil, size
}

// relative returns the location of a file as external data of the output.
func (s *saver) relative(f *mapped) (string, error) {
	if l := s.locations[f]; l != "" {
		return l, nil
	}
	dir, err := filepath.Abs(filepath.Dir(s.path))
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", err
	}
	file, err := filepath.Abs(f.path)
	if err == nil {
		file, err = filepath.EvalSymlinks(file)
	}
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(dir, file)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("weights cannot be shared with %s: it is not in the folder of the output; write it there, or copy the weights", f.path)
	}
	s.locations[f] = filepath.ToSlash(rel)
	return s.locations[f], nil
}

// eachGraph calls f for g and every body inside it.
func (g *Graph) eachGraph(f func(*Graph)) {
	f(g)
	for _, n := range g.Nodes {
		for _, b := range n.bodies() {
			b.eachGraph(f)
		}
	}
}

// refuseInputs returns an error when target is a file that the model's weights come from.
func (s *saver) refuseInputs(target, what string) error {
	now, err := os.Stat(target)
	if err != nil {
		return nil // it does not exist: nothing to protect
	}
	refuse := func(f *mapped, what string) error {
		if f.info == nil || !os.SameFile(f.info, now) {
			return nil
		}
		return fmt.Errorf("output %s is %s %s, which is never written to: choose another name", target, what, f.path)
	}
	for i, f := range s.model.files {
		if i > 0 {
			what = "a data file of the input model,"
		}
		if err := refuse(f, what); err != nil {
			return err
		}
	}
	for _, tensors := range []map[*onnxpb.TensorProto]*Tensor{s.weights, s.model.lazy} {
		for _, t := range tensors { // one may come from another model
			if src, _ := t.payload(); src != nil {
				if err := refuse(src.file, "a file with weights in use,"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// entries returns the external_data entries of a placement; keys of the old ones that say nothing of the place stay.
func (s *saver) entries(p *placement, old []*onnxpb.StringStringEntryProto) []*onnxpb.StringStringEntryProto {
	entry := func(k, v string) *onnxpb.StringStringEntryProto {
		return &onnxpb.StringStringEntryProto{Key: &k, Value: &v}
	}
	out := []*onnxpb.StringStringEntryProto{
		entry("location", p.location),
		entry("offset", strconv.FormatInt(p.offset, 10)),
		entry("length", strconv.FormatInt(p.length, 10)),
	}
	for _, e := range old {
		switch e.GetKey() {
		case "location", "offset", "length":
		case "checksum": // of the whole data file
			if !p.shared {
				e = entry("checksum", s.checksum)
			}
			out = append(out, e)
		default:
			out = append(out, e)
		}
	}
	return out
}

// checksummed reports whether a tensor of the data file carries a checksum of it.
func (s *saver) checksummed() bool {
	for t, p := range s.placed {
		if !p.inline && !p.shared && slices.ContainsFunc(t.ExternalData, func(e *onnxpb.StringStringEntryProto) bool { return e.GetKey() == "checksum" }) {
			return true
		}
	}
	return false
}

// write puts the files in place.
func (s *saver) write(pb *onnxpb.ModelProto, msg *encoding) (err error) {
	var files []*pending
	complete := false
	defer func() { // on a panic too
		for _, p := range files {
			if !complete {
				p.undo()
			}
		}
	}()
	open := func(path string) (*os.File, error) {
		p, err := create(path)
		if err != nil {
			return nil, err
		}
		files = append(files, p)
		return p.file, nil
	}
	if len(s.writes) > 0 {
		if err := s.refuseInputs(s.data, "the input model"); err != nil {
			return err
		}
		f, err := open(s.data)
		if err != nil {
			return err
		}
		if err := s.writeData(f); err != nil {
			return err
		}
		if s.checksummed() {
			if s.checksum, err = sha1Of(f, s.size); err != nil {
				return err
			}
			if msg, err = s.encode(pb.ProtoReflect()); err != nil {
				return err
			}
		}
	}
	f, err := open(s.path)
	if err != nil {
		return err
	}
	if err := msg.writeTo(f); err != nil {
		return err
	}
	for _, p := range files {
		if err := p.file.Sync(); err != nil {
			return err
		}
	}
	for _, p := range files { // the data first: a model never refers to what is not there
		if err := p.commit(); err != nil {
			return err
		}
	}
	complete = true
	return nil
}

func sha1Of(f *os.File, size int64) (string, error) {
	h := sha1.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeData fills the data file.
func (s *saver) writeData(f *os.File) error {
	c := &copier{}
	defer c.close()
	for _, p := range s.writes {
		if _, err := f.Seek(p.offset, io.SeekStart); err != nil {
			return err
		}
		if src, _ := p.tensor.payload(); src != nil {
			if err := c.copy(f, src); err != nil {
				return fmt.Errorf("%s: %w", p.tensor.describe(), err)
			}
			continue
		}
		b, err := p.tensor.Bytes()
		if err != nil {
			return err
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
		writeback(f)
	}
	return f.Truncate(s.size)
}
