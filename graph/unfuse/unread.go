package unfuse

// Operators whose attention is not expanded. Those that only a provider for GPUs runs cannot be held against an expansion
// anywhere else; the others do not look at all keys, or know them by block tables that the caller keeps.
func init() {
	const gpuOnly = "only CUDA has a kernel for it; give the model as it was before it was optimised for CUDA"
	for op, why := range map[string]string{
		"PackedAttention":             gpuOnly,
		"PackedMultiHeadAttention":    gpuOnly,
		"DecoderAttention":            gpuOnly,
		"QOrderedAttention":           gpuOnly,
		"QOrderedLongformerAttention": gpuOnly,
		"LongformerAttention":         "queries look at a window of keys and at global ones (Longformer), in a form that no plain attention has",
		"SparseAttention":             "queries look at the blocks of keys that its layout names, in a form that no plain attention has",
		"PagedAttention":              "the caller keeps keys and values in pages, by a block table, so the graph has no cache to make smaller",
		"TorchScaleAttention":         "the operator is not documented",
		"LinearAttention":             "it has no softmax and no keys to share: queries read a state that is updated from position to position",
		"DecoderMaskedSelfAttention":  "its cache is a fixed buffer with the keys in another order; give the model with Attention in its place",
	} {
		rows["com.microsoft."+op] = row{why: why}
	}
	rows["LinearAttention"] = row{why: rows["com.microsoft.LinearAttention"].why}
	rows["FlexAttention"] = row{why: "its scores are changed by functions that the expansion does not know"}
}
