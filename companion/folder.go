package companion

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"onnx-dha/graph"
)

// Folder is a model folder: models, what says how to run them, tokenizers.
type Folder struct {
	Dir    string
	Config string   // config.json or genai_config.json; both may be there, genai_config.json counts
	Models []string // model files, relative to Dir
	Others []string // files that are copied as they are
	Left   []string // files that are left out: weights of the original in other formats
}

// weightFiles are the endings of weights in formats that are not ONNX. They belong to the original's numbers of heads.
var weightFiles = []string{".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".ckpt", ".safetensors.index.json", ".bin.index.json"}

// Open reads what is in a folder.
func Open(dir string) (*Folder, error) {
	f := &Folder{Dir: dir}
	data := map[string]bool{} // files that hold external data
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); path != dir && strings.HasPrefix(name, ".") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil // a version control's or the system's
		}
		// Links are followed, as caches of downloads are made of them.
		info, err := os.Stat(path)
		if err != nil || info.IsDir() {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is neither a file nor a folder", path)
		}
		rel, err := filepath.Rel(dir, path)
		files = append(files, rel)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, rel := range files {
		if filepath.Ext(rel) != ".onnx" {
			continue
		}
		f.Models = append(f.Models, rel)
		locations, err := external(filepath.Join(dir, rel))
		if err != nil {
			return nil, err
		}
		for _, l := range locations {
			data[filepath.Join(filepath.Dir(rel), filepath.FromSlash(l))] = true
		}
	}
	if len(f.Models) == 0 {
		return nil, fmt.Errorf("%s has no .onnx file", dir)
	}
	for _, rel := range files {
		switch {
		case filepath.Ext(rel) == ".onnx" || data[rel]:
		case slices.ContainsFunc(weightFiles, func(end string) bool { return strings.HasSuffix(rel, end) }):
			f.Left = append(f.Left, rel)
		default:
			f.Others = append(f.Others, rel)
		}
	}
	for _, name := range []string{configFile, genaiFile} {
		if slices.Contains(f.Others, name) {
			f.Config = name
		}
	}
	if f.Config == "" {
		return nil, fmt.Errorf("%s has neither a %s nor a %s; want a model folder, or name the .onnx file", dir, configFile, genaiFile)
	}
	return f, nil
}

// external lists the files that a model's weights are in.
func external(path string) ([]string, error) {
	m, err := graph.Load(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return m.ExternalFiles(), nil
}

// Configs lists the configuration files of the folder.
func (f *Folder) Configs() (out []string) {
	for _, name := range []string{configFile, genaiFile} {
		if slices.Contains(f.Others, name) {
			out = append(out, name)
		}
	}
	return out
}

// Copy copies the files that are not models and not configurations into another folder.
func (f *Folder) Copy(to string) error {
	for _, rel := range f.Others {
		if slices.Contains(f.Configs(), rel) {
			continue
		}
		if err := f.CopyFile(rel, to); err != nil {
			return err
		}
	}
	return nil
}

// CopyFile copies one file.
func (f *Folder) CopyFile(rel, to string) (err error) {
	in, err := os.Open(filepath.Join(f.Dir, rel))
	if err != nil {
		return err
	}
	defer in.Close()
	path := filepath.Join(to, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Sync()
}

// Decoder is the model file that the configuration is about, relative to the folder, of those that were written: what
// genai_config.json names, else the first. Of several the first is meant, so that the one with the most caches should lead.
func (f *Folder) Decoder(config string, content []byte, written []string) string {
	if config == genaiFile {
		of := decoders(content)
		if i := slices.IndexFunc(written, func(rel string) bool { return slices.Contains(of, filepath.ToSlash(rel)) }); i >= 0 {
			return written[i]
		}
		return ""
	}
	if len(written) == 0 {
		return ""
	}
	return written[0]
}

// Write brings a configuration file of the folder into agreement with a model and writes it into another folder.
func (f *Folder) Write(config string, to string, i *Interface, data External) (notes []string, verdicts []Verdict, err error) {
	content, err := os.ReadFile(filepath.Join(f.Dir, config))
	if err != nil {
		return nil, nil, err
	}
	var out []byte
	if config == genaiFile {
		out, notes, err = GenAI(content, i)
	} else {
		out, notes, err = Transformers(content, i, data)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", filepath.Join(f.Dir, config), err)
	}
	if err := os.WriteFile(filepath.Join(to, config), out, 0o666); err != nil {
		return nil, nil, err
	}
	return notes, Check(config, i, out, slices.Sorted(maps.Keys(data))), nil
}

// Adapt changes names in a rewritten model that runtimes go by, and says which: transformers.js knows the size of a batch
// in a cache only by the name batch_size.
func Adapt(m *graph.Model, f *Interface) []string {
	old := ""
	for _, c := range slices.Concat(f.Caches, f.Cross) {
		if c.Batch != "" && c.Batch != transformersBatch && transformersPast.MatchString(c.Past) {
			old = c.Batch
		}
	}
	if old == "" || !m.RenameSymbol(old, transformersBatch) {
		return nil
	}
	for _, caches := range [][]Cache{f.Caches, f.Cross} {
		for i := range caches {
			if caches[i].Batch == old {
				caches[i].Batch = transformersBatch
			}
		}
	}
	return []string{fmt.Sprintf("dimension %s is called %s, the name by which transformers.js knows the size of a batch", old, transformersBatch)}
}
