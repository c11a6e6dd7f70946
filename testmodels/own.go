package testmodels

// ofTheirOwn are architectures whose attention no dress writes.
var ofTheirOwn = []Family{
	{
		Name: "gptj-full", Decoder: true, opset: 13, define: gptjArch, build: buildGPTJ,
		preset: func(o *Options) {
			orDefault(&o.HeadDim, 8)
			orDefault(&o.RotaryDim, o.HeadDim)
		},
		Doc: "TorchScript: GPT-J with all channels rotated, joined with an empty Slice",
	},
	{
		Name: "deberta", opset: 14, oldest: 12, define: debertaArch, build: dressed(dress{attention: debertaAttention}),
		Doc: "TorchScript: query and key layers applied to a table of distances as well, their products picked by GatherElements and added, Where around the softmax",
	},
	{
		Name: "conformer", opset: 14, define: conformerArch, build: dressed(dress{attention: conformerAttention}),
		Doc: "TorchScript: a bias per head on queries, twice; distances moved into place by Concat, Reshape and Slice, added before the scale; convolutions between the layers",
	},
	{
		Name: "swin", opset: 14, define: swinArch, build: buildSwin,
		Doc: "TorchScript: windows by Reshape and Transpose, Slice and Concat for torch.roll, a bias table per layer, the mask of all windows added in five dims",
	},
}
