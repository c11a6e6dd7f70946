package verify

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"onnx-dha/data"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
)

// RecordingVersion is the version of the form of a recording.
const RecordingVersion = 1

// defaultRecordBytes bounds what is kept of an output over a whole recording.
const defaultRecordBytes = 16 << 20

// Recorder keeps the inputs of a comparison, and of what the original gives as much as a later comparison of a rewritten
// model needs: whole outputs where they are small, else some of their rows. A nil Recorder keeps nothing.
type Recorder struct {
	// Bytes bounds what is kept of the outputs, about; 0 for 16 MiB.
	Bytes int64

	recording Recording
	arrays    map[string]*ort.Tensor
	inputs    []map[string]*ort.Tensor // of the single runs, all of them
	order     []string                 // of the model's inputs
}

// Recording is what a folder of golden outputs holds beside its arrays.
type Recording struct {
	Version  int    `json:"version"`
	Original string `json:"original"` // the model's file name
	// Fingerprint is that of the original's attention weights (fusion.Fingerprint); empty where nobody said.
	Fingerprint string          `json:"fingerprint,omitempty"`
	Runtime     string          `json:"runtime"`
	Provider    string          `json:"provider"`
	Seed        uint64          `json:"seed"`
	Inputs      string          `json:"inputs"`
	Precision   string          `json:"precision"` // of the original
	Logits      string          `json:"logits,omitempty"`
	Runs        []RecordedRun   `json:"runs"`
	Text        *RecordedText   `json:"text,omitempty"`
	Generated   *RecordedTokens `json:"generated,omitempty"`
}

// RecordedRun is one run of the original, or the runs of a decode. Its arrays are called "N/in/INPUT" and "N/out/OUTPUT",
// where N is its number.
type RecordedRun struct {
	Case  string `json:"case"`
	Batch int    `json:"batch"`
	Seq   int    `json:"seq"`
	// Steps are the tokens of a decode, [step][batch][n]; nil for a single run.
	Steps [][][]int64 `json:"steps,omitempty"`
	// Real marks with false what is padding, [batch][n] of the first step; nil for none.
	Real [][]bool `json:"real,omitempty"`
	// Inputs are the names of inputs that were recorded; the others are caches, which start empty, or follow from the tokens.
	Inputs []string `json:"inputs"`
	// Rows are the numbers of the rows that were kept of each output, over all steps and without those that are padding; a
	// row is what lies on the last axis.
	Rows map[string][]int `json:"rows"`
}

// RecordedText is a text as token ids, in windows, and the original's loss on it.
type RecordedText struct {
	Windows [][]int64 `json:"windows"`
	Loss    TextLoss  `json:"loss"`
}

// RecordedTokens are greedy continuations by the original.
type RecordedTokens struct {
	Prompts [][]int64 `json:"prompts"`
	Tokens  int       `json:"tokens"`
	Got     [][]int64 `json:"continuations"`
}

// rowsPerRun is how many rows of n elements are kept of an output in one run, when a comparison has about eight.
func (r *Recorder) rowsPerRun(n int) int {
	budget := r.Bytes
	if budget <= 0 {
		budget = defaultRecordBytes
	}
	return max(4, int(budget/8/4)/max(n, 1))
}

// describe notes what the original is.
func (r *Recorder) describe(m *Model) {
	r.recording.Precision, r.recording.Logits = m.Precision.String(), m.Logits
}

// Text notes a text in windows, with the original's loss on it.
func (r *Recorder) Text(windows [][]int64, loss TextLoss) {
	r.recording.Text = &RecordedText{windows, loss}
}

// keep notes a tensor: a type that NumPy has not are widened, which loses nothing.
func (r *Recorder) keep(name string, t *ort.Tensor) error {
	if r.arrays == nil {
		r.arrays = map[string]*ort.Tensor{}
	}
	if t.DType == onnxpb.TensorProto_BFLOAT16 {
		x, err := t.Float32s()
		if err != nil {
			return err
		}
		t = ort.FromFloat32(x, t.Shape...)
	}
	r.arrays[name] = t
	return nil
}

// single records one run. real marks positions of the outputs that are not padding, nil for all.
func (r *Recorder) single(m *Model, name string, in, out map[string]*ort.Tensor, real [][]bool) error {
	if r == nil {
		return nil
	}
	r.describe(m)
	n := len(r.recording.Runs)
	run := RecordedRun{Case: name, Rows: map[string][]int{}, Inputs: []string{}, Real: real}
	for _, i := range m.Inputs {
		if i.Role == PastCache {
			continue
		}
		if err := r.keep(fmt.Sprintf("%d/in/%s", n, i.Name), in[i.Name]); err != nil {
			return fmt.Errorf("recording input %q: %w", i.Name, err)
		}
		run.Inputs = append(run.Inputs, i.Name)
		if i.Name == m.Tokens && len(in[i.Name].Shape) == 2 {
			run.Batch, run.Seq = int(in[i.Name].Shape[0]), int(in[i.Name].Shape[1])
		}
	}
	if run.Batch == 0 {
		run.Batch = 1
		for _, i := range m.Inputs {
			if s := in[i.Name].Shape; i.Role != PastCache && len(s) > 0 {
				run.Batch = int(s[0])
				break
			}
		}
	}
	for _, output := range m.Outputs {
		if t := out[output]; t != nil && !m.isPresent(output) {
			if err := r.rows(n, &run, output, []*ort.Tensor{t}, real); err != nil {
				return err
			}
		}
	}
	r.recording.Runs = append(r.recording.Runs, run)
	r.order = nil
	for _, i := range m.Inputs {
		r.order = append(r.order, i.Name)
	}
	r.inputs = append(r.inputs, in)
	return nil
}

// decode records the runs of a decode by their tokens and scores.
func (r *Recorder) decode(m *Model, c decodeCase, steps [][][]int64, scores []*ort.Tensor, fixed map[string]*ort.Tensor) error {
	if r == nil || len(steps) == 0 {
		return nil
	}
	r.describe(m)
	n := len(r.recording.Runs)
	run := RecordedRun{Case: c.name, Batch: c.batch, Seq: c.prompt, Steps: steps, Rows: map[string][]int{}, Inputs: []string{}}
	if c.padded {
		run.Real = padding(c.batch, c.prompt)
	}
	for _, i := range m.Inputs {
		if t := fixed[i.Name]; t != nil && i.Role != PastCache {
			if err := r.keep(fmt.Sprintf("%d/in/%s", n, i.Name), t); err != nil {
				return fmt.Errorf("recording input %q: %w", i.Name, err)
			}
			run.Inputs = append(run.Inputs, i.Name)
		}
	}
	if err := r.rows(n, &run, m.Logits, scores, run.Real); err != nil {
		return err
	}
	r.recording.Runs = append(r.recording.Runs, run)
	return nil
}

// rows keeps rows of an output of several runs, of which real marks those of the first.
func (r *Recorder) rows(n int, run *RecordedRun, output string, runs []*ort.Tensor, real [][]bool) error {
	all, width, err := flatRows(runs, real)
	if err != nil {
		return fmt.Errorf("recording output %q: %w", output, err)
	}
	chosen := evenly(len(all), r.rowsPerRun(width))
	var kept []float32
	for _, i := range chosen {
		for _, x := range all[i] {
			kept = append(kept, float32(x))
		}
	}
	run.Rows[output] = chosen
	return r.keep(fmt.Sprintf("%d/out/%s", n, output), ort.FromFloat32(kept, int64(len(chosen)), int64(width)))
}

// flatRows returns what lies on the last axis of each tensor, without the padding that real marks in the first.
func flatRows(runs []*ort.Tensor, real [][]bool) (rows [][]float64, width int, err error) {
	for step, t := range runs {
		x, err := float64s(t)
		if err != nil {
			return nil, 0, err
		}
		width = 1
		if len(t.Shape) > 0 {
			width = int(t.Shape[len(t.Shape)-1])
		}
		if width == 0 {
			continue
		}
		hidden := func(int) bool { return false }
		if step == 0 && real != nil && len(t.Shape) == 3 && int(t.Shape[0]) == len(real) && int(t.Shape[1]) == len(real[0]) {
			hidden = func(row int) bool { return !real[row/len(real[0])][row%len(real[0])] }
		}
		for row := 0; row*width < len(x); row++ {
			if !hidden(row) {
				rows = append(rows, x[row*width:(row+1)*width])
			}
		}
	}
	return rows, width, nil
}

// evenly chooses k of n, the last one always.
func evenly(n, k int) []int {
	k = min(k, n)
	out := make([]int, k)
	for i := range out {
		out[i] = (i+1)*n/k - 1
	}
	return out
}

// Golden returns the recording without writing it.
func (r *Recorder) Golden(rep *Report, fingerprint string) (*Golden, error) {
	r.complete(rep, fingerprint)
	g := &Golden{Recording: r.recording, arrays: r.arrays}
	return g, g.check()
}

// complete enters what is known when the comparison is over.
func (r *Recorder) complete(rep *Report, fingerprint string) {
	rec := &r.recording
	rec.Version, rec.Original, rec.Fingerprint = RecordingVersion, rep.Original, fingerprint
	rec.Runtime, rec.Seed, rec.Inputs = rep.Runtime, rep.Seed, rep.Inputs
	rec.Provider = cmp.Or(rep.ReferenceProvider, rep.Provider)
	if p := rep.Generated; p != nil {
		rec.Generated = &RecordedTokens{p.Prompts, p.Tokens, p.Original}
	}
}

// Write puts the recording into a folder: golden.json and golden.npz.
func (r *Recorder) Write(folder string, rep *Report, fingerprint string) error {
	r.complete(rep, fingerprint)
	rec := &r.recording
	if len(rec.Runs) == 0 {
		return fmt.Errorf("golden outputs: no run measured drift, so there is nothing to record")
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(folder, goldenArrays))
	if err != nil {
		return err
	}
	if err := data.WriteArrays(f, r.arrays); err != nil {
		f.Close()
		return fmt.Errorf("golden outputs: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return writeJSON(filepath.Join(folder, goldenRecord), rec)
}

// Files of a recording.
const (
	goldenRecord = "golden.json"
	goldenArrays = "golden.npz"
)

// WriteInputs puts the inputs of every single run into a folder as ONNX test data: test_data_set_0/input_0.pb and so on.
func (r *Recorder) WriteInputs(folder string) error {
	for n, in := range r.inputs {
		dir := filepath.Join(folder, fmt.Sprintf("test_data_set_%d", n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		for i, name := range r.order {
			b, err := data.Proto(name, in[name])
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("input_%d.pb", i)), b, 0o644)
			}
			if err != nil {
				return fmt.Errorf("input %q: %w", name, err)
			}
		}
	}
	if len(r.inputs) == 0 {
		return fmt.Errorf("no run measured drift, so there are no inputs to save")
	}
	return nil
}

// sortedNames lists the keys of a map of tensors.
func sortedNames(m map[string]*ort.Tensor) []string { return slices.Sorted(maps.Keys(m)) }
