// Package data reads what a model is calibrated and measured on: text, lists of token ids, and tensors.
package data

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"onnx-dha/ort"
)

// Options say how a source is read and cut into samples. The zero value takes everything for training, text in windows
// of DefaultSeqLen tokens.
type Options struct {
	// Tokenizer is the path of what turns text into token ids, see tokenizer.Open. Only text needs one.
	Tokenizer string
	// Bare leaves out the special tokens that the tokenizer puts around a text, such as BOS or [CLS] … [SEP].
	// Otherwise every sample of a text has them, inside its SeqLen tokens.
	Bare bool
	// Separator, such as "<|endoftext|>", stands between the documents of a text file. It is not part of them, nor is
	// the white space around it. Without one the file is a single document.
	Separator string
	// SeqLen is the number of tokens in a sample. Longer documents are cut into consecutive samples, of which a shorter
	// rest is dropped; a document that is shorter is a sample of its own. 0 is DefaultSeqLen for text and leaves
	// lists of token ids as they are.
	SeqLen int
	// Samples and HeldOutSamples bound the samples of the two parts, taken evenly over each; 0 is no bound.
	Samples, HeldOutSamples int
	// HeldOut is the share of the source, at its end, that is kept for reporting, at least 0 and below 1.
	HeldOut float64
	// Inputs and Outputs are those of the model, in its order; sources of tensors need the former. Optional names
	// inputs that a sample may lack, because the caller makes them: masks, positions, caches.
	Inputs, Outputs []ort.IO
	Optional        []string
}

// DefaultSeqLen is the number of tokens in a sample of text when the options do not say.
const DefaultSeqLen = 256

// Sample is one run of a model: either token ids or tensors by input name.
type Sample struct {
	Source string // where it comes from, for messages: `line 3`, `token 512`, `test_data_set_0`
	Tokens []int64
	// Tensors are the model's inputs by name, with one batch element unless the source fixes more.
	Tensors map[string]*ort.Tensor
	// Expected are outputs by name that the source says the model gives for Tensors; nil when it says nothing.
	Expected map[string]*ort.Tensor
}

// Set is a source cut into samples.
type Set struct {
	path           string
	tokens         bool
	tokenizer      Tokenizer
	train, heldOut []Sample
}

// Tokens reports whether samples are token ids rather than tensors.
func (s *Set) Tokens() bool { return s.tokens }

// Tokenizer returns what made the tokens of a text, nil for other sources.
func (s *Set) Tokenizer() Tokenizer { return s.tokenizer }

// Train returns the samples to learn from, in the order of the source. There is at least one.
func (s *Set) Train() []Sample { return s.train }

// HeldOut returns the samples kept for reporting, in the order of the source; they share no token with Train's.
// There is at least one when Options.HeldOut is above 0, else none.
func (s *Set) HeldOut() []Sample { return s.heldOut }

// reader makes a set of a source of one kind.
type reader struct {
	ext  []string // of file names
	read func(path string, o Options) (*Set, error)
}

// readers are the kinds of files that their names tell; others are text.
var readers = []reader{
	{[]string{".jsonl", ".ndjson"}, readLines},
	{[]string{".npz"}, readArrays},
	{[]string{".npy"}, readArray},
}

// sources are what Open reads, for people.
const (
	sources = "text, " + notText
	notText = "JSON lines (.jsonl), arrays (.npz, .npy), or a folder with test_data_set_0"
)

// Open reads a source. The kind is told by the name: JSON lines of token ids or of text (.jsonl, .ndjson), arrays by
// input name (.npz), token ids or a single input (.npy), a folder of ONNX test data (test_data_set_0, or its parent);
// anything else is text.
func Open(path string, o Options) (*Set, error) {
	s, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("data %q: %w", path, plain(err))
	}
	s.path = path
	return s, nil
}

func open(path string, o Options) (*Set, error) {
	if o.HeldOut < 0 || o.HeldOut >= 1 || o.HeldOut != o.HeldOut {
		return nil, fmt.Errorf("the held-out share is %v; want at least 0 and below 1", o.HeldOut)
	}
	if o.SeqLen < 0 || o.Samples < 0 || o.HeldOutSamples < 0 {
		return nil, fmt.Errorf("the sequence length is %d, the bounds on samples %d and %d; want none below 0",
			o.SeqLen, o.Samples, o.HeldOutSamples)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return readTestSets(path, o)
	}
	ext := strings.ToLower(filepath.Ext(path))
	for _, r := range readers {
		if slices.Contains(r.ext, ext) {
			return r.read(path, o)
		}
	}
	if ext == ".json" {
		return nil, errors.New("JSON is read a line at a time; want one sequence a line in a file named .jsonl")
	}
	return readText(path, o)
}

// plain drops the path from an error of the file system, for callers that name it themselves.
func plain(err error) error {
	if e, ok := err.(*fs.PathError); ok {
		return e.Err
	}
	return err
}

// CheckVocabulary reports the first token id that a model with embeddings for vocab tokens does not have.
func (s *Set) CheckVocabulary(vocab int) error {
	for _, part := range [][]Sample{s.train, s.heldOut} {
		for _, sample := range part {
			for i, id := range sample.Tokens {
				if id >= 0 && id < int64(vocab) {
					continue
				}
				text := ""
				if s.tokenizer != nil {
					text = fmt.Sprintf(" (%q)", s.tokenizer.Decode([]int64{id}))
				}
				return fmt.Errorf("data %q: %s: token %d is %d%s, but the model's vocabulary has %d tokens, 0 to %d; "+
					"want the tokenizer that the model was trained with", s.path, sample.Source, i, id, text, vocab, vocab-1)
			}
		}
	}
	return nil
}
