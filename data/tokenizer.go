package data

import (
	"fmt"

	"onnx-dha/verify"
)

// Tokenizer turns text into token ids and back.
type Tokenizer interface {
	// Encode returns the tokens of a text, without special tokens around it.
	Encode(text string) ([]int64, error)
	// Decode returns the text of tokens, with something readable for ids that have none.
	Decode(ids []int64) string
	// Frame returns the special tokens that the tokenizer puts before and after a text, such as BOS or [CLS] and
	// [SEP].
	Frame() (before, after []int64)
}

// OpenTokenizer reads a tokenizer: a vocabulary of token text to id (vocab.json).
func OpenTokenizer(path string) (Tokenizer, error) {
	v, err := verify.LoadVocab(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %q: %w", path, plain(err))
	}
	return vocabulary{v}, nil
}

// vocabulary is a list of tokens without special ones.
type vocabulary struct{ *verify.Vocab }

func (vocabulary) Frame() (before, after []int64) { return nil, nil }
