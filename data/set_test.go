package data

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// write makes files in a folder of the test and returns the folder.
func write(t testing.TB, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// letters is a vocabulary in which a is 0, b 1 and so on.
const letters = `{"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6, "h": 7, "i": 8, "j": 9, " ": 10, "\n": 11, "|": 12}`

// framed is a tokenizer of the same letters that puts [ before and ] after a text.
const framed = `{"model": {"type": "BPE", "merges": [], "vocab": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5, "g": 6, "h": 7, "i": 8, "j": 9}},
	"post_processor": {"type": "BertProcessing", "cls": ["[", 20], "sep": ["]", 21]}}`

func tokensOf(samples []Sample) (out [][]int64) {
	for _, s := range samples {
		out = append(out, s.Tokens)
	}
	return out
}

func TestTokenSamples(t *testing.T) {
	dir := write(t, map[string]string{
		"letters.json": letters, "framed.json": framed,
		"one.txt":    "abcdefghij",
		"docs.txt":   "|abc\n| abcdefg |\n|ij||",
		"ids.jsonl":  "[1, 2, 3]\n\n{\"tokens\": [4, 5], \"id\": \"x\"}\n  {\"input_ids\": [6, 7, 8, 9]}  \n[10,11]",
		"text.jsonl": "{\"text\": \"abcd\"}\n{\"text\": \"ef\"}\n",
	})
	for _, c := range []struct {
		name, file     string
		o              Options
		train, heldOut [][]int64
		source         string // of the last sample to learn from
	}{
		{name: "windows follow each other, the rest is dropped", file: "one.txt", o: Options{Tokenizer: "letters.json", SeqLen: 3},
			train: [][]int64{{0, 1, 2}, {3, 4, 5}, {6, 7, 8}}, source: "sample from token 6"},
		{name: "a single text is split at a token", file: "one.txt", o: Options{Tokenizer: "letters.json", SeqLen: 3, HeldOut: 0.4},
			train: [][]int64{{0, 1, 2}, {3, 4, 5}}, heldOut: [][]int64{{6, 7, 8}}, source: "sample from token 3"},
		{name: "samples are taken evenly", file: "one.txt", o: Options{Tokenizer: "letters.json", SeqLen: 2, Samples: 2},
			train: [][]int64{{0, 1}, {4, 5}}},
		{name: "samples kept for reporting as well", file: "one.txt",
			o:     Options{Tokenizer: "letters.json", SeqLen: 2, HeldOut: 0.6, HeldOutSamples: 1},
			train: [][]int64{{0, 1}, {2, 3}}, heldOut: [][]int64{{4, 5}}},
		{name: "special tokens are part of the length", file: "one.txt", o: Options{Tokenizer: "framed.json", SeqLen: 5},
			train: [][]int64{{20, 0, 1, 2, 21}, {20, 3, 4, 5, 21}, {20, 6, 7, 8, 21}}},
		{name: "without special tokens", file: "one.txt", o: Options{Tokenizer: "framed.json", SeqLen: 5, Bare: true},
			train: [][]int64{{0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}}},
		{name: "documents: short ones whole, long ones cut", file: "docs.txt", o: Options{Tokenizer: "letters.json", SeqLen: 3, Separator: "|"},
			train: [][]int64{{0, 1, 2}, {0, 1, 2}, {3, 4, 5}, {8, 9}}, source: "document 5"},
		{name: "documents are split whole", file: "docs.txt",
			o:     Options{Tokenizer: "letters.json", SeqLen: 3, Separator: "|", HeldOut: 0.01},
			train: [][]int64{{0, 1, 2}, {0, 1, 2}, {3, 4, 5}}, heldOut: [][]int64{{8, 9}}, source: "document 3 from token 3"},
		{name: "a separator that is not there", file: "one.txt", o: Options{Tokenizer: "letters.json", SeqLen: 10, Separator: "||"},
			train: [][]int64{{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}}},
		{name: "lines as they are", file: "ids.jsonl", train: [][]int64{{1, 2, 3}, {4, 5}, {6, 7, 8, 9}, {10, 11}}, source: "line 5"},
		{name: "lines cut and split", file: "ids.jsonl", o: Options{SeqLen: 2, HeldOut: 0.5},
			train: [][]int64{{1, 2}, {4, 5}}, heldOut: [][]int64{{6, 7}, {8, 9}, {10, 11}}, source: "line 3"},
		{name: "lines of text", file: "text.jsonl", o: Options{Tokenizer: "framed.json", SeqLen: 4},
			train: [][]int64{{20, 0, 1, 21}, {20, 2, 3, 21}, {20, 4, 5, 21}}, source: "line 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.o.Tokenizer != "" {
				c.o.Tokenizer = filepath.Join(dir, c.o.Tokenizer)
			}
			s, err := Open(filepath.Join(dir, c.file), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := tokensOf(s.Train()); !reflect.DeepEqual(got, c.train) {
				t.Errorf("to learn from: %v, want %v", got, c.train)
			}
			if got := tokensOf(s.HeldOut()); !reflect.DeepEqual(got, c.heldOut) {
				t.Errorf("held out: %v, want %v", got, c.heldOut)
			}
			if got := s.Train()[len(s.Train())-1].Source; c.source != "" && got != c.source {
				t.Errorf("source %q, want %q", got, c.source)
			}
			if !s.Tokens() {
				t.Error("Tokens is false")
			}
		})
	}
}

// A text that is much larger than what is asked for is not encoded as a whole, and its samples come from all over it: blocks of
// lines, or documents.
func TestLargeText(t *testing.T) {
	const lines = 6 << 17
	text := make([]byte, 0, 24*lines)
	for i := range lines {
		text = fmt.Appendf(text, "%06d ................\n", i)
	}
	dir := write(t, map[string]string{"large.txt": string(text),
		"v.json": `{"0":0,"1":1,"2":2,"3":3,"4":4,"5":5,"6":6,"7":7,"8":8,"9":9," ":10,".":11,"\n":12}`})
	for _, separator := range []string{"", "\n"} {
		s, err := Open(filepath.Join(dir, "large.txt"), Options{Tokenizer: filepath.Join(dir, "v.json"), SeqLen: 24, Samples: 20,
			HeldOut: 0.25, HeldOutSamples: 10, Separator: separator})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Train()) != 20 || len(s.HeldOut()) != 10 {
			t.Fatalf("%d and %d samples, want 20 and 10", len(s.Train()), len(s.HeldOut()))
		}
		last, seen := -1, []int{}
		for _, sample := range slices.Concat(s.Train(), s.HeldOut()) {
			if n := len(sample.Tokens); n != 24-len(separator) || sample.Tokens[22] != 11 {
				t.Fatalf("sample %v is not a line", sample.Tokens)
			}
			line := 0
			for _, d := range sample.Tokens[:6] {
				line = 10*line + int(d)
			}
			if line <= last {
				t.Fatalf("line %d after line %d", line, last)
			}
			last = line
			seen = append(seen, line)
		}
		if seen[0] > lines/10 || seen[19] < lines/2 || seen[20] < lines*7/10 || seen[29] < lines*9/10 {
			t.Errorf("lines %v are not spread over %d", seen, lines)
		}
	}
}

func TestVocabulary(t *testing.T) {
	dir := write(t, map[string]string{"letters.json": letters, "one.txt": "abcabj", "ids.jsonl": "[1, 2]\n[0, 7]"})
	s, err := Open(filepath.Join(dir, "one.txt"), Options{Tokenizer: filepath.Join(dir, "letters.json"), SeqLen: 3, HeldOut: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CheckVocabulary(10); err != nil {
		t.Error(err)
	}
	want := `sample from token 3: token 2 is 9 ("j"), but the model's vocabulary has 9 tokens, 0 to 8; want the tokenizer that the model was trained with`
	if err := s.CheckVocabulary(9); err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v\nwant …%s", err, want)
	}
	if s, err = Open(filepath.Join(dir, "ids.jsonl"), Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckVocabulary(7); err == nil || !strings.Contains(err.Error(), "line 2: token 1 is 7, but the model's vocabulary has 7 tokens") {
		t.Error(err)
	}
}

func TestTokenErrors(t *testing.T) {
	dir := write(t, map[string]string{
		"letters.json": letters, "framed.json": framed,
		"one.txt": "abcdefghij", "empty.txt": "", "blank.txt": "|\n||", "latin1.txt": "caf\xe9", "other.txt": "abz",
		"docs.txt": "abz|abc", "data.json": "[[1]]",
		"empty.jsonl": "\n\n", "word.jsonl": "[1]\nhello", "float.jsonl": "[1, 2.5]", "negative.jsonl": "[1, 2]\n[3, -4]",
		"null.jsonl": "[1, null]", "strings.jsonl": `{"tokens": ["a", "b"]}`, "nothing.jsonl": `{"ids": [1]}`,
		"text.jsonl": `{"text": "ab"}`, "mixed.jsonl": "[1, 2]\n{\"text\": \"ab\"}", "cut.jsonl": "[1, 2", "single.jsonl": "[1]",
		"folder/x.txt": "",
	})
	for _, c := range []struct {
		file string
		o    Options
		want []string
	}{
		{"missing.txt", Options{}, []string{"missing.txt", "no such file"}},
		{"folder", Options{}, []string{"neither test_data_set_0 nor input_0.pb", ".npz"}},
		{"one.txt", Options{}, []string{"needs a tokenizer", ".jsonl"}},
		{"one.txt", Options{Tokenizer: "none.json"}, []string{"none.json", "no such file"}},
		{"one.txt", Options{Tokenizer: "letters.json", HeldOut: 1}, []string{"held-out share is 1", "below 1"}},
		{"one.txt", Options{Tokenizer: "letters.json", Samples: -1}, []string{"-1", "none below 0"}},
		{"one.txt", Options{Tokenizer: "letters.json", SeqLen: 16}, []string{"it has 10 tokens", "a sample takes 16", "at most 10"}},
		{"one.txt", Options{Tokenizer: "letters.json"}, []string{"it has 10 tokens", "a sample takes 256"}},
		{"one.txt", Options{Tokenizer: "framed.json", SeqLen: 16}, []string{"it has 10 tokens", "a sample takes 14", "at most 12"}},
		{"one.txt", Options{Tokenizer: "framed.json", SeqLen: 2}, []string{"sequence length of 2", "beside 2 special ones", "want 3"}},
		{"one.txt", Options{Tokenizer: "letters.json", SeqLen: 1}, []string{"sequence length of 1", "want 2"}},
		{"one.txt", Options{Tokenizer: "letters.json", SeqLen: 6, HeldOut: 0.5}, []string{"it has 10 tokens, of which 5 are to learn from", "0.5", "takes 6"}},
		{"one.txt", Options{Tokenizer: "letters.json", SeqLen: 6, HeldOut: 0.1}, []string{"of which 1 are kept for reporting"}},
		{"empty.txt", Options{Tokenizer: "letters.json", SeqLen: 4}, []string{"it is empty", "at least 4 tokens"}},
		{"blank.txt", Options{Tokenizer: "letters.json", SeqLen: 4, Separator: "|"}, []string{"it is empty"}},
		{"latin1.txt", Options{Tokenizer: "letters.json"}, []string{"byte 3 (0xe9) is not UTF-8"}},
		{"other.txt", Options{Tokenizer: "letters.json"}, []string{"byte 2", "'z'"}},
		{"docs.txt", Options{Tokenizer: "letters.json", Separator: "|"}, []string{"document 1", "byte 2", "'z'"}},
		{"data.json", Options{}, []string{".jsonl"}},
		{"empty.jsonl", Options{}, []string{"it is empty; want at least 2 tokens"}},
		{"word.jsonl", Options{}, []string{"line 2", "begins with 'h'", "array of token ids"}},
		{"float.jsonl", Options{}, []string{"line 1", `token 1 is "2.5"`}},
		{"negative.jsonl", Options{}, []string{"line 2", `token 1 is "-4"`, "0 and more"}},
		{"null.jsonl", Options{}, []string{"line 1", `token 1 is ""`}},
		{"strings.jsonl", Options{}, []string{"line 1", "want an array of token ids"}},
		{"nothing.jsonl", Options{}, []string{"line 1", `want an array of token ids, or an object with "tokens"`}},
		{"text.jsonl", Options{}, []string{"line 1", "needs a tokenizer"}},
		{"mixed.jsonl", Options{Tokenizer: "letters.json"}, []string{"line 2", "token ids and texts in one file"}},
		{"cut.jsonl", Options{}, []string{"line 1", "unexpected end"}},
		{"single.jsonl", Options{}, []string{"it has 1 tokens", "a sample takes 2"}},
	} {
		if c.o.Tokenizer != "" {
			c.o.Tokenizer = filepath.Join(dir, c.o.Tokenizer)
		}
		_, err := Open(filepath.Join(dir, c.file), c.o)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %+v: %v\nwant … %s …", c.file, c.o, err, want)
			}
		}
	}
}

func FuzzLines(f *testing.F) {
	for _, s := range []string{"[1,2]", `{"tokens":[1]}` + "\n[3]", `{"input_ids":[1,2],"text":"a"}`, `{"text":"ab"}`, "[", "{}", "[[1]]", "[1e3]"} {
		f.Add([]byte(s))
	}
	dir := write(f, map[string]string{"framed.json": framed})
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x.jsonl")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path, Options{Tokenizer: filepath.Join(dir, "framed.json"), SeqLen: 3})
		if err != nil {
			return
		}
		if len(s.Train()) == 0 {
			t.Fatal("no samples and no error")
		}
		for _, sample := range s.Train() {
			if n := len(sample.Tokens); n < 2 || n > 3 || slices.Min(sample.Tokens) < 0 {
				t.Fatalf("sample %v", sample.Tokens)
			}
		}
	})
}
