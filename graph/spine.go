package graph

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph/onnxpb"
)

// spine lists the fields of each message type through which a tensor can be reached, by number, as they are serialised.
var spine = reachTensors(onnxpb.File_graph_onnxpb_onnx_proto)

func reachTensors(file protoreflect.FileDescriptor) map[protoreflect.FullName][]protoreflect.FieldDescriptor {
	reaches := map[protoreflect.FullName]bool{(&onnxpb.TensorProto{}).ProtoReflect().Descriptor().FullName(): true}
	table := map[protoreflect.FullName][]protoreflect.FieldDescriptor{}
	for changed := true; changed; {
		changed = false
		for i := range file.Messages().Len() {
			md := file.Messages().Get(i)
			var through []protoreflect.FieldDescriptor
			for j := range md.Fields().Len() {
				if fd := md.Fields().Get(j); fd.Message() != nil && reaches[fd.Message().FullName()] {
					through = append(through, fd)
				}
			}
			slices.SortFunc(through, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
			if len(through) > len(table[md.FullName()]) {
				table[md.FullName()] = through
				reaches[md.FullName()] = true
				changed = true
			}
		}
	}
	return table
}

// eachTensor calls f for every tensor message below m. An error is wrapped with the node or function it is in.
func eachTensor(m protoreflect.Message, f func(*onnxpb.TensorProto) error) error {
	if t, ok := m.Interface().(*onnxpb.TensorProto); ok {
		return f(t)
	}
	for _, fd := range spine[m.Descriptor().FullName()] {
		if !m.Has(fd) {
			continue
		}
		if !fd.IsList() {
			if err := eachTensor(m.Get(fd).Message(), f); err != nil {
				return within(m, err)
			}
			continue
		}
		for i, l := 0, m.Get(fd).List(); i < l.Len(); i++ {
			if err := eachTensor(l.Get(i).Message(), f); err != nil {
				return within(m, err)
			}
		}
	}
	return nil
}

func within(m protoreflect.Message, err error) error {
	switch m := m.Interface().(type) {
	case *onnxpb.NodeProto:
		if m.GetName() == "" && len(m.Output) > 0 {
			return fmt.Errorf("%s → %q: %w", m.GetOpType(), m.Output[0], err)
		}
		return fmt.Errorf("%s %q: %w", m.GetOpType(), m.GetName(), err)
	case *onnxpb.FunctionProto:
		return fmt.Errorf("function %q: %w", m.GetName(), err)
	}
	return err
}

// shallow copies a message but for the fields that the predicate drops; the parts are shared.
func shallow[M proto.Message](m M, drop func(protoreflect.FieldDescriptor) bool) M {
	src := m.ProtoReflect()
	dst := src.New()
	src.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if drop == nil || !drop(fd) {
			dst.Set(fd, v)
		}
		return true
	})
	if u := src.GetUnknown(); len(u) > 0 {
		dst.SetUnknown(u)
	}
	return dst.Interface().(M)
}
