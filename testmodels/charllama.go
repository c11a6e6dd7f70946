package testmodels

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// CharLlama returns the folder of the trained character model that comes with this package's source (see its README):
// model.onnx, vocab.json, golden.json, sonnets.txt. It is for tests: a binary built with -trimpath, or run without the
// source, gets an error.
func CharLlama() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", fmt.Errorf("char-llama: the binary does not know where its source is")
	}
	dir := filepath.Join(filepath.Dir(file), "char-llama")
	if _, err := os.Stat(filepath.Join(dir, "model.onnx")); err != nil {
		return "", fmt.Errorf("char-llama: want the source tree that the binary was built from, without -trimpath: %w", err)
	}
	return dir, nil
}
