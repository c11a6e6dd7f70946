package learn

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"gonum.org/v1/gonum/mat"

	"onnx-dha/fusion"
)

// state is what a run that was stopped leaves for the next one: what it measured and the layers that it finished. The
// search depends on nothing but its arguments and these measurements, so a run that takes them over goes the same way.
type state struct {
	Version  int
	Request  string // hash of the request; another request starts afresh
	Measured map[string]float64
	Choices  []fusion.Choice // of the layers below
	Layers   []savedLayer
	Rows     map[string]savedRow // of a comparison, by strategy and share
}

// savedRow is a finished row of a comparison.
type savedRow struct {
	Choices []fusion.Choice
	Quality Quality
	Bytes   int64
	Notes   []string
	Elapsed time.Duration
}

// savedLayer is one finished layer.
type savedLayer struct {
	Kept                 bool // the block stays as it is
	Key, Value           fusion.Fusion
	KeyError, ValueError float64
	Note                 string
	Learned              *savedWeights
}

// savedWeights is fusion.Learned with its matrices by name.
type savedWeights struct {
	Matrices map[string]*mat.Dense
	Biases   map[string][]float64
}

const stateVersion = 2

func saveWeights(l *fusion.Learned) *savedWeights {
	if l == nil {
		return nil
	}
	s := &savedWeights{Matrices: map[string]*mat.Dense{}, Biases: map[string][]float64{}}
	for name, m := range map[string]*mat.Dense{"query": l.Query, "key": l.Key, "value": l.Value, "output": l.Output} {
		if m != nil {
			s.Matrices[name] = m
		}
	}
	for name, b := range map[string][]float64{"query": l.QueryBias, "key": l.KeyBias, "value": l.ValueBias, "output": l.OutputBias} {
		if b != nil {
			s.Biases[name] = b
		}
	}
	return s
}

func (s *savedWeights) learned() *fusion.Learned {
	if s == nil {
		return nil
	}
	return &fusion.Learned{
		Query: s.Matrices["query"], Key: s.Matrices["key"], Value: s.Matrices["value"], Output: s.Matrices["output"],
		QueryBias: s.Biases["query"], KeyBias: s.Biases["key"], ValueBias: s.Biases["value"], OutputBias: s.Biases["output"],
	}
}

func saveLayer(l *Layer) savedLayer {
	out := savedLayer{Kept: l.Solution == nil, Key: l.Plan.Key, Value: l.Plan.Value, Learned: saveWeights(l.Plan.Learned)}
	if s := l.Solution; s != nil {
		out.KeyError, out.ValueError, out.Note = s.KeyError, s.ValueError, s.Note
	}
	return out
}

// layer makes the finished layer of block i again.
func (s *Sequence) layer(i int, c fusion.Choice, saved savedLayer) (*Layer, error) {
	l := &Layer{Choice: c, Plan: &fusion.BlockPlan{Block: s.Lab.Blocks[i], Key: saved.Key, Value: saved.Value, Learned: saved.Learned.learned()}}
	if !saved.Kept {
		l.Solution = &fusion.Solution{Key: saved.Key, Value: saved.Value, KeyError: saved.KeyError, ValueError: saved.ValueError, Note: saved.Note, Learned: l.Plan.Learned}
	}
	return l, s.tie(i, l)
}

// digest identifies what a state belongs to.
func digest(parts ...any) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%v\x00", p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func newState(request string) *state {
	return &state{Version: stateVersion, Request: request, Measured: map[string]float64{}, Rows: map[string]savedRow{}}
}

// loadState reads the state at path for a request. A state of another request, or none, gives an empty one and false.
func loadState(path, request string) (s *state, resumed bool, err error) {
	s = newState(request)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	var have state
	if err := gob.NewDecoder(bytes.NewReader(data)).Decode(&have); err != nil || have.Version != stateVersion {
		return nil, false, fmt.Errorf("%s is no state that this version can go on from; remove it, or start without --resume", path)
	}
	if have.Request != request {
		return s, false, nil
	}
	// gob leaves empty maps out
	if have.Measured == nil {
		have.Measured = s.Measured
	}
	if have.Rows == nil {
		have.Rows = s.Rows
	}
	return &have, true, nil
}

// save writes the state so that it is there whole or as it was before.
func (s *state) save(path string) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(s); err != nil {
		return fmt.Errorf("state %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".learn-state-*")
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("state %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
