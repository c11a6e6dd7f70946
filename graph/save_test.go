package graph

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

// externalModel writes a model with two weights in model.data, one of them with a checksum and a key of its own, and
// returns its path and the bytes of the weights.
func externalModel(t testing.TB, dir string) (path string, a, b []byte) {
	t.Helper()
	wa, wb := rawTensor("a", 2000, 1), rawTensor("b", 40, 2)
	a, b = wa.RawData, wb.RawData
	data := slices.Concat(make([]byte, 100), a, b, []byte("tail"))
	writeFile(t, filepath.Join(dir, "model.data"), data)
	sum := sha1.Sum(data)
	external := func(w *onnxpb.TensorProto, entries ...*onnxpb.StringStringEntryProto) {
		w.RawData, w.DataLocation, w.ExternalData = nil, onnxpb.TensorProto_EXTERNAL.Enum(), entries
	}
	external(wa, prop("location", "model.data"), prop("offset", "100"), prop("length", "8000"),
		prop("checksum", hex.EncodeToString(sum[:])), prop("vendor", "x"))
	external(wb, prop("location", "model.data"), prop("offset", "8100")) // the length comes from the dims
	pb := smallModel(wa)
	pb.Graph.Initializer = append(pb.Graph.Initializer, wb, rawTensor("inline", 300, 3))
	pb.Graph.Node = append(pb.Graph.Node, nodeProto("Constant", "const", nil, []string{"c"}, tensorAttr("value", rawTensor("", 500, 4))))
	return writeFile(t, filepath.Join(dir, "model.onnx"), serialise(t, pb)), a, b
}

// places lists where the weights of a file are.
func places(t testing.TB, path string) map[string]string {
	t.Helper()
	var pb onnxpb.ModelProto
	if err := proto.Unmarshal(readFile(t, path), &pb); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	note := func(name string, w *onnxpb.TensorProto) {
		out[name] = "inline"
		if w.GetDataLocation() == onnxpb.TensorProto_EXTERNAL {
			out[name] = ""
			for _, e := range w.ExternalData {
				out[name] += e.GetKey() + "=" + e.GetValue() + " "
			}
		} else if len(w.ExternalData) > 0 {
			out[name] = "inline, with entries of external data"
		}
	}
	for _, w := range pb.Graph.Initializer {
		note(w.GetName(), w)
	}
	for _, n := range pb.Graph.Node {
		for _, a := range n.Attribute {
			if a.T != nil {
				note(n.GetName(), a.T)
			}
		}
	}
	return out
}

// filesIn lists a folder.
func filesIn(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSaveWherever(t *testing.T) {
	for _, c := range []struct {
		external string
		add      bool // a new weight of 2 KiB
		want     map[string]string
	}{
		{"", false, map[string]string{
			"a":      "location=out.onnx.data offset=0 length=8000 checksum=SUM vendor=x ",
			"b":      "location=out.onnx.data offset=8000 length=160 ",
			"inline": "inline", "const": "inline"}},
		{"", true, map[string]string{
			"a":      "location=out.onnx.data offset=0 length=8000 checksum=SUM vendor=x ",
			"b":      "location=out.onnx.data offset=8000 length=160 ",
			"inline": "inline", "const": "inline",
			"new": "location=out.onnx.data offset=8192 length=2048 "}},
		{"inline", true, map[string]string{"a": "inline", "b": "inline", "inline": "inline", "const": "inline", "new": "inline"}},
		{"file", true, map[string]string{
			"a":      "location=out.onnx.data offset=0 length=8000 checksum=SUM vendor=x ",
			"b":      "location=out.onnx.data offset=8000 length=160 ",
			"inline": "location=out.onnx.data offset=8192 length=1200 ", "const": "inline",
			"new": "location=out.onnx.data offset=9408 length=2048 "}},
		{"share", false, map[string]string{
			"a":      "location=model.data offset=100 length=8000 checksum=OLD vendor=x ",
			"b":      "location=model.data offset=8100 length=160 ",
			"inline": "location=model.onnx offset=INLINE length=1200 ", "const": "inline"}},
		{"share", true, map[string]string{
			"a":      "location=model.data offset=100 length=8000 checksum=OLD vendor=x ",
			"b":      "location=model.data offset=8100 length=160 ",
			"inline": "location=model.onnx offset=INLINE length=1200 ", "const": "inline",
			"new": "location=out.onnx.data offset=0 length=2048 "}},
	} {
		t.Run(fmt.Sprintf("%s %v", c.external, c.add), func(t *testing.T) {
			dir := t.TempDir()
			path, a, b := externalModel(t, dir)
			before := map[string][]byte{path: readFile(t, path), filepath.Join(dir, "model.data"): readFile(t, filepath.Join(dir, "model.data"))}
			m := checked(t, mustLoad(t, path))
			fresh := rawTensor("new", 512, 5)
			if c.add {
				m.Graph.AddInit(&Tensor{Proto: proto.Clone(fresh).(*onnxpb.TensorProto)})
			}
			out := filepath.Join(dir, "out.onnx")
			if err := m.Save(out, SaveOptions{External: c.external}); err != nil {
				t.Fatal(err)
			}
			wantFiles := []string{"model.data", "model.onnx", "out.onnx"}
			sum := ""
			if _, err := os.Stat(out + ".data"); err == nil {
				wantFiles = append(wantFiles, "out.onnx.data")
				s := sha1.Sum(readFile(t, out+".data"))
				sum = hex.EncodeToString(s[:])
			}
			old := sha1.Sum(before[filepath.Join(dir, "model.data")])
			inline := bytes.Index(before[path], rawTensor("", 300, 3).RawData)
			fill := strings.NewReplacer("SUM", sum, "OLD", hex.EncodeToString(old[:]), "INLINE", fmt.Sprint(inline))
			got := places(t, out)
			for name, want := range c.want {
				if want = fill.Replace(want); got[name] != want {
					t.Errorf("%s is at %q, want %q", name, got[name], want)
				}
			}
			if got := filesIn(t, dir); !slices.Equal(got, wantFiles) {
				t.Errorf("the folder holds %q, want %q", got, wantFiles)
			}
			again := checked(t, mustLoad(t, out))
			for name, want := range map[string][]byte{"a": a, "b": b, "inline": rawTensor("", 300, 3).RawData, "c": rawTensor("", 500, 4).RawData, "new": fresh.RawData} {
				if name == "new" && !c.add {
					continue
				}
				got, err := again.Graph.Value(name).Const().Bytes()
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s changed on the way, %v", name, err)
				}
			}
			for path, want := range before {
				if !bytes.Equal(readFile(t, path), want) {
					t.Errorf("%s was written to", path)
				}
			}
		})
	}
}

func TestSavedExternalModelSavesAgainTheSame(t *testing.T) {
	dir := t.TempDir()
	path, _, _ := externalModel(t, dir)
	for i := range 3 {
		out := filepath.Join(dir, fmt.Sprint(i), "out.onnx")
		if err := os.Mkdir(filepath.Dir(out), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := mustLoad(t, path).Save(out, SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		if i > 0 && !(bytes.Equal(readFile(t, path), readFile(t, out)) && bytes.Equal(readFile(t, path+".data"), readFile(t, out+".data"))) {
			t.Error("a second round changes the files")
		}
		path = out
	}
}

func TestSharedRangesStayShared(t *testing.T) {
	dir := t.TempDir()
	path, a, _ := externalModel(t, dir)
	var pb onnxpb.ModelProto
	if err := proto.Unmarshal(readFile(t, path), &pb); err != nil {
		t.Fatal(err)
	}
	tied := proto.Clone(pb.Graph.Initializer[0]).(*onnxpb.TensorProto)
	tied.Name = proto.String("tied")
	pb.Graph.Initializer = append(pb.Graph.Initializer, tied)
	writeFile(t, path, serialise(t, &pb))
	out := filepath.Join(dir, "out.onnx")
	if err := mustLoad(t, path).Save(out, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	at := places(t, out)
	if at["a"] != at["tied"] {
		t.Errorf("a at %s, tied at %s", at["a"], at["tied"])
	}
	got, err := mustLoad(t, out).Graph.Value("tied").Init.Bytes()
	if err != nil || !bytes.Equal(got, a) {
		t.Errorf("tied weight changed, %v", err)
	}
}

func TestTypedDataMovesToADataFile(t *testing.T) {
	pb := richModel()
	dir := t.TempDir()
	m := mustLoad(t, writeFile(t, filepath.Join(dir, "m.onnx"), serialise(t, pb)))
	out := filepath.Join(dir, "out.onnx")
	if err := m.Save(out, SaveOptions{External: "file"}); err != nil {
		t.Fatal(err)
	}
	again := checked(t, mustLoad(t, out))
	for _, want := range m.Graph.Inits {
		got := again.Graph.Value(want.Name).Init
		if want.Init.DType() == onnxpb.TensorProto_STRING {
			continue
		}
		if (got.ext != nil) != (want.Name != "tiny") {
			t.Errorf("%s external: %v", want.Name, got.ext != nil)
		}
		a, err1 := want.Init.Float64s()
		b, err2 := got.Float64s()
		if err := errorsJoin(err1, err2); err != nil || !slices.Equal(a, b) {
			t.Errorf("%s changed, %v", want.Name, err)
		}
	}
}

// A weight that another model's file holds is copied from there.
func TestWeightOfAnotherModel(t *testing.T) {
	dir := t.TempDir()
	from := mustLoad(t, writeFile(t, filepath.Join(dir, "from.onnx"), serialise(t, smallModel(rawTensor("w", 400, 6)))))
	into := mustLoad(t, writeFile(t, filepath.Join(dir, "into.onnx"), serialise(t, smallModel(rawTensor("w", 400, 0)))))
	into.Graph.Value("w").Init = from.Graph.Value("w").Init
	out := filepath.Join(dir, "out.onnx")
	if err := into.Save(out, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, want := readFile(t, out), readFile(t, from.Path); !bytes.Equal(got, want) {
		t.Error("the weight of the other model did not arrive")
	}
	err := into.Save(from.Path, SaveOptions{})
	if err == nil || !strings.Contains(err.Error(), "is a file with weights in use") {
		t.Errorf("saving over the other model: %v", err)
	}
	// The bare message of a lazy tensor says nothing of where its bytes are.
	into.Graph.AddNode("Constant", "", "c", nil, []string{"c"}, tensorAttr("value", from.Graph.Value("w").Init.Proto))
	if err := into.Save(out, SaveOptions{}); err != nil {
		t.Errorf("a message that is known: %v", err)
	}
	third := mustLoad(t, out)
	third.Graph.AddNode("Constant", "", "d", nil, []string{"d"}, tensorAttr("value", from.Graph.Value("w").Init.Proto))
	if err := third.Save(filepath.Join(dir, "third.onnx"), SaveOptions{}); err == nil || !strings.Contains(err.Error(), "but the data has 0") {
		t.Errorf("a message that is not known: %v", err)
	}
}

func TestSaveRefuses(t *testing.T) {
	dir := t.TempDir()
	path, _, _ := externalModel(t, dir)
	link := func(to, name string, hard bool) string {
		name = filepath.Join(dir, name)
		f := os.Symlink
		if hard {
			f = os.Link
		}
		if err := f(to, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	data := filepath.Join(dir, "model.data")
	soft, hard := link(path, "soft.onnx", false), link(path, "hard.onnx", true)
	softData := link(data, "x.onnx.data", false)
	hardData := link(data, "y.onnx.data", true)
	other := t.TempDir()
	before, beforeData, names := readFile(t, path), readFile(t, data), filesIn(t, dir)
	m := mustLoad(t, path)
	for _, c := range []struct{ out, external, want string }{
		{path, "", "is the input model"},
		{path, "share", "is the input model"},
		{filepath.Join(dir, ".", "..", filepath.Base(dir), "model.onnx"), "", "is the input model"},
		{soft, "", "is the input model"},
		{hard, "inline", "is the input model"},
		{data, "", "is a data file of the input model"},
		{softData, "inline", "is a data file of the input model"},
		{filepath.Join(dir, "x.onnx"), "", "x.onnx.data is a data file of the input model"},
		{filepath.Join(dir, "y.onnx"), "file", "y.onnx.data is a data file of the input model"},
		{hardData, "", "is a data file of the input model"},
		{filepath.Join(other, "out.onnx"), "share", "is not in the folder of the output"},
		{other, "", "is a folder"},
		{filepath.Join(other, "none", "out.onnx"), "", "no such file or directory"},
		{filepath.Join(other, "out.onnx"), "elsewhere", `external data "elsewhere": want inline, file, share, or nothing`},
	} {
		err := m.Save(c.out, SaveOptions{External: c.external})
		if err == nil || !strings.Contains(err.Error(), c.want) || c.external != "elsewhere" && !strings.Contains(err.Error(), filepath.Clean(c.out)) && !strings.Contains(err.Error(), c.out) {
			t.Errorf("Save(%s, %q): %v, want it to say %q", c.out, c.external, err, c.want)
		}
	}
	if !bytes.Equal(readFile(t, path), before) || !bytes.Equal(readFile(t, data), beforeData) {
		t.Error("an input was written to")
	}
	if got := filesIn(t, dir); !slices.Equal(got, names) {
		t.Errorf("left behind: %q", got)
	}
	if got := filesIn(t, other); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestFailedSaveLeavesNothing(t *testing.T) {
	dir, outDir := t.TempDir(), t.TempDir()
	out := filepath.Join(outDir, "out.onnx")
	empty := func(what string) {
		t.Helper()
		if got := filesIn(t, outDir); len(got) > 0 {
			t.Errorf("%s left %q behind", what, got)
		}
	}
	path, _, _ := externalModel(t, dir)

	m := mustLoad(t, path)
	data := filepath.Join(dir, "model.data")
	if err := os.Truncate(data, 5000); err != nil {
		t.Fatal(err)
	}
	for _, external := range []string{"", "inline"} {
		if err := m.Save(out, SaveOptions{External: external}); err == nil || !strings.Contains(err.Error(), "model.data has changed since the model was loaded") {
			t.Errorf("data file cut: %v", err)
		}
		empty("a cut data file")
	}
	if _, err := m.Graph.Value("a").Init.Bytes(); err == nil || !strings.Contains(err.Error(), `tensor "a": `) || !strings.Contains(err.Error(), "has changed since") {
		t.Errorf("reading a cut data file: %v", err)
	}

	// A panic half way: the second tensor has no file.
	path, _, _ = externalModel(t, dir)
	m = mustLoad(t, path)
	long := &onnxpb.TensorProto{Name: proto.String("long"), DataType: proto.Int32(7), Dims: []int64{1000}}
	m.Graph.AddInit(&Tensor{Proto: long, parts: []part{{int64Data, source{nil, 0, 2000}}}})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic: the test does not test what it says")
			}
		}()
		m.Save(out, SaveOptions{External: "inline"})
	}()
	empty("a panic")

	// The model file cannot take its name: the data file, which has its own already, goes again.
	path, _, _ = externalModel(t, dir)
	m = mustLoad(t, path)
	s := newSaver(m, out)
	if err := s.place(m.assemble(), "file", false); err != nil {
		t.Fatal(err)
	}
	msg, err := s.encode(m.assemble().ProtoReflect())
	if err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(out, "in the way"), 0o777)
	if err := s.write(m.assemble(), msg); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if got := filesIn(t, outDir); !slices.Equal(got, []string{"out.onnx"}) {
		t.Errorf("a failed rename left %q behind", got)
	}
}

func TestSaveReplacesAnOldOutput(t *testing.T) {
	dir := t.TempDir()
	path, _, _ := externalModel(t, dir)
	m := mustLoad(t, path)
	out := filepath.Join(dir, "out.onnx")
	writeFile(t, out, []byte("old"))
	writeFile(t, out+".data", bytes.Repeat([]byte("old"), 10000))
	reader, err := os.Open(out) // somebody who has the old file open keeps it whole
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if err := m.Save(out, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	old := make([]byte, 8)
	if n, _ := reader.Read(old); string(old[:n]) != "old" {
		t.Error("the old output was written into")
	}
	checked(t, mustLoad(t, out))
	if info, err := os.Stat(out); err != nil || info.Mode().Perm()&0o400 == 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestBuiltModelIsSaved(t *testing.T) {
	m := New(10, 21)
	x := m.Graph.AddInput("x", TensorType(onnxpb.TensorProto_FLOAT, "batch", 3))
	w := m.Graph.AddInit(NewTensor("w", []int64{3}, []float32{1, 2, 3}))
	n := m.Graph.AddNode("Add", "", "add", []*Value{x, w}, []string{"y"})
	m.Graph.AddOutput(n.Out[0], TensorType(onnxpb.TensorProto_FLOAT, "batch", 3))
	n.Out[0].Info.DocString = proto.String("sum")
	m.Graph.Name = "built"
	out := filepath.Join(t.TempDir(), "m.onnx")
	if err := checked(t, m).Save(out, SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	var got onnxpb.ModelProto
	if err := proto.Unmarshal(readFile(t, out), &got); err != nil {
		t.Fatal(err)
	}
	y := floatInfo("y", "batch", 3)
	y.DocString = proto.String("sum")
	want := &onnxpb.ModelProto{
		IrVersion:   proto.Int64(10),
		OpsetImport: []*onnxpb.OperatorSetIdProto{{Domain: proto.String(""), Version: proto.Int64(21)}},
		Graph: &onnxpb.GraphProto{
			Name: proto.String("built"), Input: []*onnxpb.ValueInfoProto{floatInfo("x", "batch", 3)}, Output: []*onnxpb.ValueInfoProto{y},
			Initializer: []*onnxpb.TensorProto{{Name: proto.String("w"), Dims: []int64{3}, DataType: proto.Int32(1),
				RawData: []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x40, 0, 0, 0x40, 0x40}}},
			Node: []*onnxpb.NodeProto{{OpType: proto.String("Add"), Name: proto.String("add"), Input: []string{"x", "w"}, Output: []string{"y"}}},
		},
	}
	if !proto.Equal(&got, want) {
		t.Errorf("wrote\n%v\nwant\n%v", &got, want)
	}
}

// Both ways of writing beside the output: a file without a name, and under a name of its own where there are none.
func TestPendingFile(t *testing.T) {
	for _, named := range []bool{false, true} {
		dir := t.TempDir()
		start := func() *pending {
			p := &pending{path: filepath.Join(dir, "out")}
			err := error(nil)
			if named {
				err = p.underTemp(func(name string) (err error) {
					p.file, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
					return err
				})
			} else {
				p, err = create(p.path)
			}
			if err == nil {
				_, err = p.file.WriteString("new")
			}
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		a, b := start(), start() // two at once do not meet
		if named && a.temp == b.temp {
			t.Errorf("both are %s", a.temp)
		}
		b.undo()
		writeFile(t, filepath.Join(dir, "out"), []byte("the old one"))
		if err := a.commit(); err != nil {
			t.Fatal(err)
		}
		if got := filesIn(t, dir); !slices.Equal(got, []string{"out"}) || string(readFile(t, filepath.Join(dir, "out"))) != "new" {
			t.Errorf("the folder holds %q", got)
		}
	}
}

func TestComputedWeights(t *testing.T) {
	dir := t.TempDir()
	path, _, _ := externalModel(t, dir)
	want := rawTensor("", 500, 9).RawData
	for _, external := range []string{"", "inline", "file", "share"} {
		m := mustLoad(t, path)
		calls := 0
		fresh := Computed("new", onnxpb.TensorProto_FLOAT, []int64{500}, 2000, func() ([]byte, error) { calls++; return want, nil })
		m.Graph.AddInit(fresh)
		out := filepath.Join(dir, "out.onnx")
		if err := checked(t, m).Save(out, SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		if calls != 1 {
			t.Errorf("%q: the bytes were made %d times", external, calls)
		}
		got, err := checked(t, mustLoad(t, out)).Graph.Value("new").Init.Bytes()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%q: the weight did not arrive, %v", external, err)
		}
	}
	m, empty := mustLoad(t, path), t.TempDir()
	m.Graph.AddInit(Computed("short", onnxpb.TensorProto_FLOAT, []int64{500}, 2000, func() ([]byte, error) { return want[:8], nil }))
	for _, external := range []string{"inline", "file"} {
		err := m.Save(filepath.Join(empty, "out.onnx"), SaveOptions{External: external})
		if err == nil || !strings.Contains(err.Error(), `tensor "short": 8 bytes were made, 2000 promised`) {
			t.Errorf("%s: %v", external, err)
		}
	}
	if got := filesIn(t, empty); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

// Holes in a file of weights are zeros, wherever they lie in the range that is copied.
func TestCopyKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	const page, pages = 64 << 10, 8
	for pattern := range 1 << 4 { // which pairs of pages hold data
		path := filepath.Join(dir, "weights")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range pages {
			if pattern>>(i/2)&1 == 1 {
				if _, err := f.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, page), int64(i*page)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errorsJoin(f.Truncate(page*pages), f.Close()); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		whole := readFile(t, path)
		for _, r := range [][2]int64{{0, page * pages}, {100, page*pages - 300}, {page, 4 * page}, {3*page + 7, 1}, {page * pages, 0}} {
			to, err := os.Create(filepath.Join(dir, "copy"))
			if err != nil {
				t.Fatal(err)
			}
			c := &copier{}
			_, err = to.WriteString("before")
			err = errorsJoin(err, c.copy(to, &source{&mapped{path: path, info: info}, r[0], r[1]}))
			_, err2 := to.WriteString("behind")
			c.close()
			if err := errorsJoin(err, err2, to.Close()); err != nil {
				t.Fatal(err)
			}
			want := slices.Concat([]byte("before"), whole[r[0]:r[0]+r[1]], []byte("behind"))
			if !bytes.Equal(readFile(t, to.Name()), want) {
				t.Fatalf("pattern %b, %d bytes from %d: the copy differs", pattern, r[1], r[0])
			}
		}
	}
}
