package ort

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	binding "github.com/yalue/onnxruntime_go"
)

// Env is the environment variable that names the ONNX Runtime library, or the folder it is in.
const Env = "ONNXRUNTIME_LIB"

// MinVersion is the oldest ONNX Runtime that Open accepts.
const MinVersion = "1.24"

// folder is where `make runtime` puts the library.
const folder = ".ort"

// wayOut ends every message about a missing or unusable library.
const wayOut = "`make runtime` puts a library into " + folder + "/; or name one with --ort-lib or " + Env

// fileNames lists what the library is called on this system, the likeliest first.
func fileNames() []string {
	switch runtime.GOOS {
	case "darwin", "ios":
		return []string{"libonnxruntime.dylib", "libonnxruntime.1.dylib"}
	case "windows":
		return []string{"onnxruntime.dll"}
	}
	return []string{"libonnxruntime.so.1", "libonnxruntime.so"}
}

// Find says which ONNX Runtime library to load: explicit when it is not empty (the --ort-lib flag), else the one that
// the environment variable ONNXRUNTIME_LIB names, else the one in a folder .ort, which is looked for in the working
// directory and those above it up to the repository (the first with a go.mod) and beside the program, else the one
// that the system's loader finds by name. The first two may name a folder. A place that was named but does not have
// the library is an error: falling through to another would hide a typing mistake.
func Find(explicit string) (string, error) {
	if explicit != "" {
		return named("--ort-lib", explicit)
	}
	if e := os.Getenv(Env); e != "" {
		return named(Env, e)
	}
	var looked []string
	for _, dir := range searchDirs() {
		if p := within(dir); p != "" {
			return p, nil
		}
		looked = append(looked, dir)
	}
	for _, name := range fileNames() {
		if _, err := probe(name, false); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("ONNX Runtime %s or newer is needed and no library was found: "+
		"looked for %s in %s and on the system's library path; %s",

		MinVersion, strings.Join(fileNames(), " or "), strings.Join(looked, ", "), wayOut)
}

func named(by, path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s names %q as the ONNX Runtime library: %w; %s", by, path, reason(err), wayOut)
	}
	if !st.IsDir() {
		return path, nil
	}
	if p := within(path); p != "" {
		return p, nil
	}
	return "", fmt.Errorf("%s names the folder %q, which has no %s; %s", by, path, strings.Join(fileNames(), " or "), wayOut)
}

// reason strips the operation and the path that the caller's message has already.
func reason(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func within(dir string) string {
	for _, name := range fileNames() {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

func searchDirs() []string {
	var dirs []string
	if wd, err := os.Getwd(); err == nil {
		for dir := wd; ; {
			dirs = append(dirs, filepath.Join(dir, folder))
			up := filepath.Dir(dir)
			if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil || up == dir {
				break
			}
			dir = up
		}
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dirs = append(dirs, filepath.Join(filepath.Dir(exe), folder))
	}
	return dirs
}

// The library that this process has loaded. A shared library of this kind cannot be unloaded safely, nor can a second
// one be loaded beside it.
var library struct {
	sync.Mutex
	path    string // as given to Open, made absolute; empty until it is loaded
	version string
}

// Open loads the ONNX Runtime library at lib, a path or a name for the system's loader (see Find), once for the whole
// process. A second call with the same library does nothing; with another it is an error. After a failed call another
// may be tried.
func Open(lib string) error {
	if lib == "" {
		return fmt.Errorf("no ONNX Runtime library was named; %s", wayOut)
	}
	path := identity(lib)
	library.Lock()
	defer library.Unlock()
	if library.path != "" {
		if library.path == path {
			return nil
		}
		return fmt.Errorf("ONNX Runtime library %q: this process has already loaded %q, and can have only one", lib, library.path)
	}
	if strings.ContainsRune(lib, filepath.Separator) {
		switch st, err := os.Stat(path); {
		case err != nil:
			return fmt.Errorf("ONNX Runtime library %q: %w; %s", lib, reason(err), wayOut)
		case st.IsDir():
			return fmt.Errorf("ONNX Runtime library %q is a folder; want the library file in it", lib)
		}
	}
	version, err := probe(path, false)
	if err != nil {
		return fmt.Errorf("ONNX Runtime library %q: %w; %s", lib, err, wayOut)
	}
	if tooOld(version) {
		return fmt.Errorf("ONNX Runtime library %q is version %s; want %s or newer; %s", lib, version, MinVersion, wayOut)
	}
	binding.SetSharedLibraryPath(path)
	// Failures come back as errors with the same text; the log would print them a second time.
	if err := binding.InitializeEnvironment(binding.WithLogLevelFatal()); err != nil {
		return fmt.Errorf("ONNX Runtime library %q does not start: %w", lib, err)
	}
	if _, err := probe(path, true); err != nil {
		return fmt.Errorf("ONNX Runtime library %q: %w", lib, err)
	}
	// One arena for all sessions: apart, each would hold on to its own high-water mark.
	if memory, err := binding.GetMemoryInfo(); err == nil {
		if err := binding.CreateAndRegisterAllocator(memory, nil); err != nil {
			return fmt.Errorf("ONNX Runtime library %q: sharing one memory arena: %w", lib, err)
		}
	}
	library.path, library.version = path, version
	return nil
}

// OpenDefault is Find with no explicit path, then Open.
func OpenDefault() error {
	library.Lock()
	loaded := library.path != ""
	library.Unlock()
	if loaded {
		return nil
	}
	lib, err := Find("")
	if err != nil {
		return err
	}
	return Open(lib)
}

// Version returns the version of the loaded library, empty when none is loaded.
func Version() string {
	library.Lock()
	defer library.Unlock()
	return library.version
}

// identity makes two ways of naming one file the same.
func identity(lib string) string {
	if !strings.ContainsRune(lib, filepath.Separator) {
		if _, err := os.Stat(lib); err != nil {
			return lib // a name for the system's loader
		}
	}
	if abs, err := filepath.Abs(lib); err == nil {
		lib = abs
	}
	if real, err := filepath.EvalSymlinks(lib); err == nil {
		lib = real
	}
	return lib
}

// tooOld compares a version such as "1.29.0" with MinVersion. A version that cannot be read is let through: the
// runtime itself refuses an interface that it lacks.
func tooOld(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errA == nil && errB == nil && a == 1 && b < apiVersion
}
