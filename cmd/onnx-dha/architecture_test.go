package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The page on the architecture names every package, each above all that it imports, and only files that there are.
func TestArchitecture(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "docs/architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rooms []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9/-]+)` \\| .* \\| .* \\|$").FindAllSubmatch(page, -1) {
		rooms = append(rooms, string(m[1]))
	}
	// room is the row of a package, or that of the package which it is a part of.
	room := func(dir string) int {
		for ; dir != "."; dir = filepath.Dir(dir) {
			if i := slices.Index(rooms, dir); i >= 0 {
				return i
			}
		}
		return -1
	}
	for _, pattern := range []string{"*", "*/*", "*/*/*"} {
		files, err := filepath.Glob(filepath.Join(root, pattern, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			dir, _ := filepath.Rel(root, filepath.Dir(file))
			if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(dir, "examples/") || strings.Contains(dir, "node_modules") {
				continue
			}
			of := room(dir)
			if of < 0 {
				t.Errorf("package %s has no row", dir)
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range f.Imports {
				if path, own := strings.CutPrefix(strings.Trim(i.Path.Value, `"`), "onnx-dha/"); own && room(path) < of {
					t.Errorf("%s imports %s, which does not stand below %s", file, path, rooms[of])
				}
			}
		}
	}
	if len(rooms) < 15 {
		t.Errorf("%d rows of packages, want all", len(rooms))
	}
	for _, m := range regexp.MustCompile("`([a-z]+/[a-z0-9_/-]+\\.[a-z]+)`").FindAllSubmatch(page, -1) {
		if _, err := os.Stat(filepath.Join(root, string(m[1]))); err != nil {
			t.Errorf("the page names %s: %v", m[1], err)
		}
	}
}
