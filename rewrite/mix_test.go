package rewrite

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/x448/float16"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
)

// nearest16 finds the half-precision number nearest to x by trying all of them, ties to the even one.
func nearest16(x float64) uint16 {
	best, dist := uint16(0), math.Inf(1)
	for b := range 1 << 16 {
		f := float64(float16.Frombits(uint16(b)).Float32())
		if math.IsNaN(f) || math.IsInf(f, 0) || math.Signbit(f) != math.Signbit(x) {
			continue
		}
		if d := math.Abs(f - x); d < dist || d == dist && b&1 == 0 {
			best, dist = uint16(b), d
		}
	}
	return best
}

func TestRoundingOnce(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 60 {
		x := rng.NormFloat64() * math.Pow(2, float64(rng.IntN(36)-24))
		if math.Abs(x) > 65000 {
			continue
		}
		if got, want := roundHalf(x), nearest16(x); got != want {
			t.Errorf("%v rounds to %#04x, nearest is %#04x", x, got, want)
		}
	}
	// A value just above the middle of two halves, lost when it is rounded to float32 first.
	mid := (float64(float16.Frombits(0x3c00).Float32()) + float64(float16.Frombits(0x3c01).Float32())) / 2
	for _, c := range []struct {
		x    float64
		want uint16
	}{{mid + 1e-12, 0x3c01}, {mid - 1e-12, 0x3c00}, {mid, 0x3c00}, {1e9, 0x7c00}, {math.Inf(-1), 0xfc00}, {0, 0}} {
		if got := roundHalf(c.x); got != c.want {
			t.Errorf("half of %v is %#04x, want %#04x", c.x, got, c.want)
		}
	}
	for range 2000 {
		x := rng.NormFloat64() * math.Pow(2, float64(rng.IntN(200)-100))
		got := math.Float32frombits(uint32(roundBrain(x)) << 16)
		lo := math.Float32frombits(math.Float32bits(float32(x)) &^ 0xffff)
		for _, b := range []uint32{math.Float32bits(lo) - 0x10000, math.Float32bits(lo), math.Float32bits(lo) + 0x10000} {
			if other := math.Float32frombits(b); math.Abs(float64(other)-x) < math.Abs(float64(got)-x) {
				t.Fatalf("%v rounds to %v although %v is nearer", x, got, other)
			}
		}
	}
	if !math.IsNaN(float64(math.Float32frombits(uint32(roundBrain(math.NaN())) << 16))) {
		t.Error("a NaN becomes a number")
	}
}

func TestMixIsAMatrixProduct(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, dtype := range []onnxpb.TensorProto_DataType{onnxpb.TensorProto_FLOAT, onnxpb.TensorProto_DOUBLE, onnxpb.TensorProto_FLOAT16, onnxpb.TensorProto_BFLOAT16} {
		for axis := range 3 {
			dims := []int64{3, 4, 5}
			data := make([]float64, 60)
			for i := range data {
				data[i] = rng.NormFloat64()
			}
			src, err := graph.FromFloat64s("w", dtype, dims, data)
			if err != nil {
				t.Fatal(err)
			}
			old, _ := src.Float64s() // as stored: rounded to the element type
			n := int(dims[axis])
			r := make(rows, 1+rng.IntN(6))
			for i := range r {
				for range rng.IntN(4) {
					r[i] = append(r[i], term{at: rng.IntN(n), weight: rng.NormFloat64()})
				}
			}
			got, err := mix(src, axis, r)
			if err != nil {
				t.Fatal(err)
			}
			x, err := got.Float64s()
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(dims)
			want[axis] = int64(len(r))
			if !slices.Equal(got.Dims(), want) {
				t.Fatalf("dims %v, want %v", got.Dims(), want)
			}
			eps := map[onnxpb.TensorProto_DataType]float64{onnxpb.TensorProto_FLOAT: 0x1p-23, onnxpb.TensorProto_DOUBLE: 0x1p-50, onnxpb.TensorProto_FLOAT16: 0x1p-10, onnxpb.TensorProto_BFLOAT16: 0x1p-7}[dtype]
			idx := [3]int{}
			for o, v := range x {
				rest := o
				for a := 2; a >= 0; a-- {
					idx[a] = rest % int(want[a])
					rest /= int(want[a])
				}
				sum := 0.0
				for _, ts := range r[idx[axis]] {
					at := idx
					at[axis] = ts.at
					sum += ts.weight * old[(at[0]*4+at[1])*5+at[2]]
				}
				if math.Abs(v-sum) > eps*math.Max(1e-3, math.Abs(sum)) {
					t.Fatalf("%v axis %d: element %v is %v, want %v", dtype, axis, idx, v, sum)
				}
			}
		}
	}
}

func TestMixRefuses(t *testing.T) {
	f := graph.NewTensor("w", []int64{2, 2}, []float32{1, 2, 3, 4})
	for name, err := range map[string]error{
		"an axis that is not there":  second(mix(f, 2, keep(2))),
		"an entry that is not there": second(mix(f, 1, rows{{{at: 2, weight: 1}}})),
		"integers":                   second(mix(graph.NewTensor("i", []int64{2}, []int64{1, 2}), 0, keep(2))),
		"a negative axis":            second(mix(f, -1, keep(2))),
		"an entry before the first":  second(mix(f, 0, rows{{{at: -1, weight: 1}}})),
	} {
		if err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }
