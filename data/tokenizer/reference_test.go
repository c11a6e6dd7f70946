package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// reference is what another implementation makes of a text, see testdata/generate.mjs.
type reference struct {
	Text    string
	IDs     []int64
	Framed  []int64 // with special tokens around; of tokenizer.json only
	Decoded string
}

func references(t testing.TB) map[string][]reference {
	b, err := os.ReadFile(filepath.Join("testdata", "expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string][]reference
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// The ids and the decoded texts are those of the Rust library "tokenizers" 0.22.2 and of SentencePiece 0.1.97.
func TestReference(t *testing.T) {
	all := references(t)
	files, _ := filepath.Glob(filepath.Join("testdata", "*.*"))
	for _, file := range files {
		name := filepath.Base(file)
		if name == "expected.json" || name == "generate.mjs" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			cases := all[name]
			if len(cases) < 18 {
				t.Fatalf("%d texts with known ids, want at least 18", len(cases))
			}
			tok, err := Open(file)
			if err != nil {
				t.Fatal(err)
			}
			before, after := tok.Frame()
			for _, c := range cases {
				ids, err := tok.Encode(c.Text)
				if err != nil || !slices.Equal(ids, c.IDs) {
					t.Errorf("%q:\n got %v (%v)\nwant %v", c.Text, ids, err, c.IDs)
					continue
				}
				framed := slices.Concat(before, ids, after)
				if strings.HasSuffix(name, ".json") && !slices.Equal(framed, c.Framed) {
					t.Errorf("%q with special tokens:\n got %v\nwant %v", c.Text, framed, c.Framed)
				}
				if got := tok.Decode(ids); got != c.Decoded {
					t.Errorf("%v decoded:\n got %q\nwant %q", ids, got, c.Decoded)
				}
				for _, id := range framed {
					if id >= int64(tok.Size()) {
						t.Errorf("token %d, but the size is %d", id, tok.Size())
					}
				}
			}
		})
	}
}

// BenchmarkEncode encodes lines of English that repeat as words of a text do.
func BenchmarkEncode(b *testing.B) {
	line := "We know't, we know't. Let us kill him, and we'll have corn at our own price. Is't a verdict?\n"
	text := strings.Repeat(line, 1+(1<<20)/len(line))
	for _, name := range []string{"gpt2.json", "llama3.json", "llama2.json", "bert.json", "t5.json", "spm-bpe.model", "spm-unigram.model"} {
		tok, err := Open(filepath.Join("testdata", name))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := tok.Encode(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
