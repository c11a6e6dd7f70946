package testmodels

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"onnx-dha/ort"
)

// smallCheckpoint is a header of a few thousand weights.
var smallCheckpoint = llama2cHeader{Dim: 24, Hidden: 20, Layers: 2, Heads: 4, KVHeads: 2, Vocab: 19, SeqLen: 16}

// writeLlama2C writes a checkpoint as llama2.c does: header, then the tensors in the order of its TransformerWeights.
func writeLlama2C(h llama2cHeader, w bank) []byte {
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	put(h)
	perLayer := func(name string) {
		for i := range int(h.Layers) {
			put(w[layer(i, name+".weight")])
		}
	}
	put(w["embed.weight"])
	for _, name := range []string{"attn_norm", "q", "k", "v", "o", "mlp_norm", "gate", "down", "up"} {
		perLayer(name)
	}
	put(w["norm.weight"])
	put(make([]float32, h.SeqLen*(h.Dim/h.Heads/2)*2))
	if h.Vocab < 0 {
		put(w["head.weight"])
	}
	return b.Bytes()
}

// checkpoint makes a checkpoint of random weights and the reference of the model it holds.
func checkpoint(t testing.TB, h llama2cHeader) ([]byte, *Reference, Family, Options) {
	t.Helper()
	f, err := Get("llama-interleaved")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Layers: int(h.Layers), Heads: int(h.Heads), KVHeads: int(h.KVHeads), HeadDim: int(h.Dim / h.Heads), ModelDim: int(h.Dim),
		FFN: int(h.Hidden), Vocab: int(max(h.Vocab, -h.Vocab)), MaxSeq: int(h.SeqLen), Cache: true, Seed: 11,
	}
	_, a, err := f.open(o)
	if err != nil {
		t.Fatal(err)
	}
	a.tied = h.Vocab > 0
	w := a.generate(o.Seed)
	return writeLlama2C(h, w), &Reference{a: a, w: w.widen(), cache: true}, f, o
}

func TestLlama2CAgreesWithReference(t *testing.T) {
	openRuntime(t)
	for _, vocab := range []int32{19, -19} {
		h := smallCheckpoint
		h.Vocab = vocab
		data, r, f, o := checkpoint(t, h)
		m, err := ReadLlama2C(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		s := session(t, m)
		for i, shape := range []Shape{{Batch: 2, Seq: 5}, {Batch: 2, Seq: 3, Past: 4, Pad: 2}} {
			in, err := f.Inputs(o, shape, uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			want, err := r.Run(in)
			if err != nil {
				t.Fatal(err)
			}
			agree(t, run(t, s, in), want, in["attention_mask"], tolerance)
		}
	}
}

func TestLlama2CErrors(t *testing.T) {
	good, _, _, _ := checkpoint(t, smallCheckpoint)
	with := func(change func(*llama2cHeader)) []byte {
		h := smallCheckpoint
		change(&h)
		var b bytes.Buffer
		if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
			t.Fatal(err)
		}
		return append(b.Bytes(), good[llama2cHeaderSize:]...)
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "header of 28 bytes"},
		{"short header", good[:20], "header of 28 bytes"},
		{"truncated", good[:len(good)-4], "wants a file of"},
		{"longer", append(slices.Clone(good), 0), "wants a file of"},
		{"no layers", with(func(h *llama2cHeader) { h.Layers = 0 }), "n_layers is 0"},
		{"negative", with(func(h *llama2cHeader) { h.Dim = -24 }), "dim is -24"},
		{"no vocabulary", with(func(h *llama2cHeader) { h.Vocab = 0 }), "vocab_size is 0"},
		{"least vocabulary", with(func(h *llama2cHeader) { h.Vocab = math.MinInt32 }), "vocab_size is -2147483648"},
		{"heads", with(func(h *llama2cHeader) { h.Heads = 5 }), "not a multiple of n_heads 5"},
		{"odd head", with(func(h *llama2cHeader) { h.Heads = 8 }), "head size 3 is odd"},
		{"kv heads", with(func(h *llama2cHeader) { h.KVHeads = 3 }), "not a multiple of n_kv_heads 3"},
		{"more kv heads", with(func(h *llama2cHeader) { h.KVHeads = 8 }), "not a multiple of n_kv_heads 8"},
		{"enormous", with(func(h *llama2cHeader) {
			*h = llama2cHeader{Dim: math.MaxInt32 - 1, Hidden: math.MaxInt32, Layers: math.MaxInt32, Heads: 1, KVHeads: 1, Vocab: math.MaxInt32, SeqLen: math.MaxInt32}
		}), "more weights than any file holds"},
		{"large", with(func(h *llama2cHeader) { h.SeqLen = math.MaxInt32 }), "wants a file of"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadLlama2C(bytes.NewReader(c.data), int64(len(c.data)))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := FromLlama2C(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder gives %v", err)
	}
	// A size that the reader does not keep is an error of the tensor at which it ends.
	if _, err := ReadLlama2C(bytes.NewReader(good[:len(good)/2]), int64(len(good))); err == nil || !strings.Contains(err.Error(), "weight") {
		t.Errorf("a reader that ends early gives %v", err)
	}
}

func FuzzLlama2C(f *testing.F) {
	good, _, _, _ := checkpoint(f, smallCheckpoint)
	f.Add(good)
	f.Add(good[:llama2cHeaderSize])
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ReadLlama2C(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		if err := m.Check(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzLlama2CTokenizer(f *testing.F) {
	f.Add([]byte{7, 0, 0, 0}, "text")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		// The bytes go on after a vocabulary that is valid, so that the fuzzer reaches the merges.
		tok, err := parseLlama2CTokenizer(append(byteTokenizer(), data...))
		if err != nil {
			return
		}
		for _, id := range tok.Encode(text) {
			if id < 0 || id >= len(tok.tokens) {
				t.Fatalf("token %d of %d", id, len(tok.tokens))
			}
		}
	})
}

// byteTokenizer is a tokenizer file of the special tokens and the bytes.
func byteTokenizer() []byte {
	b := []byte{6, 0, 0, 0}
	put := func(score float32, s string) {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(score))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	for _, s := range []string{"<unk>", "<s>", "</s>"} {
		put(0, s)
	}
	const digits = "0123456789ABCDEF"
	for i := range 256 {
		put(0, "<0x"+string([]byte{digits[i>>4], digits[i&15]})+">")
	}
	return b
}

func TestLlama2CTokenizer(t *testing.T) {
	b := byteTokenizer()
	for i, s := range []string{" ", "a", "b", "ab", " a", "é", "bé"} { // ids 259 on, scores falling
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(-float32(i)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	tok, err := parseLlama2CTokenizer(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		text string
		want []int
	}{
		{"", []int{1}},
		{"ab", []int{1, 259, 262}},     // "ab" scores above " a"
		{"a", []int{1, 263}},           // " a"
		{"bé", []int{1, 259, 265}},     // a two-byte rune merges
		{"?b", []int{1, 259, 66, 261}}, // a byte: '?' is 63
		{"\xff", []int{1, 259, 258}},   // not UTF-8
		{"bab", []int{1, 259, 261, 262}},
	} {
		got := tok.Encode(c.text)
		if !slices.Equal(got, c.want) {
			t.Errorf("Encode(%q) = %v, want %v", c.text, got, c.want)
		}
		if back := tok.Decode(got); back != c.text {
			t.Errorf("Decode(Encode(%q)) = %q", c.text, back)
		}
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{[]byte{1, 2}, "want a header of 4"},
		{b[:30], "want a score and a length"},
		{b[:len(b)-1], "bytes left"},
		{b[:40], "want at least the 3 special ones"},
	} {
		if _, err := parseLlama2CTokenizer(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d bytes: error %v, want one with %q", len(c.data), err, c.want)
		}
	}
}

// stories is the folder of the stories260K checkpoint; the test that asks for it is skipped where it is absent.
func stories(t *testing.T) string {
	dir := filepath.Join("..", "..", "shared", "models", "stories260K")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("stories260K is not here: %v", err)
	}
	return dir
}

func TestStories260K(t *testing.T) {
	dir := stories(t)
	openRuntime(t)
	m, err := FromLlama2C(filepath.Join(dir, "stories260K.bin"))
	if err != nil {
		t.Fatal(err)
	}
	s := session(t, m)
	tok, err := LoadLlama2CTokenizer(filepath.Join(dir, "tok512.bin"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Tokens []int     `json:"tokens"`
		Logits []float64 `json:"logits_last"`
		Eval   struct {
			Tokens int     `json:"tokens"`
			NLL    float64 `json:"nll_per_token"`
		} `json:"eval"`
		Greedy struct {
			Tokens []int  `json:"tokens"`
			Text   string `json:"text"`
		} `json:"greedy_from_BOS"`
	}
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}

	t.Run("logits", func(t *testing.T) {
		logits := forward(t, s, golden.Tokens)
		last := logits.F[len(logits.F)-len(golden.Logits):]
		for i, want := range golden.Logits {
			if math.Abs(last[i]-want) > 2e-3 {
				t.Errorf("logit %d is %g, want %g", i, last[i], want)
			}
		}
	})
	t.Run("greedy", func(t *testing.T) {
		got := []int{llama2cBOS}
		in := storyStart(1)
		for len(got) < len(golden.Greedy.Tokens) {
			in["input_ids"] = Ints([]int64{int64(got[len(got)-1])}, 1, 1)
			in["position_ids"] = Ints([]int64{int64(len(got) - 1)}, 1, 1)
			in["attention_mask"] = mask(1, len(got), 0, true)
			out := run(t, s, in)
			got = append(got, argmax(out["logits"].F))
			for name, v := range out {
				if rest, ok := strings.CutPrefix(name, "present."); ok {
					in["past_key_values."+rest] = v
				}
			}
		}
		if !slices.Equal(got, golden.Greedy.Tokens) {
			t.Errorf("greedy tokens %v, want %v", got, golden.Greedy.Tokens)
		}
		if text := tok.Decode(got); text != strings.TrimPrefix(golden.Greedy.Text, " ") {
			t.Errorf("text %q, want %q", text, golden.Greedy.Text)
		}
	})
	t.Run("loss", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join("..", "..", "shared", "text", "tinystories_v2_sample_2MiB.txt"))
		if err != nil {
			t.Skip(err)
		}
		tokens, nll := 0, 0.0
		for _, story := range strings.Split(string(text), "<|endoftext|>")[1:41] {
			ids := tok.Encode(strings.TrimSpace(story))
			ids = ids[:min(len(ids), 512)]
			logits := forward(t, s, ids)
			for i, next := range ids[1:] {
				row := logits.F[i*512 : (i+1)*512]
				nll += logSumExp(row) - row[next]
			}
			tokens += len(ids) - 1
		}
		if got := nll / float64(tokens); tokens != golden.Eval.Tokens || math.Abs(got-golden.Eval.NLL) > 1e-4 {
			t.Errorf("%.6f nats over %d tokens, want %.6f over %d", got, tokens, golden.Eval.NLL, golden.Eval.Tokens)
		}
	})
}

// storyStart is the empty cache of stories260K.
func storyStart(batch int) map[string]Array {
	in := map[string]Array{}
	a := arch{layers: 5}
	for i := range a.layers {
		past, _ := cacheNames(&a, i)
		in[past[0]], in[past[1]] = Floats([]float64{}, batch, 4, 0, 8), Floats([]float64{}, batch, 4, 0, 8)
	}
	return in
}

// forward runs all tokens at once and returns the logits.
func forward(t *testing.T, s *ort.Session, tokens []int) Array {
	in := storyStart(1)
	in["input_ids"] = Ints(int64s(tokens), 1, len(tokens))
	in["attention_mask"] = mask(1, len(tokens), 0, true)
	in["position_ids"] = positions(in["attention_mask"], 0)
	return run(t, s, in)["logits"]
}

func argmax(x []float64) int {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return best
}

func logSumExp(x []float64) float64 {
	top := slices.Max(x)
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(v - top)
	}
	return top + math.Log(sum)
}
