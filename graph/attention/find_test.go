package attention

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"onnx-dha/graph"
)

func TestDumpTmp(t *testing.T) {
	var files []string
	filepath.Walk("../../../shared", func(p string, i os.FileInfo, err error) error {
		if filepath.Ext(p) == ".onnx" {
			files = append(files, p)
		}
		return nil
	})
	for _, f := range files {
		m, err := graph.Load(f)
		if err != nil {
			fmt.Println(f, "LOAD", err)
			continue
		}
		r := Find(m)
		fmt.Println("==", f, len(r.Blocks))
		for _, b := range r.Blocks {
			fmt.Printf("  %s %s causal=%v H=%d KV=%d/%d d=%d/%d rot=%v scale=%.4f mask=%s kc=%v vc=%v out=%v perhead=%d\n", b.Name, b.Kind, b.Causal, b.Heads, b.KVHeads, b.ValueHeads, b.HeadDim, b.ValueDim, b.Rotary, b.Scale, b.Mask, b.KeyCache != nil, b.ValCache != nil, b.Output != nil, len(b.PerHead))
		}
		for _, u := range r.Unsupported {
			fmt.Printf("  - %v at %v wire %q: %s (attention=%v)\n", u.Node, u.At, u.Wire, u.Why, u.Attention)
		}
	}
}
