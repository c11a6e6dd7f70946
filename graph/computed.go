package graph

import (
	"fmt"

	"onnx-dha/graph/onnxpb"
)

// computed stands for bytes that are made when somebody asks.
type computed struct {
	size int64
	make func() ([]byte, error)
}

// Computed makes a tensor whose bytes (row-major, little-endian, size of them) are made by f each time they are asked
// for, so that rewriting the weights of a model of any size holds one of them at a time. f must give the same bytes
// every time and must not depend on the graph, which may have changed by then.
func Computed(name string, dtype onnxpb.TensorProto_DataType, dims []int64, size int64, f func() ([]byte, error)) *Tensor {
	t := newRaw(name, dtype, dims, nil)
	t.Proto.RawData = nil
	t.computed = &computed{size, f}
	return t
}

func (c *computed) bytes() ([]byte, error) {
	b, err := c.make()
	if err == nil && int64(len(b)) != c.size {
		return nil, fmt.Errorf("%d bytes were made, %d promised", len(b), c.size)
	}
	return b, err
}
