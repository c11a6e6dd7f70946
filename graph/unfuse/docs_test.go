package unfuse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The page about fused operators names every row of the table.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "fused.md"))
	if err != nil {
		t.Fatal(err)
	}
	for op, r := range rows {
		if !strings.Contains(string(page), "`"+op+"`") {
			t.Errorf("%s is not in docs/fused.md", op)
		}
		if (r.expand == nil || r.outputs == 0 || r.required > r.inputs) == (r.why == "") {
			t.Errorf("the row of %s is incomplete", op)
		}
	}
}
