package data

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/internal/suggest"
	"onnx-dha/ort"
)

// kind tells element types apart that are not turned into each other.
type kind int

const (
	other kind = iota
	real
	integer
	boolean
)

func kindOf(t onnxpb.TensorProto_DataType) kind {
	switch t {
	case onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_DOUBLE, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_BFLOAT16:
		return real
	case onnxpb.TensorProto_INT8, onnxpb.TensorProto_INT16, onnxpb.TensorProto_INT32, onnxpb.TensorProto_INT64,
		onnxpb.TensorProto_UINT8, onnxpb.TensorProto_UINT16, onnxpb.TensorProto_UINT32, onnxpb.TensorProto_UINT64:
		return integer
	case onnxpb.TensorProto_BOOL:
		return boolean
	}
	return other
}

// elementSize is the size of an element in bytes, at least 1.
func elementSize(t onnxpb.TensorProto_DataType) int { return max(1, graph.ElementBits(t)/8) }

// wants says what the model takes, for messages.
func wants(o Options) string {
	if len(o.Inputs) == 0 {
		return "no model says what it takes"
	}
	var needed, optional []string
	for _, in := range o.Inputs {
		if slices.Contains(o.Optional, in.Name) {
			optional = append(optional, in.Name)
		} else {
			needed = append(needed, in.Name+" "+in.String())
		}
	}
	text := "the model takes " + strings.Join(needed, ", ")
	if n := len(optional) - shownOptional; n > 1 {
		optional = append(optional[:shownOptional], fmt.Sprintf("%d more", n))
	}
	if len(optional) > 0 {
		text += " (and, if they are there, " + strings.Join(optional, ", ") + ")"
	}
	return text
}

// shownOptional is the number of optional inputs that messages name: caches are many.
const shownOptional = 4

// checkNames compares the names of a source's tensors with the model's inputs.
func checkNames(names []string, o Options) error {
	if len(names) == 0 {
		return errors.New("it holds no tensors; " + wants(o))
	}
	known := make([]string, len(o.Inputs))
	for i, in := range o.Inputs {
		known[i] = in.Name
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%q is no input of the model%s; %s", name, suggest.DidYouMean(name, known), wants(o))
		}
	}
	for _, name := range known {
		if !slices.Contains(names, name) && !slices.Contains(o.Optional, name) {
			return fmt.Errorf("nothing is for input %q, only for %s; %s", name, strings.Join(names, ", "), wants(o))
		}
	}
	return nil
}

// tensorSet cuts arrays by input name into samples along their first axis. A sample has one row, or as many as the model's
// input is fixed to; an array with one axis more than the input holds a whole tensor for each sample; one without axes is
// the same for all.
func tensorSet(arrays map[string]*ort.Tensor, o Options) (*Set, error) {
	names := slices.Sorted(maps.Keys(arrays))
	if err := checkNames(names, o); err != nil {
		return nil, err
	}
	count, counted := int64(-1), ""
	parts := map[string]func(i int64) *ort.Tensor{}
	for _, in := range o.Inputs {
		t := arrays[in.Name]
		if t == nil {
			continue
		}
		t, err := toType(t, in.DType)
		if err != nil {
			return nil, fmt.Errorf("array %q: %w", in.Name, err)
		}
		if len(t.Shape) == 0 {
			parts[in.Name] = func(int64) *ort.Tensor { return t }
			continue
		}
		rows, shape := int64(1), slices.Clone(t.Shape)
		switch {
		case len(in.Shape) > 0 && len(shape) == len(in.Shape)+1:
			shape = shape[1:]
		case len(in.Shape) > 0 && in.Shape[0] > 0:
			rows = in.Shape[0]
			shape[0] = rows
		default:
			shape[0] = 1
		}
		if err := checkShape(shape, in); err != nil {
			return nil, fmt.Errorf("array %q of shape %v: %w", in.Name, t.Shape, err)
		}
		if t.Shape[0]%rows != 0 {
			return nil, fmt.Errorf("array %q has %d rows, but the model takes %d at a time; want a multiple", in.Name, t.Shape[0], rows)
		}
		n := t.Shape[0] / rows
		if count >= 0 && n != count {
			return nil, fmt.Errorf("array %q holds %d samples, array %q %d; want the same number along the first axis",
				counted, count, in.Name, n)
		}
		count, counted = n, in.Name
		size := int64(len(t.Raw))
		if n > 0 {
			size /= n
		}
		parts[in.Name] = func(i int64) *ort.Tensor {
			return &ort.Tensor{DType: t.DType, Shape: shape, Raw: t.Raw[i*size : (i+1)*size : (i+1)*size]}
		}
	}
	if count < 0 {
		count = 1 // nothing but scalars
	}
	samples := make([]Sample, count)
	for i := range samples {
		samples[i] = Sample{Source: fmt.Sprintf("row %d", i), Tensors: map[string]*ort.Tensor{}}
		for name, part := range parts {
			samples[i].Tensors[name] = part(int64(i))
		}
	}
	return splitSamples(samples, o)
}

// splitSamples makes a set of samples that were not cut from tokens.
func splitSamples(samples []Sample, o Options) (*Set, error) {
	need := 1
	if o.HeldOut > 0 {
		need = 2
	}
	if len(samples) < need {
		return nil, fmt.Errorf("it has %d samples; want at least %d (held-out share %v)", len(samples), need, o.HeldOut)
	}
	at := len(samples)
	if o.HeldOut > 0 {
		at = share(len(samples), o.HeldOut)
	}
	return &Set{train: pick(samples[:at], o.Samples), heldOut: pick(samples[at:], o.HeldOutSamples)}, nil
}

// checkShape compares the shape of a sample with what the model says of its input.
func checkShape(shape []int64, in ort.IO) error {
	if len(in.Shape) == 0 {
		return nil // the model does not say
	}
	fits := len(shape) == len(in.Shape)
	for i := 0; fits && i < len(shape); i++ {
		fits = in.Shape[i] < 0 || in.Shape[i] == shape[i]
	}
	if !fits {
		return fmt.Errorf("a sample has shape %v; the model takes %s %v", shape, in.Name, in)
	}
	return nil
}

// toType turns a tensor into one of the element type that the model takes, where no value changes its meaning: floats
// into other floats, integers into integers that hold them or into floats.
func toType(t *ort.Tensor, want onnxpb.TensorProto_DataType) (*ort.Tensor, error) {
	if t.DType == want || want == onnxpb.TensorProto_UNDEFINED {
		return t, nil
	}
	have, to := kindOf(t.DType), kindOf(want)
	if have == other || to == other || to == boolean || have == real && to != real {
		return nil, fmt.Errorf("its elements are %s; the model takes %s", typeName(t.DType), typeName(want))
	}
	if to == integer {
		return toInteger(t, want)
	}
	x, err := t.Float64s()
	if err != nil {
		return nil, err
	}
	return ort.FromFloat64s(want, x, t.Shape...)
}

// bounds of the integer types, those of 64 bits as far as an int64 goes.
var bounds = map[onnxpb.TensorProto_DataType][2]int64{
	onnxpb.TensorProto_INT8: {math.MinInt8, math.MaxInt8}, onnxpb.TensorProto_UINT8: {0, math.MaxUint8},
	onnxpb.TensorProto_INT16: {math.MinInt16, math.MaxInt16}, onnxpb.TensorProto_UINT16: {0, math.MaxUint16},
	onnxpb.TensorProto_INT32: {math.MinInt32, math.MaxInt32}, onnxpb.TensorProto_UINT32: {0, math.MaxUint32},
	onnxpb.TensorProto_INT64: {math.MinInt64, math.MaxInt64}, onnxpb.TensorProto_UINT64: {0, math.MaxInt64},
}

func toInteger(t *ort.Tensor, want onnxpb.TensorProto_DataType) (*ort.Tensor, error) {
	x, err := t.Int64s()
	if err != nil {
		return nil, err
	}
	limit := bounds[want]
	if t.DType == onnxpb.TensorProto_UINT64 {
		limit[0] = max(limit[0], 0) // a negative number here was too large for an int64
	}
	for i, v := range x {
		if v < limit[0] || v > limit[1] {
			return nil, fmt.Errorf("element %d is %d, out of range of the model's %s", i, v, typeName(want))
		}
	}
	if want == onnxpb.TensorProto_INT64 {
		return ort.FromInt64(x, t.Shape...), nil
	}
	if want == onnxpb.TensorProto_UINT64 {
		u := make([]uint64, len(x))
		for i, v := range x {
			u[i] = uint64(v)
		}
		return ort.From(u, t.Shape...), nil
	}
	f := make([]float64, len(x))
	for i, v := range x {
		f[i] = float64(v) // 32 bits are exact
	}
	return ort.FromFloat64s(want, f, t.Shape...)
}

func typeName(t onnxpb.TensorProto_DataType) string { return strings.ToLower(t.String()) }
