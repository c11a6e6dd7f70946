package quant

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/testmodels"
)

// The page of quantised models names every operator of the table, and every scheme that is under test.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "quantised.md"))
	if err != nil {
		t.Fatal(err)
	}
	for op := range products {
		if !strings.Contains(string(page), "`"+op+"`") {
			t.Errorf("%s is not in docs/quantised.md", op)
		}
	}
	for _, s := range testmodels.Schemes() {
		if !strings.Contains(string(page), "| "+s.Name+" | "+s.Doc+" |") {
			t.Errorf("docs/quantised.md has no row | %s | %s |", s.Name, s.Doc)
		}
	}
}
