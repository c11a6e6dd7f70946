package ort

import "onnx-dha/graph/onnxpb"

// dtypeRow relates an element type of the ONNX format to the runtime's.
type dtypeRow struct {
	runtime int // value of the runtime's element type enumeration
	bits    int // bits of one element; 0 when it has no fixed size
}

// dtypes lists the types that the runtime computes with. The enumerations agree except for the last types: the runtime
// has no float8e8m0.
var dtypes = map[onnxpb.TensorProto_DataType]dtypeRow{
	onnxpb.TensorProto_FLOAT:          {1, 32},
	onnxpb.TensorProto_UINT8:          {2, 8},
	onnxpb.TensorProto_INT8:           {3, 8},
	onnxpb.TensorProto_UINT16:         {4, 16},
	onnxpb.TensorProto_INT16:          {5, 16},
	onnxpb.TensorProto_INT32:          {6, 32},
	onnxpb.TensorProto_INT64:          {7, 64},
	onnxpb.TensorProto_STRING:         {8, 0},
	onnxpb.TensorProto_BOOL:           {9, 8},
	onnxpb.TensorProto_FLOAT16:        {10, 16},
	onnxpb.TensorProto_DOUBLE:         {11, 64},
	onnxpb.TensorProto_UINT32:         {12, 32},
	onnxpb.TensorProto_UINT64:         {13, 64},
	onnxpb.TensorProto_BFLOAT16:       {16, 16},
	onnxpb.TensorProto_FLOAT8E4M3FN:   {17, 8},
	onnxpb.TensorProto_FLOAT8E4M3FNUZ: {18, 8},
	onnxpb.TensorProto_FLOAT8E5M2:     {19, 8},
	onnxpb.TensorProto_FLOAT8E5M2FNUZ: {20, 8},
	onnxpb.TensorProto_UINT4:          {21, 4},
	onnxpb.TensorProto_INT4:           {22, 4},
	onnxpb.TensorProto_FLOAT4E2M1:     {23, 4},
	onnxpb.TensorProto_UINT2:          {24, 2},
	onnxpb.TensorProto_INT2:           {25, 2},
}

func bitsOf(t onnxpb.TensorProto_DataType) int { return dtypes[t].bits }

func runtimeType(t onnxpb.TensorProto_DataType) int { return dtypes[t].runtime }

func dtypeOf(runtime int) onnxpb.TensorProto_DataType {
	for t, r := range dtypes {
		if r.runtime == runtime {
			return t
		}
	}
	return onnxpb.TensorProto_UNDEFINED
}
