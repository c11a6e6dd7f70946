package graph

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// at is a graph input of the tests: a type and dimensions as text, "batch 4 seq + 1" being spelled "batch,4,seq + 1".
type at struct {
	elem elemType
	dims string
}

func floats(dims string) at { return at{floatType, dims} }

// shapeOfText reads dimensions; "scalar" has none.
func shapeOfText(s string) []Dim {
	if s == "scalar" {
		return nil
	}
	var out []Dim
	for d := range strings.SplitSeq(s, ",") {
		out = append(out, parse(d))
	}
	return out
}

// single builds a model with one node. Operands are input descriptions (at), constants ([]int64, []float32, int64), or
// nil for what is omitted.
func single(opset int64, op string, operands []any, outputs int, attrs ...*onnxpb.AttributeProto) *Node {
	m := New(9, opset)
	var in []*Value
	for i, x := range operands {
		name := fmt.Sprintf("x%d", i)
		switch x := x.(type) {
		case nil:
			in = append(in, nil)
		case at:
			var dims []any
			for _, d := range shapeOfText(x.dims) {
				if n, ok := d.Const(); ok {
					dims = append(dims, n)
				} else {
					dims = append(dims, d.String())
				}
			}
			in = append(in, m.Graph.AddInput(name, TensorType(x.elem, dims...)))
		case []int64:
			in = append(in, m.Graph.AddInit(NewTensor(name, []int64{int64(len(x))}, x)))
		case int64:
			in = append(in, m.Graph.AddInit(NewTensor(name, nil, []int64{x})))
		case bool:
			in = append(in, m.Graph.AddInit(NewTensor(name, nil, []bool{x})))
		case []float32:
			in = append(in, m.Graph.AddInit(NewTensor(name, []int64{int64(len(x))}, x)))
		default:
			panic(fmt.Sprintf("operand %T", x))
		}
	}
	var out []string
	for i := range outputs {
		out = append(out, fmt.Sprintf("y%d", i))
	}
	domain, name, ok := strings.Cut(op, ":")
	if !ok {
		domain, name = "", op
	}
	return m.Graph.AddNode(name, domain, "", in, out, attrs...)
}

// matches compares a shape with its text; "?" stands for any dimension without a name, "unranked" for no shape.
func matches(shape []Dim, ranked bool, want string) bool {
	if !ranked || want == "unranked" {
		return !ranked && want == "unranked"
	}
	var w []string
	if want != "scalar" {
		w = strings.Split(want, ",")
	}
	return slices.EqualFunc(shape, w, func(d Dim, s string) bool {
		return s == "?" && d.Unknown() || s != "?" && d.Equal(parse(s))
	})
}

// The shapes are those of the operators' definitions in the ONNX and ONNX Runtime documentation.
func TestInferShapes(t *testing.T) {
	ints := IntsAttr
	axis := func(n int64) *onnxpb.AttributeProto { return IntAttr("axis", n) }
	for _, c := range []struct {
		op    string
		opset int64
		in    []any
		attrs []*onnxpb.AttributeProto
		want  []string
	}{
		{"MatMul", 13, []any{floats("batch,4,seq,16"), floats("batch,4,16,past + seq")}, nil, []string{"batch,4,seq,past + seq"}},
		{"MatMul", 13, []any{floats("batch,seq,64"), floats("64,192")}, nil, []string{"batch,seq,192"}},
		{"MatMul", 13, []any{floats("1,4,seq,16"), floats("batch,1,16,seq")}, nil, []string{"batch,4,seq,seq"}},
		{"MatMul", 13, []any{floats("64"), floats("64,192")}, nil, []string{"192"}},
		{"MatMul", 13, []any{floats("seq,64"), floats("64")}, nil, []string{"seq"}},
		{"MatMul", 13, []any{floats("64"), floats("64")}, nil, []string{"scalar"}},
		{"MatMul", 13, []any{floats("scalar"), floats("64")}, nil, []string{"unranked"}},
		{"Gemm", 13, []any{floats("n,64"), floats("192,64"), floats("192")}, []*onnxpb.AttributeProto{IntAttr("transB", 1)}, []string{"n,192"}},
		{"Gemm", 13, []any{floats("64,n"), floats("64,192")}, []*onnxpb.AttributeProto{IntAttr("transA", 1)}, []string{"n,192"}},
		{"com.microsoft:FusedMatMul", 13, []any{floats("batch,4,seq,16"), floats("batch,4,total,16")}, []*onnxpb.AttributeProto{IntAttr("transB", 1)}, []string{"batch,4,seq,total"}},
		{"com.microsoft:FusedMatMul", 13, []any{floats("seq,batch,4,16"), floats("batch,4,16,total")}, []*onnxpb.AttributeProto{IntAttr("transBatchA", 1)}, []string{"batch,4,seq,total"}},
		{"Einsum", 12, []any{floats("b,i,64"), floats("64,4,16")}, []*onnxpb.AttributeProto{StringAttr("equation", "bid, dnh -> bnih")}, []string{"b,4,i,16"}},
		{"Einsum", 12, []any{floats("b,4,i,16"), floats("b,4,j,16")}, []*onnxpb.AttributeProto{StringAttr("equation", "...id,...jd->...ij")}, []string{"b,4,i,j"}},
		{"Einsum", 12, []any{floats("i,5"), floats("5,j")}, []*onnxpb.AttributeProto{StringAttr("equation", "ab,bc")}, []string{"i,j"}},
		{"Einsum", 12, []any{floats("i,5"), floats("5,j")}, []*onnxpb.AttributeProto{StringAttr("equation", "ab,bc->az")}, []string{"unranked"}},
		{"Conv", 11, []any{floats("batch,3,224,224"), floats("64,3,16,16"), floats("64")}, []*onnxpb.AttributeProto{ints("strides", 16, 16)}, []string{"batch,64,14,14"}},
		{"Conv", 11, []any{floats("batch,80,frames"), floats("64,80,3")}, []*onnxpb.AttributeProto{ints("pads", 1, 1)}, []string{"batch,64,frames"}},
		{"Conv", 11, []any{floats("batch,80,2*frames"), floats("64,80,2")}, []*onnxpb.AttributeProto{ints("strides", 2)}, []string{"batch,64,frames"}},
		{"Conv", 11, []any{floats("batch,80,frames"), floats("64,80,3")}, []*onnxpb.AttributeProto{ints("strides", 2), ints("pads", 1, 1)}, []string{"batch,64,?"}},
		{"Conv", 11, []any{floats("1,3,7"), floats("5,3,3")}, []*onnxpb.AttributeProto{ints("strides", 2), ints("dilations", 2)}, []string{"1,5,2"}},
		{"MaxPool", 12, []any{floats("1,8,7,7")}, []*onnxpb.AttributeProto{ints("kernel_shape", 2, 2), ints("strides", 2, 2)}, []string{"1,8,3,3", "1,8,3,3"}},
		{"MaxPool", 12, []any{floats("1,8,7,7")}, []*onnxpb.AttributeProto{ints("kernel_shape", 2, 2), ints("strides", 2, 2), IntAttr("ceil_mode", 1)}, []string{"1,8,4,4"}},

		{"Reshape", 14, []any{floats("batch,seq,768"), []int64{0, 0, 12, 64}}, nil, []string{"batch,seq,12,64"}},
		{"Reshape", 14, []any{floats("batch,seq,768"), []int64{0, -1, 64}}, nil, []string{"batch,12*seq,64"}},
		{"Reshape", 14, []any{floats("batch,seq,768"), []int64{-1, 768}}, nil, []string{"batch*seq,768"}},
		{"Reshape", 14, []any{floats("batch*seq,768"), []int64{-1, 5, 768}}, nil, []string{"?,5,768"}},
		{"Reshape", 14, []any{floats("0,4"), []int64{0, 4}}, []*onnxpb.AttributeProto{IntAttr("allowzero", 1)}, []string{"0,4"}},
		{"Reshape", 14, []any{floats("batch,4"), at{int64Type, "3"}}, nil, []string{"?,?,?"}},
		{"Reshape", 14, []any{floats("batch,4"), at{int64Type, "n"}}, nil, []string{"unranked"}},
		{"Reshape", 4, []any{floats("batch,4")}, []*onnxpb.AttributeProto{ints("shape", -1, 2, 2)}, []string{"batch,2,2"}},
		{"Flatten", 13, []any{floats("batch,seq,4,16")}, []*onnxpb.AttributeProto{axis(-2)}, []string{"batch*seq,64"}},
		{"Flatten", 13, []any{floats("batch,4")}, []*onnxpb.AttributeProto{axis(0)}, []string{"1,4*batch"}},
		{"Transpose", 13, []any{floats("batch,seq,4,16")}, []*onnxpb.AttributeProto{ints("perm", 0, 2, 1, 3)}, []string{"batch,4,seq,16"}},
		{"Transpose", 13, []any{floats("a,b,c")}, nil, []string{"c,b,a"}},
		{"Transpose", 13, []any{floats("a,b,c")}, []*onnxpb.AttributeProto{ints("perm", 0, 1, 7)}, []string{"unranked"}},
		{"Split", 11, []any{floats("batch,seq,192")}, []*onnxpb.AttributeProto{axis(2), ints("split", 64, 64, 64)}, []string{"batch,seq,64", "batch,seq,64", "batch,seq,64"}},
		{"Split", 13, []any{floats("batch,seq,96"), []int64{64, 16, 16}}, []*onnxpb.AttributeProto{axis(-1)}, []string{"batch,seq,64", "batch,seq,16", "batch,seq,16"}},
		{"Split", 13, []any{floats("batch,4*heads")}, []*onnxpb.AttributeProto{axis(1)}, []string{"batch,2*heads", "batch,2*heads"}},
		{"Split", 18, []any{floats("7")}, []*onnxpb.AttributeProto{axis(0), IntAttr("num_outputs", 3)}, []string{"3", "3", "1"}},
		{"Slice", 9, []any{floats("batch,seq,192")}, []*onnxpb.AttributeProto{ints("axes", 2), ints("starts", 64), ints("ends", 128)}, []string{"batch,seq,64"}},
		{"Slice", 13, []any{floats("batch,seq,192"), []int64{64}, []int64{math.MaxInt64}, []int64{-1}}, nil, []string{"batch,seq,128"}},
		{"Slice", 13, []any{floats("batch,seq"), []int64{-1}, []int64{math.MaxInt64}, []int64{1}}, nil, []string{"batch,1"}},
		{"Slice", 13, []any{floats("batch,seq"), []int64{1}, []int64{math.MaxInt32}, []int64{1}}, nil, []string{"batch,seq - 1"}},
		{"Slice", 13, []any{floats("batch,seq"), []int64{0}, []int64{-1}, []int64{1}}, nil, []string{"batch,seq - 1"}},
		{"Slice", 13, []any{floats("batch,past"), []int64{-1024}, []int64{math.MaxInt64}, []int64{1}}, nil, []string{"batch,?"}},
		{"Slice", 13, []any{floats("batch,2*pairs"), []int64{0}, []int64{math.MaxInt64}, []int64{1}, []int64{2}}, nil, []string{"batch,pairs"}},
		{"Slice", 13, []any{floats("batch,9"), []int64{-1}, []int64{math.MinInt64}, []int64{1}, []int64{-2}}, nil, []string{"batch,5"}},
		{"Slice", 13, []any{floats("batch,seq"), []int64{-1}, []int64{math.MinInt64}, []int64{1}, []int64{-1}}, nil, []string{"batch,seq"}},
		{"Slice", 13, []any{floats("batch,seq"), at{int64Type, "1"}, []int64{5}, []int64{1}}, nil, []string{"batch,?"}},
		{"Slice", 13, []any{floats("batch,seq"), []int64{0}, []int64{5}, []int64{2}}, nil, []string{"unranked"}},
		{"Gather", 13, []any{floats("vocab,64"), at{int64Type, "batch,seq"}}, nil, []string{"batch,seq,64"}},
		{"Gather", 13, []any{floats("batch,seq,3,64"), int64(1)}, []*onnxpb.AttributeProto{axis(2)}, []string{"batch,seq,64"}},
		{"GatherElements", 13, []any{floats("a,b"), at{int64Type, "a,3"}}, []*onnxpb.AttributeProto{axis(1)}, []string{"a,3"}},
		{"GatherND", 13, []any{floats("a,b,c"), at{int64Type, "n,2"}}, nil, []string{"n,c"}},
		{"GatherND", 13, []any{floats("a,b,c"), at{int64Type, "a,n,1"}}, []*onnxpb.AttributeProto{IntAttr("batch_dims", 1)}, []string{"a,n,c"}},
		{"Concat", 13, []any{floats("batch,4,past,16"), floats("batch,4,seq,16")}, []*onnxpb.AttributeProto{axis(-2)}, []string{"batch,4,past + seq,16"}},
		{"Unsqueeze", 11, []any{floats("a,b")}, []*onnxpb.AttributeProto{ints("axes", 0, 3)}, []string{"1,a,b,1"}},
		{"Unsqueeze", 13, []any{floats("a,b"), []int64{-1}}, nil, []string{"a,b,1"}},
		{"Unsqueeze", 13, []any{floats("a,b"), []int64{0, 0}}, nil, []string{"unranked"}},
		{"Squeeze", 13, []any{floats("a,1,b"), []int64{1}}, nil, []string{"a,b"}},
		{"Squeeze", 11, []any{floats("1,3,1")}, nil, []string{"3"}},
		{"Squeeze", 11, []any{floats("a,3,1")}, nil, []string{"unranked"}},
		{"Expand", 13, []any{floats("batch,1,1"), []int64{4, 1, 5, 6}}, nil, []string{"4,batch,5,6"}},
		{"Tile", 13, []any{floats("batch,3"), []int64{2, 4}}, nil, []string{"2*batch,12"}},
		{"Pad", 13, []any{floats("batch,seq"), []int64{0, 1, 0, 2}}, nil, []string{"batch,seq + 3"}},
		{"Pad", 18, []any{floats("batch,seq"), []int64{1, 1}, nil, []int64{-1}}, nil, []string{"batch,seq + 2"}},
		{"Resize", 13, []any{floats("a,b,c,d")}, nil, []string{"?,?,?,?"}},

		{"Add", 13, []any{floats("batch,1,seq,total"), floats("4,1,1")}, nil, []string{"batch,4,seq,total"}},
		{"Add", 13, []any{floats("seq,seq"), floats("seq,past + seq")}, nil, []string{"seq,past + seq"}},
		{"Mul", 13, []any{floats("batch,seq"), floats("batch,8")}, nil, []string{"batch,8"}},
		{"Where", 16, []any{at{boolType, "1,1,seq,total"}, floats("batch,4,seq,total"), floats("scalar")}, nil, []string{"batch,4,seq,total"}},
		{"Dropout", 13, []any{floats("a,b")}, nil, []string{"a,b", "a,b"}},
		{"Softmax", 13, []any{floats("a,b")}, nil, []string{"a,b"}},
		{"ReduceMean", 13, []any{floats("a,b,64")}, []*onnxpb.AttributeProto{ints("axes", -1)}, []string{"a,b,1"}},
		{"ReduceSum", 13, []any{floats("a,b,64"), []int64{1}}, []*onnxpb.AttributeProto{IntAttr("keepdims", 0)}, []string{"a,64"}},
		{"ReduceSum", 13, []any{floats("a,b")}, nil, []string{"1,1"}},
		{"ReduceSum", 13, []any{floats("a,b")}, []*onnxpb.AttributeProto{IntAttr("noop_with_empty_axes", 1)}, []string{"a,b"}},
		{"ReduceMax", 13, []any{floats("a,b")}, []*onnxpb.AttributeProto{ints("axes", 5)}, []string{"?,?"}},
		{"ArgMax", 13, []any{floats("batch,seq,vocab")}, []*onnxpb.AttributeProto{axis(-1), IntAttr("keepdims", 0)}, []string{"batch,seq"}},
		{"TopK", 11, []any{floats("batch,vocab"), []int64{5}}, nil, []string{"batch,5", "batch,5"}},
		{"LayerNormalization", 17, []any{floats("a,b,64"), floats("64")}, nil, []string{"a,b,64", "a,b,1", "a,b,1"}},
		{"NonZero", 13, []any{floats("a,b")}, nil, []string{"2,?"}},
		{"OneHot", 11, []any{at{int64Type, "a,b"}, int64(10), floats("2")}, nil, []string{"a,b,10"}},
		{"Range", 11, []any{int64(2), int64(9), int64(3)}, nil, []string{"3"}},
		{"Range", 11, []any{int64(9), int64(2), int64(-3)}, nil, []string{"3"}},
		{"Range", 11, []any{at{int64Type, "scalar"}, int64(9), int64(1)}, nil, []string{"?"}},
		{"ConstantOfShape", 9, []any{[]int64{2, 3}}, nil, []string{"2,3"}},
		{"ConstantOfShape", 9, []any{[]int64{-2, 3}}, nil, []string{"?,3"}},
		{"ScatterND", 13, []any{floats("a,b"), at{int64Type, "n,2"}, floats("n")}, nil, []string{"a,b"}},
		{"Shape", 15, []any{floats("a,b,c")}, []*onnxpb.AttributeProto{IntAttr("start", 1)}, []string{"2"}},
		{"QLinearMatMul", 10, []any{at{uint8Type, "a,8"}, floats("scalar"), at{uint8Type, "scalar"}, at{uint8Type, "8,b"}}, nil, []string{"a,b"}},
		{"DynamicQuantizeLinear", 11, []any{floats("a,b")}, nil, []string{"a,b", "scalar", "scalar"}},

		{"Attention", 23, []any{floats("b,4,s,16"), floats("b,2,l,16"), floats("b,2,l,8"), nil, floats("b,2,p,16"), floats("b,2,p,8")}, nil,
			[]string{"b,4,s,8", "b,2,p + l,16", "b,2,p + l,8", "b,4,s,p + l"}},
		{"Attention", 23, []any{floats("b,s,64"), floats("b,l,32"), floats("b,l,16")}, []*onnxpb.AttributeProto{IntAttr("q_num_heads", 4), IntAttr("kv_num_heads", 2)},
			[]string{"b,s,32", "b,2,l,16", "b,2,l,8", "b,4,s,l"}},
		{"com.microsoft:Attention", 17, []any{floats("b,s,64"), floats("64,192"), floats("192"), nil, floats("2,b,4,p,16")}, []*onnxpb.AttributeProto{IntAttr("num_heads", 4)},
			[]string{"b,s,64", "2,b,4,p + s,16"}},
		{"com.microsoft:MultiHeadAttention", 17, []any{floats("b,s,64"), floats("b,l,64"), floats("b,l,32"), nil, nil, nil, floats("b,4,p,16"), floats("b,4,p,8")}, []*onnxpb.AttributeProto{IntAttr("num_heads", 4)},
			[]string{"b,s,32", "b,4,p + l,16", "b,4,p + l,8"}},
		{"com.microsoft:MultiHeadAttention", 17, []any{floats("b,s,4,3,16")}, []*onnxpb.AttributeProto{IntAttr("num_heads", 4)}, []string{"b,s,64"}},
		{"com.microsoft:MultiHeadAttention", 17, []any{floats("b,s,64"), floats("b,4,l,16"), floats("b,4,l,16")}, []*onnxpb.AttributeProto{IntAttr("num_heads", 4)}, []string{"b,s,64"}},
		{"com.microsoft:GroupQueryAttention", 17, []any{floats("b,s,64"), floats("b,s,32"), floats("b,s,32"), floats("b,2,p,16"), floats("b,2,p,16")},
			[]*onnxpb.AttributeProto{IntAttr("num_heads", 4), IntAttr("kv_num_heads", 2)}, []string{"b,s,64", "b,2,?,16", "b,2,?,16"}},
		{"com.microsoft:GroupQueryAttention", 17, []any{floats("b,s,128"), nil, nil, floats("b,2,p,16"), floats("b,2,p,16")},
			[]*onnxpb.AttributeProto{IntAttr("num_heads", 4), IntAttr("kv_num_heads", 2)}, []string{"b,s,64", "b,2,?,16", "b,2,?,16"}},
		{"com.microsoft:RotaryEmbedding", 17, []any{floats("b,s,64")}, nil, []string{"b,s,64"}},
		{"com.microsoft:MatMulNBits", 17, []any{floats("b,s,64")}, []*onnxpb.AttributeProto{IntAttr("N", 192), IntAttr("K", 64)}, []string{"b,s,192"}},
		{"com.microsoft:SkipLayerNormalization", 17, []any{floats("b,s,64"), floats("b,s,64"), floats("64")}, nil, []string{"b,s,64", "b,s,1", "b,s,1", "b,s,64"}},
		{"com.microsoft:EmbedLayerNormalization", 17, []any{at{int32Type, "b,s"}, nil, floats("99,64")}, nil, []string{"b,s,64", "b"}},
		{"Mystery", 17, []any{floats("a,b")}, nil, []string{"unranked"}},
		{"org.example:MatMul", 17, []any{floats("a,b"), floats("b,c")}, nil, []string{"unranked"}},
	} {
		n := single(c.opset, c.op, c.in, len(c.want), c.attrs...)
		f := Infer(n.Graph)
		for i, want := range c.want {
			if s, ok := f.Shape(n.Out[i]); !matches(s, ok, want) {
				t.Errorf("%s %v %v, output %d: %v (known: %t), want %s", c.op, c.in, c.attrs, i, s, ok, want)
			}
		}
	}
}

func TestInferElementTypes(t *testing.T) {
	const half = onnxpb.TensorProto_FLOAT16
	for _, c := range []struct {
		op    string
		in    []any
		attrs []*onnxpb.AttributeProto
		want  []elemType
	}{
		{"Cast", []any{floats("a")}, []*onnxpb.AttributeProto{IntAttr("to", int64(half))}, []elemType{half}},
		{"CastLike", []any{floats("a"), at{half, "b"}}, nil, []elemType{half}},
		{"Shape", []any{floats("a")}, nil, []elemType{int64Type}},
		{"Less", []any{floats("a"), floats("a")}, nil, []elemType{boolType}},
		{"Where", []any{at{boolType, "a"}, at{half, "a"}, at{half, "a"}}, nil, []elemType{half}},
		{"Pow", []any{floats("a"), int64(2)}, nil, []elemType{floatType}},
		{"TopK", []any{at{half, "a"}, []int64{1}}, nil, []elemType{half, int64Type}},
		{"MatMulInteger", []any{at{uint8Type, "a,b"}, at{uint8Type, "b,c"}}, nil, []elemType{int32Type}},
		{"QuantizeLinear", []any{floats("a"), floats("scalar")}, nil, []elemType{uint8Type}},
		{"QuantizeLinear", []any{floats("a"), floats("scalar"), at{onnxpb.TensorProto_INT8, "scalar"}}, nil, []elemType{onnxpb.TensorProto_INT8}},
		{"DequantizeLinear", []any{at{uint8Type, "a"}, at{half, "scalar"}}, nil, []elemType{half}},
		{"DynamicQuantizeLinear", []any{floats("a")}, nil, []elemType{uint8Type, floatType, uint8Type}},
		{"ConstantOfShape", []any{[]int64{1}}, nil, []elemType{floatType}},
		{"Mystery", []any{floats("a")}, nil, []elemType{onnxpb.TensorProto_UNDEFINED}},
	} {
		n := single(17, c.op, c.in, len(c.want), c.attrs...)
		f := Infer(n.Graph)
		for i, want := range c.want {
			if e := f.Elem(n.Out[i]); e != want {
				t.Errorf("%s %v, output %d: %v, want %v", c.op, c.in, i, e, want)
			}
		}
	}
}
