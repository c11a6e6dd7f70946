package data

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// WriteArrays writes tensors as a .npz file of NumPy, compressed, by name. The same tensors give the same bytes. Types that
// NumPy has not are an error.
func WriteArrays(w io.Writer, arrays map[string]*ort.Tensor) error {
	z := zip.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(arrays)) {
		f, err := z.CreateHeader(&zip.FileHeader{Name: name + ".npy", Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)})
		if err == nil {
			err = writeArray(f, arrays[name])
		}
		if err != nil {
			return fmt.Errorf("array %q: %w", name, err)
		}
	}
	return z.Close()
}

// writeArray writes a tensor in version 1 of the .npy format.
func writeArray(w io.Writer, t *ort.Tensor) error {
	if err := t.Check(); err != nil {
		return err
	}
	kind := ""
	for k, dtype := range npyTypes {
		if dtype == t.DType {
			kind = k
		}
	}
	if kind == "" {
		return fmt.Errorf("NumPy has no type for %v", t)
	}
	order := "<"
	if bigEndian {
		order = ">"
	}
	if elementSize(t.DType) == 1 {
		order = "|"
	}
	var shape strings.Builder
	for _, d := range t.Shape {
		fmt.Fprintf(&shape, "%d,", d)
	}
	header := fmt.Sprintf("{'descr': '%s%s', 'fortran_order': False, 'shape': (%s), }", order, kind, shape.String())
	const start = 10                                                // bytes before the header
	header += strings.Repeat(" ", 63-(start+len(header))%64) + "\n" // the data begins at a multiple of 64
	b := append([]byte("\x93NUMPY\x01\x00"), 0, 0)
	binary.LittleEndian.PutUint16(b[8:], uint16(len(header)))
	if _, err := w.Write(append(b, header...)); err != nil {
		return err
	}
	_, err := w.Write(t.Raw)
	return err
}

// ReadArrays reads all arrays of a .npz file by name.
func ReadArrays(path string) (map[string]*ort.Tensor, error) {
	z, err := zip.OpenReader(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; want the .npz format of NumPy", path, plain(err))
	}
	defer z.Close()
	arrays, err := arraysOf(&z.Reader)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return arrays, nil
}

// Proto encodes a tensor as ONNX test data does (input_0.pb).
func Proto(name string, t *ort.Tensor) ([]byte, error) {
	raw := t.Raw
	if bigEndian {
		raw = slices.Clone(raw)
		swapBytes(raw, elementSize(t.DType))
	}
	dtype := int32(t.DType)
	return proto.MarshalOptions{Deterministic: true}.Marshal(&onnxpb.TensorProto{Name: &name, DataType: &dtype, Dims: t.Shape, RawData: raw})
}
