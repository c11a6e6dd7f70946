package data

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// readTestSets reads the folders of ONNX's own tests: test_data_set_0 and so on in a model's folder, or one of them. Each
// is a sample, with the outputs that it expects.
func readTestSets(path string, o Options) (*Set, error) {
	folders := []string{path}
	if inputs, _ := numbered(path, "input_", ".pb"); len(inputs) == 0 {
		sets, err := numbered(path, "test_data_set_", "")
		if err != nil {
			return nil, err
		}
		if len(sets) == 0 {
			return nil, errors.New("the folder has neither test_data_set_0 nor input_0.pb; want " + sources)
		}
		folders = folders[:0]
		for _, s := range sets {
			folders = append(folders, filepath.Join(path, s.name))
		}
	}
	var samples []Sample
	for _, folder := range folders {
		s, err := readTestSet(folder, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(folder), err)
		}
		samples = append(samples, s)
	}
	return splitSamples(samples, o)
}

func readTestSet(folder string, o Options) (Sample, error) {
	s := Sample{Source: filepath.Base(folder)}
	var err error
	if s.Tensors, err = readProtos(folder, "input", o.Inputs); err != nil {
		return s, err
	}
	names := make([]string, 0, len(s.Tensors))
	for _, in := range o.Inputs {
		t := s.Tensors[in.Name]
		if t == nil {
			continue
		}
		names = append(names, in.Name)
		if t, err = toType(t, in.DType); err == nil {
			err = checkShape(t.Shape, in)
		}
		if err != nil {
			return s, fmt.Errorf("input %q: %w", in.Name, err)
		}
		s.Tensors[in.Name] = t
	}
	if err := checkNames(names, o); err != nil {
		return s, err
	}
	if len(o.Outputs) > 0 {
		if s.Expected, err = readProtos(folder, "output", o.Outputs); err != nil {
			return s, err
		}
		if len(s.Expected) == 0 {
			s.Expected = nil
		}
	}
	return s, nil
}

// readProtos reads the tensors input_0.pb, input_1.pb and so on. They are the model's in its order, or by the names that they
// have when all of these are the model's.
func readProtos(folder, what string, model []ort.IO) (map[string]*ort.Tensor, error) {
	files, err := numbered(folder, what+"_", ".pb")
	if err != nil {
		return nil, err
	}
	if len(files) > len(model) {
		return nil, fmt.Errorf("it has %d %ss, the model %d", len(files), what, len(model))
	}
	tensors := make([]*ort.Tensor, len(files))
	byName := map[string]*ort.Tensor{}
	for i, f := range files {
		if f.number != i {
			return nil, fmt.Errorf("it has %s, but no %s_%d.pb", f.name, what, i)
		}
		var name string
		if tensors[i], name, err = readProto(filepath.Join(folder, f.name)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if slices.ContainsFunc(model, func(io ort.IO) bool { return io.Name == name }) {
			byName[name] = tensors[i]
		}
	}
	if len(byName) == len(files) {
		return byName, nil
	}
	out := make(map[string]*ort.Tensor, len(files))
	for i, t := range tensors {
		out[model[i].Name] = t
	}
	return out, nil
}

func readProto(path string) (*ort.Tensor, string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", plain(err)
	}
	var pb onnxpb.TensorProto
	if err := proto.Unmarshal(b, &pb); err != nil {
		return nil, "", fmt.Errorf("%w; want a TensorProto", err)
	}
	raw, err := (&graph.Tensor{Proto: &pb}).Bytes()
	if err != nil {
		return nil, "", fmt.Errorf("%w; want a tensor of numbers or booleans", err)
	}
	t := &ort.Tensor{DType: onnxpb.TensorProto_DataType(pb.GetDataType()), Shape: pb.Dims, Raw: raw}
	if bigEndian {
		swapBytes(t.Raw, elementSize(t.DType))
	}
	return t, pb.GetName(), t.Check()
}

// entry is a file or folder whose name has a number.
type entry struct {
	name   string
	number int
}

// numbered lists what a folder has under names of prefix, number and suffix, by number.
func numbered(folder, prefix, suffix string) ([]entry, error) {
	list, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, e := range list {
		text, ok := strings.CutPrefix(e.Name(), prefix)
		if text, ok2 := strings.CutSuffix(text, suffix); ok && ok2 {
			if n, err := strconv.Atoi(text); err == nil && n >= 0 {
				out = append(out, entry{e.Name(), n})
			}
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return a.number - b.number })
	return out, nil
}
