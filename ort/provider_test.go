package ort

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"onnx-dha/graph/onnxpb"
)

// Without the provider's libraries beside the runtime's, or without those that they need, the message says which is
// missing.
func TestProviderThatIsNotInstalled(t *testing.T) {
	open(t)
	built, err := Available()
	if err != nil || !slices.Contains(built, "cpu") {
		t.Fatalf("available: %v, %v", built, err)
	}
	for _, name := range Providers() {
		if slices.Contains(built, name) {
			continue
		}
		_, err := NewSession("model.onnx", Options{Provider: name})
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		for _, want := range []string{"model.onnx", "execution provider " + name, "was built without it; it has cpu"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
	if !slices.Contains(built, "cuda") {
		return
	}
	s, err := NewSession("model.onnx", Options{Provider: "cuda", Device: 1})
	if err == nil {
		s.Close()
		t.Fatal("a model that is not there was loaded")
	}
	if strings.Contains(err.Error(), "cannot load it") {
		t.Skip("the provider works here")
	}
	beside := filepath.Join(filepath.Dir(library.path), "libonnxruntime_providers_shared.so")
	want := []string{"execution provider cuda", beside + ": no such file or directory", "`make runtime-cuda`"}
	if _, err := os.Stat(beside); err == nil {
		want = []string{"execution provider cuda", "libonnxruntime_providers_cuda.so"}
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// A library that lacks what it needs is described by the name of what is missing, at whatever depth.
func TestMissingLibraries(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil || runtime.GOOS != "linux" {
		t.Skip("needs Linux and a C compiler, cc, to make libraries with")
	}
	dir := t.TempDir()
	build := func(name string, args ...string) string {
		t.Helper()
		out := filepath.Join(dir, "lib"+name+".so")
		args = append([]string{"-shared", "-fPIC", "-o", out, "-Wl,-soname,lib" + name + ".so", "-Wl,--no-as-needed", "-L" + dir, "-x", "c", "/dev/null", "-x", "none"}, args...)
		if b, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		return out
	}
	gone := build("dha_gone")
	build("dha_other")
	build("dha_middle", "-ldha_gone", "-Wl,-rpath,$ORIGIN")

	top := build("dha_top", "-ldha_middle", "-ldha_other", "-Wl,-rpath,$ORIGIN")
	if missing, err := Missing(top); err != nil || len(missing) != 0 {
		t.Fatalf("nothing is missing: %v, %v", missing, err)
	}
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	missing, err := Missing(top)
	if err != nil || len(missing) != 1 || missing[0].Name != "libdha_gone.so" || filepath.Base(missing[0].NeededBy) != "libdha_middle.so" {
		t.Fatalf("missing: %+v, %v", missing, err)
	}
	if s := describeMissing(missing); s != "libdha_gone.so, which libdha_middle.so needs, is not on this system" {
		t.Errorf("%s", s)
	}
	if err := os.Remove(filepath.Join(dir, "libdha_other.so")); err != nil {
		t.Fatal(err)
	}
	missing, _ = Missing(top)
	if s := describeMissing(missing); !strings.Contains(s, "libdha_other.so, which libdha_top.so needs, is not on") || len(missing) != 2 {
		t.Errorf("%s", s)
	}
	text := filepath.Join(dir, "text.so")
	if err := os.WriteFile(text, []byte("no library"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Missing(text); err == nil || !strings.Contains(err.Error(), "is no shared library") {
		t.Errorf("a text: %v", err)
	}
	if _, err := Missing(top + "x"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("nothing: %v", err)
	}
}

// Products in single precision stay so by default, and a caller may ask for the coarser ones.
func TestFullPrecision(t *testing.T) {
	own := map[string]string{"use_tf32": "1", "arena_extend_strategy": "kSameAsRequested"}
	for _, c := range []struct {
		in   Options
		want map[string]string
	}{
		{Options{}, nil},
		{Options{Provider: "cuda"}, map[string]string{"use_tf32": "0"}},
		{Options{Provider: "CUDA", ProviderOptions: own}, own},
	} {
		if got := FullPrecision(c.in).ProviderOptions; !maps.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.in, got, c.want)
		}
	}
}

// On the CPU every node runs on the CPU, and a profile names each once.
func TestPlaced(t *testing.T) {
	open(t)
	path := write(t, &onnxpb.GraphProto{
		Node:   []*onnxpb.NodeProto{node("Add", []string{"x", "x"}, []string{"y"})},
		Input:  []*onnxpb.ValueInfoProto{value("x", onnxpb.TensorProto_FLOAT, 2)},
		Output: []*onnxpb.ValueInfoProto{value("y", onnxpb.TensorProto_FLOAT, 2)},
	})
	in := map[string]*Tensor{"x": FromFloat32([]float32{1, 2}, 2)}
	nodes, err := Placed(context.Background(), path, Options{Threads: 1}, in)
	if err != nil || len(nodes) != 1 || nodes[0].Op != "Add" || nodes[0].Provider != ProviderOf("cpu") {
		t.Errorf("got %v, %v", nodes, err)
	}
	if _, err := parseProfile([]byte("{")); err == nil {
		t.Error("half a profile was read")
	}
}
