package graph

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

// maxBodies bounds how deep bodies of If, Loop and Scan may nest.
const maxBodies = 100

// Load opens an ONNX file. Only the structure is read: weights of lazyBytes and more stay in the file, or in the
// external data files beside it, until a tensor is asked for them. The model must be closed.
//
// A file that is no ONNX model, external data that is missing or lies outside the model's folder, a tensor whose dims do
// not fit its data, a name that is defined twice or never, and a cycle are errors that name the thing. Two faults are
// mended, as ONNX Runtime mends them: nodes that are not in topological order are put in order, and of Constant nodes
// that define the same name the last one counts and the others are dropped.
func Load(path string) (*Model, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s is a folder, want an ONNX file", path)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file, want an ONNX file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return nil, err
	}
	dir := &folder{dir: filepath.Dir(path), files: map[string]*mapped{}}
	defer dir.close()
	return load(path, file, info.Size(), &mapped{path: path, info: info}, dir)
}

// Read opens a model that is in memory; name stands for the path in messages. The data must not be changed while the
// model is open. A model with external data is an error: use Load.
func Read(name string, data []byte) (*Model, error) {
	return load(name, bytes.NewReader(data), int64(len(data)), &mapped{path: name, data: data}, &folder{files: map[string]*mapped{}})
}

func load(path string, r io.ReaderAt, size int64, file *mapped, dir *folder) (m *Model, err error) {
	d := &decoder{in: &window{r: r, size: size}, file: file, lazy: map[*onnxpb.TensorProto]*Tensor{}}
	pb, err := d.model()
	if err != nil {
		return nil, notModel(path, r, size, err)
	}
	m = &Model{Path: path, Proto: pb, lazy: d.lazy, files: []*mapped{file}}
	if file.info == nil {
		m.Path = ""
	}
	err = eachTensor(pb.ProtoReflect(), func(t *onnxpb.TensorProto) error {
		lt := m.tensor(t)
		lt.model = m
		if t.GetDataLocation() == onnxpb.TensorProto_EXTERNAL {
			if lt.ext, err = dir.external(t); err != nil {
				return fmt.Errorf("%s: %w", lt.describe(), err)
			}
		}
		if err := lt.checkData(); err != nil {
			return fmt.Errorf("%s: %w", lt.describe(), err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, f := range dir.files {
		m.files = append(m.files, f)
	}
	graph := pb.Graph
	if len(graph.Node) == 0 {
		return nil, fmt.Errorf("%s: the graph has no nodes", path)
	}
	if len(pb.OpsetImport) == 0 && pb.GetIrVersion() >= 3 {
		return nil, fmt.Errorf("%s imports no opset: the file may be cut off", path)
	}
	pb.Graph = nil
	if m.Graph, err = m.build(graph, nil, nil, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	m.Graph.eachGraph(func(g *Graph) {
		for v, d := range g.declared.outputs {
			if v.Graph != g { // only now is it known what the outer graph says of the value
				g.declared.outputs[v] = declare(v, d.proto, false)
			}
		}
	})
	return m, nil
}

// Close releases the memory maps. Bytes that tensors of the model have returned must not be used afterwards.
func (m *Model) Close() error {
	var err error
	for _, f := range m.files {
		err = errors.Join(err, f.close())
	}
	return err
}

// notModel explains why decoding failed.
func notModel(path string, r io.ReaderAt, size int64, err error) error {
	if size == 0 {
		return fmt.Errorf("%s is not an ONNX model: the file is empty", path)
	}
	head := make([]byte, min(size, 512))
	if n, _ := r.ReadAt(head, 0); n > 0 {
		head = head[:n]
	}
	var cut *cutError
	switch {
	case bytes.Contains(head, []byte("git-lfs")) && isText(head):
		return fmt.Errorf("%s is not an ONNX model but a Git LFS pointer to one: fetch the file itself with \"git lfs pull\"", path)
	case isText(head):
		return fmt.Errorf("%s is not an ONNX model: it is text", path)
	case errors.As(err, &cut):
		return fmt.Errorf("%s is cut off after %d bytes: %w", path, size, err)
	}
	return fmt.Errorf("%s is not an ONNX model: %w", path, err)
}

// isText reports whether b looks like the beginning of a text file. (The tag byte of ir_version is a backspace.)
func isText(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 && len(b) >= utf8.UTFMax || r < ' ' && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		b = b[n:]
	}
	return true
}

// declarations remembers how a file listed the types of values, so that saving lists them in the same way.
type declarations struct {
	infos   []declaration // value_info, in file order
	inputs  map[*Value]declaration
	outputs map[*Value]declaration
}

// declaration is one place that gives a value's type.
type declaration struct {
	value *Value // nil when no value has the name
	proto *onnxpb.ValueInfoProto
	// was is a copy of the value's Info as loaded when this place said something else, for instance a shape in one and
	// none in the other. While Info stays as it was, so does the place.
	was *onnxpb.ValueInfoProto
}

// declare notes a place that types v. The first place becomes the value's Info.
func declare(v *Value, pb *onnxpb.ValueInfoProto, own bool) declaration {
	d := declaration{value: v, proto: pb}
	switch {
	case v.Info == nil && own:
		v.Info = pb
	case v.Info == nil:
		d.was = &onnxpb.ValueInfoProto{}
	case v.Info != pb && !proto.Equal(v.Info, pb):
		d.was = proto.Clone(v.Info).(*onnxpb.ValueInfoProto)
	}
	return d
}

// info returns what to write at the place now.
func (d declaration) info() *onnxpb.ValueInfoProto {
	switch {
	case d.was == nil:
		return d.value.Info
	case d.value.Info == nil && proto.Equal(d.was, &onnxpb.ValueInfoProto{}), proto.Equal(d.was, d.value.Info):
		return d.proto
	}
	return d.value.Info
}

// build makes the graph of a message and empties the message's fields that the graph models.
func (m *Model) build(pb *onnxpb.GraphProto, outer *Graph, owner *Node, depth int) (*Graph, error) {
	if depth > maxBodies {
		return nil, fmt.Errorf("bodies are nested more than %d deep", maxBodies)
	}
	g := newGraph(m, outer)
	g.Proto, g.Name, g.Owner = pb, pb.GetName(), owner
	g.declared = &declarations{inputs: map[*Value]declaration{}, outputs: map[*Value]declaration{}}
	if err := g.defineAll(); err != nil {
		return nil, err
	}
	for i, n := range g.Nodes {
		if err := g.connect(n, depth); err != nil {
			return nil, fmt.Errorf("node %d, %v: %w", i, n, err)
		}
	}
	for i, o := range pb.Output {
		v := g.Value(o.GetName())
		if v == nil {
			return nil, fmt.Errorf("graph output %q: nothing produces it", o.GetName())
		}
		v.users = append(v.users, Use{Graph: g, Index: i})
		g.Outputs = append(g.Outputs, v)
		if _, twice := g.declared.outputs[v]; !twice {
			g.declared.outputs[v] = declare(v, o, v.Graph == g)
		}
	}
	var loose []*onnxpb.ValueInfoProto
	for _, vi := range pb.ValueInfo {
		v := g.values[vi.GetName()]
		if v == nil {
			loose = append(loose, vi)
			g.declared.infos = append(g.declared.infos, declaration{proto: vi})
			continue
		}
		g.declared.infos = append(g.declared.infos, declare(v, vi, true))
	}
	pb.Node, pb.Initializer, pb.Input, pb.Output, pb.ValueInfo = nil, nil, nil, nil, loose
	return g, g.Sort()
}

// defineAll creates the nodes and every value of the graph's own scope.
func (g *Graph) defineAll() error {
	for _, in := range g.Proto.Input {
		v := &Value{Name: in.GetName(), IsInput: true}
		if err := g.define(v); err != nil {
			return fmt.Errorf("graph input: %w", err)
		}
		g.declared.inputs[v] = declare(v, in, true)
		g.Inputs = append(g.Inputs, v)
	}
	seen := map[string]bool{}
	weight := func(name string, t *Tensor) error {
		v := g.values[name]
		if seen[name] || v == nil {
			v = &Value{Name: name}
			if err := g.define(v); err != nil {
				return fmt.Errorf("initializer: %w", err)
			}
		}
		seen[name] = true
		if t != nil {
			v.Init = t
			g.Inits = append(g.Inits, v)
		}
		return nil
	}
	for _, t := range g.Proto.Initializer {
		if err := weight(t.GetName(), g.Model.tensor(t)); err != nil {
			return err
		}
	}
	for _, s := range g.Proto.SparseInitializer {
		if err := weight(s.GetValues().GetName(), nil); err != nil {
			return err
		}
	}
	superseded := supersededConstants(g.Proto.Node)
	g.Nodes = make([]*Node, 0, len(g.Proto.Node))
	for i, pb := range g.Proto.Node {
		if superseded[pb] {
			continue
		}
		n := &Node{Name: pb.GetName(), OpType: pb.GetOpType(), Domain: pb.GetDomain(), Proto: pb, Graph: g}
		if n.OpType == "" {
			return fmt.Errorf("node %d, %q, has no operator", i, n.Name)
		}
		for j, name := range pb.Output {
			if name == "" {
				n.Out = append(n.Out, nil)
				continue
			}
			v := &Value{Name: name, Producer: n, Index: j}
			n.Out = append(n.Out, v)
			if err := g.define(v); err != nil {
				return fmt.Errorf("node %d, %v: %w", i, n, err)
			}
		}
		g.Nodes = append(g.Nodes, n)
	}
	return nil
}

// supersededConstants lists the Constant nodes whose name a later Constant node defines again. Tools that patch a constant
// by appending another write such graphs.
func supersededConstants(nodes []*onnxpb.NodeProto) map[*onnxpb.NodeProto]bool {
	constants := map[string]*onnxpb.NodeProto{}
	superseded := map[*onnxpb.NodeProto]bool{}
	for _, n := range nodes {
		if n.GetOpType() != "Constant" || canonicalDomain(n.GetDomain()) != "" || len(n.Output) != 1 {
			continue
		}
		if earlier := constants[n.Output[0]]; earlier != nil {
			superseded[earlier] = true
		}
		constants[n.Output[0]] = n
	}
	return superseded
}

// connect resolves the inputs of a node and builds its bodies.
func (g *Graph) connect(n *Node, depth int) error {
	for i, name := range n.Proto.Input {
		if name == "" {
			n.In = append(n.In, nil)
			continue
		}
		v := g.Value(name)
		if v == nil {
			return fmt.Errorf("input %d, %q: nothing produces it", i, name)
		}
		n.In = append(n.In, v)
		v.users = append(v.users, Use{Node: n, Index: i})
	}
	n.Proto.Input, n.Proto.Output = nil, nil
	for _, a := range n.Proto.Attribute {
		bodies := a.Graphs
		if a.G != nil {
			bodies = append([]*onnxpb.GraphProto{a.G}, a.Graphs...)
		}
		if len(bodies) == 0 {
			continue
		}
		if n.Subgraphs == nil {
			n.Subgraphs = map[string][]*Graph{}
		}
		if _, twice := n.Subgraphs[a.GetName()]; twice {
			return fmt.Errorf("attribute %q is given twice", a.GetName())
		}
		for _, b := range bodies {
			body, err := g.Model.build(b, g, n, depth+1)
			if err != nil {
				return fmt.Errorf("body %q: %w", a.GetName(), err)
			}
			n.Subgraphs[a.GetName()] = append(n.Subgraphs[a.GetName()], body)
		}
	}
	return nil
}
