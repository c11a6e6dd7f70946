package ort

import (
	"context"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
)

func bind(t testing.TB, s *Session) *Binding {
	t.Helper()
	b, err := s.Bind()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// succeed runs steps until one fails.
func succeed(t testing.TB, steps ...error) {
	t.Helper()
	for i, err := range steps {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func floats(t testing.TB, x *Tensor) []float32 {
	t.Helper()
	v, err := x.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBindingUpdatesInPlace(t *testing.T) {
	b := bind(t, scatter(t))
	cache := FromFloat32([]float32{1, 2, 3, 4, 5, 6}, 3, 2)
	row, update := FromInt64([]int64{1}, 1, 1), FromFloat32([]float32{10, 20}, 1, 2)
	succeed(t, b.Input("x", cache), b.Output("y", cache), b.Input("i", row), b.Input("u", update), b.Run(context.Background()))
	if got, want := floats(t, cache), []float32{1, 2, 10, 20, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// What is bound is read anew by every run.
	rows, _ := row.Int64s()
	rows[0] = 2
	succeed(t, b.Run(context.Background()))
	if got, want := floats(t, cache), []float32{1, 2, 10, 20, 10, 20}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// joined has a past that every step makes longer: y is x with u behind it; n is their sum.
func joined(t testing.TB) *Session {
	return session(t, &onnxpb.GraphProto{
		Input:  []*onnxpb.ValueInfoProto{value("x", onnxpb.TensorProto_FLOAT, "T"), value("u", onnxpb.TensorProto_FLOAT, "n")},
		Output: []*onnxpb.ValueInfoProto{value("y", onnxpb.TensorProto_FLOAT, "T + n"), value("z", onnxpb.TensorProto_FLOAT)},
		Node: []*onnxpb.NodeProto{
			node("Concat", []string{"x", "u"}, []string{"y"}, intAttr("axis", 0)),
			node("ReduceSum", []string{"y"}, []string{"z"}, intAttr("keepdims", 0)),
		},
	})
}

// What the runtime made in one run goes into the next without a tensor of Go between.
func TestBindingPassesOutputsOn(t *testing.T) {
	b := bind(t, joined(t))
	sum, err := New(onnxpb.TensorProto_FLOAT)
	if err != nil {
		t.Fatal(err)
	}
	succeed(t, b.Input("x", FromFloat32(nil, 0)), b.Output("z", sum))
	for step, want := range []float32{1, 3, 6, 10} {
		succeed(t, b.Input("u", FromFloat32([]float32{float32(step + 1)}, 1)), b.Place("y"), b.Run(context.Background()))
		if got := floats(t, sum)[0]; got != want {
			t.Errorf("step %d: sum %v, want %v", step, got, want)
		}
		succeed(t, b.Pass([][2]string{{"y", "x"}}))
	}
	succeed(t, b.Input("u", FromFloat32([]float32{0}, 1)), b.PlaceHost("y"), b.Run(context.Background()))
	if y, err := b.Fetch("y"); err != nil || !slices.Equal(floats(t, y), []float32{1, 2, 3, 4, 0}) {
		t.Errorf("fetched %v (%v)", y, err)
	}
	end, _ := New(onnxpb.TensorProto_FLOAT, 5)
	succeed(t, b.Input("u", FromFloat32([]float32{5}, 1)), b.Output("y", end), b.Run(context.Background()))
	if got, want := floats(t, end), []float32{1, 2, 3, 4, 5}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	succeed(t, b.Pass([][2]string{{"y", "x"}}), b.Place("y"), b.Run(context.Background()))
	if got := floats(t, sum)[0]; got != 20 {
		t.Errorf("a bound tensor that was passed on: sum %v, want 20", got)
	}
}

func TestBindingErrors(t *testing.T) {
	s := joined(t)
	b := bind(t, s)
	ctx := context.Background()
	x := FromFloat32([]float32{1}, 1)
	closed := bind(t, s)
	closed.Close()
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"no such input", b.Input("w", x), `no input "w"; its inputs are x, u`},
		{"no such output", b.Output("w", x), `no output "w"; its outputs are y, z`},
		{"no such place", b.Place("w"), `no output "w"`},
		{"another type", b.Input("x", FromInt64([]int64{1}, 1)), "wants float, got int64[1]"},
		{"no tensor", b.Input("x", nil), "no tensor given"},
		{"nothing bound", b.Run(ctx), "no output is bound"},
		{"nothing to pass", b.Pass([][2]string{{"y", "x"}}), `output "y" is not bound`},
		{"closed", closed.Run(ctx), "closed"},
		{"closed input", closed.Input("x", x), "closed"},
		{"cancelled", b.Run(cancelled), "canceled"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to say %q", c.name, c.err, c.want)
		}
	}
	succeed(t, b.Place("y"), b.Input("x", x))
	if err := b.Run(ctx); err == nil || !strings.Contains(err.Error(), `input "u" (float[n]) is not bound`) {
		t.Errorf("a missing input: %v", err)
	}
	short, _ := New(onnxpb.TensorProto_FLOAT, 7)
	succeed(t, b.Input("u", x), b.Output("y", short))
	if err := b.Run(ctx); err == nil || !strings.Contains(err.Error(), "u float[1]") {
		t.Errorf("an output of another shape: %v", err)
	}
}
