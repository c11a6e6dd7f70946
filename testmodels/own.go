package testmodels

// ofTheirOwn are architectures whose attention no dress writes.
var ofTheirOwn = []Family{
	{
		Name: "swin", opset: 14, define: swinArch, build: buildSwin,
		Doc: "TorchScript: windows by Reshape and Transpose, Slice and Concat for torch.roll, a bias table per layer, the mask of all windows added in five dims",
	},
}
