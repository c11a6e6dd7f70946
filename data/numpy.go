package data

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// readArray reads a .npy file: token ids, or the model's only input.
func readArray(path string, o Options) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := parseArray(f)
	if err != nil {
		return nil, err
	}
	if isTokens(t) {
		return tokenSet(t, o)
	}
	var needed []string
	for _, in := range o.Inputs {
		if !slices.Contains(o.Optional, in.Name) {
			needed = append(needed, in.Name)
		}
	}
	if len(needed) != 1 {
		return nil, fmt.Errorf("it holds one array, %v, but %s; want an .npz with an array for each", t, wants(o))
	}
	return tensorSet(map[string]*ort.Tensor{needed[0]: t}, o)
}

// readArrays reads a .npz file of arrays by input name. One that holds only token ids, under "input_ids" or "tokens", is
// like a .npy file of them.
func readArrays(path string, o Options) (*Set, error) {
	z, err := zip.OpenReader(path)
	if err != nil {
		return nil, fmt.Errorf("%w; want the .npz format of NumPy", plain(err))
	}
	defer z.Close()
	arrays, err := arraysOf(&z.Reader)
	if err != nil {
		return nil, err
	}
	if len(arrays) == 1 {
		for _, name := range []string{"input_ids", "tokens"} {
			if t := arrays[name]; t != nil && isTokens(t) {
				return tokenSet(t, o)
			}
		}
	}
	return tensorSet(arrays, o)
}

// arraysOf reads every array of an archive by its name.
func arraysOf(z *zip.Reader) (map[string]*ort.Tensor, error) {
	arrays := map[string]*ort.Tensor{}
	for _, f := range z.File {
		name := strings.TrimSuffix(f.Name, ".npy")
		if _, ok := arrays[name]; ok {
			return nil, fmt.Errorf("array %q is there twice", name)
		}
		r, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("array %q: %w", name, err)
		}
		arrays[name], err = parseArray(r)
		r.Close()
		if err != nil {
			return nil, fmt.Errorf("array %q: %w", name, err)
		}
	}
	return arrays, nil
}

// isTokens reports whether an array that stands by itself is taken for token ids: whole numbers in one row or several.
func isTokens(t *ort.Tensor) bool {
	return kindOf(t.DType) == integer && (len(t.Shape) == 1 || len(t.Shape) == 2)
}

// tokenSet takes an array [tokens] as one document, and [documents, tokens] as several.
func tokenSet(t *ort.Tensor, o Options) (*Set, error) {
	ids, err := t.Int64s()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(ids, func(id int64) bool { return id < 0 }); i >= 0 {
		return nil, fmt.Errorf("element %d is %d; want token ids, 0 and more", i, ids[i])
	}
	docs := []document{{tokens: ids}}
	c := cutting{length: o.SeqLen}
	if len(t.Shape) == 2 {
		docs = nil
		n := t.Shape[1]
		for i := range t.Shape[0] {
			docs = append(docs, document{source: fmt.Sprintf("row %d", i), tokens: ids[i*n : (i+1)*n]})
		}
	} else if c.length == 0 {
		c.length = DefaultSeqLen
	}
	s := &Set{tokens: true}
	s.train, s.heldOut, err = c.cut(docs, o)
	return s, err
}

// The header of a .npy file is a Python dictionary (NEP 1), which NumPy always writes with these three keys.
var (
	descrKey   = regexp.MustCompile(`'descr'\s*:\s*'([^']*)'`)
	fortranKey = regexp.MustCompile(`'fortran_order'\s*:\s*(True|False)`)
	shapeKey   = regexp.MustCompile(`'shape'\s*:\s*\(([^)]*)\)`)
)

// npyTypes are the element types by NumPy's kind and size in bytes.
var npyTypes = map[string]onnxpb.TensorProto_DataType{
	"f2": onnxpb.TensorProto_FLOAT16, "f4": onnxpb.TensorProto_FLOAT, "f8": onnxpb.TensorProto_DOUBLE,
	"i1": onnxpb.TensorProto_INT8, "i2": onnxpb.TensorProto_INT16, "i4": onnxpb.TensorProto_INT32, "i8": onnxpb.TensorProto_INT64,
	"u1": onnxpb.TensorProto_UINT8, "u2": onnxpb.TensorProto_UINT16, "u4": onnxpb.TensorProto_UINT32, "u8": onnxpb.TensorProto_UINT64,
	"b1": onnxpb.TensorProto_BOOL,
}

// maxHeader bounds the header of a .npy file in bytes, and maxRank the axes of an array (NumPy allows 64).
const maxHeader, maxRank = 1 << 16, 64

// parseArray reads an array in the .npy format, versions 1 to 3. It allocates no more than the data that is there.
func parseArray(r io.Reader) (*ort.Tensor, error) {
	const want = "; want the .npy format of NumPy"
	start := make([]byte, 10)
	if _, err := io.ReadFull(r, start); err != nil || string(start[:6]) != "\x93NUMPY" {
		return nil, errors.New("it does not begin like an array" + want)
	}
	length := int(binary.LittleEndian.Uint16(start[8:]))
	if start[6] > 1 {
		more := make([]byte, 2)
		if _, err := io.ReadFull(r, more); err != nil {
			return nil, errors.New("its header is cut off" + want)
		}
		length = int(binary.LittleEndian.Uint32(append(start[8:], more...)))
	}
	if length > maxHeader {
		return nil, fmt.Errorf("its header has %d bytes, more than %d%s", length, maxHeader, want)
	}
	header := make([]byte, length)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, errors.New("its header is cut off" + want)
	}
	descr, fortran, shape := descrKey.FindSubmatch(header), fortranKey.FindSubmatch(header), shapeKey.FindSubmatch(header)
	if descr == nil || fortran == nil || shape == nil {
		return nil, fmt.Errorf("its header %.100q lacks a simple type, the order or the shape%s", header, want)
	}
	kind := string(descr[1])
	dtype, ok := npyTypes[strings.TrimLeft(kind, "<>|=")]
	if !ok {
		return nil, fmt.Errorf("its elements are %q; want floats, integers or booleans (f2 to f8, i1 to i8, u1 to u8, b1)", kind)
	}
	t := &ort.Tensor{DType: dtype}
	for _, text := range strings.Split(string(shape[1]), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		d, err := strconv.ParseInt(text, 10, 64)
		if err != nil || d < 0 || len(t.Shape) == maxRank {
			return nil, fmt.Errorf("its shape is (%s)%s", shape[1], want)
		}
		t.Shape = append(t.Shape, d)
	}
	var err error
	if t.Raw, err = io.ReadAll(r); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("%w; is the file cut off?", err)
	}
	size := elementSize(dtype)
	if strings.HasPrefix(kind, ">") != bigEndian {
		swapBytes(t.Raw, size)
	}
	if string(fortran[1]) == "True" {
		t.Raw = rowMajor(t.Raw, t.Shape, size)
	}
	return t, nil
}

// bigEndian is the byte order of this machine, which tensors have.
var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// swapBytes reverses the bytes of every element.
func swapBytes(raw []byte, size int) {
	for i := 0; size > 1 && i+size <= len(raw); i += size {
		slices.Reverse(raw[i : i+size])
	}
}

// rowMajor turns elements whose first index runs fastest into elements whose last index does.
func rowMajor(raw []byte, shape []int64, size int) []byte {
	out := bytes.NewBuffer(make([]byte, 0, len(raw)))
	if len(raw) == 0 {
		return raw
	}
	index := make([]int64, len(shape))
	stride := make([]int64, len(shape))
	n := int64(size)
	for i, d := range shape {
		stride[i] = n
		n *= d
	}
	for at := int64(0); ; {
		out.Write(raw[at : at+int64(size)])
		axis := len(shape) - 1
		for ; axis >= 0; axis-- {
			index[axis]++
			at += stride[axis]
			if index[axis] < shape[axis] {
				break
			}
			at -= index[axis] * stride[axis]
			index[axis] = 0
		}
		if axis < 0 {
			return out.Bytes()
		}
	}
}
