package rewrite_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"onnx-dha/fusion"
	"onnx-dha/graph"
	"onnx-dha/graph/attention"
	"onnx-dha/graph/onnxpb"
	"onnx-dha/ort"
	"onnx-dha/rewrite"
	"onnx-dha/testmodels"
)

// A set is models that pass caches to one another, by what each does in the chain.
type set map[string]string // path by role

// inputs of a session: those of a call that it has.
func inputs(s *ort.Session, have map[string]*ort.Tensor) map[string]*ort.Tensor {
	in := map[string]*ort.Tensor{}
	for name, x := range have {
		if _, ok := s.Input(name); ok {
			in[name] = x
		}
	}
	return in
}

// chain runs an encoder, the first step of a decoder and the next ones on given tokens, each step on the caches that the
// steps before gave, and returns all logits. Without a first step the next ones begin with an empty cache.
func chain(t *testing.T, models set, tokens [][]int64, heads int) []float64 {
	t.Helper()
	sessions := map[string]*ort.Session{}
	for role, path := range models {
		s, err := ort.NewSession(path, ort.Options{Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		sessions[role] = s
	}
	const batch, words = 2, 6
	rng := rand.New(rand.NewPCG(1, 2))
	ids, mask := make([]int64, batch*words), make([]int64, batch*words)
	for i := range ids {
		ids[i], mask[i] = rng.Int64N(64), 1
	}
	mask[len(mask)-1] = 0
	have := map[string]*ort.Tensor{
		"input_ids": ort.FromInt64(ids, batch, words), "attention_mask": ort.FromInt64(mask, batch, words),
		"encoder_attention_mask": ort.FromInt64(mask, batch, words),
	}
	for _, in := range sessions["encoder"].Inputs() { // sound
		if in.Name == "input_features" {
			x := make([]float32, batch*in.Shape[1]*in.Shape[2])
			for i := range x {
				x[i] = float32(rng.NormFloat64())
			}
			have[in.Name] = ort.FromFloat32(x, batch, in.Shape[1], in.Shape[2])
		}
	}
	run := func(role string) map[string]*ort.Tensor {
		s := sessions[role]
		out, err := s.Run(context.Background(), inputs(s, have))
		if err != nil {
			t.Fatalf("%s: %v", role, err)
		}
		for name, x := range out {
			if rest, ok := strings.CutPrefix(name, "present"); ok {
				for _, in := range []string{"past_key_values" + rest, "past" + rest} {
					have[in] = x
				}
			}
		}
		return out
	}
	have["encoder_hidden_states"] = run("encoder")["last_hidden_state"]
	role := "next"
	if sessions["first"] != nil {
		role = "first"
	} else {
		for _, in := range sessions["next"].Inputs() {
			if strings.Contains(in.Name, ".decoder.") {
				have[in.Name] = ort.FromFloat32(nil, batch, in.Shape[1], 0, in.Shape[3])
			}
		}
	}
	var logits []float64
	for _, step := range tokens {
		n := int64(len(step) / batch)
		have["input_ids"] = ort.FromInt64(step, batch, n)
		x, err := run(role)["logits"].Float64s()
		if err != nil {
			t.Fatal(err)
		}
		logits = append(logits, x...)
		role = "next"
	}
	return logits
}

// exactSet rewrites and ties a set by one plan and compares the chains.
func exactSet(t *testing.T, models set, low fusion.Lowering, key, val func(int) [][]int) {
	t.Helper()
	dir := t.TempDir()
	results := map[string]set{"rewritten": {}, "tied": {}}
	for kind, out := range results {
		var open []*graph.Model
		var roles []string
		for _, role := range []string{"encoder", "first", "next"} {
			if models[role] == "" {
				continue
			}
			m, err := graph.Load(models[role])
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { m.Close() })
			open, roles = append(open, m), append(roles, role)
		}
		plan := &fusion.Plan{Lowering: low}
		cross := 0
		for _, r := range attention.FindAll(open...) {
			for _, b := range r.Blocks {
				if b.Fixed != "" {
					t.Fatalf("%s: %s", b.Name, b.Fixed)
				}
				if b.Kind == attention.Cross {
					cross++
				}
				k, v := key(b.KVHeads), val(b.ValueHeads)
				if k == nil || v == nil {
					t.Skip("no such grouping")
				}
				plan.Blocks = append(plan.Blocks, fusion.BlockPlan{Block: b, Key: weigh(k), Value: weigh(v)})
			}
		}
		if cross == 0 {
			t.Fatal("no cross attention was found")
		}
		for i, m := range open {
			out[roles[i]] = filepath.Join(dir, kind+"-"+roles[i]+".onnx")
			var err error
			if kind == "tied" {
				err = rewrite.Tie(m, plan)
			} else {
				_, err = rewrite.Apply(m, plan)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			if err := m.Save(out[roles[i]], graph.SaveOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	tokens := [][]int64{}
	for _, n := range []int{3, 1, 1, 1} {
		step := make([]int64, 2*n)
		for i := range step {
			step[i] = rng.Int64N(64)
		}
		tokens = append(tokens, step)
	}
	want, got := chain(t, results["tied"], tokens, 4), chain(t, results["rewritten"], tokens, 4)
	worst, scale := 0.0, 0.0
	for i := range want {
		worst, scale = max(worst, abs(got[i]-want[i])), max(scale, abs(want[i]))
	}
	if len(want) == 0 || len(want) != len(got) || scale == 0 || worst > 1e-4*scale {
		t.Errorf("logits of the chain differ by %.3g of %.3g", worst, scale)
	}
	if same := chain(t, models, tokens, 4); key(4) != nil && len(key(4)) < 4 {
		drift := 0.0
		for i := range same {
			drift = max(drift, abs(got[i]-same[i]))
		}
		if drift < 1e-3*scale {
			t.Errorf("fusing heads changes nothing: %.3g of %.3g", drift, scale)
		}
	}
}

func abs(x float64) float64 { return max(x, -x) }

// The keys and values of cross attention are projected in one file and read in another: in the decoder's first step, as
// Optimum exports T5 and BART, or in the encoder, as for the runtime's generation and as Whisper exports do.
func TestExactPairs(t *testing.T) {
	runtime(t)
	write := func(m *onnxpb.ModelProto) string { return wrapped(t, m) }
	for _, f := range []string{"t5-decoder", "bart-decoder/torch", "whisper-decoder/torch"} {
		encoder := message(t, strings.Replace(f, "decoder", "encoder", 1), testmodels.Options{})
		first, next := message(t, f, testmodels.Options{Stage: testmodels.First}), message(t, f, testmodels.Options{Stage: testmodels.Next})
		for name, models := range map[string]set{
			"first step fills": {"encoder": write(encoder), "first": write(first), "next": write(next)},
			"encoder fills":    {"encoder": write(testmodels.Fill(encoder, first, func(s string) string { return s })), "next": write(next)},
		} {
			for _, low := range []fusion.Lowering{fusion.Grouped, fusion.Expand} {
				for _, g := range groupings {
					if g.name == "equal" || g.name == "decoupled-unequal" || g.name == "values-only" {
						t.Run(fmt.Sprintf("%s/%s/%s/%s", f, name, low, g.name), func(t *testing.T) { exactSet(t, models, low, g.key, g.val) })
					}
				}
			}
		}
	}
}
