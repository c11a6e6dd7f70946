package rewrite

import (
	"fmt"

	"onnx-dha/fusion"
	"onnx-dha/graph"
)

// Keys of a model's metadata_props under which Record writes.
const (
	MetadataVersion = "onnx-dha.version"
	MetadataHash    = "onnx-dha.config.sha256"
	MetadataConfig  = "onnx-dha.config"
)

// Record notes in a rewritten model how it came about: the version of the program, the hash of the configuration
// (fusion.Config.Hash) and the configuration itself, as YAML. An earlier record is replaced.
func Record(m *graph.Model, version string, c *fusion.Config) error {
	data, err := c.Marshal()
	if err != nil {
		return fmt.Errorf("recording the configuration: %w", err)
	}
	m.SetMetadata(MetadataVersion, version)
	m.SetMetadata(MetadataHash, c.Hash())
	m.SetMetadata(MetadataConfig, string(data))
	return nil
}
