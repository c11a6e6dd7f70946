package graph

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"onnx-dha/graph/onnxpb"
)

// A model's external data must be in its folder: what a stranger's file says must not make the program read others.
func TestExternalDataErrors(t *testing.T) {
	outside := t.TempDir()
	secret := writeFile(t, filepath.Join(outside, "secret.bin"), make([]byte, 4096))
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "data.bin"), make([]byte, 4096))
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o777); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"out.bin":          secret,
		"outdir":           outside,
		"up":               "..",
		"inside.bin":       "data.bin",
		"sub/inside.bin":   "../data.bin",
		"sub/far.bin":      "../../" + filepath.Base(outside) + "/secret.bin",
		"dangling.bin":     "nothing",
		"loop.bin":         "loop.bin",
		"absolute.in.bin":  filepath.Join(dir, "data.bin"),
		"chain.bin":        "out.bin",
		"sub/inside.chain": "inside.bin",
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	const dims = 100 // 400 bytes
	for _, c := range []struct {
		name                     string
		location, offset, length string
		want                     string // empty: it loads
	}{
		{"plain", "data.bin", "0", "400", ""},
		{"dot", "./data.bin", "0", "400", ""},
		{"no offset, no length", "data.bin", "", "", ""},
		{"to the last byte", "data.bin", "3696", "400", ""},
		{"link inside", "inside.bin", "4", "400", ""},
		{"link inside, from a sub-folder", "sub/inside.bin", "4", "400", ""},
		{"link to a link inside", "sub/inside.chain", "4", "400", ""},

		{"no location", "", "0", "400", "no location is given"},
		{"absolute", secret, "0", "400", "must be in the model's folder, not at an absolute path"},
		{"absolute, though inside", filepath.Join(dir, "data.bin"), "0", "400", "not at an absolute path"},
		{"parent", "../" + filepath.Base(outside) + "/secret.bin", "0", "400", `".." is not allowed`},
		{"parent and back", "sub/../data.bin", "0", "400", `".." is not allowed`},
		{"link out", "out.bin", "0", "400", "out.bin, a link that leads out of the model's folder"},
		{"relative link out", "sub/far.bin", "0", "400", "a link that leads out"},
		{"link to a link out", "chain.bin", "0", "400", "a link that leads out"},
		{"folder link out", "outdir/secret.bin", "0", "400", "a link that leads out"},
		{"folder link up", "up/" + filepath.Base(outside) + "/secret.bin", "0", "400", "a link that leads out"},
		{"missing", "none.bin", "0", "400", "none.bin, which does not exist"},
		{"missing, through a link", "dangling.bin", "0", "400", "dangling.bin, which does not exist"},
		{"endless link", "loop.bin", "0", "400", "loop.bin: "},
		{"folder", "sub", "0", "400", "sub, which is not a regular file"},
		{"the folder itself", ".", "0", "400", "which is not a regular file"},
		{"null byte", "a\x00b", "0", "400", "its data is in "},

		{"offset no number", "data.bin", "ten", "400", `the offset of its external data is "ten", want a number of bytes`},
		{"negative offset", "data.bin", "-1", "400", `the offset of its external data is "-1"`},
		{"offset overflow", "data.bin", "99999999999999999999", "400", `the offset of its external data is "99999999999999999999"`},
		{"negative length", "data.bin", "0", "-400", `the length of its external data is "-400"`},
		{"offset behind the end", "data.bin", "5000", "400", "starts at byte 5000 of"},
		{"length behind the end", "data.bin", "3697", "400", "its data is bytes 3697 to 4097 of"},
		{"sum overflow", "data.bin", "4096", "9223372036854775807", "which has 4096"},
		{"too short", "data.bin", "0", "396", "take 400 bytes, but the data has 396"},
		{"too long", "data.bin", "0", "404", "take 400 bytes, but the data has 404"},
		{"rest too short", "data.bin", "3700", "", "take 400 bytes, but the data has 396"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &onnxpb.TensorProto{Name: proto.String("weight"), Dims: []int64{dims}, DataType: proto.Int32(1), DataLocation: onnxpb.TensorProto_EXTERNAL.Enum()}
			for _, e := range [][2]string{{"location", c.location}, {"offset", c.offset}, {"length", c.length}} {
				if e[1] != "" {
					w.ExternalData = append(w.ExternalData, prop(e[0], e[1]))
				}
			}
			path := writeFile(t, filepath.Join(dir, "m.onnx"), serialise(t, smallModel(w)))
			m, err := Load(path)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if x, err := m.Graph.Value("weight").Init.Float32s(); err != nil || len(x) != dims {
					t.Errorf("%d values, %v", len(x), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), path+`: tensor "weight": `) {
				t.Errorf("error %v, want it to say %q", err, c.want)
			}
		})
	}
	w := &onnxpb.TensorProto{Name: proto.String("w"), DataLocation: onnxpb.TensorProto_EXTERNAL.Enum(), ExternalData: []*onnxpb.StringStringEntryProto{prop("location", "data.bin")}}
	if _, err := Read("m", serialise(t, smallModel(w))); err == nil || !strings.Contains(err.Error(), "read from memory and has no folder") {
		t.Errorf("external data in memory: %v", err)
	}
}

// The folder of a model is the one of the path it was asked for, also without a slash and through a link to the folder.
func TestExternalDataBesideTheModel(t *testing.T) {
	dir := t.TempDir()
	path, _, _ := externalModel(t, dir)
	other := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, other); err != nil {
		t.Fatal(err)
	}
	checked(t, mustLoad(t, filepath.Join(other, "model.onnx")))
	t.Chdir(dir)
	m := checked(t, mustLoad(t, filepath.Base(path)))
	if err := m.Save("here.onnx", SaveOptions{External: "share"}); err != nil {
		t.Fatal(err)
	}
	if got := places(t, "here.onnx")["b"]; got != "location=model.data offset=8100 length=160 " {
		t.Errorf("b is at %s", got)
	}
}
