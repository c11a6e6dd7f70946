package testmodels

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// openRuntime loads ONNX Runtime. Without a library the test is skipped, except where CI promises one.
func openRuntime(t testing.TB) {
	t.Helper()
	lib, err := ort.Find("")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err := ort.Open(lib); err != nil {
		t.Fatal(err)
	}
}

// session saves a model and loads it in ONNX Runtime.
func session(t testing.TB, m *graph.Model) *ort.Session {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "model.onnx")
	if err := m.Save(path, graph.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ort.NewSession(path, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// run runs a session on arrays.
func run(t testing.TB, s *ort.Session, in map[string]Array) map[string]Array {
	t.Helper()
	feed := map[string]*ort.Tensor{}
	for name, v := range in {
		dims := int64s(v.Dims)
		if v.I != nil {
			feed[name] = ort.FromInt64(v.I, dims...)
			continue
		}
		io, ok := s.Input(name)
		if !ok {
			t.Fatalf("the model has no input %q", name)
		}
		x, err := ort.FromFloat64s(io.DType, v.F, dims...)
		if err != nil {
			t.Fatal(err)
		}
		feed[name] = x
	}
	out, err := s.Run(context.Background(), feed)
	if err != nil {
		t.Fatal(err)
	}
	arrays := map[string]Array{}
	for name, x := range out {
		data, err := x.Float64s()
		if err != nil {
			t.Fatal(err)
		}
		arrays[name] = Floats(data, each(x.Shape, func(d int64) int { return int(d) })...)
	}
	return arrays
}

// distance is the largest difference between got and want at places that the attention mask shows, relative to the
// largest magnitude of want there.
func distance(t testing.TB, name string, got, want, mask Array) float64 {
	t.Helper()
	if fmt.Sprint(got.Dims) != fmt.Sprint(want.Dims) {
		t.Fatalf("%s has dims %v, the reference gives %v", name, got.Dims, want.Dims)
	}
	axis := -1 // of the position
	switch {
	case len(want.Dims) == 3:
		axis = 1
	case len(want.Dims) == 4:
		axis = 2
	}
	inner := 1
	for _, d := range want.Dims[max(axis, 0)+1:] {
		inner *= d
	}
	worst, scale := 0.0, 0.0
	for i := range want.F {
		if axis > 0 && mask.Dims != nil {
			seq, total := want.Dims[axis], mask.Dims[1]
			b := i / (want.Len() / want.Dims[0])
			at := total - seq + i/inner%seq
			if mask.I[b*total+at] == 0 {
				continue
			}
		}
		if math.IsNaN(got.F[i]) {
			return math.Inf(1)
		}
		worst = max(worst, math.Abs(got.F[i]-want.F[i]))
		scale = max(scale, math.Abs(want.F[i]))
	}
	if scale == 0 {
		t.Fatalf("%s: the reference is zero everywhere", name)
	}
	return worst / scale
}

// agree fails unless every output of the model is within tol of the reference.
func agree(t testing.TB, got, want map[string]Array, mask Array, tol float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("the model has %d outputs, the reference %d", len(got), len(want))
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Fatalf("the model has no output %q", name)
		}
		if d := distance(t, name, g, w, mask); d > tol {
			t.Errorf("%s is %.3g from the reference, want at most %g", name, d, tol)
		}
	}
}

const tolerance = 1e-4

func TestFamiliesAgreeWithReference(t *testing.T) {
	openRuntime(t)
	for _, f := range Families() {
		for _, cache := range []bool{false, true} {
			for _, static := range []bool{false, true} {
				if cache && !f.Decoder {
					continue
				}
				o := Options{Cache: cache, Static: static, Seed: 7}
				t.Run(fmt.Sprintf("%s/cache=%v/static=%v", f.Name, cache, static), func(t *testing.T) {
					checkAgainstReference(t, f, o)
				})
			}
		}
	}
}

// checkAgainstReference runs shapes with and without padding and past.
func checkAgainstReference(t *testing.T, f Family, o Options) {
	t.Helper()
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	s := session(t, m)
	r, err := f.Reference(o)
	if err != nil {
		t.Fatal(err)
	}
	shapes := []Shape{{Batch: 2, Seq: 5, Past: 3}, {Batch: 3, Seq: 6, Past: 4, Pad: 2}, {Batch: 1, Seq: 1, Past: 6}, {Batch: 2, Seq: 4, Pad: 1}}
	if o.Static {
		shapes = []Shape{{}, {Pad: 2}}
	}
	for i, shape := range shapes {
		in, err := f.Inputs(o, shape, uint64(i))
		if err != nil {
			t.Fatal(err)
		}
		want, err := r.Run(in)
		if err != nil {
			t.Fatal(err)
		}
		tol := tolerance
		if o.DType == onnxpb.TensorProto_FLOAT16 {
			tol = 0.03
		}
		agree(t, run(t, s, in), want, in["attention_mask"], tol)
	}
}

func TestPrefillThenDecode(t *testing.T) {
	openRuntime(t)
	for _, f := range Families() {
		if !f.Decoder {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			const batch, prefill, steps = 2, 4, 5
			cached, whole := Options{Cache: true, Seed: 3}, Options{Seed: 3}
			m, err := f.Build(cached)
			if err != nil {
				t.Fatal(err)
			}
			s := session(t, m)
			r, err := f.Reference(whole)
			if err != nil {
				t.Fatal(err)
			}
			// All tokens at once, without a cache, is what the steps have to add up to.
			all, err := f.Inputs(whole, Shape{Batch: batch, Seq: prefill + steps, Pad: 1}, 5)
			if err != nil {
				t.Fatal(err)
			}
			want, err := r.Run(all)
			if err != nil {
				t.Fatal(err)
			}
			step, err := f.Inputs(cached, Shape{Batch: batch, Seq: prefill}, 0)
			if err != nil {
				t.Fatal(err)
			}
			for from, to := 0, prefill; to <= prefill+steps; from, to = to, to+1 {
				for _, name := range []string{"input_ids", "position_ids"} {
					if v, ok := all[name]; ok {
						step[name] = columns(v, from, to)
					}
				}
				if v, ok := all["attention_mask"]; ok {
					step["attention_mask"] = columns(v, 0, to)
				}
				for _, name := range []string{"encoder_hidden_states", "encoder_attention_mask"} {
					if v, ok := all[name]; ok {
						step[name] = v
					}
				}
				out := run(t, s, step)
				logits := Array{Dims: []int{batch, to - from, want["logits"].Dims[2]}}
				width := logits.Dims[2]
				for b := range batch {
					at := b * (prefill + steps) * width
					logits.F = append(logits.F, want["logits"].F[at+from*width:at+to*width]...)
				}
				if d := distance(t, "logits", out["logits"], logits, step["attention_mask"]); d > tolerance {
					t.Errorf("positions %d to %d: logits are %.3g from the whole sequence's, want at most %g", from, to, d, tolerance)
				}
				for name, v := range out {
					if rest, ok := strings.CutPrefix(name, "present."); ok {
						step["past_key_values."+rest] = v
					}
				}
			}
		})
	}
}

// columns takes columns [from, to) of an integer matrix.
func columns(v Array, from, to int) Array {
	out := Array{Dims: []int{v.Dims[0], to - from}}
	for b := range v.Dims[0] {
		out.I = append(out.I, v.I[b*v.Dims[1]+from:b*v.Dims[1]+to]...)
	}
	return out
}

func TestVariantsAgreeWithReference(t *testing.T) {
	openRuntime(t)
	variants := map[string][]Options{
		"llama": {
			{Scale: ScaleMul}, {Scale: ScaleSqrt, Mask: MaskWhere}, {Scale: ScaleQuery, Causal: CausalRange}, {RotaryDim: 4},
			{Bias: true, QKNorm: true, Interleaved: true, KVHeads: 2}, {Opset: 11}, {Opset: 12, Mask: MaskWhere}, {Opset: 18, KVHeads: 1},
			{Heads: 3, KVHeads: 3, HeadDim: 6, ModelDim: 20, FFN: 11, Layers: 1},
		},
		"llama-gqa":          {{Heads: 6, KVHeads: 3, Static: true}, {Opset: 11}, {Heads: 3}},
		"llama-interleaved":  {{Opset: 11}, {Scale: ScaleSqrt}},
		"llama-dynamo":       {{Bias: true, QKNorm: true, ModelDim: 24}, {KVHeads: 4, Opset: 20}, {Unfolded: true, Bias: true}},
		"gpt2":               {{Opset: 17, HeadDim: 4}, {Opset: 11}},
		"gpt2-matmul":        {{ModelDim: 20}, {Opset: 11}, {Opset: 18}},
		"gpt2-dynamo":        {{Heads: 6, HeadDim: 4}},
		"bert":               {{Opset: 11}, {Opset: 17, Heads: 3}},
		"bart-decoder/torch": {{ModelDim: 20}},
		"conformer":          {{ModelDim: 20}},
		"gpt-neox":           {{RotaryDim: 8}, {RotaryDim: 2, Opset: 11}},
		"gptj":               {{RotaryDim: 8}, {Opset: 11}},
		"opt":                {{Opset: 11}, {Opset: 17}},
		"bloom":              {{Heads: 6}, {Opset: 17}},
		"falcon":             {{Heads: 5}, {Opset: 17}},
		"vit":                {{Opset: 17}, {Opset: 11}},
		"t5-encoder":         {{Opset: 18, ModelDim: 24}},
		"t5-decoder":         {{Opset: 18, ModelDim: 24}, {Opset: 12}},
		"mha":                {{Opset: 18}, {Opset: 11}},
		"mha-slice":          {{Opset: 17, Heads: 2}},
	}
	for name, list := range variants {
		f, err := Get(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range list {
			o.Cache = f.Decoder
			t.Run(fmt.Sprintf("%s/%d", name, i), func(t *testing.T) { checkAgainstReference(t, f, o) })
		}
	}
}

func TestOldestAndNewestOpsets(t *testing.T) {
	openRuntime(t)
	for _, f := range Families() {
		for _, opset := range []int64{max(f.oldest, 11), 21} {
			t.Run(fmt.Sprintf("%s/%d", f.Name, opset), func(t *testing.T) {
				checkAgainstReference(t, f, Options{Cache: f.Decoder, Opset: opset})
			})
		}
	}
}

func TestHalfPrecision(t *testing.T) {
	openRuntime(t)
	for _, f := range Families() {
		t.Run(f.Name, func(t *testing.T) {
			checkAgainstReference(t, f, Options{Cache: f.Decoder, DType: onnxpb.TensorProto_FLOAT16})
		})
	}
}

// A rewrite that mixes up heads has to show. Swapping two key heads, or two value heads, of the reference does.
func TestHeadsMatter(t *testing.T) {
	for _, f := range slices.Concat(Families(), Dressed()) {
		o := Options{Cache: f.Decoder}
		r, err := f.Reference(o)
		if err != nil {
			t.Fatal(err)
		}
		if r.a.kvHeads == 1 {
			continue
		}
		in, err := f.Inputs(o, Shape{Batch: 2, Seq: 6, Past: 4}, 1)
		if err != nil {
			t.Fatal(err)
		}
		want, err := r.Run(in)
		if err != nil {
			t.Fatal(err)
		}
		name := "logits"
		if r.a.hidden {
			name = "last_hidden_state"
		}
		for _, side := range []string{"k", "v"} {
			w := r.w[layer(0, side+".weight")]
			n := r.a.headDim * r.a.model
			swap := func() {
				for i := range n {
					w[i], w[n+i] = w[n+i], w[i]
				}
			}
			swap()
			got, err := r.Run(in)
			swap()
			if err != nil {
				t.Fatal(err)
			}
			if d := distance(t, name, got[name], want[name], in["attention_mask"]); d < 0.1 {
				t.Errorf("%s: swapping two %s heads changes %s by %.3g, want 0.1 or more", f.Name, side, name, d)
			}
		}
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	bytes := func(f Family, o Options) string {
		m, err := f.Build(o)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "m.onnx")
		if err := m.Save(path, graph.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, f := range Families() {
		a, b, c := bytes(f, Options{Seed: 1}), bytes(f, Options{Seed: 1}), bytes(f, Options{Seed: 2})
		if a != b {
			t.Errorf("%s: two builds of the same options differ", f.Name)
		}
		if a == c {
			t.Errorf("%s: another seed gives the same model", f.Name)
		}
	}
}

func TestOptionErrors(t *testing.T) {
	for _, c := range []struct {
		family string
		o      Options
		want   string
	}{
		{"llama", Options{Layers: -1}, "Layers is -1"},
		{"llama", Options{Heads: 4, KVHeads: 3}, "3 KV heads do not divide 4 heads"},
		{"llama", Options{HeadDim: 7}, "RotaryDim 7, want an even number"},
		{"llama", Options{Opset: 10}, "opset 10 is older than its operators, want 11"},
		{"llama", Options{DType: onnxpb.TensorProto_DOUBLE}, "weights of type DOUBLE"},
		{"llama", Options{Static: true, Seq: 60, Past: 5}, "exceed MaxSeq 64"},
		{"llama-dynamo", Options{Opset: 17}, "opset 17 is older than its operators, want 18"},
		{"gpt2", Options{KVHeads: 2}, "2 KV heads for 4 heads"},
		{"bert", Options{Cache: true}, "an encoder has no cache"},
		{"whisper-decoder/mobius", Options{Stage: Next}, "not written in steps"},
		{"mha", Options{ModelDim: 40}, "wants ModelDim 40"},
	} {
		f, err := Get(c.family)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Build(c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: error %v, want one with %q", c.family, c.o, err, c.want)
		}
	}
	if _, err := Get("gpt5"); err == nil {
		t.Error("an unknown family gives no error")
	}
}

func TestReferenceErrors(t *testing.T) {
	f, err := Get("llama")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Cache: true}
	r, err := f.Reference(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		v    Array
		want string
	}{
		{"input_ids", Array{}, "missing"},
		{"input_ids", Ints([]int64{1, 2, 64, 4}, 2, 2), "input_ids has 64, want 0 to 63"},
		{"position_ids", Ints([]int64{0, 1}, 1, 2), "want a batch of 2"},
		{"attention_mask", Ints(make([]int64, 4), 2, 2), "covers 2 positions, want past + seq = 3"},
		{"past_key_values.1.key", Floats(make([]float64, 8), 2, 1, 1, 4), "past_key_values.1.key"},
		{"past_key_values.1.key", Floats(nil, 2, 4, 1, 8), "holds 0 elements"},
	} {
		in, err := f.Inputs(o, Shape{Batch: 2, Seq: 2, Past: 1}, 0)
		if err != nil {
			t.Fatal(err)
		}
		in[c.name] = c.v
		if c.v.Dims == nil {
			delete(in, c.name)
		}
		if _, err := r.Run(in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %v: error %v, want one with %q", c.name, c.v.Dims, err, c.want)
		}
	}
}

// The slopes of 8 heads are those the ALiBi paper prints; those of 12 heads interleave two sequences.
func TestSlopes(t *testing.T) {
	for heads, want := range map[int][]float64{
		8:  {1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 32, 1. / 64, 1. / 128, 1. / 256},
		12: {1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 32, 1. / 64, 1. / 128, 1. / 256, math.Sqrt2 / 2, math.Sqrt2 / 4, math.Sqrt2 / 8, math.Sqrt2 / 16},
	} {
		a := arch{heads: heads}
		for h, s := range a.slopes() {
			if math.Abs(s-want[h]) > 1e-12 {
				t.Errorf("slope %d of %d heads is %g, want %g", h, heads, s, want[h])
			}
		}
	}
}

func TestHalfRounding(t *testing.T) {
	for x, want := range map[float32]uint16{
		0: 0, 1: 0x3c00, -2: 0xc000, 65504: 0x7bff, 65520: 0x7c00, 0x1p-24: 1, 0x1p-14: 0x0400, 0x1.ff8p-15: 0x03ff,
		0x1.ffcp-15: 0x0400, 0x1.002p0: 0x3c00, 0x1.006p0: 0x3c02, 0x1.ffep0: 0x4000, float32(math.Inf(-1)): 0xfc00,
	} {
		if got := half(x); got != want {
			t.Errorf("half(%g) = %#04x, want %#04x", x, got, want)
		}
	}
}
