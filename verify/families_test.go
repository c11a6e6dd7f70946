package verify

import (
	"context"
	"math"
	"slices"
	"testing"

	"onnx-dha/ort"
	"onnx-dha/testmodels"
)

// eachFamily builds every family of testmodels.
func eachFamily(t *testing.T, o testmodels.Options, f func(t *testing.T, family testmodels.Family, path string)) {
	openRuntime(t)
	for _, family := range testmodels.Families() {
		t.Run(family.Name, func(t *testing.T) {
			o := o
			o.Cache = o.Cache && family.Decoder
			m, err := family.Build(o)
			if err != nil {
				t.Fatal(err)
			}
			f(t, family, save(t, m))
		})
	}
}

// Whatever family and exporter, the inputs that are made up are ones that the model runs on, at every default size,
// and a model equals itself.
func TestEveryFamilyRuns(t *testing.T) {
	id := Identical()
	for name, o := range map[string]testmodels.Options{
		"dynamic": {Cache: true},
		"static":  {Cache: true, Static: true},
		"float16": {Cache: true, DType: hf},
	} {
		o.Layers = 1
		t.Run(name, func(t *testing.T) {
			eachFamily(t, o, func(t *testing.T, family testmodels.Family, path string) {
				r := run(t, Request{Original: path, Rewritten: path, Drift: &id, Steps: 2, Session: ort.Options{Threads: 1}})
				if !r.Passed() {
					t.Errorf("%v", r)
				}
				for _, n := range r.Notes {
					if !o.Static {
						t.Errorf("note: %s", n)
					}
				}
				decoded := slices.ContainsFunc(r.Drift.Lines, func(l Line) bool { return l.Steps > 1 && l.Case != allCases })
				if decoded != (family.Decoder && !o.Static) {
					t.Errorf("decoded: %v", decoded)
				}
			})
		})
	}
}

// The tokens that a model finds most likely do not depend on whether it keeps a cache. This ties masks, positions and
// the way of presents to pasts to the model's own arithmetic.
func TestGenerationWithAndWithoutCacheAgree(t *testing.T) {
	ctx := context.Background()
	prompt := []int64{3, 1, 4, 1, 5}
	with := map[string][]int64{}
	eachFamily(t, testmodels.Options{Cache: true, Layers: 1}, func(t *testing.T, family testmodels.Family, path string) {
		if m := load(t, path); m.IsDecoder() && m.grows() {
			var err error
			if with[family.Name], err = Generate(ctx, m, prompt, 6); err != nil {
				t.Fatal(err)
			}
		}
	})
	eachFamily(t, testmodels.Options{Layers: 1}, func(t *testing.T, family testmodels.Family, path string) {
		if with[family.Name] == nil {
			return
		}
		m := load(t, path)
		got, err := Generate(ctx, m, prompt, 6)
		if err != nil {
			t.Fatal(err)
		}
		if m.grows() || !slices.Equal(got, with[family.Name]) {
			t.Errorf("without a cache %v, with one %v", got, with[family.Name])
		}
	})
	if len(with) < 8 {
		t.Errorf("only %d families generate", len(with))
	}
}

// A sequence in a padded batch gives what it gives alone: the mask hides the padding and positions are counted after
// it, through a prefill and the steps that follow.
func TestPaddedSequencesGiveWhatTheyGiveAlone(t *testing.T) {
	ctx := context.Background()
	eachFamily(t, testmodels.Options{Cache: true, Layers: 1}, func(t *testing.T, family testmodels.Family, path string) {
		m := load(t, path)
		if !m.IsDecoder() || !m.pads() {
			return
		}
		steps := [][]int64{{7, 8, 9}, {10}, {11}}
		both, err := m.NewDecoder(2, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		alone, err := m.NewDecoder(1, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, tokens := range steps {
			padded, real := [][]int64{{1}, {2}}, [][]bool{{true}, {true}}
			if i == 0 {
				padded = [][]int64{{1, 2, 3, 4, 5}, append([]int64{0, 0}, tokens...)}
				real = [][]bool{{true, true, true, true, true}, {false, false, true, true, true}}
			} else {
				padded[1] = tokens
			}
			a, err := both.Step(ctx, padded, real)
			if err != nil {
				t.Fatal(err)
			}
			b, err := alone.Step(ctx, [][]int64{tokens}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := lastRows(a[m.Logits])
			if err != nil {
				t.Fatal(err)
			}
			want, err := lastRows(b[m.Logits])
			if err != nil {
				t.Fatal(err)
			}
			scale := 0.0
			for _, x := range want[0] {
				scale = max(scale, math.Abs(x))
			}
			for v, w := range want[0] {
				if d := math.Abs(got[1][v] - w); d > 1e-4*scale {
					t.Fatalf("step %d, token %d: in the batch %v, alone %v", i, v, got[1][v], w)
				}
			}
		}
	})
}
