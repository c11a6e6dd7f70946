package graph

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"onnx-dha/graph/onnxpb"
)

// folder resolves external data below the folder of a model.
type folder struct {
	dir   string // empty for a model in memory
	root  *os.Root
	files map[string]*mapped
}

func (d *folder) close() {
	if d.root != nil {
		d.root.Close()
	}
}

// external finds the file range of a tensor with external data.
func (d *folder) external(t *onnxpb.TensorProto) (*source, error) {
	var location string
	offset, length := int64(0), int64(-1)
	for _, e := range t.ExternalData {
		var err error
		switch e.GetKey() {
		case "location":
			location = e.GetValue()
		case "offset":
			offset, err = count(e)
		case "length":
			length, err = count(e)
		}
		if err != nil {
			return nil, err
		}
	}
	if location == "" {
		return nil, errors.New("its data is external, but no location is given")
	}
	f, err := d.file(location)
	if err != nil {
		return nil, err
	}
	size := f.info.Size()
	if offset > size {
		return nil, fmt.Errorf("its data starts at byte %d of %s, which has %d", offset, f.path, size)
	}
	if length < 0 {
		// A file may say where the data starts only: the dims say where it ends.
		length = size - offset
		if want, ok := byteSize(t); ok && want <= length {
			length = want
		}
	}
	if length > size-offset {
		return nil, fmt.Errorf("its data is bytes %d to %d of %s, which has %d", offset, offset+length, f.path, size)
	}
	return &source{f, offset, length}, nil
}

func count(e *onnxpb.StringStringEntryProto) (int64, error) {
	n, err := strconv.ParseInt(e.GetValue(), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("the %s of its external data is %q, want a number of bytes", e.GetKey(), e.GetValue())
	}
	return n, nil
}

// file returns the data file at a location, which must lie in the model's folder even when links are followed.
func (d *folder) file(location string) (*mapped, error) {
	if f := d.files[location]; f != nil {
		return f, nil
	}
	switch {
	case d.dir == "":
		return nil, fmt.Errorf("its data is in %q, but the model was read from memory and has no folder", location)
	case filepath.IsAbs(location):
		return nil, fmt.Errorf("its data is in %q: external data must be in the model's folder, not at an absolute path", location)
	case slices.Contains(strings.Split(filepath.ToSlash(location), "/"), ".."):
		return nil, fmt.Errorf("its data is in %q: external data must be in the model's folder, \"..\" is not allowed", location)
	}
	path := filepath.Join(d.dir, location)
	if d.root == nil {
		root, err := os.OpenRoot(d.dir)
		if err != nil {
			return nil, err
		}
		d.root = root
	}
	info, err := d.root.Stat(location)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("its data is in %s, which does not exist", path)
	case err != nil:
		if _, outside := os.Stat(path); outside == nil {
			return nil, fmt.Errorf("its data is in %s, a link that leads out of the model's folder; put the file itself there", path)
		}
		return nil, fmt.Errorf("its data is in %s: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("its data is in %s, which is not a regular file", path)
	}
	f := &mapped{path: path, info: info}
	d.files[location] = f
	return f, nil
}

// byteSize returns the bytes of a tensor's raw data as its dims and type have it.
func byteSize(t *onnxpb.TensorProto) (int64, bool) {
	e, ok := elementTypes[onnxpb.TensorProto_DataType(t.GetDataType())]
	if !ok {
		return 0, false
	}
	n, err := elements(t.Dims)
	return e.size(n), err == nil
}

// checkData compares dims with the data as far as that needs no reading, so that a loaded tensor's Len can be believed.
func (t *Tensor) checkData() error {
	n, err := elements(t.Proto.Dims)
	if err != nil {
		return err
	}
	if t.DType() == onnxpb.TensorProto_STRING {
		if have := int64(len(t.Proto.StringData)); have != n {
			return fmt.Errorf("dims %v take %d strings, but the data has %d", t.Proto.Dims, n, have)
		}
		return nil
	}
	e, ok := elementTypes[t.DType()]
	if !ok || t.Proto.Segment != nil {
		return nil
	}
	size, have := e.size(n), int64(-1)
	switch s := t.part(rawData); {
	case t.ext != nil:
		have = t.ext.length
	case t.Proto.GetDataLocation() == onnxpb.TensorProto_EXTERNAL:
		return errors.New("its data is external, but the tensor belongs to no loaded model")
	case s != nil:
		have = s.length
	case t.computed != nil:
		have = t.computed.size
	case t.Proto.RawData != nil:
		have = int64(len(t.Proto.RawData))
	}
	if have >= 0 {
		if have != size {
			return fmt.Errorf("dims %v of %v take %d bytes, but the data has %d", t.Proto.Dims, t.DType(), size, have)
		}
		return nil
	}
	want := e.stored(n)
	if s := t.part(e.list); s != nil {
		width := int64(e.entry())
		switch e.list {
		case floatData, doubleData:
			if s.length != want*width {
				return fmt.Errorf("dims %v of %v take %d bytes, but the data has %d", t.Proto.Dims, t.DType(), want*width, s.length)
			}
		default: // varints: a byte each at least, ten at most
			if s.length < want || s.length/10 > want {
				return fmt.Errorf("dims %v of %v take %d entries, but the data has %d bytes", t.Proto.Dims, t.DType(), want, s.length)
			}
		}
		return nil
	}
	if have := t.entries(e.list); have != want {
		return fmt.Errorf("dims %v of %v take %d entries, but the data has %d", t.Proto.Dims, t.DType(), want, have)
	}
	return nil
}
