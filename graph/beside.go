package graph

import (
	"path/filepath"
	"regexp"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// ExternalFiles lists the files that the model's weights are in, other than its own: relative to its folder, sorted.
func (m *Model) ExternalFiles() []string {
	var out []string
	for _, f := range m.files {
		if f.path == m.Path {
			continue
		}
		if rel, err := filepath.Rel(filepath.Dir(m.Path), f.path); err == nil {
			out = append(out, rel)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// RenameSymbol calls a symbolic dimension by another name wherever a value declares it. It reports whether it did: not when
// no value declares it, nor when the new name stands for another dimension already.
func (m *Model) RenameSymbol(name, as string) bool {
	word := regexp.MustCompile(`(^|\W)` + regexp.QuoteMeta(name) + `($|\W)`)
	taken := regexp.MustCompile(`(^|\W)` + regexp.QuoteMeta(as) + `($|\W)`)
	var found []*onnxpb.TensorShapeProto_Dimension
	free := true
	see := func(v *Value) {
		for _, d := range v.Info.GetType().GetTensorType().GetShape().GetDim() {
			free = free && !taken.MatchString(d.GetDimParam())
			if word.MatchString(d.GetDimParam()) {
				found = append(found, d)
			}
		}
	}
	m.Graph.eachGraph(func(g *Graph) {
		for _, values := range [][]*Value{g.Inputs, g.Outputs} {
			for _, v := range values {
				see(v)
			}
		}
		for _, n := range g.Nodes {
			for _, v := range n.Out {
				if v != nil && !slices.Contains(g.Outputs, v) {
					see(v)
				}
			}
		}
	})
	if !free || len(found) == 0 {
		return false
	}
	for _, d := range found {
		text := word.ReplaceAllString(d.GetDimParam(), "${1}"+as+"${2}")
		d.Value = &onnxpb.TensorShapeProto_Dimension_DimParam{DimParam: text}
	}
	return true
}
