package rewrite

import (
	"maps"
	"slices"

	"onnx-dha/graph/onnxpb"
)

// needs notes that the rewritten model uses an operator set.
func (e *editor) needs(domain string, version int64) {
	if e.imports == nil {
		e.imports = map[string]int64{}
	}
	e.imports[domain] = version
}

// addImports adds the operator sets that the model does not import yet.
func (e *editor) addImports() {
	m := e.g.Model
	for _, domain := range slices.Sorted(maps.Keys(e.imports)) {
		if m.Opset(domain) == 0 {
			version := e.imports[domain]
			m.Proto.OpsetImport = append(slices.Clone(m.Proto.OpsetImport), &onnxpb.OperatorSetIdProto{Domain: &domain, Version: &version})
		}
	}
}

// note adds what callers of the rewritten model should know, once.
func (e *editor) note(text string) {
	if !slices.Contains(e.notes, text) {
		e.notes = append(e.notes, text)
	}
}
