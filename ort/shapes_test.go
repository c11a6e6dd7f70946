package ort

import (
	"fmt"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// An error names what was given; the caches of many layers take no more words than one.
func TestShapesOfInputs(t *testing.T) {
	in := map[string]*Tensor{}
	var ios []IO
	give := func(name string, dtype onnxpb.TensorProto_DataType, shape ...int64) {
		ios = append(ios, IO{Name: name})
		in[name] = &Tensor{DType: dtype, Shape: shape}
	}
	give("ids", onnxpb.TensorProto_INT64, 1, 5)
	give("mask", onnxpb.TensorProto_INT64, 1, 5)
	for i := range 40 {
		give(fmt.Sprintf("past.%d.key", i), onnxpb.TensorProto_FLOAT, 1, 4, 3, 8)
	}
	want := "ids int64[1,5], mask int64[1,5], past.0.key … past.39.key float[1,4,3,8]"
	if got := shapes(ios, in); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for i := range 10 {
		give(fmt.Sprintf("x%d", i), onnxpb.TensorProto_FLOAT, int64(i))
	}
	want += ", x0 float[0], x1 float[1], x2 float[2], x3 float[3], x4 float[4] and 5 more"
	if got := shapes(ios, in); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
