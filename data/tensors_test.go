package data

import (
	"archive/zip"
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

const (
	float   = onnxpb.TensorProto_FLOAT
	float16 = onnxpb.TensorProto_FLOAT16
	int64s  = onnxpb.TensorProto_INT64
	int32s  = onnxpb.TensorProto_INT32
	bools   = onnxpb.TensorProto_BOOL
)

func input(name string, dtype onnxpb.TensorProto_DataType, shape ...int64) ort.IO {
	return ort.IO{Name: name, DType: dtype, Shape: shape, Symbols: make([]string, len(shape))}
}

// values are the elements of a tensor, or nil when it is not as described.
func values(t *testing.T, x *ort.Tensor, describe string) []float64 {
	t.Helper()
	if x.String() != describe {
		t.Errorf("tensor is %v, want %s", x, describe)
		return nil
	}
	v, err := x.Float64s()
	if err != nil {
		t.Error(err)
	}
	return v
}

// The files are NumPy's own: inputs.npz has input_ids = arange(12) as int32 [4,3], pixels = arange(24)/4 as big-endian double
// [4,2,3] in Fortran's order, mask = [[1,1,0]]·4 as bool, scale = 0.5 as a scalar; tokens.npy is arange(40)·7 mod 50 as
// uint16; half.npy is [[1.5,-2,65504],[0.1,inf,0]] as float16.
func TestArrays(t *testing.T) {
	npz := filepath.Join("testdata", "inputs.npz")
	model := []ort.IO{input("input_ids", int64s, -1, -1), input("pixels", float, -1, 2, 3), input("mask", bools, -1, -1),
		input("scale", float), input("past", float, -1, 2, -1, 4)}
	s, err := Open(npz, Options{Inputs: model, Optional: []string{"past"}, HeldOut: 0.25})
	if err != nil {
		t.Fatal(err)
	}
	if s.Tokens() || len(s.Train()) != 3 || len(s.HeldOut()) != 1 {
		t.Fatalf("tokens %v, %d and %d samples, want tensors, 3 and 1", s.Tokens(), len(s.Train()), len(s.HeldOut()))
	}
	for i, sample := range slices.Concat(s.Train(), s.HeldOut()) {
		if len(sample.Tensors) != 4 || sample.Source != fmt.Sprint("row ", i) || sample.Expected != nil {
			t.Errorf("sample %d: %+v", i, sample)
		}
		x := float64(i)
		if got := values(t, sample.Tensors["input_ids"], "int64[1,3]"); !slices.Equal(got, []float64{3 * x, 3*x + 1, 3*x + 2}) {
			t.Errorf("sample %d: ids %v", i, got)
		}
		want := make([]float64, 6)
		for j := range want {
			want[j] = (6*x + float64(j)) / 4
		}
		if got := values(t, sample.Tensors["pixels"], "float[1,2,3]"); !slices.Equal(got, want) {
			t.Errorf("sample %d: pixels %v, want %v", i, got, want)
		}
		if got := values(t, sample.Tensors["mask"], "bool[1,3]"); !slices.Equal(got, []float64{1, 1, 0}) {
			t.Errorf("sample %d: mask %v", i, got)
		}
		if got := values(t, sample.Tensors["scale"], "float[]"); !slices.Equal(got, []float64{0.5}) {
			t.Errorf("sample %d: scale %v", i, got)
		}
	}

	// Two rows at a time where the model is fixed to two; a leading axis of samples where the model's input has one axis less.
	model[0].Shape, model[1].Shape, model[2].Shape = []int64{2, 3}, []int64{2, 2, 3}, []int64{2, -1}
	if s, err = Open(npz, Options{Inputs: model[:4]}); err != nil {
		t.Fatal(err)
	}
	if got := values(t, s.Train()[1].Tensors["input_ids"], "int64[2,3]"); len(s.Train()) != 2 || !slices.Equal(got, []float64{6, 7, 8, 9, 10, 11}) {
		t.Errorf("%d samples, the second %v", len(s.Train()), got)
	}
	model[0].Shape, model[1].Shape, model[2].Shape = []int64{3}, []int64{-1, 3}, []int64{-1}
	if s, err = Open(npz, Options{Inputs: model[:4], Samples: 2}); err != nil {
		t.Fatal(err)
	}
	if got := values(t, s.Train()[1].Tensors["pixels"], "float[2,3]"); len(s.Train()) != 2 || !slices.Equal(got, []float64{3, 3.25, 3.5, 3.75, 4, 4.25}) {
		t.Errorf("%d samples, the second %v", len(s.Train()), got)
	}
}

func TestSingleArray(t *testing.T) {
	s, err := Open(filepath.Join("testdata", "tokens.npy"), Options{SeqLen: 16})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Tokens() || len(s.Train()) != 2 || !slices.Equal(s.Train()[1].Tokens[:3], []int64{16 * 7 % 50, 17 * 7 % 50, 18 * 7 % 50}) {
		t.Errorf("samples %v", tokensOf(s.Train()))
	}
	if s, err = Open(filepath.Join("testdata", "half.npy"), Options{Inputs: []ort.IO{input("x", float, -1, 3)}}); err != nil {
		t.Fatal(err)
	}
	got := values(t, s.Train()[0].Tensors["x"], "float[1,3]")
	if len(s.Train()) != 2 || !slices.Equal(got, []float64{1.5, -2, 65504}) {
		t.Errorf("%d samples, the first %v", len(s.Train()), got)
	}
	got = values(t, s.Train()[1].Tensors["x"], "float[1,3]")
	if len(got) != 3 || math.Abs(got[0]-0.1) > 1e-4 || !math.IsInf(got[1], 1) {
		t.Errorf("the second %v", got)
	}
	// An archive with nothing but ids is like a list of them.
	dir := write(t, map[string]string{"ids.npz": archive(t, map[string]string{"input_ids": array("<i8", "False", "2, 2", 5, 0, 0, 0, 0, 0, 0, 0,
		6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0)})})
	if s, err = Open(filepath.Join(dir, "ids.npz"), Options{}); err != nil {
		t.Fatal(err)
	}
	if got := tokensOf(s.Train()); len(got) != 2 || !slices.Equal(got[0], []int64{5, 6}) || !slices.Equal(got[1], []int64{7, 8}) {
		t.Errorf("samples %v", got)
	}
}

// array writes a .npy file, version 1.
func array(descr, fortran, shape string, raw ...byte) string {
	h := fmt.Sprintf("{'descr': '%s', 'fortran_order': %s, 'shape': (%s), }\n", descr, fortran, shape)
	return "\x93NUMPY\x01\x00" + string([]byte{byte(len(h)), byte(len(h) >> 8)}) + h + string(raw)
}

// archive writes a .npz file.
func archive(t testing.TB, arrays map[string]string) string {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, text := range arrays {
		w, err := z.Create(name + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestArrayErrors(t *testing.T) {
	ids, two := array("|i1", "False", "2, 3", 1, 2, 3, 4, 5, 6), array("<f2", "False", "2,", 0, 0, 0, 0)
	dir := write(t, map[string]string{
		"text.npz": "hello", "text.npy": "hello", "none.npz": archive(t, nil),
		"ids.npz":     archive(t, map[string]string{"input_id": ids}),
		"x.npz":       archive(t, map[string]string{"x": two}),
		"both.npz":    archive(t, map[string]string{"input_ids": ids, "x": array("<f2", "False", "3,", 0, 0, 0, 0, 0, 0)}),
		"good.npz":    archive(t, map[string]string{"input_ids": ids, "x": two}),
		"floats.npz":  archive(t, map[string]string{"input_ids": array("<f2", "False", "1, 1", 0, 0), "x": two}),
		"wide.npz":    archive(t, map[string]string{"input_ids": array("<i2", "False", "2, 1", 1, 0, 44, 1), "x": two}),
		"empty.npz":   archive(t, map[string]string{"input_ids": array("<i2", "False", "0, 3"), "x": array("<f2", "False", "0,")}),
		"complex.npy": array("<c8", "False", "1,", 0, 0, 0, 0, 0, 0, 0, 0), "x.npy": two,
		"cut.npy": array("<f4", "False", "3,", 0, 0), "shape.npy": array("<f4", "False", "-3,", 0), "big.npy": array("<f4", "False", "4000000000, 4000000000, 4000000000"),
		"structured.npy": "\x93NUMPY\x01\x00\x30\x00{'descr': [('a', '<f4')], 'fortran_order': True}\n  ",
		"short.npy":      "\x93NUMPY\x01\x00\xff\x00{'descr'", "long.npy": "\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'", "negative.npy": array("|i1", "False", "2,", 1, 255),
	})
	model := []ort.IO{input("input_ids", int64s, -1, -1), input("x", float, -1), input("past", float, -1, -1)}
	o := Options{Inputs: model, Optional: []string{"past"}}
	takes := "the model takes input_ids int64[?,?], x float[?] (and, if they are there, past)"
	one := func(dtype onnxpb.TensorProto_DataType, shape ...int64) Options {
		return Options{Inputs: []ort.IO{input("input_ids", dtype, shape...), model[1]}}
	}
	for _, c := range []struct {
		file string
		o    Options
		want []string
	}{
		{"text.npz", o, []string{"zip", ".npz format"}},
		{"none.npz", o, []string{"it holds no tensors", takes}},
		{"ids.npz", o, []string{`"input_id" is no input of the model`, `did you mean "input_ids"?`, takes}},
		{"ids.npz", Options{}, []string{`"input_id" is no input of the model`, "no model says what it takes"}},
		{"x.npz", o, []string{`nothing is for input "input_ids", only for x`, takes}},
		{"both.npz", o, []string{`array "input_ids" holds 2 samples, array "x" 3`}},
		{"floats.npz", o, []string{`array "input_ids"`, "its elements are float16; the model takes int64"}},
		{"wide.npz", one(onnxpb.TensorProto_UINT8, -1, -1), []string{`array "input_ids"`, "element 1 is 300, out of range of the model's uint8"}},
		{"good.npz", one(int64s, -1, 4), []string{`array "input_ids" of shape [2 3]`, "the model takes input_ids int64[?,4]"}},
		{"good.npz", one(int64s, 3, -1), []string{`array "input_ids" has 2 rows, but the model takes 3 at a time`}},
		{"good.npz", one(bools, -1, -1), []string{"its elements are int8; the model takes bool"}},
		{"empty.npz", o, []string{"it has 0 samples; want at least 1"}},
		{"x.npy", o, []string{"one array, float16[2], but the model takes input_ids", "want an .npz"}},
		{"x.npy", Options{Inputs: []ort.IO{input("x", float, -1, -1)}}, []string{"a sample has shape [1]", "x float[?,?]"}},
		{"text.npy", o, []string{"does not begin like an array", ".npy format"}},
		{"complex.npy", o, []string{`its elements are "<c8"`, "want floats, integers or booleans"}},
		{"structured.npy", o, []string{"lacks a simple type"}},
		{"cut.npy", o, []string{"float[3] holds 2 bytes, want 12", "cut off"}},
		{"shape.npy", o, []string{"its shape is (-3,)"}},
		{"big.npy", o, []string{"too large"}},
		{"short.npy", o, []string{"header is cut off"}},
		{"long.npy", o, []string{"4294967295 bytes"}},
		{"negative.npy", o, []string{"element 1 is -1", "want token ids"}},
	} {
		_, err := Open(filepath.Join(dir, c.file), c.o)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant … %s …", c.file, err, want)
			}
		}
	}
	many := Options{Inputs: slices.Clone(model[:1]), Optional: []string{"a", "b", "c", "d", "e", "f"}}
	for _, name := range many.Optional {
		many.Inputs = append(many.Inputs, input(name, float, -1))
	}
	_, err := Open(filepath.Join(dir, "x.npz"), many)
	if want := "the model takes input_ids int64[?,?] (and, if they are there, a, b, c, d, 2 more)"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("%v\nwant … %s", err, want)
	}
	if _, err := Open(filepath.Join(dir, "good.npz"), Options{Inputs: model[:2], HeldOut: 0.5}); err != nil {
		t.Errorf("the file that the others are variants of: %v", err)
	}
}

// tensorFile writes a TensorProto.
func tensorFile(t testing.TB, name string, dtype onnxpb.TensorProto_DataType, dims []int64, raw ...byte) string {
	b, err := proto.Marshal(&onnxpb.TensorProto{Name: proto.String(name), DataType: proto.Int32(int32(dtype)), Dims: dims, RawData: raw})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTestSets(t *testing.T) {
	one := []byte{0, 0, 128, 63} // 1 as a little-endian float
	files := map[string]string{}
	for i := range 11 {
		// The tenth set must not come before the second; its inputs have the names of the model, in another order.
		names := [2]string{"", ""}
		order := [2]string{"input_0.pb", "input_1.pb"}
		if i == 10 {
			names = [2]string{"ids", "x"}
			order = [2]string{"input_1.pb", "input_0.pb"}
		}
		folder := fmt.Sprintf("model/test_data_set_%d/", i)
		files[folder+order[0]] = tensorFile(t, names[0], int32s, []int64{1, 2}, byte(i), 0, 0, 0, 7, 0, 0, 0)
		files[folder+order[1]] = tensorFile(t, names[1], float, nil, one...)
		files[folder+"output_0.pb"] = tensorFile(t, "whatever", float, []int64{1}, one...)
	}
	dir := write(t, files)
	o := Options{Inputs: []ort.IO{input("ids", int64s, -1, -1), input("x", float), input("past", float, -1)}, Outputs: []ort.IO{input("y", float, -1)},
		Optional: []string{"past"}, HeldOut: 0.1}
	s, err := Open(filepath.Join(dir, "model"), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Train()) != 9 || len(s.HeldOut()) != 2 || s.Tokens() {
		t.Fatalf("%d and %d samples", len(s.Train()), len(s.HeldOut()))
	}
	for i, sample := range slices.Concat(s.Train(), s.HeldOut()) {
		if got := values(t, sample.Tensors["ids"], "int64[1,2]"); !slices.Equal(got, []float64{float64(i), 7}) {
			t.Errorf("set %d: ids %v", i, got)
		}
		if got := values(t, sample.Tensors["x"], "float[]"); !slices.Equal(got, []float64{1}) {
			t.Errorf("set %d: x %v", i, got)
		}
		if got := values(t, sample.Expected["y"], "float[1]"); !slices.Equal(got, []float64{1}) || len(sample.Expected) != 1 {
			t.Errorf("set %d: y %v", i, got)
		}
		if want := fmt.Sprint("test_data_set_", i); sample.Source != want {
			t.Errorf("source %q, want %q", sample.Source, want)
		}
	}
	o.HeldOut = 0
	if s, err = Open(filepath.Join(dir, "model", "test_data_set_3"), o); err != nil || len(s.Train()) != 1 || s.Train()[0].Source != "test_data_set_3" {
		t.Errorf("one folder: %v", err)
	}
}

func TestTestSetErrors(t *testing.T) {
	ids := tensorFile(t, "", int64s, []int64{1, 1}, 1, 0, 0, 0, 0, 0, 0, 0)
	strings1, err := proto.Marshal(&onnxpb.TensorProto{DataType: proto.Int32(int32(onnxpb.TensorProto_STRING)), Dims: []int64{1}, StringData: [][]byte{{'a'}}})
	if err != nil {
		t.Fatal(err)
	}
	dir := write(t, map[string]string{
		"gap/test_data_set_0/input_1.pb": ids, "gap/test_data_set_0/input_x.pb": "", "many/input_0.pb": ids, "many/input_1.pb": ids, "many/input_2.pb": ids,
		"type/input_0.pb": tensorFile(t, "", float, []int64{1, 1}, 0, 0, 0, 0), "rank/input_0.pb": tensorFile(t, "", int64s, []int64{1}, 1, 0, 0, 0, 0, 0, 0, 0),
		"few/input_0.pb": ids, "broken/input_0.pb": "\xff", "string/input_0.pb": string(strings1), "size/input_0.pb": tensorFile(t, "", int64s, []int64{1, 9}, 1),
		"empty/test_data_set_0/x": "",
	})
	model := []ort.IO{input("ids", int64s, -1, -1), input("x", float, -1)}
	for _, c := range []struct{ folder, want string }{
		{"gap", "test_data_set_0: it has input_1.pb, but no input_0.pb"},
		{"many", "it has 3 inputs, the model 2"},
		{"type", `input "ids": its elements are float; the model takes int64`},
		{"rank", `input "ids": a sample has shape [1]; the model takes ids int64[?,?]`},
		{"few", `nothing is for input "x", only for ids`},
		{"broken", "input_0.pb: proto"},
		{"string", "want a tensor of numbers or booleans"},
		{"size", "take 72 bytes"},
		{"empty", "it holds no tensors"},
	} {
		_, err := Open(filepath.Join(dir, c.folder), Options{Inputs: model})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v\nwant … %s …", c.folder, err, c.want)
		}
	}
}

func FuzzArray(f *testing.F) {
	for _, name := range []string{"tokens.npy", "half.npy"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(array(">f2", "True", "2, 3", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)))
	f.Add([]byte(array("<f2", "True", "2, 0")))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseArray(bytes.NewReader(b))
		if err != nil {
			return
		}
		if err := x.Check(); err != nil {
			t.Fatal(err)
		}
	})
}
