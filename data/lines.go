package data

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"onnx-dha/data/tokenizer"
)

func readLines(path string, o Options) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var t Tokenizer
	if o.Tokenizer != "" {
		if t, err = tokenizer.Open(o.Tokenizer); err != nil {
			return nil, err
		}
	}
	docs, texts, err := parseLines(f, t)
	if err != nil {
		return nil, err
	}
	c := cutting{length: o.SeqLen}
	if texts {
		if c.length == 0 {
			c.length = DefaultSeqLen
		}
		if !o.Bare {
			c.before, c.after = t.Frame()
		}
	} else {
		t = nil
	}
	s := &Set{tokens: true, tokenizer: t}
	s.train, s.heldOut, err = c.cut(docs, o)
	return s, err
}

// parseLines reads one document per line: an array of token ids, or an object with the array under "tokens" or
// "input_ids", or with a text under "text". Lines of ids and of text do not mix. Blank lines are skipped.
func parseLines(r io.Reader, t Tokenizer) (docs []document, texts bool, err error) {
	in := bufio.NewReaderSize(r, 1<<16)
	for number := 1; ; number++ {
		line, err := in.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, false, err
		}
		end := err == io.EOF
		if line = bytes.TrimSpace(line); len(line) > 0 {
			ids, text, err := parseLine(line, t)
			if err == nil && len(docs) > 0 && text != texts {
				err = errors.New("token ids and texts in one file; want one kind")
			}
			if err != nil {
				return nil, false, fmt.Errorf("line %d: %w", number, err)
			}
			texts = text
			docs = append(docs, document{source: fmt.Sprintf("line %d", number), tokens: ids})
		}
		if end {
			return docs, texts, nil
		}
	}
}

func parseLine(line []byte, t Tokenizer) (ids []int64, text bool, err error) {
	const want = `want an array of token ids, or an object with "tokens", "input_ids" or "text"`
	var object struct {
		Tokens   []json.Number `json:"tokens"`
		InputIDs []json.Number `json:"input_ids"`
		Text     *string       `json:"text"`
	}
	numbers := &object.Tokens
	switch line[0] {
	case '[':
		err = json.Unmarshal(line, numbers)
	case '{':
		if err = json.Unmarshal(line, &object); object.Tokens == nil {
			numbers = &object.InputIDs
		}
	default:
		return nil, false, fmt.Errorf("it begins with %q; %s", line[0], want)
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w; %s", err, want)
	}
	if *numbers == nil {
		switch {
		case object.Text == nil:
			return nil, false, errors.New(want)
		case t == nil:
			return nil, false, errors.New("it is a text, which needs a tokenizer; " + want)
		}
		ids, err = t.Encode(*object.Text)
		return ids, true, err
	}
	ids = make([]int64, len(*numbers))
	for i, x := range *numbers {
		if ids[i], err = strconv.ParseInt(string(x), 10, 64); err != nil || ids[i] < 0 {
			return nil, false, fmt.Errorf("token %d is %q; want a token id, an integer of 0 and more", i, string(x))
		}
	}
	return ids, false, nil
}
