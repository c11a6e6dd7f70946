package decode

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/internal/trial"
	"onnx-dha/ort"
	"onnx-dha/testmodels"
	"onnx-dha/verify"
)

// fewer leaves half of the key heads and one value head.
func fewer(b *attention.Block) (keys, values int) { return max(b.KVHeads/2, 1), 1 }

var single = ort.Options{Threads: 1}

func runtime(t testing.TB) {
	t.Helper()
	if err := ort.OpenDefault(); err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, path string) *Model {
	t.Helper()
	runtime(t)
	m, err := Open(path, single)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func start(t testing.TB, m *Model, o Options) *Loop {
	t.Helper()
	l, err := m.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// independent is the decode loop of package verify on the same model.
func independent(t testing.TB, path string, batch int, fixed map[string]*ort.Tensor) *verify.Decoder {
	t.Helper()
	m, err := verify.Open(path, single)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	d, err := m.NewDecoder(batch, 1, fixed)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func random(r *rand.Rand, n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = r.Int64N(64)
	}
	return out
}

// compareLoops feeds both loops the same tokens, prompts of unequal length first, and compares the scores that follow.
func compareLoops(t *testing.T, path string, o Options, lengths []int, steps int) *Loop {
	t.Helper()
	m := load(t, path)
	o.Batch = len(lengths)
	l := start(t, m, o)
	d := independent(t, path, len(lengths), o.Inputs)
	r := rand.New(rand.NewPCG(7, 7))
	var tokens [][]int64
	for _, n := range lengths {
		tokens = append(tokens, random(r, n))
	}
	longest := slices.Max(lengths)
	for i := range steps + 1 {
		if err := l.Feed(t.Context(), tokens); err != nil {
			t.Fatal(err)
		}
		padded, real := make([][]int64, len(tokens)), make([][]bool, len(tokens))
		for b, row := range tokens {
			missing := 0
			if i == 0 {
				missing = longest - len(row)
			}
			padded[b] = slices.Concat(make([]int64, missing), row)
			real[b] = slices.Concat(make([]bool, missing), slices.Repeat([]bool{true}, len(row)))
		}
		if slices.Min(lengths) == longest {
			real = nil
		}
		out, err := d.Step(t.Context(), padded, real)
		if err != nil {
			t.Fatal(err)
		}
		logits, err := out[m.Logits].Float32s()
		if err != nil {
			t.Fatal(err)
		}
		per := len(logits) / len(tokens)
		for b := range tokens {
			got, err := l.Scores(b)
			if err != nil {
				t.Fatal(err)
			}
			want := logits[(b+1)*per-len(got) : (b+1)*per]
			for v := range got {
				if math.Abs(float64(got[v]-want[v])) > 1e-4 {
					t.Fatalf("step %d, sequence %d: score %d is %v, want %v", i, b, v, got[v], want[v])
				}
			}
			tokens[b] = random(r, 1)
		}
	}
	if want := longest + steps; l.Len() != want {
		t.Errorf("%d positions, want %d", l.Len(), want)
	}
	return l
}

// The two loops agree on every decoder, with a cache and without.
func TestAgreesWithTheIndependentLoop(t *testing.T) {
	runtime(t)
	for _, f := range testmodels.Families() {
		if !f.Decoder || f.Name == "t5-decoder" { // whose encoder states have to be given
			continue
		}
		for _, cached := range []bool{true, false} {
			name := f.Name
			if !cached {
				name += " without cache"
			}
			t.Run(name, func(t *testing.T) {
				path := trial.Model(t, f.Name, testmodels.Options{Cache: cached})
				compareLoops(t, path, Options{Chunk: 4}, []int{5, 3}, 6)
			})
		}
	}
}

// Static caches grow under the loop's hands, through every step the same as the loop that makes new ones.
func TestStaticCachesGrow(t *testing.T) {
	runtime(t)
	for _, family := range []string{"gpt2", "llama", "llama-dynamo", "bloom"} {
		t.Run(family, func(t *testing.T) {
			path := trial.Rewrite(t, trial.Model(t, family, testmodels.Options{Cache: true}), fusion.StaticCache, fewer)
			compareLoops(t, path, Options{}, []int{5, 2, 1}, 3) // whole chunks may go another way through the graph
			l := compareLoops(t, path, Options{Chunk: 4}, []int{5, 2, 1}, 12)
			if !l.m.Static || l.Capacity() != 20 {
				t.Errorf("static: %v, room for %d positions; want 20, in chunks of 4 for 17", l.m.Static, l.Capacity())
			}
			scores := func() []float32 {
				s, err := l.Scores(0)
				if err != nil {
					t.Fatal(err)
				}
				return slices.Clone(s)
			}
			next := [][]int64{{1}, {2}, {3}}
			if err := l.Feed(t.Context(), next); err != nil {
				t.Fatal(err)
			}
			want := scores()
			if err := errors.Join(l.Rewind(17), l.Feed(t.Context(), next)); err != nil {
				t.Fatal(err)
			}
			if got := scores(); !slices.Equal(got, want) {
				t.Errorf("after going back one position: %v, want %v", got, want)
			}
		})
	}
}

// A prompt says the same in one piece and in several, whose ends are not those of a buffer.
func TestPromptInPieces(t *testing.T) {
	runtime(t)
	prompt := random(rand.New(rand.NewPCG(3, 3)), 14)
	for _, family := range []string{"llama", "gpt2", "bloom"} {
		original := trial.Model(t, family, testmodels.Options{Cache: true})
		for _, lowering := range []fusion.Lowering{fusion.Grouped, fusion.StaticCache, fusion.GQA, fusion.OpAttention} {
			t.Run(family+" "+string(lowering), func(t *testing.T) {
				m := load(t, trial.Rewrite(t, original, lowering, two))
				whole, pieces := start(t, m, Options{Chunk: 4}), start(t, m, Options{Chunk: 4})
				if err := whole.Feed(t.Context(), [][]int64{prompt}); err != nil {
					t.Fatal(err)
				}
				for _, cut := range [][2]int{{0, 3}, {3, 9}, {9, 10}, {10, 14}} {
					if err := pieces.Feed(t.Context(), [][]int64{prompt[cut[0]:cut[1]]}); err != nil {
						t.Fatal(err)
					}
				}
				want, err := whole.Scores(0)
				if err != nil {
					t.Fatal(err)
				}
				got, err := pieces.Scores(0)
				if err != nil {
					t.Fatal(err)
				}
				for v := range want {
					if !(math.Abs(float64(got[v]-want[v])) < 1e-4) {
						t.Fatalf("score %d is %v in pieces, %v at once", v, got[v], want[v])
					}
				}
			})
		}
	}
}

// Buffers are a multiple of 256 positions long unless the caller says otherwise.
func TestChunk(t *testing.T) {
	m := load(t, trial.Rewrite(t, trial.Model(t, "llama", testmodels.Options{Cache: true}), fusion.StaticCache, fewer))
	l := start(t, m, Options{})
	for _, c := range []struct{ reserve, want int }{{1, 256}, {256, 256}, {257, 512}, {100, 512}, {700, 768}} {
		if err := l.Reserve(c.reserve); err != nil || l.Capacity() != c.want || Chunk%256 != 0 {
			t.Errorf("room for %d positions: %d (%v), want %d", c.reserve, l.Capacity(), err, c.want)
		}
	}
}

// What is fed after going back does not depend on what was fed before.
func TestRewind(t *testing.T) {
	m := load(t, trial.Model(t, "llama", testmodels.Options{Cache: true}))
	l := start(t, m, Options{})
	feed := func(tokens ...int64) []float32 {
		t.Helper()
		if err := l.Feed(t.Context(), [][]int64{tokens}); err != nil {
			t.Fatal(err)
		}
		scores, err := l.Scores(0)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Clone(scores)
	}
	first := feed(1, 2, 3)
	feed(4)
	if err := l.Rewind(0); err != nil {
		t.Fatal(err)
	}
	if again := feed(1, 2, 3); !slices.Equal(first, again) {
		t.Errorf("got %v after going back, first %v", again, first)
	}
	if err := l.Rewind(2); err == nil || !strings.Contains(err.Error(), "only to none") {
		t.Errorf("going back into a joined cache: %v", err)
	}
	if err := l.Fill(20, 1); err != nil {
		t.Fatal(err)
	}
	a := feed(5)
	if l.Len() != 21 || slices.Equal(a, first) || a[0] != a[0] {
		t.Errorf("after filling 20 positions: %d positions, scores %v", l.Len(), a)
	}
}

func TestCacheBytes(t *testing.T) {
	m := load(t, trial.Model(t, "llama-gqa", testmodels.Options{Layers: 3, Heads: 4, KVHeads: 2, HeadDim: 8, Cache: true, DType: onnxpb.TensorProto_FLOAT16}))
	got, err := m.CacheBytes(5, 7)
	if want := int64(3 * 2 * 5 * 2 * 7 * 8 * 2); err != nil || got != want {
		t.Errorf("got %d (%v), want %d", got, err, want)
	}
}

func TestErrors(t *testing.T) {
	runtime(t)
	if _, err := Open(trial.Model(t, "bert", testmodels.Options{}), single); err == nil || !strings.Contains(err.Error(), "no decoder") {
		t.Errorf("an encoder: %v", err)
	}
	t5 := load(t, trial.Model(t, "t5-decoder", testmodels.Options{Cache: true}))
	if _, err := t5.Start(Options{}); err == nil || !strings.Contains(err.Error(), "encoder") {
		t.Errorf("without an encoder's states: %v", err)
	}
	m := load(t, trial.Model(t, "gpt2", testmodels.Options{Cache: true, MaxSeq: 6}))
	if _, err := m.Start(Options{Inputs: map[string]*ort.Tensor{"w": ort.FromInt64(nil, 0)}}); err == nil || !strings.Contains(err.Error(), `no input "w"`) {
		t.Errorf("an input that there is not: %v", err)
	}
	for _, c := range []struct {
		name   string
		tokens [][]int64
		want   string
	}{
		{"another batch", [][]int64{{1}}, "tokens of 1 sequences for a batch of 2"},
		{"nothing", [][]int64{{1}, nil}, "sequence 1 has no token"},
		{"not in the vocabulary", [][]int64{{1}, {64}}, "64 is beyond the model's table of 64"},
		{"too long", [][]int64{{1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1}}, "6 is beyond the model's table of 6"},
	} {
		l := start(t, m, Options{Batch: 2})
		if err := l.Feed(t.Context(), c.tokens); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it to say %q", c.name, err, c.want)
		}
		if _, err := l.Scores(0); err == nil {
			t.Errorf("%s: scores of nothing", c.name)
		}
	}
	l := start(t, m, Options{Batch: 2})
	if err := l.Feed(context.Background(), [][]int64{{1, 2}, {3}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Feed(context.Background(), [][]int64{{1, 2}, {3}}); err == nil || !strings.Contains(err.Error(), "only the first may differ") {
		t.Errorf("unequal steps: %v", err)
	}
}
