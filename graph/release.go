package graph

import "onnx-dha/graph/onnxpb"

// Release tells the system that the bytes of t, as Bytes returned them from the memory map, will not be read again soon:
// a pass over all weights of a large model then holds no more than the tensors at work. Slices that were returned stay
// valid. Tensors that are not in a file are left alone.
func (t *Tensor) Release() {
	s := t.part(rawData)
	if t.Proto.GetDataLocation() == onnxpb.TensorProto_EXTERNAL {
		s = t.ext
	}
	if s == nil || s.file.info == nil {
		return
	}
	if b, err := s.bytes(); err == nil {
		release(b)
	}
}
