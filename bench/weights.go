package bench

import (
	"fmt"

	"onnx-dha/graph"
	"onnx-dha/ort"
)

// tables says, by operator, which input is a table that only some rows of are read.
var tables = map[string]int{"Gather": 0, "com.microsoft GatherBlockQuantized": 0, "com.microsoft EmbedLayerNormalization": 2}

// readPerStep sums the bytes of the constants that a step reads: all but tables that rows are looked up in and nothing else
// is done with. A weight of several bytes per element that the runtime repacks counts with its size in the file.
func readPerStep(path string) (int64, error) {
	m, err := graph.Load(path)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	read := map[*graph.Value]bool{}
	m.Graph.All(func(n *graph.Node) bool {
		name := n.OpType
		if !n.Is(name) {
			name = n.Domain + " " + name
		}
		table, looks := tables[name]
		for i, v := range n.In {
			if v != nil && !(looks && i == table) {
				read[v] = true
			}
		}
		return true
	})
	total := int64(0)
	for v := range read {
		t := v.Const()
		if t == nil {
			continue
		}
		n, err := ort.Bytes(t.DType(), t.Dims())
		if err != nil {
			return 0, fmt.Errorf("model %q: weight %q: %w", path, v.Name, err)
		}
		total += n
	}
	return total, nil
}
