package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/graph"
	"onnx-dha/testmodels"
)

// invoke runs one command line in this process. One thread is plenty for models of this size.
func invoke(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	if len(args) > 0 && args[0] == "verify" {
		args = append([]string{"verify", "--threads", "1"}, args[1:]...)
	}
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// must runs a command line that has to succeed silently on stderr.
func must(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := invoke(args...)
	if code != 0 || errs != "" {
		t.Fatalf("%s: exit code %d, stderr %q", strings.Join(args, " "), code, errs)
	}
	return out
}

// decode reads a command's JSON.
func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

// at follows keys and indices into decoded JSON.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, ok := v.(map[string]any)
			if !ok || m[p] == nil {
				t.Fatalf("no %q in %v", p, v)
			}
			v = m[p]
		case int:
			l, ok := v.([]any)
			if !ok || p >= len(l) {
				t.Fatalf("no entry %d in %v", p, v)
			}
			v = l[p]
		}
	}
	return v
}

// save builds a test model into a file.
func save(t *testing.T, path, family string, o testmodels.Options, external string) string {
	t.Helper()
	f, err := testmodels.Get(family)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Save(path, graph.SaveOptions{External: external}); err != nil {
		t.Fatal(err)
	}
	return path
}

// write puts text into a file of dir.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// contents reads every file under dir, links as what they point to, so that two calls tell whether anything changed.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if target, err := os.Readlink(path); err == nil {
			out[path] = "→ " + target
			return nil
		}
		data, err := os.ReadFile(path)
		out[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
