package rewrite

import (
	"cmp"
	"fmt"

	"onnx-dha/fusion"
	"onnx-dha/graph"
)

// Keys of a model's metadata_props under which Record writes.
const (
	MetadataVersion = "onnx-dha.version"
	MetadataHash    = "onnx-dha.config.sha256"
	MetadataConfig  = "onnx-dha.config"
	// What the plan asked for, which a command line may have chosen in place of the configuration.
	MetadataLowering = "onnx-dha.lowering"
	MetadataTarget   = "onnx-dha.target"
)

// Record notes in a rewritten model how it came about: the version of the program, the hash of the configuration
// (fusion.Config.Hash), the configuration itself, as YAML, and the lowering and the target of the plan. An earlier record
// is replaced.
func Record(m *graph.Model, version string, c *fusion.Config, plan *fusion.Plan) error {
	data, err := c.Marshal()
	if err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	m.SetMetadata(MetadataVersion, version)
	m.SetMetadata(MetadataHash, c.Hash())
	m.SetMetadata(MetadataConfig, string(data))
	m.SetMetadata(MetadataLowering, string(cmp.Or(plan.Lowering, fusion.Auto)))
	m.SetMetadata(MetadataTarget, string(cmp.Or(plan.Target, fusion.TargetCPU)))
	return nil
}

// A Form is how a plan is lowered. What a rewrite changes besides the weights depends on it: heads that a model repeats
// before it caches them stay in the cache by one lowering and leave it by another.
type Form struct {
	Lowering fusion.Lowering
	Target   fusion.Runtime
}

// RecordedForm is the form that Record noted in a model; fields are empty where it notes none.
func RecordedForm(m *graph.Model) Form {
	lowering, _ := m.Metadata(MetadataLowering)
	target, _ := m.Metadata(MetadataTarget)
	return Form{fusion.Lowering(lowering), fusion.Runtime(target)}
}

// Of gives a plan the form, as far as it is known.
func (f Form) Of(plan *fusion.Plan) {
	plan.Lowering, plan.Target = cmp.Or(f.Lowering, plan.Lowering), cmp.Or(f.Target, plan.Target)
}
