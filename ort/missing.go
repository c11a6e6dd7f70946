package ort

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// MissingLibrary is a shared library that another one needs and the system's loader does not find.
type MissingLibrary struct {
	Name     string
	NeededBy string // path of the library that needs it
	Why      string // what the loader says of one that is there but does not load; empty for one that is not there
}

// Missing walks what the shared library at path needs, and what that needs, and lists what cannot be found, by the rules of
// the loader of ELF systems: the folders that the library names itself, LD_LIBRARY_PATH, the system's own places. It is
// an error when path is no such library.
func Missing(path string) ([]MissingLibrary, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("%s: %w", path, reason(err))
	}
	w := &needs{seen: map[string]bool{}}
	if err := w.walk(path); err != nil {
		return nil, err
	}
	return w.missing, nil
}

type needs struct {
	seen    map[string]bool
	missing []MissingLibrary
}

func (w *needs) walk(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no shared library of this system: %w", path, err)
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	dirs := searchFolders(f, path)
	for _, name := range needed {
		if w.seen[name] {
			continue
		}
		w.seen[name] = true
		why := loads(name)
		if why == "" {
			continue
		}
		// The loader names the first thing that it lacks, which may lie deeper.
		at := locate(name, dirs)
		if at == "" {
			w.missing = append(w.missing, MissingLibrary{Name: name, NeededBy: path})
			continue
		}
		if why = loads(at); why == "" {
			continue // a folder that only the library itself knows
		}
		before := len(w.missing)
		if err := w.walk(at); err != nil || len(w.missing) == before {
			w.missing = append(w.missing, MissingLibrary{Name: name, NeededBy: path, Why: why})
		}
	}
	return nil
}

// searchFolders are the folders in which the loader looks for what a library needs.
func searchFolders(f *elf.File, path string) []string {
	var out []string
	add := func(list, origin string) {
		for _, dir := range filepath.SplitList(list) {
			if dir == "" {
				continue
			}
			for _, token := range []string{"$ORIGIN", "${ORIGIN}"} {
				dir = strings.ReplaceAll(dir, token, origin)
			}
			out = append(out, dir)
		}
	}
	origin := filepath.Dir(path)
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		if values, err := f.DynString(tag); err == nil {
			for _, v := range values {
				add(v, origin)
			}
		}
	}
	add(os.Getenv("LD_LIBRARY_PATH"), origin)
	return slices.Compact(out)
}

// locate returns where a library lies in the first of the folders that has it; empty when none has.
func locate(name string, dirs []string) string {
	for _, dir := range dirs {
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// describeMissing lists libraries in words, what is missing of one together.
func describeMissing(list []MissingLibrary) string {
	var parts []string
	for len(list) > 0 {
		by := list[0].NeededBy
		var names []string
		var rest []MissingLibrary
		for _, m := range list {
			switch {
			case m.NeededBy != by:
				rest = append(rest, m)
			case m.Why != "":
				names = append(names, fmt.Sprintf("%s (%s)", m.Name, m.Why))
			default:
				names = append(names, m.Name)
			}
		}
		verb := "is"
		if len(names) > 1 {
			verb = "are"
		}
		parts = append(parts, fmt.Sprintf("%s, which %s needs, %s not on this system", strings.Join(names, ", "), filepath.Base(by), verb))
		list = rest
	}
	return strings.Join(parts, "; ")
}
