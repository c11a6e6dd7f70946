package graph

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"onnx-dha/graph/onnxpb"
)

// The messages of these tests are built and serialised by the protobuf library, which knows nothing of this package.

func rawTensor(name string, n int, seed byte) *onnxpb.TensorProto {
	raw := make([]byte, 4*n)
	for i := range raw {
		raw[i] = byte(i)*31 + seed
		if i%4 == 3 {
			raw[i] = 0x3d // keeps the floats finite
		}
	}
	return &onnxpb.TensorProto{Name: &name, Dims: []int64{int64(n)}, DataType: proto.Int32(1), RawData: raw}
}

func floatInfo(name string, dims ...any) *onnxpb.ValueInfoProto {
	return &onnxpb.ValueInfoProto{Name: &name, Type: TensorType(onnxpb.TensorProto_FLOAT, dims...)}
}

func nodeProto(op, name string, in, out []string, attrs ...*onnxpb.AttributeProto) *onnxpb.NodeProto {
	return &onnxpb.NodeProto{OpType: &op, Name: &name, Input: in, Output: out, Attribute: attrs}
}

func prop(k, v string) *onnxpb.StringStringEntryProto {
	return &onnxpb.StringStringEntryProto{Key: &k, Value: &v}
}

func graphAttr(name string, g *onnxpb.GraphProto) *onnxpb.AttributeProto {
	return &onnxpb.AttributeProto{Name: &name, Type: onnxpb.AttributeProto_GRAPH.Enum(), G: g}
}

func tensorAttr(name string, t *onnxpb.TensorProto) *onnxpb.AttributeProto {
	return &onnxpb.AttributeProto{Name: &name, Type: onnxpb.AttributeProto_TENSOR.Enum(), T: t}
}

// smallModel computes y = x + w.
func smallModel(w *onnxpb.TensorProto) *onnxpb.ModelProto {
	return &onnxpb.ModelProto{
		IrVersion:   proto.Int64(8),
		OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(17)}},
		Graph: &onnxpb.GraphProto{
			Name:        proto.String("g"),
			Input:       []*onnxpb.ValueInfoProto{floatInfo("x", "n")},
			Output:      []*onnxpb.ValueInfoProto{floatInfo("y", "n")},
			Initializer: []*onnxpb.TensorProto{w},
			Node:        []*onnxpb.NodeProto{nodeProto("Add", "add", []string{"x", w.GetName()}, []string{"y"})},
		},
	}
}

// unknown appends a field that no version of the format has.
func unknown(m proto.Message) {
	m.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("from the future")))
}

// richModel holds something of everything that a file may hold: big tensors in every place where one can be, bodies
// inside bodies that read outer values, functions, training information, odd type declarations, unknown fields.
func richModel() *onnxpb.ModelProto {
	m := smallModel(rawTensor("w", 700, 1))
	m.ProducerName, m.ProducerVersion, m.Domain = proto.String("test"), proto.String(""), proto.String("org.example")
	m.ModelVersion, m.DocString = proto.Int64(0), proto.String("doc")
	m.MetadataProps = []*onnxpb.StringStringEntryProto{prop("b", "2"), prop("a", "")}
	m.OpsetImport = append(m.OpsetImport, &onnxpb.OperatorSetIdProto{Domain: proto.String("org.example"), Version: proto.Int64(1)})
	m.Configuration = []*onnxpb.DeviceConfigurationProto{{Name: proto.String("two"), NumDevices: proto.Int32(2), Device: []string{"a", "b"}}}
	unknown(m)

	g := m.Graph
	unknown(g)
	g.DocString = proto.String("a graph")
	g.MetadataProps = []*onnxpb.StringStringEntryProto{prop("k", "v")}
	g.QuantizationAnnotation = []*onnxpb.TensorAnnotation{{TensorName: proto.String("w"),
		QuantParameterTensorNames: []*onnxpb.StringStringEntryProto{prop("SCALE_TENSOR", "scale")}}}
	typed := func(name string, t onnxpb.TensorProto_DataType, n int) *onnxpb.TensorProto {
		return &onnxpb.TensorProto{Name: &name, DataType: proto.Int32(int32(t)), Dims: []int64{int64(n)}}
	}
	floats, halves, longs := typed("floats", onnxpb.TensorProto_FLOAT, 500), typed("halves", onnxpb.TensorProto_FLOAT16, 900), typed("longs", onnxpb.TensorProto_INT64, 800)
	for i := range 500 {
		floats.FloatData = append(floats.FloatData, float32(i)/8)
	}
	for i := range 900 {
		halves.Int32Data = append(halves.Int32Data, int32(0x3c00+i))
	}
	for i := range 800 {
		longs.Int64Data = append(longs.Int64Data, int64(i)*int64(i)-5)
	}
	words := typed("words", onnxpb.TensorProto_STRING, 2)
	words.StringData = [][]byte{[]byte("a"), {}}
	doc := rawTensor("documented", 300, 9)
	doc.DocString, doc.MetadataProps = proto.String("behind the data"), []*onnxpb.StringStringEntryProto{prop("x", "y")}
	unknown(doc)
	g.Initializer = append(g.Initializer, floats, halves, longs, words, doc, rawTensor("tiny", 1, 3), rawTensor("asInput", 600, 4))
	g.Input = append(g.Input, floatInfo("asInput", 600), floatInfo("cond"))
	g.SparseInitializer = []*onnxpb.SparseTensorProto{{
		Values:  rawTensor("sparse", 400, 5),
		Indices: typed("", onnxpb.TensorProto_INT64, 400),
		Dims:    []int64{100000},
	}}
	for i := range 400 {
		g.SparseInitializer[0].Indices.Int64Data = append(g.SparseInitializer[0].Indices.Int64Data, int64(200*i))
	}

	inner := &onnxpb.GraphProto{
		Name:        proto.String("inner"),
		Initializer: []*onnxpb.TensorProto{rawTensor("innerW", 512, 6)},
		Output:      []*onnxpb.ValueInfoProto{floatInfo("innerOut")},
		Node:        []*onnxpb.NodeProto{nodeProto("Mul", "", []string{"y", "innerW"}, []string{"innerOut"})},
	}
	then := &onnxpb.GraphProto{
		Name:      proto.String("then"),
		DocString: proto.String("reads y of the main graph"),
		Output:    []*onnxpb.ValueInfoProto{{Name: proto.String("thenOut")}},
		ValueInfo: []*onnxpb.ValueInfoProto{floatInfo("thenOut", "n")},
		Node: []*onnxpb.NodeProto{
			nodeProto("Constant", "big", nil, []string{"c"}, tensorAttr("value", rawTensor("", 800, 7))),
			nodeProto("If", "nested", []string{"cond"}, []string{"thenOut"}, graphAttr("then_branch", inner), graphAttr("else_branch", proto.Clone(inner).(*onnxpb.GraphProto))),
		},
	}
	els := &onnxpb.GraphProto{ // hands an outer value through
		Output:      []*onnxpb.ValueInfoProto{{Name: proto.String("y")}},
		Initializer: []*onnxpb.TensorProto{rawTensor("unused", 3, 0)},
	}
	branch := nodeProto("If", "branch", []string{"cond"}, []string{"z", ""}, graphAttr("then_branch", then), graphAttr("else_branch", els))
	branch.DocString, branch.Domain = proto.String("explicit empty domain"), proto.String("")
	branch.MetadataProps = []*onnxpb.StringStringEntryProto{prop("namespace", "root")}
	branch.DeviceConfigurations = []*onnxpb.NodeDeviceConfigurationProto{{ConfigurationId: proto.String("two"), PipelineStage: proto.Int32(0)}}
	unknown(branch)
	call := nodeProto("Twice", "call", []string{"z", "", "floats"}, []string{"twice"})
	call.Domain, call.Overload = proto.String("org.example"), proto.String("f")
	list := nodeProto("Bodies", "list", []string{"twice"}, []string{"end"}, &onnxpb.AttributeProto{
		Name: proto.String("graphs"), Type: onnxpb.AttributeProto_GRAPHS.Enum(), Graphs: []*onnxpb.GraphProto{proto.Clone(inner).(*onnxpb.GraphProto), proto.Clone(els).(*onnxpb.GraphProto)},
	}, &onnxpb.AttributeProto{
		Name: proto.String("tensors"), Type: onnxpb.AttributeProto_TENSORS.Enum(), Tensors: []*onnxpb.TensorProto{rawTensor("t0", 2, 0), rawTensor("t1", 300, 0)},
	}, &onnxpb.AttributeProto{
		Name: proto.String("sparse"), Type: onnxpb.AttributeProto_SPARSE_TENSOR.Enum(), SparseTensor: proto.Clone(g.SparseInitializer[0]).(*onnxpb.SparseTensorProto),
	}, IntAttr("zero", 0), FloatAttr("f", 0), StringAttr("s", ""), IntsAttr("ints", 3, -1))
	list.Domain = proto.String("org.example")
	g.Node = append(g.Node, branch, call, list)

	g.Output = append(g.Output, &onnxpb.ValueInfoProto{Name: proto.String("end")}, floatInfo("x"))
	seq := &onnxpb.TypeProto{Denotation: proto.String("d"), Value: &onnxpb.TypeProto_SequenceType{SequenceType: &onnxpb.TypeProto_Sequence{
		ElemType: &onnxpb.TypeProto{Value: &onnxpb.TypeProto_OptionalType{OptionalType: &onnxpb.TypeProto_Optional{ElemType: TensorType(onnxpb.TensorProto_INT4, 1)}}},
	}}}
	g.ValueInfo = []*onnxpb.ValueInfoProto{ // in no order: a value, nobody's name, an output, a weight, an input again
		floatInfo("twice", "n"), {Name: proto.String("nobody"), Type: seq, DocString: proto.String("loose")},
		floatInfo("end", 4), floatInfo("w", 700), floatInfo("z", nil), floatInfo("y", "m"), floatInfo("cond"),
	}
	unknown(g.ValueInfo[0])

	m.Functions = []*onnxpb.FunctionProto{{
		Name: proto.String("Twice"), Domain: proto.String("org.example"), Overload: proto.String("f"),
		Input: []string{"a", "b", "c"}, Output: []string{"o"}, Attribute: []string{"alpha"},
		AttributeProto: []*onnxpb.AttributeProto{tensorAttr("def", rawTensor("default", 300, 8))},
		OpsetImport:    []*onnxpb.OperatorSetIdProto{{Version: proto.Int64(17)}},
		Node: []*onnxpb.NodeProto{
			nodeProto("Constant", "", nil, []string{"k"}, tensorAttr("value", rawTensor("", 900, 2))),
			nodeProto("Add", "", []string{"a", "k"}, []string{"o"}, &onnxpb.AttributeProto{Name: proto.String("alpha"), RefAttrName: proto.String("alpha"), Type: onnxpb.AttributeProto_FLOAT.Enum()}),
		},
		ValueInfo: []*onnxpb.ValueInfoProto{floatInfo("k", 900)}, MetadataProps: []*onnxpb.StringStringEntryProto{prop("from", "test")},
	}}
	m.TrainingInfo = []*onnxpb.TrainingInfoProto{{Algorithm: &onnxpb.GraphProto{
		Name: proto.String("step"), Initializer: []*onnxpb.TensorProto{rawTensor("lr", 400, 0)},
		Node: []*onnxpb.NodeProto{nodeProto("Identity", "", []string{"lr"}, []string{"lr1"})},
	}, UpdateBinding: []*onnxpb.StringStringEntryProto{prop("w", "w1")}}}
	return m
}

func serialise(t testing.TB, m *onnxpb.ModelProto) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustLoad(t testing.TB, path string) *Model {
	t.Helper()
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// checked fails the test when an invariant is broken.
func checked(t testing.TB, m *Model) *Model {
	t.Helper()
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRoundTripIsByteIdentical(t *testing.T) {
	for name, pb := range map[string]*onnxpb.ModelProto{
		"small": smallModel(rawTensor("w", 4, 0)),
		"big":   smallModel(rawTensor("w", 5000, 0)),
		"rich":  richModel(),
	} {
		want := serialise(t, pb)
		in := writeFile(t, filepath.Join(t.TempDir(), "in.onnx"), want)
		m := checked(t, mustLoad(t, in))
		out := filepath.Join(filepath.Dir(in), "out.onnx")
		for range 2 { // saving leaves the model as it was
			if err := m.Save(out, SaveOptions{}); err != nil {
				t.Fatal(name, err)
			}
			if got := readFile(t, out); !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes became %d others", name, len(want), len(got))
			}
		}
		inMemory, err := Read(name, want)
		if err != nil {
			t.Fatal(err)
		}
		if err := checked(t, inMemory).Save(out, SaveOptions{External: "inline"}); err != nil {
			t.Fatal(name, err)
		}
		if got := readFile(t, out); !bytes.Equal(got, want) {
			t.Errorf("%s, in memory: %d bytes became %d others", name, len(want), len(got))
		}
	}
}

// sharedModels lists the ONNX files beside the repository, none when it stands alone.
func sharedModels(t testing.TB) []string {
	t.Helper()
	var files []string
	for _, dir := range []string{"corpus", "models"} {
		filepath.WalkDir(filepath.Join("..", "..", "shared", dir), func(path string, e fs.DirEntry, err error) error {
			if err == nil && filepath.Ext(path) == ".onnx" {
				files = append(files, path)
			}
			return nil
		})
	}
	return files
}

// sortedNodes returns the serialised nodes of a graph in a fixed order, those superseded left out.
func sortedNodes(t testing.TB, g *onnxpb.GraphProto) []string {
	var out []string
	superseded := supersededConstants(g.Node)
	for _, n := range g.Node {
		b, err := canonical.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		if !superseded[n] {
			out = append(out, string(b))
		}
	}
	slices.Sort(out)
	return out
}

func TestRoundTripOfCorpus(t *testing.T) {
	files := sharedModels(t)
	if len(files) == 0 {
		t.Skip("the corpus is not here")
	}
	identical := 0
	for _, path := range files {
		m := checked(t, mustLoad(t, path))
		out := filepath.Join(t.TempDir(), "out.onnx")
		if err := m.Save(out, SaveOptions{}); err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		before, after := readFile(t, path), readFile(t, out)
		if bytes.Equal(before, after) {
			identical++
			continue
		}
		// Left: files whose nodes had to be sorted, and files whose external data has moved.
		var a, b onnxpb.ModelProto
		if err := errorsJoin(proto.Unmarshal(before, &a), proto.Unmarshal(after, &b)); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(sortedNodes(t, a.Graph), sortedNodes(t, b.Graph)) {
			t.Errorf("%s: the nodes differ", path)
		}
		a.Graph.Node, b.Graph.Node = nil, nil
		for _, g := range []*onnxpb.GraphProto{a.Graph, b.Graph} {
			for _, w := range g.Initializer {
				w.ExternalData = nil
			}
		}
		if !proto.Equal(&a, &b) {
			t.Errorf("%s: more than the order of nodes differs", path)
		}
		again := checked(t, mustLoad(t, out))
		for i, v := range m.Graph.Inits {
			want, err1 := v.Init.Bytes()
			got, err2 := again.Graph.Inits[i].Init.Bytes()
			if err := errorsJoin(err1, err2); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: weight %q differs, %v", path, v.Name, err)
			}
		}
	}
	if identical < len(files)/2 {
		t.Errorf("%d of %d files came back byte for byte", identical, len(files))
	}
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestBigDataStaysInTheFile(t *testing.T) {
	m := mustLoad(t, writeFile(t, filepath.Join(t.TempDir(), "m.onnx"), serialise(t, richModel())))
	inFile, inMemory := 0, 0
	seen := func(pb *onnxpb.TensorProto) error {
		inMemory += len(pb.RawData) + 4*len(pb.FloatData) + 4*len(pb.Int32Data) + 8*len(pb.Int64Data)
		for _, p := range m.lazy[pb].parts {
			inFile += int(p.length)
		}
		return nil
	}
	if err := eachTensor(m.assemble().ProtoReflect(), seen); err != nil {
		t.Fatal(err)
	}
	if inFile < 30<<10 || inMemory > 1<<10 {
		t.Errorf("%d bytes of tensor data are in the file and %d in memory", inFile, inMemory)
	}
	if m.files[0].view != nil {
		t.Error("loading and assembling mapped the file")
	}
	got, err := m.Graph.Value("w").Init.Float32s()
	if err != nil {
		t.Fatal(err)
	}
	raw := rawTensor("w", 700, 1)
	want, err := (&Tensor{Proto: raw}).Float32s()
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("lazy weights differ: %v", err)
	}
}

// sparse writes a file whose last size bytes are a hole: zeros that take no room on disk. wrap lists the fields, from the
// outside in, whose contents end with the hole; before is what stands in front of it in the innermost but one.
func sparse(t testing.TB, path string, size uint64, head []byte, wrap []protowire.Number, before ...[]byte) {
	t.Helper()
	tail := []byte{} // what stands in front of the hole, built from the inside out
	for i := len(wrap) - 1; i >= 0; i-- {
		b := protowire.AppendTag(nil, wrap[i], protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(len(tail))+size)
		tail = append(b, tail...)
		if i > 0 {
			tail = append(slices.Clone(before[i-1]), tail...)
		}
	}
	writeFile(t, path, append(slices.Clone(head), tail...))
	if err := os.Truncate(path, int64(uint64(len(head)+len(tail))+size)); err != nil {
		t.Fatal(err)
	}
}

// Protobuf libraries refuse a message of 5 GB; here it costs a few kilobytes, to load and to save.
func TestHugeModelLoadsInLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes sparse files of 5 GB")
	}
	const hole = 5 << 30
	for _, inNode := range []bool{false, true} {
		dir := t.TempDir()
		path := filepath.Join(dir, "huge.onnx")
		pb := smallModel(&onnxpb.TensorProto{Name: proto.String("w"), Dims: []int64{hole / 4}, DataType: proto.Int32(1)})
		g, w := pb.Graph, pb.Graph.Initializer[0]
		pb.Graph, g.Initializer = nil, nil
		if inNode {
			constant := nodeProto("Constant", "constant", nil, []string{"w"})
			value := &onnxpb.AttributeProto{Name: proto.String("value"), Type: onnxpb.AttributeProto_TENSOR.Enum()}
			sparse(t, path, hole, serialise(t, pb), []protowire.Number{7, 1, 5, 5, 9},
				serialiseAny(t, g), serialiseAny(t, constant), serialiseAny(t, value), serialiseAny(t, w))
		} else {
			sparse(t, path, hole, serialise(t, pb), []protowire.Number{7, 5, 9}, serialiseAny(t, g), serialiseAny(t, w))
		}

		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m := checked(t, mustLoad(t, path))
		out := filepath.Join(dir, "out.onnx")
		if err := m.Save(out, SaveOptions{External: "inline"}); err != nil { // moves the weight out, it cannot do otherwise
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
			t.Errorf("loading and saving allocated %d bytes", got)
		}
		if info, err := os.Stat(out); err != nil || info.Size() > 1<<10 {
			t.Errorf("the model file is %d bytes, %v", info.Size(), err)
		}
		again := checked(t, mustLoad(t, out))
		moved := again.Graph.Value("w").Const()
		if moved.ext == nil || moved.ext.length != hole || moved.Len() != hole/4 {
			t.Errorf("the weight is now %v", moved.Proto)
		}
	}
}

func TestHugeStructureIsRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a sparse file of 5 GB")
	}
	path := filepath.Join(t.TempDir(), "huge.onnx")
	sparse(t, path, 5<<30, serialise(t, smallModel(rawTensor("w", 1, 0))), []protowire.Number{6}) // a doc string
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "the model's structure, without its weights, is over the 2 GiB") {
		t.Error(err)
	}
}

func TestUnsortedNodesAreSorted(t *testing.T) {
	pb := smallModel(rawTensor("w", 2, 0))
	pb.Graph.Node = []*onnxpb.NodeProto{
		nodeProto("Relu", "last", []string{"b"}, []string{"y"}),
		nodeProto("Neg", "first", []string{"x"}, []string{"a"}),
		nodeProto("Add", "middle", []string{"a", "w"}, []string{"b"}),
	}
	m, err := Read("m", serialise(t, pb))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, n := range checked(t, m).Graph.Nodes {
		order = append(order, n.Name)
	}
	if want := []string{"first", "middle", "last"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestLastConstantOfANameCounts(t *testing.T) {
	pb := smallModel(rawTensor("w", 1, 0))
	constant := func(x int64) *onnxpb.NodeProto {
		return nodeProto("Constant", "", nil, []string{"c"}, tensorAttr("value", NewTensor("", nil, []int64{x}).Proto))
	}
	pb.Graph.Node = append(pb.Graph.Node, constant(12), constant(3), constant(2))
	m, err := Read("m", serialise(t, pb))
	if err != nil {
		t.Fatal(err)
	}
	got, err := checked(t, m).Graph.Value("c").Const().Int64s()
	if err != nil || !slices.Equal(got, []int64{2}) || len(m.Graph.Nodes) != 2 {
		t.Errorf("c = %v in %d nodes, %v", got, len(m.Graph.Nodes), err)
	}
}

func TestTypesFollowTheirValues(t *testing.T) {
	m, err := Read("m", serialise(t, richModel()))
	if err != nil {
		t.Fatal(err)
	}
	g := m.Graph
	g.Value("end").Info = floatInfo("end", 9)  // was listed twice, differently
	g.Value("twice").Info = floatInfo("", "k") // with a name that does not fit
	g.Value("z").Info = nil
	g.Value("floats").Info = floatInfo("floats", 500) // was not listed
	pb := m.assemble().Graph
	var got []string
	for _, vi := range append(slices.Clone(pb.Output), pb.ValueInfo...) {
		got = append(got, vi.GetName()+" "+dimsOf(vi))
	}
	want := []string{"y n", "end 9", "x ", "twice k", "nobody ", "end 9", "w 700", "y m", "cond ", "floats 500"}
	if !slices.Equal(got, want) {
		t.Errorf("declared types\n%q, want\n%q", got, want)
	}
}

func dimsOf(vi *onnxpb.ValueInfoProto) string {
	var dims []string
	for _, d := range vi.GetType().GetTensorType().GetShape().GetDim() {
		dims = append(dims, strings.TrimSpace(d.GetDimParam()))
		if d.GetDimValue() != 0 {
			dims[len(dims)-1] = protoreflect.ValueOf(d.GetDimValue()).String()
		}
	}
	return strings.Join(dims, ",")
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	w := rawTensor("w", 300, 0)
	good := serialise(t, smallModel(w))
	change := func(f func(*onnxpb.ModelProto)) []byte {
		pb := smallModel(proto.Clone(w).(*onnxpb.TensorProto))
		f(pb)
		return serialise(t, pb)
	}
	deep := func(levels int) []byte {
		return change(func(m *onnxpb.ModelProto) {
			g := &onnxpb.GraphProto{Output: []*onnxpb.ValueInfoProto{floatInfo("x")}, Initializer: []*onnxpb.TensorProto{rawTensor("pad", 300, 0)}}
			for range levels {
				g = &onnxpb.GraphProto{
					Node:   []*onnxpb.NodeProto{nodeProto("If", "deep", []string{"x"}, []string{"o"}, graphAttr("then_branch", g))},
					Output: []*onnxpb.ValueInfoProto{floatInfo("o")},
				}
			}
			m.Graph.Node = append(m.Graph.Node, g.Node...)
		})
	}
	field := func(num protowire.Number, typ protowire.Type, rest ...byte) []byte {
		return append(protowire.AppendTag(nil, num, typ), rest...)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "is not an ONNX model: the file is empty"},
		{"text", []byte("name: my model\nlayers: 12\n"), "is not an ONNX model: it is text"},
		{"lfs", []byte("version 1\noid git-lfs sha256:12\nsize 99\n"), `git lfs pull`},
		{"zip", []byte("PK\x03\x04\x14\x00\x00\x00\x08\x00"), "is not an ONNX model: byte 2: a field tag is not valid"},
		{"cut in the weights", good[:len(good)-400], "is cut off after"},
		{"cut in the graph", good[:30], "is cut off after 30 bytes: byte 2: field 7 is"},
		{"cut behind the graph", change(func(m *onnxpb.ModelProto) { m.OpsetImport = nil }), "imports no opset"},
		{"no graph", change(func(m *onnxpb.ModelProto) { m.Graph = nil }), "it has no graph"},
		{"no nodes", change(func(m *onnxpb.ModelProto) { m.Graph.Node = nil }), "the graph has no nodes"},
		{"another message", serialiseAny(t, rawTensor("w", 9, 0)), "field 2, producer_name, has wire type 0"},
		{"graph twice", append(slices.Clone(good), good...), "the field graph is there twice"},
		{"overlong varint", append(field(1, protowire.VarintType), bytes.Repeat([]byte{0x80}, 11)...), "field 1 is not valid"},
		{"bad wire type", []byte{0x0f}, "field 1 has wire type 7"},
		{"end of no group", field(30, protowire.EndGroupType), "field 30 has wire type 4"},
		{"open group", append(slices.Clone(good), field(30, protowire.StartGroupType)...), "group 30 is cut off"},
		{"crossed groups", slices.Concat(good, field(30, protowire.StartGroupType), field(31, protowire.EndGroupType)), "group 30 ends as group 31"},
		{"deep groups", slices.Concat(good, bytes.Repeat(field(30, protowire.StartGroupType), 500)), "groups are nested more than 400 deep"},
		{"damaged node", change(func(m *onnxpb.ModelProto) {
			m.Graph.Node[0].ProtoReflect().SetUnknown([]byte{0x2a, 0x05, 1})
		}), "the NodeProto that starts here is damaged"},
		{"deep bodies", deep(101), "bodies are nested more than 100 deep"},
		{"deeper messages", deep(200), "messages are nested more than 400 deep"},

		{"undefined input", change(func(m *onnxpb.ModelProto) { m.Graph.Node[0].Input[0] = "nowhere" }), `node 0, Add "add": input 0, "nowhere": nothing produces it`},
		{"undefined output", change(func(m *onnxpb.ModelProto) { m.Graph.Output[0].Name = proto.String("q") }), `graph output "q": nothing produces it`},
		{"undefined in a body", change(func(m *onnxpb.ModelProto) {
			body := &onnxpb.GraphProto{Node: []*onnxpb.NodeProto{nodeProto("Neg", "n", []string{"nowhere"}, []string{"o"})}}
			m.Graph.Node = append(m.Graph.Node, nodeProto("If", "if", []string{"x"}, []string{"z"}, graphAttr("then_branch", body)))
		}), `node 1, If "if": body "then_branch": node 0, Neg "n": input 0, "nowhere": nothing produces it`},
		{"two nodes, one output", change(func(m *onnxpb.ModelProto) {
			m.Graph.Node = append(m.Graph.Node, nodeProto("Neg", "again", []string{"x"}, []string{"y"}))
		}), `node 1, Neg "again": value "y" is defined twice`},
		{"two inputs", change(func(m *onnxpb.ModelProto) { m.Graph.Input = append(m.Graph.Input, floatInfo("x")) }), `graph input: value "x" is defined twice`},
		{"two weights", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer = append(m.Graph.Initializer, w) }), `initializer: value "w" is defined twice`},
		{"weight and output", change(func(m *onnxpb.ModelProto) { m.Graph.Node[0].Output[0] = "w" }), `value "w" is defined twice`},
		{"unnamed weight", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer[0].Name = nil }), "initializer: a value without a name"},
		{"no operator", change(func(m *onnxpb.ModelProto) { m.Graph.Node[0].OpType = nil }), `node 0, "add", has no operator`},
		{"bodies twice", change(func(m *onnxpb.ModelProto) {
			a := graphAttr("then_branch", &onnxpb.GraphProto{})
			m.Graph.Node = append(m.Graph.Node, nodeProto("If", "if", []string{"x"}, []string{"z"}, a, a))
		}), `attribute "then_branch" is given twice`},
		{"cycle", change(func(m *onnxpb.ModelProto) {
			m.Graph.Node = append(m.Graph.Node, nodeProto("Neg", "a", []string{"q"}, []string{"p"}), nodeProto("Neg", "b", []string{"p"}, []string{"q"}))
		}), `the graph has a cycle through node Neg "a"`},
		{"cycle through a body", change(func(m *onnxpb.ModelProto) {
			body := &onnxpb.GraphProto{Output: []*onnxpb.ValueInfoProto{floatInfo("z")}}
			m.Graph.Node = append(m.Graph.Node, nodeProto("If", "if", []string{"x"}, []string{"z"}, graphAttr("then_branch", body)))
		}), `the graph has a cycle through node If "if"`},

		{"negative dims", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer[0].Dims = []int64{-1} }), `tensor "w": dims [-1]: a dimension is negative`},
		{"endless dims", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer[0].Dims = []int64{1 << 40, 1 << 40} }), `tensor "w": dims [1099511627776 1099511627776]: the number of elements overflows`},
		{"wrong dims", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer[0].Dims = []int64{299} }), `tensor "w": dims [299] of FLOAT take 1196 bytes, but the data has 1200`},
		{"no data", change(func(m *onnxpb.ModelProto) { m.Graph.Initializer[0].RawData = nil }), `tensor "w": dims [300] of FLOAT take 300 entries, but the data has 0`},
		{"short typed data", change(func(m *onnxpb.ModelProto) {
			m.Graph.Initializer[0].RawData, m.Graph.Initializer[0].FloatData = nil, make([]float32, 299)
		}), `dims [300] of FLOAT take 1200 bytes, but the data has 1196`},
		{"short varints", change(func(m *onnxpb.ModelProto) {
			t := m.Graph.Initializer[0]
			t.RawData, t.Int64Data, t.DataType, t.Dims = nil, make([]int64, 2000), proto.Int32(7), []int64{1 << 40}
		}), `take 1099511627776 entries, but the data has 2000 bytes`},
		{"strings", change(func(m *onnxpb.ModelProto) {
			t := m.Graph.Initializer[0]
			t.RawData, t.StringData, t.DataType = nil, [][]byte{[]byte("a")}, proto.Int32(8)
		}), `dims [300] take 300 strings, but the data has 1`},
		{"in a node", change(func(m *onnxpb.ModelProto) {
			m.Graph.Node = append(m.Graph.Node, nodeProto("Constant", "c", nil, []string{"q"}, tensorAttr("value", &onnxpb.TensorProto{DataType: proto.Int32(1), RawData: []byte{1}})))
		}), `Constant "c": unnamed tensor: dims [] of FLOAT take 4 bytes, but the data has 1`},
		{"in a function", change(func(m *onnxpb.ModelProto) {
			m.Functions = []*onnxpb.FunctionProto{{Name: proto.String("F"), Node: []*onnxpb.NodeProto{nodeProto("Constant", "", nil, []string{"q"}, tensorAttr("value", &onnxpb.TensorProto{Dims: []int64{-2}}))}}}
		}), `function "F": Constant → "q": unnamed tensor: dims [-2]: a dimension is negative`},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeFile(t, filepath.Join(dir, "bad.onnx"), c.data)
			for _, read := range []func() (*Model, error){
				func() (*Model, error) { return Load(path) },
				func() (*Model, error) { return Read(path, c.data) },
			} {
				_, err := read()
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path) {
					t.Errorf("error %v, want it to say %q of %s", err, c.want, path)
				}
			}
		})
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "is a folder, want an ONNX file") {
		t.Errorf("folder: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "none.onnx")); err == nil || !os.IsNotExist(err) || !strings.Contains(err.Error(), "none.onnx") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(os.DevNull); err == nil || !strings.Contains(err.Error(), "is not a regular file") {
		t.Errorf("device: %v", err)
	}
}

func serialiseAny(t testing.TB, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCutFileSaysWhere(t *testing.T) {
	good := serialise(t, smallModel(rawTensor("w", 300, 0)))
	for n := range good {
		if m, err := Read("m.onnx", good[:n]); err == nil {
			// Whole fields behind the graph may be missing; what is there must be sound.
			checked(t, m)
		} else if !strings.HasPrefix(err.Error(), "m.onnx ") {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestClosedModel(t *testing.T) {
	m := mustLoad(t, writeFile(t, filepath.Join(t.TempDir(), "m.onnx"), serialise(t, smallModel(rawTensor("w", 300, 0)))))
	w := m.Graph.Value("w").Init
	if _, err := w.Bytes(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Bytes(); err == nil || !strings.Contains(err.Error(), `tensor "w": the model is closed`) {
		t.Errorf("closed model: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}
}
