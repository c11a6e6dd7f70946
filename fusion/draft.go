package fusion

import (
	"errors"
	"fmt"
	"slices"

	"onnx-dha/graph/attention"
)

// Draft writes a configuration to start from: every block of the model that can be rewritten with groups of neighbours,
// as many as the target says, fused by the mean, and the model's fingerprint. Comments say what each block has.
func Draft(blocks []*attention.Block, target Target) (*Config, error) {
	if !slices.ContainsFunc(blocks, func(b *attention.Block) bool { return b.Fixed == "" }) {
		return nil, errors.New("the model has no attention block that can be rewritten")
	}
	fingerprint, err := Fingerprint(blocks)
	if err != nil {
		return nil, err
	}
	c := &Config{
		Version: Version, Fingerprint: fingerprint, Method: "adjacent mean", Lowering: Auto,
		Comment: "Which key and value heads are fused into one, block by block.\n" +
			"Groups partition the KV heads of a block, counted from 0; a group without weights is fused by the mean.\n" +
			"\"key: 4\" stands for four groups of neighbours. Blocks that are not listed stay as they are.",
	}
	for _, b := range attention.Layers(blocks) {
		if b.Fixed != "" {
			continue
		}
		key, value, err := target(b)
		if err != nil {
			return nil, err
		}
		before, after := b.KVHeads*b.HeadDim+b.ValueHeads*b.ValueDim, key*b.HeadDim+value*b.ValueDim
		c.Layers = append(c.Layers, Layer{
			Block: b.Name,
			Key:   &Heads{Groups: Adjacent(b.KVHeads, key).Groups},
			Value: &Heads{Groups: Adjacent(b.ValueHeads, value).Groups},
			Comment: fmt.Sprintf("%d query heads on %s; %d key and %d value heads keep %.3g %% of the cache",
				b.Heads, kvHeads(b), key, value, 100*float64(after)/float64(before)),
		})
	}
	return c, nil
}

func kvHeads(b *attention.Block) string {
	if b.KVHeads == b.ValueHeads && b.HeadDim == b.ValueDim {
		return fmt.Sprintf("%d KV heads of %d channels", b.KVHeads, b.HeadDim)
	}
	return fmt.Sprintf("%d key heads of %d channels and %d value heads of %d", b.KVHeads, b.HeadDim, b.ValueHeads, b.ValueDim)
}
