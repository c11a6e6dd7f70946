package tokenizer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"onnx-dha/testmodels"
)

func write(t testing.TB, name string, b []byte) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// stories reads what comes with the trained models, outside this repository.
func stories(t testing.TB, name string) string {
	path := filepath.Join("..", "..", "..", "shared", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("needs %s", path)
	}
	return path
}

// The trained model's tokens are in its golden file. The slow implementation of testmodels agrees on more text.
func TestLlama2C(t *testing.T) {
	path := stories(t, "models/stories260K/tok512.bin")
	tok, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	before, after := tok.Frame()
	if !slices.Equal(before, []int64{1}) || after != nil || tok.Size() != 512 {
		t.Errorf("special tokens %v and %v, size %d", before, after, tok.Size())
	}
	b, err := os.ReadFile(stories(t, "text/tinystories_v2_sample_2MiB.txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b[:20000])
	docs := strings.Split(text, "<|endoftext|>")

	golden := struct{ Tokens []int64 }{}
	g, err := os.ReadFile(stories(t, "models/stories260K/golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(g, &golden); err != nil {
		t.Fatal(err)
	}
	if got := tok.Decode(golden.Tokens); len(golden.Tokens) < 10 {
		t.Fatal("the golden file has no tokens")
	} else if ids, err := tok.Encode(got); err != nil || !slices.Equal(slices.Concat(before, ids), golden.Tokens) {
		t.Errorf("%q: tokens %v (%v), want %v", got, ids, err, golden.Tokens)
	}

	slow, err := testmodels.LoadLlama2CTokenizer(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append(docs[:len(docs)-1], "", " ", "  two  spaces ", "日本 é\x00\t\n", "<unk> <s>", "aaaaaaaaa") {
		want := slow.Encode(doc)
		ids, err := tok.Encode(doc)
		if err != nil {
			t.Fatal(err)
		}
		got := []int{1}
		for _, id := range ids {
			got = append(got, int(id))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%.60q:\n got %v\nwant %v", doc, got, want)
		}
		if got := tok.Decode(ids); got != doc {
			t.Errorf("%.60q comes back as %.60q", doc, got)
		}
	}
}

// smallLlama2C makes a tokenizer file whose learned tokens are given, the first with the best score.
func smallLlama2C(tokens ...string) []byte {
	b := make([]byte, 4)
	put := func(text string, score uint32) {
		b = append(b, byte(score), byte(score>>8), byte(score>>16), byte(score>>24), byte(len(text)), 0, 0, 0)
		b = append(b, text...)
	}
	for _, s := range []string{"<unk>", "\n<s>\n", "\n</s>\n"} {
		put(s, 0)
	}
	for i := range 256 {
		put("<0x"+strings.ToUpper(string("0123456789abcdef"[i>>4]))+strings.ToUpper(string("0123456789abcdef"[i&15]))+">", 0)
	}
	scores := []uint32{0, 0xbf800000, 0xc0000000, 0xc0400000, 0xc0800000, 0xc0a00000, 0xc0c00000} // 0, -1 … -6
	for i, s := range tokens {
		put(s, scores[i])
	}
	return b
}

func TestSmallLlama2C(t *testing.T) {
	tok, err := Open(write(t, "tok.bin", smallLlama2C("ab", " a", "a", "b", " ", "c")))
	if err != nil {
		t.Fatal(err)
	}
	// " abc" has the pairs " a" and "ab"; "ab" has the better score, though it is not the first.
	for text, want := range map[string][]int64{"abc": {263, 259, 264}, "aa": {260, 261}, "é": {263, 3 + 0xc3, 3 + 0xa9}, "": nil} {
		if got, err := tok.Encode(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v (%v), want %v", text, got, err, want)
		}
	}
	if got := tok.Decode([]int64{1, 263, 259, 3 + 0xc3, 3 + 0xa9, 9999, 0}); got != "abé⟨9999⟩ ⁇ " {
		t.Errorf("decoded %q", got)
	}
}

// pieces writes a SentencePiece model of a type, with the pieces <unk> and <s> and those given. A piece that begins with - is
// only a step of merges.
func pieces(kind uint64, tokens ...string) []byte {
	var b []byte
	put := func(text string, score uint32, kind uint64) {
		var p []byte
		p = protowire.AppendTag(p, 1, protowire.BytesType)
		p = protowire.AppendString(p, text)
		p = protowire.AppendTag(p, 2, protowire.Fixed32Type)
		p = protowire.AppendFixed32(p, score)
		p = protowire.AppendTag(p, 3, protowire.VarintType)
		p = protowire.AppendVarint(p, kind)
		b = protowire.AppendTag(b, 1, protowire.BytesType)
		b = protowire.AppendBytes(b, p)
	}
	put("<unk>", 0, 2)
	put("<s>", 0, 3)
	scores := []uint32{0, 0xbf800000, 0xc0000000, 0xc0400000, 0xc0800000, 0xc0a00000, 0xc0c00000}
	for i, s := range tokens {
		if text, ok := strings.CutPrefix(s, "-"); ok {
			put(text, scores[i], 5)
			continue
		}
		put(s, scores[i], 1)
	}
	var trainer []byte
	trainer = protowire.AppendTag(trainer, 3, protowire.VarintType)
	trainer = protowire.AppendVarint(trainer, kind)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendBytes(b, trainer)
}

func TestSmallSentencePiece(t *testing.T) {
	// BPE: "ab" is joined to reach "abc", and taken apart again where it stays.
	tok, err := Open(write(t, "m.model", pieces(2, "-ab", "abc", "▁", "a", "b", "c")))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]int64{"abc": {4, 3}, "ab": {4, 5, 6}, "abab": {4, 5, 6, 5, 6}, " xy  a ": {4, 0, 4, 5}} {
		if got, err := tok.Encode(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("BPE %q: %v (%v), want %v", text, got, err, want)
		}
	}
	// A piece that goes over the beginning of a word.
	if tok, err = Open(write(t, "m.model", pieces(2, "a▁b", "▁", "a", "b", "▁b"))); err != nil {
		t.Fatal(err)
	}
	if got, err := tok.Encode("a b"); err != nil || !slices.Equal(got, []int64{3, 2}) {
		t.Errorf("BPE over words: %v (%v), want [3 2]", got, err)
	}
	// Unigram: ▁+a+bc scores -5, ▁+ab+c -7, ▁+a+b+c would take b, which is no piece.
	tok, err = Open(write(t, "m.model", pieces(1, "▁", "a", "ab", "c", "bc")))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]int64{"abc": {2, 3, 6}, "ab": {2, 4}, "b": {2, 0}} {
		if got, err := tok.Encode(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("unigram %q: %v (%v), want %v", text, got, err, want)
		}
	}
	if before, after := tok.Frame(); !slices.Equal(before, []int64{1}) || after != nil || tok.Size() != 7 {
		t.Errorf("special tokens %v and %v, size %d", before, after, tok.Size())
	}
}

// Merges that go over the beginning of a word, after characters that do not, and the same without them.
func TestMergesOverWords(t *testing.T) {
	for merges, want := range map[string][]int64{`["▁ b", "a ▁b"]`: {4, 1}, `["▁ b"]`: {0, 3, 1}} {
		tok, err := Open(write(t, "x.json", []byte(`{"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": false},
			"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "▁": 2, "▁b": 3, "a▁b": 4}, "merges": `+merges+`}}`)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tok.Encode("a bb"); err != nil || !slices.Equal(got, want) {
			t.Errorf("merges %s: %v (%v), want %v", merges, got, err, want)
		}
	}
}

func TestVocabulary(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vocab.json"), []byte(`{"a": 0, "ab": 7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	tok, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := tok.Encode("aba")
	if err != nil || !slices.Equal(ids, []int64{7, 0}) || tok.Size() != 8 || tok.Decode(ids) != "aba" {
		t.Errorf("%v (%v), size %d, %q", ids, err, tok.Size(), tok.Decode(ids))
	}
}

func TestErrors(t *testing.T) {
	bpe := func(rest string) string {
		return `{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}` + rest + `}`
	}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"x.txt", "", []string{"it is empty", "tokenizer.json", ".model"}},
		{"x.txt", "hello", []string{"of no kind known here", "vocab.json"}},
		{"x.model", "hello", []string{"no SentencePiece model", "tokenizer.json"}},
		{"x.bin", "abc", []string{"3 bytes"}},
		{"x.bin", string(smallLlama2C("a")[:4000]), []string{"bytes left"}},
		{"x.bin", string(smallLlama2C()[:4+13]), []string{"want at least the 3 special ones"}},
		{"x.model", string(pieces(4, "a")), []string{"model type is 4", "unigram"}},
		{"x.model", string(pieces(1, "a", "a")), []string{"piece 3", `"a" is there twice`}},
		{"x.model", string(pieces(1, "")), []string{"piece 2 has no text"}},
		{"x.model", string(bytes.Replace(pieces(1, "a"), []byte("<unk>\x15\x00\x00\x00\x00\x18\x02"), []byte("<unk>\x15\x00\x00\x00\x00\x18\x01"), 1)), []string{"no piece is for what is unknown"}},
		{"x.json", `{"a": 0,`, []string{"unexpected end", "tokenizer.json"}},
		{"x.json", `{"add_bos_token": true}`, []string{"settings", "want the tokenizer.json"}},
		{"x.json", `{"Ġthe": 1}`, []string{`token "Ġthe"`, "want its tokenizer.json"}},
		{"x.json", `{"a": -1}`, []string{`token "a" has id -1`}},
		{"x.json", `{"a": 0, "b": 0}`, []string{`"a" and "b" are both token 0`}},
		{"x.json", `{"": 0}`, []string{"token 0 has no text"}},
		{"x.json", `{}`, []string{"it has no tokens"}},
		{"x.json", `{"token2id": {"a": 0}}`, []string{`"token2id" is {"a": 0}, no token id`, "vocab.json"}},
		{"x.json", `{"model": {"type": "Magic"}}`, []string{`model "Magic" is not supported`, "Unigram"}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}`, []string{`merge 0 of "a" and "b"`, `token "b" is not in the vocabulary`}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["ab"]}}`, []string{"merge 0", "no pair"}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}}`, []string{"merge 0", "no pair"}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {"a": 0}, "unk_token": "?", "merges": []}}`, []string{`unknown token "?"`}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}}`, []string{`token "a" has id 99999999999`}},
		{"x.json", `{"model": {"type": "BPE", "vocab": {}, "merges": []}}`, []string{"no tokens"}},
		{"x.json", `{"model": {"type": "WordPiece", "vocab": {"a": 0}}}`, []string{`unknown token "[UNK]"`}},
		{"x.json", `{"model": {"type": "Unigram", "vocab": [["a", -1], ["b"]]}}`, []string{"token 1 is no pair"}},
		{"x.json", `{"model": {"type": "Unigram", "vocab": [["a", -1]], "unk_id": 1}}`, []string{"unk_id 1"}},
		{"x.json", bpe(`, "normalizer": {"type": "Upper"}`), []string{`normalizer "Upper" is not supported`, "NFKC"}},
		{"x.json", bpe(`, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Upper"}]}`), []string{`normalizer "Upper" is not supported`}},
		{"x.json", bpe(`, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}`), []string{"character map"}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "UnicodeScripts"}`), []string{`pre-tokenizer "UnicodeScripts" is not supported`, "ByteLevel"}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}`), []string{"pre-tokenizer Split", `regular expression "("`}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Lost"}`), []string{`behavior "Lost"`, "MergedWithNext"}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "Split", "pattern": {}, "behavior": "Removed"}`), []string{"pattern has neither"}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "Metaspace", "replacement": "__"}`), []string{`replacement "__"`}},
		{"x.json", bpe(`, "pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "x"}`), []string{`prepend_scheme "x"`}},
		{"x.json", bpe(`, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]"}}]}`), []string{`"[CLS]" has no id`}},
		{"x.json", bpe(`, "post_processor": {"type": "TemplateProcessing", "single": []}`), []string{"has 0 places"}},
		{"x.json", bpe(`, "post_processor": {"type": "BertProcessing"}`), []string{`"cls" is no pair`}},
		{"x.json", bpe(`, "decoder": {"type": "CTC"}`), []string{`decoder "CTC" is not supported`}},
	} {
		path := write(t, c.name, []byte(c.text))
		_, err := Open(path)
		for _, want := range append(c.want, path) {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%.80q: %v\nwant … %s …", c.text, err, want)
			}
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none.json")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "the folder has none of tokenizer.json") {
		t.Error(err)
	}
}

// A text that a tokenizer cannot take is an error, not a wrong list of tokens.
func TestEncodeErrors(t *testing.T) {
	for text, want := range map[string]string{
		`{"model": {"type": "WordLevel", "vocab": {"a": 0}}}`:         `the word "b"`,
		`{"model": {"type": "Unigram", "vocab": [["a", -1]]}}`:        "no token for unknown ones",
		`{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}`: "not UTF-8",
	} {
		tok, err := Open(write(t, "x.json", []byte(text)))
		if err != nil {
			t.Fatal(err)
		}
		input := "b"
		if strings.Contains(want, "UTF-8") {
			input = "\xff"
		}
		if _, err := tok.Encode(input); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want … %s …", text, err, want)
		}
	}
}

// FuzzOpen gives malformed files of every kind, and texts, to whatever tokenizer comes of them.
func FuzzOpen(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) == "expected.json" || filepath.Ext(file) == ".mjs" {
			continue
		}
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, "First Citizen: café ﬁne 日本")
	}
	f.Add(smallLlama2C("ab", "a", "b"), "ab")
	f.Add(pieces(2, "-ab", "abc", "a", "b"), "abc")
	f.Add([]byte(`{"a": 1}`), "a")
	f.Fuzz(func(t *testing.T, b []byte, text string) {
		for _, name := range []string{"x.json", "x.bin"} {
			tok, err := read(name, b)
			if err != nil {
				continue
			}
			ids, err := tok.Encode(text)
			if err != nil {
				continue
			}
			for _, id := range ids {
				if id < 0 || id >= int64(tok.Size()) {
					t.Fatalf("token %d of %q, size %d", id, text, tok.Size())
				}
			}
			before, after := tok.Frame()
			tok.Decode(slices.Concat(before, ids, after, []int64{-1, 1 << 40}))
		}
	})
}
