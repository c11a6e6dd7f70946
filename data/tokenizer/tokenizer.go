// Package tokenizer turns text into the token ids of a model and back, as the tokenizer that the model was trained
// with does: Hugging Face tokenizer.json, SentencePiece models, llama2.c tokenizers, and lists of tokens. It gives the
// same ids as the reference implementations, or says what it does not know; it never guesses.
package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Tokenizer turns text into token ids and back. Its methods may be called from several goroutines.
type Tokenizer interface {
	// Encode returns the tokens of a text, without special tokens around it. Special tokens that are written out in
	// the text, such as <|endoftext|>, are recognised where the kind of tokenizer does so.
	Encode(text string) ([]int64, error)
	// Decode returns the text of tokens, with something readable for ids that have none.
	Decode(ids []int64) string
	// Frame returns the special tokens that stand before and after a text that is a model's input: BOS, or [CLS] and
	// [SEP]. The caller must not change them.
	Frame() (before, after []int64)
	// Size is one more than the largest token id.
	Size() int
}

// kinds are what Open reads, for people.
const kinds = "a Hugging Face tokenizer.json, a SentencePiece .model, a llama2.c tokenizer .bin, " +
	"or a vocab.json of token text to id"

// files are what Open looks for in a folder, the best description first.
var files = []string{"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json"}

// Open reads a tokenizer from a file, or from the folder that holds one under its usual name. The kind is told by the
// content.
func Open(path string) (Tokenizer, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		folder := path
		for _, name := range files {
			path = filepath.Join(folder, name)
			if _, err = os.Stat(path); err == nil {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("tokenizer %q: the folder has none of %s", folder, strings.Join(files, ", "))
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		var e *fs.PathError
		if errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("tokenizer %q: %w", path, err)
	}
	t, err := read(path, b)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %q: %w", path, err)
	}
	return t, nil
}

// read makes a tokenizer of the bytes of a file.
func read(path string, b []byte) (t Tokenizer, err error) {
	defer func() {
		if r := recover(); r != nil { // a file must not end the program, whatever is in it
			t, err = nil, fmt.Errorf("it is malformed: %v", r)
		}
	}()
	ext := strings.ToLower(filepath.Ext(path))
	text := bytes.TrimSpace(bytes.TrimPrefix(b, []byte("\ufeff")))
	switch {
	case len(b) == 0:
		return nil, errors.New("it is empty; want " + kinds)
	case ext == ".bin":
		return readLlama2C(b)
	case len(text) > 0 && text[0] == '{':
		var top map[string]json.RawMessage
		if err := json.Unmarshal(text, &top); err != nil {
			return nil, fmt.Errorf("%w; want %s", err, kinds)
		}
		if m := bytes.TrimSpace(top["model"]); len(m) > 0 && m[0] == '{' {
			return readHuggingFace(text)
		}
		return readVocabulary(top)
	case ext == ".model" || b[0] == 1<<3|2: // a message that begins with its field 1, the first piece
		return readSentencePiece(b)
	}
	return nil, errors.New("it is of no kind known here; want " + kinds)
}

// maxID bounds token ids: what is beyond is a mistake in the file.
const maxID = 1<<31 - 1
