package ort

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// touch makes an empty file that is called like the library.
func touch(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, fileNames()[0])
	if err := os.WriteFile(p, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestFindOrder(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	explicit := touch(t, filepath.Join(root, "explicit"))
	env := touch(t, filepath.Join(root, "env"))
	above := touch(t, filepath.Join(root, "repo", folder))
	sub := filepath.Join(root, "repo", "a", "b")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(sub)

	t.Setenv(Env, env)
	for _, c := range []struct{ name, explicit, env, want string }{
		{"the flag comes first", explicit, env, explicit},
		{"the flag may name a folder", filepath.Dir(explicit), env, explicit},
		{"then the environment", "", env, env},
		{"which may name a folder", "", filepath.Dir(env), env},
		{"then a folder above the working directory", "", "", above},
	} {
		os.Setenv(Env, c.env)
		if got, err := Find(c.explicit); err != nil || got != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.name, got, err, c.want)
		}
	}
	here := touch(t, filepath.Join(sub, folder))
	if got, err := Find(""); err != nil || got != here {
		t.Errorf("the working directory comes before those above: got %q (%v), want %q", got, err, here)
	}
	os.Remove(here)
	if err := os.WriteFile(filepath.Join(root, "repo", "a", "go.mod"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := Find(""); err == nil && got == above {
		t.Error("the search went above the repository")
	}
}

func TestFindErrorsSayHowToGetIt(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(Env, "")
	os.Unsetenv(Env)
	for name, c := range map[string]struct {
		explicit, env string
		want          []string
	}{
		"flag":   {filepath.Join(dir, "none.so"), "", []string{"--ort-lib", "none.so"}},
		"env":    {"", filepath.Join(dir, "none.so"), []string{Env, "none.so"}},
		"folder": {dir, "", []string{"--ort-lib", dir, fileNames()[0]}},
	} {
		os.Setenv(Env, c.env)
		_, err := Find(c.explicit)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, w := range append(c.want, "make runtime") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
}

func TestOpen(t *testing.T) {
	open(t)
	lib, err := Find("")
	if err != nil {
		t.Fatal(err)
	}
	if err := Open(lib); err != nil {
		t.Errorf("a second time: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link.so")
	if filepath.IsAbs(lib) {
		if err := os.Symlink(lib, link); err != nil {
			t.Fatal(err)
		}
		if err := Open(link); err != nil {
			t.Errorf("the same library by another name: %v", err)
		}
	}
	other := touch(t, t.TempDir())
	if err := Open(other); err == nil || !strings.Contains(err.Error(), "already loaded") {
		t.Errorf("another library: got %v", err)
	}
	if Version() == "" || tooOld(Version()) {
		t.Errorf("version %q", Version())
	}
}

func TestProbeRefusesWhatIsNotTheRuntime(t *testing.T) {
	if _, err := probe(touch(t, t.TempDir()), false); err == nil || !strings.Contains(err.Error(), "not a library") {
		t.Errorf("an empty file: %v", err)
	}
	if runtime.GOOS != "linux" {
		t.Skip("the other library is the C library of Linux")
	}
	if _, err := probe("libc.so.6", false); err == nil || !strings.Contains(err.Error(), "not ONNX Runtime") {
		t.Errorf("the C library: %v", err)
	}
}

func TestTooOld(t *testing.T) {
	for v, want := range map[string]bool{"1.17.3": true, "1.23.2": true, "1.24.0": false, "1.29.0": false, "2.0.0": false, "main": false} {
		if got := tooOld(v); got != want {
			t.Errorf("%s: got %v, want %v", v, got, want)
		}
	}
}
